//! TQ1_0 and TQ2_0: −1, 0 or 1 times the block's largest magnitude; five to a byte, or four.

use super::{Encode, Weighing, f16_scale};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct TQ1_0;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct TQ2_0;

impl Encode<256, 54> for TQ1_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 256], _: Option<Weighing<'_, 256>>, out: &mut [u8; 54]) -> Result<(), f32> {
        let (scale, trits) = trits(weights)?;
        // The first of five trits counts most; the byte is the fraction of 3^5 that they make, in 256ths, rounded up.
        let byte = |places: [usize; 5]| {
            let digits = places.iter().fold(0, |digits, i| 3 * digits + u16::from(trits[*i]));
            (digits * 256).div_ceil(243) as u8
        };
        let (fives, rest) = out.split_at_mut(48);
        let (fours, d) = rest.split_at_mut(4);
        for (m, out) in fives.iter_mut().enumerate() {
            *out = match m {
                0..32 => byte(std::array::from_fn(|n| 32 * n + m)),
                _ => byte(std::array::from_fn(|n| 160 + 16 * n + m - 32)),
            };
        }
        for (m, out) in fours.iter_mut().enumerate() {
            let digits = (0..4).fold(0, |digits, n| 3 * digits + u16::from(trits[240 + 4 * n + m]));
            *out = (3 * digits * 256).div_ceil(243) as u8;
        }
        d.copy_from_slice(&scale);
        Ok(())
    }
}

impl Encode<256, 66> for TQ2_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 256], _: Option<Weighing<'_, 256>>, out: &mut [u8; 66]) -> Result<(), f32> {
        let (scale, trits) = trits(weights)?;
        super::pairs_of_bits(&trits, &mut out[..64]);
        out[64..].copy_from_slice(&scale);
        Ok(())
    }
}

/// The scale, and each weight over it rounded, ties away from zero: 0, 1 or 2 for −1, 0 and 1.
#[inline(always)]
fn trits(weights: &[f32; 256]) -> Result<([u8; 2], [u8; 256]), f32> {
    let bits = weights.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(bits);
    let inverse = if largest == 0.0 { 0.0 } else { 1.0 / largest };
    let mut trits = [0; 256];
    for (trit, x) in trits.iter_mut().zip(weights) {
        let value = x * inverse;
        // The inverse of a denormal scale is infinite: C's `lroundf` then gives what becomes 0 beside the 1 added.
        let rounded = i32::from(value >= 0.5) - i32::from(value <= -0.5);
        *trit = if value.is_finite() { (rounded + 1) as u8 } else { 1 };
    }
    Ok((f16_scale(largest)?.to_le_bytes(), trits))
}
