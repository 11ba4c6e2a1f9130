//! bitsandbytes' 4-bit form, that of QLoRA: places in a list of 16 values, a scale for a block of weights; read and written.
//!
//! ```text
//! NAME.weight                                  U8 [out·in/2, 1]     two codes a byte, the even one high
//! NAME.weight.absmax                           F32 [blocks]         row after row; or U8, doubly quantized
//! NAME.weight.quant_map                        F32 [16]             the list
//! NAME.weight.nested_absmax                    F32 [⌈blocks/256⌉]   doubly quantized: what absmax is multiplied with, and
//! NAME.weight.nested_quant_map                 F32 [256]            what its codes are
//! NAME.weight.quant_state.bitsandbytes__nf4    U8                   JSON: {"quant_type": "nf4", "blocksize": 64,
//!                                                                   "dtype": "bfloat16", "shape": [out, in], …}
//! ```
//!
//! Read are `nf4` and `fp4`, in blocks that divide a row, with the library's own lists; `bnb_4bit_quant_storage` may give the
//! same bytes another dtype. 8-bit weights (`load_in_8bit`) are refused by name. Limits: JSON of at most 64 KB. Written JSON is
//! padded with spaces to a length that is known beforehand: readers parse it, and JSON ends with them.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use bitmill_tensor::{
    Codebook, Dtype, Element, Encoding, Extent, FloatType, Nested, ScaleType, Scaled, WeightView,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::checkpoint::{NestedParts, Parts};
use crate::compressed_tensors::StoredMatrix;
use crate::config_json::Fields;
use crate::safetensors_in::StTensor;
use crate::{Error, StTensorSpec};

const WEIGHT: &str = "weight";
const ABSMAX: &str = "absmax";
const MAP: &str = "quant_map";
const NESTED_ABSMAX: &str = "nested_absmax";
const NESTED_MAP: &str = "nested_quant_map";
const STATES: [(&str, Codebook); 2] =
    [("quant_state.bitsandbytes__nf4", Codebook::Nf4), ("quant_state.bitsandbytes__fp4", Codebook::Fp4)];
/// Digits that an f64 takes at most.
const LONGEST_NUMBER: usize = 24;
const LONGEST_STATE: usize = 1 << 16;

/// What a config declares of all its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Declared {
    /// What the bytes of codes are called.
    storage: Dtype,
}

/// Reads a `quantization_config` of this method.
pub(crate) fn declared(fields: &Fields) -> Result<Declared, Error> {
    let unsupported = |what: String| Error::UnsupportedQuantization { file: fields.file.to_owned(), what };
    if fields.flag("load_in_8bit")? == Some(true) {
        return Err(unsupported("bitsandbytes' 8-bit weights (`load_in_8bit`)".to_owned()));
    }
    let storage = match fields.text("bnb_4bit_quant_storage")? {
        None | Some("uint8") => Dtype::U8,
        Some("float16") => Dtype::F16,
        Some("bfloat16") => Dtype::BF16,
        Some("float32") => Dtype::F32,
        Some(other) => return Err(unsupported(format!("codes stored as `{other}`"))),
    };
    Ok(Declared { storage })
}

/// The matrix that a stored tensor is a part of (`….weight`), if its name, dtype and shape say so.
pub(crate) fn matrix_of(tensor: &StTensor, declared: Declared) -> Option<(String, &'static str)> {
    let name = tensor.name.as_str();
    if name.ends_with(".weight") {
        let is_codes = tensor.dtype == declared.storage && matches!(tensor.shape.as_slice(), [_, 1]);
        return (is_codes || tensor.dtype == Dtype::U8).then(|| (name.to_owned(), WEIGHT));
    }
    let parts = [ABSMAX, MAP, NESTED_ABSMAX, NESTED_MAP].into_iter().chain(STATES.map(|(part, _)| part));
    parts.into_iter().find_map(|part| {
        let matrix = name.strip_suffix(part)?.strip_suffix('.')?;
        matrix.ends_with(".weight").then(|| (matrix.to_owned(), part))
    })
}

/// What the JSON of a matrix says that is needed to read it.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: NonZeroUsize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// Puts the matrix `name` together from its stored `parts`.
pub(crate) fn assemble(
    name: &str,
    mut parts: HashMap<&'static str, StTensor>,
) -> Result<StoredMatrix, Error> {
    let wrong = |problem: String| Error::PackedTensor { tensor: name.to_owned(), problem };
    let mut take = |part: &str| parts.remove(part);
    let state = STATES.iter().find_map(|(part, list)| Some((take(part)?, *list)));
    let (Some(codes), Some(absmax), Some(map), Some((state, list))) =
        (take(WEIGHT), take(ABSMAX), take(MAP), state)
    else {
        return Err(wrong(format!(
            "`{WEIGHT}` in codes, `{ABSMAX}`, `{MAP}` and `quant_state.bitsandbytes__nf4` or `__fp4` must all be there"
        )));
    };
    if state.bytes.len() > LONGEST_STATE {
        return Err(wrong(format!("`{}` has {} bytes", state.name, state.bytes.len())));
    }
    let State { quant_type, blocksize, shape, nested_blocksize, nested_offset } =
        serde_json::from_slice(&state.bytes).map_err(|error| wrong(format!("`{}`: {error}", state.name)))?;
    if quant_type != list.name() {
        return Err(wrong(format!("`{}` says `{quant_type}`", state.name)));
    }
    let own = list.values().iter().flat_map(|value| value.to_le_bytes());
    if map.dtype != Dtype::F32 || !map.bytes.iter().copied().eq(own) {
        return Err(wrong(format!("`{MAP}` is another list than bitsandbytes' {quant_type}")));
    }
    let &[out_features, in_features] = shape.as_slice() else {
        return Err(wrong(format!("a shape of {shape:?} is no matrix")));
    };
    let nested = match (absmax.dtype, take(NESTED_ABSMAX), take(NESTED_MAP)) {
        (Dtype::F32, None, None) => None,
        (Dtype::U8, Some(absmax), Some(map)) if (absmax.dtype, map.dtype) == (Dtype::F32, Dtype::F32) => {
            let (Some(Nested::BLOCK), Some(offset)) = (nested_blocksize, nested_offset) else {
                return Err(wrong(format!(
                    "doubly quantized in blocks of {nested_blocksize:?}, plus {nested_offset:?}"
                )));
            };
            Some(NestedParts { map: map.bytes, absmax: absmax.bytes, offset: offset as f32 })
        }
        (dtype, ..) => {
            return Err(wrong(format!(
                "`{ABSMAX}` is {dtype}: F32, or U8 with `{NESTED_ABSMAX}` and `{NESTED_MAP}` of F32 is expected"
            )));
        }
    };
    let scale = if nested.is_some() { ScaleType::Nested } else { ScaleType::Float(FloatType::F32) };
    let layout = Scaled { element: Element::Listed(list), extent: Extent::Columns(blocksize), scale };
    let encoding = Encoding::Scaled(layout);
    let parts =
        Parts::Scaled { layout, codes: codes.bytes, scales: absmax.bytes, global: 1.0, nested, kept: None };
    WeightView::new(out_features, in_features, parts.data(encoding))
        .map_err(|source| Error::View { tensor: name.to_owned(), source })?;
    Ok(StoredMatrix { shape: [out_features, in_features], encoding, parts })
}

/// The tensors that a matrix made of `made_of` is stored as: codes, scales, the list, what is said of it, and doubly quantized
/// what scales are read with.
///
/// # Panics
/// If `layout` is no list of values by blocks of columns.
///
/// ```
/// use bitmill_checkpoint::codebook_specs;
/// use bitmill_tensor::{Codebook, Element, Extent, FloatType, ScaleType, Scaled};
///
/// let extent = Extent::Columns(64.try_into().unwrap());
/// let nf4 = Scaled { element: Element::Listed(Codebook::Nf4), extent, scale: ScaleType::Float(FloatType::F32) };
/// let specs = codebook_specs("mlp.up_proj.weight", 896, 256, &nf4, FloatType::BF16);
/// let shapes: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.shape.clone())).collect();
/// assert_eq!(shapes[..3], [
///     ("mlp.up_proj.weight", vec![896 * 128, 1]),
///     ("mlp.up_proj.weight.absmax", vec![896 * 4]),
///     ("mlp.up_proj.weight.quant_map", vec![16]),
/// ]);
/// ```
pub fn codebook_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    layout: &Scaled,
    made_of: FloatType,
) -> Vec<StTensorSpec> {
    let Element::Listed(list) = layout.element else { panic!("{layout} is no list of values") };
    let spec = |part: &str, shape: Vec<usize>, dtype: Dtype| StTensorSpec {
        name: if part.is_empty() { name.to_owned() } else { format!("{name}.{part}") },
        shape,
        dtype,
    };
    let (lines, per_line) = layout.extent.scales(out_features, in_features);
    let blocks = lines * per_line;
    let state = quant_state(layout, list, made_of, out_features, in_features, 0.0);
    let state_name = STATES.iter().find(|(_, own)| *own == list).map_or("", |(part, _)| part);
    let codes = out_features * layout.element.row_bytes(in_features);
    let mut specs = vec![
        spec("", vec![codes, 1], Dtype::U8),
        spec(ABSMAX, vec![blocks], layout.scale.dtype()),
        spec(MAP, vec![16], Dtype::F32),
        spec(state_name, vec![state.len()], Dtype::U8),
    ];
    if layout.scale == ScaleType::Nested {
        specs.push(spec(NESTED_ABSMAX, vec![Nested::scales(blocks)], Dtype::F32));
        specs.push(spec(NESTED_MAP, vec![256], Dtype::F32));
    }
    specs
}

/// What is said of a matrix beside its numbers: JSON as bitsandbytes writes it, its length the same for every `offset`, which
/// is added to scales that are codes.
pub fn quant_state(
    layout: &Scaled,
    list: Codebook,
    made_of: FloatType,
    out_features: usize,
    in_features: usize,
    offset: f32,
) -> Vec<u8> {
    // As Python writes a dictionary.
    let mut text = format!(
        "{{\"quant_type\": \"{}\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": [{out_features}, {in_features}]",
        list.name(),
        layout.extent.cols(),
        made_of.long_name(),
    );
    if layout.scale == ScaleType::Nested {
        let offset = json!(f64::from(offset)).to_string();
        text += &format!(
            ", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset}}}",
            Nested::BLOCK,
        );
        text.extend(std::iter::repeat_n(' ', LONGEST_NUMBER.saturating_sub(offset.len())));
    } else {
        text.push('}');
    }
    text.into_bytes()
}

/// The `quantization_config` of config.json: `layout` for every `Linear` but those of `skipped`, multiplied in `made_in`.
pub fn bitsandbytes_config(layout: &Scaled, made_in: FloatType, skipped: &[String]) -> Value {
    let list = match layout.element {
        Element::Listed(list) => list.name(),
        _ => Codebook::Nf4.name(),
    };
    // vLLM asks for the names of what it fuses.
    let fused = skipped.iter().filter_map(|module| {
        let (start, last) = module.rsplit_once('.')?;
        let fused = match last {
            "q_proj" => "qkv_proj",
            "gate_proj" => "gate_up_proj",
            _ => return None,
        };
        Some(format!("{start}.{fused}"))
    });
    let skipped: Vec<String> = skipped.iter().cloned().chain(fused).collect();
    json!({
        "quant_method": "bitsandbytes",
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": made_in.long_name(),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": list,
        "bnb_4bit_use_double_quant": layout.scale == ScaleType::Nested,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_matrix_has_one_length_for_every_offset() {
        let extent = Extent::Columns(NonZeroUsize::new(64).unwrap());
        let layout = Scaled { element: Element::Listed(Codebook::Nf4), extent, scale: ScaleType::Nested };
        let state = |offset| quant_state(&layout, Codebook::Nf4, FloatType::BF16, 8, 256, offset);
        let whole = state(0.0).len();
        for offset in [2.454_172_1, 1e-30, f32::MAX, f32::MIN_POSITIVE, 0.015_625, 1.0 / 3.0] {
            let state = state(offset);
            assert_eq!(state.len(), whole, "{offset}");
            let read: State = serde_json::from_slice(&state).unwrap();
            assert_eq!((read.nested_offset.unwrap() as f32, read.shape), (offset, vec![8, 256]));
        }
        // What the library says of the same matrix.
        let theirs = "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [8, 256], \
                      \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 2.454172134399414}";
        assert_eq!(String::from_utf8(state(2.454_172_1)).unwrap().trim_end(), theirs);
    }
}
