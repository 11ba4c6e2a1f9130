//! Goes on from rounded rows: scales, shifts and codes are chosen again, one block and one sub-block after another, as long
//! as the squared error of the row's output falls.
//!
//! With Δ the rounded row less the row, the error is ΔHΔᵀ and G = ΔH its gradient, which is kept up to date. What a
//! sub-block's columns would best be, all others as they are, is q − G·H⁻¹ over the sub-block alone, and what another
//! choice costs is its distance from there in that block of H: the same search as that of the first rounding.

use super::{
    grid::{SPAN, SpanLevels, in_f16},
    lanes::Rows,
    product::add_product,
    span::{Local, Locals, Shape, best_level, round},
};

/// The Hessian, and what is known of its blocks.
pub(super) struct Quadratic<'a> {
    pub hessian: &'a [f32],
    pub n: usize,
    /// What the Hessian is multiplied by, and what is then added to its diagonal.
    pub unit: f32,
    pub damping: f32,
    /// Factors of the blocks of sub-blocks.
    pub locals: Locals,
    /// Their inverses: rows of the length of a sub-block.
    pub inverses: Vec<f32>,
}

/// Rows on their way, sixteen to a group: `[groups, n]` each.
pub(super) struct State {
    /// The weights.
    pub weight: Vec<Rows>,
    pub codes: Vec<Rows>,
    pub values: Vec<Rows>,
    pub gradient: Vec<Rows>,
    /// `[groups, spans]`.
    pub levels: Vec<SpanLevels>,
    /// `[groups, SPAN]`.
    pub changes: Vec<Rows>,
    pub slab: Vec<f32>,
    pub panel: Vec<f32>,
}

impl Quadratic<'_> {
    /// The block of the Hessian of columns `first..first + width`.
    #[inline(always)]
    fn slab(&self, first: usize, width: usize, out: &mut [f32]) {
        for (k, out) in out.chunks_exact_mut(width).enumerate().take(width) {
            let row = &self.hessian[(first + k) * self.n + first..][..width];
            for (out, value) in out.iter_mut().zip(row) {
                *out = self.unit * value;
            }
            out[k] += self.damping;
        }
    }

    /// The gradient of the rounded rows.
    #[inline(always)]
    pub(super) fn start(&self, state: &mut State) {
        let n = self.n;
        let groups = state.weight.len() / n;
        for ((gradient, value), weight) in state.gradient.iter_mut().zip(&state.values).zip(&state.weight) {
            *gradient = (*value - *weight) * Rows::splat(self.damping);
        }
        for first in (0..n).step_by(SPAN) {
            let width = SPAN.min(n - first);
            for group in 0..groups {
                for c in 0..width {
                    let at = group * n + first + c;
                    state.changes[group * width + c] = state.values[at] - state.weight[at];
                }
            }
            let changes = &state.changes[..groups * width];
            let State { gradient, panel, .. } = state;
            add_product(changes, width, self.unit, self.hessian, n, first, 0..n, gradient, panel);
        }
    }

    /// Every block and sub-block once; backwards from the last span if `backwards`.
    #[inline(always)]
    pub(super) fn sweep<const LEN: usize, const TABLE: bool>(
        &self,
        shape: &Shape<'_>,
        backwards: bool,
        state: &mut State,
    ) {
        let n = self.n;
        let (groups, spans) = (state.weight.len() / n, n.div_ceil(SPAN));
        for place in 0..spans {
            let span = if backwards { spans - 1 - place } else { place };
            let first = span * SPAN;
            let width = SPAN.min(n - first);
            self.slab(first, width, &mut state.slab);
            for group in 0..groups {
                let columns = group * n + first..group * n + first + width;
                let mut visit = Visit {
                    first,
                    slab: &state.slab,
                    codes: &mut state.codes[columns.clone()],
                    values: &mut state.values[columns.clone()],
                    gradient: &mut state.gradient[columns],
                    levels: &mut state.levels[group * spans + span],
                };
                let changes = &mut state.changes[group * width..][..width];
                changes.copy_from_slice(visit.values);
                self.visit::<LEN, TABLE>(shape, &mut visit);
                for (change, value) in changes.iter_mut().zip(visit.values.iter()) {
                    *change = *value - *change;
                }
            }
            let State { changes, gradient, panel, .. } = state;
            let changes = &changes[..groups * width];
            let (unit, hessian) = (self.unit, self.hessian);
            add_product(changes, width, unit, hessian, n, first, 0..first, gradient, panel);
            add_product(changes, width, unit, hessian, n, first, first + width..n, gradient, panel);
        }
    }

    #[inline(always)]
    fn visit<const LEN: usize, const TABLE: bool>(&self, shape: &Shape<'_>, visit: &mut Visit<'_>) {
        let sub_blocks = visit.values.len() / LEN;
        for block in 0..sub_blocks / shape.per_block {
            visit.fit::<LEN>(shape, block);
            for j in block * shape.per_block..(block + 1) * shape.per_block {
                let local = self.locals.sub_block::<LEN>(visit.first / LEN + j);
                let inverse = &self.inverses.as_chunks::<LEN>().0[visit.first + j * LEN..][..LEN];
                visit.choose::<LEN, TABLE>(shape, block, j, &local, inverse);
            }
        }
    }

    /// ΔHΔᵀ of every row of a group, without what was added to the diagonal, in units of the Hessian.
    #[inline(always)]
    pub(super) fn errors(&self, state: &State, group: usize) -> [f64; super::lanes::LANES] {
        let mut sums = [0.0; super::lanes::LANES];
        for at in group * self.n..(group + 1) * self.n {
            let change = state.values[at] - state.weight[at];
            let gradient = state.gradient[at].minus(change, Rows::splat(self.damping));
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum += f64::from(change.0[lane]) * f64::from(gradient.0[lane]);
            }
        }
        sums.map(|sum| sum / f64::from(self.unit))
    }
}

/// One span of one group.
struct Visit<'a> {
    first: usize,
    /// The span's block of the Hessian.
    slab: &'a [f32],
    codes: &'a mut [Rows],
    values: &'a mut [Rows],
    gradient: &'a mut [Rows],
    levels: &'a mut SpanLevels,
}

impl Visit<'_> {
    /// Chooses scale, shift and codes of sub-block `j` again.
    #[inline(always)]
    fn choose<const LEN: usize, const TABLE: bool>(
        &mut self,
        shape: &Shape<'_>,
        block: usize,
        j: usize,
        local: &Local<'_, LEN>,
        inverse: &[[f32; LEN]],
    ) {
        let (width, from) = (self.values.len(), j * LEN);
        let before: [Rows; LEN] = *self.values[from..].first_chunk().expect("a whole sub-block");
        let mut gradient: [Rows; LEN] = *self.gradient[from..].first_chunk().expect("a whole sub-block");
        let mut best = before;
        for (k, row) in inverse.iter().enumerate() {
            for i in 0..LEN {
                best[i] = best[i].minus(gradient[k], Rows::splat(row[i]));
            }
        }
        let old = self.levels.level(block, j);
        let level = best_level::<LEN, TABLE>(shape, local, &best, &old);
        let rounded = round::<LEN, TABLE>(shape, local, &best, &level);
        let better = rounded.cost.below(distance(local, &best, &before));
        let mut level = level;
        level.d = better.select(level.d, old.d);
        level.d_min = better.select(level.d_min, old.d_min);
        level.scale = better.select(level.scale, old.scale);
        level.shift = better.select(level.shift, old.shift);
        self.levels.set(block, j, level);
        let mut changes = [Rows::ZERO; LEN];
        for i in 0..LEN {
            let at = from + i;
            self.codes[at] = better.select(rounded.codes[i], self.codes[at]);
            self.values[at] = better.select(rounded.values[i], self.values[at]);
            changes[i] = self.values[at] - before[i];
        }
        for (k, &change) in changes.iter().enumerate() {
            let row: &[f32; LEN] = self.slab[(from + k) * width + from..].first_chunk().expect("a whole row");
            for i in 0..LEN {
                gradient[i] = gradient[i].plus(change, Rows::splat(row[i]));
            }
        }
        // One code after another, the others as they are.
        let (step, low) = (level.step(), level.low());
        let in_steps = step.inverse();
        for i in 0..LEN {
            let at = from + i;
            let row: &[f32; LEN] = self.slab[at * width + from..].first_chunk().expect("a whole row");
            let x = self.values[at].minus(gradient[i], Rows::splat(1.0 / row[i]));
            let code = shape.nearest::<TABLE>((x + low) * in_steps);
            let value = step * code - low;
            let change = value - self.values[at];
            (self.codes[at], self.values[at]) = (code, value);
            changes[i] = changes[i] + change;
            for k in 0..LEN {
                gradient[k] = gradient[k].plus(change, Rows::splat(row[k]));
            }
        }
        self.tell::<LEN>(from, &changes);
    }

    /// Adds what `changes` of the columns from `from` on make of the span's gradient.
    #[inline(always)]
    fn tell<const LEN: usize>(&mut self, from: usize, changes: &[Rows; LEN]) {
        let width = self.values.len();
        for (four, gradient) in self.gradient.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut sums = *gradient;
            for (k, &change) in changes.iter().enumerate() {
                let row = &self.slab[(from + k) * width + 4 * four..][..4];
                for c in 0..4 {
                    sums[c] = sums[c].plus(change, Rows::splat(row[c]));
                }
            }
            *gradient = sums;
        }
    }

    /// Fits the scales of a block to its codes.
    #[inline(always)]
    fn fit<const LEN: usize>(&mut self, shape: &Shape<'_>, block: usize) {
        let (width, weights) = (self.values.len(), shape.per_block * LEN);
        let from = block * weights;
        let [mut a, mut b, mut to_a, mut to_b] = [[Rows::ZERO; SPAN]; 4];
        let has_shifts = shape.shifts != (0.0, 0.0);
        for i in 0..weights {
            let j = (from + i) / LEN;
            a[i] = self.levels.scales[j] * self.codes[from + i];
            b[i] = Rows::ZERO - self.levels.shifts[j];
        }
        self.times(from, &a[..weights], &mut to_a[..width]);
        let here = from..from + weights;
        let (aa, ag) =
            (dot(&a[..weights], &to_a[here.clone()]), dot(&a[..weights], &self.gradient[here.clone()]));
        let (d, d_min) = (self.levels.d[block], self.levels.d_min[block]);
        let zero = Rows::ZERO;
        let (mut by, mut by_min) = (zero - ag * aa.inverse(), zero);
        let (mut ab, mut bb, mut bg) = (zero, zero, zero);
        if has_shifts {
            self.times(from, &b[..weights], &mut to_b[..width]);
            ab = dot(&a[..weights], &to_b[here.clone()]);
            bb = dot(&b[..weights], &to_b[here.clone()]);
            bg = dot(&b[..weights], &self.gradient[here]);
            let determinant = aa * bb - ab * ab;
            let solvable = (aa * bb * Rows::splat(1e-5)).below(determinant);
            let inverse = determinant.inverse();
            by = solvable.select((ab * bg - bb * ag) * inverse, by);
            by_min = solvable.select((ab * ag - aa * bg) * inverse, zero);
        }
        let (new_d, new_min) = (in_f16(d + by, d), in_f16(d_min + by_min, d_min));
        let (by, by_min) = (new_d - d, new_min - d_min);
        let two = Rows::splat(2.0);
        let change =
            two * (by * ag + by_min * bg) + (by * by * aa + two * (by * by_min * ab) + by_min * by_min * bb);
        let better = change.below(zero);
        if !better.any() {
            return;
        }
        let (by, by_min) = (better.select(by, zero), better.select(by_min, zero));
        self.levels.d[block] = better.select(new_d, d);
        self.levels.d_min[block] = better.select(new_min, d_min);
        for i in 0..weights {
            let level = self.levels.level(block, (from + i) / LEN);
            let value = level.step() * self.codes[from + i] - level.low();
            self.values[from + i] = better.select(value, self.values[from + i]);
        }
        for (c, gradient) in self.gradient.iter_mut().enumerate() {
            *gradient = gradient.plus(by, to_a[c]).plus(by_min, to_b[c]);
        }
    }

    /// `x` of the columns from `from` on, times the span's block of the Hessian.
    #[inline(always)]
    fn times(&self, from: usize, x: &[Rows], out: &mut [Rows]) {
        let width = self.values.len();
        for (four, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut sums = [Rows::ZERO; 4];
            for (k, &x) in x.iter().enumerate() {
                let row = &self.slab[(from + k) * width + 4 * four..][..4];
                for c in 0..4 {
                    sums[c] = sums[c].plus(x, Rows::splat(row[c]));
                }
            }
            *out = sums;
        }
    }
}

/// Σ x·y.
#[inline(always)]
fn dot(x: &[Rows], y: &[Rows]) -> Rows {
    let mut sum = Rows::ZERO;
    for (x, y) in x.iter().zip(y) {
        sum = sum.plus(*x, *y);
    }
    sum
}

/// How far `values` lie from `x`, in units of a cost.
#[inline(always)]
fn distance<const LEN: usize>(local: &Local<'_, LEN>, x: &[Rows; LEN], values: &[Rows; LEN]) -> Rows {
    let mut x = *x;
    let mut sum = Rows::ZERO;
    for i in 0..LEN {
        let rest = x[i] - values[i];
        sum = sum.plus(rest * rest, Rows::splat(local.costs[i]));
        for (x, &ratio) in x[i + 1..].iter_mut().zip(&local.ratios[i][i + 1..]) {
            *x = x.minus(rest, Rows::splat(ratio));
        }
    }
    sum
}
