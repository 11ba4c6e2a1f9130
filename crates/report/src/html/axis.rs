//! Axes: a range, where its figures lie on the drawing, and which of them are written beside it.

use crate::figures::Digits;

/// One axis of a plot.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
    /// What is written, and where in units of the axis.
    pub(crate) ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
}

impl Axis {
    /// From zero to a little above the largest value.
    pub(crate) fn from_zero(values: &[f64]) -> Self {
        let high = values.iter().copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
        Self::linear(0.0, if high > 0.0 { high * 1.06 } else { 1.0 })
    }

    /// Around the values, with air above and below, within `bounds`.
    pub(crate) fn around(values: &[f64], bounds: (f64, f64)) -> Self {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let (low, high) =
            (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        if low > high {
            return Self::linear(bounds.0.max(0.0), bounds.1.min(1.0));
        }
        // Equal values still need an extent: a hundredth of their size.
        let air = ((high - low) * 0.09).max(high.abs() * 0.005).max(1e-9);
        Self::linear((low - air).max(bounds.0), (high + air).min(bounds.1))
    }

    fn linear(low: f64, high: f64) -> Self {
        // At most seven ticks, at least three.
        let step = nice_step((high - low) / 6.5);
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let digits = Digits::Fixed((-step.log10().floor()).max(0.0) as usize);
        let ticks = (first..=last)
            .map(|i| {
                let value = i as f64 * step;
                (value, digits.write(value))
            })
            .collect();
        Self { low, high, scale: Scale::Linear, ticks }
    }

    /// A logarithmic axis around the values above zero.
    pub(crate) fn log(values: &[f64]) -> Self {
        let positive = || values.iter().copied().filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
        let (low, high) = if low > high { (0.1, 1.0) } else { (low / 1.8, high * 1.8) };
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        // One tick a decade; within two decades that would be too few to read from.
        let steps: &[f64] = if (high / low).log10() < 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = ((last - first) / 7).max(1);
        let ticks = (first..=last)
            .filter(|exponent| exponent.rem_euclid(every) == 0)
            .flat_map(|exponent| steps.iter().map(move |step| (step * 10f64.powi(exponent), *step, exponent)))
            .filter(|(value, ..)| (low..=high).contains(value))
            .collect::<Vec<_>>();
        // All in one notation.
        let short = ticks.iter().all(|(_, _, exponent)| (-4..=4).contains(exponent));
        let ticks = ticks
            .into_iter()
            .map(|(value, step, exponent)| {
                (value, if short { decimal(value, exponent) } else { power(step, exponent) })
            })
            .collect();
        Self { low, high, scale: Scale::Log, ticks }
    }

    /// Where `value` lies: 0 at the axis's beginning, 1 at its end, and never outside.
    pub(crate) fn position(&self, value: f64) -> f64 {
        let position = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log if value <= 0.0 => 0.0,
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        if position.is_nan() { 0.0 } else { position.clamp(0.0, 1.0) }
    }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= step * 0.999).unwrap_or(10.0);
    factor * power
}

/// A tick of this decade as a decimal fraction: "0.05".
fn decimal(value: f64, exponent: i32) -> String {
    Digits::Fixed(usize::try_from(-exponent).unwrap_or(0)).write(value)
}

/// A tick as a multiple of a power: "5·10⁻⁵".
fn power(step: f64, exponent: i32) -> String {
    let raised: String = exponent
        .to_string()
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            c => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][c as usize - '0' as usize],
        })
        .collect();
    if step == 1.0 { format!("10{raised}") } else { format!("{step}·10{raised}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_figures_inside_the_range() {
        assert_eq!(labels(&Axis::from_zero(&[8.79, 2.5])), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(&Axis::around(&[84.4, 90.7], (0.0, 100.0))), ["84", "86", "88", "90"]);
        assert_eq!(
            labels(&Axis::around(&[99.91, 100.0], (0.0, 100.0))),
            ["99.5", "99.6", "99.7", "99.8", "99.9", "100.0"]
        );
        assert_eq!(labels(&Axis::from_zero(&[0.31])), ["0.0", "0.1", "0.2", "0.3"]);
    }

    #[test]
    fn log_ticks_are_decades_or_their_halves() {
        assert_eq!(labels(&Axis::log(&[4e-5, 0.12])), ["0.0001", "0.001", "0.01", "0.1"]);
        assert_eq!(labels(&Axis::log(&[0.003, 0.006])), ["0.002", "0.005", "0.01"]);
        assert_eq!(labels(&Axis::log(&[4e-6, 0.12])), ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
        assert_eq!(labels(&Axis::log(&[3e-9])), ["2·10⁻⁹", "5·10⁻⁹"]);
    }

    #[test]
    fn positions_run_from_0_to_1_and_stay_there() {
        let axis = Axis::log(&[1e-4, 1e-2]);
        assert!((axis.position(1e-3) - 0.5).abs() < 1e-12);
        for axis in [axis, Axis::from_zero(&[]), Axis::around(&[], (0.0, 100.0)), Axis::log(&[])] {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 1e300] {
                assert!((0.0..=1.0).contains(&axis.position(value)), "{value} on {axis:?}");
            }
        }
    }

    #[test]
    fn equal_values_still_have_an_axis() {
        for axis in [
            Axis::around(&[50.0, 50.0], (0.0, 100.0)),
            Axis::around(&[100.0], (0.0, 100.0)),
            Axis::log(&[1.0]),
        ] {
            assert!(!axis.ticks.is_empty(), "{axis:?}");
            assert!(axis.position(axis.ticks[0].0).is_finite());
        }
    }
}
