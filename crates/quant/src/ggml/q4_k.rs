//! Q4_K: 256 weights in 8 sub-blocks of 32, four bits each; every sub-block has a scale and a shift, both rounded to
//! six bits of the block's two f16 scales.

use super::{
    Encode, f16_scale,
    lanes::{F8, M8},
    nearest_int,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q4_K;

impl Encode<256, 144> for Q4_K {
    #[inline(always)]
    fn encode(weights: &[f32; 256], out: &mut [u8; 144]) -> Result<(), f32> {
        // A lane for each sub-block: it does what ggml does for that sub-block, in the same order, so the sums come
        // out the same to the last bit.
        let mut x = [F8::ZERO; 32];
        for (lane, sub_block) in weights.as_chunks::<32>().0.iter().enumerate() {
            for i in 0..32 {
                x[i].0[lane] = sub_block[i];
            }
        }
        let found = search(&x);
        pack(weights, &x, &found, out)
    }
}

/// What the search found for each sub-block.
struct Found {
    scale: F8,
    /// The shift down, positive.
    min: F8,
    /// What the codes of the search were made with: codes in one unit, and the weight of code 0.
    inverse: F8,
    low: F8,
    /// Constant sub-blocks: scale and codes are 0.
    flat: M8,
}

/// The scale and the shift of each sub-block that leave the smallest weighted squared error. ggml's
/// `make_qkx2_quants` with 21 candidates: for each, the codes, then the least-squares scale and shift of those codes.
#[inline(always)]
fn search(x: &[F8; 32]) -> Found {
    let mut sum_squares = F8::ZERO;
    for &x in x {
        sum_squares = sum_squares + x * x;
    }
    let average = (sum_squares / F8::splat(32.0)).sqrt();
    let mut weights = [F8::ZERO; 32];
    for (weight, x) in weights.iter_mut().zip(x) {
        *weight = average + x.abs();
    }

    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&x, &w) in x[1..].iter().zip(&weights[1..]) {
        min = x.below(min).select(x, min);
        max = max.below(x).select(x, max);
        sum_w = sum_w + w;
        sum_x = sum_x + w * x;
    }
    min = F8::ZERO.below(min).select(F8::ZERO, min);
    let flat = max.equals(min);

    let mut codes = [F8::ZERO; 32];
    let mut inverse = F8::splat(15.0) / (max - min);
    let mut scale = F8::splat(1.0) / inverse;
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = code_of(x, inverse, min);
    }
    let mut best_error = error(x, &weights, &codes, scale, min);
    let mut low = min;
    for step in 0..=20u8 {
        // Not a slip: as in ggml, codes count from the best shift so far, not from the smallest weight.
        let this_low = min;
        let this_inverse = F8::splat(-1.0 + 0.1 * f32::from(step) + 15.0) / (max - this_low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (F8::ZERO, F8::ZERO, F8::ZERO);
        for ((code, &x), &w) in codes.iter_mut().zip(x).zip(&weights) {
            let l = code_of(x, this_inverse, this_low);
            *code = l;
            let wl = w * l;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * l;
            sum_xl = sum_xl + wl * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        let solvable = F8::ZERO.below(determinant).and_not(flat);
        let free_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let free_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        let above = F8::ZERO.below(free_min);
        let this_min = above.select(F8::ZERO, free_min);
        let this_scale = above.select(sum_xl / sum_l2, free_scale);
        let this_error = error(x, &weights, &codes, this_scale, this_min);
        let better = this_error.below(best_error).and(solvable);
        best_error = better.select(this_error, best_error);
        inverse = better.select(this_inverse, inverse);
        low = better.select(this_low, low);
        scale = better.select(this_scale, scale);
        min = better.select(this_min, min);
    }
    Found { scale: flat.select(F8::ZERO, scale), min: min.neg(), inverse, low, flat }
}

#[inline(always)]
fn code_of(x: F8, inverse: F8, low: F8) -> F8 {
    (inverse * (x - low)).nearest_within(0, 15)
}

#[inline(always)]
fn error(x: &[F8; 32], weights: &[F8; 32], codes: &[F8; 32], scale: F8, min: F8) -> F8 {
    let mut sum = F8::ZERO;
    for ((&x, &w), &l) in x.iter().zip(weights).zip(codes) {
        let difference = scale * l + min - x;
        sum = sum + w * (difference * difference);
    }
    sum
}

/// Rounds scales and shifts to six bits, chooses the codes again for those, and writes the block. Sub-blocks whose
/// scale rounds to zero keep the codes of the search.
#[inline(always)]
fn pack(weights: &[f32; 256], x: &[F8; 32], found: &Found, out: &mut [u8; 144]) -> Result<(), f32> {
    let above =
        |values: &F8| values.0.iter().fold(0.0f32, |most, &value| if value > most { value } else { most });
    let (max_scale, max_min) = (above(&found.scale), above(&found.min));
    let inverse_scale = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
    let inverse_min = if max_min > 0.0 { 63.0 / max_min } else { 0.0 };
    // C truncates to a byte before it takes the minimum.
    let six_bits = |value: f32| (nearest_int(value) as u8).min(63);

    let d = f16_scale(max_scale / 63.0)?;
    let d_min = f16_scale(max_min / 63.0)?;
    let (header, nibbles) = out.split_at_mut(16);
    header[0..2].copy_from_slice(&d.to_le_bytes());
    header[2..4].copy_from_slice(&d_min.to_le_bytes());
    let packed = &mut header[4..];
    let (d, d_min) = (d.to_f32(), d_min.to_f32());
    let mut codes = [[0u8; 32]; 8];
    for (j, sub_block) in weights.as_chunks::<32>().0.iter().enumerate() {
        let scale = six_bits(inverse_scale * found.scale.0[j]);
        let min = six_bits(inverse_min * found.min.0[j]);
        if j < 4 {
            packed[j] = scale;
            packed[j + 4] = min;
        } else {
            packed[j + 4] = scale & 15 | min << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= min >> 4 << 6;
        }
        let step = d * f32::from(scale);
        if step != 0.0 {
            let shift = d_min * f32::from(min);
            for (code, x) in codes[j].iter_mut().zip(sub_block) {
                *code = nearest_int((x + shift) / step).clamp(0, 15) as u8;
            }
        } else if !found.flat.lane(j) {
            for (slot, x) in codes[j].iter_mut().zip(x) {
                *slot = nearest_int(found.inverse.0[j] * (x.0[j] - found.low.0[j])).clamp(0, 15) as u8;
            }
        }
    }
    for (bytes, pair) in nibbles.chunks_exact_mut(32).zip(codes.as_chunks::<2>().0) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = pair[0][i] | pair[1][i] << 4;
        }
    }
    Ok(())
}
