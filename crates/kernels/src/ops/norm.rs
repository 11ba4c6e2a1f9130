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

twins! {
    /// Norms one row.
    fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = body;
}
