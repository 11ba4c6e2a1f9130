//! What can go wrong. Methods see rows, not tensors: the caller adds the tensor's name.

/// Why a matrix could not be pruned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A row does not divide into groups of `of`.
    #[error("{in_features} input features do not divide into groups of {of}")]
    UnevenPattern {
        /// Weights in a row.
        in_features: usize,
        /// Weights in a group.
        of: usize,
    },
}

impl Error {
    /// What the reader can change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnevenPattern { in_features, .. } => {
                let divisors: Vec<String> = [4, 8, 16, 32, 64]
                    .into_iter()
                    .filter(|of| in_features.is_multiple_of(*of))
                    .map(|of| format!("{}:{of}", of / 2))
                    .collect();
                Some(if divisors.is_empty() {
                    "take out this tensor with `skip`, or prune rows without a pattern".into()
                } else {
                    format!("patterns that divide {in_features}: {}", divisors.join(", "))
                })
            }
        }
    }
}
