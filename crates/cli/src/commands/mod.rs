//! One file a command.

mod bench;
mod chat;
mod compare;
mod compress;
mod convert;
mod eval;
mod generate;
mod imatrix;
mod inspect;
mod plan;
mod pull;
mod recipes;
mod search;
mod watch;

pub use bench::bench;
pub use chat::chat;
pub use compare::compare;
pub use compress::compress;
pub use convert::convert;
pub use eval::eval;
pub use generate::generate;
pub use imatrix::imatrix;
pub use inspect::inspect;
pub use plan::plan;
pub use pull::pull;
pub use recipes::recipes;
pub use search::search;
pub use watch::watch;
