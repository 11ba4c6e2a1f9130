//! Latency and memory of a model, measured.
//!
//! Latency is always that of the fast path, which chat and servers would use; quality is measured elsewhere, on the
//! exact path.

mod error;
mod latency;
mod memory;
mod settings;

pub use error::Error;
pub use latency::measure;
pub use memory::{peak_bytes, reset_peak, resident_bytes};
pub use settings::BenchSettings;
