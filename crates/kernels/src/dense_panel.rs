//! Sixteen rows of f32 side by side, for products with many tokens.
//!
//! Rows of any encoding are unpacked and transposed, `[column][16 rows]`, a chunk of columns at a time. A tile then
//! needs one load of weights and one broadcast activation for each multiplication of 16 rows with a token;
//! activations are read where they are.

use crate::isa::{Isa, Kind};
use bitmill_tensor::WeightView;

use crate::columns::Columns;
use crate::dequant::unpack;
use crate::row::Row;

/// Rows of a panel.
pub(crate) const ROWS: usize = 16;
/// Columns of a panel at most: 16 KiB, half of an L1 cache.
pub(crate) const COLUMNS: usize = 256;
/// Tokens that a tile takes at most.
pub(crate) const TILE_TOKENS: usize = 12;

/// One panel and the rows that it is transposed from.
pub(crate) struct DensePanel {
    columns: usize,
    values: [f32; ROWS * COLUMNS],
}

impl Default for DensePanel {
    fn default() -> Self {
        Self { columns: 0, values: [0.0; ROWS * COLUMNS] }
    }
}

impl DensePanel {
    /// Unpacks columns `[start, start + columns)` of rows `[first, first + 16)` of `weight`; rows behind its last
    /// are zero. `start` is a multiple of 256.
    pub fn fill(&mut self, isa: Isa, weight: &WeightView<'_>, first: usize, start: usize, columns: usize) {
        assert!(columns <= COLUMNS, "columns of a panel");
        self.columns = columns;
        if let Some(by_column) = Columns::of(weight)
            && first + ROWS <= weight.out_features()
        {
            return by_column.fill(isa, first, start, columns, &mut self.values);
        }
        let mut rows = [0f32; ROWS * COLUMNS];
        for (r, out) in rows.chunks_exact_mut(COLUMNS).enumerate() {
            if first + r < weight.out_features() {
                unpack(isa, &Row::of(weight, first + r), start, &mut out[..columns]);
            }
        }
        match isa.0 {
            Kind::Scalar => {
                for (column, values) in self.values.chunks_exact_mut(ROWS).take(columns).enumerate() {
                    for (r, value) in values.iter_mut().enumerate() {
                        *value = rows[r * COLUMNS + column];
                    }
                }
            }
            // SAFETY: only `Isa::available` makes these, after asking the CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::Avx512 => unsafe { crate::avx2::transpose(&rows, &mut self.values) },
        }
    }
}

/// Adds the product of a panel with up to [`TILE_TOKENS`] tokens to `sums`, `[tokens][16 rows]`.
///
/// `x` begins at the panel's first column of the first token; tokens are `stride` apart. A panel's own sum is one
/// chain of fused multiply-adds over its columns, from zero; it is added to `sums` at the end, which keeps errors
/// those of short chains.
pub(crate) fn multiply(isa: Isa, panel: &DensePanel, x: &[f32], stride: usize, sums: &mut [f32]) {
    let tokens = sums.len() / ROWS;
    assert!(tokens <= TILE_TOKENS && sums.len() == tokens * ROWS, "sums of a tile");
    assert!(tokens == 0 || x.len() >= (tokens - 1) * stride + panel.columns, "activations of a tile");
    match isa.0 {
        Kind::Scalar => {
            for (t, sums) in sums.chunks_exact_mut(ROWS).enumerate() {
                let x = &x[t * stride..][..panel.columns];
                let mut own = [0f32; ROWS];
                for (x, weights) in x.iter().zip(panel.values.chunks_exact(ROWS)) {
                    for (sum, weight) in own.iter_mut().zip(weights) {
                        *sum = weight.mul_add(*x, *sum);
                    }
                }
                for (sum, own) in sums.iter_mut().zip(own) {
                    *sum += own;
                }
            }
        }
        // SAFETY: only `Isa::available` makes Avx2, after asking the CPU; lengths checked above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { crate::avx2::multiply_dense(&panel.values, panel.columns, x, stride, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe {
            crate::avx512::multiply_dense(&panel.values, panel.columns, x, stride, sums)
        },
    }
}
