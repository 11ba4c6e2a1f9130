//! Probabilities of rows of logits, summed in f64.

use super::{
    LANES,
    exp::{exp, exp_f64},
    largest, tree_sum as tree_sum_f32, twins,
};

/// f64 lanes of a sum of exponentials.
const WIDE: usize = 8;

/// Adds lanes up as a tree.
#[inline(always)]
fn tree_sum(lanes: &[f64; WIDE]) -> f64 {
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

#[inline(always)]
fn log_sum_exp_body(logits: &[f32]) -> f64 {
    let most = f64::from(largest(logits));
    let mut lanes = [0.0; WIDE];
    let chunks = logits.chunks_exact(WIDE);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..WIDE {
            lanes[lane] += exp_f64(f64::from(chunk[lane]) - most);
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(rest) {
        *lane += exp_f64(f64::from(logit) - most);
    }
    most + tree_sum(&lanes).ln()
}

#[inline(always)]
fn log_softmax_body(logits: &mut [f32]) {
    let normalizer = log_sum_exp_body(logits);
    for logit in logits {
        *logit = (f64::from(*logit) - normalizer) as f32;
    }
}

/// In f32 throughout, as a router's probabilities are computed elsewhere.
#[inline(always)]
fn softmax_body(logits: &mut [f32]) {
    let most = largest(logits);
    let mut lanes = [0.0; LANES];
    for chunk in logits.chunks_mut(LANES) {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *logit = exp(*logit - most);
            *lane += *logit;
        }
    }
    let total = tree_sum_f32(lanes);
    logits.iter_mut().for_each(|logit| *logit /= total);
}

/// With `z` the normalizers, `Σ p·ln(p/q) = Σ p·(dense − logits) − (z_dense − z_logits)`: one pass gathers the first
/// sum and `z_dense`.
#[inline(always)]
fn divergence_body(dense: &[f32], logits: &[f32]) -> f64 {
    let most = f64::from(largest(dense));
    // A token that dense calls impossible adds nothing, also where this row calls it impossible too.
    let term = |dense: f32, logit: f32| {
        let share = exp_f64(f64::from(dense) - most);
        let weighted = share * (f64::from(dense) - f64::from(logit));
        (share, if share == 0.0 { 0.0 } else { weighted })
    };
    let (mut shares, mut weighted) = ([0.0; WIDE], [0.0; WIDE]);
    let (dense_chunks, logit_chunks) = (dense.chunks_exact(WIDE), logits.chunks_exact(WIDE));
    let rest = dense_chunks.remainder().iter().zip(logit_chunks.remainder());
    for (dense, logits) in dense_chunks.zip(logit_chunks) {
        for lane in 0..WIDE {
            let (share, product) = term(dense[lane], logits[lane]);
            shares[lane] += share;
            weighted[lane] += product;
        }
    }
    for (lane, (&dense, &logit)) in rest.enumerate() {
        let (share, product) = term(dense, logit);
        shares[lane] += share;
        weighted[lane] += product;
    }
    let share = tree_sum(&shares);
    tree_sum(&weighted) / share - (most + share.ln() - log_sum_exp_body(logits))
}

twins! {
    /// `ln Σ exp(logits)`.
    fn log_sum_exp(logits: &[f32]) -> f64 = log_sum_exp_body;
    /// Logits to probabilities.
    fn softmax_row(logits: &mut [f32]) = softmax_body;
    /// Logits to log-probabilities.
    fn log_softmax_row(logits: &mut [f32]) = log_softmax_body;
    /// `Σ p·ln(p/q)`, p from `dense` and q from `logits`, either of them normalized or not.
    fn divergence(dense: &[f32], logits: &[f32]) -> f64 = divergence_body;
}
