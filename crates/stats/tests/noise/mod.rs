//! Activations whose features are correlated, from a fixed generator.

use bitmill_tensor::Matrix;

/// `[tokens, features]`: each feature half noise of its own, half that of the one before; every eleventh ten times larger.
pub fn activations(tokens: usize, features: usize, seed: u64) -> Matrix {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let mut out = Matrix::zeros(tokens, features);
    for token in 0..tokens {
        let mut before = 0.0;
        for (feature, value) in out.row_mut(token).iter_mut().enumerate() {
            before = 0.7 * before + 0.5 * uniform();
            *value = if feature % 11 == 5 { 10.0 * before } else { before };
        }
    }
    out
}
