//! A distribution over the vocabulary in a few dozen bytes, from which a divergence can still be told.
//!
//! Of the dense distribution `p` the largest tokens are kept for certain, with the mass of all others, the rest; and of
//! the rest a sample drawn in proportion to `p`, equally spaced over its mass (systematic sampling). By the chain rule
//!
//! ```text
//! KL(p‖q) = Σ_kept p·φ(q/p) + P·φ(Q/P) + P·mean_sample φ((q/Q) ÷ (p/P)),    φ(r) = r − 1 − ln r
//! ```
//!
//! with `P` and `Q` the rest's mass in both. The first two terms, all that top-k and a rest's mass could say, are too small
//! by the third, whose estimate is unbiased; `q` is known in full when the question is asked, so nothing else is estimated.
//! How many tokens are kept, and how many drawn, follows from the distribution: those are kept that the sample would hold anyway.
//!
//! Log-probabilities are stored in steps of 2⁻¹² nats down to −8, of 2⁻¹⁰ down to −40. An error δ of one adds δ²/2 times its
//! mass to the divergence, about 10⁻⁸ nats in all: [`Sketch::divergence`] of `p` itself is that floor.

/// Codes up to here are steps of 2⁻¹² nats; the others, of 2⁻¹⁰.
const FINE: u16 = 1 << 15;
/// The rest is empty.
const NO_REST: u16 = u16::MAX;
/// Tokens of a sketch that are drawn from the rest, at least.
const LEAST_DRAWN: usize = 2;

/// One position's distribution. The first entry is the likeliest token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sketch {
    /// How many of the entries, from the first on, were kept for certain; the others were drawn.
    pub kept: u16,
    /// The rest's mass, as a code.
    pub rest: u16,
    /// Tokens and their log-probabilities, as codes.
    pub entries: Vec<(u32, u16)>,
}

/// What a sketch says of a divergence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// Nats.
    pub divergence: f64,
    /// Variance of that by the sampling alone.
    pub variance: f64,
}

impl Sketch {
    /// Of the distribution with these logits, in at most `entries` entries; `draw` in 0..1 chooses the sample.
    pub fn new(logits: &[f32], entries: usize, draw: f64) -> Self {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let from_top = |logit: f32| f64::from(logit) - f64::from(top);
        let total: f64 = logits.iter().map(|&logit| from_top(logit).exp()).sum();
        let log_total = total.ln();
        let code_of = |token: u32| code(log_total - from_top(logits[token as usize]));

        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let larger = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if entries < order.len() {
            order.select_nth_unstable_by(entries, larger);
            order[..entries].sort_unstable_by(larger);
        } else {
            order.sort_unstable_by(larger);
            let entries = order.iter().map(|&token| (token, code_of(token))).collect();
            return Self { kept: logits.len() as u16, rest: NO_REST, entries };
        }
        // One after the other is kept while its share of the rest is more than a draw's.
        let p = |token: u32| from_top(logits[token as usize]).exp() / total;
        let mut after: Vec<f64> = vec![0.0; entries + 1];
        after[entries] = order[entries..].iter().map(|&token| p(token)).sum();
        for place in (0..entries).rev() {
            after[place] = after[place + 1] + p(order[place]);
        }
        let most = entries.saturating_sub(LEAST_DRAWN).max(1);
        let kept =
            (1..most).find(|&kept| p(order[kept]) * (entries - kept) as f64 <= after[kept]).unwrap_or(most);
        let mut chosen: Vec<(u32, u16)> =
            order[..kept].iter().map(|&token| (token, code_of(token))).collect();
        // The rest in the order of the vocabulary, so that the sample does not depend on how equals were sorted.
        order[kept..].sort_unstable();
        let (drawn, rest) = (entries - kept, after[kept]);
        let mut passed = 0.0;
        let mut tokens = order[kept..].iter().copied().filter(|&token| p(token) > 0.0).peekable();
        for n in 0..drawn {
            let at = (n as f64 + draw) / drawn as f64 * rest;
            while let Some(&token) = tokens.peek() {
                if passed + p(token) > at {
                    break;
                }
                // The last one stays for what rounding leaves of the mass.
                passed += p(token);
                let last = token;
                tokens.next();
                if tokens.peek().is_none() {
                    chosen.push((last, code_of(last)));
                }
            }
            if let Some(&token) = tokens.peek() {
                chosen.push((token, code_of(token)));
            }
        }
        let rest = if chosen.len() > kept { code(-rest.ln()).min(NO_REST - 1) } else { NO_REST };
        Self { kept: kept as u16, rest, entries: chosen }
    }

    /// KL of the distribution with these logits from the sketched one; `log_total` is the logarithm of the sum of their
    /// exponentials.
    pub fn divergence(&self, logits: &[f32], log_total: f64) -> Estimate {
        let log_q = |token: u32| f64::from(logits[token as usize]) - log_total;
        let (kept, drawn) = self.entries.split_at(usize::from(self.kept).min(self.entries.len()));
        let rest = if self.rest == NO_REST { 0.0 } else { nats(self.rest).exp() };
        // Codes are rounded, so they do not quite sum to 1.
        let sum: f64 = kept.iter().map(|&(_, code)| nats(code).exp()).sum::<f64>() + rest;
        let log_sum = sum.ln();
        let mut divergence = 0.0;
        let mut q_rest = 1.0;
        for &(token, code) in kept {
            let (log_p, log_q) = (nats(code) - log_sum, log_q(token));
            divergence += log_p.exp() * phi(log_q - log_p);
            q_rest -= log_q.exp();
        }
        if rest == 0.0 {
            return Estimate { divergence, variance: 0.0 };
        }
        // Not below what f32 logits leave of 1 minus the others.
        let (p, log_p, log_q_rest) = (rest / sum, nats(self.rest) - log_sum, q_rest.max(1e-12).ln());
        divergence += p * phi(log_q_rest - log_p);
        let n = drawn.len() as f64;
        let shares: Vec<f64> = drawn
            .iter()
            .map(|&(token, code)| phi((log_q(token) - log_q_rest) - (nats(code) - nats(self.rest))))
            .collect();
        let mean = shares.iter().sum::<f64>() / n.max(1.0);
        let squares: f64 = shares.iter().map(|share| (share - mean) * (share - mean)).sum();
        divergence += p * mean;
        Estimate { divergence, variance: p * p * squares / (n - 1.0).max(1.0) / n.max(1.0) }
    }
}

/// r − 1 − ln r at r = eˣ.
fn phi(x: f64) -> f64 {
    x.exp_m1() - x
}

/// The code of the log-probability `−nats`.
fn code(nats: f64) -> u16 {
    let fine = f64::from(FINE);
    if nats <= 8.0 {
        (nats.max(0.0) * 4096.0).round() as u16
    } else {
        (fine + (nats - 8.0) * 1024.0).round().min(f64::from(NO_REST - 1)) as u16
    }
}

/// The log-probability of a code.
fn nats(code: u16) -> f64 {
    match code.checked_sub(FINE) {
        Some(coarse) => -8.0 - f64::from(coarse) / 1024.0,
        None => -f64::from(code) / 4096.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of a language model's kind: `spread` nats between the likeliest and the usual token.
    fn logits(seed: u64, spread: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut uniform = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u32 << 24) as f32
        };
        (0..2000).map(|_| -spread * (1.0 - uniform().powi(4)) + uniform()).collect()
    }

    fn log_total(logits: &[f32]) -> f64 {
        logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln()
    }

    fn exact(p: &[f32], q: &[f32]) -> f64 {
        let (p_total, q_total) = (log_total(p), log_total(q));
        let terms = p.iter().zip(q).map(|(&p, &q)| {
            let (p, q) = (f64::from(p) - p_total, f64::from(q) - q_total);
            p.exp() * (p - q)
        });
        terms.sum()
    }

    #[test]
    fn codes_are_within_half_a_step() {
        for (value, step) in
            [(0.0, 4096.0), (0.3, 4096.0), (7.99, 4096.0), (8.0, 4096.0), (8.01, 1024.0), (39.0, 1024.0)]
        {
            assert!((nats(code(value)) + value).abs() <= 0.5 / step + 1e-12, "{value}");
        }
        assert!(code(1e9) < NO_REST && code(f64::INFINITY) < NO_REST);
        assert_eq!(nats(FINE), -8.0);
    }

    #[test]
    fn a_whole_distribution_gives_the_exact_divergence() {
        let (p, q) = (logits(1, 8.0), logits(2, 8.0));
        let whole = Sketch::new(&p, 2000, 0.5).divergence(&q, log_total(&q));
        assert!((whole.divergence / exact(&p, &q) - 1.0).abs() < 1e-3);
        assert_eq!(whole.variance, 0.0);
    }

    #[test]
    fn the_estimate_is_right_on_average_where_top_k_is_far_too_small() {
        // Flat and peaked ones; q is p with a little noise, as of a quantized model.
        for spread in [3.0, 8.0, 20.0] {
            let (mut exact_sum, mut sum, mut variance, mut top) = (0.0, 0.0, 0.0, 0.0);
            for row in 0..400 {
                let p = logits(row, spread);
                let q: Vec<f32> =
                    p.iter().zip(logits(row + 10_000, 1.0)).map(|(p, noise)| p + 0.1 * noise).collect();
                let draw = (row as f64 * 0.618_033_988_75).fract();
                let sketch = Sketch::new(&p, 16, draw);
                assert_eq!(sketch.entries.len(), 16);
                let estimate = sketch.divergence(&q, log_total(&q));
                exact_sum += exact(&p, &q);
                sum += estimate.divergence;
                variance += estimate.variance;
                let no_sample =
                    Sketch { entries: sketch.entries[..usize::from(sketch.kept)].to_vec(), ..sketch };
                top += no_sample.divergence(&q, log_total(&q)).divergence;
            }
            let sigmas = (sum - exact_sum).abs() / variance.sqrt();
            assert!(sigmas < 4.0, "spread {spread}: {sum} where {exact_sum} is right: {sigmas} sigma");
            assert!(spread > 10.0 || top < 0.9 * exact_sum, "spread {spread}: {top} of {exact_sum}");
        }
    }

    #[test]
    fn a_distribution_does_not_diverge_from_itself() {
        for spread in [0.0, 3.0, 8.0, 30.0, 80.0] {
            let p = logits(3, spread);
            let estimate = Sketch::new(&p, 16, 0.3).divergence(&p, log_total(&p));
            assert!((0.0..1e-6).contains(&estimate.divergence), "spread {spread}: {estimate:?}");
        }
    }

    #[test]
    fn the_first_entry_is_the_likeliest_token() {
        let mut p = logits(4, 5.0);
        p[77] = 9.0;
        p[99] = 9.0;
        assert_eq!(Sketch::new(&p, 8, 0.9).entries[0].0, 77);
        assert_eq!(Sketch::new(&[1.0, 2.0, 2.0], 8, 0.9).entries[0].0, 1);
        // One token has all the mass that f64 can tell from none.
        let mut sure = vec![-1000.0_f32; 2000];
        sure[5] = 0.0;
        let sketch = Sketch::new(&sure, 8, 0.5);
        assert_eq!((sketch.entries[0].0, sketch.rest), (5, NO_REST));
        assert!(sketch.divergence(&sure, log_total(&sure)).divergence.abs() < 1e-9);
    }
}
