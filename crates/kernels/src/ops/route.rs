//! Which experts each token goes through, and how much each of them counts.

use bitmill_tensor::Matrix;

use super::softmax::softmax_row;
use crate::Isa;

/// The experts that a router chose for each token of a batch, listed expert by expert; filled by
/// [`Compute::route`](crate::Compute::route).
#[derive(Debug, Default, Clone)]
pub struct Routes {
    /// Where each expert's tokens begin in the lists below, then their length.
    starts: Vec<usize>,
    tokens: Vec<usize>,
    shares: Vec<f32>,
    /// `[tokens, used]`: what was chosen, token by token.
    chosen: Vec<(usize, f32)>,
    probabilities: Vec<f32>,
    next: Vec<usize>,
}

impl Routes {
    /// The rows of the tokens that go through `expert`, in their order.
    pub fn tokens(&self, expert: usize) -> &[usize] {
        &self.tokens[self.starts[expert]..self.starts[expert + 1]]
    }

    /// What the results of [`tokens`](Self::tokens) are multiplied by.
    pub fn shares(&self, expert: usize) -> &[f32] {
        &self.shares[self.starts[expert]..self.starts[expert + 1]]
    }

    /// See [`Compute::route`](crate::Compute::route).
    pub(crate) fn fill(&mut self, isa: Isa, logits: &Matrix, used: usize, normalised: bool) {
        let Self { starts, tokens, shares, chosen, probabilities, next } = self;
        let n_experts = logits.cols();
        chosen.clear();
        for row in 0..logits.rows() {
            probabilities.clear();
            probabilities.extend_from_slice(logits.row(row));
            softmax_row(isa, probabilities);
            let first = chosen.len();
            chosen.extend(std::iter::repeat_with(|| take_largest(probabilities)).take(used));
            if normalised {
                let total: f32 = chosen[first..].iter().map(|(_, share)| share).sum();
                chosen[first..].iter_mut().for_each(|(_, share)| *share /= total);
            }
        }
        starts.clear();
        starts.resize(n_experts + 1, 0);
        for (expert, _) in &*chosen {
            starts[expert + 1] += 1;
        }
        for expert in 0..n_experts {
            starts[expert + 1] += starts[expert];
        }
        next.clone_from(starts);
        tokens.resize(chosen.len(), 0);
        shares.resize(chosen.len(), 0.0);
        for (at, &(expert, share)) in chosen.iter().enumerate() {
            (tokens[next[expert]], shares[next[expert]]) = (at / used, share);
            next[expert] += 1;
        }
    }
}

/// The column and value of the largest probability left, the first of equals, which is then taken out.
fn take_largest(probabilities: &mut [f32]) -> (usize, f32) {
    const TAKEN: f32 = f32::NEG_INFINITY;
    let mut best = None;
    for (column, &value) in probabilities.iter().enumerate() {
        // A NaN is chosen last, and then comes out at the end.
        if value != TAKEN && best.is_none_or(|(_, most): (usize, f32)| value > most || most.is_nan()) {
            best = Some((column, value));
        }
    }
    let best = best.expect("fewer are used than there are");
    probabilities[best.0] = TAKEN;
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(logits: &[&[f32]], used: usize, normalised: bool) -> Routes {
        let cols = logits[0].len();
        let logits = Matrix::from_vec(logits.len(), cols, logits.concat());
        let mut routes = Routes::default();
        // What an earlier batch left must not show.
        routes.fill(Isa::scalar(), &Matrix::zeros(9, cols), used, false);
        for isa in Isa::available() {
            let mut other = Routes::default();
            other.fill(isa, &logits, used, normalised);
            routes.fill(Isa::scalar(), &logits, used, normalised);
            assert_eq!(other.shares, routes.shares, "{isa}");
        }
        routes
    }

    #[test]
    fn tokens_are_listed_under_the_experts_they_go_through() {
        let (low, mid, high) = (0.0, 2f32.ln(), 5f32.ln());
        let routes = routes(&[&[low, high, mid], &[high, mid, low], &[mid, high, low]], 2, false);
        let listed: Vec<&[usize]> = (0..3).map(|expert| routes.tokens(expert)).collect();
        assert_eq!(listed, [&[1, 2][..], &[0, 1, 2], &[0]]);
        let near = |found: &[f32], expected: &[f32]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
        };
        near(routes.shares(0), &[0.625, 0.25]);
        near(routes.shares(1), &[0.625, 0.25, 0.625]);
        near(routes.shares(2), &[0.25]);
    }

    #[test]
    fn normalised_shares_sum_to_one_and_all_experts_used_are_a_softmax() {
        let logits: &[f32] = &[0.3, -1.0, 2.0, 0.9];
        let two = routes(&[logits], 2, true);
        assert_eq!((two.tokens(0).len(), two.tokens(1).len()), (0, 0));
        assert!((two.shares(2)[0] + two.shares(3)[0] - 1.0).abs() < 1e-6);
        assert!((two.shares(2)[0] / two.shares(3)[0] - 1.1f32.exp()).abs() < 1e-5);
        let all = routes(&[logits], 4, false);
        let total: f32 = logits.iter().map(|x| x.exp()).sum();
        for (expert, logit) in logits.iter().enumerate() {
            assert!((all.shares(expert)[0] - logit.exp() / total).abs() < 1e-6);
        }
    }

    #[test]
    fn the_first_of_equals_is_chosen_and_nan_is_no_panic() {
        let equal = routes(&[&[1.0; 4]], 2, false);
        assert_eq!([0, 1, 2, 3].map(|expert| equal.tokens(expert).len()), [1, 1, 0, 0]);
        let nan = routes_of_nan();
        assert_eq!((0..3).map(|expert| nan.tokens(expert).len()).sum::<usize>(), 2);
        assert!((0..3).all(|expert| nan.shares(expert).iter().all(|share| share.is_nan())));
    }

    fn routes_of_nan() -> Routes {
        let mut routes = Routes::default();
        routes.fill(Isa::best(), &Matrix::from_vec(1, 3, vec![1.0, f32::NAN, 0.0]), 2, false);
        routes
    }
}
