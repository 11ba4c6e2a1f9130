//! How much the errors of each column count.

use super::lanes::{F8, by_sub_block};
use crate::Error;

/// One number for each column of a matrix: the errors of that column's weights count in proportion. An importance matrix
/// holds the mean of the squares of what the column is multiplied with.
///
/// ```
/// use bitmill_quant::{Error, Importance};
/// assert!(Importance::new(&[0.0, 2.5]).is_ok());
/// assert_eq!(Importance::new(&[1.0, -1.0]).unwrap_err(), Error::BadImportance { col: 1, value: -1.0 });
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Importance<'a>(&'a [f32]);

impl<'a> Importance<'a> {
    /// Takes the importance of each column.
    ///
    /// # Errors
    /// [`BadImportance`](Error::BadImportance) for a number that is negative, infinite or NaN.
    pub fn new(columns: &'a [f32]) -> Result<Self, Error> {
        match columns.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
            Some(col) => Err(Error::BadImportance { col, value: columns[col] }),
            None => Ok(Self(columns)),
        }
    }

    /// The numbers, for rows of `cols`.
    pub(super) fn of_row(self, cols: usize) -> Result<&'a [f32], Error> {
        if self.0.len() != cols {
            return Err(Error::ImportanceLength { in_features: cols, found: self.0.len() });
        }
        Ok(self.0)
    }
}

/// What the error of each weight counts in ggml's searches with importance: the importance of its column, times the
/// root of the sum of its square and `mean_square`, a mean over its neighbours.
#[inline(always)]
pub(super) fn counts<const N: usize>(x: &[F8; N], importance: &[f32], mean_square: f32) -> [F8; N] {
    let mut counts: [F8; N] = by_sub_block(importance);
    for (count, &x) in counts.iter_mut().zip(x) {
        *count = *count * (F8::splat(mean_square) + x * x).sqrt();
    }
    counts
}

/// Σ x², from left to right as ggml adds.
#[inline(always)]
pub(super) fn sum_of_squares(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |sum, x| sum + x * x)
}
