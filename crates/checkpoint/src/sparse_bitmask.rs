//! compressed-tensors' `sparse-bitmask` and `sparse-24-bitmask`: the weights that were kept, and where they lie.
//!
//! ```text
//! NAME.compressed   F32|F16|BF16 [kept]        the kept weights, row after row
//! NAME.bitmask      U8  [out, ceil(in/8)]      weight i of a row was kept if bit i % 8 of byte i / 8 is set
//! NAME.shape        I64 [2]                    out, in
//! NAME.row_offsets  I64 [out]                  kept weights before each row
//! ```
//!
//! The second keeps two of each four weights: `compressed` is `[out, in/2]`, there are no row offsets, and the weights may be numbers of 8 bits
//! (I8, F8_E4M3) with the scales that `scaled` has. It is read alone.
//!
//! config.json declares them as `quantization_config.sparsity_config`. The library wrote and read them up to version 0.12
//! (`compressors/sparse_compressors/`) and has dropped them since, so today's runtimes do not load them; vLLM had kernels for the second.
//!
//! A file is taken only if its bits and row offsets agree with each other and with the number of values: every bit is
//! looked at when a checkpoint is opened.

use std::collections::HashMap;
use std::path::Path;

use bitmill_tensor::{Dtype, Encoding, FloatType, WeightView};
use serde_json::{Map, Value, json};

use crate::checkpoint::Parts;
use crate::compressed_tensors::{SCALE, Scheme, StoredMatrix, stored_shape};
use crate::config_json::Fields;
use crate::safetensors_in::StTensor;
use crate::{Error, Region, StTensorSpec, scaled};

const FORMAT: &str = "sparse-bitmask";
const TWO_OF_FOUR: &str = "sparse-24-bitmask";
const COMPRESSED: &str = "compressed";
const BITMASK: &str = "bitmask";
const SHAPE: &str = "shape";
const ROW_OFFSETS: &str = "row_offsets";

/// The last version of the library that has this form.
const VERSION: &str = "0.12.2";

/// Whether `sparsity_config`, a value of config.json's `quantization_config`, declares one of these forms.
pub(crate) fn is_declared(file: &Path, config: &Value) -> Result<bool, Error> {
    let Value::Object(map) = config else { return Ok(false) };
    let fields = Fields { file, prefix: "quantization_config.sparsity_config", map };
    Ok(matches!(fields.text("format")?, Some(FORMAT | TWO_OF_FOUR)))
}

/// The matrix that a stored tensor is a part of (`….weight`), if its name says so.
pub(crate) fn matrix_of(name: &str) -> Option<(String, &'static str)> {
    let (module, part) = name.rsplit_once('.')?;
    let part = [COMPRESSED, BITMASK, SHAPE, ROW_OFFSETS].into_iter().find(|known| *known == part)?;
    Some((format!("{module}.weight"), part))
}

/// Whether any of a matrix's parts is of this form.
pub(crate) fn is_sparse(parts: &HashMap<&'static str, StTensor>) -> bool {
    [COMPRESSED, BITMASK, SHAPE, ROW_OFFSETS].iter().any(|part| parts.contains_key(part))
}

/// Puts the matrix `name` together from its stored `parts`, by the last part of their names; numbers of 8 bits by `schemes`.
pub(crate) fn assemble(
    name: &str,
    mut parts: HashMap<&'static str, StTensor>,
    schemes: &[Scheme],
) -> Result<StoredMatrix, Error> {
    let wrong = |problem: String| Error::PackedTensor { tensor: name.to_owned(), problem };
    let [values, bitmask, shape, row_offsets] =
        [COMPRESSED, BITMASK, SHAPE, ROW_OFFSETS].map(|part| parts.remove(part));
    let (Some(values), Some(bitmask), Some(shape)) = (values, bitmask, shape) else {
        return Err(wrong(format!("`{COMPRESSED}`, `{BITMASK}` and `{SHAPE}` must all be there")));
    };
    for (part, dtype) in [(Some(&bitmask), Dtype::U8), (row_offsets.as_ref(), Dtype::I64)] {
        if let Some(part) = part.filter(|part| part.dtype != dtype) {
            return Err(wrong(format!("`{}` is {} where {dtype} is expected", part.name, part.dtype)));
        }
    }
    let [out_features, in_features] = stored_shape(&shape)
        .ok_or_else(|| wrong(format!("`{SHAPE}` does not hold two sizes that can be addressed")))?;
    let is_halved = row_offsets.is_none();
    if is_halved && (values.shape != [out_features, in_features / 2] || in_features % 4 != 0) {
        return Err(wrong(format!(
            "without `{ROW_OFFSETS}` it has two of each four weights, and {:?} are not those of [{out_features}, \
             {in_features}]",
            values.shape
        )));
    }
    if is_halved && parts.contains_key(SCALE) && matches!(values.dtype, Dtype::I8 | Dtype::F8E4M3) {
        if bitmask.bytes.len() != out_features * in_features.div_ceil(8) {
            return Err(wrong(format!(
                "`{BITMASK}` {:?} does not have a bit for each weight",
                bitmask.shape
            )));
        }
        check_fours(&bitmask.bytes, in_features).map_err(wrong)?;
        if parts.insert(scaled::WEIGHT, values).is_some() {
            return Err(wrong("it is stored both whole and sparse".to_owned()));
        }
        return scaled::assemble(name, parts, schemes, Some((bitmask.bytes, in_features)));
    }
    if parts.contains_key(SCALE) && matches!(values.dtype, Dtype::I8 | Dtype::F8E4M3) {
        return Err(wrong(format!(
            "sparse {}, which is read where two of each four are stored alone",
            values.dtype
        )));
    }
    if !parts.is_empty() {
        return Err(wrong("it is stored both packed and sparse".to_owned()));
    }
    let float = values.dtype.float().ok_or_else(|| wrong(format!("values of dtype {}", values.dtype)))?;
    let row_offsets = match row_offsets {
        Some(part) => part.bytes,
        None => {
            let offsets =
                (0..out_features as u64).flat_map(|row| (row * in_features as u64 / 2).to_le_bytes());
            Region::from_vec(offsets.collect())
        }
    };
    let count = values.bytes.len() / float.size_bytes();
    let encoding = Encoding::Sparse { float, values: count };
    let parts = Parts::Sparse { float, bitmask: bitmask.bytes, values: values.bytes, row_offsets };
    WeightView::new(out_features, in_features, parts.data(encoding))
        .map_err(|source| Error::View { tensor: name.to_owned(), source })?;
    if let Parts::Sparse { bitmask, row_offsets, .. } = &parts {
        let mut before = 0u64;
        let rows = bitmask.chunks_exact(in_features.div_ceil(8)).zip(row_offsets.as_chunks::<8>().0);
        for (row, (bits, offset)) in rows.enumerate() {
            if u64::try_from(i64::from_le_bytes(*offset)) != Ok(before) {
                return Err(wrong(format!(
                    "the bits before row {row} are {before}, and its offset says otherwise"
                )));
            }
            let beyond =
                in_features % 8 != 0 && bits.last().is_some_and(|last| last >> (in_features % 8) != 0);
            if beyond {
                return Err(wrong(format!("row {row} has bits beyond its {in_features} columns")));
            }
            before += bits.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        }
        if before != count as u64 {
            return Err(wrong(format!("{before} bits are set, and there are {count} values")));
        }
        bitmask.release();
    }
    Ok(StoredMatrix { shape: [out_features, in_features], encoding, parts })
}

/// Whether two bits are set of each four in rows of `in_features`, and none beyond; or which row it is that has others.
fn check_fours(bits: &Region, in_features: usize) -> Result<(), String> {
    let row_bytes = in_features.div_ceil(8);
    let four = |row: &[u8], at: usize| (row[at / 2] >> (at % 2 * 4) & 15).count_ones();
    let rows = bits.chunks_exact(row_bytes);
    let wrong = rows.enumerate().find(|(_, row)| {
        (0..2 * row_bytes).any(|at| four(row, at) != if at < in_features / 4 { 2 } else { 0 })
    });
    bits.release();
    match wrong {
        None => Ok(()),
        Some((row, _)) => Err(format!("row {row} keeps other than two of each four weights")),
    }
}

/// The tensors that a matrix with `values` kept weights is stored as: values, bits, shape, row offsets.
///
/// `name` is the matrix's own, ending in `.weight`; a name that does not is taken as the module's.
///
/// ```
/// use bitmill_checkpoint::sparse_specs;
/// use bitmill_tensor::FloatType;
///
/// let specs = sparse_specs("mlp.up_proj.weight", 896, 250, FloatType::BF16, 112_000);
/// let shapes: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.shape.clone())).collect();
/// assert_eq!(shapes, [
///     ("mlp.up_proj.compressed", vec![112_000]),
///     ("mlp.up_proj.bitmask", vec![896, 32]),
///     ("mlp.up_proj.shape", vec![2]),
///     ("mlp.up_proj.row_offsets", vec![896]),
/// ]);
/// ```
pub fn sparse_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    float: FloatType,
    values: usize,
) -> Vec<StTensorSpec> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    let spec = |part: &str, shape: Vec<usize>, dtype: Dtype| StTensorSpec {
        name: format!("{module}.{part}"),
        shape,
        dtype,
    };
    vec![
        spec(COMPRESSED, vec![values], float.into()),
        spec(BITMASK, vec![out_features, in_features.div_ceil(8)], Dtype::U8),
        spec(SHAPE, vec![2], Dtype::I64),
        spec(ROW_OFFSETS, vec![out_features], Dtype::I64),
    ]
}

/// The `quantization_config` of config.json for matrices in this form: every `Linear` that `ignore` does not name, of
/// whose weights `sparsity` are zero.
pub fn sparse_config(sparsity: f64, ignore: &[String]) -> Value {
    let mut config = Map::new();
    config.insert("quant_method".to_owned(), "compressed-tensors".into());
    config.insert("version".to_owned(), VERSION.into());
    config.insert(
        "sparsity_config".to_owned(),
        json!({
            "format": FORMAT,
            "targets": ["Linear"],
            "ignore": ignore,
            "global_sparsity": sparsity,
            "sparsity_structure": "unstructured",
        }),
    );
    Value::Object(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Region, safetensors_in};
    use bitmill_tensor::WeightData;

    /// The parts that the library wrote, and the dense matrix that it had.
    fn golden() -> (HashMap<&'static str, StTensor>, Vec<f32>) {
        let path = Path::new("tests/golden/sparse.safetensors");
        let region = Region::from_vec(std::fs::read(path).unwrap());
        let (mut parts, mut dense) = (HashMap::new(), Vec::new());
        for tensor in safetensors_in::read(path, &region).unwrap() {
            match matrix_of(&tensor.name) {
                Some((matrix, part)) => {
                    assert_eq!(matrix, "m.weight");
                    parts.insert(part, tensor);
                }
                None => {
                    let floats = tensor.bytes.as_chunks::<4>().0;
                    dense = floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                }
            }
        }
        (parts, dense)
    }

    #[test]
    fn reads_what_the_library_wrote() {
        let (parts, dense) = golden();
        assert!(is_sparse(&parts));
        let matrix = assemble("m.weight", parts, &[]).unwrap();
        assert_eq!(matrix.shape, [7, 45]);
        let WeightData::Sparse { float, bitmask, values, .. } = matrix.parts.data(matrix.encoding) else {
            panic!("{:?}", matrix.encoding);
        };
        let mut next = 0;
        let mut found = Vec::new();
        for bits in bitmask.chunks(6) {
            for column in 0..45 {
                let kept = bits[column / 8] >> (column % 8) & 1 == 1;
                found.push(if kept { float.read(values, next) } else { 0.0 });
                next += usize::from(kept);
            }
        }
        assert_eq!(found, dense);
        let specs = sparse_specs("m.weight", 7, 45, float, next);
        for (part, tensor) in golden().0 {
            let spec = specs.iter().find(|spec| spec.name == format!("m.{part}")).unwrap();
            assert_eq!(
                (spec.shape.as_slice(), spec.dtype),
                (tensor.shape.as_slice(), tensor.dtype),
                "{part}"
            );
        }
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused_by_name() {
        let broken = |part: &str, at: usize, byte: u8| {
            let (mut parts, _) = golden();
            let tensor = parts.get_mut(part).unwrap();
            let mut bytes = tensor.bytes.to_vec();
            bytes[at] ^= byte;
            tensor.bytes = Region::from_vec(bytes);
            assemble("m.weight", parts, &[]).map(|matrix| matrix.shape).unwrap_err().to_string()
        };
        for (error, said) in [
            (broken(BITMASK, 0, 1), "offset"),
            (broken(BITMASK, 5, 0x80), "beyond its 45 columns"),
            (broken(BITMASK, 37, 2), "bits are set"),
            (broken(ROW_OFFSETS, 8, 1), "offset"),
            (broken(ROW_OFFSETS, 7, 0x80), "offset"),
            (broken(SHAPE, 0, 1), "bits"),
            (broken(SHAPE, 7, 0x80), "two sizes"),
        ] {
            assert!(error.contains("m.weight") && error.contains(said), "{error}");
        }
        for (part, said) in [(BITMASK, "must all be there"), (ROW_OFFSETS, "two of each four")] {
            let (mut parts, _) = golden();
            parts.remove(part);
            let error = assemble("m.weight", parts, &[]).map(|matrix| matrix.shape).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
