//! Q4_0: 32 weights, four bits each, one scale.

use half::f16;

use super::{
    Encode, EncodeEight, Weighing, f16_at, f16_scale,
    importance::counts,
    inverse,
    lanes::by_sub_block,
    largest, nibbles,
    refine::{Codes, Levels, Refine, Space},
    scale::search,
    upward_codes,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q4_0;

impl Encode<32, 18> for Q4_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 18]) -> Result<(), f32> {
        // The largest weight maps to −8, the longer end of the range, whatever its sign.
        let d = largest(weights) / -8.0;
        let inverse = inverse(d);
        let (scale, rest) = out.split_at_mut(2);
        scale.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        let codes = inverse.map_or([0; 32], |inverse| upward_codes(weights, inverse, 8.0, 15));
        nibbles(&codes, rest);
        Ok(())
    }
}

impl Refine<1, 32, 32, 18> for Q4_0 {
    const SPACE: Space = Space { codes: Codes::Integers { low: -8, top: 7 }, scales: (1, 1), shifts: (0, 0) };

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

impl EncodeEight<18> for Q4_0 {
    #[inline(always)]
    fn encode_eight(
        weights: &[f32; 256],
        importance: &[f32; 256],
        row_mean_square: f32,
        out: &mut [[u8; 18]; 8],
    ) -> Result<(), (usize, f32)> {
        let x = by_sub_block::<32>(weights);
        search(&x, &counts(&x, importance, row_mean_square), 8).write_eight(weights, nibbles, out)
    }
}
