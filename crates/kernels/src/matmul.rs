//! `y = x · weightᵀ` over packed weights.

use std::cell::RefCell;

use bitmill_tensor::{Matrix, WeightView};
use rayon::prelude::*;

use crate::dequant::unpack;
use crate::isa::Isa;
use crate::row::Row;

/// How a product with packed weights is computed. Quality is measured on [`Path::Exact`], latency on
/// [`Path::Fast`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Path {
    /// f32 activations; weights are unpacked on the fly.
    Exact,
    /// Activations rounded to int8 in blocks of 32, each with its own f32 scale, against integer codes.
    Fast,
}

/// `y[t, o] = Σ_i x[t, i] · weight[o, i]`.
///
/// # Shapes
/// `x`: `[tokens, in_features]`. `y` becomes `[tokens, out_features]`.
///
/// # Panics
/// If `x` has another number of columns than `weight`.
pub fn matmul(isa: Isa, path: Path, weight: &WeightView<'_>, x: &Matrix, y: &mut Matrix) {
    assert_eq!(x.cols(), weight.in_features(), "activations against in_features");
    let _ = path;
    y.reshape(x.rows(), weight.out_features());
    if x.rows() == 0 || weight.out_features() == 0 {
        return;
    }
    if x.cols() == 0 {
        return y.as_mut_slice().fill(0.0);
    }
    by_panels(isa, weight, x, y);
}

/// Rows of a panel.
const PANEL: usize = 64;

/// Where the tokens of one panel's outputs lie in `y`.
#[derive(Clone, Copy)]
struct Columns {
    first: *mut f32,
    stride: usize,
}
// SAFETY: each panel writes its own columns of `y` only, so threads never touch the same element.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    /// The column `column`, first row.
    fn at(self, column: usize) -> *mut f32 {
        self.first.wrapping_add(column)
    }
}

/// Unpacks panels of rows to f32 and multiplies them by the `gemm` crate.
fn by_panels(isa: Isa, weight: &WeightView<'_>, x: &Matrix, y: &mut Matrix) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let (tokens, in_features, out_features) = (x.rows(), x.cols(), weight.out_features());
    let columns = Columns { first: y.as_mut_slice().as_mut_ptr(), stride: out_features };
    (0..out_features.div_ceil(PANEL)).into_par_iter().for_each(|panel| {
        let first = panel * PANEL;
        let rows = PANEL.min(out_features - first);
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < rows * in_features {
                scratch.resize(rows * in_features, 0.0);
            }
            for (i, out) in scratch.chunks_exact_mut(in_features).take(rows).enumerate() {
                unpack(isa, &Row::of(weight, first + i), 0, out);
            }
            // SAFETY: `y` is [tokens, out_features] and this panel owns columns [first, first + rows) of it; `x` is
            // [tokens, in_features]; `scratch` holds [rows, in_features].
            unsafe {
                gemm::gemm(
                    tokens,
                    rows,
                    in_features,
                    columns.at(first),
                    1,
                    columns.stride as isize,
                    false,
                    x.as_slice().as_ptr(),
                    1,
                    in_features as isize,
                    scratch.as_ptr(),
                    in_features as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        });
    });
}
