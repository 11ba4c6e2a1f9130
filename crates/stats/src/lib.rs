//! What methods learn from activations: Hessians and their factors, norms and ranges of channels.
//!
//! Statistics are of the input of one linear layer, `x`: `[tokens, in_features]`. Work is split over rows of the
//! result, in pieces that follow from the shapes alone: threads change no bit of a sum.

mod channels;
mod cholesky;
mod cross;
mod error;
mod factor;
mod hessian;
mod square;

pub use channels::{ChannelAccumulator, ChannelStats};
pub use cross::{Cross, CrossAccumulator};
pub use error::Error;
pub use factor::Factor;
pub use hessian::{Hessian, HessianAccumulator};
