//! Q4_K: 256 weights in 8 sub-blocks of 32, four bits each; every sub-block has a scale and a shift, both rounded to
//! six bits of the block's two f16 scales.

use super::{f16_scale, nearest_int};

/// One block; the scale if it is beyond f16.
pub(super) fn encode(weights: &[f32; 256], out: &mut [u8; 144]) -> Result<(), f32> {
    let mut codes = [0u8; 256];
    let mut scales = [0.0f32; 8];
    let mut mins = [0.0f32; 8];
    let (sub_blocks, _) = weights.as_chunks::<32>();
    let (sub_codes, _) = codes.as_chunks_mut::<32>();
    for j in 0..8 {
        (scales[j], mins[j]) = search(&sub_blocks[j], &mut sub_codes[j]);
    }
    pack(weights, &scales, &mins, &mut codes, out)
}

/// The scale and the (positive) shift of one sub-block that leave the smallest weighted squared error, and the codes
/// of that search. ggml's `make_qkx2_quants` with 21 candidates: for each, the codes, then the least-squares scale
/// and shift of those codes.
fn search(x: &[f32; 32], codes: &mut [u8; 32]) -> (f32, f32) {
    let mut sum_squares = 0.0f32;
    for &x in x {
        sum_squares += x * x;
    }
    let average = (sum_squares / 32.0).sqrt();
    let weights = x.map(|x| average + x.abs());

    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for i in 1..32 {
        if x[i] < min {
            min = x[i];
        }
        if x[i] > max {
            max = x[i];
        }
        sum_w += weights[i];
        sum_x += weights[i] * x[i];
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |inverse: f32, low: f32, x: f32| nearest_int(inverse * (x - low)).clamp(0, 15);
    let inverse = 15.0 / (max - min);
    let mut scale = 1.0 / inverse;
    let mut best_error = 0.0;
    let mut best = (inverse, min);
    for i in 0..32 {
        let difference = scale * code(inverse, min, x[i]) as f32 + min - x[i];
        best_error += weights[i] * (difference * difference);
    }
    for step in 0..=20u8 {
        // Not a slip: as in ggml, codes count from the best shift so far, not from the smallest weight.
        let low = min;
        let inverse = (-1.0 + 0.1 * f32::from(step) + 15.0) / (max - low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for i in 0..32 {
            let l = code(inverse, low, x[i]) as f32;
            sum_l += weights[i] * l;
            sum_l2 += weights[i] * l * l;
            sum_xl += weights[i] * l * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let mut error = 0.0;
            for i in 0..32 {
                let difference = this_scale * code(inverse, low, x[i]) as f32 + this_min - x[i];
                error += weights[i] * (difference * difference);
            }
            if error < best_error {
                best_error = error;
                best = (inverse, low);
                scale = this_scale;
                min = this_min;
            }
        }
    }
    for i in 0..32 {
        codes[i] = code(best.0, best.1, x[i]) as u8;
    }
    (scale, -min)
}

/// Rounds scales and shifts to six bits, chooses the codes again for those, and writes the block. Sub-blocks whose
/// scale rounds to zero keep the codes of the search.
fn pack(
    weights: &[f32; 256],
    scales: &[f32; 8],
    mins: &[f32; 8],
    codes: &mut [u8; 256],
    out: &mut [u8; 144],
) -> Result<(), f32> {
    let above = |values: &[f32; 8]| {
        values.iter().fold(0.0f32, |most, &value| if value > most { value } else { most })
    };
    let (max_scale, max_min) = (above(scales), above(mins));
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
    let (sub_blocks, _) = weights.as_chunks::<32>();
    let (sub_codes, _) = codes.as_chunks_mut::<32>();
    for j in 0..8 {
        let scale = six_bits(inverse_scale * scales[j]);
        let min = six_bits(inverse_min * mins[j]);
        if j < 4 {
            packed[j] = scale;
            packed[j + 4] = min;
        } else {
            packed[j + 4] = scale & 15 | min << 4;
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= min >> 4 << 6;
        }
        let step = d * f32::from(scale);
        if step == 0.0 {
            continue;
        }
        let shift = d_min * f32::from(min);
        for (code, x) in sub_codes[j].iter_mut().zip(&sub_blocks[j]) {
            *code = nearest_int((x + shift) / step).clamp(0, 15) as u8;
        }
    }
    let (pairs, _) = codes.as_chunks::<64>();
    for (bytes, pair) in nibbles.chunks_exact_mut(32).zip(pairs) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = pair[i] | pair[32 + i] << 4;
        }
    }
    Ok(())
}
