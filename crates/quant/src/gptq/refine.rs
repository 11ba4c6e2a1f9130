//! What can still be gained once every column is rounded: scales fitted again and codes moved, one at a time, while the
//! error of the outputs falls.
//!
//! GPTQ rounds a column knowing what is lost before it and nothing of what will be lost behind it. Here, with `r` the
//! weights less what their codes stand for and `H` the damped Hessian, the error of a row is `rᵀHr`. A pass goes over
//! the groups: the scale becomes the least-squares one, `s + cᵀHr / cᵀHc` over the group's `c = code − zero`, where that
//! helps after rounding to the stored type; then each code becomes the nearest to `q + (Hr) / H[j, j]`, the best that one
//! code can do. No step raises the error.

use bitmill_kernels::{Strided, add_product, set_product};

use super::solve::{Problem, Solved};
use crate::rtn::nearest_even;

/// Columns whose rows of the Hessian are at hand at once.
const BLOCK: usize = 128;
/// Columns that tell each other of their moves one by one.
const LEAF: usize = 16;

struct Descent<'a> {
    problem: &'a Problem<'a>,
    solved: &'a mut Solved,
    /// Weights less what their codes stand for, `[in_features, lanes]`, in the factor's order.
    rest: Vec<f32>,
    /// Rows of the damped Hessian of a block, `[BLOCK, in_features]`.
    rows: Vec<f32>,
    /// `Hr` of a block, `[BLOCK, lanes]`.
    gradient: Vec<f32>,
    /// By how much the decided values of a block moved, `[BLOCK, lanes]`.
    moves: Vec<f32>,
    /// How far the error fell in this pass, by lane.
    fallen: Vec<f64>,
}

impl Problem<'_> {
    /// At most `passes` passes over rounded rows; fewer once nothing moves.
    pub fn refine(&self, weight: &[f32], solved: &mut Solved, passes: usize) {
        let n = self.factor.in_features();
        let lanes = solved.lanes;
        let mut groups: Vec<Vec<usize>> = vec![Vec::new(); self.grid.groups_per_row(n)];
        for (at, &group) in self.group_of.iter().enumerate() {
            groups[group as usize].push(at);
        }
        let mut rest = vec![0.0; n * lanes];
        for (at, rest) in rest.chunks_exact_mut(lanes).enumerate() {
            let column = self.column(at);
            let group = self.group_of[at] as usize * lanes;
            for (lane, (rest, row)) in rest.iter_mut().zip(weight.chunks_exact(n)).enumerate() {
                let signed = f32::from(solved.codes[at * lanes + lane]) + self.range.lowest;
                *rest = row[column] - solved.scales[group + lane] * (signed - solved.zeros[group + lane]);
            }
        }
        let block = BLOCK.min(n);
        let mut descent = Descent {
            problem: self,
            solved,
            rest,
            rows: vec![0.0; block * n],
            gradient: vec![0.0; block * lanes],
            moves: vec![0.0; block * lanes],
            fallen: vec![0.0; lanes],
        };
        for _ in 0..passes {
            for (group, columns) in groups.iter().enumerate() {
                descent.group(group, columns);
            }
            let fallen: f64 = descent.fallen.iter().sum();
            descent.fallen.fill(0.0);
            descent.solved.pushed -= fallen;
            if fallen == 0.0 {
                break;
            }
        }
    }
}

impl Descent<'_> {
    /// Fits the scale of a group, then moves its codes.
    fn group(&mut self, group: usize, columns: &[usize]) {
        let lanes = self.solved.lanes;
        let mut codes = vec![0.0; columns.len() * lanes];
        for (codes, &at) in codes.chunks_exact_mut(lanes).zip(columns) {
            for (lane, code) in codes.iter_mut().enumerate() {
                let signed = f32::from(self.solved.codes[at * lanes + lane]) + self.problem.range.lowest;
                *code = signed - self.solved.zeros[group * lanes + lane];
            }
        }
        let mut fit = vec![(0f64, 0f64); lanes];
        // `Hc`, of the last block.
        let mut product = vec![0.0; BLOCK.min(columns.len()) * lanes];
        for (index, block) in columns.chunks(BLOCK).enumerate() {
            self.look(block);
            let inside = self.corner(block, columns);
            let inside = Strided::new(&inside, block.len(), columns.len(), columns.len());
            let all = Strided::new(&codes, columns.len(), lanes, lanes);
            set_product(&mut product, lanes, 1.0, inside, all);
            let codes = codes[index * BLOCK * lanes..].chunks_exact(lanes);
            let products = product.chunks_exact(lanes).zip(self.gradient.chunks_exact(lanes));
            for (codes, (product, gradient)) in codes.zip(products).take(block.len()) {
                for (lane, fit) in fit.iter_mut().enumerate() {
                    let code = f64::from(codes[lane]);
                    fit.0 += code * f64::from(gradient[lane]);
                    fit.1 += code * f64::from(product[lane]);
                }
            }
        }
        let steps: Vec<f32> = (0..lanes).map(|lane| self.fit(group, lane, fit[lane])).collect();
        let less = |values: &mut [f32], by: &[f32]| {
            values.iter_mut().zip(by).zip(&steps).for_each(|((value, by), step)| *value -= step * by);
        };
        for (codes, &at) in codes.chunks_exact(lanes).zip(columns) {
            less(&mut self.rest[at * lanes..(at + 1) * lanes], codes);
        }
        for block in columns.chunks(BLOCK) {
            if columns.len() <= BLOCK {
                for (gradient, product) in
                    self.gradient.chunks_exact_mut(lanes).zip(product.chunks_exact(lanes))
                {
                    less(gradient, product);
                }
            } else {
                self.look(block);
            }
            self.descend(group, block);
        }
    }

    /// Makes `rows` and `gradient` those of a block.
    fn look(&mut self, block: &[usize]) {
        let (factor, lanes) = (self.problem.factor, self.solved.lanes);
        let n = factor.in_features();
        for (rows, &at) in self.rows.chunks_exact_mut(n).zip(block) {
            rows[..at].copy_from_slice(factor.hessian_row(at));
            // Dead columns have no part in the error.
            rows[at] =
                if self.problem.is_dead(at) { 0.0 } else { factor.hessian_diagonal()[at] + factor.added() };
        }
        for below in block[0] + 1..n {
            let row = factor.hessian_row(below);
            for (index, &at) in block.iter().enumerate().take_while(|(_, at)| **at < below) {
                self.rows[index * n + below] = row[at];
            }
        }
        let rows = Strided::new(&self.rows, block.len(), n, n);
        set_product(&mut self.gradient, lanes, 1.0, rows, Strided::new(&self.rest, n, lanes, lanes));
    }

    /// The block's rows at some columns, `[block, columns]`.
    fn corner(&self, block: &[usize], columns: &[usize]) -> Vec<f32> {
        let n = self.problem.factor.in_features();
        let rows = self.rows.chunks_exact(n).take(block.len());
        rows.flat_map(|row| columns.iter().map(|&at| row[at])).collect()
    }

    /// Replaces a scale by the best one where that is better, and returns by how much it grew. `along` is `cᵀHr` and
    /// `cᵀHc`.
    fn fit(&mut self, group: usize, lane: usize, along: (f64, f64)) -> f32 {
        let at = group * self.solved.lanes + lane;
        let scale = self.solved.scales[at];
        let best = self.problem.grid.scale.round((f64::from(scale) + along.0 / along.1) as f32);
        let step = f64::from(best) - f64::from(scale);
        let fallen = step * (2.0 * along.0 - step * along.1);
        // A scale is negative where the group's largest weight is above zero (`clip`); it keeps its sign.
        if best * scale > 0.0 && best.is_finite() && fallen > 0.0 {
            self.solved.scales[at] = best;
            self.fallen[lane] += fallen;
            step as f32
        } else {
            0.0
        }
    }

    /// Moves each code of a block to where the error is least.
    fn descend(&mut self, group: usize, block: &[usize]) {
        let lanes = self.solved.lanes;
        let range = &self.problem.range;
        let scales = &self.solved.scales[group * lanes..][..lanes];
        let corner = self.corner(block, block);
        let width = block.len();
        for first in (0..width).step_by(LEAF) {
            let last = width.min(first + LEAF);
            for index in first..last {
                let at = block[index];
                let (before, ahead) = self.gradient.split_at_mut((index + 1) * lanes);
                let gradient = &before[index * lanes..];
                let moves = &mut self.moves[index * lanes..(index + 1) * lanes];
                let curvature = corner[index * width + index];
                if curvature > 0.0 {
                    let codes = &mut self.solved.codes[at * lanes..(at + 1) * lanes];
                    for lane in 0..lanes {
                        let (scale, slope) = (scales[lane], gradient[lane]);
                        let signed = f32::from(codes[lane]) + range.lowest;
                        let target = signed + slope / curvature / scale;
                        let target = nearest_even(target.max(range.lowest).min(range.highest));
                        let step = scale * (target - signed);
                        let fallen = step * (2.0 * slope - step * curvature);
                        let better = fallen > 0.0;
                        moves[lane] = if better { step } else { 0.0 };
                        codes[lane] = if better { (target - range.lowest) as i32 as u8 } else { codes[lane] };
                        self.fallen[lane] += if better { f64::from(fallen) } else { 0.0 };
                    }
                } else {
                    moves.fill(0.0);
                }
                let rest = &mut self.rest[at * lanes..(at + 1) * lanes];
                rest.iter_mut().zip(&*moves).for_each(|(rest, step)| *rest -= step);
                for (ahead, row) in ahead.chunks_exact_mut(lanes).zip(index + 1..last) {
                    let tie = corner[row * width + index];
                    ahead.iter_mut().zip(&*moves).for_each(|(slope, step)| *slope -= tie * step);
                }
            }
            let others = Strided::new(
                corner.get(last * width + first..).unwrap_or(&[]),
                width - last,
                last - first,
                width,
            );
            let moves = Strided::new(&self.moves[first * lanes..], last - first, lanes, lanes);
            add_product(&mut self.gradient[last * lanes..], lanes, -1.0, others, moves);
        }
    }
}
