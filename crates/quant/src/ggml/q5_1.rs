//! Q5_1: 32 weights, five bits each, one scale and the smallest weight.

use super::{
    Encode, EncodeEight, Weighing, codes_above_smallest, f16_at,
    importance::counts,
    lanes::by_sub_block,
    q5_0::pack,
    refine::{Codes, Levels, Refine, Space},
    scale_and_shift::Search,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q5_1;

impl Encode<32, 24> for Q5_1 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 24]) -> Result<(), f32> {
        let (header, rest) = out.split_at_mut(4);
        pack(&codes_above_smallest(weights, 31, header)?, rest);
        Ok(())
    }
}

impl Refine<1, 32, 32, 24> for Q5_1 {
    // The smallest weight is a shift down by −1 of it.
    const SPACE: Space =
        Space { codes: Codes::Integers { low: 0, top: 31 }, scales: (1, 1), shifts: (-1, -1) };

    #[inline(always)]
    fn levels(block: &[u8; 24]) -> Levels<1> {
        Levels { d: f16_at(block, 0), d_min: f16_at(block, 2), scales: [1], shifts: [-1] }
    }

    #[inline(always)]
    fn write(levels: &Levels<1>, codes: &[u8; 32], out: &mut [u8; 24]) {
        let (header, rest) = out.split_at_mut(4);
        header[..2].copy_from_slice(&levels.d.to_le_bytes());
        header[2..].copy_from_slice(&levels.d_min.to_le_bytes());
        pack(codes, rest);
    }
}

impl EncodeEight<24> for Q5_1 {
    #[inline(always)]
    fn encode_eight(
        weights: &[f32; 256],
        importance: &[f32; 256],
        row_mean_square: f32,
        out: &mut [[u8; 24]; 8],
    ) -> Result<(), (usize, f32)> {
        let x = by_sub_block::<32>(weights);
        let found = Search::weighed(31).run(&x, &counts(&x, importance, row_mean_square));
        found.write_eight(weights, 31, pack, out)
    }
}
