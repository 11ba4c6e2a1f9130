//! Probabilities of rows of logits, summed in f64.

use super::{exp::exp_f64, largest, twins};

/// f64 lanes of a sum of exponentials.
const WIDE: usize = 8;

/// `Σ f(i)` for `i` in `0..len`, in f64 lanes, then a tree.
#[inline(always)]
fn sum(len: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0.0f64; WIDE];
    let whole = len - len % WIDE;
    let mut start = 0;
    while start < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
        start += WIDE;
    }
    for (lane, i) in (whole..len).enumerate() {
        lanes[lane] += f(i);
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

#[inline(always)]
fn log_sum_exp_body(logits: &[f32]) -> f64 {
    let most = f64::from(largest(logits));
    most + sum(logits.len(), |i| exp_f64(f64::from(logits[i]) - most)).ln()
}

#[inline(always)]
fn log_softmax_body(logits: &mut [f32]) {
    let normalizer = log_sum_exp_body(logits);
    for logit in logits {
        *logit = (f64::from(*logit) - normalizer) as f32;
    }
}

#[inline(always)]
fn divergence_body(dense: &[f32], logits: &[f32]) -> f64 {
    let (dense_normalizer, normalizer) = (log_sum_exp_body(dense), log_sum_exp_body(logits));
    sum(dense.len(), |i| {
        let log = f64::from(dense[i]) - dense_normalizer;
        let (probability, ratio) = (exp_f64(log), log - (f64::from(logits[i]) - normalizer));
        // A token that dense calls impossible adds nothing, also where this row calls it impossible too.
        if probability == 0.0 { 0.0 } else { probability * ratio }
    })
}

twins! {
    /// `ln Σ exp(logits)`.
    fn log_sum_exp(logits: &[f32]) -> f64 = log_sum_exp_body;
    /// Logits to log-probabilities.
    fn log_softmax_row(logits: &mut [f32]) = log_softmax_body;
    /// `Σ p·ln(p/q)`, p from `dense` and q from `logits`, either of them normalized or not.
    fn divergence(dense: &[f32], logits: &[f32]) -> f64 = divergence_body;
}
