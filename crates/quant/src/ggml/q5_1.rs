//! Q5_1: 32 weights, five bits each, one scale and the smallest weight.

use super::{Encode, Weighing, codes_above_smallest, fifth_bits};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q5_1;

impl Encode<32, 24> for Q5_1 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 24]) -> Result<(), f32> {
        let (header, rest) = out.split_at_mut(4);
        let (fifth, nibbles) = rest.split_at_mut(4);
        let codes = codes_above_smallest(weights, 31, header)?;
        for (i, byte) in nibbles.iter_mut().enumerate() {
            *byte = codes[i] & 15 | codes[16 + i] << 4;
        }
        fifth.copy_from_slice(&fifth_bits(&codes));
        Ok(())
    }
}
