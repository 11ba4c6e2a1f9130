//! The factor of a Hessian's inverse that GPTQ and its kin solve with, and the damping that it took.

use crate::{Error, Hessian, cholesky, square};

/// The first damping tried after zero.
const LEAST_DAMPING: f32 = 1e-6;
/// The last: the mean diagonal is added to every diagonal.
const MOST_DAMPING: f32 = 1.0;

/// `U`, upper triangular, with `(H + damping · mean diagonal · I)⁻¹ = UᵀU`.
///
/// One square holds `U` on and above its diagonal and `H`, undamped, below it; `H`'s diagonal is kept beside. Rows and
/// columns of all of them stand in the order that was asked for.
#[derive(Debug, Clone)]
pub struct Factor {
    in_features: usize,
    tokens: u64,
    square: Vec<f32>,
    diagonal: Vec<f32>,
    damping: f32,
    added: f32,
    attempts: u32,
    dead: Vec<usize>,
    order: Option<Vec<usize>>,
}

impl Hessian {
    /// The factor of the inverse, in the Hessian's own memory.
    ///
    /// `damping`, a fraction of the mean diagonal, is added to the diagonal. 0.01 is what most tools have; with the few
    /// tokens for each input feature that calibration mostly has 0.3 to 1 serve better (figures in bitmill-quant's `gptq`). Where that leaves no positive definite
    /// matrix it is tried again with ten times as much, at least 10⁻⁶ and at last 1. Input features that no token had
    /// ("dead": a diagonal of zero) count in no mean and are tied to no other. `order[i]` is the input feature that
    /// comes `i`th.
    ///
    /// ```
    /// use bitmill_stats::Hessian;
    /// // [4 2; 2 5]: its inverse is [5 −2; −2 4] / 16.
    /// let factor = Hessian::from_lower(2, 1, vec![4.0, 0.0, 2.0, 5.0]).factor(0.0, None)?;
    /// let (a, b, d) = (factor.row(0)[0], factor.row(0)[1], factor.row(1)[0]);
    /// assert!((a * a - 5.0 / 16.0).abs() < 1e-6);
    /// assert!((a * b + 2.0 / 16.0).abs() < 1e-6);
    /// assert!((b * b + d * d - 4.0 / 16.0).abs() < 1e-6);
    /// assert_eq!((factor.damping(), factor.attempts()), (0.0, 1));
    /// # Ok::<(), bitmill_stats::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`NotFinite`](Error::NotFinite) if a sum is NaN or infinite,
    /// [`NotPositiveDefinite`](Error::NotPositiveDefinite) if even a damping of 1 is too little,
    /// [`BadDamping`](Error::BadDamping) if `damping` is negative or not finite.
    ///
    /// # Panics
    /// If `order` is not a permutation of the input features.
    pub fn factor(mut self, damping: f32, order: Option<&[usize]>) -> Result<Factor, Error> {
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(Error::BadDamping { damping });
        }
        let n = self.in_features();
        if let Some(order) = order {
            assert!(is_permutation(order, n), "an order of {n} input features");
        }
        if let Some(column) = first_not_finite(&self.square, n) {
            return Err(Error::NotFinite { column });
        }
        let dead = self.clear_dead();
        if let Some(order) = order {
            self.mirror();
            square::reorder(&mut self.square, n, order);
        }

        let diagonal = self.diagonal();
        let live = n - dead.len();
        let mean = match diagonal.iter().map(|value| f64::from(*value)).sum::<f64>() / live.max(1) as f64 {
            0.0 => 1.0,
            mean => mean,
        };
        let mut square = std::mem::take(&mut self.square);
        let (mut damping, mut attempts) = (damping, 1);
        loop {
            square::mirror_lower(&mut square, n);
            let added = (f64::from(damping) * mean) as f32;
            let mut floor = vec![0.0; n];
            for (at, (&value, floor)) in diagonal.iter().zip(&mut floor).enumerate() {
                // Dead features are tied to nothing: any diagonal does.
                let damped = if value == 0.0 { mean as f32 + added } else { value + added };
                square[at * n + at] = damped;
                // What is left of a diagonal by rounding alone is no pivot.
                *floor = f32::EPSILON * damped;
            }
            let factored = cholesky::inverse_factor(&mut square, n, &floor);
            match factored.and_then(|()| first_not_finite_above(&square, n).map_or(Ok(()), Err)) {
                Ok(()) => {
                    let (tokens, order) = (self.tokens(), order.map(<[usize]>::to_vec));
                    return Ok(Factor {
                        in_features: n,
                        tokens,
                        square,
                        diagonal,
                        damping,
                        added,
                        attempts,
                        dead,
                        order,
                    });
                }
                Err(at) if damping >= MOST_DAMPING => {
                    let column = order.map_or(at, |order| order[at]);
                    return Err(Error::NotPositiveDefinite { column, damping });
                }
                Err(_) => {
                    damping = (10.0 * damping).clamp(LEAST_DAMPING, MOST_DAMPING);
                    attempts += 1;
                }
            }
        }
    }

    /// The features whose diagonal is zero, untied from all others: products too small for an f32 may have left a
    /// diagonal of zero in a row that is not.
    fn clear_dead(&mut self) -> Vec<usize> {
        let n = self.in_features();
        let diagonal = self.diagonal();
        let dead: Vec<usize> = (0..n).filter(|&column| diagonal[column] == 0.0).collect();
        if !dead.is_empty() {
            for (row, values) in self.square.chunks_exact_mut(n).enumerate() {
                if diagonal[row] == 0.0 {
                    values[..=row].fill(0.0);
                }
                for &column in dead.iter().take_while(|&&column| column < row) {
                    values[column] = 0.0;
                }
            }
        }
        dead
    }
}

impl Factor {
    /// Its width and height.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// How many tokens the Hessian is the mean of.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The square, row major: element `i * in_features + j` is `U[i, j]` for `j >= i`, and the Hessian's (not damped)
    /// for `j < i`.
    pub fn as_slice(&self) -> &[f32] {
        &self.square
    }

    /// Row `i` of `U` from its diagonal on: `U[i, i..]`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.square[i * self.in_features + i..(i + 1) * self.in_features]
    }

    /// Row `i` of the Hessian, not damped, up to its diagonal and without it: `H[i, ..i]`.
    pub fn hessian_row(&self, i: usize) -> &[f32] {
        &self.square[i * self.in_features..][..i]
    }

    /// The Hessian's diagonal, not damped.
    pub fn hessian_diagonal(&self) -> &[f32] {
        &self.diagonal
    }

    /// The fraction of the mean diagonal that was added.
    pub fn damping(&self) -> f32 {
        self.damping
    }

    /// What was added to each diagonal.
    pub fn added(&self) -> f32 {
        self.added
    }

    /// How many dampings were tried; more than one is worth telling.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The input features that no token had, ascending, as they are numbered in the layer.
    pub fn dead(&self) -> &[usize] {
        &self.dead
    }

    /// Which input feature of the layer comes where, if not in their own order.
    pub fn order(&self) -> Option<&[usize]> {
        self.order.as_deref()
    }
}

fn is_permutation(order: &[usize], n: usize) -> bool {
    let mut seen = vec![false; n];
    order.len() == n && order.iter().all(|&at| at < n && !std::mem::replace(&mut seen[at], true))
}

/// The first row with an infinity or NaN on the diagonal or after it: pivots so small that their inverses overflow.
fn first_not_finite_above(square: &[f32], n: usize) -> Option<usize> {
    let mut rows = square.chunks_exact(n.max(1)).enumerate();
    rows.find(|(row, values)| values[*row..].iter().any(|value| !value.is_finite())).map(|(row, _)| row)
}

/// The first column whose lower triangle has a NaN or an infinity; of a column with both, its diagonal tells.
fn first_not_finite(square: &[f32], n: usize) -> Option<usize> {
    let rows = square.chunks_exact(n.max(1)).enumerate();
    // A product is at most as large as the larger of its two squares: the diagonal names the feature.
    let on_diagonal = rows.clone().find(|(row, values)| !values[*row].is_finite()).map(|(row, _)| row);
    on_diagonal.or_else(|| {
        rows.filter_map(|(row, values)| values[..row].iter().position(|value| !value.is_finite())).min()
    })
}
