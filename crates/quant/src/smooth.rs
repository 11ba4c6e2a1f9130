//! SmoothQuant: outliers of activations moved into weights, so that both fit eight bits.
//!
//! arXiv:2211.10438: input feature `j` is divided by `s_j = max|x_j|^α / max|w_j|^(1−α)` and its column multiplied, `max|w_j|`
//! over all matrices that read the feature. [`fold`](crate::fold) carries the scales into the norm before them.

use crate::Error;

/// The scale of each input feature.
///
/// A feature that is always 0, or that no matrix reads, keeps a scale of 1; others are held between 1e-5 and 1e5, as the authors' code
/// holds them from below.
///
/// ```
/// use bitmill_quant::smooth;
/// // One feature a hundred times the other: α = 0.5 gives either side the same range.
/// let scales = smooth::scales(&[100.0, 1.0], &[&[1.0, -1.0, 0.5, 0.25]], 0.5)?;
/// assert_eq!(scales, [10.0, 1.0]);
/// # Ok::<(), bitmill_quant::Error>(())
/// ```
///
/// # Shapes
/// `max_abs`: `[in_features]`, the largest `|x|`. `matrices`: `[out_features, in_features]` each.
///
/// # Errors
/// [`BadActivation`](Error::BadActivation) if a largest `|x|` is negative, infinite or NaN;
/// [`NonFinite`](Error::NonFinite) if a weight is.
///
/// # Panics
/// If a matrix is not whole rows, or `alpha` not within 0 and 1.
pub fn scales(max_abs: &[f32], matrices: &[&[f32]], alpha: f32) -> Result<Vec<f32>, Error> {
    assert!((0.0..=1.0).contains(&alpha), "an alpha of {alpha}");
    check_activations(max_abs)?;
    let in_features = max_abs.len();
    let mut largest = vec![0f32; in_features];
    for weight in matrices {
        check_weights(weight, in_features)?;
        for row in weight.chunks_exact(in_features.max(1)) {
            for (largest, weight) in largest.iter_mut().zip(row) {
                *largest = largest.max(weight.abs());
            }
        }
    }
    let scale = |(x, w): (&f32, &f32)| {
        if *x == 0.0 || *w == 0.0 {
            return 1.0;
        }
        let scale =
            f64::from(*x).powf(f64::from(alpha)) / f64::from(w.max(LEAST)).powf(1.0 - f64::from(alpha));
        (scale as f32).clamp(LEAST, 1.0 / LEAST)
    };
    Ok(max_abs.iter().zip(&largest).map(scale).collect())
}

/// The smallest scale, and the smallest range of a column that is taken at its word.
const LEAST: f32 = 1e-5;

/// Means or maxima of `|x|` must be numbers from 0.
pub(crate) fn check_activations(values: &[f32]) -> Result<(), Error> {
    match values.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
        Some(col) => Err(Error::BadActivation { col, value: values[col] }),
        None => Ok(()),
    }
}

/// Whole rows of finite weights.
pub(crate) fn check_weights(weight: &[f32], in_features: usize) -> Result<(), Error> {
    assert!(
        in_features > 0 && weight.len().is_multiple_of(in_features) || weight.is_empty(),
        "{} weights are not rows of {in_features}",
        weight.len()
    );
    match crate::first_non_finite(weight) {
        Some(index) => {
            let (row, col) = (index / in_features, index % in_features);
            Err(Error::NonFinite { row, col, value: weight[index] })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_moves_all_or_nothing() {
        let weight = [0.5, -4.0, 0.25, 2.0];
        // 1: every feature is divided by its own largest. 0: every column is.
        assert_eq!(scales(&[8.0, 2.0], &[&weight], 1.0).unwrap(), [8.0, 2.0]);
        assert_eq!(scales(&[8.0, 2.0], &[&weight], 0.0).unwrap(), [2.0, 0.25]);
    }

    #[test]
    fn at_a_half_features_and_columns_have_one_range() {
        let (max_abs, first, second) = ([7.0, 0.3, 40.0], [0.1, -0.2, 0.3], [0.4, 0.1, -0.6]);
        let scales = scales(&max_abs, &[&first, &second], 0.5).unwrap();
        for col in 0..3 {
            let column = first[col].abs().max(second[col].abs()) * scales[col];
            assert!((max_abs[col] / scales[col] - column).abs() < 1e-5, "{col}");
        }
    }

    #[test]
    fn hostile_statistics_stay_finite_or_are_named() {
        let weight = [0.0, 1e-38, 1e30, 0.5];
        let scales = scales(&[1.0, 1e38, 1e-38, 0.0], &[&weight], 0.5).unwrap();
        assert!(scales.iter().all(|scale| scale.is_finite() && *scale > 0.0), "{scales:?}");
        assert_eq!((scales[0], scales[3]), (1.0, 1.0));
        for value in [f32::NAN, f32::INFINITY, -1.0] {
            let error = super::scales(&[1.0, value], &[&[1.0, 1.0]], 0.5).unwrap_err();
            assert!(matches!(error, Error::BadActivation { col: 1, .. }), "{error}");
        }
        let error = super::scales(&[1.0, 1.0], &[&[1.0, 1.0, f32::NAN, 1.0]], 0.5).unwrap_err();
        assert!(matches!(error, Error::NonFinite { row: 1, col: 0, .. }));
        assert!(super::scales(&[], &[], 0.5).unwrap().is_empty());
    }
}
