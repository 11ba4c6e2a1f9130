//! Runs a model over text and keeps what its matrices multiply: importance matrices.
//!
//! What llama-imatrix computes: for each column of each matrix of the decoder layers, routers included, the sum over tokens of
//! the squares of what the column is multiplied with, and how many tokens those were. Embedding and head have none.

mod error;
mod squares;

pub use error::Error;
pub use squares::SumsOfSquares;
