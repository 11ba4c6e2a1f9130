//! Q4_1: 32 weights, four bits each, one scale and the smallest weight.

use super::{Encode, Weighing, codes_above_smallest};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q4_1;

impl Encode<32, 20> for Q4_1 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 20]) -> Result<(), f32> {
        let (header, nibbles) = out.split_at_mut(4);
        let codes = codes_above_smallest(weights, 15, header)?;
        for (i, byte) in nibbles.iter_mut().enumerate() {
            *byte = codes[i] | codes[16 + i] << 4;
        }
        Ok(())
    }
}
