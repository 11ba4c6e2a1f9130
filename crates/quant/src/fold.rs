//! Scales of input features folded into what makes those features: AWQ and SmoothQuant multiply a matrix's columns and
//! divide the norm's weight, or the rows of the matrix, before it. No output of the model changes but by rounding.

use bitmill_tensor::FloatType;

/// Divides the weight of a norm by `scales` and rounds it to the type that it is stored in. `scales` become what the
/// stored weight was divided by, so that multiplying columns with them undoes the division exactly.
///
/// A feature that the norm silences, whose quotient overflows the type, or whose quotient is 0 there, is left with a scale of 1.
///
/// ```
/// use bitmill_quant::fold;
/// use bitmill_tensor::FloatType;
/// let (mut norm, mut scales) = ([1.0, 0.0, 0.75], [3.0, 3.0, 0.5]);
/// fold::into_norm(&mut norm, &mut scales, FloatType::BF16);
/// assert_eq!(norm, [0.33398438, 0.0, 1.5]); // 1/3 as bf16
/// assert_eq!(scales, [1.0 / 0.33398438, 1.0, 0.5]);
/// ```
///
/// # Panics
/// If there are not as many scales as weights.
pub fn into_norm(norm: &mut [f32], scales: &mut [f32], stored: FloatType) {
    assert_eq!(norm.len(), scales.len(), "a scale for each feature of the norm");
    for (weight, scale) in norm.iter_mut().zip(scales) {
        let divided = stored.round(*weight / *scale);
        let exact = *weight / divided;
        if divided != 0.0 && divided.is_finite() && exact.is_finite() && exact > 0.0 {
            (*weight, *scale) = (divided, exact);
        } else {
            *scale = 1.0;
        }
    }
}

/// Divides each row of `weight` by its scale: of the matrix, or (rows of one element) the bias, whose outputs are the features.
///
/// # Panics
/// If `weight` is not as many rows as there are scales.
pub fn divide_rows(weight: &mut [f32], scales: &[f32]) {
    if scales.is_empty() {
        return;
    }
    assert!(weight.len().is_multiple_of(scales.len()), "{} weights in {} rows", weight.len(), scales.len());
    for (row, scale) in weight.chunks_exact_mut((weight.len() / scales.len()).max(1)).zip(scales) {
        row.iter_mut().for_each(|weight| *weight /= scale);
    }
}

/// Multiplies each column of `weight`, `[rows, in_features]`, with its scale.
///
/// ```
/// use bitmill_quant::fold;
/// let (mut before, mut after) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]);
/// fold::divide_rows(&mut before, &[2.0, 4.0]);
/// fold::multiply_columns(&mut after, &[2.0, 4.0]);
/// assert_eq!((before, after), ([0.5, 1.0, 0.75, 1.0], [10.0, 24.0]));
/// ```
///
/// # Panics
/// If `weight` is not whole rows.
pub fn multiply_columns(weight: &mut [f32], scales: &[f32]) {
    if scales.is_empty() {
        return;
    }
    assert!(
        weight.len().is_multiple_of(scales.len()),
        "{} weights in rows of {}",
        weight.len(),
        scales.len()
    );
    for row in weight.chunks_exact_mut(scales.len()) {
        row.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
    }
}

/// Which of its makers' outputs each input feature is, where several features are one: under grouped-query attention each row
/// of v feeds a head of every query that shares it, and what scales the row scales all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// For each input feature, the output that it is.
    pub source: Vec<u32>,
    /// Outputs there are.
    pub sources: usize,
}

impl Sharing {
    /// The inputs of the output projection of attention, which are rows of v.
    ///
    /// ```
    /// use bitmill_quant::fold::Sharing;
    /// let sharing = Sharing::of_heads(4, 2, 3); // 4 heads of q, 2 of v, 3 wide
    /// assert_eq!(sharing.source, [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]);
    /// assert_eq!(sharing.mean(&[1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0]), [2.0, 2.0, 2.0, 0.0, 0.0, 4.0]);
    /// assert_eq!(sharing.spread(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[9..], [4.0, 5.0, 6.0]);
    /// ```
    ///
    /// # Panics
    /// If `n_kv_heads` does not divide `n_heads`.
    pub fn of_heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads to {n_kv_heads}");
        let shared_by = n_heads / n_kv_heads;
        let source = |feature: usize| (feature / head_dim / shared_by * head_dim + feature % head_dim) as u32;
        Self { source: (0..n_heads * head_dim).map(source).collect(), sources: n_kv_heads * head_dim }
    }

    /// The mean of each output's features.
    ///
    /// # Panics
    /// If there is not a value for each feature.
    pub fn mean(&self, values: &[f32]) -> Vec<f32> {
        assert_eq!(values.len(), self.source.len(), "a value for each feature");
        let mut sums = vec![(0f64, 0u32); self.sources];
        for (value, source) in values.iter().zip(&self.source) {
            let sum = &mut sums[*source as usize];
            *sum = (sum.0 + f64::from(*value), sum.1 + 1);
        }
        sums.into_iter().map(|(sum, count)| (sum / f64::from(count.max(1))) as f32).collect()
    }

    /// The largest of each output's features, NaN if one of them is.
    ///
    /// # Panics
    /// If there is not a value for each feature.
    pub fn largest(&self, values: &[f32]) -> Vec<f32> {
        assert_eq!(values.len(), self.source.len(), "a value for each feature");
        let mut most = vec![f32::NEG_INFINITY; self.sources];
        for (value, source) in values.iter().zip(&self.source) {
            let most = &mut most[*source as usize];
            if *value > *most || value.is_nan() {
                *most = *value;
            }
        }
        most
    }

    /// Each feature's value of its output.
    ///
    /// # Panics
    /// If there is not a value for each output.
    pub fn spread(&self, values: &[f32]) -> Vec<f32> {
        assert_eq!(values.len(), self.sources, "a value for each output");
        self.source.iter().map(|source| values[*source as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_takes_what_it_can_store() {
        let mut norm = [1.0, 1.0, 1e-38, -2.0, 1.0, 1.0];
        let before = norm;
        let mut scales = [1e-5, 1e6, 1e20, 0.7, f32::INFINITY, f32::NAN];
        into_norm(&mut norm, &mut scales, FloatType::F16);
        assert_eq!(
            (scales[0], scales[2], scales[4], scales[5]),
            (1.0, 1.0, 1.0, 1.0),
            "nothing else is finite in f16"
        );
        for ((after, before), scale) in norm.iter().zip(before).zip(scales) {
            assert!(
                (after * scale - before).abs() <= f32::EPSILON * before.abs(),
                "{after} {scale} {before}"
            );
        }
    }

    #[test]
    fn folding_changes_no_output() {
        let (hidden, width) = (3, 4);
        let value = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0;
        let before: Vec<f32> = (0..width * hidden).map(value).collect();
        let after: Vec<f32> = (0..2 * width).map(|i| value(i + 5)).collect();
        let x: Vec<f32> = (0..hidden).map(|i| value(i + 1)).collect();
        let times = |weight: &[f32], x: &[f32]| -> Vec<f32> {
            weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let expected = times(&after, &times(&before, &x));
        let (mut divided, mut multiplied) = (before, after);
        // Powers of two are exact.
        let scales = [0.5, 8.0, 1.0, 0.25];
        divide_rows(&mut divided, &scales);
        multiply_columns(&mut multiplied, &scales);
        assert_eq!(times(&multiplied, &times(&divided, &x)), expected);
    }

    #[test]
    fn heads_that_are_not_shared_are_their_own() {
        let sharing = Sharing::of_heads(3, 3, 2);
        assert_eq!(sharing.source, [0, 1, 2, 3, 4, 5]);
        assert!(Sharing::of_heads(2, 1, 1).largest(&[1.0, f32::NAN])[0].is_nan());
        assert_eq!(Sharing::of_heads(2, 1, 1).largest(&[1.0, 3.0]), [3.0]);
    }
}
