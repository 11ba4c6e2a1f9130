//! Layers with correlated inputs, the same that `tools/golden/gptq.py` makes.

#![allow(dead_code, reason = "each test and example takes what it needs")]

use bitmill_stats::{Hessian, HessianAccumulator};
use bitmill_tensor::Matrix;

fn uniform(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
}

/// `[tokens, features]`: each feature is noise and some of the one before; every eleventh is ten times larger.
pub fn activations(tokens: usize, features: usize, seed: u64) -> Matrix {
    let mut noise = uniform(seed);
    let mut out = Matrix::zeros(tokens, features);
    for token in 0..tokens {
        let mut before = 0.0;
        for (feature, value) in out.row_mut(token).iter_mut().enumerate() {
            before = 0.7 * before + 0.5 * noise();
            *value = if feature % 11 == 5 { 10.0 * before } else { before };
        }
    }
    out
}

/// The same with a feature that no token has.
pub fn with_dead(mut x: Matrix, feature: usize) -> Matrix {
    for token in 0..x.rows() {
        x.row_mut(token)[feature] = 0.0;
    }
    x
}

/// Uniform in −1..1.
pub fn weights(rows: usize, features: usize, seed: u64) -> Vec<f32> {
    let mut noise = uniform(seed);
    (0..rows * features).map(|_| noise()).collect()
}

pub fn hessian(x: &Matrix) -> Hessian {
    let mut sums = HessianAccumulator::new(x.cols());
    sums.add(x);
    sums.finish()
}

/// `tr(ΔHΔᵀ) / 2`, in f64.
pub fn output_error(hessian: &Hessian, weight: &[f32], decided: &[f32]) -> f64 {
    let n = hessian.in_features();
    let mut sum = 0.0;
    for (weight, decided) in weight.chunks_exact(n).zip(decided.chunks_exact(n)) {
        let moved: Vec<f64> =
            weight.iter().zip(decided).map(|(w, d)| f64::from(*w) - f64::from(*d)).collect();
        for i in 0..n {
            for j in 0..=i {
                let twice = if i == j { 0.5 } else { 1.0 };
                sum += twice * moved[i] * moved[j] * f64::from(hessian.as_slice()[i * n + j]);
            }
        }
    }
    sum
}
