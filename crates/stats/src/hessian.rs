//! Hessians of linear layers: the mean over tokens of `2·x·xᵀ`.

use bitmill_kernels::{Strided, add_product};
use bitmill_tensor::Matrix;
use rayon::prelude::*;

use crate::square;

/// Sums the Hessian of a layer's inputs, batch after batch.
///
/// Holds one square of `in_features` f32 and computes its lower triangle: half of the work of a full product. The pages
/// above the diagonal stay untouched, so that much memory too is used only by what comes after.
///
/// ```
/// use bitmill_stats::HessianAccumulator;
/// use bitmill_tensor::Matrix;
/// let mut sums = HessianAccumulator::new(2);
/// sums.add(&Matrix::from_vec(2, 2, vec![1.0, 2.0, 3.0, 0.0]));
/// let hessian = sums.finish();
/// assert_eq!(hessian.diagonal(), [10.0, 4.0]); // 2 · (1 + 9) / 2, 2 · 4 / 2
/// assert_eq!(hessian.as_slice()[2], 2.0); // row 1, column 0
/// ```
#[derive(Debug)]
pub struct HessianAccumulator {
    in_features: usize,
    tokens: u64,
    sums: Vec<f32>,
}

impl HessianAccumulator {
    /// Sums of nothing yet.
    pub fn new(in_features: usize) -> Self {
        // Zeros from the allocator are pages that do not exist until they are written.
        Self { in_features, tokens: 0, sums: vec![0.0; in_features * in_features] }
    }

    /// Adds the inputs of some tokens, `[tokens, in_features]`.
    ///
    /// # Panics
    /// If `x` has another width.
    pub fn add(&mut self, x: &Matrix) {
        let n = self.in_features;
        assert_eq!(x.cols(), n, "activations of another layer");
        self.tokens += x.rows() as u64;
        if x.rows() == 0 || n == 0 {
            return;
        }
        let rows = square::task_rows(n);
        let x = x.as_slice();
        let tokens = x.len() / n;
        // The longest rows first: short ones fill the gaps at the end.
        self.sums.par_chunks_mut(rows * n).enumerate().rev().with_max_len(1).for_each(|(task, out)| {
            let first = task * rows;
            let height = out.len() / n;
            let panel = Strided::new(&x[first..], tokens, height, n).transposed();
            add_product(out, n, 1.0, panel, Strided::new(x, tokens, first + height, n));
        });
    }

    /// How many tokens were added.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean of `2·x·xᵀ`; zeros if no token was added.
    pub fn finish(mut self) -> Hessian {
        let n = self.in_features;
        let factor = (2.0 / self.tokens.max(1) as f64) as f32;
        if n > 0 {
            self.sums.par_chunks_mut(n).enumerate().for_each(|(row, sums)| {
                sums[..=row].iter_mut().for_each(|sum| *sum *= factor);
            });
        }
        Hessian { in_features: n, tokens: self.tokens, square: self.sums }
    }
}

/// The mean over tokens of `2·x·xᵀ`, `[in_features, in_features]`, of which the lower triangle is kept.
#[derive(Debug, Clone)]
pub struct Hessian {
    in_features: usize,
    tokens: u64,
    pub(crate) square: Vec<f32>,
}

impl Hessian {
    /// Takes a row-major square whose lower triangle, diagonal included, is a Hessian; what is above it is ignored.
    ///
    /// # Panics
    /// If `square` is not `in_features` squared.
    pub fn from_lower(in_features: usize, tokens: u64, square: Vec<f32>) -> Self {
        assert_eq!(square.len(), in_features * in_features, "a square of {in_features}");
        Self { in_features, tokens, square }
    }

    /// Its width and height.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// How many tokens it is the mean of.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The whole square, row major. Above the diagonal it holds nothing of use until [`mirror`](Self::mirror).
    pub fn as_slice(&self) -> &[f32] {
        &self.square
    }

    /// The diagonal: twice the mean square of each input feature.
    pub fn diagonal(&self) -> Vec<f32> {
        self.square.iter().step_by(self.in_features + 1).copied().collect()
    }

    /// Takes away `fraction` of all that ties one feature to another: 0 leaves the Hessian as it is, 1 leaves its diagonal. Few
    /// tokens beside features show ties that other tokens have not.
    ///
    /// ```
    /// use bitmill_stats::Hessian;
    /// let mut hessian = Hessian::from_lower(2, 1, vec![4.0, 0.0, 2.0, 5.0]);
    /// hessian.shrink(0.5);
    /// assert_eq!((hessian.diagonal(), hessian.as_slice()[2]), (vec![4.0, 5.0], 1.0));
    /// ```
    pub fn shrink(&mut self, fraction: f32) {
        let n = self.in_features;
        for (row, values) in self.square.chunks_exact_mut(n.max(1)).enumerate() {
            values[..row].iter_mut().for_each(|value| *value *= 1.0 - fraction);
        }
    }

    /// Fills what is above the diagonal, so that every row is whole.
    pub fn mirror(&mut self) {
        square::mirror_lower(&mut self.square, self.in_features);
    }

    /// Input features by falling diagonal, equal ones as they stand: the order that GPTQ calls act-order.
    ///
    /// ```
    /// use bitmill_stats::Hessian;
    /// let hessian = Hessian::from_lower(3, 1, vec![1.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 1.0]);
    /// assert_eq!(hessian.falling_order(), [1, 0, 2]);
    /// ```
    pub fn falling_order(&self) -> Vec<usize> {
        let diagonal = self.diagonal();
        let mut order: Vec<usize> = (0..self.in_features).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        order
    }
}
