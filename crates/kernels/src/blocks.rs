//! GGUF blocks by definition: where the code of each weight lies, and what its half block multiplies it with.
//!
//! Every type is `scale * (code − zero)` or `scale * code − minimum`, with a scale for each 16 weights (which most
//! types share over 32); formulas, and their order, are ggml's own (`ggml-quants.c`, `dequantize_row_*`).

use bitmill_tensor::BlockType;

use crate::grids;

/// Bytes of a Q2_K block: 16 bytes of 4-bit scales and minimums, 64 of codes, f16 d, f16 dmin.
pub(crate) mod q2_k {
    pub const BYTES: usize = 84;
    pub const SCALES: usize = 0;
    pub const CODES: usize = 16;
    pub const D: usize = 80;
    pub const DMIN: usize = 82;
}

/// Bytes of a Q3_K block: 32 bytes of third bits, 64 of pairs of low bits, 12 of 6-bit scales, f16 d.
pub(crate) mod q3_k {
    pub const BYTES: usize = 110;
    pub const HIGH: usize = 0;
    pub const LOW: usize = 32;
    pub const SCALES: usize = 96;
    pub const D: usize = 108;
}

/// Bytes of a Q4_K block: f16 d, f16 dmin, 12 bytes of scales, 128 bytes of nibbles.
pub(crate) mod q4_k {
    pub const BYTES: usize = 144;
    pub const D: usize = 0;
    pub const DMIN: usize = 2;
    pub const SCALES: usize = 4;
    pub const CODES: usize = 16;
}

/// Bytes of a Q5_K block: as Q4_K, with 32 bytes of fifth bits before the nibbles.
pub(crate) mod q5_k {
    pub const BYTES: usize = 176;
    pub const HIGH: usize = 16;
    pub const CODES: usize = 48;
}

/// Bytes of a Q6_K block: 128 low nibbles, 64 pairs of high bits, 16 int8 scales, f16 d.
pub(crate) mod q6_k {
    pub const BYTES: usize = 210;
    pub const LOW: usize = 0;
    pub const HIGH: usize = 128;
    pub const SCALES: usize = 192;
    pub const D: usize = 208;
}

/// Bytes of an IQ4_XS block: f16 d, 8 pairs of high bits of scales, 8 low nibbles of them, 128 bytes of nibbles.
pub(crate) mod iq4_xs {
    pub const BYTES: usize = 136;
    pub const D: usize = 0;
    pub const SCALES_HIGH: usize = 2;
    pub const SCALES_LOW: usize = 4;
    pub const CODES: usize = 8;
}

const _: () = assert!(q2_k::BYTES == BlockType::Q2_K.bytes() && q2_k::DMIN + 2 == q2_k::BYTES);
const _: () = assert!(q3_k::BYTES == BlockType::Q3_K.bytes() && q3_k::D + 2 == q3_k::BYTES);
const _: () = assert!(q4_k::BYTES == BlockType::Q4_K.bytes() && q4_k::CODES + 128 == q4_k::BYTES);
const _: () = assert!(q5_k::BYTES == BlockType::Q5_K.bytes() && q5_k::CODES + 128 == q5_k::BYTES);
const _: () = assert!(q6_k::BYTES == BlockType::Q6_K.bytes() && q6_k::D + 2 == q6_k::BYTES);
const _: () = assert!(iq4_xs::BYTES == BlockType::IQ4_XS.bytes() && iq4_xs::CODES + 128 == iq4_xs::BYTES);

/// What the nibbles of IQ4_NL and IQ4_XS stand for: denser around zero, as weights are.
pub(crate) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What the nibbles of MXFP4 stand for, doubled: E2M1 floats.
pub(crate) const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two that an E8M0 byte stands for; 255, which is NaN there, is 2^127 as ggml has it.
#[inline(always)]
pub(crate) const fn half_of_e8m0(exponent: u8) -> f32 {
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent as u32 - 1) << 23 })
}

/// What stands for zero.
#[derive(Clone, Copy)]
pub(crate) enum Zero {
    /// `weight = scale * (code − this)`.
    Code(i32),
    /// `weight = scale * code − this`.
    Minimum(f32),
}

/// Whether the 16 weights of a half block of 32 have a scale of their own.
pub(crate) const fn has_halves(block: BlockType) -> bool {
    matches!(block, BlockType::Q2_K | BlockType::Q3_K | BlockType::Q6_K) || grids::has_halves(block)
}

/// Whether [`code`] is signed and uses all eight bits; else it is unsigned and below 64.
pub(crate) const fn is_signed(block: BlockType) -> bool {
    matches!(block, BlockType::Q8_0 | BlockType::IQ4_NL | BlockType::IQ4_XS | BlockType::MXFP4)
        || grids::is_grid(block)
}

/// Whether [`code`] is unsigned and below 16 in blocks without halves.
pub(crate) const fn is_nibbles(block: BlockType) -> bool {
    matches!(block, BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4_K)
}

/// The scale of weights `[16 * half, 16 * half + 16)` of a block, and what stands for zero.
#[inline(always)]
pub(crate) fn scale_zero(block: BlockType, bytes: &[u8], half: usize) -> (f32, Zero) {
    match block {
        BlockType::Q8_0 | BlockType::IQ4_NL => (f16_at(bytes, 0), Zero::Code(0)),
        BlockType::Q4_0 => (f16_at(bytes, 0), Zero::Code(8)),
        BlockType::Q5_0 => (f16_at(bytes, 0), Zero::Code(16)),
        // They store what is added.
        BlockType::Q4_1 | BlockType::Q5_1 => (f16_at(bytes, 0), Zero::Minimum(-f16_at(bytes, 2))),
        BlockType::Q2_K => {
            let both = bytes[q2_k::SCALES + half];
            let scale = f16_at(bytes, q2_k::D) * f32::from(both & 15);
            (scale, Zero::Minimum(f16_at(bytes, q2_k::DMIN) * f32::from(both >> 4)))
        }
        BlockType::Q3_K => {
            let scale = q3_k_scale(&bytes[q3_k::SCALES..q3_k::D], half);
            (f16_at(bytes, q3_k::D) * f32::from(scale), Zero::Code(4))
        }
        BlockType::Q4_K | BlockType::Q5_K => {
            let (scale, min) = q4_k_scale_min(&bytes[q4_k::SCALES..q4_k::CODES], half / 2);
            let (d, dmin) = (f16_at(bytes, q4_k::D), f16_at(bytes, q4_k::DMIN));
            (d * f32::from(scale), Zero::Minimum(dmin * f32::from(min)))
        }
        BlockType::Q6_K => {
            let scale = bytes[q6_k::SCALES + half] as i8;
            (f16_at(bytes, q6_k::D) * f32::from(scale), Zero::Code(32))
        }
        BlockType::IQ4_XS => {
            let scale = iq4_xs_scale(bytes, half / 2);
            (f16_at(bytes, iq4_xs::D) * f32::from(scale), Zero::Code(0))
        }
        BlockType::MXFP4 => (half_of_e8m0(bytes[0]), Zero::Code(0)),
        BlockType::IQ1_S
        | BlockType::IQ1_M
        | BlockType::IQ2_XXS
        | BlockType::IQ2_XS
        | BlockType::IQ2_S
        | BlockType::IQ3_XXS
        | BlockType::IQ3_S
        | BlockType::TQ1_0
        | BlockType::TQ2_0 => {
            let d = half::f16::from_bits(grids::d_bits(block, bytes)).to_f32() * grids::unit(block);
            (d * f32::from(grids::factor(block, bytes, half)), Zero::Code(0))
        }
    }
}

/// The code of weight `i` of a block.
#[inline(always)]
pub(crate) fn code(block: BlockType, bytes: &[u8], i: usize) -> i32 {
    // Of a block of 32: low nibbles hold the first 16 codes, high nibbles the others.
    let nibble = |at: usize| (bytes[at + i % 16] >> (4 * (i / 16 % 2))) & 15;
    let fifth = |at: usize| ((bytes[at + i / 8] >> (i % 8)) & 1) << 4;
    // Of a block of 256, each 32 bytes hold 64 codes: low nibbles the first 32, high nibbles the others.
    let wide_nibble = |at: usize| (bytes[at + 32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15;
    // Each 32 bytes hold 128 codes, a pair of bits for each 32 of them.
    let pair = |at: usize| (bytes[at + 32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4))) & 3;
    // Each bit of 32 bytes belongs to 32 of the codes.
    let bit = |at: usize| (bytes[at + i % 32] >> (i / 32)) & 1;
    i32::from(match block {
        BlockType::Q8_0 => return i32::from(bytes[2 + i] as i8),
        BlockType::IQ4_NL => return i32::from(IQ4_VALUES[usize::from(nibble(2))]),
        BlockType::IQ4_XS => {
            return i32::from(IQ4_VALUES[usize::from(nibble(iq4_xs::CODES + 16 * (i / 32)))]);
        }
        BlockType::Q4_0 => nibble(2),
        BlockType::Q4_1 => nibble(4),
        BlockType::Q5_0 => nibble(6) | fifth(2),
        BlockType::Q5_1 => nibble(8) | fifth(4),
        BlockType::Q2_K => pair(q2_k::CODES),
        BlockType::Q3_K => pair(q3_k::LOW) | bit(q3_k::HIGH) << 2,
        BlockType::Q4_K => wide_nibble(q4_k::CODES),
        BlockType::Q5_K => wide_nibble(q5_k::CODES) | bit(q5_k::HIGH) << 4,
        BlockType::Q6_K => {
            // Each half of 128 codes: 64 bytes of nibbles (low ones first), 32 bytes of two high bits.
            let low = (bytes[q6_k::LOW + 64 * (i / 128) + i % 64] >> (4 * (i / 64 % 2))) & 15;
            low | pair(q6_k::HIGH) << 4
        }
        BlockType::MXFP4 => return i32::from(MXFP4_VALUES[usize::from(nibble(1))]),
        BlockType::IQ1_S
        | BlockType::IQ1_M
        | BlockType::IQ2_XXS
        | BlockType::IQ2_XS
        | BlockType::IQ2_S
        | BlockType::IQ3_XXS
        | BlockType::IQ3_S
        | BlockType::TQ1_0
        | BlockType::TQ2_0 => return i32::from(grids::code(block, bytes, i)),
    })
}

/// Little-endian f16 at `at`, widened.
#[inline(always)]
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Scale of half block `index` of a Q3_K block, from its 12 bytes of 6-bit numbers: eight bytes of nibbles (low ones
/// first), four of pairs of high bits.
#[inline(always)]
pub(crate) fn q3_k_scale(scales: &[u8], index: usize) -> i8 {
    let low = (scales[index % 8] >> (4 * (index / 8))) & 15;
    let high = (scales[8 + index % 4] >> (2 * (index / 4))) & 3;
    (low | high << 4) as i8 - 32
}

/// Scale and minimum of sub-block `index` of a Q4_K block, from its 12 bytes of 6-bit numbers.
///
/// Sub-blocks 0..4 keep theirs in the low six bits of bytes 0..4 and 4..8; the others split them between the
/// nibbles of bytes 8..12 and the two bits left in the bytes before.
#[inline(always)]
pub(crate) fn q4_k_scale_min(scales: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (scales[index] & 63, scales[index + 4] & 63)
    } else {
        (
            (scales[index + 4] & 15) | ((scales[index - 4] >> 6) << 4),
            (scales[index + 4] >> 4) | ((scales[index] >> 6) << 4),
        )
    }
}

/// Scale of sub-block `index` of an IQ4_XS block.
#[inline(always)]
pub(crate) fn iq4_xs_scale(bytes: &[u8], index: usize) -> i8 {
    let low = (bytes[iq4_xs::SCALES_LOW + index / 2] >> (4 * (index % 2))) & 15;
    let high = (bytes[iq4_xs::SCALES_HIGH + index / 4] >> (2 * (index % 4))) & 3;
    (low | high << 4) as i8 - 32
}
