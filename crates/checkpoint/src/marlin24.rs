//! compressed-tensors' `marlin-24`: codes of which two of each four are stored, as a kernel for GPUs reads them.
//!
//! ```text
//! NAME.weight_packed  I32 [in/32, out·bits/2]   the kept codes plus 2^(bits−1), in an order of 16 by 64
//! NAME.scale_packed   F16 [in/128, out] or [1, out]   in an order of 64 where there are several groups
//! NAME.meta           I16 [in/32, 2·out]        which two of each four are kept, in CUTLASS's order
//! ```
//!
//! Widths are 4 and 8 bits, symmetric. The library wrote it up to version 0.12 (`compressors/sparse_quantized_compressors/marlin_24.py`), never read
//! it, and has dropped it since; vLLM has its kernel.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use bitmill_tensor::{Bits, ColumnPacking, Dtype, Encoding, Grouped, WeightView, ZeroPoint};

use crate::checkpoint::Parts;
use crate::compressed_tensors::{PACKED, StoredMatrix};
use crate::safetensors_in::StTensor;
use crate::{Error, Region};

const SCALE: &str = "scale_packed";
const PLACES: &str = "meta";

/// The last parts of the names that this form alone has.
pub(crate) const PARTS: [&str; 2] = [SCALE, PLACES];

/// Whether any of a matrix's parts is of this form.
pub(crate) fn is_marlin(parts: &HashMap<&'static str, StTensor>) -> bool {
    PARTS.iter().any(|part| parts.contains_key(part))
}

/// Puts the matrix `name` together from its stored `parts`, by the last part of their names.
pub(crate) fn assemble(
    name: &str,
    mut parts: HashMap<&'static str, StTensor>,
) -> Result<StoredMatrix, Error> {
    let wrong = |problem: String| Error::PackedTensor { tensor: name.to_owned(), problem };
    let [packed, scale, places] = [PACKED, SCALE, PLACES].map(|part| parts.remove(part));
    let (Some(packed), Some(scale), Some(places)) = (packed, scale, places) else {
        return Err(wrong(format!("`{PACKED}`, `{SCALE}` and `{PLACES}` must all be there")));
    };
    for (part, dtype) in [(&packed, Dtype::I32), (&places, Dtype::I16)] {
        if part.dtype != dtype {
            return Err(wrong(format!("`{}` is {} where {dtype} is expected", part.name, part.dtype)));
        }
    }
    let float = scale.dtype.float().ok_or_else(|| wrong(format!("scales of dtype {}", scale.dtype)))?;
    let shapes = [&packed, &scale, &places].map(|part| part.shape.as_slice());
    let no_matrix = || {
        wrong(format!(
            "codes {:?}, scales {:?} and places {:?} are no matrix",
            shapes[0], shapes[1], shapes[2]
        ))
    };
    // Shapes of stored tensors can be multiplied with 32: a reader checked that 16 bytes an element can be addressed, and
    // these have at most 4.
    let [&[lines, words], &[groups, out_features], &[place_lines, elements]] = shapes else {
        return Err(no_matrix());
    };
    let bits = (2 * words).checked_div(out_features).and_then(|bits| u8::try_from(bits).ok());
    let bits = bits.filter(|bits| matches!(bits, 4 | 8)).and_then(Bits::new).ok_or_else(no_matrix)?;
    let in_features = 32 * lines;
    let is_whole = 2 * words == out_features * usize::from(bits.get())
        && (place_lines, elements) == (lines, 2 * out_features)
        && groups > 0
        && in_features.is_multiple_of(groups);
    let group_size = match is_whole {
        true => NonZeroUsize::new(in_features / groups).ok_or_else(no_matrix)?,
        false => return Err(no_matrix()),
    };
    let layout = Grouped { bits, group_size, zero_point: ZeroPoint::Symmetric, scale: float };
    let parts = Parts::Columns {
        layout,
        packing: ColumnPacking::Marlin24,
        packed: packed.bytes,
        scales: scale.bytes,
        zero_points: Region::from_static(&[]),
        group_of: None,
        places: Some(places.bytes),
    };
    let encoding = Encoding::Grouped(layout);
    WeightView::new(out_features, in_features, parts.data(encoding))
        .map_err(|source| Error::View { tensor: name.to_owned(), source })?;
    Ok(StoredMatrix { shape: [out_features, in_features], encoding, parts })
}
