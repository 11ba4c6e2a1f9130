//! One model's figures for a terminal.
use crate::{BenchReport, EvalReport};

/// What `bitmill eval` prints.
pub fn eval_text(report: &EvalReport) -> String {
    report.model.clone()
}

/// What `bitmill bench` prints.
pub fn bench_text(report: &BenchReport) -> String {
    report.model.clone()
}
