//! Means, quantiles and McNemar's test.

/// The arithmetic mean; NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard error of the mean of independent values: their standard deviation (n − 1) ÷ √n; NaN of fewer than two.
///
/// ```
/// assert_eq!(bitmill_eval::standard_error(&[1.0, 3.0]), 1.0);
/// ```
pub fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if values.len() < 2 {
        return f64::NAN;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (n - 1.0) / n).sqrt()
}

/// McNemar's exact two-sided p: how likely it is that fair coins, one for each of the `gained + lost` flips, fall at
/// least as unevenly. 1 where nothing flipped.
///
/// ```
/// // 1 of 10 or fewer, either way: 2 · (1 + 10) / 2¹⁰
/// assert!((bitmill_eval::mcnemar_p(1, 9) - 22.0 / 1024.0).abs() < 1e-15);
/// ```
pub fn mcnemar_p(gained: usize, lost: usize) -> f64 {
    let (flips, fewer) = ((gained + lost) as f64, gained.min(lost));
    // In logarithms: 2^−flips underflows past 1074 flips.
    let mut log_term = -flips * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for k in 0..fewer {
        log_term += ((flips - k as f64) / (k as f64 + 1.0)).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Mean of equally many values a cluster, and its standard error between clusters.
///
/// Values of one window share its text, so they are not independent; windows are as good as independent. Taking
/// every token for a sample, as llama.cpp's ± does, understates the error. One cluster alone says nothing of the
/// spread between clusters: then, and only then, every value counts as a sample.
pub(crate) fn clustered_mean(values: &[f64], per_cluster: usize) -> (f64, f64) {
    let clusters: Vec<f64> = values.chunks_exact(per_cluster).map(mean).collect();
    match clusters.len() {
        1 => (mean(values), standard_error(values)),
        _ => (mean(&clusters), standard_error(&clusters)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_report::quantile;

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-12 * expected.abs(),
            "{found:e} where {expected:e} is expected"
        );
    }

    #[test]
    fn mcnemar_equals_sums_of_exact_integers() {
        // 2 · Σ C(n, k) / 2ⁿ for k ≤ min(gained, lost), in Python's integers.
        assert_eq!(mcnemar_p(0, 0), 1.0);
        assert_eq!(mcnemar_p(3, 3), 1.0);
        close(mcnemar_p(0, 5), 0.0625);
        close(mcnemar_p(9, 1), 0.021484375);
        close(mcnemar_p(40, 60), 0.05688793364098079);
        close(mcnemar_p(700, 900), 6.319484959450139e-07);
    }

    #[test]
    fn quantiles_lie_on_the_line_between_neighbours() {
        let sorted = [0.5, 1.0, 4.0, 10.0, 11.0];
        assert_eq!(quantile(&sorted, 0.0), 0.5);
        assert_eq!(quantile(&sorted, 0.5), 4.0);
        assert_eq!(quantile(&sorted, 1.0), 11.0);
        // numpy.quantile(sorted, .9) and .99
        close(quantile(&sorted, 0.9), 10.6);
        close(quantile(&sorted, 0.99), 10.96);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn standard_errors_need_two_values() {
        close(standard_error(&[2.0, 4.0, 4.0, 6.0]), (8.0f64 / 3.0 / 4.0).sqrt());
        assert!(standard_error(&[2.0]).is_nan());
        assert!(mean(&[]).is_nan());
    }

    #[test]
    fn values_of_one_window_count_as_one_sample() {
        // Two windows whose tokens all agree: ten tokens say no more than two.
        let values = [[1.0; 5], [3.0; 5]].concat();
        assert_eq!(clustered_mean(&values, 5), (2.0, 1.0));
        let (_, alone) = clustered_mean(&values, 10);
        close(alone, (10.0f64 / 9.0 / 10.0).sqrt());
    }
}
