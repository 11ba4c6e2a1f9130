//! The smallest weights become zero.
//!
//! What stays is a bit mask: bit `i % 8` of byte `i / 8` of a row is weight `i`, and every row begins a byte. Of weights
//! with equal magnitude those that come first go first, so the number that stays is exact, whatever the weights are, and
//! known before any of them is read.
//!
//! - Within a row, or of every `m` consecutive inputs: [`RowRule`], rows by themselves.
//! - Within a whole tensor: [`Threshold`], found by passes over the tensor in memory that does not grow with it.
//!
//! A removed weight is `+0.0`, and so is a kept one that was `−0.0`: runtimes that look for zeros compare bits.

use crate::Error;

/// The fraction of weights that becomes zero.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Sparsity(f64);

impl Sparsity {
    /// `None` outside 0..=1.
    pub fn new(fraction: f64) -> Option<Self> {
        (0.0..=1.0).contains(&fraction).then_some(Self(fraction))
    }

    /// The fraction itself.
    pub fn get(self) -> f64 {
        self.0
    }

    /// How many of `weights` go: `fraction · weights`, rounded to nearest, halves up.
    ///
    /// ```
    /// use bitmill_prune::Sparsity;
    /// assert_eq!(Sparsity::new(0.5).unwrap().removed(7), 4);
    /// ```
    pub fn removed(self, weights: u64) -> u64 {
        // A float to integer cast saturates; 2^53 weights are beyond any tensor.
        ((self.0 * weights as f64).round() as u64).min(weights)
    }
}

/// `kept` of every `of` consecutive inputs stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NOfM {
    kept: usize,
    of: usize,
}

impl NOfM {
    /// `None` unless `1 <= kept <= of`.
    pub fn new(kept: usize, of: usize) -> Option<Self> {
        (1..=of).contains(&kept).then_some(Self { kept, of })
    }

    /// Weights that stay of each group.
    pub fn kept(self) -> usize {
        self.kept
    }

    /// Weights of a group.
    pub fn of(self) -> usize {
        self.of
    }
}

/// What goes of each row, whatever the others hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowRule {
    /// This fraction of the row.
    Sparsity(Sparsity),
    /// All but some of every few consecutive inputs.
    NOfM(NOfM),
}

impl RowRule {
    /// How many weights of a row stay.
    ///
    /// # Errors
    /// [`Error::UnevenPattern`] if the row does not divide into groups.
    pub fn kept(self, in_features: usize) -> Result<usize, Error> {
        match self {
            Self::Sparsity(sparsity) => Ok(in_features - sparsity.removed(in_features as u64) as usize),
            Self::NOfM(NOfM { of, .. }) if !in_features.is_multiple_of(of) => {
                Err(Error::UnevenPattern { in_features, of })
            }
            Self::NOfM(NOfM { kept, of }) => Ok(in_features / of * kept),
        }
    }

    /// Marks what stays of one row in `mask`.
    ///
    /// ```
    /// use bitmill_prune::{NOfM, RowRule, Sparsity};
    /// let row = [0.5, -3.0, 2.0, -0.1];
    /// let mut mask = [0];
    /// RowRule::Sparsity(Sparsity::new(0.75).unwrap()).mask_row(&row, &mut mask)?;
    /// assert_eq!(mask, [0b0010]);
    /// RowRule::NOfM(NOfM::new(1, 2).unwrap()).mask_row(&row, &mut mask)?;
    /// assert_eq!(mask, [0b0110]);
    /// # Ok::<(), bitmill_prune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`kept`](Self::kept).
    ///
    /// # Panics
    /// If `mask` has not [`mask_bytes`] for the row.
    pub fn mask_row(self, row: &[f32], mask: &mut [u8]) -> Result<(), Error> {
        assert_eq!(mask.len(), mask_bytes(row.len()), "mask of a row");
        let kept = self.kept(row.len())?;
        mask.fill(0);
        let mut order = Vec::new();
        match self {
            Self::Sparsity(_) => keep_largest(row, 0, kept, mask, &mut order),
            Self::NOfM(NOfM { kept, of }) => {
                for (group, weights) in row.chunks_exact(of).enumerate() {
                    keep_largest(weights, group * of, kept, mask, &mut order);
                }
            }
        }
        Ok(())
    }
}

/// Bytes of one row's mask.
pub const fn mask_bytes(in_features: usize) -> usize {
    in_features.div_ceil(8)
}

/// Marks the `kept` largest of `weights`, which begin at weight `first` of their row; of equal ones the last.
fn keep_largest(weights: &[f32], first: usize, kept: usize, mask: &mut [u8], order: &mut Vec<u64>) {
    order.clear();
    order
        .extend(weights.iter().enumerate().map(|(i, weight)| u64::from(magnitude(*weight)) << 32 | i as u64));
    let removed = weights.len() - kept;
    if kept == 0 {
        return;
    }
    if removed > 0 {
        order.select_nth_unstable(removed);
    }
    for entry in &order[removed..] {
        let at = first + (entry & 0xffff_ffff) as usize;
        mask[at / 8] |= 1 << (at % 8);
    }
}

/// The bits of `|weight|`, which are ordered as the magnitudes are.
fn magnitude(weight: f32) -> u32 {
    weight.to_bits() & 0x7fff_ffff
}

/// Clears what `mask` does not keep, and the sign of kept zeros.
///
/// # Shapes
/// `weights`: `[rows, in_features]`, `mask`: `[rows, mask_bytes(in_features)]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn apply_mask(mask: &[u8], in_features: usize, weights: &mut [f32]) {
    if weights.is_empty() {
        return;
    }
    assert!(weights.len().is_multiple_of(in_features), "whole rows of {in_features}");
    let row_bytes = mask_bytes(in_features);
    assert_eq!(mask.len(), weights.len() / in_features * row_bytes, "mask of the rows");
    for (row, mask) in weights.chunks_exact_mut(in_features).zip(mask.chunks_exact(row_bytes)) {
        for (weights, bits) in row.chunks_mut(8).zip(mask) {
            for (i, weight) in weights.iter_mut().enumerate() {
                // Adding zero takes the sign of a zero and leaves the rest.
                *weight = if bits >> i & 1 == 1 { *weight + 0.0 } else { 0.0 };
            }
        }
    }
}

/// The line through the magnitudes of a whole tensor below which weights go, and how far the weights on it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    magnitude: u32,
    /// Of weights of that very magnitude, those before this position go.
    ties_end: u64,
}

/// Bits of a magnitude that the first pass tells apart: sign and exponent, and seven of the mantissa, as bf16 has them.
const HIGH_BITS: u32 = 16;

impl Threshold {
    /// The threshold that removes exactly `removed` weights.
    ///
    /// A radix selection on the bits of the magnitudes: one pass counts their upper halves, the next the lower halves
    /// of those in the one upper half that the threshold lies in, and a third finds the last equal weight to go, where
    /// not all of them do. It takes 0.8 MB, whatever the tensor's size.
    ///
    /// `each_chunk` is called for each pass with a function that takes the weights, from first to last, in pieces of
    /// any size; every pass must bring the same.
    ///
    /// ```
    /// use bitmill_prune::Threshold;
    /// let weights = [0.5, -3.0, 0.5, 0.5, 9.0, 0.1];
    /// let threshold = Threshold::select(3, |take| {
    ///     weights.chunks(4).for_each(take);
    ///     Ok::<(), std::convert::Infallible>(())
    /// })?;
    /// let mut mask = [0];
    /// threshold.mask_row(0, &weights, &mut mask);
    /// assert_eq!(mask, [0b01_1010]); // 0.1 goes, and the first two of three equal ones
    /// # Ok::<(), std::convert::Infallible>(())
    /// ```
    ///
    /// # Errors
    /// Those of `each_chunk`.
    pub fn select<E>(
        removed: u64,
        mut each_chunk: impl FnMut(&mut dyn FnMut(&[f32])) -> Result<(), E>,
    ) -> Result<Self, E> {
        if removed == 0 {
            return Ok(Self { magnitude: 0, ties_end: 0 });
        }
        let low_bits = 32 - HIGH_BITS;
        let mut counts = vec![0u64; 1 << (HIGH_BITS - 1)];
        each_chunk(&mut |weights| {
            weights.iter().for_each(|weight| counts[(magnitude(*weight) >> low_bits) as usize] += 1);
        })?;
        let Some((high, below)) = bucket_of(&counts, removed) else {
            return Ok(Self { magnitude: u32::MAX, ties_end: u64::MAX });
        };
        let mut counts = vec![0u64; 1 << low_bits];
        each_chunk(&mut |weights| {
            for magnitude in weights.iter().map(|weight| magnitude(*weight)) {
                if magnitude >> low_bits == high {
                    counts[(magnitude & ((1 << low_bits) - 1)) as usize] += 1;
                }
            }
        })?;
        let Some((low, below_low)) = bucket_of(&counts, removed - below) else {
            return Ok(Self { magnitude: u32::MAX, ties_end: u64::MAX });
        };
        let line = high << low_bits | low;
        let ties = removed - below - below_low;
        if ties == counts[low as usize] {
            return Ok(Self { magnitude: line, ties_end: u64::MAX });
        }
        let (mut seen, mut position, mut ties_end) = (0, 0, 0);
        each_chunk(&mut |weights| {
            for weight in weights {
                position += 1;
                if seen < ties && magnitude(*weight) == line {
                    seen += 1;
                    ties_end = position;
                }
            }
        })?;
        Ok(Self { magnitude: line, ties_end })
    }

    /// Marks what stays of a row that begins at weight `position` of the tensor, in the order of the passes.
    ///
    /// # Panics
    /// If `mask` has not [`mask_bytes`] for the row.
    pub fn mask_row(&self, position: u64, row: &[f32], mask: &mut [u8]) {
        assert_eq!(mask.len(), mask_bytes(row.len()), "mask of a row");
        mask.fill(0);
        for (i, weight) in row.iter().enumerate() {
            let magnitude = magnitude(*weight);
            let goes = magnitude < self.magnitude
                || (magnitude == self.magnitude && position + (i as u64) < self.ties_end);
            mask[i / 8] |= u8::from(!goes) << (i % 8);
        }
    }
}

/// Which bucket holds the `rank`th smallest, counted from 1, and how many lie in those before it; `None` if there are
/// fewer.
fn bucket_of(counts: &[u64], rank: u64) -> Option<(u32, u64)> {
    let mut below = 0;
    for (bucket, count) in counts.iter().enumerate() {
        if below + count >= rank {
            return Some((bucket as u32, below));
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*, with many equal magnitudes if `levels` is small.
    fn weights(n: usize, levels: u64) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20
        };
        (0..n).map(|_| ((next() % (2 * levels + 1)) as f32 - levels as f32) / levels as f32).collect()
    }

    fn sparsity(fraction: f64) -> Sparsity {
        Sparsity::new(fraction).unwrap()
    }

    fn select(weights: &[f32], removed: u64, chunk: usize) -> Threshold {
        let passes = |take: &mut dyn FnMut(&[f32])| {
            weights.chunks(chunk).for_each(take);
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(threshold) = Threshold::select(removed, passes);
        threshold
    }

    /// What stays, by sorting.
    fn sorted(weights: &[f32], removed: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|&a, &b| weights[a].abs().total_cmp(&weights[b].abs()));
        let mut stays = vec![true; weights.len()];
        order[..removed].iter().for_each(|&at| stays[at] = false);
        stays
    }

    fn bits(mask: &[u8], n: usize) -> Vec<bool> {
        (0..n).map(|i| mask[i / 8] >> (i % 8) & 1 == 1).collect()
    }

    #[test]
    fn rows_and_tensors_lose_what_sorting_says_also_among_equals() {
        for (n, levels) in [(1, 3), (7, 1), (64, 2), (257, 5), (4096, 40), (5000, 1 << 22)] {
            let row = weights(n, levels);
            for fraction in [0.0, 0.1, 0.5, 0.93, 1.0] {
                let removed = sparsity(fraction).removed(n as u64);
                let expected = sorted(&row, removed as usize);
                let mut mask = vec![0xff; mask_bytes(n)];
                RowRule::Sparsity(sparsity(fraction)).mask_row(&row, &mut mask).unwrap();
                assert_eq!(bits(&mask, n), expected, "row of {n}, {levels} levels, {fraction}");
                for chunk in [1, 100, n] {
                    mask.fill(0xff);
                    select(&row, removed, chunk).mask_row(0, &row, &mut mask);
                    assert_eq!(bits(&mask, n), expected, "tensor of {n}, {levels} levels, {fraction}");
                }
            }
        }
    }

    #[test]
    fn one_row_is_a_tensor_and_equal_rows_lose_the_same_in_both_scopes() {
        // Distinct magnitudes, so that no tie crosses rows.
        let row: Vec<f32> =
            (0..48).map(|i| ((i * 29 % 48) as f32 + 1.0) * if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let tensor = row.repeat(5);
        let threshold = select(&tensor, sparsity(0.25).removed(240), 17);
        let mut own = [0; 6];
        RowRule::Sparsity(sparsity(0.25)).mask_row(&row, &mut own).unwrap();
        for r in 0..5 {
            let mut mask = [0; 6];
            threshold.mask_row(48 * r, &row, &mut mask);
            assert_eq!(mask, own, "row {r}");
        }
    }

    #[test]
    fn ties_of_a_tensor_go_from_its_first_row_on() {
        let tensor = [1.0f32; 12];
        let threshold = select(&tensor, 5, 12);
        let mut kept = Vec::new();
        for (r, row) in tensor.chunks(4).enumerate() {
            let mut mask = [0];
            threshold.mask_row(4 * r as u64, row, &mut mask);
            kept.extend(bits(&mask, 4));
        }
        assert_eq!(kept, [[false; 5].as_slice(), &[true; 7]].concat());
    }

    #[test]
    fn n_of_m_keeps_n_of_each_m_and_all_when_they_are_equal() {
        let row = weights(96, 6);
        for (kept, of) in [(2, 4), (1, 3), (4, 8), (31, 32), (5, 6)] {
            let rule = RowRule::NOfM(NOfM::new(kept, of).unwrap());
            let mut mask = [0; 12];
            rule.mask_row(&row, &mut mask).unwrap();
            let stays = bits(&mask, 96);
            for (group, stays) in row.chunks(of).zip(stays.chunks(of)) {
                assert_eq!(stays, sorted(group, of - kept), "{kept}:{of}");
            }
            assert_eq!(rule.kept(96), Ok(96 / of * kept));
        }
        let mut mask = [0; 12];
        RowRule::NOfM(NOfM::new(4, 4).unwrap()).mask_row(&row, &mut mask).unwrap();
        assert_eq!(mask, [0xff; 12]);
        // One group as wide as the row is row scope.
        let (mut wide, mut whole) = ([0; 12], [0; 12]);
        RowRule::NOfM(NOfM::new(24, 96).unwrap()).mask_row(&row, &mut wide).unwrap();
        RowRule::Sparsity(sparsity(0.75)).mask_row(&row, &mut whole).unwrap();
        assert_eq!(wide, whole);
    }

    #[test]
    fn patterns_that_do_not_divide_a_row_are_refused_with_some_that_do() {
        let rule = RowRule::NOfM(NOfM::new(2, 5).unwrap());
        let error = rule.mask_row(&[1.0; 24], &mut [0; 3]).unwrap_err();
        assert_eq!(error, Error::UnevenPattern { in_features: 24, of: 5 });
        assert_eq!(error.hint().unwrap(), "patterns that divide 24: 2:4, 4:8");
        assert!(Error::UnevenPattern { in_features: 7, of: 4 }.hint().unwrap().contains("skip"));
        assert_eq!((NOfM::new(0, 4), NOfM::new(5, 4)), (None, None));
    }

    #[test]
    fn sparsity_zero_returns_its_input_and_counts_are_exact() {
        let row = weights(100, 1 << 20);
        for fraction in [0.0, 0.333, 0.5, 1.0] {
            let rule = RowRule::Sparsity(sparsity(fraction));
            let (mut mask, mut pruned) = (vec![0; 13], row.clone());
            rule.mask_row(&row, &mut mask).unwrap();
            apply_mask(&mask, 100, &mut pruned);
            let zeros = pruned.iter().filter(|weight| **weight == 0.0).count();
            assert_eq!(zeros, 100 - rule.kept(100).unwrap(), "{fraction}");
            if fraction == 0.0 {
                assert_eq!(pruned, row);
            }
        }
        assert_eq!((Sparsity::new(-0.1), Sparsity::new(1.1), Sparsity::new(f64::NAN)), (None, None, None));
    }

    #[test]
    fn no_zero_that_is_left_is_negative() {
        let mut weights = [-0.0, -1.0, -0.0, 5.0, -2.0, -0.0, -0.0, 0.0, -3.0];
        // Kept: the first, the second and the last.
        apply_mask(&[0b0000_0011, 0b1], 9, &mut weights);
        let bits: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
        let expected = [0.0f32, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -3.0].map(f32::to_bits);
        assert_eq!(bits, expected);
    }
}
