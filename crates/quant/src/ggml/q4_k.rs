//! Q4_K: 256 weights in 8 sub-blocks of 32, four bits each; every sub-block has a scale and a shift, both rounded to
//! six bits of the block's two f16 scales.

use super::{
    Encode, Weighing, f16_at, f16_scale,
    importance::{counts, sum_of_squares},
    lanes::{F8, by_sub_block},
    nearest_int,
    refine::{Codes, Levels, Refine, Space},
    scale_and_shift::{Found, Search, largest_of},
    unsigned_scale,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q4_K;

impl Encode<256, 144> for Q4_K {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 144],
    ) -> Result<(), f32> {
        let search = Search { top: 15, first: -1.0, step: 0.1, steps: 20, magnitudes: false };
        let (header, nibbles) = out.split_at_mut(16);
        let codes = codes_of(search, weights, weighing, header)?;
        pairs_of_nibbles(&codes, nibbles);
        Ok(())
    }
}

impl Refine<8, 32, 256, 144> for Q4_K {
    const SPACE: Space =
        Space { codes: Codes::Integers { low: 0, top: 15 }, scales: (0, 63), shifts: (0, 63) };

    #[inline(always)]
    fn levels(block: &[u8; 144]) -> Levels<8> {
        levels_of(block)
    }

    #[inline(always)]
    fn write(levels: &Levels<8>, codes: &[u8; 256], out: &mut [u8; 144]) {
        let (header, nibbles) = out.split_at_mut(16);
        write_levels(levels, header);
        pairs_of_nibbles(codes.as_chunks::<32>().0, nibbles);
    }
}

/// The codes of sub-block 2·i below those of sub-block 2·i + 1, four bits of each.
#[inline(always)]
pub(super) fn pairs_of_nibbles(codes: &[[u8; 32]], out: &mut [u8]) {
    for (bytes, pair) in out.chunks_exact_mut(32).zip(codes.as_chunks::<2>().0) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = pair[0][i] & 15 | pair[1][i] << 4;
        }
    }
}

/// The scales and shifts that begin a block of Q4_K or Q5_K.
#[inline(always)]
pub(super) fn levels_of(block: &[u8]) -> Levels<8> {
    let packed = &block[4..16];
    let six_bits: [(u8, u8); 8] = std::array::from_fn(|j| six_bits(packed, j));
    Levels {
        d: f16_at(block, 0),
        d_min: f16_at(block, 2),
        scales: six_bits.map(|(scale, _)| i32::from(scale)),
        shifts: six_bits.map(|(_, min)| i32::from(min)),
    }
}

/// The first 16 bytes of a block of Q4_K or Q5_K.
#[inline(always)]
pub(super) fn write_levels(levels: &Levels<8>, header: &mut [u8]) {
    header[0..2].copy_from_slice(&levels.d.to_le_bytes());
    header[2..4].copy_from_slice(&levels.d_min.to_le_bytes());
    for j in 0..8 {
        write_six_bits(&mut header[4..], j, (levels.scales[j] as u8, levels.shifts[j] as u8));
    }
}

/// Scale and shift of sub-block `j`, after those before it.
#[inline(always)]
fn write_six_bits(packed: &mut [u8], j: usize, (scale, min): (u8, u8)) {
    if j < 4 {
        packed[j] = scale;
        packed[j + 4] = min;
    } else {
        packed[j + 4] = scale & 15 | min << 4;
        packed[j - 4] |= scale >> 4 << 6;
        packed[j] |= min >> 4 << 6;
    }
}

/// Scale and shift of sub-block `j`.
#[inline(always)]
fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// Searches scales and shifts, by `search` where there is no importance, rounds them to six bits, writes those into
/// `header` (f16 scale of scales, f16 scale of shifts, 12 bytes) and chooses the codes again for them. Sub-blocks whose
/// scale rounds to zero keep the codes of the search.
#[inline(always)]
pub(super) fn codes_of(
    search: Search,
    weights: &[f32; 256],
    weighing: Option<Weighing<'_, 256>>,
    header: &mut [u8],
) -> Result<[[u8; 32]; 8], f32> {
    let x: [F8; 32] = by_sub_block(weights);
    let (found, rounded) = match weighing {
        None => {
            let found = search.run(&x, &above_average(&x));
            let rounded = round(&found);
            (found, rounded)
        }
        Some(weighing) => {
            let mean_square = 2.0 * sum_of_squares(weights) / 256.0;
            let search = Search::weighed(search.top);
            let found = search.run(&x, &counts(&x, weighing.importance, mean_square));
            let mut rounded = round_weighed(&found);
            if search.top == 31 {
                // Of Q5_K ggml keeps them within six bits, of Q4_K not.
                rounded.scales = rounded.scales.map(|scale| scale.min(63));
                rounded.mins = rounded.mins.map(|min| min.min(63));
            }
            (found, rounded)
        }
    };
    let d = f16_scale(rounded.d)?;
    let d_min = f16_scale(rounded.d_min)?;
    header[0..2].copy_from_slice(&d.to_le_bytes());
    header[2..4].copy_from_slice(&d_min.to_le_bytes());
    let packed = &mut header[4..];
    let (d, d_min) = (d.to_f32(), d_min.to_f32());
    for (j, both) in rounded.scales.into_iter().zip(rounded.mins).enumerate() {
        write_six_bits(packed, j, both);
    }
    let mut codes = [[0u8; 32]; 8];
    for (j, sub_block) in weights.as_chunks::<32>().0.iter().enumerate() {
        // Read back: with importance a negative scale, in the noise of a sub-block where one weight counts, runs over its
        // six bits.
        let (scale, min) = six_bits(packed, j);
        let step = d * f32::from(scale);
        let shift = d_min * f32::from(min);
        for (code, &x) in codes[j].iter_mut().zip(sub_block) {
            *code = if step != 0.0 {
                nearest_int((x + shift) / step).clamp(0, search.top) as u8
            } else {
                found.code(j, x, search.top)
            };
        }
    }
    Ok(codes)
}

/// What errors count without importance: the magnitude of the weight above the root of its sub-block's mean square.
#[inline(always)]
fn above_average(x: &[F8; 32]) -> [F8; 32] {
    let mut sum_squares = F8::ZERO;
    for &x in x {
        sum_squares = sum_squares + x * x;
    }
    let average = (sum_squares / F8::splat(32.0)).sqrt();
    let mut counts = [F8::ZERO; 32];
    for (count, x) in counts.iter_mut().zip(x) {
        *count = average + x.abs();
    }
    counts
}

/// Scales and shifts of the sub-blocks as six bits each, and what those bits count.
struct Rounded {
    d: f32,
    d_min: f32,
    scales: [u8; 8],
    mins: [u8; 8],
}

#[inline(always)]
fn round(found: &Found) -> Rounded {
    let (max_scale, max_min) = (largest_of(&found.scale.0), largest_of(&found.min.0));
    let inverse_scale = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
    let inverse_min = if max_min > 0.0 { 63.0 / max_min } else { 0.0 };
    // C truncates to a byte before it takes the minimum.
    let six_bits = |value: f32| (nearest_int(value) as u8).min(63);
    Rounded {
        d: max_scale / 63.0,
        d_min: max_min / 63.0,
        scales: found.scale.0.map(|scale| six_bits(inverse_scale * scale)),
        mins: found.min.0.map(|min| six_bits(inverse_min * min)),
    }
}

#[inline(always)]
fn round_weighed(found: &Found) -> Rounded {
    let (d, scales) = unsigned_scale::search(&found.scale.0, &found.counts.0, 63);
    let (d_min, mins) = unsigned_scale::search(&found.min.0, &found.counts.0, 63);
    Rounded { d, d_min, scales, mins }
}
