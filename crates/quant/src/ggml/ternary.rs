//! TQ1_0 and TQ2_0: −1, 0 or 1 times the block's largest magnitude; five to a byte, or four.

use std::marker::PhantomData;

use super::encoder::Improve;
use super::{Encode, Weighing, f16_scale};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct TQ1_0;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct TQ2_0;

impl Encode<256, 54> for TQ1_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 256], _: Option<Weighing<'_, 256>>, out: &mut [u8; 54]) -> Result<(), f32> {
        let (scale, trits) = trits(weights)?;
        Self::write(scale, &trits, out);
        Ok(())
    }
}

impl Ternary<54> for TQ1_0 {
    #[inline(always)]
    fn write(scale: [u8; 2], trits: &[u8; 256], out: &mut [u8; 54]) {
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
    }
}

impl Encode<256, 66> for TQ2_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 256], _: Option<Weighing<'_, 256>>, out: &mut [u8; 66]) -> Result<(), f32> {
        let (scale, trits) = trits(weights)?;
        Self::write(scale, &trits, out);
        Ok(())
    }
}

impl Ternary<66> for TQ2_0 {
    #[inline(always)]
    fn write(scale: [u8; 2], trits: &[u8; 256], out: &mut [u8; 66]) {
        super::pairs_of_bits(trits, &mut out[..64]);
        out[64..].copy_from_slice(&scale);
    }
}

/// A type of a scale and 256 trits.
pub(super) trait Ternary<const BYTES: usize> {
    /// Writes all of a block; `trits` are 0, 1 or 2 for −1, 0 and 1.
    fn write(scale: [u8; 2], trits: &[u8; 256], out: &mut [u8; BYTES]);
}

/// Scales that leave a smaller squared error than the largest magnitude, each weight at its nearest trit.
pub(super) struct Fitted<E, const BYTES: usize>(PhantomData<E>);

impl<E: Ternary<BYTES>, const BYTES: usize> Improve<256, BYTES> for Fitted<E, BYTES> {
    #[inline(always)]
    fn improve(weights: &[f32; 256], counts: &[f32; 256], block: &mut [u8; BYTES]) {
        if let Some((scale, trits)) = fitted(weights, counts) {
            E::write(scale, &trits, block);
        }
    }
}

/// Scale and trits of less error than ggml's, if there are any.
#[inline(always)]
fn fitted(weights: &[f32; 256], counts: &[f32; 256]) -> Option<([u8; 2], [u8; 256])> {
    const STEPS: u8 = 20;
    let largest = weights.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let rounded = |scale: f32| weights.map(|x| f32::from(x > 0.5 * scale) - f32::from(x < -0.5 * scale));
    let error = |scale: f32, trits: &[f32; 256]| {
        let each = weights.iter().zip(counts).zip(trits);
        each.fold(0.0, |sum, ((x, count), trit)| sum + count * (scale * trit - x) * (scale * trit - x))
    };
    let ggmls = f16_scale(largest).ok()?.to_f32();
    let mut least = error(ggmls, &rounded(ggmls));
    let mut best = None;
    for step in 1..STEPS {
        let mut scale = largest * f32::from(step) / f32::from(STEPS);
        for _ in 0..3 {
            let trits = rounded(scale);
            let (mut tx, mut tt) = (0.0, 0.0);
            for ((x, count), trit) in weights.iter().zip(counts).zip(&trits) {
                tx += count * trit * x;
                tt += count * trit * trit;
            }
            let Ok(stored) = f16_scale(tx / tt) else { break };
            scale = stored.to_f32();
            let trits = rounded(scale);
            let error = error(scale, &trits);
            if error < least {
                least = error;
                best = Some((stored.to_le_bytes(), trits.map(|trit| (trit + 1.0) as u8)));
            }
        }
    }
    best
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
