//! Q5_0: 32 weights, five bits each, one scale.

use super::{Encode, Weighing, f16_scale, fifth_bits, inverse, largest, upward_codes};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q5_0;

impl Encode<32, 22> for Q5_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 22]) -> Result<(), f32> {
        // The largest weight maps to −16, the longer end of the range, whatever its sign.
        let d = largest(weights) / -16.0;
        let inverse = inverse(d);
        let (scale, rest) = out.split_at_mut(2);
        let (fifth, nibbles) = rest.split_at_mut(4);
        scale.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        let Some(inverse) = inverse else {
            fifth.fill(0);
            nibbles.fill(0);
            return Ok(());
        };
        let codes = upward_codes(weights, inverse, 16.0, 31);
        for (i, byte) in nibbles.iter_mut().enumerate() {
            *byte = codes[i] & 15 | codes[16 + i] << 4;
        }
        fifth.copy_from_slice(&fifth_bits(&codes));
        Ok(())
    }
}
