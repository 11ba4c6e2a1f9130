//! Root-mean-square norm.

use super::{dot, twins};

/// `out = weight · x / √(mean(x²) + eps)`.
#[inline(always)]
fn body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = weight * (x * scale);
    }
}

/// The same of each head of a row, in place.
#[inline(always)]
fn heads(x: &mut [f32], weight: &[f32], eps: f32) {
    for head in x.chunks_exact_mut(weight.len()) {
        let mean = dot(head, head) / head.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for (x, weight) in head.iter_mut().zip(weight) {
            *x = weight * (*x * scale);
        }
    }
}

twins! {
    /// Norms one row.
    fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = body;
    /// Norms each head of one row by itself.
    fn rms_norm_heads(x: &mut [f32], weight: &[f32], eps: f32) = heads;
}
