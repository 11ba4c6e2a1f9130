//! Forward passes with a KV cache, from packed or plain weights, and the backward pass of a layer.
//!
//! All arithmetic goes through [`Compute`](bitmill_kernels::Compute); this crate knows which tensors meet in which
//! order, and nothing of how they are stored.

mod cache;
mod error;
mod experts;
mod folding;
mod layer;
mod model;
mod sample;
mod session;
mod staged;
mod turns;
mod weights;

pub use cache::Cache;
pub use error::Error;
pub use folding::{Folding, MadeBy, Residual, foldings, residual};
pub use layer::{LayerGradients, LayerRun, PlainLayer, Reach};
pub use model::{Model, Sequence, Want};
pub use sample::{Sampler, Sampling, SplitMix64};
pub use session::{Continuation, Limits, Session, Stop};
pub use staged::{Block, Stage};
