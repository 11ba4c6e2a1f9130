//! Writes GGUF, version 3: header first, then tensors in any order. The layout is drawn in `gguf_in`.
//!
//! Every tensor is padded with zeros to the alignment, the last one too, as ggml's writers do.

use bitmill_tensor::Encoding;

use crate::atomic::{Progress, StagedFile};
use crate::checkpoint::matrix_shape;
use crate::gguf_in::encoding_id;
use crate::{Error, GgufArray, GgufValue, Target, Written};

const ALIGNMENT: u64 = 32;
/// ggml keeps names in 64 bytes with a zero at the end.
const LONGEST_NAME: usize = 63;

/// A tensor that a GGUF file will hold.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensorSpec {
    /// The GGUF name.
    pub name: String,
    /// `[out_features, in_features]`, or `[n]`: row-major order, as everywhere; the file has it reversed.
    pub shape: Vec<usize>,
    /// Floats or blocks.
    pub encoding: Encoding,
}

/// Writes a GGUF file, tensor by tensor in any order and from any thread.
///
/// ```
/// use bitmill_checkpoint::{GgufTensorSpec, GgufValue, GgufWriter, Overwrite, Target};
/// use bitmill_tensor::{Encoding, FloatType};
///
/// # fn main() -> Result<(), bitmill_checkpoint::Error> {
/// # let folder = tempfile::tempdir().unwrap();
/// let target = Target { path: folder.path().join("x.gguf"), overwrite: Overwrite::Refuse };
/// let metadata = [("general.architecture".to_owned(), GgufValue::String("llama".to_owned()))];
/// let norm = GgufTensorSpec {
///     name: "output_norm.weight".to_owned(),
///     shape: vec![2],
///     encoding: Encoding::Float(FloatType::F32),
/// };
/// let writer = GgufWriter::create(&target, &metadata, &[norm])?;
/// writer.write_at(0, 4, &2f32.to_le_bytes())?;
/// writer.write_at(0, 0, &1f32.to_le_bytes())?;
/// let written = writer.finish()?;
/// assert_eq!(written.bytes, std::fs::metadata(&target.path).unwrap().len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    file: StagedFile,
    /// Where each tensor begins in the file.
    starts: Vec<u64>,
    progress: Progress,
    total_bytes: u64,
}

impl GgufWriter {
    /// Creates the file beside `target`, header written and room for everything reserved.
    ///
    /// # Errors
    /// [`Error::BadSpec`] for a key or tensor that GGUF cannot hold; [`Error::TargetExists`],
    /// [`TargetNotReplaceable`](Error::TargetNotReplaceable) or [`TargetFolder`](Error::TargetFolder) if the target
    /// cannot be written; [`Error::DiskFull`].
    pub fn create(
        target: &Target,
        metadata: &[(String, GgufValue)],
        tensors: &[GgufTensorSpec],
    ) -> Result<Self, Error> {
        check_specs(metadata, tensors)?;
        let layout = Layout::new(metadata, tensors);
        let file = StagedFile::create(target, layout.total_bytes)?;
        file.write_at(&layout.header, 0)?;
        let sizes = tensors.iter().map(|spec| (spec.name.clone(), tensor_bytes(spec)));
        let progress = Progress::new(sizes);
        Ok(Self { file, starts: layout.starts, progress, total_bytes: layout.total_bytes })
    }

    /// Writes `bytes` at `offset` within tensor number `tensor` of the specs.
    ///
    /// # Errors
    /// [`Error::WriteOutside`], [`Error::DiskFull`] or [`Error::Io`].
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.progress.check(tensor, offset, bytes.len())?;
        self.file.write_at(bytes, self.starts[tensor] + offset)?;
        self.progress.add(tensor, bytes.len());
        Ok(())
    }

    /// Where the file lies until [`finish`](Self::finish): complete once every tensor is written, to be read back.
    pub fn staged(&self) -> &std::path::Path {
        self.file.staged()
    }

    /// The exact size of the finished file.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Completes the file, flushes it and renames it to its target.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if a tensor was not wholly written; the target is then as it was.
    pub fn finish(self) -> Result<Written, Error> {
        self.progress.check_complete(self.file.path())?;
        self.file.finish()
    }
}

/// The exact size of the file that [`GgufWriter`] writes for these.
pub fn gguf_bytes(metadata: &[(String, GgufValue)], tensors: &[GgufTensorSpec]) -> u64 {
    Layout::new(metadata, tensors).total_bytes
}

struct Layout {
    header: Vec<u8>,
    starts: Vec<u64>,
    total_bytes: u64,
}

impl Layout {
    fn new(metadata: &[(String, GgufValue)], tensors: &[GgufTensorSpec]) -> Self {
        let alignment = metadata.iter().find(|(key, _)| key == "general.alignment");
        let alignment = alignment.and_then(|(_, value)| value.as_u64()).unwrap_or(ALIGNMENT).max(1);
        let mut header = b"GGUF".to_vec();
        put_u32(&mut header, 3);
        put_u64(&mut header, tensors.len() as u64);
        put_u64(&mut header, metadata.len() as u64);
        for (key, value) in metadata {
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
        let starts = offsets.into_iter().map(|offset| data_start + offset).collect();
        Self { header, starts, total_bytes: data_start + end }
    }
}

fn tensor_bytes(spec: &GgufTensorSpec) -> u64 {
    let (rows, cols) = matrix_shape(&spec.shape);
    spec.encoding.matrix_bytes(rows, cols) as u64
}

fn check_specs(metadata: &[(String, GgufValue)], tensors: &[GgufTensorSpec]) -> Result<(), Error> {
    let bad = |tensor: &str, problem: &str| {
        Err(Error::BadSpec { tensor: tensor.to_owned(), problem: problem.to_owned() })
    };
    let mut keys = std::collections::HashSet::new();
    for (key, value) in metadata {
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
