//! Why a model's activations could not be summed.

/// Why a model's activations could not be summed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A forward pass failed.
    #[error(transparent)]
    Model(#[from] bitmill_model::Error),
    /// A matrix multiplied infinity or NaN.
    #[error("`{tensor}` is multiplied with numbers that are not finite")]
    NotFinite {
        /// The first such matrix.
        tensor: String,
    },
}

impl Error {
    /// What the reader can change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.hint(),
            Self::NotFinite { .. } => Some("the model's weights are damaged: see `bitmill eval`".into()),
        }
    }
}
