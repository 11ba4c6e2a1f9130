//! `eˣ` as polynomials, so that loops over it vectorise.

/// `eˣ` within 2 ulp of the true value; 0 below −104, infinity above 88.8, NaN of NaN.
///
/// Cephes' `expf`: `x = n·ln 2 + r` with ln 2 in two parts, a polynomial of degree 6 in `r`, and 2ⁿ in two factors
/// so that results below the smallest normal number come out as well.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5·2²³: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    #[allow(clippy::excessive_precision, reason = "ln 2 in two parts, as the source writes them")]
    const LN_2: (f32, f32) = (0.693_359_375, -2.121_944_4e-4);
    // Comparisons this way round pass a NaN on.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let power = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let r = x - n * LN_2.0 - n * LN_2.1;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let half = power >> 1;
    let scale = |power: i32| f32::from_bits((power.wrapping_add(127) as u32) << 23);
    p * scale(half) * scale(power.wrapping_sub(half))
}

/// `eˣ` for `x` up to 700, within 4 units of 2⁻⁵³; 0 below −700, NaN of NaN.
///
/// For sums that a loss or a divergence comes from: a divergence is what is left of much larger terms.
#[inline(always)]
pub(crate) fn exp_f64(x: f64) -> f64 {
    /// 1.5·2⁵².
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2 in two parts, the first with room for exact products with any exponent.
    const LN_2: (f64, f64) = (0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10);
    /// 1 / k! for k = 12 down to 2: at |r| ≤ ln 2 / 2 the next term is below 2⁻⁵².
    const TERMS: [f64; 11] = [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
    ];
    let clamped = if x < -700.0 { -700.0 } else { x };
    let rounded = clamped * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let power = (rounded.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
    let r = clamped - n * LN_2.0 - n * LN_2.1;
    let mut p = 0.0;
    for term in TERMS {
        p = p * r + term;
    }
    let value = (p * (r * r) + r + 1.0) * f64::from_bits((power.wrapping_add(1023) as u64) << 52);
    if x < -700.0 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_f64};

    #[test]
    fn the_wide_one_is_good_to_the_last_bits() {
        let mut x = -699.9f64;
        while x < 700.0 {
            let error = (exp_f64(x) / x.exp() - 1.0).abs();
            assert!(error <= 4.0 * f64::EPSILON / 2.0, "{error:e} at {x}");
            x += 0.003_7;
        }
        assert_eq!(exp_f64(0.0), 1.0);
        assert_eq!(exp_f64(f64::NEG_INFINITY), 0.0);
        assert!(exp_f64(f64::NAN).is_nan());
    }

    #[test]
    fn lies_within_two_ulp_of_the_true_value() {
        let mut worst = 0.0f64;
        let mut x = -87.3f32;
        while x < 88.7 {
            let truth = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((truth as f32).to_bits() + 1)) - f64::from(truth as f32);
            worst = worst.max((f64::from(exp(x)) - truth).abs() / ulp);
            x += 0.000_97;
        }
        assert!(worst <= 2.0, "{worst} ulp");
    }

    #[test]
    fn ends_are_zero_infinity_and_nan() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.9), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        // Subnormal results keep an absolute error of one of their own steps.
        assert!((f64::from(exp(-95.0)) - (-95.0f64).exp()).abs() <= f64::from(f32::from_bits(1)));
    }
}
