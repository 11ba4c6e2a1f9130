//! Pruning methods: one file per method. A method takes matrices and says which weights or layers go; it opens no file
//! and runs no model.
//!
//! [`magnitude`] removes the smallest weights, of a row, of a tensor, or of every few inputs. [`depth`] finds the layers
//! that change their input least.

pub mod depth;
mod error;
pub mod magnitude;

pub use depth::{BlockInfluence, least_influential};
pub use error::Error;
pub use magnitude::{NOfM, RowRule, Sparsity, Threshold, apply_mask, mask_bytes};
