//! Q4_K: 256 weights in 8 sub-blocks of 32, four bits each; every sub-block has a scale and a shift, both rounded to
//! six bits of the block's two f16 scales.

use super::{Encode, f16_scale, nearest_int};

/// Sub-blocks searched side by side, one a lane: each lane does what ggml does for its sub-block, in the same order,
/// so the sums come out the same to the last bit.
const LANES: usize = 8;
type Lanes = [f32; LANES];

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q4_K;

impl Encode<256, 144> for Q4_K {
    #[inline(always)]
    fn encode(weights: &[f32; 256], out: &mut [u8; 144]) -> Result<(), f32> {
        let mut x = [[0.0; LANES]; 32];
        for (lane, sub_block) in weights.as_chunks::<32>().0.iter().enumerate() {
            for i in 0..32 {
                x[i][lane] = sub_block[i];
            }
        }
        let found = search(&x);
        pack(weights, &x, &found, out)
    }
}

/// What the search found for each sub-block.
struct Found {
    scale: Lanes,
    /// The shift down, positive.
    min: Lanes,
    /// What the codes of the search were made with: steps in one unit, and the weight of code 0.
    codes: (Lanes, Lanes),
    /// Constant sub-blocks: scale and codes are 0.
    flat: [bool; LANES],
}

/// The scale and the shift of each sub-block that leave the smallest weighted squared error. ggml's
/// `make_qkx2_quants` with 21 candidates: for each, the codes, then the least-squares scale and shift of those codes.
#[inline(always)]
fn search(x: &[Lanes; 32]) -> Found {
    let mut sum_squares = [0.0f32; LANES];
    for x in x {
        for lane in 0..LANES {
            sum_squares[lane] += x[lane] * x[lane];
        }
    }
    let average = sum_squares.map(|sum| (sum / 32.0).sqrt());
    let mut weights = [[0.0f32; LANES]; 32];
    for i in 0..32 {
        for lane in 0..LANES {
            weights[i][lane] = average[lane] + x[i][lane].abs();
        }
    }

    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = [0.0f32; LANES];
    for lane in 0..LANES {
        sum_x[lane] = sum_w[lane] * x[0][lane];
    }
    for i in 1..32 {
        for lane in 0..LANES {
            let (x, w) = (x[i][lane], weights[i][lane]);
            min[lane] = if x < min[lane] { x } else { min[lane] };
            max[lane] = if x > max[lane] { x } else { max[lane] };
            sum_w[lane] += w;
            sum_x[lane] += w * x;
        }
    }
    let mut flat = [false; LANES];
    let mut inverse = [0.0f32; LANES];
    let mut scale = [0.0f32; LANES];
    for lane in 0..LANES {
        min[lane] = if min[lane] > 0.0 { 0.0 } else { min[lane] };
        flat[lane] = max[lane] == min[lane];
        inverse[lane] = 15.0 / (max[lane] - min[lane]);
        scale[lane] = 1.0 / inverse[lane];
    }
    let mut codes = [[0.0f32; LANES]; 32];
    choose_codes(x, &inverse, &min, &mut codes);
    let mut best_error = error(x, &weights, &codes, &scale, &min);
    let mut best = (inverse, min);
    for step in 0..=20u8 {
        // Not a slip: as in ggml, codes count from the best shift so far, not from the smallest weight.
        let low = min;
        for lane in 0..LANES {
            inverse[lane] = (-1.0 + 0.1 * f32::from(step) + 15.0) / (max[lane] - low[lane]);
        }
        let (sum_l, sum_l2, sum_xl) = {
            let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
            for i in 0..32 {
                for lane in 0..LANES {
                    let l = code(x[i][lane], inverse[lane], low[lane]);
                    codes[i][lane] = l;
                    let wl = weights[i][lane] * l;
                    sum_l[lane] += wl;
                    sum_l2[lane] += wl * l;
                    sum_xl[lane] += wl * x[i][lane];
                }
            }
            (sum_l, sum_l2, sum_xl)
        };
        let mut solvable = [false; LANES];
        let (mut this_scale, mut this_min) = ([0.0f32; LANES], [0.0f32; LANES]);
        for lane in 0..LANES {
            let determinant = sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane];
            solvable[lane] = determinant > 0.0 && !flat[lane];
            let free_scale = (sum_w[lane] * sum_xl[lane] - sum_x[lane] * sum_l[lane]) / determinant;
            let free_min = (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_xl[lane]) / determinant;
            this_min[lane] = if free_min > 0.0 { 0.0 } else { free_min };
            this_scale[lane] = if free_min > 0.0 { sum_xl[lane] / sum_l2[lane] } else { free_scale };
        }
        let this_error = error(x, &weights, &codes, &this_scale, &this_min);
        for lane in 0..LANES {
            if solvable[lane] && this_error[lane] < best_error[lane] {
                best_error[lane] = this_error[lane];
                best.0[lane] = inverse[lane];
                best.1[lane] = low[lane];
                scale[lane] = this_scale[lane];
                min[lane] = this_min[lane];
            }
        }
    }
    for lane in 0..LANES {
        scale[lane] = if flat[lane] { 0.0 } else { scale[lane] };
    }
    Found { scale, min: min.map(|min| -min), codes: best, flat }
}

#[inline(always)]
fn code(x: f32, inverse: f32, low: f32) -> f32 {
    nearest_int(inverse * (x - low)).clamp(0, 15) as f32
}

#[inline(always)]
fn choose_codes(x: &[Lanes; 32], inverse: &Lanes, low: &Lanes, codes: &mut [Lanes; 32]) {
    for i in 0..32 {
        for lane in 0..LANES {
            codes[i][lane] = code(x[i][lane], inverse[lane], low[lane]);
        }
    }
}

#[inline(always)]
fn error(x: &[Lanes; 32], weights: &[Lanes; 32], codes: &[Lanes; 32], scale: &Lanes, min: &Lanes) -> Lanes {
    let mut sum = [0.0f32; LANES];
    for i in 0..32 {
        for lane in 0..LANES {
            let difference = scale[lane] * codes[i][lane] + min[lane] - x[i][lane];
            sum[lane] += weights[i][lane] * (difference * difference);
        }
    }
    sum
}

/// Rounds scales and shifts to six bits, chooses the codes again for those, and writes the block. Sub-blocks whose
/// scale rounds to zero keep the codes of the search.
#[inline(always)]
fn pack(weights: &[f32; 256], x: &[Lanes; 32], found: &Found, out: &mut [u8; 144]) -> Result<(), f32> {
    let above =
        |values: &Lanes| values.iter().fold(0.0f32, |most, &value| if value > most { value } else { most });
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
        let scale = six_bits(inverse_scale * found.scale[j]);
        let min = six_bits(inverse_min * found.min[j]);
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
        } else if !found.flat[j] {
            for (slot, x) in codes[j].iter_mut().zip(x) {
                *slot = code(x[j], found.codes.0[j], found.codes.1[j]) as u8;
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
