//! Rounds a span of columns, sub-block after sub-block, each column's error pushed onto those still to come.
//!
//! A sub-block's scale and shift are those of which rounding its columns one after another costs least: the cost is that
//! of the whole row's output as far as later columns cannot make up for it, so a scale is judged by what it does with
//! errors pushed on, not by each weight's distance from the grid.

use super::{
    grid::{Grid, Level, SPAN, SpanLevels},
    lanes::Rows,
};
use crate::ggml::{iq4::VALUES, refine::Codes};

/// What the loops need of a [`Grid`], the kind of codes apart.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub low: f32,
    pub top: f32,
    pub scales: (f32, f32),
    pub shifts: (f32, f32),
    pub sub_scales: bool,
    /// Sub-blocks in a block.
    pub per_block: usize,
    /// What scale and shift are moved by when better ones are looked for.
    pub moves: &'a [(f32, f32)],
}

impl<'a> Shape<'a> {
    pub(super) fn of(grid: &Grid, moves: &'a [(f32, f32)]) -> Self {
        let (low, top) = match grid.space.codes {
            Codes::Integers { low, top } => (low as f32, top as f32),
            Codes::Values => (f32::from(VALUES[0]), f32::from(VALUES[15])),
        };
        let floats = |(low, top): (i32, i32)| (low as f32, top as f32);
        Self {
            low,
            top,
            scales: floats(grid.space.scales),
            shifts: floats(grid.space.shifts),
            sub_scales: grid.has_sub_scales(),
            per_block: grid.block.weights() / grid.len,
            moves,
        }
    }

    /// `level` moved: by steps of what is stored, or, where the block's own scale is all there is, by 1.5 % of it and by
    /// tenths of a step.
    #[inline(always)]
    pub(super) fn moved(&self, level: &Level, (scale, shift): (f32, f32)) -> Level {
        if self.sub_scales {
            Level {
                scale: (level.scale + Rows::splat(scale)).within(self.scales.0, self.scales.1),
                shift: (level.shift + Rows::splat(shift)).within(self.shifts.0, self.shifts.1),
                ..*level
            }
        } else {
            Level {
                d: level.d.plus(level.d, Rows::splat(0.015 * scale)),
                d_min: level.d_min.plus(level.d, Rows::splat(0.1 * shift)),
                ..*level
            }
        }
    }

    /// The code whose value is nearest, `x` in steps.
    #[inline(always)]
    pub(super) fn nearest<const TABLE: bool>(&self, x: Rows) -> Rows {
        if !TABLE {
            return x.within(self.low, self.top).rounded();
        }
        let mut value = Rows::splat(f32::from(VALUES[0]));
        for pair in VALUES.windows(2) {
            let (low, high) = (f32::from(pair[0]), f32::from(pair[1]));
            let below = x.below(Rows::splat((low + high) / 2.0));
            value = value + below.select(Rows::ZERO, Rows::splat(high - low));
        }
        value
    }
}

/// The factor of the inverse Hessian as far as a sub-block needs it: rows of `LEN`.
#[derive(Clone, Copy)]
pub(super) struct Local<'a, const LEN: usize> {
    /// Row `i`, column `k`: U_ik / U_ii.
    pub ratios: &'a [[f32; LEN]],
    /// 1 / U_ii².
    pub costs: &'a [f32; LEN],
    /// 1 / U_ii.
    pub inverses: &'a [f32; LEN],
}

/// The cost of rounding `x` with `level`.
#[inline(always)]
pub(super) fn cost<const LEN: usize, const TABLE: bool>(
    shape: &Shape<'_>,
    local: &Local<'_, LEN>,
    x: &[Rows; LEN],
    level: &Level,
) -> Rows {
    let (step, low) = (level.step(), level.low());
    let inverse = step.inverse();
    let mut x = *x;
    let mut sum = Rows::ZERO;
    for i in 0..LEN {
        let shifted = x[i] + low;
        let code = shape.nearest::<TABLE>(shifted * inverse);
        let rest = shifted.minus(step, code);
        sum = sum.plus(rest * rest, Rows::splat(local.costs[i]));
        for (x, &ratio) in x[i + 1..].iter_mut().zip(&local.ratios[i][i + 1..]) {
            *x = x.minus(rest, Rows::splat(ratio));
        }
    }
    sum
}

/// The level near `level` that costs least, as it is stored.
#[inline(always)]
pub(super) fn best_level<const LEN: usize, const TABLE: bool>(
    shape: &Shape<'_>,
    local: &Local<'_, LEN>,
    x: &[Rows; LEN],
    level: &Level,
) -> Level {
    let mut best = *level;
    let mut least = cost::<LEN, TABLE>(shape, local, x, level);
    for &by in shape.moves {
        let moved = shape.moved(level, by);
        let sum = cost::<LEN, TABLE>(shape, local, x, &moved);
        let better = sum.below(least);
        least = better.select(sum, least);
        best.d = better.select(moved.d, best.d);
        best.d_min = better.select(moved.d_min, best.d_min);
        best.scale = better.select(moved.scale, best.scale);
        best.shift = better.select(moved.shift, best.shift);
    }
    if shape.sub_scales { best } else { best.in_f16(level) }
}

/// What rounding a sub-block gives.
pub(super) struct Rounded<const LEN: usize> {
    pub codes: [Rows; LEN],
    /// What the codes stand for.
    pub values: [Rows; LEN],
    /// What is left of each column, in units of U_ii: the errors that later columns are told.
    pub errors: [Rows; LEN],
    pub cost: Rows,
}

/// Rounds `x` with `level`.
#[inline(always)]
pub(super) fn round<const LEN: usize, const TABLE: bool>(
    shape: &Shape<'_>,
    local: &Local<'_, LEN>,
    x: &[Rows; LEN],
    level: &Level,
) -> Rounded<LEN> {
    let (step, low) = (level.step(), level.low());
    let inverse = step.inverse();
    let mut x = *x;
    let [mut codes, mut values, mut errors] = [[Rows::ZERO; LEN]; 3];
    let mut cost = Rows::ZERO;
    for i in 0..LEN {
        let code = shape.nearest::<TABLE>((x[i] + low) * inverse);
        codes[i] = code;
        values[i] = step * code - low;
        let rest = x[i] - values[i];
        errors[i] = rest * Rows::splat(local.inverses[i]);
        cost = cost.plus(rest * rest, Rows::splat(local.costs[i]));
        for (x, &ratio) in x[i + 1..].iter_mut().zip(&local.ratios[i][i + 1..]) {
            *x = x.minus(rest, Rows::splat(ratio));
        }
    }
    Rounded { codes, values, errors, cost }
}

/// A factor of an inverse Hessian, from `first` on: row `k`, column `c` is U_kc.
#[derive(Clone, Copy)]
pub(super) struct Upper<'a> {
    pub values: &'a [f32],
    pub n: usize,
    pub first: usize,
}

impl Upper<'_> {
    #[inline(always)]
    fn row(&self, k: usize, from: usize, to: usize) -> &[f32] {
        &self.values[(self.first + k) * self.n + self.first..][from..to]
    }
}

/// What the factor says within each sub-block, for every sub-block of a matrix.
pub(super) struct Locals {
    len: usize,
    ratios: Vec<f32>,
    costs: Vec<f32>,
    inverses: Vec<f32>,
}

impl Locals {
    /// Memory for `n` columns in sub-blocks of `len`.
    pub(super) fn new(n: usize, len: usize) -> Self {
        Self { len, ratios: vec![0.0; n * len], costs: vec![0.0; n], inverses: vec![0.0; n] }
    }

    /// Takes row `i` of sub-block `j` from the factor; costs count in `unit`.
    pub(super) fn set(&mut self, j: usize, i: usize, row: impl Fn(usize) -> f64, unit: f64) {
        let at = j * self.len + i;
        let diagonal = row(i);
        self.costs[at] = (unit / (diagonal * diagonal)) as f32;
        self.inverses[at] = (1.0 / diagonal) as f32;
        for k in i..self.len {
            self.ratios[at * self.len + k] = (row(k) / diagonal) as f32;
        }
    }

    /// 1 / U_ii² of columns from `first` on.
    pub(super) fn costs(&self, first: usize, count: usize) -> &[f32] {
        &self.costs[first..][..count]
    }

    /// Those of sub-block `j`.
    #[inline(always)]
    pub(super) fn sub_block<const LEN: usize>(&self, j: usize) -> Local<'_, LEN> {
        Local {
            ratios: &self.ratios.as_chunks::<LEN>().0[j * LEN..][..LEN],
            costs: &self.costs.as_chunks::<LEN>().0[j],
            inverses: &self.inverses.as_chunks::<LEN>().0[j],
        }
    }
}

/// Rounds the columns `x` of a span: codes, what they stand for, and the errors for the columns after it. Returns what it
/// costs. `levels` are where the search of each sub-block begins, and become what it ends with.
#[inline(always)]
pub(super) fn round_span<const LEN: usize, const TABLE: bool>(
    shape: &Shape<'_>,
    upper: &Upper<'_>,
    locals: &Locals,
    x: &mut [Rows],
    levels: &mut SpanLevels,
    codes: &mut [Rows],
    values: &mut [Rows],
    errors: &mut [Rows; SPAN],
) -> Rows {
    let width = x.len();
    let mut sum = Rows::ZERO;
    for j in 0..width / LEN {
        let (block, from) = (j / shape.per_block, j * LEN);
        let local = locals.sub_block::<LEN>(upper.first / LEN + j);
        let here: [Rows; LEN] = *x[from..].first_chunk().expect("a whole sub-block");
        let level = best_level::<LEN, TABLE>(shape, &local, &here, &levels.level(block, j));
        levels.set(block, j, level);
        let rounded = round::<LEN, TABLE>(shape, &local, &here, &level);
        sum = sum + rounded.cost;
        codes[from..][..LEN].copy_from_slice(&rounded.codes);
        values[from..][..LEN].copy_from_slice(&rounded.values);
        errors[from..][..LEN].copy_from_slice(&rounded.errors);
        push::<LEN>(upper, from, &rounded.errors, &mut x[from + LEN..]);
    }
    sum
}

/// Takes `errors` of the columns from `from` on, times the factor's rows, from the columns after them.
#[inline(always)]
fn push<const LEN: usize>(upper: &Upper<'_>, from: usize, errors: &[Rows; LEN], later: &mut [Rows]) {
    let first = from + LEN;
    let (fours, _) = later.as_chunks_mut::<4>();
    for (four, x) in fours.iter_mut().enumerate() {
        let at = first + 4 * four;
        let mut sums = *x;
        for (k, &error) in errors.iter().enumerate() {
            let row = upper.row(from + k, at, at + 4);
            for c in 0..4 {
                sums[c] = sums[c].minus(error, Rows::splat(row[c]));
            }
        }
        *x = sums;
    }
}
