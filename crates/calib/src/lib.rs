//! Runs a model over text and shows what its matrices multiply: importance matrices, and layers that are compressed as they
//! run.
//!
//! [`pass_layer`] shows the inputs of each matrix before it runs. [`SumsOfSquares`] is what llama-imatrix computes: for each column of each matrix of the decoder layers, routers included, the sum over tokens of
//! the squares of what the column is multiplied with, and how many tokens those were. Embedding and head have none.

mod error;
mod pass;
mod squares;

pub use error::Error;
pub use pass::{Cached, Dense, DensePass, Inputs, Meet, Streams, pass_layer};
pub use squares::SumsOfSquares;
