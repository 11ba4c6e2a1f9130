//! The compute boundary: everything a model computes goes through here.

use std::ops::Range;

use bitmill_tensor::{Matrix, WeightView};
use rayon::prelude::*;

use crate::ops::attention::{self, AttentionShape, KvCache};
use crate::ops::rope::{RopeTable, Rotations};
use crate::ops::{norm, rows, rows_per_task, softmax};
use crate::{Isa, Path, dequantize_rows, matmul};

/// Where and how a model computes: an instruction set, and the exact or the fast path of matrix products.
///
/// Callers hold activations in matrices and weights as views, and do no arithmetic on either.
///
/// ```
/// use bitmill_kernels::{Compute, Isa, Path};
/// use bitmill_tensor::Matrix;
/// let compute = Compute::new(Isa::best(), Path::Exact);
/// let x = Matrix::from_vec(1, 2, vec![3.0, -4.0]);
/// let mut normed = Matrix::default();
/// compute.rms_norm(&x, &[1.0, 2.0], 0.0, &mut normed);
/// assert!((normed.row(0)[1] + 8.0 / 12.5f32.sqrt()).abs() < 1e-6);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compute {
    isa: Isa,
    path: Path,
}

impl Compute {
    /// Computes with `isa`, multiplying matrices on `path`.
    pub fn new(isa: Isa, path: Path) -> Self {
        Self { isa, path }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The path of matrix products.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The same on another path.
    pub fn with_path(self, path: Path) -> Self {
        Self { path, ..self }
    }

    /// `y[t, o] = Σ_i x[t, i] · weight[o, i]`.
    ///
    /// # Shapes
    /// `x`: `[tokens, in_features]`. `y` becomes `[tokens, out_features]`.
    pub fn matmul(&self, weight: &WeightView<'_>, x: &Matrix, y: &mut Matrix) {
        matmul(self.isa, self.path, weight, x, y);
    }

    /// Row `tokens[t]` of `weight`, unpacked, into row `t` of `out`.
    ///
    /// # Panics
    /// If a token has no row.
    pub fn embed(&self, weight: &WeightView<'_>, tokens: &[u32], out: &mut Matrix) {
        out.reshape(tokens.len(), weight.in_features());
        let cols = out.cols();
        each_row(out.as_mut_slice(), cols, |row, out| {
            dequantize_rows(self.isa, weight, tokens[row] as usize, out);
        });
    }

    /// The rows of `x` that `rows` lists, into `out`.
    pub fn gather(&self, x: &Matrix, rows: &[usize], out: &mut Matrix) {
        out.reshape(rows.len(), x.cols());
        for (to, &from) in rows.iter().enumerate() {
            out.row_mut(to).copy_from_slice(x.row(from));
        }
    }

    /// Adds `bias` to every row of `x`.
    ///
    /// # Panics
    /// If `bias` is not one row long.
    pub fn add_bias(&self, x: &mut Matrix, bias: &[f32]) {
        assert_eq!(bias.len(), x.cols(), "one bias a column");
        each_row(x.as_mut_slice(), bias.len(), |_, row| rows::add_row(self.isa, row, bias));
    }

    /// Adds `other` to `x`: the residual connection.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add_assign(&self, x: &mut Matrix, other: &Matrix) {
        assert_eq!((x.rows(), x.cols()), (other.rows(), other.cols()), "two matrices of one shape");
        each_row(x.as_mut_slice(), other.cols(), |row, x| rows::add_row(self.isa, x, other.row(row)));
    }

    /// `out = weight · x / √(mean(x²) + eps)`, row by row.
    ///
    /// # Panics
    /// If `weight` is not one row long.
    pub fn rms_norm(&self, x: &Matrix, weight: &[f32], eps: f32, out: &mut Matrix) {
        assert_eq!(weight.len(), x.cols(), "one weight a column");
        out.reshape(x.rows(), x.cols());
        each_row(out.as_mut_slice(), weight.len(), |row, out| {
            norm::rms_norm_row(self.isa, x.row(row), weight, eps, out);
        });
    }

    /// Works out how `table` rotates each of `positions`, once for all layers.
    pub fn rotations(&self, table: &RopeTable, positions: &[usize], out: &mut Rotations) {
        out.fill(table, positions);
    }

    /// Rotates every head of row `t` of `x` as row `t` of `rotations` says.
    ///
    /// # Shapes
    /// `x`: `[tokens, heads · head_dim]`.
    ///
    /// # Panics
    /// If rows or heads do not match.
    pub fn rope(&self, x: &mut Matrix, rotations: &Rotations) {
        assert_eq!(x.rows(), rotations.rows(), "one position a row");
        assert!(x.cols().is_multiple_of(rotations.head_dim().max(1)), "whole heads");
        let cols = x.cols();
        each_row(x.as_mut_slice(), cols, |row, x| rotations.apply(self.isa, row, x));
    }

    /// Appends `rows` of `keys` and `values` to a sequence's cache of this layer.
    ///
    /// # Panics
    /// If the rows have another width than the cache.
    pub fn append(&self, cache: &mut KvCache, keys: &Matrix, values: &Matrix, rows: Range<usize>) {
        cache.append(keys, values, rows);
    }

    /// Causal attention of a ragged batch over its caches, which hold the new tokens' keys and values already.
    ///
    /// # Shapes
    /// `q`, `out`: `[tokens, n_heads · head_dim]`; sequence `s` has rows `starts[s]..starts[s + 1]`, so `starts` has
    /// one entry more than there are sequences.
    ///
    /// # Panics
    /// If shapes, `starts` and caches do not fit each other.
    pub fn attention<'c>(
        &self,
        shape: AttentionShape,
        q: &Matrix,
        starts: &[usize],
        cache: impl Fn(usize) -> &'c KvCache + Sync,
        out: &mut Matrix,
    ) {
        attention::attention(self.isa, shape, q, starts, &cache, out);
    }

    /// `gate · sigmoid(gate) · up`, into `gate`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn swiglu(&self, gate: &mut Matrix, up: &Matrix) {
        assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "two matrices of one shape");
        each_row(gate.as_mut_slice(), up.cols(), |row, gate| rows::swiglu_row(self.isa, gate, up.row(row)));
    }

    /// Turns rows of logits into rows of log-probabilities; sums in f64.
    pub fn log_softmax_rows(&self, logits: &mut Matrix) {
        let cols = logits.cols();
        each_row(logits.as_mut_slice(), cols, |_, row| softmax::log_softmax_row(self.isa, row));
    }

    /// `−ln p(target)` of each row of `logits`, into `out`; sums in f64.
    ///
    /// # Panics
    /// If there is not one target a row, or a target has no column.
    pub fn cross_entropy(&self, logits: &Matrix, targets: &[u32], out: &mut Vec<f64>) {
        assert_eq!(targets.len(), logits.rows(), "one target a row");
        out.clear();
        out.resize(targets.len(), 0.0);
        each_value(out, logits.cols(), |row| {
            let row_logits = logits.row(row);
            softmax::log_sum_exp(self.isa, row_logits) - f64::from(row_logits[targets[row] as usize])
        });
    }

    /// Kullback-Leibler divergence of each row of `logits` from the same row of `dense`, in nats: `Σ p·ln(p/q)`, p
    /// from `dense`. Either may be logits or log-probabilities; sums in f64.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn divergence(&self, dense: &Matrix, logits: &Matrix, out: &mut Vec<f64>) {
        assert_eq!((dense.rows(), dense.cols()), (logits.rows(), logits.cols()), "two matrices of one shape");
        out.clear();
        out.resize(dense.rows(), 0.0);
        each_value(out, dense.cols(), |row| softmax::divergence(self.isa, dense.row(row), logits.row(row)));
    }

    /// The column of each row's largest element, the first of equals, into `out`.
    pub fn largest(&self, logits: &Matrix, out: &mut Vec<u32>) {
        out.clear();
        out.extend((0..logits.rows()).map(|row| {
            let mut best = (0, f32::NEG_INFINITY);
            for (column, &value) in logits.row(row).iter().enumerate() {
                if value > best.1 {
                    best = (column as u32, value);
                }
            }
            best.0
        }));
    }
}

/// Runs `body` on every row of `data`, split over threads if there is enough of it.
fn each_row(data: &mut [f32], cols: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    if cols == 0 {
        return;
    }
    match rows_per_task(data.len() / cols, cols) {
        None => data.chunks_exact_mut(cols).enumerate().for_each(|(row, data)| body(row, data)),
        Some(rows) => data.par_chunks_mut(rows * cols).enumerate().for_each(|(task, data)| {
            for (row, data) in data.chunks_exact_mut(cols).enumerate() {
                body(task * rows + row, data);
            }
        }),
    }
}

/// Fills `out` with one value a row of `cols` elements, split over threads if there is enough of it.
fn each_value(out: &mut [f64], cols: usize, body: impl Fn(usize) -> f64 + Sync) {
    match rows_per_task(out.len(), cols) {
        None => out.iter_mut().enumerate().for_each(|(row, value)| *value = body(row)),
        Some(rows) => out.par_chunks_mut(rows).enumerate().for_each(|(task, values)| {
            for (row, value) in values.iter_mut().enumerate() {
                *value = body(task * rows + row);
            }
        }),
    }
}
