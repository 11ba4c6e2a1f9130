//! Q5_0: 32 weights, five bits each, one scale.

use half::f16;

use super::{
    Encode, EncodeEight, Weighing, f16_at, f16_scale, fifth_bits,
    importance::counts,
    inverse,
    lanes::by_sub_block,
    largest, nibbles,
    refine::{Codes, Levels, Refine, Space},
    scale::search,
    upward_codes,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q5_0;

impl Encode<32, 22> for Q5_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 22]) -> Result<(), f32> {
        // The largest weight maps to −16, the longer end of the range, whatever its sign.
        let d = largest(weights) / -16.0;
        let inverse = inverse(d);
        let (scale, rest) = out.split_at_mut(2);
        scale.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        let codes = inverse.map_or([0; 32], |inverse| upward_codes(weights, inverse, 16.0, 31));
        pack(&codes, rest);
        Ok(())
    }
}

impl Refine<1, 32, 32, 22> for Q5_0 {
    const SPACE: Space =
        Space { codes: Codes::Integers { low: -16, top: 15 }, scales: (1, 1), shifts: (0, 0) };

    #[inline(always)]
    fn levels(block: &[u8; 22]) -> Levels<1> {
        Levels { d: f16_at(block, 0), d_min: f16::ZERO, scales: [1], shifts: [0] }
    }

    #[inline(always)]
    fn write(levels: &Levels<1>, codes: &[u8; 32], out: &mut [u8; 22]) {
        let (scale, rest) = out.split_at_mut(2);
        scale.copy_from_slice(&levels.d.to_le_bytes());
        pack(codes, rest);
    }
}

impl EncodeEight<22> for Q5_0 {
    #[inline(always)]
    fn encode_eight(
        weights: &[f32; 256],
        importance: &[f32; 256],
        row_mean_square: f32,
        out: &mut [[u8; 22]; 8],
    ) -> Result<(), (usize, f32)> {
        let x = by_sub_block::<32>(weights);
        search(&x, &counts(&x, importance, row_mean_square), 16).write_eight(weights, pack, out)
    }
}

/// The fifth bits, then the other four.
#[inline(always)]
pub(super) fn pack(codes: &[u8; 32], out: &mut [u8]) {
    out[..4].copy_from_slice(&fifth_bits(codes));
    nibbles(&codes.map(|code| code & 15), &mut out[4..]);
}
