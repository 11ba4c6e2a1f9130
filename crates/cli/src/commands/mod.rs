//! One file a command.

mod bench;
mod compare;
mod compress;
mod convert;
mod eval;
mod inspect;
mod plan;
mod pull;
mod recipes;

pub use bench::bench;
pub use compare::compare;
pub use compress::compress;
pub use convert::convert;
pub use eval::eval;
pub use inspect::inspect;
pub use plan::plan;
pub use pull::pull;
pub use recipes::recipes;
