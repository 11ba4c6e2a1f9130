//! Where everything goes in the files of a GGUF output, one or several; the layout of a file is drawn in `gguf_in`, that of
//! a split model in `gguf_split`.
//!
//! Every tensor is padded with zeros to the alignment, the last one too, as ggml's writers do. A model is split as
//! llama-gguf-split splits it: a part takes tensors in their order as long as they, padded, do not pass the limit; headers
//! are not counted.

use bitmill_tensor::Encoding;

use crate::checkpoint::matrix_shape;
use crate::gguf_in::encoding_id;
use crate::gguf_split::part_suffix;
use crate::{Error, GgufArray, GgufTensorSpec, GgufValue};

const ALIGNMENT: u64 = 32;
/// ggml keeps names in 64 bytes with a zero at the end.
const LONGEST_NAME: usize = 63;

/// The files of an output.
pub(crate) struct Layout {
    pub parts: Vec<Part>,
    /// The part of each tensor, and where it begins there.
    pub places: Vec<(usize, u64)>,
}

/// One file.
pub(crate) struct Part {
    pub header: Vec<u8>,
    pub bytes: u64,
}

impl Layout {
    /// Parts of at most `split_bytes`, or one file.
    pub fn new(
        metadata: &[(String, GgufValue)],
        tensors: &[GgufTensorSpec],
        split_bytes: Option<u64>,
    ) -> Self {
        let alignment = metadata.iter().find(|(key, _)| key == "general.alignment");
        let alignment = alignment.and_then(|(_, value)| value.as_u64()).unwrap_or(ALIGNMENT).max(1);
        let padded = |spec: &GgufTensorSpec| tensor_bytes(spec).next_multiple_of(alignment);
        // How many tensors each part has.
        let mut counts = vec![0];
        let mut part_bytes = 0;
        for spec in tensors {
            let last = counts.len() - 1;
            if counts[last] > 0 && split_bytes.is_some_and(|limit| part_bytes + padded(spec) > limit) {
                counts.push(1);
                part_bytes = padded(spec);
            } else {
                counts[last] += 1;
                part_bytes += padded(spec);
            }
        }
        let mut layout =
            Self { parts: Vec::with_capacity(counts.len()), places: Vec::with_capacity(tensors.len()) };
        let mut rest = tensors;
        for (number, &count) in counts.iter().enumerate() {
            let (members, others) = rest.split_at(count);
            rest = others;
            // The keys of the model are in the first part alone.
            let mut keys = if number == 0 { metadata.to_vec() } else { Vec::new() };
            if counts.len() > 1 {
                keys.push(("split.no".into(), GgufValue::U16(number as u16)));
                keys.push(("split.tensors.count".into(), GgufValue::I32(tensors.len() as i32)));
                keys.push(("split.count".into(), GgufValue::U16(counts.len() as u16)));
            }
            layout.add(number, &keys, members, alignment);
        }
        layout
    }

    fn add(
        &mut self,
        number: usize,
        keys: &[(String, GgufValue)],
        tensors: &[GgufTensorSpec],
        alignment: u64,
    ) {
        let mut header = b"GGUF".to_vec();
        put_u32(&mut header, 3);
        put_u64(&mut header, tensors.len() as u64);
        put_u64(&mut header, keys.len() as u64);
        for (key, value) in keys {
            put_string(&mut header, key);
            put_u32(&mut header, value.type_id());
            put_value(&mut header, value);
        }
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut end = 0u64;
        for spec in tensors {
            offsets.push(end);
            put_string(&mut header, &spec.name);
            put_u32(&mut header, spec.shape.len() as u32);
            for &size in spec.shape.iter().rev() {
                put_u64(&mut header, size as u64);
            }
            put_u32(&mut header, encoding_id(spec.encoding).unwrap_or(u32::MAX));
            put_u64(&mut header, end);
            end += tensor_bytes(spec).next_multiple_of(alignment);
        }
        let data_start = (header.len() as u64).next_multiple_of(alignment);
        header.resize(data_start as usize, 0);
        self.places.extend(offsets.into_iter().map(|offset| (number, data_start + offset)));
        self.parts.push(Part { header, bytes: data_start + end });
    }

    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// What the files are called for a target of this name: `x.gguf`, or `x-00001-of-00003.gguf` and so on.
    pub fn names(&self, target: &str) -> Vec<String> {
        let count = self.parts.len() as u64;
        if count == 1 {
            return vec![target.to_owned()];
        }
        let stem = target.strip_suffix(".gguf").unwrap_or(target);
        (0..count).map(|number| format!("{stem}{}", part_suffix(number, count))).collect()
    }
}

pub(crate) fn tensor_bytes(spec: &GgufTensorSpec) -> u64 {
    let (rows, cols) = matrix_shape(&spec.shape);
    spec.encoding.matrix_bytes(rows, cols) as u64
}

pub(crate) fn check_specs(metadata: &[(String, GgufValue)], tensors: &[GgufTensorSpec]) -> Result<(), Error> {
    let bad = |tensor: &str, problem: &str| {
        Err(Error::BadSpec { tensor: tensor.to_owned(), problem: problem.to_owned() })
    };
    let mut keys = std::collections::HashSet::new();
    for (key, value) in metadata {
        if key.starts_with("split.") {
            return bad(key, "the writer says itself how it splits");
        }
        if !keys.insert(key) {
            return bad(key, "the key is there twice");
        }
        let is_size = |value: &GgufValue| value.as_u64().is_some_and(|n| n.is_power_of_two() && n <= 1 << 20);
        if key == "general.alignment" && !(matches!(value, GgufValue::U32(_)) && is_size(value)) {
            return bad(key, "an alignment is a u32 and a power of two");
        }
    }
    let mut names = std::collections::HashSet::new();
    for spec in tensors {
        if !names.insert(&spec.name) {
            return bad(&spec.name, "the tensor is there twice");
        }
        if spec.name.len() > LONGEST_NAME {
            return bad(&spec.name, "ggml's names have at most 63 bytes");
        }
        if spec.shape.is_empty() || spec.shape.len() > 4 {
            return bad(&spec.name, "GGUF has tensors of 1 to 4 dimensions");
        }
        match spec.encoding {
            Encoding::Grouped(_) => return bad(&spec.name, "GGUF has no such groups of codes"),
            Encoding::Scaled(_) => return bad(&spec.name, "GGUF has no such numbers"),
            Encoding::Sparse { .. } => return bad(&spec.name, "GGUF has no sparse tensors"),
            Encoding::Block(block) if !spec.shape[spec.shape.len() - 1].is_multiple_of(block.weights()) => {
                return bad(&spec.name, "its rows do not divide into blocks");
            }
            _ => {}
        }
    }
    Ok(())
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    match value {
        GgufValue::U8(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::I8(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::U16(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::I16(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::U32(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::I32(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::F32(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::Bool(value) => out.push(u8::from(*value)),
        GgufValue::String(value) => put_string(out, value),
        GgufValue::Array(array) => put_array(out, array),
        GgufValue::U64(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::I64(value) => out.extend_from_slice(&value.to_le_bytes()),
        GgufValue::F64(value) => out.extend_from_slice(&value.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &GgufArray) {
    put_u32(out, array.type_id());
    put_u64(out, array.len() as u64);
    match array {
        GgufArray::U8(values) => out.extend_from_slice(values),
        GgufArray::I8(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::U16(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::I16(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::U32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::I32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::F32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::Bool(values) => out.extend(values.iter().map(|value| u8::from(*value))),
        GgufArray::String(values) => values.iter().for_each(|value| put_string(out, value)),
        GgufArray::U64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::I64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufArray::F64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
    }
}
