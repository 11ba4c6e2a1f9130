//! Rotary position embedding.

use std::borrow::Cow;
use std::ops::Range;

use bitmill_tensor::Matrix;

use super::twins;

/// Which elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `j` with `j + head_dim / 2`: Hugging Face checkpoints, and GGUF files of the qwen2 family.
    Halves,
    /// `2j` with `2j + 1`: GGUF files of the llama family.
    Adjacent,
}

/// What the positions of a model mean: a frequency for each pair of a head, and how elements pair up.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    frequencies: Vec<f32>,
    /// Multiplies what is rotated.
    scale: f32,
    pairing: Pairing,
}

/// How YaRN stretches turns (arXiv:2309.00071): pairs that turn often within the original context are kept, those that
/// turn seldom are slowed down, those between are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnStretch {
    /// Divides the slowest turns.
    pub factor: f64,
    /// The context before stretching, in tokens.
    pub original: usize,
    /// Full turns within the original context from which a pair is kept, 32 usually.
    pub beta_fast: f64,
    /// Full turns up to which a pair is slowed down, 1 usually.
    pub beta_slow: f64,
    /// Whether the blend begins and ends at whole pairs.
    pub truncate: bool,
}

impl RopeTable {
    /// `theta^(−2j / head_dim)` for pair `j`.
    ///
    /// ```
    /// use bitmill_kernels::{Pairing, RopeTable};
    /// assert_eq!(RopeTable::new(4, 10_000.0, Pairing::Halves).frequencies(), [1.0, 0.01]);
    /// ```
    ///
    /// # Panics
    /// If `head_dim` is odd.
    pub fn new(head_dim: usize, theta: f64, pairing: Pairing) -> Self {
        assert!(head_dim.is_multiple_of(2), "heads of {head_dim} elements do not pair up");
        // The exponent is an f32 in transformers, and so are the power and its reciprocal.
        let frequency = |pair: usize| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            1.0 / theta.powf(f64::from(exponent)) as f32
        };
        Self { frequencies: (0..head_dim / 2).map(frequency).collect(), scale: 1.0, pairing }
    }

    /// Llama 3's stretching: wavelengths above `original / low_freq_factor` positions grow by `factor`, those below
    /// `original / high_freq_factor` stay, and those between are blended.
    pub fn llama3(
        mut self,
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original: usize,
    ) -> Self {
        let original = original as f64;
        for frequency in &mut self.frequencies {
            let wavelength = std::f32::consts::TAU / *frequency;
            let stretched = (f64::from(*frequency) / factor) as f32;
            if f64::from(wavelength) > original / low_freq_factor {
                *frequency = stretched;
            } else if f64::from(wavelength) >= original / high_freq_factor {
                let smooth = (original / f64::from(wavelength) - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                *frequency = ((1.0 - smooth) * f64::from(stretched) + smooth * f64::from(*frequency)) as f32;
            }
        }
        self
    }

    /// Divides every frequency by `factor`.
    pub fn linear(mut self, factor: f64) -> Self {
        self.frequencies.iter_mut().for_each(|frequency| *frequency /= factor as f32);
        self
    }

    /// YaRN's stretching of a table made with `theta`; step for step `_compute_yarn_parameters` of transformers.
    pub fn yarn(mut self, theta: f64, stretch: &YarnStretch) -> Self {
        let &YarnStretch { factor, original, beta_fast, beta_slow, truncate } = stretch;
        let head_dim = 2 * self.frequencies.len();
        let pair_that_turns = |times: f64| {
            head_dim as f64 * (original as f64 / (times * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (pair_that_turns(beta_fast), pair_that_turns(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min((head_dim - 1) as f64));
        if low == high {
            high += 0.001;
        }
        for (pair, frequency) in self.frequencies.iter_mut().enumerate() {
            let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let kept = 1.0 - ramp;
            *frequency = *frequency / factor as f32 * (1.0 - kept) + *frequency * kept;
        }
        self
    }

    /// Multiplies what is rotated by `scale`: YaRN's attention factor, by whose square scores grow.
    pub fn scaled(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// Divides each pair's frequency by its factor, as a GGUF file's `rope_freqs.weight` asks for.
    ///
    /// # Panics
    /// If there is not one factor a pair.
    pub fn divided_by(mut self, factors: &[f32]) -> Self {
        assert_eq!(factors.len(), self.frequencies.len(), "one factor a pair");
        for (frequency, factor) in self.frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
        self
    }

    /// Radians a position, for each pair.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// How the elements of a head pair up.
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }
}

/// The rotations of some positions: worked out once for a batch, used by every layer.
#[derive(Debug, Clone, Default)]
pub struct Rotations {
    /// Per position, the cosines of every pair, then their sines.
    angles: Matrix,
    adjacent: bool,
}

impl Rotations {
    /// Those of each sequence's positions by its table, `rows` in all, keeping this value's memory.
    pub(crate) fn fill<'t>(
        &mut self,
        rows: usize,
        sequences: impl Iterator<Item = (Cow<'t, RopeTable>, Range<usize>)>,
    ) {
        let mut row = 0;
        for (table, positions) in sequences {
            let pairs = table.frequencies.len();
            if row == 0 {
                self.adjacent = table.pairing == Pairing::Adjacent;
                self.angles.reshape(rows, 2 * pairs);
            }
            assert_eq!(self.angles.cols(), 2 * pairs, "tables of one width");
            for position in positions {
                let (cos, sin) = self.angles.row_mut(row).split_at_mut(pairs);
                for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(&table.frequencies) {
                    // The angle is rounded to f32, as transformers has it; its sine and cosine are then exact.
                    let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                    (*cos, *sin) = (c as f32 * table.scale, s as f32 * table.scale);
                }
                row += 1;
            }
        }
        assert_eq!(row, rows, "one position a row");
    }

    /// Positions.
    pub(crate) fn rows(&self) -> usize {
        self.angles.rows()
    }

    /// Elements of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.angles.cols()
    }

    /// Rotates every head of one position's row.
    pub(crate) fn apply(&self, isa: crate::Isa, row: usize, x: &mut [f32]) {
        let (cos, sin) = self.angles.row(row).split_at(self.head_dim() / 2);
        if self.adjacent { rotate_adjacent(isa, cos, sin, x) } else { rotate_halves(isa, cos, sin, x) }
    }

    /// Turns the gradients of one position's row back: what [`apply`](Self::apply) multiplies with, transposed.
    pub(crate) fn apply_backward(&self, isa: crate::Isa, row: usize, dx: &mut [f32]) {
        let (cos, sin) = self.angles.row(row).split_at(self.head_dim() / 2);
        match self.adjacent {
            true => turn_adjacent_back(isa, cos, sin, dx),
            false => turn_halves_back(isa, cos, sin, dx),
        }
    }
}

#[inline(always)]
fn halves(cos: &[f32], sin: &[f32], x: &mut [f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (low, high) = head.split_at_mut(cos.len());
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

#[inline(always)]
fn adjacent(cos: &[f32], sin: &[f32], x: &mut [f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
        }
    }
}

#[inline(always)]
fn halves_back(cos: &[f32], sin: &[f32], x: &mut [f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (low, high) = head.split_at_mut(cos.len());
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*low, *high) = (*low * cos + *high * sin, *high * cos - *low * sin);
        }
    }
}

#[inline(always)]
fn adjacent_back(cos: &[f32], sin: &[f32], x: &mut [f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
            (pair[0], pair[1]) = (pair[0] * cos + pair[1] * sin, pair[1] * cos - pair[0] * sin);
        }
    }
}

twins! {
    fn turn_halves_back(cos: &[f32], sin: &[f32], x: &mut [f32]) = halves_back;
    fn turn_adjacent_back(cos: &[f32], sin: &[f32], x: &mut [f32]) = adjacent_back;
    fn rotate_halves(cos: &[f32], sin: &[f32], x: &mut [f32]) = halves;
    fn rotate_adjacent(cos: &[f32], sin: &[f32], x: &mut [f32]) = adjacent;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn pairings_differ_by_a_permutation_of_each_head() {
        let (head_dim, heads) = (6, 2);
        let halves_to_adjacent = |x: &[f32]| -> Vec<f32> {
            x.chunks_exact(head_dim)
                .flat_map(|head| (0..head_dim / 2).flat_map(move |j| [head[j], head[j + head_dim / 2]]))
                .collect()
        };
        let x: Vec<f32> = (0..head_dim * heads).map(|i| (i as f32 * 0.7).sin()).collect();
        for isa in Isa::available() {
            let mut rotated = Vec::new();
            for (pairing, mut x) in
                [(Pairing::Halves, x.clone()), (Pairing::Adjacent, halves_to_adjacent(&x))]
            {
                let mut rotations = Rotations::default();
                let table = RopeTable::new(head_dim, 100.0, pairing);
                rotations.fill(2, [(Cow::Owned(table), 8..10)].into_iter());
                rotations.apply(isa, 1, &mut x);
                rotated.push(x);
            }
            assert_eq!(halves_to_adjacent(&rotated[0]), rotated[1]);
        }
    }

    #[test]
    fn a_quarter_turn_swaps_the_elements_of_a_pair() {
        let mut rotations = Rotations::default();
        let mut table = RopeTable::new(2, 10.0, Pairing::Halves);
        table.frequencies[0] = std::f32::consts::FRAC_PI_2;
        let doubled = table.clone().scaled(2.0);
        rotations.fill(3, [(Cow::Borrowed(&table), 1..2), (Cow::Owned(doubled), 0..2)].into_iter());
        for (row, expected) in [(0, [-3.0f32, 2.0]), (1, [4.0, 6.0]), (2, [-6.0, 4.0])] {
            let mut x = [2.0, 3.0];
            rotations.apply(Isa::scalar(), row, &mut x);
            assert!((x[0] - expected[0]).abs() < 1e-6 && (x[1] - expected[1]).abs() < 1e-6, "{x:?}");
        }
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        // Wavelengths 6.3, 62.8 and 628; kept up to 128 / 4, stretched from 128 / 1 on.
        let plain = RopeTable::new(6, 1000.0, Pairing::Halves);
        let stretched = plain.clone().llama3(8.0, 1.0, 4.0, 128);
        assert_eq!(stretched.frequencies()[0], plain.frequencies()[0]);
        let blend = (128.0 * 0.1 / std::f64::consts::TAU - 1.0) / 3.0;
        let expected = 0.1 * ((1.0 - blend) / 8.0 + blend);
        assert!((f64::from(stretched.frequencies()[1]) - expected).abs() < 1e-8);
        assert_eq!(stretched.frequencies()[2], plain.frequencies()[2] / 8.0);
    }

    #[test]
    fn yarn_keeps_pairs_that_turn_often_and_slows_those_that_turn_seldom() {
        // 4 pairs of theta 10000, 1, 0.1, 0.01 and 0.001 radians a token, in a context of 628 tokens: about 100, 10, 1
        // and 0.1 turns. Pair 0.99978 would turn 10 times and pair 1.99978 once, truncated to 0 and 2.
        let plain = RopeTable::new(8, 10_000.0, Pairing::Halves);
        let mut stretch =
            YarnStretch { factor: 4.0, original: 628, beta_fast: 10.0, beta_slow: 1.0, truncate: true };
        let found = plain.clone().yarn(10_000.0, &stretch);
        let expected = [1.0, 0.1 * (0.5 / 4.0 + 0.5), 0.01 / 4.0, 0.001 / 4.0];
        for (found, expected) in found.frequencies().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4 * expected, "{found} {expected}");
        }
        // Not truncated, the blend begins at pair 0.99978 and ends at 1.99978.
        stretch.truncate = false;
        let found = plain.clone().yarn(10_000.0, &stretch);
        assert!((found.frequencies()[1] - 0.1).abs() < 1e-4 && found.frequencies()[2] == 0.01 / 4.0);
        // A factor of 1 changes nothing.
        let same = plain.clone().yarn(10_000.0, &YarnStretch { factor: 1.0, ..stretch });
        assert!(same.frequencies().iter().zip(plain.frequencies()).all(|(a, b)| (a - b).abs() <= 1e-7 * b));
        assert_eq!(plain.clone().linear(2.0).frequencies()[3], plain.frequencies()[3] / 2.0);
    }

    #[test]
    fn factors_divide_frequencies() {
        let plain = RopeTable::new(4, 10_000.0, Pairing::Halves);
        assert_eq!(plain.divided_by(&[1.0, 8.0]).frequencies(), [1.0, 0.01 / 8.0]);
    }
}
