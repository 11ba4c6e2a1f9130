//! What GPTQ's, AWQ's and bitsandbytes' files can hold, and in which of their forms.

use bitmill_checkpoint::PackedScheme;
use bitmill_tensor::{ColumnPacking, Encoding, ScaleType, ZeroPoint};

use crate::error::Error;
use crate::layout::scheme;
use crate::plan::{PlannedTensor, rows_and_columns};
use crate::recipe::Format;

/// The form of GPTQ or AWQ that holds the groups of `tensors`; `None` for other formats.
///
/// # Errors
/// [`Error::NotHeld`] for the first tensor that it does not hold, by itself or beside the others.
pub(crate) fn packing(format: Format, tensors: &[PlannedTensor]) -> Result<Option<ColumnPacking>, Error> {
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
        let bits = usize::from(grouped.bits.get());
        let own = scheme(&grouped, cols);
        let first = *first.get_or_insert(own);
        if format == Format::Awq {
            if bits != 4 {
                return refuse(format!("codes of {bits} bits, and it holds 4"));
            }
            if !rows.is_multiple_of(8) {
                return refuse(format!("{rows} rows, and its words hold 8 of them"));
            }
            if first.granularity != own.granularity {
                return refuse(format!("{}, and it has one group size for all tensors", tensor.to));
            }
            continue;
        }
        if !matches!(bits, 2 | 3 | 4 | 8) {
            return refuse(format!("codes of {bits} bits, and it holds 2, 3, 4 and 8"));
        }
        for (what, count) in [("columns", cols), ("rows", rows)] {
            if !(count * bits).is_multiple_of(32) {
                return refuse(format!("{count} {what} of {bits} bits, which do not fill its 32-bit words"));
            }
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

/// Bytes that a matrix takes there beside those that its encoding counts: zero points of symmetric codes, and the group of
/// each column.
pub(crate) fn bytes_beside(format: Format, encoding: Encoding, rows: usize, cols: usize) -> usize {
    let grouped = match encoding {
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
