//! IQ4_NL and IQ4_XS: four bits a weight that stand for sixteen values, denser around zero. IQ4_NL has an f16 scale for
//! each 32 weights; IQ4_XS, 256 weights in 8 sub-blocks of 32, rounds their scales to six bits of one f16.

use half::f16;

use super::{
    Encode, Weighing, ZERO, f16_at, f16_scale,
    importance::sum_of_squares,
    lanes::F8,
    nearest_int, nibbles,
    refine::{Codes, Levels, Refine, Space},
};

/// What the codes stand for.
pub(super) const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ4_NL;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ4_XS;

impl Encode<32, 18> for IQ4_NL {
    #[inline(always)]
    fn encode(
        weights: &[f32; 32],
        weighing: Option<Weighing<'_, 32>>,
        out: &mut [u8; 18],
    ) -> Result<(), f32> {
        let mean_square = 2.0 / 32.0 * weighing.map_or(0.0, |_| sum_of_squares(weights));
        let d = search(weights, &counts(weights, weighing.map(|weighing| weighing.importance), mean_square))?;
        let (scale, rest) = out.split_at_mut(2);
        scale.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        // The codes are those of the scale before it was rounded.
        pack(weights, if d == 0.0 { 0.0 } else { 1.0 / d }, rest);
        Ok(())
    }
}

impl Encode<256, 136> for IQ4_XS {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 136],
    ) -> Result<(), f32> {
        let (sub_blocks, _) = weights.as_chunks::<32>();
        let mut scales = [0f32; 8];
        let (mut absolute, mut largest) = (0.0, 0.0);
        let mean_square = 2.0 / 256.0 * weighing.map_or(0.0, |_| sum_of_squares(weights));
        for (j, (scale, sub_block)) in scales.iter_mut().zip(sub_blocks).enumerate() {
            let importance = weighing.map(|weighing| &weighing.importance.as_chunks::<32>().0[j]);
            *scale = search(sub_block, &counts(sub_block, importance, mean_square))?;
            if scale.abs() > absolute {
                absolute = scale.abs();
                largest = *scale;
            }
        }
        let d = -largest / 32.0;
        let (header, codes) = out.split_at_mut(8);
        header.fill(0);
        header[..2].copy_from_slice(&f16_scale(d)?.to_le_bytes());
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        for (j, (sub_block, codes)) in sub_blocks.iter().zip(codes.chunks_exact_mut(16)).enumerate() {
            let scale = nearest_int(inverse * scales[j]).clamp(-32, 31);
            // Again of the scale before it was rounded.
            let step = d * scale as f32;
            pack(sub_block, if step == 0.0 { 0.0 } else { 1.0 / step }, codes);
            write_scale(header, j, scale);
        }
        Ok(())
    }
}

impl Refine<1, 32, 32, 18> for IQ4_NL {
    const SPACE: Space = Space { codes: Codes::Values, scales: (1, 1), shifts: (0, 0) };

    #[inline(always)]
    fn levels(block: &[u8; 18]) -> Levels<1> {
        Levels { d: f16_at(block, 0), d_min: f16::ZERO, scales: [1], shifts: [0] }
    }

    #[inline(always)]
    fn write(levels: &Levels<1>, codes: &[u8; 32], out: &mut [u8; 18]) {
        let (scale, rest) = out.split_at_mut(2);
        scale.copy_from_slice(&levels.d.to_le_bytes());
        nibbles(codes, rest);
    }
}

impl Refine<8, 32, 256, 136> for IQ4_XS {
    const SPACE: Space = Space { codes: Codes::Values, scales: (-32, 31), shifts: (0, 0) };

    #[inline(always)]
    fn levels(block: &[u8; 136]) -> Levels<8> {
        let scales = std::array::from_fn(|j| {
            let stored =
                block[4 + j / 2] >> (4 * (j % 2)) & 15 | (block[2 + j / 4] >> (2 * (j % 4)) & 3) << 4;
            i32::from(stored) - 32
        });
        Levels { d: f16_at(block, 0), d_min: f16::ZERO, scales, shifts: [0; 8] }
    }

    #[inline(always)]
    fn write(levels: &Levels<8>, codes: &[u8; 256], out: &mut [u8; 136]) {
        let (header, rest) = out.split_at_mut(8);
        header.fill(0);
        header[..2].copy_from_slice(&levels.d.to_le_bytes());
        for (j, &scale) in levels.scales.iter().enumerate() {
            write_scale(header, j, scale);
        }
        for (codes, out) in codes.as_chunks::<32>().0.iter().zip(rest.chunks_exact_mut(16)) {
            nibbles(codes, out);
        }
    }
}

/// The scale of sub-block `j` into a header of zeros.
#[inline(always)]
fn write_scale(header: &mut [u8], j: usize, scale: i32) {
    let stored = (scale + 32) as u8;
    header[4 + j / 2] |= (stored & 15) << (4 * (j % 2));
    header[2 + j / 4] |= stored >> 4 << (2 * (j % 4));
}

/// What the error of each weight counts: its square, or with importance that of its column times the root of the sum of
/// its square and `mean_square`.
#[inline(always)]
fn counts(weights: &[f32; 32], importance: Option<&[f32; 32]>, mean_square: f32) -> [f32; 32] {
    match importance {
        None => weights.map(|x| x * x),
        Some(importance) => {
            std::array::from_fn(|i| importance[i] * (mean_square + weights[i] * weights[i]).sqrt())
        }
    }
}

/// The scale that leaves the smallest squared error, of which each weight's counts `counts`: sixteen candidates, for each
/// the codes, then the least-squares scale of those. ggml's `quantize_row_iq4_nl_impl`; a lane for each candidate. An
/// error if sums go beyond f32.
#[inline(always)]
fn search(weights: &[f32; 32], counts: &[f32; 32]) -> Result<f32, f32> {
    let (mut absolute, mut largest) = (0.0f32, 0.0);
    for &x in weights {
        if x.abs() > absolute {
            absolute = x.abs();
            largest = x;
        }
    }
    if absolute < ZERO {
        return Ok(0.0);
    }
    // The first maps the largest weight to −127 by way of a reciprocal, the others to −134 … −120.
    let first = 1.0 / (-largest / f32::from(VALUES[0]));
    let other = |step: i8| (f32::from(step - 7) + f32::from(VALUES[0])) / largest;
    let inverses = [
        F8([first, other(0), other(1), other(2), other(3), other(4), other(5), other(6)]),
        F8([other(7), other(8), other(9), other(10), other(11), other(12), other(13), other(14)]),
    ];
    let mut scale = 0.0;
    let mut best = 0.0;
    for (half, inverse) in inverses.into_iter().enumerate() {
        let (mut sum_qx, mut sum_q2) = (F8::ZERO, F8::ZERO);
        for (&x, &w) in weights.iter().zip(counts) {
            let (w, x) = (F8::splat(w), F8::splat(x));
            let q = values_of(inverse * x);
            sum_qx = sum_qx + w * q * x;
            sum_q2 = sum_q2 + w * q * q;
        }
        for (lane, (sum_qx, sum_q2)) in sum_qx.0.into_iter().zip(sum_q2.0).enumerate() {
            if !(sum_qx.is_finite() && sum_q2.is_finite()) {
                return Err(absolute / 127.0);
            }
            if half == 0 && lane == 0 {
                scale = if sum_q2 > 0.0 { sum_qx / sum_q2 } else { 0.0 };
                best = scale * sum_qx;
            } else if sum_q2 > 0.0 && sum_qx * sum_qx > best * sum_q2 {
                scale = sum_qx / sum_q2;
                best = scale * sum_qx;
            }
        }
    }
    Ok(scale)
}

/// The value nearest to each, the upper one of two equally near.
#[inline(always)]
pub(super) fn values_of(x: F8) -> F8 {
    let mut value = F8::splat(f32::from(VALUES[0]));
    for pair in VALUES.windows(2) {
        let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
        // ggml compares distances, whose roundings do not matter: near the middle both are exact.
        let below = x.below(F8::splat((low + high) / 2.0));
        value = value + below.select(F8::ZERO, F8::splat(high - low));
    }
    value
}

/// The index of one of the values.
#[inline(always)]
pub(super) fn index_of(value: f32) -> u8 {
    VALUES.iter().filter(|&&below| f32::from(below) < value).count() as u8
}

/// The codes of `weight * inverse`, the second half of them in the high nibbles.
#[inline(always)]
fn pack(weights: &[f32; 32], inverse: f32, out: &mut [u8]) {
    let mut codes = [0u8; 32];
    for (codes, eight) in codes.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0) {
        let scaled = F8(*eight) * F8::splat(inverse);
        let mut counts = F8::ZERO;
        for pair in VALUES.windows(2) {
            let middle = (f32::from(pair[0]) + f32::from(pair[1])) / 2.0;
            counts = counts + scaled.below(F8::splat(middle)).select(F8::ZERO, F8::splat(1.0));
        }
        for (code, count) in codes.iter_mut().zip(counts.0) {
            *code = count as u8;
        }
    }
    nibbles(&codes, out);
}
