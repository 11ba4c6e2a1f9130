//! Why statistics cannot be used.

/// Why a Hessian has no factor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A sum of activations overflowed, or the activations were not finite.
    #[error("input feature {column}: activations are infinite, NaN or too large to square")]
    NotFinite {
        /// The first input feature with such a sum.
        column: usize,
    },
    /// Not even the largest damping leaves a positive pivot.
    #[error("the Hessian is not positive definite at input feature {column}, even damped by {damping}")]
    NotPositiveDefinite {
        /// The input feature without a positive pivot.
        column: usize,
        /// The last damping that was tried.
        damping: f32,
    },
    /// Damping is a fraction of the mean diagonal, zero or more.
    #[error("{damping} is no damping")]
    BadDamping {
        /// What was asked for.
        damping: f32,
    },
}

impl Error {
    /// What the reader can change.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFinite { .. } => {
                "the model's activations overflow on these tokens: check the checkpoint with `bitmill eval`"
                    .to_owned()
            }
            Self::NotPositiveDefinite { .. } => {
                "calibrate with more tokens, or round this tensor to nearest".to_owned()
            }
            Self::BadDamping { .. } => "use a damping between 0 and 1: 0.01 is usual".to_owned(),
        })
    }
}
