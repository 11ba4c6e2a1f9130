//! Q4_1: 32 weights, four bits each, one scale and the smallest weight.

use super::{
    Encode, EncodeEight, Weighing, codes_above_smallest, importance::counts, lanes::by_sub_block, nibbles,
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
        for (lane, (weights, out)) in weights.as_chunks::<32>().0.iter().zip(out).enumerate() {
            let (header, rest) = out.split_at_mut(4);
            found.write_header(lane, header).map_err(|scale| (lane, scale))?;
            nibbles(&weights.map(|x| found.code(lane, x, 15)), rest);
        }
        Ok(())
    }
}
