//! Asymmetric calibration: how the inputs that a layer gets differ from those of the dense model.
//!
//! GPTAQ, arXiv:2504.02692: layers before this one are quantized already, so the layer is calibrated to give on its own
//! input `x` what the dense layer gives on the dense input.

use bitmill_kernels::{Strided, add_product, set_product};
use bitmill_tensor::Matrix;
use rayon::prelude::*;

use crate::{Factor, square};

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

/// GPTAQ's `P`, strictly upper triangular: what a column's weight adds to the columns after it, for the difference
/// between the dense input of its column and its own.
#[derive(Debug, Clone)]
pub struct Asymmetry {
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

    /// `P = strength · (strictly upper triangle of C·Uᵀ)·U`, in this square's own memory, in the factor's order.
    ///
    /// The paper derives a `strength` of 1; its authors' code has 0.25, which holds up better on few tokens.
    ///
    /// # Panics
    /// If `factor` is that of another layer.
    pub fn asymmetry(mut self, factor: &Factor, strength: f32) -> Asymmetry {
        let n = self.in_features;
        assert_eq!(factor.in_features(), n, "the factor of another layer");
        if n == 0 {
            return Asymmetry { in_features: n, square: self.square };
        }
        if let Some(order) = factor.order() {
            square::reorder(&mut self.square, n, order);
        }
        let upper = factor.as_slice();
        let tile = square::task_rows(n);
        self.square.par_chunks_mut(tile * n).enumerate().with_max_len(1).for_each(|(task, own)| {
            let (top, height) = (task * tile, own.len() / n);
            let mut corner = vec![0.0; tile * tile];
            let mut sums = vec![0.0; height * n];
            for left in (top..n).step_by(tile) {
                let width = tile.min(n - left);
                let right = left + width;
                let corner = corner_of(factor, left, width, &mut corner);
                let out = &mut sums[left..];
                let inside = Strided::new(&own[left..], height, width, n);
                set_product(out, n, strength, inside, Strided::new(corner, width, width, width).transposed());
                let after = Strided::new(own.get(right..).unwrap_or(&[]), height, n - right, n);
                let rest = upper.get(left * n + right..).unwrap_or(&[]);
                add_product(out, n, strength, after, Strided::new(rest, width, n - right, n).transposed());
            }
            for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
                sums[..=top + row].fill(0.0);
            }
            for (row, own) in own.chunks_exact_mut(n).enumerate() {
                own[..top + row].fill(0.0);
            }
            for left in (top..n).step_by(tile) {
                let width = tile.min(n - left);
                let corner = corner_of(factor, left, width, &mut corner);
                let above = Strided::new(&sums[top..], height, left - top, n);
                let rows = Strided::new(&upper[top * n + left..], left - top, width, n);
                set_product(&mut own[left..], n, 1.0, above, rows);
                let inside = Strided::new(&sums[left..], height, width, n);
                add_product(&mut own[left..], n, 1.0, inside, Strided::new(corner, width, width, width));
            }
        });
        Asymmetry { in_features: n, square: self.square }
    }
}

impl Asymmetry {
    /// Its width and height.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The whole square, row major, in the factor's order.
    pub fn as_slice(&self) -> &[f32] {
        &self.square
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
