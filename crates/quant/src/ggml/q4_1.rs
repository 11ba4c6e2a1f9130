//! Q4_1: 32 weights, four bits each, one scale and the smallest weight.

use super::{
    Encode, EncodeEight, Weighing, codes_above_smallest, f16_at,
    importance::counts,
    lanes::by_sub_block,
    nibbles,
    refine::{Codes, Levels, Refine, Space},
    scale_and_shift::Search,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q4_1;

impl Encode<32, 20> for Q4_1 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 20]) -> Result<(), f32> {
        let (header, rest) = out.split_at_mut(4);
        nibbles(&codes_above_smallest(weights, 15, header)?, rest);
        Ok(())
    }
}

impl Refine<1, 32, 32, 20> for Q4_1 {
    // The smallest weight is a shift down by −1 of it.
    const SPACE: Space =
        Space { codes: Codes::Integers { low: 0, top: 15 }, scales: (1, 1), shifts: (-1, -1) };

    #[inline(always)]
    fn levels(block: &[u8; 20]) -> Levels<1> {
        Levels { d: f16_at(block, 0), d_min: f16_at(block, 2), scales: [1], shifts: [-1] }
    }

    #[inline(always)]
    fn write(levels: &Levels<1>, codes: &[u8; 32], out: &mut [u8; 20]) {
        let (header, rest) = out.split_at_mut(4);
        header[..2].copy_from_slice(&levels.d.to_le_bytes());
        header[2..].copy_from_slice(&levels.d_min.to_le_bytes());
        nibbles(codes, rest);
    }
}

impl EncodeEight<20> for Q4_1 {
    #[inline(always)]
    fn encode_eight(
        weights: &[f32; 256],
        importance: &[f32; 256],
        row_mean_square: f32,
        out: &mut [[u8; 20]; 8],
    ) -> Result<(), (usize, f32)> {
        let x = by_sub_block::<32>(weights);
        let found = Search::weighed(15).run(&x, &counts(&x, importance, row_mean_square));
        found.write_eight(weights, 15, nibbles, out)
    }
}
