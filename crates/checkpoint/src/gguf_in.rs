//! Reads GGUF, versions 2 and 3, which differ in what big-endian machines write alone; `gguf_split` puts parts together.
//!
//! ```text
//! 0     "GGUF", u32 version, u64 n_tensors, u64 n_keys; little-endian, as everything
//! 24    n_keys × { string key, u32 type, value }           string: u64 length, bytes
//!                                                          array: u32 type, u64 count, values
//!       n_tensors × { string name, u32 n_dims, u64 dims[n_dims] (fastest first), u32 type, u64 offset }
//!       padding to `general.alignment` (32 if absent)
//! D     data; offsets count from D and are multiples of the alignment
//! ```
//!
//! Limits, all checked before anything is allocated for what they bound: counts of keys, tensors, array elements
//! and string bytes by what the rest of the file can hold; names of tensors 64 bytes, keys 65535; 4 dimensions;
//! no arrays in arrays; alignment a power of two up to 2^20; tensors neither overlap nor reach past the file. An
//! array of empty strings takes three times its bytes in memory, the worst there is.

use std::path::Path;

use bitmill_tensor::{BlockType, Encoding, FloatType};

use crate::checkpoint::{Format, Parts, is_addressable, matrix_shape};
use crate::gguf_split::{self, Whole};
use crate::gguf_value::type_name;
use crate::{
    Checkpoint, Error, Family, GgufArray, GgufValue, Pairing, Region, RoleKind, TensorInfo, folder,
    generation1, gguf_config, gguf_rope, moe, shapes,
};

/// Version 1 had 32-bit counts.
const VERSIONS: [u32; 2] = [2, 3];
const DEFAULT_ALIGNMENT: u64 = 32;
const LARGEST_ALIGNMENT: u64 = 1 << 20;
const LONGEST_KEY: u64 = 65_535;
const LONGEST_NAME: u64 = 64;
const MOST_DIMENSIONS: u32 = 4;
/// Bytes of the shortest key: empty name, type, one byte.
const SMALLEST_KEY: u64 = 8 + 4 + 1;
/// Bytes of the shortest tensor entry: empty name, no dimensions, type, offset.
const SMALLEST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// A tensor of a GGUF file under its own name.
#[derive(Debug, Clone)]
pub(crate) struct GgufTensor {
    pub name: String,
    /// Row-major order: the file's dimensions reversed.
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    pub bytes: Region,
}

/// Opens the checkpoint in the GGUF file `file`, whose bytes are `region`; `sibling` opens a file of its folder, if it is
/// there, for models that are split.
pub(crate) fn open(
    file: &Path,
    region: &Region,
    sibling: &dyn Fn(&str) -> Result<Option<Region>, Error>,
) -> Result<Checkpoint, Error> {
    let Whole { metadata, tensors, bytes: stored_bytes, path } = gguf_split::read(file, region, sibling)?;
    let config = gguf_config::read(file, &metadata, &tensors)?;
    let name = folder::own_name(&path);
    let tensors =
        if config.family == Family::Qwen { generation1::unfuse(&name, &config, tensors)? } else { tensors };
    let mut infos = Vec::with_capacity(tensors.len());
    let mut parts = Vec::with_capacity(tensors.len());
    let tensors = tensors.into_iter().filter(|tensor| tensor.name != gguf_rope::ROPE_FREQS);
    for (role, tensor) in moe::cut_merged(&config, tensors) {
        let stored_bytes = tensor.bytes.len() as u64;
        let canonical = role.canonical_name().unwrap_or(tensor.name);
        infos.push(TensorInfo {
            name: canonical,
            shape: tensor.shape,
            encoding: tensor.encoding,
            stored_bytes,
            role,
        });
        use RoleKind::{AttnK, AttnKBias, AttnQ, AttnQBias};
        let turned = matches!(role.kind, AttnQ | AttnQBias | AttnK | AttnKBias);
        parts.push(match config.rope.pairing {
            Pairing::Adjacent if turned => Parts::Permuted { bytes: tensor.bytes, head_dim: config.head_dim },
            _ => Parts::Whole(tensor.bytes),
        });
    }
    shapes::check(&name, &config, &infos)?;
    Ok(Checkpoint::new(name, Format::Gguf, config, infos, parts, stored_bytes).with_metadata(metadata))
}

/// Metadata and tensors of one file.
pub(crate) type Contents = (Vec<(String, GgufValue)>, Vec<GgufTensor>);

/// The metadata and the tensors of a GGUF file, both in file order.
pub(crate) fn read(file: &Path, region: &Region) -> Result<Contents, Error> {
    let mut reader = Reader { file, bytes: region, at: 0 };
    let magic = reader.take(4, "the magic bytes")?;
    if magic != b"GGUF" {
        let found = magic.escape_ascii().to_string();
        return Err(Error::GgufMagic { file: file.to_owned(), found });
    }
    let version = reader.u32("the version")?;
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err(Error::Unsupported { file: file.to_owned(), what: "a big-endian GGUF".to_owned() });
    }
    if !VERSIONS.contains(&version) {
        return Err(Error::GgufVersion { file: file.to_owned(), version });
    }
    let n_tensors = reader.u64("the number of tensors")?;
    let n_keys = reader.u64("the number of keys")?;
    reader.count("number of keys", n_keys, SMALLEST_KEY)?;
    let metadata = read_metadata(&mut reader, n_keys)?;
    let alignment = alignment(file, &metadata)?;
    reader.count("number of tensors", n_tensors, SMALLEST_TENSOR)?;
    let mut entries = Vec::new();
    for _ in 0..n_tensors {
        entries.push(read_entry(&mut reader)?);
    }
    let data_start = (reader.at as u64).next_multiple_of(alignment);
    let available = (region.len() as u64).saturating_sub(data_start);
    place(file, &entries, alignment, available)?;
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        // `place` found it within the file.
        let start = if entry.bytes == 0 { 0 } else { (data_start + entry.offset) as usize };
        let bytes = region.slice(start..start + entry.bytes as usize);
        tensors.push(GgufTensor { name: entry.name, shape: entry.shape, encoding: entry.encoding, bytes });
    }
    Ok((metadata, tensors))
}

fn read_metadata(reader: &mut Reader, n_keys: u64) -> Result<Vec<(String, GgufValue)>, Error> {
    let mut metadata: Vec<(String, GgufValue)> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..n_keys {
        let key = reader.string("a key", LONGEST_KEY)?;
        let id = reader.u32(&key)?;
        let value = reader.value(&key, id)?;
        if !seen.insert(key.clone()) {
            return Err(Error::GgufDuplicateKey { file: reader.file.to_owned(), key });
        }
        metadata.push((key, value));
    }
    Ok(metadata)
}

fn alignment(file: &Path, metadata: &[(String, GgufValue)]) -> Result<u64, Error> {
    let Some((key, value)) = metadata.iter().find(|(key, _)| key == "general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let Some(alignment) = value.as_u64() else {
        return Err(Error::GgufKeyType {
            file: file.to_owned(),
            key: key.clone(),
            found: value.describe(),
            expected: "u32",
        });
    };
    if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
        return Err(Error::GgufAlignment { file: file.to_owned(), alignment, limit: LARGEST_ALIGNMENT });
    }
    Ok(alignment)
}

struct Entry {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
    bytes: u64,
}

fn read_entry(reader: &mut Reader) -> Result<Entry, Error> {
    let file = reader.file;
    let name = reader.string("a tensor's name", LONGEST_NAME)?;
    let n_dims = reader.u32(&name)?;
    if n_dims > MOST_DIMENSIONS {
        return Err(Error::GgufLimit {
            file: file.to_owned(),
            what: format!("dimensions of `{name}`"),
            found: n_dims.into(),
            limit: MOST_DIMENSIONS.into(),
        });
    }
    let mut dims = Vec::new();
    for _ in 0..n_dims {
        dims.push(reader.u64(&name)?);
    }
    dims.reverse();
    let id = reader.u32(&name)?;
    let offset = reader.u64(&name)?;
    let Some(encoding) = encoding_by_id(id) else {
        let type_name = tensor_type_name(id).map_or_else(|| format!("number {id}"), str::to_owned);
        return Err(Error::GgufTensorType { file: file.to_owned(), tensor: name, type_name });
    };
    let overflow =
        || Error::ShapeOverflow { file: file.to_owned(), tensor: name.clone(), shape: dims.clone() };
    let shape: Option<Vec<usize>> = dims.iter().map(|&size| usize::try_from(size).ok()).collect();
    let shape = shape.filter(|shape| is_addressable(shape)).ok_or_else(overflow)?;
    let (rows, cols) = matrix_shape(&shape);
    if let Encoding::Block(block) = encoding
        && !cols.is_multiple_of(block.weights())
    {
        let source = bitmill_tensor::ViewError::UnevenGroups {
            in_features: cols,
            group_size: block.weights(),
            encoding: block.to_string(),
        };
        return Err(Error::View { tensor: name, source });
    }
    let bytes = encoding.matrix_bytes(rows, cols) as u64;
    Ok(Entry { name, shape, encoding, offset, bytes })
}

/// Checks that every tensor lies aligned within the data and overlaps no other, and that names differ.
fn place(file: &Path, entries: &[Entry], alignment: u64, available: u64) -> Result<(), Error> {
    let mut by_offset: Vec<&Entry> = entries.iter().collect();
    by_offset.sort_by_key(|entry| (entry.offset, entry.bytes));
    let mut end_of: Option<(&Entry, u64)> = None;
    for entry in by_offset {
        let tensor = || entry.name.clone();
        if !entry.offset.is_multiple_of(alignment) {
            let (file, offset) = (file.to_owned(), entry.offset);
            return Err(Error::GgufMisaligned { file, tensor: tensor(), offset, alignment });
        }
        let end = entry.offset.saturating_add(entry.bytes);
        if end > available && entry.bytes > 0 {
            return Err(Error::OutOfBounds { file: file.to_owned(), tensor: tensor(), end, available });
        }
        match end_of {
            Some((other, last)) if entry.offset < last => {
                let other = other.name.clone();
                return Err(Error::Overlap { file: file.to_owned(), tensor: tensor(), other });
            }
            _ => end_of = Some((entry, end)),
        }
    }
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::DuplicateTensor { file: file.to_owned(), tensor: pair[0].to_owned() }),
        None => Ok(()),
    }
}

fn encoding_by_id(id: u32) -> Option<Encoding> {
    match id {
        0 => Some(Encoding::Float(FloatType::F32)),
        1 => Some(Encoding::Float(FloatType::F16)),
        30 => Some(Encoding::Float(FloatType::BF16)),
        _ => BlockType::ALL.into_iter().find(|block| block.ggml_id() == id).map(Encoding::Block),
    }
}

/// ggml's number of an encoding; `None` for groups and sparse matrices, which GGUF does not have.
pub(crate) fn encoding_id(encoding: Encoding) -> Option<u32> {
    match encoding {
        Encoding::Float(FloatType::F32) => Some(0),
        Encoding::Float(FloatType::F16) => Some(1),
        Encoding::Float(FloatType::BF16) => Some(30),
        Encoding::Block(block) => Some(block.ggml_id()),
        Encoding::Grouped(_) | Encoding::Scaled(_) | Encoding::Sparse { .. } => None,
    }
}

/// ggml's names of tensor types, so that an error can say which one it met.
fn tensor_type_name(id: u32) -> Option<&'static str> {
    const NAMES: [(u32, &str); 10] = [
        (9, "Q8_1"),
        (15, "Q8_K"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (40, "NVFP4"),
        (41, "Q1_0"),
        (4, "Q4_2 (removed from ggml)"),
    ];
    NAMES.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
}

/// What is left to read of a file, checked before each step.
pub(crate) struct Reader<'a> {
    pub file: &'a Path,
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Reader<'a> {
    pub fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    pub fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], Error> {
        if n > self.left() {
            return Err(Error::Truncated {
                file: self.file.to_owned(),
                what: what.to_owned(),
                needed: n,
                found: self.left(),
            });
        }
        let bytes = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Refuses a count of things of `smallest` bytes that the rest of the file cannot hold.
    pub fn count(&self, what: &str, found: u64, smallest: u64) -> Result<(), Error> {
        let limit = self.left() / smallest;
        if found > limit {
            return Err(Error::GgufLimit { file: self.file.to_owned(), what: what.to_owned(), found, limit });
        }
        Ok(())
    }

    fn string(&mut self, what: &str, longest: u64) -> Result<String, Error> {
        let length = self.u64(what)?;
        let limit = longest.min(self.left());
        if length > limit {
            let what = format!("length of {what}");
            return Err(Error::GgufLimit { file: self.file.to_owned(), what, found: length, limit });
        }
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Error::GgufNotUtf8 { file: self.file.to_owned(), what: what.to_owned() }),
        }
    }

    fn bool(&mut self, key: &str) -> Result<bool, Error> {
        Ok(self.array::<1>(key)?[0] != 0)
    }

    fn value(&mut self, key: &str, id: u32) -> Result<GgufValue, Error> {
        Ok(match id {
            0 => GgufValue::U8(u8::from_le_bytes(self.array(key)?)),
            1 => GgufValue::I8(i8::from_le_bytes(self.array(key)?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.array(key)?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.array(key)?)),
            4 => GgufValue::U32(u32::from_le_bytes(self.array(key)?)),
            5 => GgufValue::I32(i32::from_le_bytes(self.array(key)?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.array(key)?)),
            7 => GgufValue::Bool(self.bool(key)?),
            8 => GgufValue::String(self.string(&format!("the value of `{key}`"), u64::MAX)?),
            9 => GgufValue::Array(self.values(key)?),
            10 => GgufValue::U64(u64::from_le_bytes(self.array(key)?)),
            11 => GgufValue::I64(i64::from_le_bytes(self.array(key)?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(Error::GgufValueType { file: self.file.to_owned(), key: key.to_owned(), id }),
        })
    }

    fn values(&mut self, key: &str) -> Result<GgufArray, Error> {
        let id = self.u32(key)?;
        let count = self.u64(key)?;
        let smallest = match id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => {
                let what = format!("an array of arrays (`{key}`)");
                return Err(Error::Unsupported { file: self.file.to_owned(), what });
            }
            _ => return Err(Error::GgufValueType { file: self.file.to_owned(), key: key.to_owned(), id }),
        };
        self.count(&format!("length of the array of {} `{key}`", type_name(id)), count, smallest)?;
        macro_rules! numbers {
            ($variant:ident, $number:ty) => {{
                const SIZE: usize = size_of::<$number>();
                let bytes = self.take(count * SIZE as u64, key)?;
                let (chunks, _) = bytes.as_chunks::<SIZE>();
                GgufArray::$variant(chunks.iter().map(|bytes| <$number>::from_le_bytes(*bytes)).collect())
            }};
        }
        Ok(match id {
            0 => numbers!(U8, u8),
            1 => numbers!(I8, i8),
            2 => numbers!(U16, u16),
            3 => numbers!(I16, i16),
            4 => numbers!(U32, u32),
            5 => numbers!(I32, i32),
            6 => numbers!(F32, f32),
            7 => GgufArray::Bool(self.take(count, key)?.iter().map(|byte| *byte != 0).collect()),
            10 => numbers!(U64, u64),
            11 => numbers!(I64, i64),
            12 => numbers!(F64, f64),
            _ => {
                let mut strings = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    strings.push(self.string(key, u64::MAX)?);
                }
                GgufArray::String(strings)
            }
        })
    }
}
