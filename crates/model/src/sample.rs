//! Choosing the next token.
//!
//! The filters apply in the order of transformers' `GenerationMixin._get_logits_processor`: repetition penalty,
//! temperature, top-k, top-p, min-p. (llama.cpp's default order differs: there temperature comes last.) Weights are
//! summed in the order of token ids and the random numbers are [`SplitMix64`]'s, so that one seed gives one sequence of tokens for the same
//! logits, whatever the machine and the number of threads.

use std::cmp::Ordering;

use bitmill_kernels::Compute;
use bitmill_tensor::Matrix;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Scores are divided by this; 0 takes the likeliest token each time, and nothing below applies but the penalty.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens, and those as likely as the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest likeliest tokens whose probabilities together reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive scores of tokens that were there already, and multiplies their negative ones (CTRL,
    /// arXiv:1909.05858); 1 changes nothing.
    pub repetition_penalty: f32,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token each time.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
///
/// ```
/// use bitmill_model::SplitMix64;
/// let mut random = SplitMix64::new(1234567);
/// assert_eq!([random.next(), random.next()], [6457827717110365317, 3203168211198807973]);
/// ```
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Every seed gives another sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator that never ends would have to be unwrapped"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to and without 1, in steps of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Chooses tokens one after another.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
    /// One row: the scores after the penalty.
    scores: Matrix,
    largest: Vec<u32>,
    kept: Vec<(u32, f32)>,
    weights: Vec<f64>,
}

impl Sampler {
    /// At the beginning of `sampling.seed`'s random numbers.
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            random: SplitMix64::new(sampling.seed),
            scores: Matrix::default(),
            largest: Vec::new(),
            kept: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// The next token, after the text of `seen`; scores that are no numbers are never chosen.
    ///
    /// # Shapes
    /// `logits`: one row, a score a token.
    pub fn choose(&mut self, compute: &Compute, logits: &Matrix, seen: &[u32]) -> u32 {
        self.penalise(logits, seen);
        if self.sampling.temperature > 0.0 {
            self.weigh(compute);
            let total: f64 = self.weights.iter().sum();
            let mut left = self.random.unit() * total;
            for (&(token, _), &weight) in self.kept.iter().zip(&self.weights) {
                left -= weight;
                if left < 0.0 {
                    return token;
                }
            }
            // Rounding may leave a little; without any score there is nothing to choose from.
            if let Some(&(token, _)) = self.kept.last() {
                return token;
            }
        }
        compute.largest(&self.scores, &mut self.largest);
        self.largest.first().copied().unwrap_or(0)
    }

    /// The tokens that [`choose`](Self::choose) would choose from, by id, with their probabilities.
    pub fn probabilities(&mut self, compute: &Compute, logits: &Matrix, seen: &[u32]) -> Vec<(u32, f64)> {
        self.penalise(logits, seen);
        if self.sampling.temperature > 0.0 {
            self.weigh(compute);
            let total: f64 = self.weights.iter().sum();
            return self.kept.iter().zip(&self.weights).map(|(&(id, _), &w)| (id, w / total)).collect();
        }
        compute.largest(&self.scores, &mut self.largest);
        self.largest.iter().map(|&token| (token, 1.0)).collect()
    }

    /// The scores with the repetition penalty, into `scores`.
    fn penalise(&mut self, logits: &Matrix, seen: &[u32]) {
        let row = logits.row(0);
        self.scores.reshape(1, row.len());
        let scores = self.scores.row_mut(0);
        scores.copy_from_slice(row);
        let penalty = self.sampling.repetition_penalty;
        if penalty != 1.0 {
            // From the score as it was: a token that was there twice is punished once.
            for &token in seen {
                if let Some(&score) = row.get(token as usize) {
                    scores[token as usize] = if score < 0.0 { score * penalty } else { score / penalty };
                }
            }
        }
    }

    /// What the filters keep, by id, into `kept` and its weights, in the ratio of probabilities, into `weights`.
    fn weigh(&mut self, compute: &Compute) {
        let Self { sampling, scores, kept, weights, .. } = self;
        let temperature = sampling.temperature;
        kept.clear();
        let scaled = scores.row(0).iter().map(|score| score / temperature);
        kept.extend((0u32..).zip(scaled).filter(|(_, score)| *score > f32::NEG_INFINITY));
        if kept.is_empty() {
            weights.clear();
            return;
        }
        if (1..kept.len()).contains(&sampling.top_k) {
            let (_, &mut (_, last), _) = kept.select_nth_unstable_by(sampling.top_k - 1, likeliest_first);
            kept.retain(|&(_, score)| score >= last);
        }
        if sampling.top_p < 1.0 {
            keep_nucleus(compute, kept, weights, f64::from(sampling.top_p));
        }
        kept.sort_unstable_by_key(|&(token, _)| token);
        relative(compute, kept, weights);
        if sampling.min_p > 0.0 {
            // The likeliest token weighs 1, so weights are fractions of its probability.
            let least = f64::from(sampling.min_p.min(1.0));
            let mut next = weights.iter();
            kept.retain(|_| next.next().is_some_and(|&weight| weight >= least));
            weights.retain(|&weight| weight >= least);
        }
    }
}

/// By falling score, equals by id: a total order, so that no sorting algorithm shows.
fn likeliest_first(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// `exp(score − largest score)` of every token into `weights`.
fn relative(compute: &Compute, kept: &[(u32, f32)], weights: &mut Vec<f64>) {
    let largest = kept.iter().fold(f32::NEG_INFINITY, |largest, &(_, score)| largest.max(score));
    weights.clear();
    // Equal infinities are equally likely.
    weights.extend(kept.iter().map(|&(_, score)| match score == largest {
        true => 0.0,
        false => f64::from(score) - f64::from(largest),
    }));
    compute.exp(weights);
}

/// Keeps the fewest likeliest of `kept` that hold `top_p` of the probability, at least one.
fn keep_nucleus(compute: &Compute, kept: &mut Vec<(u32, f32)>, weights: &mut Vec<f64>, top_p: f64) {
    relative(compute, kept, weights);
    let enough = top_p * weights.iter().sum::<f64>();
    // Few tokens hold most of the probability: order those first, and more only if they do not suffice.
    let mut ordered = 0;
    let mut sum = 0.0;
    let mut count = 0;
    while count < kept.len() && (count == 0 || sum < enough) {
        if count == ordered {
            let next = (ordered * 8).max(256).min(kept.len());
            if next < kept.len() {
                kept[ordered..].select_nth_unstable_by(next - ordered, likeliest_first);
            }
            kept[ordered..next].sort_unstable_by(likeliest_first);
            weights.clear();
            let largest = f64::from(kept[0].1);
            let lower = |&(_, score): &(u32, f32)| match f64::from(score) == largest {
                true => 0.0,
                false => f64::from(score) - largest,
            };
            weights.extend(kept[..next].iter().map(lower));
            compute.exp(weights);
            ordered = next;
        }
        sum += weights[count];
        count += 1;
    }
    kept.truncate(count);
}
