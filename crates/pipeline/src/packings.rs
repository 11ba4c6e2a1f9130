//! What GPTQ's and AWQ's files can hold, and in which of their forms.

use bitmill_checkpoint::PackedScheme;
use bitmill_tensor::{ColumnPacking, Encoding, ZeroPoint};

use crate::error::Error;
use crate::layout::scheme;
use crate::plan::{PlannedTensor, rows_and_columns};
use crate::recipe::Format;

/// The form of GPTQ or AWQ that holds the groups of `tensors`; `None` for other formats.
///
/// # Errors
/// [`Error::NotHeld`] for the first tensor that it does not hold, by itself or beside the others.
pub(crate) fn packing(format: Format, tensors: &[PlannedTensor]) -> Result<Option<ColumnPacking>, Error> {
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

/// Bytes that a matrix takes there beside those that its encoding counts: zero points of symmetric codes, and the group of
/// each column.
pub(crate) fn bytes_beside(format: Format, encoding: Encoding, rows: usize, cols: usize) -> usize {
    let Encoding::Grouped(grouped) = encoding else { return 0 };
    let zero_points = match grouped.zero_point {
        ZeroPoint::Symmetric => 4 * grouped.zero_point_words(rows) * grouped.groups_per_row(cols),
        ZeroPoint::Asymmetric => 0,
    };
    match format {
        Format::Gptq => zero_points + 4 * cols,
        Format::Awq => zero_points,
        Format::Gguf | Format::CompressedTensors | Format::HuggingFace => 0,
    }
}
