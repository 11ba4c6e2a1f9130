//! One matrix: from its weights and the statistics of its inputs to the rows of the output, and to what the layer goes on
//! with.

use bitmill_checkpoint::Tensor;
use bitmill_kernels::{Compute, Isa, dequantize_rows};
use bitmill_quant::{
    Compensation, GptqOptions, GptqRows, GroupScales, Inputs, NestedAbsmax, awq, gptq, pack_zero_points,
    quantize_blocks_compensated,
};
use bitmill_stats::{Cross, Factor};
use bitmill_tensor::{BlockType, Encoding, FloatType, Grouped, Matrix, WeightData, WeightView};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::reshaping::ScaleRecord;
use crate::Error;
use crate::encode::{Parts, ScaleBase, rows_together};
use crate::method::{Method, Order};
use crate::plan::{PlannedTensor, rows_and_columns};
use crate::tensor_run::{Encoded, TensorRun, rows_per_chunk};

/// Weights that are widened to f32 at once, twice: as they are and as they are decided.
pub(crate) const CHUNK_WEIGHTS: usize = 1 << 25;
/// Calibration tokens on which the error of what a matrix puts out is measured.
pub(crate) const ERROR_TOKENS: usize = 128;

/// How the codes of a tensor were chosen and what came of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MethodRecord {
    /// `gptq`, `gptaq`, `compensated`, `learned`; `rtn` or `ggml` where it was fallen back to, or only scales and ranges are chosen.
    pub method: String,
    /// How its columns were scaled beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled: Option<ScaleRecord>,
    /// Whether the ranges of its groups were searched by what they multiply.
    #[serde(default, skip_serializing_if = "is_false")]
    pub clipped: bool,
    /// `‖x·(w − ŵ)ᵀ‖² / ‖x·wᵀ‖²` over some calibration tokens, to six digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// The largest `|x|` of all calibration tokens that the tensor multiplies, to six digits: f16 holds no more than 65504.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_input: Option<f64>,
    /// Columns whose inputs reach 6 in magnitude, what LLM.int8() takes for outliers, where one scale spans all columns.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub outlier_columns: usize,
    /// What was added to the Hessian's diagonal, as a fraction of its mean, to six digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Columns that no calibration token had.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dead_columns: usize,
    /// The mean squared error of what the layer puts out for the calibration windows as learning began, tokens weighed as it weighs
    /// them; to six digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_before: Option<f64>,
    /// The same of what was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_after: Option<f64>,
    /// Why another method was taken than the one asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// `value` to six digits: every parser reads them as the same number.
pub(crate) fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// What the inputs of a matrix say.
pub(crate) struct Statistics<'a> {
    pub factor: &'a Factor,
    /// What dense inputs add, finite, and how much of it is made up for.
    pub cross: Option<&'a (Cross, f32)>,
    /// The Hessian, mirrored, where blocks are compensated by it.
    pub hessian: Option<&'a [f32]>,
}

/// All rows of a matrix as they are stored, in the output's order.
#[derive(Default)]
pub(crate) struct Rows {
    pub encoded: Vec<Encoded>,
    /// The values that they stand for, where they are not what the layer can run with.
    decided: Vec<f32>,
}

impl Rows {
    /// What was encoded before, in forms that the layer can run with or unpack.
    pub fn encoded(encoded: Vec<Encoded>) -> Self {
        Self { encoded, ..Self::default() }
    }

    /// All rows at once, and the values that they stand for.
    pub fn whole(planned: &PlannedTensor, encoded: Encoded, decided: Vec<f32>) -> Self {
        let has_view = !planned.is_padded() && encoded.parts.group_of.is_none();
        Self { encoded: vec![encoded], decided: if has_view { Vec::new() } else { decided } }
    }
}

/// Encodes all rows of a matrix as its weights alone say.
pub(crate) fn encode_alone(run: &TensorRun<'_>, planned: &PlannedTensor) -> Result<Rows, Error> {
    let rows = planned.out_features();
    let step = rows_per_chunk(planned.in_features()).next_multiple_of(rows_together(planned.to));
    let mut encoded = Vec::new();
    for first in (0..rows).step_by(step) {
        encoded.extend(run.encode(first, step.min(rows - first))?);
    }
    Ok(Rows { encoded, ..Rows::default() })
}

/// The range of each group of a matrix, row by row in the output's order, by the inputs `x`; `None` without any, or if they
/// are not finite.
pub(crate) fn group_ranges(
    run: &TensorRun<'_>,
    planned: &PlannedTensor,
    grouped: &Grouped,
    x: &Matrix,
) -> Result<Option<Vec<f32>>, Error> {
    let (rows, cols) = (planned.out_features(), planned.in_features());
    if x.rows() == 0 || x.as_slice().iter().any(|value| !value.is_finite()) {
        return Ok(None);
    }
    let step = (CHUNK_WEIGHTS / cols.max(1)).clamp(1, rows.max(1));
    let mut ranges = Vec::with_capacity(rows * grouped.groups_per_row(cols));
    let mut weight = Vec::new();
    for first in (0..rows).step_by(step) {
        run.widen(first, step.min(rows - first), &mut weight)?;
        match awq::search_clips(grouped, &weight, cols, Inputs::Tokens(x.as_slice())) {
            Ok(found) => ranges.extend(found),
            Err(bitmill_quant::Error::BadInputs) => return Ok(None),
            Err(source) => {
                let source = source.relocate(first);
                return Err(Error::Quantize { tensor: planned.name.clone(), source });
            }
        }
    }
    Ok(Some(ranges))
}

/// Encodes all rows of a matrix by the statistics of its inputs.
pub(crate) fn encode_calibrated(
    isa: Isa,
    run: &TensorRun<'_>,
    planned: &PlannedTensor,
    statistics: &Statistics<'_>,
) -> Result<Rows, Error> {
    let (rows, cols) = (planned.out_features(), planned.in_features());
    let failed = |first: usize| {
        move |source: bitmill_quant::Error| Error::Quantize {
            tensor: planned.name.clone(),
            source: source.relocate(first),
        }
    };
    let step = (CHUNK_WEIGHTS / cols.max(1)).clamp(1, rows.max(1));
    let mut all = Rows::default();
    let mut weight = Vec::new();
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        run.widen(first, count, &mut weight)?;
        let mut decided = weight.clone();
        if let Some((cross, strength)) = statistics.cross {
            cross.aim_at_dense(statistics.factor, *strength, &mut decided).expect("finite sums");
        }
        let parts = match (planned.method, planned.method.gptq(), planned.to) {
            (_, Some(how), Encoding::Grouped(grouped)) => {
                let scales = match how.order {
                    Order::Static => GroupScales::Original,
                    Order::None | Order::Full => GroupScales::Updated,
                };
                let options = GptqOptions { scales, refine: how.refine };
                let done = gptq::quantize(&grouped, planned.clip, &options, &mut decided, statistics.factor);
                let GptqRows { rows, group_of_column, .. } = done.map_err(failed(first))?;
                Parts { group_of: group_of_column, ..rows.into() }
            }
            (Method::Compensated(how), _, Encoding::Block(block)) => {
                let aim = decided.clone();
                compensate(isa, block, &how.options, &aim, statistics, &mut decided).map_err(failed(first))?
            }
            (method, _, to) => unreachable!("{method:?} is never planned for {to}"),
        };
        let has_view = !planned.is_padded() && parts.group_of.is_none();
        all.encoded.push(Encoded { parts, rows: run.figures(&weight, &decided) });
        if !has_view {
            all.decided.append(&mut decided);
        }
    }
    Ok(all)
}

fn compensate(
    isa: Isa,
    block: BlockType,
    options: &Compensation,
    weight: &[f32],
    statistics: &Statistics<'_>,
    decided: &mut [f32],
) -> Result<Parts, bitmill_quant::Error> {
    let (factor, mut codes) = (statistics.factor, Vec::new());
    let hessian = statistics.hessian.expect("kept for methods that need it");
    let (n, upper) = (factor.in_features(), factor.as_slice());
    quantize_blocks_compensated(isa, block, weight, n, hessian, upper, options, &mut codes, decided)?;
    Ok(Parts { codes, ..Parts::default() })
}

/// `tensor` with the values of `rows`, as the layer runs on with them: in the source's shape and order.
pub(crate) fn as_stored(
    isa: Isa,
    tensor: &Tensor,
    planned: &PlannedTensor,
    run: &TensorRun<'_>,
    rows: &Rows,
) -> Tensor {
    let (out_features, in_features) = (planned.out_features(), planned.in_features());
    let mut parts = Parts::default();
    for encoded in &rows.encoded {
        parts.codes.extend_from_slice(&encoded.parts.codes);
        parts.scales.extend_from_slice(&encoded.parts.scales);
        parts.zero_codes.extend_from_slice(&encoded.parts.zero_codes);
    }
    // Row `i` of the output is row `places[i]` of the source as it lies there.
    let places: Vec<usize> = (0..planned.out_features()).map(|row| run.stored_row(row)).collect();
    let in_place = |bytes: &[u8]| -> Vec<u8> {
        let width = bytes.len() / out_features.max(1);
        let mut out = vec![0; bytes.len()];
        for (row, &place) in bytes.chunks_exact(width.max(1)).zip(&places) {
            out[place * width..(place + 1) * width].copy_from_slice(row);
        }
        out
    };
    let has_view = !planned.is_padded() && rows.decided.is_empty();
    let stored = match planned.to {
        Encoding::Grouped(grouped) if has_view => {
            let zeros = match parts.zero_codes.is_empty() {
                true => Vec::new(),
                false => {
                    let groups = grouped.groups_per_row(in_features);
                    pack_zero_points(&in_place(&parts.zero_codes), out_features, groups, grouped.bits)
                }
            };
            tensor.stored_in_groups(grouped, in_place(&parts.codes), in_place(&parts.scales), zeros)
        }
        Encoding::Float(_) | Encoding::Block(_) if has_view => {
            tensor.stored_as(planned.to, in_place(&parts.codes))
        }
        _ => {
            let widened = rows.decided.is_empty().then(|| widened(isa, planned, &parts, run.base()));
            let values = widened.as_deref().unwrap_or(&rows.decided);
            let (source_rows, source_cols) = rows_and_columns(&planned.source_shape);
            let mut bytes = vec![0; 4 * source_rows * source_cols];
            for (row, &place) in values.chunks_exact(in_features).zip(&places) {
                if place < source_rows {
                    let out = &mut bytes[4 * place * source_cols..4 * (place + 1) * source_cols];
                    out.copy_from_slice(bytemuck::cast_slice(&row[..source_cols]));
                }
            }
            tensor.stored_as(Encoding::Float(FloatType::F32), bytes)
        }
    };
    stored.expect("rows of the shape that was planned")
}

/// The values of all rows as stored.
fn widened(isa: Isa, planned: &PlannedTensor, parts: &Parts, base: &ScaleBase) -> Vec<f32> {
    let (rows, cols) = (planned.out_features(), planned.in_features());
    let zero_points = match planned.to {
        Encoding::Grouped(grouped) if !parts.zero_codes.is_empty() => {
            pack_zero_points(&parts.zero_codes, rows, grouped.groups_per_row(cols), grouped.bits)
        }
        _ => Vec::new(),
    };
    let data = match planned.to {
        Encoding::Float(float) => WeightData::Float { float, bytes: &parts.codes },
        Encoding::Block(block) => WeightData::Block { block, bytes: &parts.codes },
        Encoding::Grouped(layout) => WeightData::Grouped {
            layout,
            packed: &parts.codes,
            scales: &parts.scales,
            zero_points: &zero_points,
        },
        Encoding::Scaled(layout) => {
            let (global, nested) = (base.global, base.nested.as_deref().map(NestedAbsmax::as_nested));
            WeightData::Scaled {
                layout,
                codes: &parts.codes,
                scales: &parts.scales,
                global,
                nested,
                kept: &[],
            }
        }
        Encoding::Sparse { .. } => unreachable!("a sparse matrix is refused beside calibrated ones"),
    };
    let view = WeightView::new(rows, cols, data).expect("rows of the shape that was planned");
    let mut values = vec![0.0; rows * cols];
    values.par_chunks_mut(cols).enumerate().for_each(|(row, out)| dequantize_rows(isa, &view, row, out));
    values
}

/// `‖x·wᵀ − x̂·ŵᵀ‖² / ‖x·wᵀ‖²`, of a tensor with its inputs and of one as it is stored with those that it then multiplies; none
/// for no `x`, or one that is not finite.
pub(crate) fn output_error(
    compute: &Compute,
    (tensor, x): (&Tensor, &Matrix),
    (stored, rounded): (&Tensor, &Matrix),
) -> Option<f64> {
    if x.rows() == 0 {
        return None;
    }
    let (mut dense, mut other) = Default::default();
    compute.matmul(&tensor.view(), x, &mut dense);
    compute.matmul(&stored.view(), rounded, &mut other);
    let (mut error, mut energy) = (0.0, 0.0);
    for (&dense, &other) in dense.as_slice().iter().zip(other.as_slice()) {
        let (dense, other) = (f64::from(dense), f64::from(other));
        error += (dense - other) * (dense - other);
        energy += dense * dense;
    }
    let relative: f64 = error / energy;
    relative.is_finite().then(|| six_digits(relative))
}
