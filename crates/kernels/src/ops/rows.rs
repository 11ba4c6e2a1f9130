//! Element by element: biases, residuals, the gated activation.

use super::{exp::exp, twins};

#[inline(always)]
fn add(x: &mut [f32], other: &[f32]) {
    for (x, other) in x.iter_mut().zip(other) {
        *x += other;
    }
}

/// `gate · sigmoid(gate) · up`, into `gate`.
#[inline(always)]
fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `x + factor · other`, into `x`.
#[inline(always)]
fn add_scaled(x: &mut [f32], factor: f32, other: &[f32]) {
    for (x, other) in x.iter_mut().zip(other) {
        *x += factor * other;
    }
}

/// `sigmoid(gate) · x`, into `x`.
#[inline(always)]
fn gate(x: &mut [f32], gate: f32) {
    let factor = 1.0 / (1.0 + exp(-gate));
    x.iter_mut().for_each(|x| *x *= factor);
}

twins! {
    /// Adds `other` to `x`.
    fn add_row(x: &mut [f32], other: &[f32]) = add;
    /// Adds a multiple of `other` to `x`.
    fn add_scaled_row(x: &mut [f32], factor: f32, other: &[f32]) = add_scaled;
    /// Lets one row through as far as `gate_logit` says.
    fn gate_row(x: &mut [f32], gate_logit: f32) = gate;
    /// Gates one row.
    fn swiglu_row(gate: &mut [f32], up: &[f32]) = swiglu;
}
