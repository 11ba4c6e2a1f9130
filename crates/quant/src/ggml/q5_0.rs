//! Q5_0: 32 weights, five bits each, one scale.

use super::{Encode, f16_scale, inverse, largest};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q5_0;

impl Encode<32, 22> for Q5_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], out: &mut [u8; 22]) -> Result<(), f32> {
        // The largest weight maps to −16, the longer end of the range, whatever its sign.
        let d = largest(weights) / -16.0;
        let inverse = inverse(d);
        let (scale, rest) = out.split_at_mut(2);
        let (fifth_bits, nibbles) = rest.split_at_mut(4);
        scale.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        let code = |weight: f32| match inverse {
            Some(inverse) => ((weight * inverse + 16.5) as i32 as i8).min(31) as u8,
            None => 0,
        };
        let mut fifth = 0u32;
        for (i, byte) in nibbles.iter_mut().enumerate() {
            let (low, high) = (code(weights[i]), code(weights[16 + i]));
            *byte = low & 15 | high << 4;
            fifth |= u32::from(low >> 4) << i | u32::from(high >> 4) << (16 + i);
        }
        fifth_bits.copy_from_slice(&fifth.to_le_bytes());
        Ok(())
    }
}
