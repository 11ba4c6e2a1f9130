//! Rotations that spread outliers over all features: orthonormal Hadamard transforms, folded into weights.
//!
//! QuaRot, arXiv:2404.00456, what can be done beforehand: with `Q` orthonormal, every matrix that reads the residual stream
//! becomes `W·Q`, every one that writes it `Qᵀ·W`, and the embedding's rows `e·Q`; norms must have weights of 1, so theirs are
//! multiplied into the columns of what reads them first ([`fold::multiply_columns`](crate::fold::multiply_columns)). The model
//! computes the same.
//!
//! A Hadamard matrix of `n` is found where `n` is a power of two times the order of one by Paley's constructions (12, 20, 28,
//! 36, 44, 60, 76, 84, 108, …, 924). What is not, as 11008 = 256 · 43, is rotated in blocks: each of the largest divisor that is.

use bitmill_kernels::{Strided, set_product};
use rayon::prelude::*;

/// An orthonormal matrix `Q = S·(I ⊗ H)/√block`, `S` a diagonal of signs by seed.
///
/// ```
/// use bitmill_quant::Rotation;
/// let rotation = Rotation::new(768, 5);
/// assert_eq!(rotation.block(), 768); // 12 · 64
/// let mut row: Vec<f32> = (0..768).map(|i| if i == 7 { 100.0 } else { 0.0 }).collect();
/// rotation.rotate_rows(&mut row);
/// // The outlier is everywhere now, and small: 100 / √768.
/// assert!(row.iter().all(|value| (value.abs() - 3.608).abs() < 1e-3));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    width: usize,
    block: usize,
    /// Order of `small`: `block` is a power of two times it.
    order: usize,
    /// A Hadamard matrix, row major.
    small: Vec<f32>,
    signs: Vec<f32>,
}

/// The largest matrix by Paley's constructions that is multiplied with as it is.
const LARGEST_ORDER: usize = 2048;

impl Rotation {
    /// A rotation of `width` features in the largest blocks that there are.
    ///
    /// # Panics
    /// If `width` is 0.
    pub fn new(width: usize, seed: u64) -> Self {
        let divisors = (1..=width).filter(|count| width.is_multiple_of(*count)).map(|count| width / count);
        let block = divisors.into_iter().find(|block| smallest_order(*block).is_some());
        // 1 divides every width and is an order.
        Self::in_blocks(width, block.unwrap_or(1), seed).expect("a width above 0")
    }

    /// A rotation of `width` features in blocks of `block`; `None` if they do not tile it, or no Hadamard matrix of that size is known.
    pub fn in_blocks(width: usize, block: usize, seed: u64) -> Option<Self> {
        let order = smallest_order(block).filter(|_| width > 0 && width.is_multiple_of(block))?;
        let mut state = seed;
        let mut sign = |_| if next(&mut state) >> 63 == 0 { 1.0 } else { -1.0 };
        let signs = (0..width).map(&mut sign).collect();
        Some(Self { width, block, order, small: hadamard(order)?, signs })
    }

    /// Features in all.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Features that are mixed with one another.
    pub fn block(&self) -> usize {
        self.block
    }

    /// `W·Q`: of matrices that read the features, and of the embedding, whose rows are features.
    ///
    /// # Shapes
    /// `weight`: `[rows, width]`.
    ///
    /// # Panics
    /// If it is not whole rows.
    pub fn rotate_rows(&self, weight: &mut [f32]) {
        self.each_row(weight, |row, scratch| self.forward(row, scratch));
    }

    /// `W·Qᵀ`: takes [`rotate_rows`](Self::rotate_rows) back.
    ///
    /// # Panics
    /// As [`rotate_rows`](Self::rotate_rows).
    pub fn restore_rows(&self, weight: &mut [f32]) {
        self.each_row(weight, |row, scratch| self.backward(row, scratch));
    }

    /// `Qᵀ·W`: of matrices that write the features, and (columns = 1) of their bias.
    ///
    /// # Shapes
    /// `weight`: `[width, columns]`.
    ///
    /// # Panics
    /// If it is not whole columns.
    pub fn rotate_columns(&self, weight: &mut [f32]) {
        assert!(weight.len().is_multiple_of(self.width), "{} weights in {} rows", weight.len(), self.width);
        let columns = weight.len() / self.width;
        // So many bands of columns are turned on their side at a time, one a task.
        const BAND: usize = 16;
        const BANDS: usize = 32;
        for first in (0..columns).step_by(BAND * BANDS) {
            let last = (first + BAND * BANDS).min(columns);
            let bands: Vec<usize> = (first..last).step_by(BAND).collect();
            let source = &*weight;
            let turned: Vec<Vec<f32>> = bands
                .par_iter()
                .map(|&left| {
                    let count = BAND.min(last - left);
                    let mut band = vec![0.0; count * self.width];
                    for (row, weights) in source.chunks_exact(columns).enumerate() {
                        for (column, weight) in weights[left..left + count].iter().enumerate() {
                            band[column * self.width + row] = *weight;
                        }
                    }
                    let mut scratch = self.scratch();
                    band.chunks_exact_mut(self.width).for_each(|column| self.forward(column, &mut scratch));
                    band
                })
                .collect();
            for (left, band) in bands.into_iter().zip(turned) {
                for (row, weights) in weight.chunks_exact_mut(columns).enumerate() {
                    for (column, values) in band.chunks_exact(self.width).enumerate() {
                        weights[left + column] = values[row];
                    }
                }
            }
        }
    }

    fn each_row(&self, weight: &mut [f32], turn: impl Fn(&mut [f32], &mut [f32]) + Sync) {
        assert!(
            weight.len().is_multiple_of(self.width),
            "{} weights in rows of {}",
            weight.len(),
            self.width
        );
        const TASK_ROWS: usize = 64;
        weight.par_chunks_mut(TASK_ROWS * self.width).for_each(|rows| {
            let mut scratch = self.scratch();
            rows.chunks_exact_mut(self.width).for_each(|row| turn(row, &mut scratch));
        });
    }

    fn scratch(&self) -> Vec<f32> {
        vec![0.0; if self.order > 1 { self.block } else { 0 }]
    }

    /// `row ← row·Q`.
    fn forward(&self, row: &mut [f32], scratch: &mut [f32]) {
        row.iter_mut().zip(&self.signs).for_each(|(value, sign)| *value *= sign);
        for block in row.chunks_exact_mut(self.block) {
            self.mix(block, scratch, false);
        }
    }

    /// `row ← row·Qᵀ`.
    fn backward(&self, row: &mut [f32], scratch: &mut [f32]) {
        for block in row.chunks_exact_mut(self.block) {
            self.mix(block, scratch, true);
        }
        row.iter_mut().zip(&self.signs).for_each(|(value, sign)| *value *= sign);
    }

    /// `block ← block·(small ⊗ Walsh)/√n`, or of the transposed.
    fn mix(&self, block: &mut [f32], scratch: &mut [f32], transposed: bool) {
        let factor = (1.0 / (self.block as f64).sqrt()) as f32;
        let power = self.block / self.order;
        for part in block.chunks_exact_mut(power) {
            walsh(part);
        }
        if self.order == 1 {
            block.iter_mut().for_each(|value| *value *= factor);
            return;
        }
        // Row a of the block's [order, power] becomes Σ_b small[b, a] · row b.
        let small = Strided::new(&self.small, self.order, self.order, self.order);
        let small = if transposed { small } else { small.transposed() };
        set_product(scratch, power, factor, small, Strided::new(block, self.order, power, power));
        block.copy_from_slice(scratch);
    }
}

/// The fast Walsh-Hadamard transform, not normalised; `values` are a power of two.
fn walsh(values: &mut [f32]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The smallest order that `n` is a power of two times of, if there is one.
fn smallest_order(n: usize) -> Option<usize> {
    if n == 0 {
        return None;
    }
    let odd = n >> n.trailing_zeros();
    if odd == 1 {
        return Some(1);
    }
    let orders = (2..=n.trailing_zeros()).map(|twos| odd << twos);
    orders.take_while(|order| *order <= LARGEST_ORDER).find(|order| paley(*order).is_some())
}

/// Paley's construction of this order: the prime that it is of, and whether it is the second.
fn paley(order: usize) -> Option<(usize, bool)> {
    if !order.is_multiple_of(4) {
        return None;
    }
    let (first, second) = (order - 1, order / 2 - 1);
    if is_prime(first) && first % 4 == 3 {
        Some((first, false))
    } else if is_prime(second) && second % 4 == 1 {
        Some((second, true))
    } else {
        None
    }
}

fn is_prime(n: usize) -> bool {
    n > 1 && (2..).take_while(|factor| factor * factor <= n).all(|factor| !n.is_multiple_of(factor))
}

/// A Hadamard matrix of `order`, which is 1 or one of Paley's.
fn hadamard(order: usize) -> Option<Vec<f32>> {
    if order == 1 {
        return Some(vec![1.0]);
    }
    let (prime, second) = paley(order)?;
    let mut residue = vec![-1.0; prime];
    residue[0] = 0.0;
    (1..prime).for_each(|root| residue[root * root % prime] = 1.0);
    // The conference matrix: a border of ones, the differences' characters within.
    let n = prime + 1;
    let edge = if second { 1.0 } else { -1.0 };
    let conference = |row: usize, col: usize| match (row, col) {
        (0, 0) => 0.0,
        (0, _) => 1.0,
        (_, 0) => edge,
        _ => residue[(row + prime - col) % prime],
    };
    let mut out = Vec::with_capacity(order * order);
    for row in 0..order {
        for col in 0..order {
            out.push(if second {
                // 0 becomes [[1, −1], [−1, −1]], ±1 becomes ±[[1, 1], [1, −1]].
                let value: f32 = conference(row / 2, col / 2);
                match (value == 0.0, row % 2, col % 2) {
                    (true, 0, 0) => 1.0,
                    (true, _, _) => -1.0,
                    (false, 1, 1) => -value,
                    (false, _, _) => value,
                }
            } else if row == col {
                1.0
            } else {
                conference(row, col)
            });
        }
    }
    debug_assert!(!second || n * 2 == order);
    Some(out)
}

/// SplitMix64, as sampling has it.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0).collect()
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    #[test]
    fn matrices_by_paley_are_hadamard_matrices() {
        for order in [4, 8, 12, 20, 24, 28, 36, 44, 60, 76, 84] {
            let matrix = hadamard(order).unwrap();
            for a in 0..order {
                for b in 0..order {
                    let dot: f32 = (0..order).map(|k| matrix[a * order + k] * matrix[b * order + k]).sum();
                    assert_eq!(dot, if a == b { order as f32 } else { 0.0 }, "{order}: {a}, {b}");
                }
            }
        }
    }

    #[test]
    fn widths_of_models_are_found() {
        // Whole: powers of two, 12·2^k, 28·2^k, 36·2^k, and Qwen2.5-72B's feed-forward width, 924·32.
        for width in [4096, 8192, 768, 1536, 5120, 14336, 576, 3584, 18944, 29568] {
            let order = smallest_order(width).unwrap_or(0);
            assert!(order > 0, "{width}");
        }
        assert_eq!(smallest_order(29568), Some(924));
        assert_eq!(smallest_order(11008), None);
        assert_eq!(Rotation::new(11008, 0).block(), 256);
        assert_eq!(Rotation::new(7, 0).block(), 1);
        assert!(Rotation::in_blocks(24, 16, 0).is_none() && Rotation::in_blocks(0, 1, 0).is_none());
        assert!(Rotation::in_blocks(24, 0, 0).is_none());
    }

    #[test]
    fn rotations_are_orthonormal_and_undone() {
        for (width, block) in [(1, 1), (2, 2), (16, 4), (64, 64), (12, 12), (40, 20), (56, 56), (72, 36)] {
            let rotation = Rotation::in_blocks(width, block, 3).unwrap();
            let mut q = vec![0.0; width * width];
            (0..width).for_each(|i| q[i * width + i] = 1.0);
            rotation.rotate_rows(&mut q);
            for a in q.chunks(width) {
                let products: Vec<f32> =
                    q.chunks(width).map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect();
                assert_eq!(products.iter().filter(|dot| (**dot - 1.0).abs() < 1e-5).count(), 1);
                assert_eq!(products.iter().filter(|dot| dot.abs() < 1e-5).count(), width - 1);
            }
            rotation.restore_rows(&mut q);
            let identity: Vec<f32> =
                (0..width * width).map(|i| f32::from(u8::from(i % (width + 1) == 0))).collect();
            assert!(close(&q, &identity), "{width}");
        }
    }

    #[test]
    fn what_is_written_and_read_in_rotated_features_is_the_same() {
        let (width, inner) = (24, 600);
        let rotation = Rotation::new(width, 9);
        let (mut writes, mut reads) = (values(width * inner), values(5 * width));
        let product = |reads: &[f32], writes: &[f32]| {
            let mut out = vec![0.0; 5 * inner];
            let reads = Strided::new(reads, 5, width, width);
            set_product(&mut out, inner, 1.0, reads, Strided::new(writes, width, inner, inner));
            out
        };
        let expected = product(&reads, &writes);
        rotation.rotate_columns(&mut writes);
        rotation.rotate_rows(&mut reads);
        assert!(close(&product(&reads, &writes), &expected));
        let mut bias = values(width);
        let mut row = bias.clone();
        rotation.rotate_columns(&mut bias);
        rotation.rotate_rows(&mut row);
        assert_eq!(bias, row, "a column of features turns as a row of them does");
    }

    #[test]
    fn seeds_give_signs_and_nothing_else() {
        let (one, other) = (Rotation::new(48, 1), Rotation::new(48, 2));
        assert_ne!(one, other);
        assert_eq!(one, Rotation::new(48, 1));
        assert_eq!(one.small, other.small);
    }

    #[test]
    fn hostile_values_do_not_spread_beyond_their_row() {
        let rotation = Rotation::new(12, 0);
        let mut weight = [values(12), vec![f32::NAN; 12], vec![0.0; 12]].concat();
        rotation.rotate_rows(&mut weight);
        assert!(weight[..12].iter().all(|value| value.is_finite()));
        assert!(weight[24..].iter().all(|value| *value == 0.0));
    }
}
