//! What the row-wise operations of a forward pass make of gradients.

use super::{dot, exp::exp, twins};

/// `dx` of `y = weight · x · r`, `r = 1 / √(mean(x²) + eps)`: `r · (weight · dy − x · r² · mean(weight · dy · x))`; returns `r`.
#[inline(always)]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) -> f32 {
    let scale = 1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((dx, dy), weight) in dx.iter_mut().zip(dy).zip(weight) {
        *dx = weight * dy;
    }
    let along = dot(dx, x) / x.len() as f32 * (scale * scale);
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = scale * (*dx - x * along);
    }
    scale
}

/// The same of each head of a row: `dy` becomes `dx`, and what it says of `weight` is added to `dweight`.
#[inline(always)]
fn rms_norm_heads(x: &[f32], weight: &[f32], eps: f32, dy: &mut [f32], dweight: &mut [f32]) {
    let width = weight.len();
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact_mut(width)) {
        let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
        for (((dy, x), weight), dweight) in dy.iter_mut().zip(x).zip(weight).zip(&mut *dweight) {
            *dweight += *dy * (x * scale);
            *dy *= weight;
        }
        let along = dot(dy, x) / width as f32 * (scale * scale);
        for (dy, x) in dy.iter_mut().zip(x) {
            *dy = scale * (*dy - x * along);
        }
    }
}

/// Adds `dy · x · scale` to `dweight`.
#[inline(always)]
fn rms_norm_weight(x: &[f32], scale: f32, dy: &[f32], dweight: &mut [f32]) {
    for ((dweight, dy), x) in dweight.iter_mut().zip(dy).zip(x) {
        *dweight += dy * (x * scale);
    }
}

/// Of `y = gate · sigmoid(gate) · up`: `gate` becomes what `dy` says of it, and `dy` what it says of `up`.
#[inline(always)]
fn swiglu(gate: &mut [f32], up: &[f32], dy: &mut [f32]) {
    for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
        let sigmoid = 1.0 / (1.0 + exp(-*gate));
        let silu = *gate * sigmoid;
        *gate = *dy * up * (sigmoid + silu * (1.0 - sigmoid));
        *dy *= silu;
    }
}

/// Of probabilities `p = softmax(s)`: `dp` becomes what it says of `s`, `p · (dp − Σ p·dp)`.
#[inline(always)]
fn softmax(p: &[f32], dp: &mut [f32]) {
    let along = dot(p, dp);
    for (dp, p) in dp.iter_mut().zip(p) {
        *dp = p * (*dp - along);
    }
}

/// `factor · (y − target)` into `dy`; returns `Σ (y − target)²`, in eight chains of f64.
#[inline(always)]
fn squared_error(y: &[f32], target: &[f32], factor: f32, dy: &mut [f32]) -> f64 {
    let mut sums = [0f64; 8];
    for ((y, target), dy) in y.chunks(8).zip(target.chunks(8)).zip(dy.chunks_mut(8)) {
        for (lane, ((y, target), dy)) in y.iter().zip(target).zip(dy).enumerate() {
            let moved = y - target;
            sums[lane] += f64::from(moved) * f64::from(moved);
            *dy = factor * moved;
        }
    }
    sums.iter().sum()
}

twins! {
    /// Of one norm.
    fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) -> f32 = rms_norm;
    /// Of the norms of a row's heads.
    fn rms_norm_heads_row(x: &[f32], weight: &[f32], eps: f32, dy: &mut [f32], dweight: &mut [f32]) = rms_norm_heads;
    /// Of a norm's weight.
    fn rms_norm_weight_row(x: &[f32], scale: f32, dy: &[f32], dweight: &mut [f32]) = rms_norm_weight;
    /// Of one gated row.
    fn swiglu_row(gate: &mut [f32], up: &[f32], dy: &mut [f32]) = swiglu;
    /// Of one row of probabilities.
    fn softmax_row(p: &[f32], dp: &mut [f32]) = softmax;
    /// Of half a squared error, times twice `factor`.
    fn squared_error_row(y: &[f32], target: &[f32], factor: f32, dy: &mut [f32]) -> f64 = squared_error;
}
