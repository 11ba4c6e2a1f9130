//! Masks of a tensor that is written, some rows at a time.

use bitmill_prune::{RowRule, Threshold, apply_mask, mask_bytes};

/// What decides which weights of a tensor stay, once its rows are at hand.
pub(crate) enum Mask {
    /// Each row by itself.
    Rows(RowRule),
    /// A line through the whole tensor.
    Tensor(Threshold),
}

impl Mask {
    /// Marks what stays of `rows` and clears the rest. `source_row` gives the place of a row, counted from the first of
    /// these, in the checkpoint: the result must not follow from the output's order.
    ///
    /// # Errors
    /// As [`RowRule::mask_row`].
    pub(crate) fn apply(
        &self,
        rows: &mut [f32],
        in_features: usize,
        source_row: impl Fn(usize) -> usize,
    ) -> Result<Vec<u8>, bitmill_prune::Error> {
        let row_bytes = mask_bytes(in_features);
        let mut mask = vec![0; rows.len() / in_features * row_bytes];
        let masks = mask.chunks_exact_mut(row_bytes);
        for (row, (weights, mask)) in rows.chunks_exact(in_features).zip(masks).enumerate() {
            match self {
                Self::Rows(rule) => rule.mask_row(weights, mask)?,
                Self::Tensor(threshold) => {
                    let first = source_row(row) * in_features;
                    threshold.mask_row(first as u64, weights, mask);
                }
            }
        }
        apply_mask(&mask, in_features, rows);
        Ok(mask)
    }
}
