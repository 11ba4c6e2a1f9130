//! Some rows of a matrix, solved column after column.
//!
//! Weights lie transposed, `[column][row]`, in the factor's order: what happens to a column happens to all rows at once,
//! and the push from some columns onto others is a matrix product.

use bitmill_kernels::{Strided, add_product};
use bitmill_stats::Factor;
use bitmill_tensor::Grouped;

use super::GroupScales;
use crate::rtn::{CodeRange, group_scale, nearest_even};
use crate::{Clip, Error, first_non_finite};

/// Columns that push onto each other one by one.
const LEAF: usize = 16;

/// Rows of a task. Each task packs all of the factor for its products: wide factors are worth more rows at a time.
pub(super) fn task_rows(in_features: usize) -> usize {
    if in_features < 4096 { 128 } else { 256 }
}

/// What is asked of every row.
pub(super) struct Problem<'a> {
    pub grid: Grouped,
    pub clip: Clip,
    pub range: CodeRange,
    pub scales: GroupScales,
    pub refine: usize,
    pub factor: &'a Factor,
    /// The group of the column that comes `i`th.
    pub group_of: Vec<u32>,
}

/// Some rows, rounded.
pub(super) struct Solved {
    /// How many.
    pub lanes: usize,
    /// Unsigned codes, `[in_features, lanes]`, in the factor's order.
    pub codes: Vec<u8>,
    /// Scales as they are stored, `[groups, lanes]`.
    pub scales: Vec<f32>,
    /// Signed zero points, `[groups, lanes]`.
    pub zeros: Vec<f32>,
    /// Σe² over all rows and live columns: what is pushed on from dead ones reaches none.
    pub pushed: f64,
}

/// Rows on their way.
struct Lanes<'a> {
    problem: &'a Problem<'a>,
    lanes: usize,
    /// Weights as pushed so far, of columns to come; `e` of those that are done. `[in_features, lanes]`.
    work: Vec<f32>,
    pushed: Vec<f64>,
    out: Solved,
}

impl<'a> Problem<'a> {
    /// The column that comes `at`th.
    pub fn column(&self, at: usize) -> usize {
        self.factor.order().map_or(at, |order| order[at])
    }

    /// Whether no token had the column that comes `at`th.
    pub fn is_dead(&self, at: usize) -> bool {
        self.factor.hessian_diagonal()[at] == 0.0
    }

    /// Solves whole rows, counted from 0 in errors.
    pub fn solve(&'a self, weight: &[f32]) -> Result<Solved, Error> {
        let n = self.factor.in_features();
        let lanes = weight.len() / n;
        let groups = self.grid.groups_per_row(n);
        let mut work = vec![0.0; n * lanes];
        for (at, out) in work.chunks_exact_mut(lanes).enumerate() {
            let column = self.column(at);
            for (out, row) in out.iter_mut().zip(weight.chunks_exact(n)) {
                *out = row[column];
            }
        }
        let mut rows = Lanes {
            problem: self,
            lanes,
            work,
            pushed: vec![0.0; lanes],
            out: Solved {
                lanes,
                codes: vec![0; n * lanes],
                scales: vec![0.0; groups * lanes],
                zeros: vec![0.0; groups * lanes],
                pushed: 0.0,
            },
        };
        match self.scales {
            GroupScales::Updated => rows.groups(0, n)?,
            GroupScales::Original => {
                for (row, weight) in weight.chunks_exact(n).enumerate() {
                    for (group, weights) in weight.chunks_exact(self.grid.group_size.get()).enumerate() {
                        rows.fit(group, row, group * self.grid.group_size.get(), weights)?;
                    }
                }
                rows.columns(0, n);
            }
        }
        if let Some(row) = rows.pushed.iter().position(|pushed| !pushed.is_finite()) {
            return Err(Error::Diverged { row });
        }
        let mut out = rows.out;
        out.pushed = rows.pushed.iter().sum();
        self.refine(weight, &mut out, self.refine);
        Ok(out)
    }
}

impl Lanes<'_> {
    /// Solves whole groups, finding their scales on the way.
    fn groups(&mut self, from: usize, to: usize) -> Result<(), Error> {
        let size = self.problem.grid.group_size.get();
        let count = (to - from) / size;
        if count > 1 {
            let middle = from + count / 2 * size;
            self.groups(from, middle)?;
            self.push(from, middle, to);
            return self.groups(middle, to);
        }
        let mut weights = vec![0.0; size];
        for row in 0..self.lanes {
            for (at, weight) in weights.iter_mut().enumerate() {
                *weight = self.work[(from + at) * self.lanes + row];
            }
            if first_non_finite(&weights).is_some() {
                return Err(Error::Diverged { row });
            }
            self.fit(from / size, row, self.problem.column(from), &weights)?;
        }
        self.columns(from, to);
        Ok(())
    }

    /// Finds the scale of one group of one row.
    fn fit(&mut self, group: usize, row: usize, col: usize, weights: &[f32]) -> Result<(), Error> {
        let Problem { grid, clip, range, .. } = self.problem;
        let (scale, zero) = group_scale(grid, *clip, range, weights)
            .map_err(|scale| Error::ScaleOverflow { row, col, scale, float: grid.scale })?;
        self.out.scales[group * self.lanes + row] = scale;
        self.out.zeros[group * self.lanes + row] = zero;
        Ok(())
    }

    /// Solves columns whose scales are known.
    fn columns(&mut self, from: usize, to: usize) {
        if to - from <= LEAF {
            return self.leaf(from, to);
        }
        let middle = from + ((to - from) / 2).next_multiple_of(LEAF);
        self.columns(from, middle);
        self.push(from, middle, to);
        self.columns(middle, to);
    }

    /// Pushes the errors of columns `from..middle` onto `middle..to`.
    fn push(&mut self, from: usize, middle: usize, to: usize) {
        let n = self.problem.factor.in_features();
        let (lanes, done, ahead) = (self.lanes, middle - from, to - middle);
        let corner = from * n + middle;
        let (before, after) = self.work.split_at_mut(middle * lanes);
        let errors = Strided::new(&before[from * lanes..], done, lanes, lanes);
        let upper = Strided::new(&self.problem.factor.as_slice()[corner..], done, ahead, n).transposed();
        add_product(after, lanes, -1.0, upper, errors);
    }

    /// Solves a few columns one by one.
    fn leaf(&mut self, from: usize, to: usize) {
        let Problem { range, factor, group_of, .. } = self.problem;
        let lanes = self.lanes;
        for at in from..to {
            let upper = &factor.row(at)[..to - at];
            let (before, ahead) = self.work[..to * lanes].split_at_mut((at + 1) * lanes);
            let column = &mut before[at * lanes..];
            let group = group_of[at] as usize * lanes;
            let scales = &self.out.scales[group..group + lanes];
            let zeros = &self.out.zeros[group..group + lanes];
            let codes = &mut self.out.codes[at * lanes..(at + 1) * lanes];
            for lane in 0..lanes {
                let (weight, scale, zero) = (column[lane], scales[lane], zeros[lane]);
                // As `rtn` rounds.
                let signed = nearest_even((weight / scale + zero).max(range.lowest).min(range.highest));
                codes[lane] = (signed - range.lowest) as i32 as u8;
                column[lane] = (weight - scale * (signed - zero)) / upper[0];
            }
            if !self.problem.is_dead(at) {
                for (pushed, error) in self.pushed.iter_mut().zip(&*column) {
                    *pushed += f64::from(*error) * f64::from(*error);
                }
            }
            for (ahead, &upper) in ahead.chunks_exact_mut(lanes).zip(&upper[1..]) {
                for (weight, error) in ahead.iter_mut().zip(&*column) {
                    *weight -= upper * error;
                }
            }
        }
    }
}
