//! Asymmetric calibration: how the inputs that a layer gets differ from those of the dense model, and what its weights
//! would have to be to make up for it.
//!
//! GPTAQ, arXiv:2504.02692: layers before this one are quantized already, so the layer is calibrated to give on its own
//! input `x` what the dense layer gives on the dense input, `W·dense`. Of all weights those that come closest, damped,
//! are `W + W·C·H⁻¹`, with `C` the mean of `2·(dense − x)·xᵀ` and `H` the damped Hessian of `x`; rounding errors are then
//! counted from there, by any method. Departs from the paper, which pushes the difference of each column onto later
//! columns alone while it rounds: on four matrices of one layer of a small Llama, each way at its best strength there, the
//! squared error of outputs on tokens held out was 4 to 11 % lower.

use bitmill_kernels::{Strided, add_product, set_product};
use bitmill_tensor::Matrix;
use rayon::prelude::*;

use crate::{Error, Factor, square};

/// Sums `2·(dense − x)·xᵀ` over tokens.
#[derive(Debug)]
pub struct CrossAccumulator {
    in_features: usize,
    tokens: u64,
    sums: Vec<f32>,
}

impl CrossAccumulator {
    /// Sums of nothing yet.
    pub fn new(in_features: usize) -> Self {
        Self { in_features, tokens: 0, sums: vec![0.0; in_features * in_features] }
    }

    /// Adds the inputs of some tokens: the dense model's, and those that the layer gets, both `[tokens, in_features]`.
    ///
    /// # Panics
    /// If the two have different shapes, or another width.
    pub fn add(&mut self, dense: &Matrix, x: &Matrix) {
        let n = self.in_features;
        assert_eq!((dense.rows(), dense.cols()), (x.rows(), x.cols()), "the same tokens");
        assert_eq!(x.cols(), n, "activations of another layer");
        let tokens = x.rows();
        self.tokens += tokens as u64;
        if tokens == 0 || n == 0 {
            return;
        }
        let rows = square::task_rows(n);
        self.sums.par_chunks_mut(rows * n).enumerate().with_max_len(1).for_each(|(task, out)| {
            let first = task * rows;
            let height = out.len() / n;
            let mut moved = Vec::with_capacity(tokens * height);
            for token in 0..tokens {
                let (dense, x) = (&dense.row(token)[first..][..height], &x.row(token)[first..][..height]);
                moved.extend(dense.iter().zip(x).map(|(dense, x)| dense - x));
            }
            let moved = Strided::new(&moved, tokens, height, height).transposed();
            add_product(out, n, 1.0, moved, Strided::new(x.as_slice(), tokens, n, n));
        });
    }

    /// How many tokens were added.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean of `2·(dense − x)·xᵀ`; zeros if no token was added.
    pub fn finish(mut self) -> Cross {
        let factor = (2.0 / self.tokens.max(1) as f64) as f32;
        self.sums.par_iter_mut().with_min_len(1 << 16).for_each(|sum| *sum *= factor);
        Cross { in_features: self.in_features, square: self.sums }
    }
}

/// The mean over tokens of `2·(dense − x)·xᵀ`, `[in_features, in_features]`.
#[derive(Debug, Clone)]
pub struct Cross {
    in_features: usize,
    square: Vec<f32>,
}

impl Cross {
    /// Takes a row-major square.
    ///
    /// # Panics
    /// If `square` is not `in_features` squared.
    pub fn from_square(in_features: usize, square: Vec<f32>) -> Self {
        assert_eq!(square.len(), in_features * in_features, "a square of {in_features}");
        Self { in_features, square }
    }

    /// The whole square, row major.
    pub fn as_slice(&self) -> &[f32] {
        &self.square
    }

    /// Moves `weight` towards what gives the dense model's outputs on this layer's own inputs:
    /// `W + strength · W·C·H⁻¹`, `H` damped as in `factor`.
    ///
    /// A `strength` of 1 is the whole way and fits the calibration's tokens best, those held out seldom: half the way
    /// is a good choice, a quarter where tokens are few beside input features.
    ///
    /// ```
    /// use bitmill_stats::{CrossAccumulator, HessianAccumulator};
    /// use bitmill_tensor::Matrix;
    /// let (dense, x) = (Matrix::from_vec(2, 1, vec![2.0, 4.0]), Matrix::from_vec(2, 1, vec![1.0, 2.0]));
    /// let (mut hessian, mut cross) = (HessianAccumulator::new(1), CrossAccumulator::new(1));
    /// hessian.add(&x);
    /// cross.add(&dense, &x);
    /// // Inputs are half of the dense ones, so the weight would have to be twice as large.
    /// let mut weight = [3.0];
    /// cross.finish().aim_at_dense(&hessian.finish().factor(0.0, None)?, 1.0, &mut weight)?;
    /// assert!((weight[0] - 6.0).abs() < 1e-5);
    /// # Ok::<(), bitmill_stats::Error>(())
    /// ```
    ///
    /// # Shapes
    /// `weight`: `[rows, in_features]`. Rows are split over the threads of the pool that this is called in.
    ///
    /// # Errors
    /// [`NotFinite`](Error::NotFinite) if a sum is NaN or infinite.
    ///
    /// # Panics
    /// If `factor` is that of another layer, or `weight` is not whole rows.
    pub fn aim_at_dense(&self, factor: &Factor, strength: f32, weight: &mut [f32]) -> Result<(), Error> {
        let n = self.in_features;
        assert_eq!(factor.in_features(), n, "the factor of another layer");
        if let Some(at) = self.square.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { column: at / n });
        }
        assert!(weight.len().is_multiple_of(n.max(1)), "{} weights are not rows of {n}", weight.len());
        let rows = square::task_rows(n);
        weight.par_chunks_mut(rows * n.max(1)).with_max_len(1).for_each(|weight| {
            let height = weight.len() / n;
            let mut moved = vec![0.0; height * n];
            let cross = Strided::new(&self.square, n, n, n);
            set_product(&mut moved, n, strength, Strided::new(weight, height, n, n), cross);
            if let Some(order) = factor.order() {
                each_row(&mut moved, n, |before, row| {
                    row.iter_mut().zip(order).for_each(|(value, &from)| *value = before[from]);
                });
            }
            times_inverse(factor, &mut moved);
            if let Some(order) = factor.order() {
                each_row(&mut moved, n, |before, row| {
                    before.iter().zip(order).for_each(|(value, &to)| row[to] = *value);
                });
            }
            weight.iter_mut().zip(&moved).for_each(|(weight, moved)| *weight += moved);
        });
        Ok(())
    }
}

/// Rewrites each row of `n` from a copy of it.
fn each_row(rows: &mut [f32], n: usize, rewrite: impl Fn(&[f32], &mut [f32])) {
    let mut before = vec![0.0; n];
    for row in rows.chunks_exact_mut(n) {
        before.copy_from_slice(row);
        rewrite(&before, row);
    }
}

/// Multiplies rows in the factor's order by `UᵀU`.
fn times_inverse(factor: &Factor, rows: &mut [f32]) {
    let n = factor.in_features();
    let (height, upper, tile) = (rows.len() / n, factor.as_slice(), square::task_rows(n).min(n));
    let (mut corner, mut out) = (vec![0.0; tile * tile], vec![0.0; height * tile]);
    let put = |rows: &mut [f32], left: usize, width: usize, out: &[f32]| {
        for (row, out) in rows.chunks_exact_mut(n).zip(out.chunks_exact(width)) {
            row[left..left + width].copy_from_slice(out);
        }
    };
    // Times `Uᵀ`: a column is a sum over those from it on, so the first can be replaced first.
    for left in (0..n).step_by(tile) {
        let width = tile.min(n - left);
        let (right, corner) = (left + width, corner_of(factor, left, width, &mut corner));
        let inside = Strided::new(&rows[left..], height, width, n);
        set_product(&mut out, width, 1.0, inside, Strided::new(corner, width, width, width).transposed());
        if right < n {
            let after = Strided::new(&rows[right..], height, n - right, n);
            let rest = Strided::new(&upper[left * n + right..], width, n - right, n).transposed();
            add_product(&mut out, width, 1.0, after, rest);
        }
        put(rows, left, width, &out[..height * width]);
    }
    // Times `U`: over those up to it, so the last first.
    for left in (0..n).step_by(tile).rev() {
        let width = tile.min(n - left);
        let corner = corner_of(factor, left, width, &mut corner);
        let inside = Strided::new(&rows[left..], height, width, n);
        set_product(&mut out, width, 1.0, inside, Strided::new(corner, width, width, width));
        let above = Strided::new(&upper[left..], left, width, n);
        add_product(&mut out, width, 1.0, Strided::new(rows, height, left, n), above);
        put(rows, left, width, &out[..height * width]);
    }
}

/// The block of `U` on the diagonal at `left`, with zeros below.
fn corner_of<'a>(factor: &Factor, left: usize, width: usize, out: &'a mut [f32]) -> &'a [f32] {
    let out = &mut out[..width * width];
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        out[..row].fill(0.0);
        out[row..].copy_from_slice(&factor.row(left + row)[..width - row]);
    }
    out
}
