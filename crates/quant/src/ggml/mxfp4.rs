//! MXFP4: 32 floats of four bits, E2M1, times a power of two.

use super::encoder::Improve;
use super::{Encode, Weighing};

pub(super) struct MXFP4;

/// What the codes stand for, doubled.
const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl Encode<32, 17> for MXFP4 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 17]) -> Result<(), f32> {
        let largest = super::largest_magnitude(weights);
        // As a byte it wraps around for denormal weights; none of their codes is then above 0.
        let exponent = if largest > 0.0 { (floor_log2(largest) - 2 + 127) as u8 } else { 0 };
        write(exponent, &codes_of(weights, exponent), out);
        Ok(())
    }
}

/// The nearest code of each weight, the first of equals.
#[inline(always)]
fn codes_of(weights: &[f32; 32], exponent: u8) -> [u8; 32] {
    let half = half_of(exponent);
    let mut codes = [0u8; 32];
    for (codes, x) in codes.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0) {
        let mut least = x.map(|x| (0.0 * half - x).abs());
        for (code, value) in VALUES.iter().enumerate().skip(1) {
            let value = f32::from(*value) * half;
            for lane in 0..8 {
                let error = (value - x[lane]).abs();
                let less = error < least[lane];
                least[lane] = if less { error } else { least[lane] };
                codes[lane] = if less { code as u8 } else { codes[lane] };
            }
        }
    }
    codes
}

/// Half of the power of two that an exponent stands for.
#[inline(always)]
fn half_of(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => (u32::from(exponent) - 1) << 23,
    })
}

#[inline(always)]
fn write(exponent: u8, codes: &[u8; 32], out: &mut [u8; 17]) {
    out[0] = exponent;
    super::nibbles(codes, &mut out[1..]);
}

/// The exponent beside ggml's that leaves the smallest squared error.
pub(super) struct Chosen;

impl Improve<32, 17> for Chosen {
    #[inline(always)]
    fn improve(weights: &[f32; 32], counts: &[f32; 32], block: &mut [u8; 17]) {
        let error = |exponent: u8, codes: &[u8; 32]| {
            let half = half_of(exponent);
            let each = weights.iter().zip(counts).zip(codes);
            each.fold(0.0, |sum: f32, ((x, count), code)| {
                let difference = f32::from(VALUES[usize::from(*code)]) * half - x;
                sum + count * difference * difference
            })
        };
        let ggmls = block[0];
        let mut least = error(ggmls, &codes_of(weights, ggmls));
        for exponent in [ggmls.saturating_sub(1), ggmls.saturating_add(1).min(254)] {
            let codes = codes_of(weights, exponent);
            let error = error(exponent, &codes);
            if error < least {
                least = error;
                write(exponent, &codes, block);
            }
        }
    }
}

/// `floorf(log2f(value))` for a finite value above 0: just below a power of two the logarithm rounds up to its exponent.
#[inline(always)]
fn floor_log2(value: f32) -> i32 {
    // 24 bits of significand whatever the number: value = bits · 2^(exponent − 23).
    let scaled = if value < f32::MIN_POSITIVE { value * 8_388_608.0 } else { value };
    let shift = if value < f32::MIN_POSITIVE { 23 } else { 0 };
    let exponent = (scaled.to_bits() >> 23) as i32 - 127 - shift;
    let below_next = 0x0080_0000 - (scaled.to_bits() & 0x007f_ffff);
    let next = exponent + 1;
    if next == 0 {
        return exponent;
    }
    // Floats just below the power's exponent, in magnitude, are 2^(digits − 23) apart; a power of two of its own has them
    // half as far apart on the side of zero.
    let magnitude = next.unsigned_abs();
    let halved = u32::from(next > 0 && magnitude.is_power_of_two());
    let spacing = f64::from(1u32 << magnitude.ilog2()) / f64::from(1 + halved);
    let rounds_up = f64::from(below_next) * std::f64::consts::LOG2_E < spacing;
    if rounds_up { next } else { exponent }
}

#[cfg(test)]
mod tests {
    use super::floor_log2;

    #[test]
    fn exponents_are_those_of_the_rounded_logarithm() {
        assert_eq!([0.5, 1.0, 1.5, 2.0, 1e-45].map(floor_log2), [-1, 0, 0, 1, -149]);
        // log2 of the float below 2^k: nearer to k than to the float before it, but where floats lie dense around 0.
        for k in -125..=127 {
            let below = f32::from_bits(((k + 127) as u32) << 23).next_down();
            let expected = if (-1..=2).contains(&k) { k - 1 } else { k };
            assert_eq!(floor_log2(below), expected, "2^{k}");
        }
    }
}
