//! Q4_0: 32 weights, four bits each, one scale.

use super::{Encode, Weighing, f16_scale, inverse, largest, upward_codes};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q4_0;

impl Encode<32, 18> for Q4_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 18]) -> Result<(), f32> {
        // The largest weight maps to −8, the longer end of the range, whatever its sign.
        let d = largest(weights) / -8.0;
        let inverse = inverse(d);
        let (scale, nibbles) = out.split_at_mut(2);
        scale.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        let Some(inverse) = inverse else {
            nibbles.fill(0);
            return Ok(());
        };
        let codes = upward_codes(weights, inverse, 8.0, 15);
        for (i, byte) in nibbles.iter_mut().enumerate() {
            *byte = codes[i] | codes[16 + i] << 4;
        }
        Ok(())
    }
}
