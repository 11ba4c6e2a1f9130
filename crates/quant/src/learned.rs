//! Learned rounding: whether a weight is rounded up or down, and how far its group's range is clipped, found by signed gradient
//! descent on what a loss says of the rounded weights.
//!
//! AutoRound, arXiv:2309.05516. A weight `w` of a group with scale `s` and zero point `z` stands for
//!
//! ```text
//! ŵ = s · (clamp(round(w / s + v) + z, lowest, highest) − z),   v from −1/2 to 1/2,
//! s and z those of the range α·min ..= β·max of the group's weights
//! ```
//!
//! and `v`, `α` and `β` move against the sign of their gradients by a rate that falls from step to step. Gradients pass
//! through rounding as if it were not there. The caller says what the loss makes of `ŵ`: it runs the layer, this does not.
//!
//! Grids: asymmetric ones are [`rtn`](crate::rtn)'s. Symmetric ones are AutoRound's: the end of the range that reaches furthest
//! falls on the lowest code, which the other end does not have, so that scales are negative where that end is the upper one.
//! At few bits that is up to a quarter finer than a grid that treats both alike. As the paper and its code, departing from them so:
//!
//! - A range may begin clipped by squared error ([`Clip::Mse`]), and grow again.
//! - Factors end at a tenth: no range is empty.
//! - What is kept is codes, a byte a weight; the caller says when.

use bitmill_tensor::{Grouped, ZeroPoint};
use rayon::prelude::*;

use crate::error::check_rows;
use crate::pack::{pack_row, stream_code};
use crate::rtn::{CodeRange, epsilon, min_max, nearest_even, scale_and_zero};
use crate::{Clip, Error, GroupedRows};

/// What may change beside how weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ranges {
    /// The ranges of groups, by a factor for each end.
    #[default]
    Learned,
    /// Nothing.
    Fixed,
}

/// How far from the middle of its code's places a weight begins whose nearest code is another: it takes some steps to go there.
const EDGE: f32 = 0.4;
/// What ends of ranges that were found begin with, so that they may grow, too.
const FOUND: f32 = 0.8;
/// The least factor of a range's end.
const LEAST: f32 = 0.1;

/// A group: its range without factors, and the factors of its ends.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    min: f32,
    max: f32,
    alpha: f32,
    beta: f32,
}

/// One matrix on its way.
///
/// ```
/// use bitmill_quant::{Clip, Learned, Ranges, RtnGrid};
/// use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};
/// let grid = RtnGrid {
///     bits: Bits::new(4).unwrap(),
///     granularity: Granularity::Channel,
///     zero_point: ZeroPoint::Symmetric,
///     scale: FloatType::F32,
/// };
/// // Two inputs that are always equal: only the sum of the first two weights counts.
/// let weight = vec![1.4, 1.3, -8.0];
/// let mut learned = Learned::new(&grid.layout(3)?, Clip::None, Ranges::Fixed, weight, 3)?;
/// let (mut decided, mut least) = ([0.0; 3], f32::INFINITY);
/// for step in 0..10 {
///     learned.decide(0, &mut decided);
///     let moved = decided[0] + decided[1] - 2.7;
///     if moved.abs() < least {
///         least = moved.abs();
///         learned.keep();
///     }
///     learned.step(|_, gradient| gradient.copy_from_slice(&[moved, moved, 0.0]), 0.1 - 0.01 * step as f32);
/// }
/// learned.finish(&mut decided);
/// assert_eq!(decided, [2.0, 1.0, -8.0]);
/// # Ok::<(), bitmill_quant::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Learned {
    grid: Grouped,
    range: CodeRange,
    ranges: Ranges,
    /// How far a factor moves where an offset moves by 1.
    range_rate: f32,
    in_features: usize,
    weight: Vec<f32>,
    offsets: Vec<f32>,
    groups: Vec<Group>,
    kept: Kept,
}

/// The iterate that is kept: unsigned codes, scales and signed zero points.
#[derive(Debug, Clone, Default)]
struct Kept {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

impl Learned {
    /// Begins with every weight rounded to nearest, on ranges chosen by `clip`.
    ///
    /// # Shapes
    /// `weight`: `[rows, in_features]`.
    ///
    /// # Errors
    /// [`UnevenGroups`](Error::UnevenGroups) if the groups do not tile a row, [`NonFinite`](Error::NonFinite) for NaN and
    /// infinity, [`ScaleOverflow`](Error::ScaleOverflow) if a group's scale is beyond its type.
    ///
    /// # Panics
    /// If `weight` is not whole rows.
    pub fn new(
        grid: &Grouped,
        clip: Clip,
        ranges: Ranges,
        weight: Vec<f32>,
        in_features: usize,
    ) -> Result<Self, Error> {
        let group_size = grid.group_size.get();
        if in_features == 0 || !in_features.is_multiple_of(group_size) {
            return Err(Error::UnevenGroups { in_features, group_size });
        }
        check_rows(&weight, in_features)?;
        let range = CodeRange::new(grid.bits);
        let group_of = |weights: &[f32]| {
            let (min, max) = min_max(weights);
            let group = Group { min: min.min(0.0), max: max.max(0.0), alpha: 1.0, beta: 1.0 };
            // With whole ranges, so that every smaller one has a scale too.
            let found = group.scale_and_zero(grid, &range)?;
            Ok(if clip == Clip::None { group } else { group.clipped(grid, &range, found, weights) })
        };
        let groups: Vec<Result<Group, f32>> = weight.par_chunks(group_size).map(group_of).collect();
        let place = |at: usize| (at * group_size / in_features, at * group_size % in_features);
        let overflow = |at: usize, scale: f32| {
            let (row, col) = place(at);
            Error::ScaleOverflow { row, col, scale, float: grid.scale }
        };
        let groups = groups.into_iter().enumerate();
        let groups = groups.map(|(at, group)| group.map_err(|scale| overflow(at, scale)));
        let groups = groups.collect::<Result<Vec<Group>, Error>>()?;
        Ok(Self::begun(grid, (ranges, 1.0), weight, in_features, groups))
    }

    /// Begins with codes, scales and zero points that another method found. A weight whose code is not the nearest counts as
    /// the nearest place to it that has the code, 0.4 steps from its middle; ranges may shrink, and grow by a quarter, by twice as many
    /// codes at their ends as offsets move.
    ///
    /// # Shapes
    /// `weight`: `[rows, in_features]`, which `found` are codes of.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    ///
    /// # Panics
    /// If `weight` is not whole rows, or `found` is of others.
    pub fn from_codes(
        grid: &Grouped,
        ranges: Ranges,
        mut weight: Vec<f32>,
        in_features: usize,
        found: &GroupedRows,
    ) -> Result<Self, Error> {
        let size = grid.group_size.get();
        if in_features == 0 || !in_features.is_multiple_of(size) {
            return Err(Error::UnevenGroups { in_features, group_size: size });
        }
        check_rows(&weight, in_features)?;
        let range = CodeRange::new(grid.bits);
        let row_bytes = 4 * grid.words_per_row(in_features);
        assert_eq!(found.packed.len(), weight.len() / in_features * row_bytes, "codes of the weights");
        let groups_per_row = in_features / size;
        let mut groups = vec![Group::default(); weight.len() / size];
        let rows = weight.par_chunks_exact_mut(in_features).zip(groups.par_chunks_exact_mut(groups_per_row));
        rows.enumerate().for_each(|(row, (weights, groups))| {
            let packed = &found.packed[row * row_bytes..(row + 1) * row_bytes];
            let word = |at: usize| u32::from_le_bytes(packed[4 * at..4 * at + 4].try_into().expect("a word"));
            for (at, (weights, group)) in weights.chunks_exact_mut(size).zip(groups).enumerate() {
                let place = row * groups_per_row + at;
                let scale = grid.scale.read(&found.scales, place);
                let zero = found.zero_codes.get(place).map_or(0.0, |&zero| f32::from(zero) + range.lowest);
                *group = Group::of_scale(grid, &range, scale, zero);
                for (col, weight) in weights.iter_mut().enumerate() {
                    let code = stream_code(grid.bits.get(), at * size + col, word);
                    let code = f32::from(code) + range.lowest - zero;
                    let exact = *weight / scale;
                    if range.code(exact, zero) - zero != code {
                        *weight = scale * exact.clamp(code - EDGE, code + EDGE);
                    }
                }
            }
        });
        let range_rate = 2.0 / -range.lowest;
        Ok(Self::begun(grid, (ranges, range_rate), weight, in_features, groups))
    }

    fn begun(
        grid: &Grouped,
        (ranges, range_rate): (Ranges, f32),
        weight: Vec<f32>,
        in_features: usize,
        groups: Vec<Group>,
    ) -> Self {
        let offsets = vec![0.0; weight.len()];
        let mut learned = Self {
            grid: *grid,
            range: CodeRange::new(grid.bits),
            ranges,
            range_rate,
            in_features,
            weight,
            offsets,
            groups,
            kept: Kept::default(),
        };
        learned.keep();
        learned
    }

    /// Columns of the matrix.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// What row `row` stands for by now, into `out`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn decide(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.in_features, "a row");
        let size = self.grid.group_size.get();
        let at = row * self.in_features..(row + 1) * self.in_features;
        let weights =
            self.weight[at.clone()].chunks_exact(size).zip(self.offsets[at.clone()].chunks_exact(size));
        let groups = &self.groups[at.start / size..at.end / size];
        for (((weights, offsets), group), out) in weights.zip(groups).zip(out.chunks_exact_mut(size)) {
            let (scale, zero) = self.scale_and_zero(group);
            for ((weight, offset), out) in weights.iter().zip(offsets).zip(out) {
                *out = scale * (self.range.code(weight / scale + offset, zero) - zero);
            }
        }
    }

    /// Moves every offset and factor by `rate` against the sign of its gradient; `gradient` fills in what the loss says of
    /// the values of a row, which are those that [`decide`](Self::decide) gave. What is NaN there moves nothing.
    pub fn step(&mut self, gradient: impl Fn(usize, &mut [f32]) + Sync, rate: f32) {
        let (size, in_features) = (self.grid.group_size.get(), self.in_features);
        let (grid, range, ranges) = (self.grid, self.range, self.ranges);
        let range_rate = rate * self.range_rate;
        let rows =
            self.weight.par_chunks_exact(in_features).zip(self.offsets.par_chunks_exact_mut(in_features));
        let rows = rows.zip(self.groups.par_chunks_exact_mut(in_features / size)).enumerate();
        rows.for_each_init(
            || vec![0.0; in_features],
            |of_row, (row, ((weights, offsets), groups))| {
                gradient(row, of_row);
                let parts = weights.chunks_exact(size).zip(offsets.chunks_exact_mut(size));
                for (((weights, offsets), group), of) in parts.zip(groups).zip(of_row.chunks_exact(size)) {
                    let by = group.scale_and_zero(&grid, &range).unwrap_or((epsilon(grid.scale), 0.0));
                    let end = group.end(&grid, by.0);
                    let sums = move_offsets(&range, by, end, weights, offsets, of, rate);
                    if ranges == Ranges::Learned {
                        group.step(&grid, &range, sums, range_rate);
                    }
                }
            },
        );
    }

    /// Keeps what the weights stand for by now, instead of what was kept before.
    pub fn keep(&mut self) {
        let size = self.grid.group_size.get();
        let mut kept = std::mem::take(&mut self.kept);
        kept.codes.resize(self.weight.len(), 0);
        kept.scales.resize(self.groups.len(), 0.0);
        kept.zeros.resize(self.groups.len(), 0.0);
        let groups = self.weight.par_chunks_exact(size).zip(self.offsets.par_chunks_exact(size));
        let groups = groups.zip(&self.groups).zip(kept.codes.par_chunks_exact_mut(size));
        groups.zip(&mut kept.scales).zip(&mut kept.zeros).with_min_len(64).for_each(
            |(((((weights, offsets), group), codes), scale), zero)| {
                (*scale, *zero) = self.scale_and_zero(group);
                for ((weight, offset), code) in weights.iter().zip(offsets).zip(codes) {
                    *code = (self.range.code(weight / *scale + offset, *zero) - self.range.lowest) as u8;
                }
            },
        );
        self.kept = kept;
    }

    /// Codes, scales and zero points of what was kept last, of the beginning if nothing was; `decided` becomes the values.
    ///
    /// # Shapes
    /// `decided`: `[rows, in_features]`.
    ///
    /// # Panics
    /// If `decided` has another length.
    pub fn finish(&self, decided: &mut [f32]) -> GroupedRows {
        assert_eq!(decided.len(), self.weight.len(), "weights and their decided values");
        let Self { grid, range, in_features, kept: Kept { codes, scales, zeros }, .. } = self;
        let in_features = *in_features;
        let size = grid.group_size.get();
        let row_bytes = 4 * grid.words_per_row(in_features);
        let rows = codes.len() / in_features;
        let mut out = GroupedRows { packed: vec![0; rows * row_bytes], ..GroupedRows::default() };
        for (codes, packed) in codes.chunks_exact(in_features).zip(out.packed.chunks_exact_mut(row_bytes)) {
            pack_row(codes, grid.bits, packed);
        }
        let groups = codes.chunks_exact(size).zip(decided.chunks_exact_mut(size));
        for ((codes, decided), (&scale, &zero)) in groups.zip(scales.iter().zip(zeros)) {
            grid.scale.push(scale, &mut out.scales);
            if grid.zero_point == ZeroPoint::Asymmetric {
                out.zero_codes.push((zero - range.lowest) as u8);
            }
            for (code, decided) in codes.iter().zip(decided) {
                *decided = scale * (f32::from(*code) + range.lowest - zero);
            }
        }
        out
    }

    fn scale_and_zero(&self, group: &Group) -> (f32, f32) {
        // Checked when it began: a smaller range has a smaller scale.
        group.scale_and_zero(&self.grid, &self.range).unwrap_or((epsilon(self.grid.scale), 0.0))
    }
}

impl CodeRange {
    /// The signed code that is nearest to `place` steps from the zero point.
    #[inline(always)]
    fn code(&self, place: f32, zero: f32) -> f32 {
        nearest_even((place + zero).max(self.lowest).min(self.highest))
    }
}

/// Gradients of a group's scale and of the lower end of its range.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    scale: f64,
    low: f64,
}

/// Moves the offsets of a group; what the loss says of its scale and of its range's lower end. `end` is that of the group.
fn move_offsets(
    range: &CodeRange,
    (scale, zero): (f32, f32),
    end: f32,
    weights: &[f32],
    offsets: &mut [f32],
    of: &[f32],
    rate: f32,
) -> Sums {
    const LANES: usize = 8;
    let (mut of_scale, mut of_low) = ([0f32; LANES], [0f32; LANES]);
    let pieces = weights.chunks(LANES).zip(offsets.chunks_mut(LANES)).zip(of.chunks(LANES));
    for ((weights, offsets), of) in pieces {
        for (lane, ((weight, offset), of)) in weights.iter().zip(offsets).zip(of).enumerate() {
            let exact = weight / scale;
            let place = exact + *offset + zero;
            let code = nearest_even(place.max(range.lowest).min(range.highest));
            // Rounded, it would be a code.
            let inside = place >= range.lowest - 0.5 && place <= range.highest + 0.5;
            let slope = if inside { of * scale } else { 0.0 };
            let sign = f32::from(u8::from(slope > 0.0)) - f32::from(u8::from(slope < 0.0));
            *offset = (*offset - rate * sign).clamp(-0.5, 0.5);
            // A code inside stands for a weight that stays where it is, one at an end for the end.
            of_scale[lane] += of * (code - zero - if inside { exact } else { end });
            of_low[lane] += if inside { 0.0 } else { *of };
        }
    }
    Sums {
        scale: of_scale.iter().copied().map(f64::from).sum(),
        low: of_low.iter().copied().map(f64::from).sum(),
    }
}

impl Group {
    /// The range that has `scale` and `zero`, with room to grow.
    fn of_scale(grid: &Grouped, range: &CodeRange, scale: f32, zero: f32) -> Self {
        let (low, high) = match grid.zero_point {
            ZeroPoint::Asymmetric => ((range.lowest - zero) * scale, (range.highest - zero) * scale),
            ZeroPoint::Symmetric => ((range.lowest * scale).min(0.0), (range.lowest * scale).max(0.0)),
        };
        Self { min: low / FOUND, max: high / FOUND, alpha: FOUND, beta: FOUND }
    }

    fn low(&self) -> f32 {
        self.alpha * self.min
    }

    fn high(&self) -> f32 {
        self.beta * self.max
    }

    /// How far the zero point is from the lowest code, in steps, as the range has it; 0 where it does not follow from the range.
    fn end(&self, grid: &Grouped, scale: f32) -> f32 {
        match grid.zero_point {
            ZeroPoint::Symmetric => 0.0,
            ZeroPoint::Asymmetric => self.low() / scale,
        }
    }

    /// Scale as it is stored, and signed zero point; or the scale that its type cannot hold.
    fn scale_and_zero(&self, grid: &Grouped, range: &CodeRange) -> Result<(f32, f32), f32> {
        let (low, high) = (self.low(), self.high());
        if grid.zero_point == ZeroPoint::Asymmetric {
            return scale_and_zero(grid, range, low, high);
        }
        let exact = if -low >= high { low / range.lowest } else { high / range.lowest };
        let scale = grid.scale.round(exact);
        match scale {
            _ if !scale.is_finite() => Err(exact),
            0.0 => Ok((epsilon(grid.scale), 0.0)),
            _ => Ok((scale, 0.0)),
        }
    }

    /// Moves the factors by what the loss says of scale and lower end.
    fn step(&mut self, grid: &Grouped, range: &CodeRange, sums: Sums, rate: f32) {
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let (alpha, beta) = match grid.zero_point {
            ZeroPoint::Asymmetric => {
                let by_scale = sums.scale / f64::from(range.highest - range.lowest);
                (min * (sums.low - by_scale), max * by_scale)
            }
            ZeroPoint::Symmetric => {
                let by_scale = sums.scale / f64::from(range.lowest);
                if -self.low() >= self.high() { (min * by_scale, 0.0) } else { (0.0, max * by_scale) }
            }
        };
        for (factor, slope) in [(&mut self.alpha, alpha), (&mut self.beta, beta)] {
            if slope > 0.0 {
                *factor = (*factor - rate).max(LEAST);
            } else if slope < 0.0 {
                *factor = (*factor + rate).min(1.0);
            }
        }
    }

    /// The same with the factors, of 1.00, 0.98, … 0.40, that leave the smallest squared error: both ends alike first, then, where
    /// each has a say, each alone.
    fn clipped(self, grid: &Grouped, range: &CodeRange, whole: (f32, f32), weights: &[f32]) -> Self {
        const STEPS: u8 = 30;
        let error = |(scale, zero): (f32, f32)| -> f64 {
            let moved = |weight: &f32| {
                let moved = f64::from(weight - scale * (range.code(weight / scale, zero) - zero));
                moved * moved
            };
            weights.iter().map(moved).sum()
        };
        let (mut best, mut least) = (self, error(whole));
        let ends: &[(bool, bool)] = match grid.zero_point {
            ZeroPoint::Symmetric => &[(true, true)],
            ZeroPoint::Asymmetric => &[(true, true), (true, false), (false, true)],
        };
        for &(low, high) in ends {
            let from = best;
            for step in 1..=STEPS {
                let factor = 1.0 - 0.02 * f32::from(step);
                let of = |moves: bool, end: f32| if moves { (end * factor).max(LEAST) } else { end };
                let candidate = Self { alpha: of(low, from.alpha), beta: of(high, from.beta), ..from };
                let Ok(found) = candidate.scale_and_zero(grid, range) else { continue };
                let error = error(found);
                if error < least {
                    (best, least) = (candidate, error);
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use bitmill_tensor::{Bits, FloatType};
    use bitmill_testkit::noise;

    use super::*;
    use crate::{quantize_rows, quantize_rows_clipped};

    fn grid(bits: u8, group_size: usize, zero_point: ZeroPoint, scale: FloatType) -> Grouped {
        let (bits, group_size) = (Bits::new(bits).unwrap(), group_size.try_into().unwrap());
        Grouped { bits, group_size, zero_point, scale }
    }

    const KINDS: [ZeroPoint; 2] = [ZeroPoint::Symmetric, ZeroPoint::Asymmetric];

    #[test]
    fn without_a_step_asymmetric_codes_are_those_of_rounding_to_nearest() {
        let weight = noise("weight", 6 * 96);
        for bits in 2..=8 {
            for scale in [FloatType::F16, FloatType::BF16] {
                for (clip, group_size) in [(Clip::None, 32), (Clip::None, 96), (Clip::Mse, 32)] {
                    let grid = grid(bits, group_size, ZeroPoint::Asymmetric, scale);
                    let (mut nearest, mut decided) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
                    let expected = quantize_rows_clipped(&grid, clip, &weight, 96, &mut nearest).unwrap();
                    let learned = Learned::new(&grid, clip, Ranges::Learned, weight.clone(), 96).unwrap();
                    let mut row = vec![0.0; 96];
                    learned.decide(3, &mut row);
                    let rows = learned.finish(&mut decided);
                    assert_eq!((&row[..], &decided), (&nearest[3 * 96..4 * 96], &nearest), "{grid:?}");
                    assert_eq!(rows, expected);
                }
            }
        }
    }

    #[test]
    fn symmetric_grids_put_the_further_end_on_the_lowest_code() {
        for (weight, scale) in [([-4.0, 3.0, 1.0, 0.0], 0.5), ([-3.0, 4.0, 1.0, 0.0], -0.5)] {
            let grid = grid(4, 4, ZeroPoint::Symmetric, FloatType::BF16);
            let learned = Learned::new(&grid, Clip::None, Ranges::Learned, weight.to_vec(), 4).unwrap();
            let mut decided = [0.0; 4];
            let rows = learned.finish(&mut decided);
            assert_eq!((decided, grid.scale.read(&rows.scales, 0)), (weight, scale));
            assert!(rows.zero_codes.is_empty());
        }
        // Which is finer than treating both ends alike, most of all at few bits.
        let weight = noise("weight", 64 * 64);
        let error = |decided: &[f32]| -> f64 {
            weight.iter().zip(decided).map(|(a, b)| f64::from((a - b) * (a - b))).sum()
        };
        for (bits, at_most) in [(2, 0.75), (3, 0.92), (4, 0.97)] {
            let grid = grid(bits, 64, ZeroPoint::Symmetric, FloatType::F16);
            let (mut alike, mut decided) = (vec![0.0; 4096], vec![0.0; 4096]);
            quantize_rows(&grid, &weight, 64, &mut alike).unwrap();
            Learned::new(&grid, Clip::None, Ranges::Fixed, weight.clone(), 64).unwrap().finish(&mut decided);
            let ratio = error(&decided) / error(&alike);
            assert!(ratio < at_most, "{bits} bits: {ratio}");
        }
    }

    /// Rounding passes gradients on as if what it adds were a constant: differences of that.
    #[test]
    fn gradients_are_those_of_rounding_that_adds_a_constant() {
        for zero_point in KINDS {
            for bits in [2, 4] {
                let grid = grid(bits, 16, zero_point, FloatType::F32);
                let range = CodeRange::new(grid.bits);
                let (weights, of) = (noise("weights", 16), noise("of", 16));
                let offsets: Vec<f32> = noise("offsets", 16).into_iter().map(|x| 0.2 * x).collect();
                let (min, max) = min_max(&weights);
                // Ends that clip on both sides.
                let group = Group { min, max, alpha: 0.6, beta: 0.7 };
                let by = group.scale_and_zero(&grid, &range).unwrap();
                let exact = |alpha: f64, beta: f64| {
                    let (low, high) = (alpha * f64::from(min), beta * f64::from(max));
                    let (lowest, highest) = (f64::from(range.lowest), f64::from(range.highest));
                    match zero_point {
                        ZeroPoint::Asymmetric => {
                            let scale = (high - low) / (highest - lowest);
                            (scale, lowest - low / scale)
                        }
                        ZeroPoint::Symmetric => (if -low >= high { low } else { high } / lowest, 0.0),
                    }
                };
                let (alpha, beta) = (f64::from(group.alpha), f64::from(group.beta));
                let base = exact(alpha, beta);
                let by_zero = by.1;
                let constant_zero = f64::from(by_zero) - base.1;
                let loss = |alpha: f64, beta: f64, moved: Option<(usize, f64)>| -> f64 {
                    let (scale, zero) = exact(alpha, beta);
                    let terms = weights.iter().zip(&offsets).zip(&of).enumerate();
                    terms
                        .map(|(at, ((weight, offset), of))| {
                            let (weight, offset) = (f64::from(*weight), f64::from(*offset));
                            let place = weight / base.0 + offset;
                            let constant = place.round() - place;
                            let by = moved.filter(|(moved, _)| *moved == at).map_or(0.0, |(_, by)| by);
                            let zero = zero + constant_zero;
                            let code = weight / scale + offset + by + constant + zero;
                            // At an end a code is inside, as torch has it; only beyond it moves nothing.
                            let rounded = place.round() + f64::from(by_zero);
                            let clamped = rounded.clamp(f64::from(range.lowest), f64::from(range.highest));
                            let code = if clamped == rounded { code } else { clamped };
                            f64::from(*of) * scale * (code - zero)
                        })
                        .sum()
                };
                const STEP: f64 = 1e-6;
                let slope = |up: f64, down: f64| (up - down) / (2.0 * STEP);
                let mut moved = offsets.clone();
                let sums = move_offsets(&range, by, group.end(&grid, by.0), &weights, &mut moved, &of, 0.01);
                for at in 0..16 {
                    let slope =
                        slope(loss(alpha, beta, Some((at, STEP))), loss(alpha, beta, Some((at, -STEP))));
                    let expected = if slope.abs() < 1e-9 { 0.0 } else { -0.01 * slope.signum() };
                    let found = f64::from(moved[at] - offsets[at]);
                    assert!((found - expected).abs() < 1e-6, "{zero_point:?} {at}: {found} {expected}");
                }
                let mut stepped = group;
                stepped.step(&grid, &range, sums, 0.01);
                let of_alpha = slope(loss(alpha + STEP, beta, None), loss(alpha - STEP, beta, None));
                let of_beta = slope(loss(alpha, beta + STEP, None), loss(alpha, beta - STEP, None));
                for (before, after, slope) in
                    [(group.alpha, stepped.alpha, of_alpha), (group.beta, stepped.beta, of_beta)]
                {
                    let expected = if slope.abs() < 1e-9 { 0.0 } else { -0.01 * slope.signum() };
                    let found = f64::from(after - before);
                    assert!((found - expected).abs() < 1e-6, "{zero_point:?}: {found} {expected}");
                }
            }
        }
    }

    /// The error of outputs on some inputs, and what it says of the values.
    fn output_error(weight: &[f32], decided: &[f32], x: &[f32], n: usize) -> (f64, Vec<f32>) {
        let (mut total, mut of) = (0.0, vec![0.0; decided.len()]);
        for ((weight, decided), of) in
            weight.chunks_exact(n).zip(decided.chunks_exact(n)).zip(of.chunks_exact_mut(n))
        {
            for x in x.chunks_exact(n) {
                let moved: f32 = weight.iter().zip(decided).zip(x).map(|((w, d), x)| (d - w) * x).sum();
                total += f64::from(moved * moved);
                of.iter_mut().zip(x).for_each(|(of, x)| *of += moved * x);
            }
        }
        (total, of)
    }

    /// Learns for `steps` steps, keeping the best; its error and values.
    fn learn(mut learned: Learned, weight: &[f32], x: &[f32], steps: u16) -> (f64, Vec<f32>) {
        let n = learned.in_features();
        let mut decided = vec![0.0; weight.len()];
        let mut best = f64::INFINITY;
        for step in 0..steps {
            for (row, out) in decided.chunks_exact_mut(n).enumerate() {
                learned.decide(row, out);
            }
            let (error, of) = output_error(weight, &decided, x, n);
            if error < best {
                best = error;
                learned.keep();
            }
            let rate = (1.0 - f32::from(step) / f32::from(steps)) / f32::from(steps);
            learned.step(|row, out| out.copy_from_slice(&of[row * n..(row + 1) * n]), rate);
        }
        learned.finish(&mut decided);
        let (error, _) = output_error(weight, &decided, x, n);
        assert!((error - best).abs() <= 1e-6 * best, "what was kept comes back: {error} {best}");
        (error, decided)
    }

    #[test]
    fn what_is_learned_loses_less_than_rounding_to_nearest() {
        // Fewer inputs than columns, and correlated ones: there is much to make up for.
        let (n, weight) = (64, noise("weight", 8 * 64));
        let mixed = noise("x", 24 * n);
        let x: Vec<f32> = (0..24 * n).map(|at| mixed[at] + 2.0 * mixed[at / n * n]).collect();
        for zero_point in KINDS {
            for (bits, at_most) in [(2, 0.65), (3, 0.65), (4, 0.85)] {
                let grid = grid(bits, 32, zero_point, FloatType::F16);
                let begin = |ranges| Learned::new(&grid, Clip::None, ranges, weight.clone(), n).unwrap();
                let mut nearest = vec![0.0; weight.len()];
                begin(Ranges::Fixed).finish(&mut nearest);
                let (before, _) = output_error(&weight, &nearest, &x, n);
                let (after, _) = learn(begin(Ranges::Learned), &weight, &x, 200);
                let (fixed, _) = learn(begin(Ranges::Fixed), &weight, &x, 200);
                assert!(after < at_most * before, "{zero_point:?} {bits}: {after} {before}");
                assert!(fixed < before, "{zero_point:?} {bits}: {fixed} {before}");
            }
        }
    }

    #[test]
    fn codes_that_were_found_come_back_and_learning_goes_on_from_them() {
        let (n, weight) = (64, noise("weight", 8 * 64));
        let mixed = noise("x", 24 * n);
        let x: Vec<f32> = (0..24 * n).map(|at| mixed[at] + 2.0 * mixed[at / n * n]).collect();
        // Codes of other weights: many are not the nearest, some are two steps away.
        let others: Vec<f32> =
            weight.iter().zip(noise("others", 8 * 64)).map(|(w, by)| w + 0.3 * by).collect();
        for zero_point in KINDS {
            for bits in [2, 3, 4, 8] {
                for scale in [FloatType::F16, FloatType::BF16] {
                    let grid = grid(bits, 32, zero_point, scale);
                    let mut values = vec![0.0; weight.len()];
                    let found = quantize_rows_clipped(&grid, Clip::Mse, &others, n, &mut values).unwrap();
                    let begin =
                        || Learned::from_codes(&grid, Ranges::Learned, weight.clone(), n, &found).unwrap();
                    let mut decided = vec![0.0; weight.len()];
                    assert_eq!(begin().finish(&mut decided), found, "{grid:?}");
                    assert_eq!(decided, values);
                    let (before, _) = output_error(&weight, &values, &x, n);
                    let (after, _) = learn(begin(), &weight, &x, 50);
                    assert!(after < 0.7 * before, "{grid:?}: {after} {before}");
                }
            }
        }
    }

    #[test]
    fn offsets_move_a_weight_by_one_code_at_most_and_fixed_ranges_stay() {
        let weight = noise("weight", 4 * 32);
        for zero_point in KINDS {
            let grid = grid(4, 32, zero_point, FloatType::BF16);
            let mut learned = Learned::new(&grid, Clip::None, Ranges::Fixed, weight.clone(), 32).unwrap();
            let before = learned.kept.clone();
            for _ in 0..300 {
                learned.step(|row, out| out.copy_from_slice(&noise(&format!("of {row}"), 32)), 0.01);
            }
            learned.keep();
            assert!(learned.kept.scales == before.scales && learned.kept.zeros == before.zeros);
            assert!(learned.offsets.iter().any(|offset| offset.abs() > 0.49));
            let moves = learned.kept.codes.iter().zip(&before.codes).map(|(a, b)| a.abs_diff(*b));
            assert!(moves.clone().all(|by| by <= 1) && moves.clone().any(|by| by == 1));
        }
    }

    #[test]
    fn nothing_hostile_makes_it_less_than_finite() {
        for zero_point in KINDS {
            for (name, weight) in [
                ("zeros", vec![0.0; 32]),
                ("one", vec![1.0; 32]),
                ("tiny", vec![1e-38; 32]),
                ("huge", noise("huge", 32).into_iter().map(|x| 1e30 * x).collect()),
            ] {
                let grid = grid(2, 16, zero_point, FloatType::BF16);
                let mut learned = Learned::new(&grid, Clip::Mse, Ranges::Learned, weight, 32).unwrap();
                for of in [f32::NAN, f32::INFINITY, f32::MAX, -f32::MAX, 0.0, 1e-45] {
                    for _ in 0..40 {
                        learned.step(|_, out| out.fill(of), 0.5);
                    }
                    learned.keep();
                }
                let mut decided = vec![f32::NAN; 32];
                learned.finish(&mut decided);
                assert!(decided.iter().all(|value| value.is_finite()), "{name} {zero_point:?}: {decided:?}");
            }
        }
        let grid = grid(4, 32, ZeroPoint::Symmetric, FloatType::F16);
        let begin = |weight: Vec<f32>| Learned::new(&grid, Clip::None, Ranges::Learned, weight, 64);
        let mut weight = vec![0.0; 128];
        weight[100] = 1e9;
        let error = begin(weight.clone()).unwrap_err();
        assert!(matches!(error, Error::ScaleOverflow { row: 1, col: 32, .. }), "{error}");
        weight[100] = f32::NAN;
        assert!(matches!(begin(weight).unwrap_err(), Error::NonFinite { row: 1, col: 36, .. }));
    }
}
