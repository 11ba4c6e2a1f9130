//! Quantiles, and the three of them that describe a latency.

use serde::{Deserialize, Serialize};

/// The `q`-quantile (0 ≤ q ≤ 1) of values sorted in ascending order; NaN if there are none.
///
/// Linear between order statistics, as numpy's default (Hyndman and Fan's type 7).
///
/// ```
/// use bitmill_report::quantile;
/// assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
/// assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
/// ```
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let fraction = position - below as f64;
    // Without the test a fraction of 0 beside an infinite neighbour would be NaN.
    if fraction == 0.0 {
        sorted[below]
    } else {
        sorted[below] + fraction * (sorted[below + 1] - sorted[below])
    }
}

/// How long something took, over repetitions, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the repetitions were faster.
    #[serde(with = "crate::finite")]
    pub median: f64,
    /// One repetition in ten was faster.
    #[serde(with = "crate::finite")]
    pub p10: f64,
    /// One repetition in ten was slower.
    #[serde(with = "crate::finite")]
    pub p90: f64,
}

impl Latency {
    /// Summarises `samples_ms`, in any order; NaN throughout if there are none.
    ///
    /// ```
    /// use bitmill_report::Latency;
    /// let latency = Latency::from_samples(&[3.0, 1.0, 2.0]);
    /// assert_eq!((latency.median, latency.p10, latency.p90), (2.0, 1.2, 2.8));
    /// ```
    pub fn from_samples(samples_ms: &[f64]) -> Self {
        let mut sorted = samples_ms.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: quantile(&sorted, 0.5), p10: quantile(&sorted, 0.1), p90: quantile(&sorted, 0.9) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_one_value_are_that_value_and_of_none_are_nan() {
        for q in [0.0, 0.1, 0.5, 0.9, 1.0] {
            assert_eq!(quantile(&[7.0], q), 7.0);
            assert!(quantile(&[], q).is_nan());
        }
    }

    #[test]
    fn quantiles_equal_numpys_on_ten_values() {
        // numpy.quantile([1, 2, 4, 8, 16, 32, 64, 128, 256, 512], [0, .1, .25, .5, .9, .99, 1])
        let values: Vec<f64> = (0..10).map(|i| f64::from(1 << i)).collect();
        let expected =
            [(0.0, 1.0), (0.1, 1.9), (0.25, 5.0), (0.5, 24.0), (0.9, 281.6), (0.99, 488.96), (1.0, 512.0)];
        for (q, value) in expected {
            assert!((quantile(&values, q) - value).abs() < 1e-9, "{q}");
        }
    }

    #[test]
    fn the_order_of_samples_does_not_matter() {
        assert_eq!(Latency::from_samples(&[5.0, 1.0, 3.0]), Latency::from_samples(&[1.0, 3.0, 5.0]));
    }
}
