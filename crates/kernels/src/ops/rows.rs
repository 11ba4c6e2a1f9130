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

twins! {
    /// Adds `other` to `x`.
    fn add_row(x: &mut [f32], other: &[f32]) = add;
    /// Gates one row.
    fn swiglu_row(gate: &mut [f32], up: &[f32]) = swiglu;
}
