//! GPTQ: columns are rounded one after another, and each column's error is pushed onto the columns still to come, in
//! the way that changes the layer's outputs least.
//!
//! arXiv:2210.17323, on the grids of [`rtn`](crate::rtn). With `U` the [`Factor`] of the inverse of the Hessian, `w_j`
//! the weights of column `j` as pushed so far and `q_j` what they are rounded to, `e_j = (w_j − q_j) / U[j, j]` and
//! `w_k −= U[j, k] · e_j` for every later column `k`. Departs from the paper and its code:
//!
//! - A column whose Hessian diagonal is zero keeps its rounded value instead of being cleared.
//! - Scales found on the way ([`GroupScales::Updated`]) see the errors of **all** columns before their group. The usual
//!   code leaves out those of the current 128 columns, where its groups are smaller.
//! - Columns are not taken in fixed blocks: halves are solved one after another, the push from one onto the other
//!   is one matrix product, and halves of halves are treated alike. The products are as large as can be.
//!
//! What few tokens say of a Hessian is easily believed too much: damping decides how far. Squared errors of outputs in
//! 10⁻⁵ of the outputs, on **other** tokens of the same text; 256 rows each of four matrices of a small Llama (layers 4
//! and 18; 768 input features, `down_proj` 1536), 4096 tokens of calibration, 4 bits in groups of 128, act-order with
//! static groups:
//!
//! | | 4 `gate_proj` | 4 `down_proj` | 18 `q_proj` | 18 `down_proj` |
//! |---|---|---|---|---|
//! | round to nearest | 791 | 1230 | 1082 | 1572 |
//! | the same, [`Clip::Mse`] | 681 | 1021 | 855 | 1319 |
//! | GPTQ, damping 0.01 (the usual) | 756 | 1879 | 277 | 1530 |
//! | damping 0.3 | 665 | 1301 | 261 | 1165 |
//! | damping 0.3, [`Clip::Mse`] | 571 | 1083 | 235 | 996 |
//! | and two passes of refinement | 561 | 1079 | 224 | 943 |
//! | the same, damping 1 | 539 | 971 | 243 | 925 |
//!
//! On the tokens of the calibration little damping looks best: the error there is no guide to it, and GPTQ can be worse
//! than rounding to nearest while its record says otherwise. Not measured: what this does to a whole model.

mod refine;
mod solve;

use bitmill_stats::Factor;
use bitmill_tensor::{Grouped, ZeroPoint};
use rayon::prelude::*;

use crate::error::check_rows;
use crate::pack::pack_row;
use crate::rtn::CodeRange;
use crate::{Clip, Error, GroupedRows};
use solve::{Problem, Solved};

/// When the scales of groups are found, and which columns make a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GroupScales {
    /// When the first column of a group is reached, from the weights as pushed so far. Groups are runs of columns in the
    /// **factor's** order, so that with one ("act-order") a reader needs to be told each column's group.
    #[default]
    Updated,
    /// Before all, from the weights as they are. Groups are runs of columns as they stand in the row, whatever the
    /// factor's order ("static groups").
    Original,
}

/// What GPTQ can be asked for beside a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GptqOptions {
    /// When scales are found.
    pub scales: GroupScales,
    /// How often to go over the result afterwards, fitting scales and moving codes while the error of the outputs falls.
    pub refine: usize,
}

/// Rounded rows, and what is to be told of them.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqRows {
    /// Codes, scales and zero points. Codes stand in the row's own order.
    pub rows: GroupedRows,
    /// The group of each column, where groups are not runs of columns as they stand in the row.
    pub group_of_column: Option<Vec<u32>>,
    /// How far the result is from the weights.
    pub record: GptqRecord,
}

/// How far rounded weights are from those they stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqRecord {
    /// The squared error of the layer's outputs: summed over rows, mean over the calibration's tokens.
    pub output_error: f64,
    /// The squared error of the weights, summed.
    pub weight_error: f64,
}

/// Rounds `weight` with `factor`, and replaces it by the values that the codes stand for. On an error `weight` is as it
/// was.
///
/// ```
/// use bitmill_quant::{Clip, GptqOptions, RtnGrid, gptq};
/// use bitmill_stats::Hessian;
/// use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};
/// let grid = RtnGrid {
///     bits: Bits::new(4).unwrap(),
///     granularity: Granularity::Channel,
///     zero_point: ZeroPoint::Symmetric,
///     scale: FloatType::BF16,
/// };
/// // Two inputs that are always equal: what the first weight loses, the second takes over.
/// let factor = Hessian::from_lower(3, 8, vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]).factor(0.01, None)?;
/// let mut weight = [1.4, 1.3, 7.5];
/// gptq::quantize(&grid.layout(3)?, Clip::None, &GptqOptions::default(), &mut weight, &factor)?;
/// assert_eq!(weight, [1.0, 2.0, 7.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Rows are split over the threads of the pool that this is called in, in pieces that follow from the shapes alone.
///
/// # Shapes
/// `weight`: `[rows, in_features]`, `in_features` the factor's.
///
/// # Errors
/// [`UnevenGroups`](Error::UnevenGroups) if the groups do not tile a row, [`NonFinite`](Error::NonFinite) for NaN and
/// infinity, [`ScaleOverflow`](Error::ScaleOverflow) if a group's scale is beyond its type,
/// [`Diverged`](Error::Diverged) if pushed errors overflow.
///
/// # Panics
/// If `weight` is not whole rows.
pub fn quantize(
    grid: &Grouped,
    clip: Clip,
    options: &GptqOptions,
    weight: &mut [f32],
    factor: &Factor,
) -> Result<GptqRows, Error> {
    let in_features = factor.in_features();
    let group_size = grid.group_size.get();
    if in_features == 0 || !in_features.is_multiple_of(group_size) {
        return Err(Error::UnevenGroups { in_features, group_size });
    }
    check_rows(weight, in_features)?;

    let group_of: Vec<u32> = match (options.scales, factor.order()) {
        (GroupScales::Original, Some(order)) => order.iter().map(|&at| (at / group_size) as u32).collect(),
        _ => (0..in_features).map(|at| (at / group_size) as u32).collect(),
    };
    let problem = Problem {
        grid: *grid,
        clip,
        range: CodeRange::new(grid.bits),
        scales: options.scales,
        refine: options.refine,
        factor,
        group_of,
    };
    let task = solve::task_rows(in_features) * in_features;
    let tasks = weight.par_chunks(task).enumerate().with_max_len(1);
    let solved = tasks.map(|(index, rows)| {
        problem.solve(rows).map_err(|error| error.relocate(index * solve::task_rows(in_features)))
    });
    // One after another, so that of several errors always the same one is told.
    let solved: Vec<Result<Solved, Error>> = solved.collect();
    let solved = solved.into_iter().collect::<Result<Vec<Solved>, Error>>()?;
    Ok(assemble(&problem, weight, &solved))
}

/// Codes into words, scales into their type, decided values into `weight`.
fn assemble(problem: &Problem<'_>, weight: &mut [f32], solved: &[Solved]) -> GptqRows {
    let (grid, factor) = (&problem.grid, problem.factor);
    let in_features = factor.in_features();
    let rows = weight.len() / in_features;
    let groups = grid.groups_per_row(in_features);
    let row_bytes = 4 * grid.words_per_row(in_features);
    let task_rows = solve::task_rows(in_features);
    let mut packed = vec![0; rows * row_bytes];
    let errors: Vec<(f64, f64)> = packed
        .par_chunks_mut(task_rows * row_bytes)
        .zip(weight.par_chunks_mut(task_rows * in_features))
        .zip(solved)
        .map(|((packed, weight), solved)| problem.write(solved, weight, packed))
        .collect();

    let mut out = GroupedRows { packed, ..GroupedRows::default() };
    for solved in solved {
        for lane in 0..solved.lanes {
            for group in 0..groups {
                let at = group * solved.lanes + lane;
                grid.scale.push(solved.scales[at], &mut out.scales);
                if grid.zero_point == ZeroPoint::Asymmetric {
                    out.zero_codes.push((solved.zeros[at] - problem.range.lowest) as u8);
                }
            }
        }
    }
    let (live, dead) = errors.iter().fold((0.0, 0.0), |sum, error| (sum.0 + error.0, sum.1 + error.1));
    let pushed: f64 = solved.iter().map(|solved| solved.pushed).sum();
    // Σe² is the error in the metric of the damped Hessian, and that is twice the outputs' and the damping's.
    let output_error = ((pushed - f64::from(factor.added()) * live) / 2.0).max(0.0);
    GptqRows {
        rows: out,
        group_of_column: match (problem.scales, factor.order()) {
            (GroupScales::Updated, Some(order)) => {
                let mut group_of_column = vec![0; in_features];
                for (&column, &group) in order.iter().zip(&problem.group_of) {
                    group_of_column[column] = group;
                }
                Some(group_of_column)
            }
            _ => None,
        },
        record: GptqRecord { output_error, weight_error: live + dead },
    }
}

impl Problem<'_> {
    /// Packs the codes of a task's rows, replaces its weights by what the codes stand for, and returns the sums of the
    /// squared differences, of live columns and of dead ones.
    fn write(&self, solved: &Solved, weight: &mut [f32], packed: &mut [u8]) -> (f64, f64) {
        let in_features = self.factor.in_features();
        let lanes = solved.lanes;
        let mut codes = vec![0u8; lanes * in_features];
        for (at, column_codes) in solved.codes.chunks_exact(lanes).enumerate() {
            let column = self.column(at);
            for (lane, code) in column_codes.iter().enumerate() {
                codes[lane * in_features + column] = *code;
            }
        }
        let mut errors = (0.0, 0.0);
        let rows = codes.chunks_exact(in_features).zip(weight.chunks_exact_mut(in_features));
        let row_bytes = packed.len() / lanes;
        for (lane, (codes, weight)) in rows.enumerate() {
            pack_row(codes, self.grid.bits, &mut packed[lane * row_bytes..(lane + 1) * row_bytes]);
            for (at, group) in self.group_of.iter().enumerate() {
                let (column, of) = (self.column(at), *group as usize * lanes + lane);
                let signed = f32::from(codes[column]) + self.range.lowest;
                let decided = solved.scales[of] * (signed - solved.zeros[of]);
                let moved = f64::from(weight[column]) - f64::from(decided);
                let sum = if self.is_dead(at) { &mut errors.1 } else { &mut errors.0 };
                *sum += moved * moved;
                weight[column] = decided;
            }
        }
        errors
    }
}
