//! The compute boundary: everything a model computes goes through here.

use std::borrow::Cow;
use std::ops::Range;

use bitmill_tensor::{Matrix, WeightView};
use rayon::prelude::*;

use crate::ops::attention::{self, AttentionShape, KvCache};
use crate::ops::exp::exp_f64;
use crate::ops::rope::{RopeTable, Rotations};
use crate::ops::route::Routes;
use crate::ops::{norm, rows, rows_per_task, softmax};
use crate::{Isa, Path, dequantize_rows, matmul, matmul_each};

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

    /// `y[t, o] = Σ_i x[t, i] · weight[o, i]`.
    ///
    /// # Shapes
    /// `x`: `[tokens, in_features]`. `y` becomes `[tokens, out_features]`.
    pub fn matmul(&self, weight: &WeightView<'_>, x: &Matrix, y: &mut Matrix) {
        matmul(self.isa, self.path, weight, x, y);
    }

    /// [`matmul`](Self::matmul) of one `x` with several weights, faster than one after another.
    pub fn matmul_each<const N: usize>(&self, x: &Matrix, products: [(WeightView<'_>, &mut Matrix); N]) {
        matmul_each(self.isa, self.path, x, products);
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

    /// [`rms_norm`](Self::rms_norm) of each head of each row of `x` by itself, in place.
    ///
    /// # Panics
    /// If a row is not whole heads of `weight`'s length.
    pub fn rms_norm_heads(&self, x: &mut Matrix, weight: &[f32], eps: f32) {
        assert!(!weight.is_empty() && x.cols().is_multiple_of(weight.len()), "whole heads");
        let cols = x.cols();
        each_row(x.as_mut_slice(), cols, |_, x| norm::rms_norm_heads(self.isa, x, weight, eps));
    }

    /// Works out the rotations of a batch, once for all layers: `sequences` gives each one's table and the positions
    /// of its new tokens, `tokens` in all.
    ///
    /// # Panics
    /// If there are not so many positions, or the tables are of different heads.
    pub fn rotations<'t>(
        &self,
        tokens: usize,
        sequences: impl Iterator<Item = (Cow<'t, RopeTable>, Range<usize>)>,
        out: &mut Rotations,
    ) {
        out.fill(tokens, sequences);
    }

    /// Multiplies each row of `x` by its factor.
    ///
    /// # Panics
    /// If there is not one factor a row.
    pub fn scale_rows(&self, x: &mut Matrix, factors: &[f32]) {
        assert_eq!(x.rows(), factors.len(), "one factor a row");
        let cols = x.cols();
        each_row(x.as_mut_slice(), cols, |row, x| x.iter_mut().for_each(|x| *x *= factors[row]));
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

    /// Chooses the experts that each token goes through: the `used` of the largest logits, the first of equals. An
    /// expert's share is its probability among all experts, or among the chosen ones if `normalised`.
    ///
    /// # Shapes
    /// `logits`: `[tokens, experts]`.
    ///
    /// # Panics
    /// If there are fewer experts than `used`.
    pub fn route(&self, logits: &Matrix, used: usize, normalised: bool, routes: &mut Routes) {
        assert!(used <= logits.cols(), "{used} of {} experts", logits.cols());
        routes.fill(self.isa, logits, used, normalised);
    }

    /// Adds `factors[i]` times row `i` of `other` to row `rows[i]` of `x`, one after another.
    ///
    /// # Panics
    /// If widths or lengths differ, or a row is not there.
    pub fn add_scaled_rows(&self, x: &mut Matrix, rows: &[usize], factors: &[f32], other: &Matrix) {
        assert_eq!((rows.len(), factors.len()), (other.rows(), other.rows()), "one row and factor each");
        assert_eq!(x.cols(), other.cols(), "rows of one width");
        for (from, (&to, &factor)) in rows.iter().zip(factors).enumerate() {
            rows::add_scaled_row(self.isa, x.row_mut(to), factor, other.row(from));
        }
    }

    /// Multiplies row `t` of `x` by the sigmoid of `gates[t, 0]`.
    ///
    /// # Panics
    /// If `gates` is not one column with one gate a row.
    pub fn gate_rows(&self, x: &mut Matrix, gates: &Matrix) {
        assert_eq!((gates.rows(), gates.cols()), (x.rows(), 1), "one gate a row");
        let cols = x.cols();
        each_row(x.as_mut_slice(), cols, |row, x| rows::gate_row(self.isa, x, gates.row(row)[0]));
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

    /// The column of each row's largest element, the first of equals, into `out`; 0 where no element is a number.
    pub fn largest(&self, logits: &Matrix, out: &mut Vec<u32>) {
        out.clear();
        out.resize(logits.rows(), 0);
        each_value(out, logits.cols(), |row| largest(logits.row(row)));
    }

    /// `eˣ` of every element in place, for `x` up to 700: the same bits on every machine.
    pub fn exp(&self, values: &mut [f64]) {
        values.iter_mut().for_each(|x| *x = exp_f64(*x));
    }
}

/// The column of the largest element, the first of equals.
fn largest(row: &[f32]) -> u32 {
    /// Columns looked at together: lanes of a comparison each, so that the loop vectorises.
    const LANES: usize = 16;
    let mut best = [f32::NEG_INFINITY; LANES];
    let lanes = row.chunks_exact(LANES);
    let tail = lanes.remainder();
    for values in lanes {
        for (best, &value) in best.iter_mut().zip(values) {
            *best = if value > *best { value } else { *best };
        }
    }
    let largest = best.iter().chain(tail).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    if largest == f32::NEG_INFINITY {
        return 0;
    }
    row.iter().position(|&value| value == largest).map_or(0, |column| column as u32)
}

/// Runs `body` on every row of `data`, split over threads if there is enough of it.
pub(crate) fn each_row(data: &mut [f32], cols: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
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
fn each_value<T: Send>(out: &mut [T], cols: usize, body: impl Fn(usize) -> T + Sync) {
    match rows_per_task(out.len(), cols) {
        None => out.iter_mut().enumerate().for_each(|(row, value)| *value = body(row)),
        Some(rows) => out.par_chunks_mut(rows).enumerate().for_each(|(task, values)| {
            for (row, value) in values.iter_mut().enumerate() {
                *value = body(task * rows + row);
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use bitmill_tensor::{BlockType, FloatType, WeightData};
    use bitmill_testkit::{assert_close, noise};

    use super::*;

    fn computes() -> impl Iterator<Item = Compute> {
        Isa::available().into_iter().map(|isa| Compute::new(isa, Path::Exact))
    }

    fn matrix(seed: &str, rows: usize, cols: usize, deviation: f32) -> Matrix {
        Matrix::from_vec(rows, cols, noise(seed, rows * cols).into_iter().map(|x| x * deviation).collect())
    }

    /// Runs `act` in one thread and in three, and asserts that nothing depends on it.
    fn whatever_the_threads<T: PartialEq + std::fmt::Debug + Send>(act: impl Fn() -> T + Sync) -> T {
        let [one, three] = [1, 3].map(|threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&act)
        });
        assert!(one == three, "threads change the result");
        one
    }

    fn f64s(row: &[f32]) -> impl Iterator<Item = f64> + Clone + '_ {
        row.iter().map(|&x| f64::from(x))
    }

    #[test]
    fn products_of_one_x_are_those_of_each_weight_alone() {
        let bytes = |name: &str, len: usize| -> Vec<u8> {
            noise(name, len).iter().flat_map(|x| x.to_le_bytes()).collect()
        };
        let floats = bytes("weight", 300 * 288);
        // Codes of any bits; scales of 1.0 in f16.
        let mut blocks: Vec<u8> = (0..400 * 9 * 34).map(|i| (i * 37 % 251) as u8).collect();
        blocks.chunks_exact_mut(34).for_each(|block| block[..2].copy_from_slice(&[0, 0x3c]));
        let float = WeightData::Float { float: FloatType::F32, bytes: &floats };
        let a = WeightView::new(300, 288, float).unwrap();
        let block = WeightData::Block { block: BlockType::Q8_0, bytes: &blocks };
        let b = WeightView::new(400, 288, block).unwrap();
        for tokens in [0, 1, 2, 3, 4, 5, 30] {
            let x = matrix("x", tokens, 288, 1.0);
            for isa in Isa::available() {
                for path in [Path::Exact, Path::Fast] {
                    let compute = Compute::new(isa, path);
                    let [mut alone_a, mut alone_b] = [Matrix::default(), Matrix::default()];
                    compute.matmul(&a, &x, &mut alone_a);
                    compute.matmul(&b, &x, &mut alone_b);
                    let found = whatever_the_threads(|| {
                        let [mut y_a, mut y_b] = [Matrix::default(), Matrix::default()];
                        compute.matmul_each(&x, [(a, &mut y_a), (b, &mut y_b)]);
                        (y_a, y_b)
                    });
                    assert!(found == (alone_a, alone_b), "{isa} {path:?} {tokens} tokens");
                }
            }
        }
    }

    const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 7), (2, 16), (5, 33), (70, 576), (40, 1001)];

    #[test]
    fn rms_norm_equals_the_formula_on_every_instruction_set() {
        for (rows, cols) in SHAPES {
            let (x, weight) = (matrix("x", rows, cols, 3.0), noise("weight", cols));
            let expected: Vec<f32> = (0..rows)
                .flat_map(|row| {
                    let mean = f64s(x.row(row)).map(|x| x * x).sum::<f64>() / cols as f64;
                    let normed = f64s(x.row(row)).map(move |x| x / (mean + 1e-5).sqrt());
                    normed.zip(f64s(&weight)).map(|(x, weight)| (x * weight) as f32).collect::<Vec<_>>()
                })
                .collect();
            let outs: Vec<Matrix> = computes()
                .map(|compute| {
                    whatever_the_threads(|| {
                        let mut out = Matrix::default();
                        compute.rms_norm(&x, &weight, 1e-5, &mut out);
                        out
                    })
                })
                .collect();
            assert_close(outs[0].as_slice(), &expected, 5e-7, "a few roundings of f32");
            assert!(outs.iter().all(|out| out == &outs[0]));
        }
    }

    #[test]
    fn norms_of_heads_are_norms_of_rows_as_wide_as_a_head() {
        for (rows, heads, head_dim) in [(1, 1, 1), (3, 2, 6), (5, 4, 16), (70, 9, 64)] {
            let (x, weight) = (matrix("x", rows, heads * head_dim, 3.0), noise("weight", head_dim));
            for compute in computes() {
                let mut expected = Matrix::default();
                let alone = Matrix::from_vec(rows * heads, head_dim, x.as_slice().to_vec());
                compute.rms_norm(&alone, &weight, 1e-5, &mut expected);
                let found = whatever_the_threads(|| {
                    let mut x = x.clone();
                    compute.rms_norm_heads(&mut x, &weight, 1e-5);
                    x
                });
                assert_eq!(found.as_slice(), expected.as_slice());
            }
        }
    }

    #[test]
    fn swiglu_equals_the_formula_on_every_instruction_set() {
        for (rows, cols) in SHAPES {
            let (gate, up) = (matrix("gate", rows, cols, 8.0), matrix("up", rows, cols, 1.0));
            let expected: Vec<f32> = f64s(gate.as_slice())
                .zip(f64s(up.as_slice()))
                .map(|(gate, up)| (gate / (1.0 + (-gate).exp()) * up) as f32)
                .collect();
            let outs: Vec<Matrix> = computes()
                .map(|compute| {
                    whatever_the_threads(|| {
                        let mut out = gate.clone();
                        compute.swiglu(&mut out, &up);
                        out
                    })
                })
                .collect();
            assert_close(outs[0].as_slice(), &expected, 5e-7, "a few roundings of f32");
            assert!(outs.iter().all(|out| out == &outs[0]));
        }
        let mut ends = Matrix::from_vec(1, 4, vec![-1e30, -200.0, 200.0, f32::NAN]);
        Compute::new(Isa::best(), Path::Exact).swiglu(&mut ends, &Matrix::from_vec(1, 4, vec![1.0; 4]));
        assert_eq!(ends.row(0)[..3], [0.0, 0.0, 200.0]);
        assert!(ends.row(0)[3].is_nan());
    }

    #[test]
    fn rows_are_scattered_with_their_factors_and_gated_by_a_sigmoid() {
        for isa in Isa::available() {
            let compute = Compute::new(isa, Path::Exact);
            let mut x = Matrix::from_vec(3, 2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let other = Matrix::from_vec(2, 2, vec![10.0, 20.0, -1.0, 1.0]);
            compute.add_scaled_rows(&mut x, &[2, 0], &[0.5, 3.0], &other);
            assert_eq!(x.as_slice(), [-2.0, 5.0, 3.0, 4.0, 10.0, 16.0]);
            compute.gate_rows(&mut x, &Matrix::from_vec(3, 1, vec![0.0, 200.0, 3f32.ln()]));
            assert_close(x.as_slice(), &[-1.0, 2.5, 3.0, 4.0, 7.5, 12.0], 5e-7, "a few roundings of f32");
        }
    }

    #[test]
    fn log_probabilities_sum_to_one_and_survive_large_logits() {
        for (rows, cols) in SHAPES {
            let mut logits = matrix("logits", rows, cols, 10.0);
            logits.as_mut_slice().iter_mut().for_each(|x| *x += 500.0);
            for compute in computes() {
                let targets: Vec<u32> = (0..rows).map(|row| (row * 31 % cols) as u32).collect();
                let mut losses = Vec::new();
                compute.cross_entropy(&logits, &targets, &mut losses);
                let mut logs = logits.clone();
                compute.log_softmax_rows(&mut logs);
                for row in 0..rows {
                    let total = f64s(logits.row(row)).map(|x| (x - 500.0).exp()).sum::<f64>().ln() + 500.0;
                    let target = targets[row] as usize;
                    let loss = total - f64::from(logits.row(row)[target]);
                    assert!((losses[row] - loss).abs() < 1e-12, "{} {loss}", losses[row]);
                    assert_eq!(logs.row(row)[target], -losses[row] as f32);
                }
            }
        }
    }

    #[test]
    fn divergence_equals_the_formula_and_is_zero_between_equals() {
        for (rows, cols) in SHAPES {
            let (dense, mut other) = (matrix("dense", rows, cols, 4.0), matrix("noise", rows, cols, 0.01));
            Compute::new(Isa::best(), Path::Exact).add_assign(&mut other, &dense);
            for compute in computes() {
                let (mut found, mut of_logs, mut none) = (Vec::new(), Vec::new(), Vec::new());
                compute.divergence(&dense, &other, &mut found);
                let mut logs = dense.clone();
                compute.log_softmax_rows(&mut logs);
                compute.divergence(&logs, &other, &mut of_logs);
                compute.divergence(&dense, &dense, &mut none);
                assert!(none.iter().all(|&kl| kl == 0.0));
                for row in 0..rows {
                    let log = |row: &[f32]| {
                        let total = f64s(row).map(f64::exp).sum::<f64>().ln();
                        f64s(row).map(|x| x - total).collect::<Vec<f64>>()
                    };
                    let (p, q) = (log(dense.row(row)), log(other.row(row)));
                    let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                    assert!((found[row] - kl).abs() < 1e-12, "{} {kl}", found[row]);
                    // Log-probabilities rounded to f32 have lost up to 5e-7 each.
                    assert!((of_logs[row] - kl).abs() < 5e-7, "{} {kl}", of_logs[row]);
                }
            }
        }
    }

    #[test]
    fn impossible_tokens_add_nothing_to_a_divergence() {
        let dense = Matrix::from_vec(1, 3, vec![0.0, f32::NEG_INFINITY, 0.0]);
        let mut kl = Vec::new();
        Compute::new(Isa::best(), Path::Exact).divergence(&dense, &dense, &mut kl);
        assert_eq!(kl, [0.0]);
    }

    #[test]
    fn embedding_gathers_rows_in_token_order() {
        let values = noise("table", 5 * 24);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let weight =
            WeightView::new(5, 24, WeightData::Float { float: FloatType::F32, bytes: &bytes }).unwrap();
        for compute in computes() {
            let mut out = Matrix::from_vec(1, 1, vec![f32::NAN]);
            compute.embed(&weight, &[4, 0, 4], &mut out);
            assert_eq!(out.rows(), 3);
            for (row, token) in [4, 0, 4].into_iter().enumerate() {
                assert_eq!(out.row(row), &values[token * 24..(token + 1) * 24]);
            }
        }
    }

    #[test]
    fn biases_residuals_and_the_largest_are_by_row() {
        let compute = Compute::new(Isa::best(), Path::Exact);
        let mut x = Matrix::from_vec(2, 3, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        compute.add_bias(&mut x, &[10.0, 0.0, -10.0]);
        assert_eq!(x.as_slice(), [10.0, 1.0, -8.0, 13.0, 4.0, -5.0]);
        let other = x.clone();
        compute.add_assign(&mut x, &other);
        assert_eq!(x.row(1), [26.0, 8.0, -10.0]);
        compute.scale_rows(&mut x, &[2.0, -1.0]);
        assert_eq!((x.row(0)[0], x.row(1)), (40.0, &[-26.0, -8.0, 10.0][..]));
        let mut best = vec![7];
        compute.largest(&Matrix::from_vec(2, 3, vec![1.0, 5.0, 5.0, f32::NAN, -3.0, -2.0]), &mut best);
        assert_eq!(best, [1, 2]);
        for (length, at) in [(1, 0), (16, 15), (17, 16), (1000, 333), (152_064, 152_063), (152_064, 7)] {
            let mut row = noise("largest", length);
            row.iter_mut().for_each(|x| *x = x.min(9.0));
            row[at] = 10.0;
            row[length - 1] = 10.0;
            row[(length / 2).max(at.min(1)) / 2] += if at == 0 { 0.0 } else { f32::NAN };
            compute.largest(&Matrix::from_vec(1, length, row), &mut best);
            assert_eq!(best, [at as u32], "{length}");
        }
        compute
            .largest(&Matrix::from_vec(2, 2, vec![f32::NAN, f32::NAN, f32::NEG_INFINITY, -1.0]), &mut best);
        assert_eq!(best, [0, 1]);
        let mut kept = Matrix::default();
        compute.gather(&x, &[1, 1, 0], &mut kept);
        assert_eq!(kept.row(1), x.row(1));
        assert_eq!(kept.row(2), x.row(0));
    }
}
