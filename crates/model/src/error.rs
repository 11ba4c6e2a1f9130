//! Why a model could not be loaded or run.

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint lacks a tensor, or could not be read.
    #[error(transparent)]
    Checkpoint(#[from] bitmill_checkpoint::Error),
    /// A tensor has another shape than the config asks for.
    #[error("`{tensor}`: shape {found:?} where the config asks for {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that follows from the config.
        expected: Vec<usize>,
    },
    /// A norm or bias is stored as codes.
    #[error("`{tensor}` is stored as {encoding}, and norms and biases have to be floats")]
    PackedVector {
        /// The tensor.
        tensor: String,
        /// Its encoding, as people write it.
        encoding: String,
    },
    /// The RoPE factors are not one a pair of a head's elements.
    #[error("{found} rope factors where heads of {head_dim} elements take {}", head_dim / 2)]
    RopeFactors {
        /// Factors found.
        found: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// A batch without a sequence, or a sequence without a token.
    #[error("sequence {sequence} of the batch has no tokens")]
    NoTokens {
        /// The sequence, counted from 0.
        sequence: usize,
    },
    /// A token that the embedding has no row for.
    #[error("token {token} in a model of {vocab_size} tokens")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Gradients of a layer that has none here.
    #[error("layer {layer} is a mixture of experts, whose gradients bitmill does not take")]
    HasExperts {
        /// The layer.
        layer: usize,
    },
    /// More positions than the model was made for.
    #[error("{positions} positions in a model made for {max_positions}")]
    TooLong {
        /// Positions asked for: those of the cache and the new ones.
        positions: usize,
        /// What the config allows.
        max_positions: usize,
    },
    /// A cache made by another model.
    #[error(
        "a cache of {found} layers of width {found_width} in a model of {expected} layers of width {expected_width}"
    )]
    ForeignCache {
        /// Layers of the cache.
        found: usize,
        /// Elements of its rows.
        found_width: usize,
        /// Layers of the model.
        expected: usize,
        /// Elements of the model's rows.
        expected_width: usize,
    },
}

impl Error {
    /// What the reader can change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(error) => error.hint(),
            Self::TokenOutOfRange { .. } => {
                Some("is this the tokenizer that came with the model?".to_owned())
            }
            Self::TooLong { max_positions, .. } => {
                Some(format!("use windows of at most {max_positions} tokens"))
            }
            _ => None,
        }
    }
}
