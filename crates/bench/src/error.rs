//! Why a model could not be timed.

/// Why a model could not be timed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A forward pass failed.
    #[error(transparent)]
    Model(#[from] bitmill_model::Error),
    /// The model's context does not hold a prompt and one token more.
    #[error("a context of {max_positions} tokens is too short to time decoding; it takes at least 2")]
    ContextTooShort {
        /// What the config allows.
        max_positions: usize,
    },
}

impl Error {
    /// What the reader can change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.hint(),
            Self::ContextTooShort { .. } => Some("check `max_position_embeddings` in config.json".into()),
        }
    }
}
