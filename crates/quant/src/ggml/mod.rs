//! GGUF blocks, byte for byte what ggml's `quantize_row_*_ref` writes.
//!
//! # Layouts
//! Little-endian; `d` scales, `m` shifts down.
//!
//! ```text
//! Q4_0   32 weights   18 B   f16 d | 16 B: weight i low nibble of byte i, weight 16+i high       d·(q − 8)
//! Q4_1   32 weights   20 B   f16 d | f16 m | 16 B as Q4_0                                        d·q + m
//! Q5_0   32 weights   22 B   f16 d | u32: bit i the fifth bit of weight i | 16 B as Q4_0         d·(q − 16)
//! Q5_1   32 weights   24 B   f16 d | f16 m | u32 and 16 B as Q5_0                                d·q + m
//! Q8_0   32 weights   34 B   f16 d | 32 int8                                                     d·q
//! IQ4_NL 32 weights   18 B   f16 d | 16 B as Q4_0, indexes of values                             d·value
//! Q2_K  256 weights   84 B   16 B: scale low, min high nibble | 64 B of pairs | f16 d | f16 dmin d·sc·q − dmin·m
//! Q3_K  256 weights  110 B   32 B third bits | 64 B of pairs | 12 B: 16 scales of 6 bits | f16 d d·sc·(q − 4)
//! Q4_K  256 weights  144 B   f16 d | f16 dmin | 12 B: 8 scales, 8 mins of 6 bits | 128 B         d·sc·q − dmin·m
//! Q5_K  256 weights  176 B   as Q4_K, 32 B of fifth bits before the nibbles                      d·sc·q − dmin·m
//! Q6_K  256 weights  210 B   128 B low nibbles | 64 B high pairs | 16 int8 scales | f16 d        d·sc·(q − 32)
//! IQ4_XS 256 weights 136 B   f16 d | 2 B high pairs, 4 B low nibbles of 8 scales | 128 B         d·sc·value
//! MXFP4  32 weights   17 B   E8M0 exponent | 16 B as Q4_0, indexes of E2M1 values                2^(e − 127)·value
//! ```
//!
//! The layouts of the IQ1, IQ2, IQ3 and TQ types stand in bitmill-kernels' `grids.rs`, which reads them.

mod compensated;
mod encoder;
mod grid_search;
mod importance;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod lanes;
mod mxfp4;
mod neighbours;
mod points;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod refine;
mod refine_grid;
mod scale;
mod scale_and_shift;
mod ternary;
mod unsigned_scale;

pub use compensated::{Compensation, CompensationRecord, can_compensate, quantize_blocks_compensated};
pub use encoder::{BlockEncoder, BlockSearch, needs_importance, quantize_blocks};
pub use importance::Importance;

use self::encoder::{Encode, EncodeEight, Weighing};
use self::lanes::F8;

/// Below this ggml takes a sub-block for zeros.
const ZERO: f32 = 1e-15;

/// `value` as f16 (to nearest, ties to even), or `value` itself if that is infinite or NaN.
///
/// ggml's `ggml_compute_fp32_to_fp16` without its NaN: `half` asks the CPU for its instruction at each call, which
/// costs more than the rest of a small block.
#[inline(always)]
fn f16_scale(value: f32) -> Result<half::f16, f32> {
    // 2^112 sends what f16 cannot hold to infinity, 2^-110 brings the rest back, four times as large.
    let base = (value.abs() * f32::from_bits(0x7780_0000)) * f32::from_bits(0x0880_0000);
    let doubled = value.to_bits() << 1;
    // Adding a power of two in the right place drops exactly the bits that f16 lacks.
    let bias = (doubled & 0xff00_0000).max(0x7100_0000);
    let bits = (f32::from_bits((bias >> 1) + 0x0780_0000) + base).to_bits();
    let magnitude = (bits >> 13 & 0x7c00) + (bits & 0x0fff);
    if magnitude >= 0x7c00 || doubled > 0xff00_0000 {
        return Err(value);
    }
    Ok(half::f16::from_bits((value.to_bits() >> 16 & 0x8000 | magnitude) as u16))
}

/// The f16 that begins at byte `at`.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> half::f16 {
    half::f16::from_le_bytes([block[at], block[at + 1]])
}

/// ggml's `nearest_int`, bit for bit: to nearest, ties to even below 2^22, and the same nonsense beyond.
#[inline(always)]
fn nearest_int(value: f32) -> i32 {
    ((value + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The weight of largest magnitude, the first of equals; 0 if all are 0.
#[inline(always)]
fn largest(weights: &[f32; 32]) -> f32 {
    let (mut low, mut high) = (F8::ZERO, F8::ZERO);
    for &eight in weights.as_chunks::<8>().0 {
        let x = F8(eight);
        low = x.below(low).select(x, low);
        high = high.below(x).select(x, high);
    }
    let low = low.0.into_iter().fold(0.0f32, |low, x| if x < low { x } else { low });
    let high = high.0.into_iter().fold(0.0f32, |high, x| if x > high { x } else { high });
    if high > -low {
        high
    } else if high < -low {
        low
    } else {
        weights.iter().copied().find(|x| x.abs() == high).filter(|_| high > 0.0).unwrap_or(0.0)
    }
}

/// Bits of finite floats without their signs are in the order of the magnitudes, and a maximum of integers is one
/// instruction for eight.
#[inline(always)]
fn largest_magnitude(weights: &[f32; 32]) -> f32 {
    let mut most = [0u32; 8];
    for eight in weights.as_chunks::<8>().0 {
        for lane in 0..8 {
            most[lane] = most[lane].max(eight[lane].to_bits() & 0x7fff_ffff);
        }
    }
    f32::from_bits(most.into_iter().fold(0, u32::max))
}

/// The codes of Q4_0 and Q5_0: ties upwards, the top one shared by what rounds beyond it.
#[inline(always)]
fn upward_codes(weights: &[f32; 32], inverse: f32, zero: f32, top: i32) -> [u8; 32] {
    let mut codes = [0; 32];
    for (codes, eight) in codes.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0) {
        let rounded = (F8(*eight) * F8::splat(inverse) + F8::splat(zero + 0.5)).floor();
        for lane in 0..8 {
            codes[lane] = rounded[lane].min(top) as u8;
        }
    }
    codes
}

/// The codes of Q4_1 and Q5_1, in steps from the smallest weight up, ties upwards. Writes step and smallest weight as
/// f16 into `header`.
#[inline(always)]
fn codes_above_smallest(weights: &[f32; 32], top: i32, header: &mut [u8]) -> Result<[u8; 32], f32> {
    let (mut low, mut high) = (F8::splat(f32::MAX), F8::splat(f32::MIN));
    for &eight in weights.as_chunks::<8>().0 {
        let x = F8(eight);
        low = x.below(low).select(x, low);
        high = high.below(x).select(x, high);
    }
    let mut low = low.0.into_iter().fold(f32::MAX, |low, x| if x < low { x } else { low });
    let high = high.0.into_iter().fold(f32::MIN, |high, x| if x > high { x } else { high });
    if low == 0.0 {
        // The first of equals, which may be −0.
        low = weights.iter().copied().find(|x| *x == 0.0).unwrap_or(low);
    }
    let d = (high - low) / top as f32;
    header[..2].copy_from_slice(&f16_scale(d)?.to_le_bytes());
    header[2..].copy_from_slice(&f16_scale(low)?.to_le_bytes());
    let mut codes = [0; 32];
    let Some(inverse) = inverse(d) else { return Ok(codes) };
    for (codes, eight) in codes.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0) {
        let rounded = ((F8(*eight) - F8::splat(low)) * F8::splat(inverse) + F8::splat(0.5)).floor();
        for lane in 0..8 {
            codes[lane] = rounded[lane].min(top) as u8;
        }
    }
    Ok(codes)
}

/// 32 codes of four bits as 16 bytes: code i below code 16 + i.
#[inline(always)]
fn nibbles(codes: &[u8; 32], out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = codes[i] | codes[16 + i] << 4;
    }
}

/// The fifth bits of 32 codes, that of code i at bit i.
#[inline(always)]
fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    codes.iter().rev().fold(0u32, |bits, code| bits << 1 | u32::from(code >> 4)).to_le_bytes()
}

/// 256 codes of two bits as 64 bytes: each 32 bytes hold 128 codes, a pair of bits for each 32 of them.
#[inline(always)]
fn pairs_of_bits(codes: &[u8; 256], out: &mut [u8]) {
    let (halves, _) = codes.as_chunks::<128>();
    for (half, out) in halves.iter().zip(out.chunks_exact_mut(32)) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = half[i] | half[32 + i] << 2 | half[64 + i] << 4 | half[96 + i] << 6;
        }
    }
}

/// `1 / d`, or 0 for 0. `None` where it overflows: ggml's reference then converts infinities and NaN to integers,
/// which x86 answers with 0 in the low byte; `d` is 0 in f16 by far, so whatever the codes are, they decode to 0.
#[inline(always)]
fn inverse(d: f32) -> Option<f32> {
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    inverse.is_finite().then_some(inverse)
}

#[cfg(test)]
#[path = "../../tests/weights/mod.rs"]
mod weights;

#[cfg(test)]
mod tests {
    use super::encoder::{Eights, Plain, Rows, Walk, Weighed, for_this_cpu};
    use super::*;

    #[test]
    fn scales_round_to_f16_as_the_half_crate_rounds() {
        // Every f16 and its neighbours in f32, the midpoints between two, and a stride through all floats.
        let from_f16 = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32().to_bits());
        let around = from_f16
            .flat_map(|bits| [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff].map(|offset| bits.wrapping_add(offset)));
        for bits in around.chain((0..=u32::MAX).step_by(10_007)) {
            let value = f32::from_bits(bits);
            let expected = half::f16::from_f32(value);
            match f16_scale(value) {
                Ok(found) => assert_eq!(found.to_bits(), expected.to_bits(), "{value:e}"),
                Err(_) => assert!(!expected.is_finite(), "{value:e}"),
            }
        }
    }

    #[test]
    fn blocks_compiled_for_this_cpu_equal_those_that_are_not() {
        fn compare<W: Walk>(name: &str, importance: Option<&[f32]>, row_bytes: usize) {
            let weight = weights::fill(name, 11, 4096);
            let rows = Rows { cols: 4096, weight: &weight, importance };
            let (mut plain, mut chosen) = (vec![0xa5; row_bytes], vec![0x5a; row_bytes]);
            let ended = W::walk(rows, &mut plain).is_ok();
            assert_eq!(for_this_cpu::<W>(rows, &mut chosen).is_ok(), ended, "{name}");
            // Near the end of f16 a scale may be beyond it.
            assert!(ended || name == "near_f16_max", "{name}");
            assert!(plain == chosen || !ended, "{name}");
        }
        fn blocks<E: Encode<WEIGHTS, BYTES>, const WEIGHTS: usize, const BYTES: usize>(name: &str) {
            compare::<Plain<E, WEIGHTS, BYTES>>(name, None, 4096 / WEIGHTS * BYTES);
            let importance = weights::fill_importance("dead_blocks", 11, 4096);
            compare::<Weighed<E, WEIGHTS, BYTES>>(name, Some(&importance), 4096 / WEIGHTS * BYTES);
        }
        fn small_blocks<E: EncodeEight<BYTES>, const BYTES: usize>(name: &str) {
            compare::<Plain<E, 32, BYTES>>(name, None, 4096 / 32 * BYTES);
            let importance = weights::fill_importance("dead_blocks", 11, 4096);
            compare::<Eights<E, BYTES>>(name, Some(&importance), 4096 / 32 * BYTES);
        }
        for name in weights::NAMES {
            small_blocks::<q4_0::Q4_0, _>(name);
            small_blocks::<q4_1::Q4_1, _>(name);
            small_blocks::<q5_0::Q5_0, _>(name);
            small_blocks::<q5_1::Q5_1, _>(name);
            blocks::<q8_0::Q8_0, _, _>(name);
            blocks::<q2_k::Q2_K, _, _>(name);
            blocks::<q3_k::Q3_K, _, _>(name);
            blocks::<q4_k::Q4_K, _, _>(name);
            blocks::<q5_k::Q5_K, _, _>(name);
            blocks::<q6_k::Q6_K, _, _>(name);
            blocks::<iq4::IQ4_NL, _, _>(name);
            blocks::<iq4::IQ4_XS, _, _>(name);
            blocks::<iq1::IQ1_S, _, _>(name);
            blocks::<iq1::IQ1_M, _, _>(name);
            blocks::<iq2::IQ2_XXS, _, _>(name);
            blocks::<iq2::IQ2_XS, _, _>(name);
            blocks::<iq2::IQ2_S, _, _>(name);
            blocks::<iq3::IQ3_XXS, _, _>(name);
            blocks::<iq3::IQ3_S, _, _>(name);
            blocks::<ternary::TQ1_0, _, _>(name);
            blocks::<ternary::TQ2_0, _, _>(name);
            blocks::<mxfp4::MXFP4, _, _>(name);
        }
    }
}
