//! Whole layers go: those whose output is most like their input.
//!
//! Block influence of ShortGPT (arXiv:2403.03853, equation 1): `1 −` the mean over calibration tokens of the cosine
//! between what enters a layer and what leaves it, residual stream included. All layers are measured in one run of the
//! dense model, and the ones of least influence go together, as in the paper; nothing is measured again in between.
//!
//! The first and the last layer are not spared: they are usually those of most influence, and where one is among the
//! least it goes like any other. The plan and the record show every layer's figure.

use bitmill_tensor::Matrix;

/// Adds up, layer by layer, how far tokens turn.
///
/// ```
/// use bitmill_prune::BlockInfluence;
/// use bitmill_tensor::Matrix;
/// let mut influence = BlockInfluence::new(2);
/// let x = Matrix::from_vec(2, 2, vec![1.0, 0.0, 0.0, 3.0]);
/// influence.add(0, &x, &Matrix::from_vec(2, 2, vec![2.0, 0.0, 0.0, 1.0])); // longer, shorter, not turned
/// influence.add(1, &x, &Matrix::from_vec(2, 2, vec![0.0, 5.0, 0.0, -1.0])); // by 90 and by 180 degrees
/// assert_eq!(influence.finish(), [0.0, 1.5]);
/// ```
#[derive(Debug, Clone)]
pub struct BlockInfluence {
    /// Σ (1 − cosine) and tokens, for each layer.
    layers: Vec<(f64, u64)>,
}

impl BlockInfluence {
    /// Of a model with `n_layers`.
    pub fn new(n_layers: usize) -> Self {
        Self { layers: vec![(0.0, 0); n_layers] }
    }

    /// Adds what entered layer `layer` and what left it. A token whose state is zero on either side counts as turned by
    /// 90 degrees. Sums are taken in f64, tokens in order.
    ///
    /// # Shapes
    /// `input`, `output`: `[tokens, hidden]`.
    ///
    /// # Panics
    /// If the shapes differ, or there is no such layer.
    pub fn add(&mut self, layer: usize, input: &Matrix, output: &Matrix) {
        assert_eq!((input.rows(), input.cols()), (output.rows(), output.cols()), "states of a layer");
        let (sum, tokens) = &mut self.layers[layer];
        for token in 0..input.rows() {
            *sum += 1.0 - cosine(input.row(token), output.row(token));
            *tokens += 1;
        }
    }

    /// Each layer's influence, 0..=2; 1 for a layer that saw no token.
    pub fn finish(self) -> Vec<f64> {
        let mean = |(sum, tokens)| if tokens == 0 { 1.0 } else { sum / tokens as f64 };
        self.layers.into_iter().map(mean).collect()
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut dot, mut a_squared, mut b_squared) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        dot += a * b;
        a_squared += a * a;
        b_squared += b * b;
    }
    let norms = (a_squared * b_squared).sqrt();
    if norms > 0.0 { (dot / norms).clamp(-1.0, 1.0) } else { 0.0 }
}

/// The `n` layers of least influence, in the order of the model; of equal ones those nearer to the input. All of them
/// if there are no more.
///
/// ```
/// use bitmill_prune::least_influential;
/// assert_eq!(least_influential(&[0.4, 0.1, 0.2, 0.1, 0.9], 3), [1, 2, 3]);
/// ```
pub fn least_influential(influence: &[f64], n: usize) -> Vec<usize> {
    let mut layers: Vec<usize> = (0..influence.len()).collect();
    layers.sort_by(|&a, &b| influence[a].total_cmp(&influence[b]));
    layers.truncate(n);
    layers.sort_unstable();
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_changes_nothing_has_no_influence_and_goes_first() {
        let x = Matrix::from_vec(3, 4, (0..12).map(|i| (i as f32 - 5.5).sin()).collect());
        let turned = Matrix::from_vec(3, 4, x.as_slice().iter().map(|v| v + 0.3).collect());
        let mut influence = BlockInfluence::new(4);
        influence.add(0, &x, &turned);
        influence.add(1, &x, &x);
        influence.add(2, &x, &turned);
        influence.add(3, &turned, &x);
        let influence = influence.finish();
        assert_eq!(influence[1], 0.0);
        assert_eq!(influence[0], influence[2]);
        assert_eq!(influence[0], influence[3], "the angle has no direction");
        assert_eq!(least_influential(&influence, 1), [1]);
        assert_eq!(least_influential(&influence, 2), [0, 1], "of equal ones the first");
        assert_eq!(least_influential(&influence, 9), [0, 1, 2, 3]);
        assert!(least_influential(&influence, 0).is_empty());
    }

    #[test]
    fn tokens_may_come_in_any_batches() {
        let x = Matrix::from_vec(4, 3, (0..12).map(|i| (i as f32).cos()).collect());
        let y = Matrix::from_vec(4, 3, (0..12).map(|i| (i as f32 * 1.7).cos()).collect());
        let part = |m: &Matrix, rows: std::ops::Range<usize>| {
            Matrix::from_vec(rows.len(), 3, m.as_slice()[3 * rows.start..3 * rows.end].to_vec())
        };
        let mut whole = BlockInfluence::new(1);
        whole.add(0, &x, &y);
        let mut parts = BlockInfluence::new(1);
        parts.add(0, &part(&x, 0..1), &part(&y, 0..1));
        parts.add(0, &part(&x, 1..4), &part(&y, 1..4));
        assert_eq!(whole.finish(), parts.finish());
    }

    #[test]
    fn states_of_zero_count_as_turned_and_layers_without_tokens_as_whole() {
        let zero = Matrix::zeros(1, 2);
        let mut influence = BlockInfluence::new(2);
        influence.add(0, &zero, &Matrix::from_vec(1, 2, vec![1.0, 2.0]));
        assert_eq!(influence.finish(), [1.0, 1.0]);
    }
}
