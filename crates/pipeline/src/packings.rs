//! What GPTQ's, AWQ's and bitsandbytes' files can hold, and in which of their forms.

use bitmill_checkpoint::{Checkpoint, PackedScheme, TensorInfo};
use bitmill_tensor::{ColumnPacking, Encoding, Grouped, ScaleType, WeightData, ZeroPoint};

use crate::error::Error;
use crate::layout::scheme;
use crate::plan::{PlannedTensor, rows_and_columns};
use crate::recipe::{Format, Recipe};

/// The form of GPTQ or AWQ that holds the groups of `tensors`, or words of whole codes where they are asked for; `None` for all else.
///
/// # Errors
/// [`Error::NotHeld`] for the first tensor that it does not hold, by itself or beside the others.
pub(crate) fn packing(recipe: &Recipe, tensors: &[PlannedTensor]) -> Result<Option<ColumnPacking>, Error> {
    let format = recipe.format;
    if !recipe.packing.is_stream() {
        return Ok(Some(ColumnPacking::Words));
    }
    if format == Format::Bitsandbytes {
        one_list(tensors)?;
    }
    if !format.is_by_column() {
        return Ok(None);
    }
    let mut first: Option<PackedScheme> = None;
    for tensor in tensors {
        let Encoding::Grouped(grouped) = tensor.to else { continue };
        let (rows, cols) = rows_and_columns(&tensor.shape);
        let refuse = |problem: String| {
            Err(Error::NotHeld { tensor: tensor.name.clone(), format: format.name(), problem })
        };
        if let Some(problem) = problem_of(format, &grouped, rows, cols) {
            return refuse(problem);
        }
        let own = scheme(&grouped, cols);
        let first = *first.get_or_insert(own);
        if format == Format::Awq {
            if first.granularity != own.granularity {
                return refuse(format!("{}, and it has one group size for all tensors", tensor.to));
            }
            continue;
        }
        if first.zero_point != own.zero_point {
            return refuse("it has zero points for all tensors or for none".to_owned());
        }
    }
    Ok(Some(match (format, first.map(|first| first.zero_point)) {
        (Format::Awq, _) => ColumnPacking::Awq,
        // A zero point of 0 would be stored as −1.
        (_, Some(ZeroPoint::Asymmetric)) => ColumnPacking::GptqV2,
        _ => ColumnPacking::GptqV1,
    }))
}

/// Why `format` does not hold a matrix in groups, whatever the others are; `None` if it does.
fn problem_of(format: Format, grouped: &Grouped, rows: usize, cols: usize) -> Option<String> {
    let bits = usize::from(grouped.bits.get());
    match format {
        Format::Awq if bits != 4 => Some(format!("codes of {bits} bits, and it holds 4")),
        Format::Awq if !rows.is_multiple_of(8) => Some(format!("{rows} rows, and its words hold 8 of them")),
        Format::Gptq if !matches!(bits, 2 | 3 | 4 | 8) => {
            Some(format!("codes of {bits} bits, and it holds 2, 3, 4 and 8"))
        }
        Format::Gptq => {
            let [columns, rows] = [("columns", cols), ("rows", rows)].map(|(what, count)| {
                let is_whole = (count * bits).is_multiple_of(32);
                (!is_whole)
                    .then(|| format!("{count} {what} of {bits} bits, which do not fill its 32-bit words"))
            });
            columns.or(rows)
        }
        _ => None,
    }
}

/// Why the codes of a matrix in groups cannot be taken over into `format`; `None` if they can.
///
/// # Errors
/// If the checkpoint lacks it.
pub(crate) fn copy_problem(
    checkpoint: &Checkpoint,
    format: Format,
    info: &TensorInfo,
    grouped: &Grouped,
) -> Result<Option<String>, Error> {
    let (rows, cols) = rows_and_columns(&info.shape);
    let name = format.name();
    if !format.has_codes_of(info.role.kind) {
        return Ok(Some(format!("{name} has codes in other modules alone")));
    }
    if format != Format::Gptq && has_own_order(checkpoint, info)? {
        return Ok(Some(format!("its columns are in an order of their own, which {name} does not hold")));
    }
    Ok(problem_of(format, grouped, rows, cols).map(|problem| format!("in {name}, {problem}")))
}

/// Whether columns of a matrix are in groups by an order of their own.
///
/// # Errors
/// If the checkpoint lacks it.
pub(crate) fn has_own_order(checkpoint: &Checkpoint, info: &TensorInfo) -> Result<bool, Error> {
    let tensor = checkpoint.tensor(&info.name)?;
    let view = tensor.view();
    Ok(matches!(view.data(), WeightData::Columns { group_of, .. } if !group_of.is_empty()))
}

/// bitsandbytes' config says once for all whether scales are codes.
fn one_list(tensors: &[PlannedTensor]) -> Result<(), Error> {
    let mut packed = tensors.iter().filter(|tensor| matches!(tensor.to, Encoding::Scaled(_)));
    let Some(first) = packed.next() else { return Ok(()) };
    match packed.find(|tensor| tensor.to != first.to) {
        None => Ok(()),
        Some(other) => Err(Error::NotHeld {
            tensor: other.name.clone(),
            format: Format::Bitsandbytes.name(),
            problem: format!(
                "{} beside {} of `{}`, and it has one form for all",
                other.to, first.to, first.name
            ),
        }),
    }
}

/// Bytes that a matrix takes there, or in words of whole codes, beside those that its encoding counts: zero points of symmetric codes, and the group of
/// each column.
pub(crate) fn bytes_beside(recipe: &Recipe, encoding: Encoding, rows: usize, cols: usize) -> usize {
    let format = recipe.format;
    let grouped = match encoding {
        Encoding::Grouped(grouped) if !recipe.packing.is_stream() => {
            let words = |codes: usize| codes.div_ceil(grouped.codes_per_word());
            let zero_points = match grouped.zero_point {
                ZeroPoint::Symmetric => 0,
                ZeroPoint::Asymmetric => {
                    (words(rows) - grouped.zero_point_words(rows)) * grouped.groups_per_row(cols)
                }
            };
            return 4 * (rows * (words(cols) - grouped.words_per_row(cols)) + zero_points);
        }
        Encoding::Grouped(grouped) => grouped,
        // The lists of values; what the format says of a matrix in words is counted with the output.
        Encoding::Scaled(layout) if format == Format::Bitsandbytes => {
            return 4 * 16 + if layout.scale == ScaleType::Nested { 4 * 256 } else { 0 };
        }
        _ => return 0,
    };
    let zero_points = match grouped.zero_point {
        ZeroPoint::Symmetric => 4 * grouped.zero_point_words(rows) * grouped.groups_per_row(cols),
        ZeroPoint::Asymmetric => 0,
    };
    match format {
        Format::Gptq => zero_points + 4 * cols,
        Format::Awq => zero_points,
        Format::Gguf | Format::CompressedTensors | Format::Bitsandbytes | Format::HuggingFace => 0,
    }
}
