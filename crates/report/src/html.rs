//! The comparison as one page.
use crate::CompareReport;

/// The comparison as one self-contained HTML page.
pub fn compare_html(report: &CompareReport) -> String {
    report.model.clone()
}
