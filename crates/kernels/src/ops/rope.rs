//! Rotary position embedding.

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
    pairing: Pairing,
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
        Self { frequencies: (0..head_dim / 2).map(frequency).collect(), pairing }
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
    /// Those of `positions`, in their order, keeping this value's memory.
    pub(crate) fn fill(&mut self, table: &RopeTable, positions: &[usize]) {
        let pairs = table.frequencies.len();
        self.adjacent = table.pairing == Pairing::Adjacent;
        self.angles.reshape(positions.len(), 2 * pairs);
        for (row, &position) in positions.iter().enumerate() {
            let (cos, sin) = self.angles.row_mut(row).split_at_mut(pairs);
            for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(&table.frequencies) {
                // The angle is rounded to f32, as transformers has it; its sine and cosine are then exact.
                let (s, c) = f64::from(position as f32 * frequency).sin_cos();
                (*cos, *sin) = (c as f32, s as f32);
            }
        }
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

twins! {
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
                rotations.fill(&RopeTable::new(head_dim, 100.0, pairing), &[3, 9]);
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
        rotations.fill(&table, &[1]);
        let mut x = [2.0, 3.0];
        rotations.apply(Isa::scalar(), 0, &mut x);
        assert!((x[0] + 3.0).abs() < 1e-6 && (x[1] - 2.0).abs() < 1e-6, "{x:?}");
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
    fn factors_divide_frequencies() {
        let plain = RopeTable::new(4, 10_000.0, Pairing::Halves);
        assert_eq!(plain.divided_by(&[1.0, 8.0]).frequencies(), [1.0, 0.01 / 8.0]);
    }
}
