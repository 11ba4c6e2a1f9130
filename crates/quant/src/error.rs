//! What can go wrong, with positions counted in the rows that were handed in.

use bitmill_tensor::{BlockType, FloatType};

/// Why weights could not be quantized.
///
/// Methods see rows, not tensors: the caller adds the tensor's name, and [`Error::relocate`] turns a position inside
/// the slice that a method was given into a position inside the matrix.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A row does not divide into groups or blocks.
    #[error("{in_features} input features do not divide into groups of {group_size}")]
    UnevenGroups {
        /// Weights in a row.
        in_features: usize,
        /// Weights in a group or block.
        group_size: usize,
    },
    /// A weight is NaN or infinite.
    #[error("row {row}, column {col}: {value} cannot be quantized")]
    NonFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// Weights are too large for the type that their scale is stored in.
    #[error("row {row}, column {col}: the group that begins here needs a scale of {scale:e}, beyond {float}")]
    ScaleOverflow {
        /// Row of the group.
        row: usize,
        /// Column of the group's first weight.
        col: usize,
        /// The scale before it was rounded.
        scale: f32,
        /// The type it is stored in.
        float: FloatType,
    },
    /// A column's importance is negative, infinite or NaN.
    #[error("column {col}: {value} is no importance")]
    BadImportance {
        /// The column.
        col: usize,
        /// Its importance.
        value: f32,
    },
    /// The importance of columns is that of another matrix.
    #[error("{in_features} input features, but the importance of {found}")]
    ImportanceLength {
        /// Weights in a row.
        in_features: usize,
        /// Columns whose importance is given.
        found: usize,
    },
    /// What is known of a feature's activations is no number from 0.
    #[error("column {col}: {value} is no mean or largest magnitude of activations")]
    BadActivation {
        /// The column.
        col: usize,
        /// What was given.
        value: f32,
    },
    /// Errors cannot be counted through these inputs.
    #[error("the layer's inputs, or their Hessian, hold numbers that are not finite or too large to square")]
    BadInputs,
    /// Errors pushed from column to column grew beyond an f32.
    #[error("row {row}: errors pushed from column to column grow without bound")]
    Diverged {
        /// The row.
        row: usize,
    },
    /// Codes that are declared symmetric have a zero point beside their middle.
    #[error(
        "row {row}, group {group}: the zero point {zero} of codes that are declared symmetric around {middle}"
    )]
    OffCentre {
        /// The row.
        row: usize,
        /// The group of the row.
        group: usize,
        /// What is stored.
        zero: u8,
        /// What symmetric codes are centred on.
        middle: u8,
    },
    /// The search of these blocks needs importance.
    #[error("the search of {block} needs the importance of columns")]
    NeedsImportance {
        /// The blocks.
        block: BlockType,
    },
    /// The codes of these blocks do not stand by themselves.
    #[error("errors of {block} are not compensated: its codes are points of a grid")]
    NotCompensated {
        /// The blocks.
        block: BlockType,
    },
    /// No mix has this name.
    #[error("no GGUF mix is called `{name}`")]
    UnknownMix {
        /// What was asked for.
        name: String,
    },
}

impl Error {
    /// What the reader can change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnevenGroups { in_features, group_size } => {
                let divisors: Vec<String> = [16, 32, 64, 128, 256, 512, 1024]
                    .into_iter()
                    .filter(|size| in_features.is_multiple_of(*size))
                    .map(|size| size.to_string())
                    .collect();
                let padded = in_features.next_multiple_of((*group_size).max(1));
                Some(if divisors.is_empty() {
                    format!("use one scale a row, or pad the layer to {padded}")
                } else {
                    format!(
                        "group sizes that divide {in_features}: {}; or pad the layer to {padded}",
                        divisors.join(", ")
                    )
                })
            }
            Self::NonFinite { .. } => {
                Some("the checkpoint is damaged or was saved after training diverged: fetch it again".to_owned())
            }
            Self::ScaleOverflow { float: FloatType::F16, .. } => Some(
                "store the scales in bf16 where the format allows it; GGUF blocks do not, keep this tensor dense"
                    .to_owned(),
            ),
            Self::ScaleOverflow { .. } => None,
            Self::BadActivation { .. } | Self::BadInputs => Some(
                "the layers before may overflow: run `bitmill eval`, or round this tensor to nearest".to_owned(),
            ),
            Self::Diverged { .. } => {
                Some("use more damping or more calibration tokens, or round this tensor to nearest".to_owned())
            }
            Self::OffCentre { .. } => Some(
                "declare them with zero points (`\"sym\": false` in the source's config.json and quantize_config.json)".to_owned(),
            ),
            Self::NeedsImportance { .. } => Some(
                "give an importance matrix (--imatrix FILE), or take a type that does without, as q2_k or iq3_s".to_owned(),
            ),
            Self::NotCompensated { .. } => Some("take q2_k to q6_k, q4_0 to q8_0, iq4_nl or iq4_xs".to_owned()),
            Self::BadImportance { .. } => {
                Some("importance is a mean of squares, 0 or larger: make the importance matrix again".to_owned())
            }
            Self::ImportanceLength { .. } => {
                Some("the importance matrix was made of another model: make one of this model".to_owned())
            }
            Self::UnknownMix { .. } => {
                Some(format!("mixes: {}", crate::Mix::ALL.map(|mix| mix.name()).join(", ")))
            }
        }
    }

    /// The same error with its position counted from the matrix's first row, when the method was given the rows from
    /// `first_row` on.
    ///
    /// ```
    /// use bitmill_quant::Error;
    /// let inside = Error::NonFinite { row: 1, col: 6, value: f32::INFINITY };
    /// assert_eq!(inside.relocate(10), Error::NonFinite { row: 11, col: 6, value: f32::INFINITY });
    /// ```
    #[must_use]
    pub fn relocate(mut self, first_row: usize) -> Self {
        if let Self::NonFinite { row, .. }
        | Self::ScaleOverflow { row, .. }
        | Self::OffCentre { row, .. }
        | Self::Diverged { row } = &mut self
        {
            *row += first_row;
        }
        self
    }
}

impl Error {
    /// The same error with its position counted from the row's first column, when the method was given the columns from
    /// `first_col` on.
    pub(crate) fn beside(mut self, first_col: usize) -> Self {
        if let Self::NonFinite { col, .. } | Self::ScaleOverflow { col, .. } = &mut self {
            *col += first_col;
        }
        self
    }
}

/// Whether `weight` may be rounded as rows of `in_features`.
///
/// # Errors
/// [`Error::NonFinite`] for NaN and infinity.
///
/// # Panics
/// If it is not whole rows.
pub(crate) fn check_rows(weight: &[f32], in_features: usize) -> Result<(), Error> {
    assert!(
        in_features > 0 && weight.len().is_multiple_of(in_features),
        "{} weights are not rows of {in_features}",
        weight.len()
    );
    match first_non_finite(weight) {
        None => Ok(()),
        Some(index) => {
            let (row, col) = (index / in_features, index % in_features);
            Err(Error::NonFinite { row, col, value: weight[index] })
        }
    }
}

/// Where the first weight that is NaN or infinite stands.
pub fn first_non_finite(weight: &[f32]) -> Option<usize> {
    // Exponents of ones alone make numbers non-finite: one more carries into the sign's place. An `or` of integers
    // vectorizes on every CPU; a search does not.
    let carry = |value: &f32| (value.to_bits() & 0x7fff_ffff) + 0x0080_0000;
    for (chunk_index, chunk) in weight.chunks(1024).enumerate() {
        if chunk.iter().fold(0, |seen, value| seen | carry(value)) >> 31 == 1 {
            let inside = chunk.iter().position(|value| !value.is_finite())?;
            return Some(1024 * chunk_index + inside);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_for_uneven_groups_lists_what_divides() {
        let error = Error::UnevenGroups { in_features: 29568, group_size: 256 };
        assert_eq!(error.to_string(), "29568 input features do not divide into groups of 256");
        assert_eq!(
            error.hint().unwrap(),
            "group sizes that divide 29568: 16, 32, 64, 128; or pad the layer to 29696"
        );
        let odd = Error::UnevenGroups { in_features: 7, group_size: 4 };
        assert_eq!(odd.hint().unwrap(), "use one scale a row, or pad the layer to 8");
    }

    #[test]
    fn finds_the_first_non_finite_weight() {
        let mut weight = vec![f32::MAX; 3000];
        assert_eq!(first_non_finite(&weight), None);
        weight[2999] = f32::NAN;
        assert_eq!(first_non_finite(&weight), Some(2999));
        weight[1024] = f32::NEG_INFINITY;
        assert_eq!(first_non_finite(&weight), Some(1024));
    }
}
