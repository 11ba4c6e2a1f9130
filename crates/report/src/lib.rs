//! Result records, their JSON schema and their renderers.
//!
//! Every command that measures something fills one of the records [`EvalReport`], [`BenchReport`],
//! [`CompareReport`], [`GenerateReport`] or [`ChatReport`]. The JSON comes first: tables and the page are drawn from the record alone, so what a person
//! sees is what a program reads. `docs/json.md` lists every field with its unit.
//!
//! This crate is a leaf: it knows no model, opens no file but `/proc`, and computes nothing beyond quantiles and
//! the intervals that a page draws.

mod figures;
mod finite;
mod generation;
mod html;
mod latency;
mod machine;
mod records;
mod schema;
mod table;
mod tasks;
mod text;
mod utc;
mod watch;

pub use figures::{size, weights};
pub use generation::{ChatReport, GenerateReport, Generation, Sampled, Turn};
pub use html::{compare_html, watch_html};
pub use latency::{Latency, quantile};
pub use machine::Machine;
pub use records::{
    BenchReport, CompareReport, Divergence, EvalReport, Failure, PeakScope, Quality, Row, Settings, Speed,
};
pub use schema::{
    BenchSchema, ChatSchema, CompareSchema, Document, Error, EvalSchema, GenerateSchema, WatchSchema,
    from_json, to_json,
};
pub use table::compare_table;
pub use tasks::{TaskScore, Tasks};
pub use text::{bench_text, eval_text};
pub use utc::{Utc, timestamp};
pub use watch::{Deserving, PairedDifference, PromptReport, WatchReport, watch_text};
