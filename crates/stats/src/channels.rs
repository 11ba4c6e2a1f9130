//! Norms and ranges of a layer's input features.

use bitmill_tensor::Matrix;
use rayon::prelude::*;

/// Features that one task sums.
const TASK_FEATURES: usize = 256;

/// Sums over tokens for each input feature, in f64, token after token.
///
/// ```
/// use bitmill_stats::ChannelAccumulator;
/// use bitmill_tensor::Matrix;
/// let mut sums = ChannelAccumulator::new(2);
/// sums.add(&Matrix::from_vec(2, 2, vec![1.0, -2.0, -3.0, 0.0]));
/// let stats = sums.finish();
/// assert_eq!((stats.mean_abs, stats.max_abs), (vec![2.0, 1.0], vec![3.0, 2.0]));
/// assert_eq!((stats.mean_square, stats.tokens), (vec![5.0, 2.0], 2));
/// ```
#[derive(Debug, Clone)]
pub struct ChannelAccumulator {
    tokens: u64,
    sums: Vec<Sums>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    abs: f64,
    square: f64,
    max: f32,
}

impl ChannelAccumulator {
    /// Sums of nothing yet.
    pub fn new(in_features: usize) -> Self {
        Self { tokens: 0, sums: vec![Sums::default(); in_features] }
    }

    /// Adds the inputs of some tokens, `[tokens, in_features]`.
    ///
    /// # Panics
    /// If `x` has another width.
    pub fn add(&mut self, x: &Matrix) {
        let n = self.sums.len();
        assert_eq!(x.cols(), n, "activations of another layer");
        self.tokens += x.rows() as u64;
        self.sums.par_chunks_mut(TASK_FEATURES).enumerate().for_each(|(task, sums)| {
            for row in x.as_slice().chunks_exact(n) {
                for (sums, &value) in sums.iter_mut().zip(&row[task * TASK_FEATURES..]) {
                    let abs = value.abs();
                    sums.abs += f64::from(abs);
                    sums.square += f64::from(abs) * f64::from(abs);
                    // A NaN stays: `abs > max` is false for both.
                    sums.max = if abs > sums.max || abs.is_nan() { abs } else { sums.max };
                }
            }
        });
    }

    /// How many tokens were added.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The means and the largest; zeros if no token was added.
    pub fn finish(self) -> ChannelStats {
        let tokens = self.tokens.max(1) as f64;
        ChannelStats {
            tokens: self.tokens,
            mean_abs: self.sums.iter().map(|sums| (sums.abs / tokens) as f32).collect(),
            max_abs: self.sums.iter().map(|sums| sums.max).collect(),
            mean_square: self.sums.iter().map(|sums| (sums.square / tokens) as f32).collect(),
        }
    }
}

/// What the tokens of a calibration had on each input feature.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelStats {
    /// How many tokens that were.
    pub tokens: u64,
    /// The mean of `|x|`.
    pub mean_abs: Vec<f32>,
    /// The largest `|x|`; NaN if one was.
    pub max_abs: Vec<f32>,
    /// The mean of `x²`.
    pub mean_square: Vec<f32>,
}

impl ChannelStats {
    /// The feature with the largest `|x|` of all and that `|x|`, a NaN before any number: above 65504 it overflows f16.
    /// `None` without features.
    pub fn largest(&self) -> Option<(usize, f32)> {
        // The first of equals; NaN of either sign is the largest, `abs` having cleared the sign.
        let features = self.max_abs.iter().copied().enumerate().rev();
        features.max_by(|(_, a), (_, b)| a.total_cmp(b))
    }
}
