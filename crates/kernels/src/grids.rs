//! GGUF blocks whose codes are signed and whose scales are small factors of one f16: the IQ1, IQ2 and IQ3 types, which
//! take four or eight weights at a time from a grid, and the ternary ones.
//!
//! A weight is `d · unit · factor · code`. ggml writes it as `d · (0.5 + s) · 0.25 · value` and the like
//! (`ggml-quants.c`, `dequantize_row_*`); with few enough bits in each, no order of them rounds.
//!
//! ```text
//! IQ2_XXS  66 B   f16 d | 8 of: 4 points, u32 of 4 × 7 signs and 4 bits of scale
//! IQ2_XS   74 B   f16 d | 32 u16: 9 bits of point, 7 signs | 16 scales of 4 bits
//! IQ2_S    82 B   f16 d | 32 points | 32 B signs | 8 B: high bits of 4 points each | 16 scales of 4 bits
//! IQ3_XXS  98 B   f16 d | 64 points | 8 u32 of 4 × 7 signs and 4 bits of scale
//! IQ3_S   110 B   f16 d | 64 points | 8 B: ninth bits | 32 B signs | 8 scales of 4 bits
//! IQ1_S    50 B   f16 d | 32 points | 8 u16: high bits of 4 points, 3 bits of scale, which way all are shifted
//! IQ1_M    56 B   32 points | 16 B: high bits and shift of 2 points | 4 u16: 4 scales of 3 bits, 4 bits of f16 d
//! TQ1_0    54 B   48 B of five trits, 4 B of four | f16 d
//! TQ2_0    66 B   64 B of pairs of bits, as Q2_K | f16 d
//! ```

use bitmill_tensor::{BlockType, grid};

/// Where the parts of a block lie.
pub(crate) mod iq2_xs {
    pub const SCALES: usize = 66;
}
pub(crate) mod iq2_s {
    pub const SIGNS: usize = 34;
    pub const HIGH: usize = 66;
    pub const SCALES: usize = 74;
}
pub(crate) mod iq3_xxs {
    pub const SIGNS: usize = 66;
}
pub(crate) mod iq3_s {
    pub const HIGH: usize = 66;
    pub const SIGNS: usize = 74;
    pub const SCALES: usize = 106;
}
pub(crate) mod iq1_s {
    pub const HIGH: usize = 34;
}
pub(crate) mod iq1_m {
    pub const HIGH: usize = 32;
    pub const SCALES: usize = 48;
}
pub(crate) mod tq1_0 {
    pub const LAST: usize = 48;
    pub const D: usize = 52;
}
pub(crate) mod tq2_0 {
    pub const D: usize = 64;
}

const _: () = assert!(iq2_xs::SCALES + 8 == BlockType::IQ2_XS.bytes());
const _: () = assert!(iq2_s::SCALES + 8 == BlockType::IQ2_S.bytes());
const _: () = assert!(iq3_xxs::SIGNS + 32 == BlockType::IQ3_XXS.bytes());
const _: () = assert!(iq3_s::SCALES + 4 == BlockType::IQ3_S.bytes());
const _: () = assert!(iq1_s::HIGH + 16 == BlockType::IQ1_S.bytes());
const _: () = assert!(iq1_m::SCALES + 8 == BlockType::IQ1_M.bytes());
const _: () = assert!(tq1_0::D + 2 == BlockType::TQ1_0.bytes());
const _: () = assert!(tq2_0::D + 2 == BlockType::TQ2_0.bytes());

/// Whether this module describes `block`.
pub(crate) const fn is_grid(block: BlockType) -> bool {
    matches!(
        block,
        BlockType::IQ1_S
            | BlockType::IQ1_M
            | BlockType::IQ2_XXS
            | BlockType::IQ2_XS
            | BlockType::IQ2_S
            | BlockType::IQ3_XXS
            | BlockType::IQ3_S
            | BlockType::TQ1_0
            | BlockType::TQ2_0
    )
}

/// Whether the 16 weights of a half block of 32 have a factor of their own.
pub(crate) const fn has_halves(block: BlockType) -> bool {
    matches!(block, BlockType::IQ1_M | BlockType::IQ2_XS | BlockType::IQ2_S)
}

/// What a factor of 1 is, in units of `d`.
#[inline(always)]
pub(crate) const fn unit(block: BlockType) -> f32 {
    match block {
        BlockType::IQ1_S | BlockType::IQ1_M | BlockType::IQ2_XXS | BlockType::IQ2_XS | BlockType::IQ2_S => {
            0.125
        }
        BlockType::IQ3_XXS => 0.25,
        _ => 1.0,
    }
}

/// The bits of `d`, an f16.
#[inline(always)]
pub(crate) fn d_bits(block: BlockType, bytes: &[u8]) -> u16 {
    match block {
        BlockType::IQ1_M => {
            // The top four bits of each of the scales' words.
            let top = |word: usize| u16_at(bytes, iq1_m::SCALES + 2 * word) >> 12;
            top(0) | top(1) << 4 | top(2) << 8 | top(3) << 12
        }
        BlockType::TQ1_0 => u16_at(bytes, tq1_0::D),
        BlockType::TQ2_0 => u16_at(bytes, tq2_0::D),
        _ => u16_at(bytes, 0),
    }
}

/// The factor of weights `[16 * half, 16 * half + 16)`, odd and below 32.
#[inline(always)]
pub(crate) fn factor(block: BlockType, bytes: &[u8], half: usize) -> u8 {
    let sub = half / 2;
    let nibble = |at: usize, index: usize| (bytes[at + index / 2] >> (4 * (index % 2))) & 15;
    let scale = match block {
        BlockType::IQ2_XXS => bytes[2 + 8 * sub + 7] >> 4,
        BlockType::IQ2_XS => nibble(iq2_xs::SCALES, half),
        BlockType::IQ2_S => nibble(iq2_s::SCALES, half),
        BlockType::IQ3_XXS => bytes[iq3_xxs::SIGNS + 4 * sub + 3] >> 4,
        BlockType::IQ3_S => nibble(iq3_s::SCALES, sub),
        BlockType::IQ1_S => bytes[iq1_s::HIGH + 2 * sub + 1] >> 4 & 7,
        BlockType::IQ1_M => (u16_at(bytes, iq1_m::SCALES + 2 * (half / 4)) >> (3 * (half % 4)) & 7) as u8,
        _ => 0,
    };
    2 * scale + 1
}

/// The code of weight `i` of a block.
#[inline(always)]
pub(crate) fn code(block: BlockType, bytes: &[u8], i: usize) -> i8 {
    // Points of eight are counted by `i / 8`, points of four by `i / 4`.
    let (sub, eight, four) = (i / 32, i / 8, i / 4);
    let weight = |point: u64| point.to_le_bytes()[i % 8] as i8;
    let weight_of_four = |point: u32| point.to_le_bytes()[i % 4] as i8;
    let signed = |magnitude: i8, signs: u8| if signs >> (i % 8) & 1 == 1 { -magnitude } else { magnitude };
    let seven_signs = |at: usize| grid::even_signs((u32_at(bytes, at) >> (7 * (eight % 4))) as u8);
    let shifted = |value: i8, down: bool| 8 * value + if down { -1 } else { 1 };
    let trit = |byte: u8, place: u32| {
        // Five trits of a byte are a fraction of 256 in base 3: the digit is what multiplying pushes out.
        let digits = byte.wrapping_mul(3u8.wrapping_pow(place));
        ((u16::from(digits) * 3) >> 8) as i8 - 1
    };
    match block {
        BlockType::IQ2_XXS => {
            let point = grid::IQ2_XXS[usize::from(bytes[2 + 8 * sub + eight % 4])];
            signed(weight(point), seven_signs(2 + 8 * sub + 4))
        }
        BlockType::IQ2_XS => {
            let both = u16_at(bytes, 2 + 2 * eight);
            signed(weight(grid::IQ2_XS[usize::from(both & 511)]), grid::even_signs((both >> 9) as u8))
        }
        BlockType::IQ2_S => {
            let high = usize::from(bytes[iq2_s::HIGH + sub]) >> (2 * (eight % 4)) & 3;
            let point = grid::IQ2_S[usize::from(bytes[2 + eight]) | high << 8];
            signed(weight(point), bytes[iq2_s::SIGNS + eight])
        }
        BlockType::IQ3_XXS => {
            let point = grid::IQ3_XXS[usize::from(bytes[2 + four])];
            signed(weight_of_four(point), seven_signs(iq3_xxs::SIGNS + 4 * sub))
        }
        BlockType::IQ3_S => {
            let high = usize::from(bytes[iq3_s::HIGH + sub]) >> (four % 8) & 1;
            let point = grid::IQ3_S[usize::from(bytes[2 + four]) | high << 8];
            signed(weight_of_four(point), bytes[iq3_s::SIGNS + eight])
        }
        BlockType::IQ1_S => {
            let high = u16_at(bytes, iq1_s::HIGH + 2 * sub);
            let point = usize::from(high) >> (3 * (eight % 4)) & 7;
            shifted(weight(grid::IQ1[usize::from(bytes[2 + eight]) | point << 8]), high >> 15 == 1)
        }
        BlockType::IQ1_M => {
            let high = bytes[iq1_m::HIGH + eight / 2] >> (4 * (eight % 2));
            let point = usize::from(bytes[eight]) | usize::from(high & 7) << 8;
            shifted(weight(grid::IQ1[point]), high >> 3 & 1 == 1)
        }
        BlockType::TQ1_0 => match i {
            0..160 => trit(bytes[i % 32], i as u32 / 32),
            160..240 => trit(bytes[32 + i % 16], (i as u32 - 160) / 16),
            _ => trit(bytes[tq1_0::LAST + i % 4], (i as u32 - 240) / 4),
        },
        BlockType::TQ2_0 => (bytes[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4)) & 3) as i8 - 1,
        _ => 0,
    }
}

/// Little-endian u16 at `at`.
#[inline(always)]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Little-endian u32 at `at`.
#[inline(always)]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
