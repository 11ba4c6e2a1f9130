//! Q8_0: 32 weights, eight bits each, one scale.

use half::f16;

use super::{
    Encode, Weighing, f16_at, f16_scale, inverse,
    lanes::F8,
    largest_magnitude,
    refine::{Codes, Levels, Refine, Space},
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q8_0;

impl Encode<32, 34> for Q8_0 {
    #[inline(always)]
    fn encode(weights: &[f32; 32], _: Option<Weighing<'_, 32>>, out: &mut [u8; 34]) -> Result<(), f32> {
        let d = largest_magnitude(weights) / 127.0;
        let (scale, codes) = out.split_at_mut(2);
        scale.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        let Some(inverse) = inverse(d) else {
            codes.fill(0);
            return Ok(());
        };
        for (codes, eight) in codes.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0) {
            let rounded = round_half_away(F8(*eight) * F8::splat(inverse));
            for lane in 0..8 {
                codes[lane] = rounded[lane] as u8;
            }
        }
        Ok(())
    }
}

impl Refine<1, 32, 32, 34> for Q8_0 {
    const SPACE: Space =
        Space { codes: Codes::Integers { low: -127, top: 127 }, scales: (1, 1), shifts: (0, 0) };

    #[inline(always)]
    fn levels(block: &[u8; 34]) -> Levels<1> {
        Levels { d: f16_at(block, 0), d_min: f16::ZERO, scales: [1], shifts: [0] }
    }

    #[inline(always)]
    fn write(levels: &Levels<1>, codes: &[u8; 32], out: &mut [u8; 34]) {
        let (scale, rest) = out.split_at_mut(2);
        scale.copy_from_slice(&levels.d.to_le_bytes());
        for (byte, code) in rest.iter_mut().zip(codes) {
            *byte = code.wrapping_sub(127);
        }
    }
}

/// C's `roundf` of each for |value| ≤ 2^21: ties away from zero. The addend is the float before 0.5, so that nothing below a
/// half reaches the next integer by rounding.
#[inline(always)]
fn round_half_away(values: F8) -> [i32; 8] {
    let magnitudes = (values.abs() + F8::splat(0.499_999_97)).floor();
    let negative = values.below(F8::ZERO);
    std::array::from_fn(|lane| if negative.lane(lane) { -magnitudes[lane] } else { magnitudes[lane] })
}

#[cfg(test)]
mod tests {
    use super::{F8, round_half_away};

    #[test]
    fn rounding_is_that_of_roundf_around_every_half() {
        for integer in 0..=128 {
            for half in [integer as f32, integer as f32 + 0.5] {
                for value in [half.next_down(), half, half.next_up()] {
                    assert_eq!(round_half_away(F8::splat(value))[0], value.round() as i32, "{value}");
                    assert_eq!(round_half_away(F8::splat(-value))[7], (-value).round() as i32, "-{value}");
                }
            }
        }
    }
}
