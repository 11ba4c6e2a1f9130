//! GGUF blocks whose errors make up for each other: the stock layouts, chosen for the least error of what the matrix puts
//! out and not for the least of each weight.
//!
//! # Method
//! With H the mean of 2·x·xᵀ over what the matrix multiplies, a row that is off by Δ puts out an error of ΔHΔᵀ / 2 on
//! average. First the columns are rounded from left to right, the error of each pushed onto those still to come (GPTQ,
//! arXiv:2210.17323): the scales of a block from ggml's search on the columns as they then are, those of each sub-block
//! from a search in which the columns of the sub-block already make up for each other (`span.rs`). Then block scales are
//! fitted, and scales, shifts and codes of one sub-block after another chosen again for what all other columns have become
//! (`descent.rs`); no such step makes the error larger.

mod descent;
mod factor;
mod grid;
mod lanes;
mod product;
mod span;

use bitmill_kernels::{Isa, Work, dequantize_rows};
use bitmill_tensor::{BlockType, WeightData, WeightView};
use rayon::prelude::*;

use self::{
    descent::{Quadratic, State},
    grid::{Grid, SPAN, SpanLevels},
    lanes::{LANES, Rows},
    product::{add_product, panel_len},
    span::{Locals, Shape, Upper, round_span},
};
use super::refine::Codes;
use super::{BlockEncoder, BlockSearch, Importance, quantize_blocks};
use crate::{Error, error::first_non_finite};

/// Groups of sixteen rows that one task takes at most: each strip of the Hessian is read once for all of them.
const TASK_GROUPS: usize = 4;

/// How far [`quantize_blocks_compensated`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compensation {
    /// What is added to the Hessian's diagonal, as a fraction of its mean; that which `upper` was made with.
    pub damping: f32,
    /// How often scales and codes of every block are chosen again after the first rounding. On matrices of SmolLM2 at
    /// Q2_K, 0, 1, 3 and 6 times leave 0.465, 0.430, 0.417 and 0.412 of the error of blocks weighed by importance. For
    /// a wide matrix each takes twice as long as the first rounding.
    pub sweeps: usize,
}

impl Default for Compensation {
    fn default() -> Self {
        Self { damping: 0.3, sweeps: 3 }
    }
}

/// What compensated rounding did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CompensationRecord {
    /// Σ ΔHΔᵀ over the rows, as decided.
    pub error: f64,
    /// Rows whose statistics gave no finite numbers, rounded without compensation.
    pub plain_rows: usize,
}

/// Whether [`quantize_blocks_compensated`] makes these blocks.
///
/// ```
/// use bitmill_quant::can_compensate;
/// use bitmill_tensor::BlockType;
/// assert!(can_compensate(BlockType::Q2_K) && !can_compensate(BlockType::IQ2_XS));
/// ```
pub fn can_compensate(block: BlockType) -> bool {
    Grid::of(block).is_some()
}

/// Encodes `weight` into blocks so that the error of what it puts out is small. `out` becomes the blocks, `decided` what
/// they stand for.
///
/// Rows are split over the current `rayon` pool; the split changes no byte, nor does `isa`.
///
/// # Shapes
/// `weight`, `decided`: `[rows, n]`. `hessian`: `[n, n]`, the mean of 2·x·xᵀ. `upper`: `[n, n]`, the upper triangle U with
/// H⁻¹ = UᵀU, H damped. Columns that meet nothing but zeros have 1 on both diagonals.
///
/// # Errors
/// Those of [`quantize_blocks`]; [`NotCompensated`](Error::NotCompensated) for types that [`can_compensate`] denies.
///
/// # Panics
/// If a slice has another length than its shape.
pub fn quantize_blocks_compensated(
    isa: Isa,
    block: BlockType,
    weight: &[f32],
    n: usize,
    hessian: &[f32],
    upper: &[f32],
    options: &Compensation,
    out: &mut Vec<u8>,
    decided: &mut [f32],
) -> Result<CompensationRecord, Error> {
    let grid = Grid::of(block).ok_or(Error::NotCompensated { block })?;
    if !n.is_multiple_of(block.weights()) {
        return Err(Error::UnevenGroups { in_features: n, group_size: block.weights() });
    }
    let rows = weight.len().checked_div(n).unwrap_or(0);
    assert_eq!(weight.len(), rows * n, "whole rows of {n}");
    assert_eq!(decided.len(), weight.len(), "a value for each weight");
    assert_eq!((hessian.len(), upper.len()), (n * n, n * n), "statistics of {n} columns");
    if let Some(at) = first_non_finite(weight) {
        return Err(Error::NonFinite { row: at / n, col: at % n, value: weight[at] });
    }
    let row_bytes = n / block.weights() * block.bytes();
    out.clear();
    out.resize(rows * row_bytes, 0);
    if weight.is_empty() {
        return Ok(CompensationRecord::default());
    }
    let moves = moves(&grid);
    let job = Job {
        n,
        grid: &grid,
        shape: Shape::of(&grid, &moves),
        upper,
        global: of_factor(upper, n, grid.len),
        quadratic: &quadratic(hessian, n, grid.len, options),
        sweeps: options.sweeps,
    };
    // Rows do not meet, so how many go together may follow the threads.
    let groups = rows.div_ceil(LANES).div_ceil(rayon::current_num_threads()).min(TASK_GROUPS);
    let task_rows = groups * LANES;
    let tasks: Vec<Result<CompensationRecord, Error>> = out
        .par_chunks_mut(task_rows * row_bytes)
        .zip(weight.par_chunks(task_rows * n))
        .zip(decided.par_chunks_mut(task_rows * n))
        .enumerate()
        .map_init(
            || State::new(n, grid.len, groups),
            |state, (task, ((bytes, weight), decided))| {
                let done = isa.run(Task { job: &job, weight, bytes, state });
                let data = WeightData::Block { block, bytes };
                let view = WeightView::new(weight.len() / n, n, data).expect("whole blocks");
                dequantize_rows(isa, &view, 0, decided);
                done.map_err(|error| error.relocate(task * task_rows))
            },
        )
        .collect();
    let mut record = CompensationRecord::default();
    for task in tasks {
        let task = task?;
        record.error += task.error;
        record.plain_rows += task.plain_rows;
    }
    Ok(record)
}

/// What scale and shift of a sub-block are moved by in each search.
fn moves(grid: &Grid) -> Vec<(f32, f32)> {
    let scales: &[f32] = match (grid.has_sub_scales(), grid.has_shifts()) {
        (true, true) => &[-2.0, -1.0, 0.0, 1.0, 2.0],
        (true, false) => &[-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0],
        (false, true) => &[-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0],
        (false, false) => &[-8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0],
    };
    let shifts: &[f32] = if grid.has_shifts() { &[-2.0, -1.0, 0.0, 1.0, 2.0] } else { &[0.0] };
    let all = scales.iter().flat_map(|&scale| shifts.iter().map(move |&shift| (scale, shift)));
    all.filter(|by| *by != (0.0, 0.0)).collect()
}

/// What the factor of the whole Hessian says within each sub-block.
fn of_factor(upper: &[f32], n: usize, len: usize) -> Locals {
    let mut locals = Locals::new(n, len);
    // Costs around 1.
    let inverses: f64 = (0..n).map(|i| f64::from(upper[i * n + i]).powi(-2)).sum();
    let unit = if inverses.is_normal() { n as f64 / inverses } else { 1.0 };
    for i in 0..n {
        let first = i / len * len;
        locals.set(i / len, i % len, |k| f64::from(upper[i * n + first + k]), unit);
    }
    locals
}

/// The Hessian in units of its mean diagonal, damped, with the factors of its sub-blocks.
fn quadratic<'a>(hessian: &'a [f32], n: usize, len: usize, options: &Compensation) -> Quadratic<'a> {
    let mean = (0..n).map(|i| f64::from(hessian[i * n + i])).sum::<f64>() / n as f64;
    let unit = if mean.is_normal() && mean > 0.0 { 1.0 / mean } else { 1.0 };
    // A column without any weight in the Hessian still needs a best value.
    let damping = f64::from(options.damping).max(1e-6);
    let (mut locals, mut inverses) = (Locals::new(n, len), vec![0.0; n * len]);
    let [mut block, mut upper, mut scratch] = [(); 3].map(|()| vec![0.0; len * len]);
    for j in 0..n / len {
        for i in 0..len {
            let row = &hessian[(j * len + i) * n + j * len..][..len];
            for (k, &value) in row.iter().enumerate() {
                block[i * len + k] = unit * f64::from(value) + if i == k { damping } else { 0.0 };
            }
        }
        factor::invert(&block, len, &mut upper, &mut scratch);
        for i in 0..len {
            locals.set(j, i, |k| upper[i * len + k], 1.0);
        }
        factor::square(&upper, len, &mut block);
        for (inverse, &value) in inverses[j * len * len..].iter_mut().zip(&block) {
            *inverse = value as f32;
        }
    }
    Quadratic { hessian, n, unit: unit as f32, damping: damping as f32, locals, inverses }
}

/// What all tasks share.
struct Job<'a> {
    n: usize,
    grid: &'a Grid,
    shape: Shape<'a>,
    upper: &'a [f32],
    global: Locals,
    quadratic: &'a Quadratic<'a>,
    sweeps: usize,
}

impl State {
    /// Memory for the rows of one task.
    fn new(n: usize, len: usize, groups: usize) -> Self {
        let rows = || vec![Rows::ZERO; groups * n];
        let width = SPAN.min(n.next_multiple_of(len));
        Self {
            weight: rows(),
            codes: rows(),
            values: rows(),
            gradient: rows(),
            levels: vec![SpanLevels::ZERO; groups * n.div_ceil(SPAN)],
            changes: vec![Rows::ZERO; groups * SPAN],
            slab: vec![0.0; width * width],
            panel: vec![0.0; panel_len(SPAN)],
        }
    }
}

/// Some rows of a job.
struct Task<'a> {
    job: &'a Job<'a>,
    weight: &'a [f32],
    bytes: &'a mut [u8],
    state: &'a mut State,
}

impl Work for Task<'_> {
    type Output = Result<CompensationRecord, Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        match (self.job.grid.len, self.job.grid.space.codes) {
            (16, Codes::Integers { .. }) => self.round::<16, false>(),
            (_, Codes::Integers { .. }) => self.round::<32, false>(),
            (_, Codes::Values) => self.round::<32, true>(),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn round<const LEN: usize, const TABLE: bool>(self) -> Result<CompensationRecord, Error> {
        let Self { job, weight, bytes, state } = self;
        let n = job.n;
        let rows = weight.len() / n;
        let groups = rows.div_ceil(LANES);
        state.weight.resize(groups * n, Rows::ZERO);
        state.values.resize(groups * n, Rows::ZERO);
        state.codes.resize(groups * n, Rows::ZERO);
        state.gradient.resize(groups * n, Rows::ZERO);
        state.weight.fill(Rows::ZERO);
        for (row, weight) in weight.chunks_exact(n).enumerate() {
            let group = &mut state.weight[row / LANES * n..][..n];
            for (rows, &value) in group.iter_mut().zip(weight) {
                rows.0[row % LANES] = value;
            }
        }
        // Until the gradient is asked for, its memory holds the columns with what was pushed onto them.
        state.gradient.copy_from_slice(&state.weight);
        for first in (0..n).step_by(SPAN) {
            let width = SPAN.min(n - first);
            let upper = Upper { values: job.upper, n, first };
            let mut errors = [Rows::ZERO; SPAN];
            for group in 0..groups {
                let columns = group * n + first..group * n + first + width;
                let levels = &mut state.levels[group * n.div_ceil(SPAN) + first / SPAN];
                job.start(&state.gradient[columns.clone()], &state.weight[columns.clone()], first, levels)
                    .map_err(|error| error.relocate(group * LANES))?;
                round_span::<LEN, TABLE>(
                    &job.shape,
                    &upper,
                    &job.global,
                    &mut state.gradient[columns.clone()],
                    levels,
                    &mut state.codes[columns.clone()],
                    &mut state.values[columns],
                    &mut errors,
                );
                state.changes[group * width..][..width].copy_from_slice(&errors[..width]);
            }
            let State { changes, gradient, panel, .. } = &mut *state;
            let changes = &changes[..groups * width];
            add_product(changes, width, -1.0, job.upper, n, first, first + width..n, gradient, panel);
        }
        job.quadratic.start(state);
        for sweep in 0..job.sweeps {
            job.quadratic.sweep::<LEN, TABLE>(&job.shape, sweep % 2 == 1, state);
        }
        self::finish(job, weight, bytes, state)
    }
}

impl Job<'_> {
    /// Where the search of a span's levels begins: ggml's, made better, for the columns `x` as they are by now; for
    /// the weights themselves where those have run out of f16.
    fn start(&self, x: &[Rows], weight: &[Rows], first: usize, levels: &mut SpanLevels) -> Result<(), Error> {
        let width = x.len();
        let mut importance = [0.0; SPAN];
        for (importance, cost) in importance.iter_mut().zip(self.global.costs(first, width)) {
            *importance = cost.min(1e30);
        }
        let encoder = BlockEncoder {
            block: self.grid.block,
            importance: Some(Importance::new(&importance[..width])?),
            search: BlockSearch::Best,
        };
        let mut row = [0.0; SPAN];
        let mut bytes = [0; 8 * 34];
        let bytes = &mut bytes[..width / self.grid.block.weights() * self.grid.block.bytes()];
        for lane in 0..LANES {
            let mut encode = |of: &[Rows]| {
                for (value, rows) in row.iter_mut().zip(of) {
                    *value = rows.0[lane];
                }
                quantize_blocks(&encoder, width, &row[..width], bytes)
            };
            encode(x).or_else(|_| encode(weight)).map_err(|error| error.relocate(lane).beside(first))?;
            self.grid.read(bytes, lane, levels);
        }
        Ok(())
    }
}

/// Writes the blocks of the rows, those without finite numbers as ggml would.
fn finish(
    job: &Job<'_>,
    weight: &[f32],
    bytes: &mut [u8],
    state: &State,
) -> Result<CompensationRecord, Error> {
    let n = job.n;
    let block = job.grid.block;
    let row_bytes = n / block.weights() * block.bytes();
    let mut record = CompensationRecord::default();
    let mut errors = [0.0; LANES];
    for (row, (bytes, weight)) in bytes.chunks_exact_mut(row_bytes).zip(weight.chunks_exact(n)).enumerate() {
        let (group, lane) = (row / LANES, row % LANES);
        if lane == 0 {
            errors = job.quadratic.errors(state, group);
        }
        if !errors[lane].is_finite() {
            record.plain_rows += 1;
            quantize_blocks(&BlockEncoder::new(block), n, weight, bytes)
                .map_err(|error| error.relocate(row))?;
            continue;
        }
        record.error += errors[lane];
        for (span, bytes) in bytes.chunks_mut(SPAN / block.weights() * block.bytes()).enumerate() {
            let levels = &state.levels[group * n.div_ceil(SPAN) + span];
            job.grid.write(levels, &state.codes[group * n + span * SPAN..], lane, bytes);
        }
    }
    Ok(record)
}
