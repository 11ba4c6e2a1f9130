//! Importance matrices, in both forms that llama.cpp has: which columns of each matrix a text made large.
//!
//! ```text
//! GGUF    general.type "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size; for each matrix two f32 tensors:
//!         NAME.in_sum2 [matrices, in_features]   Σ x² over the tokens that it multiplied
//!         NAME.counts  [matrices, 1]             how many they were
//! .dat    i32 entries
//!         entries × { i32 length, NAME, i32 calls, i32 n, f32[n] = Σ x² / tokens · calls }
//!         i32 chunks, i32 length, the text's path      may be absent
//! ```
//!
//! NAME is a GGUF tensor's; the experts of a layer are one tensor and so one entry, with sums and a count for each. Little-endian;
//! what reads and writes them in llama.cpp is `common/imatrix-loader.cpp` and `tools/imatrix/imatrix.cpp`.
//!
//! Limits: numbers of entries, names and values by what the file can hold; a name once; counts that are numbers from 0 to 2^53;
//! sums that are finite and not negative, as sums of squares are.

use std::collections::BTreeMap;
use std::path::Path;

use bitmill_tensor::{Encoding, FloatType};

use crate::gguf_in::{self, Reader};
use crate::staging::write_file;
use crate::{Error, GgufArray, GgufTensorSpec, GgufValue, GgufWriter, Region, Role, Target, Written};

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Bytes of the shortest entry of the older form: an empty name, its calls, one value.
const SMALLEST_ENTRY: u64 = 4 + 4 + 4 + 4;
/// Past this f64 counts in steps.
const MOST_TOKENS: f32 = (1u64 << 53) as f32;

/// What a text's activations say of a model's matrices.
///
/// ```
/// use bitmill_checkpoint::{Imatrix, ImatrixEntry, Role, RoleKind};
///
/// let mut imatrix = Imatrix::default();
/// let entry = ImatrixEntry { sums: vec![8.0, 2.0], counts: vec![4] };
/// imatrix.entries.insert("blk.0.attn_q.weight".to_owned(), entry);
/// let importance = imatrix.importance(Role::in_layer(0, RoleKind::AttnQ), 2, 0)?;
/// assert_eq!(importance, Some(vec![2.0, 0.5]));
/// assert_eq!(imatrix.importance(Role::in_layer(0, RoleKind::AttnK), 2, 0)?, None);
/// assert!(imatrix.importance(Role::in_layer(0, RoleKind::AttnQ), 3, 0).is_err());
/// # Ok::<(), bitmill_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Imatrix {
    /// By GGUF tensor name.
    pub entries: BTreeMap<String, ImatrixEntry>,
    /// The texts, as they were named.
    pub datasets: Vec<String>,
    /// Windows that were run.
    pub chunk_count: u32,
    /// Tokens of each; 0 where the file does not say.
    pub chunk_size: u32,
}

/// What one matrix multiplied, or each of several that are one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct ImatrixEntry {
    /// Σ x² of each column, `[matrices, in_features]`; in units of their count.
    pub sums: Vec<f32>,
    /// Tokens that each matrix multiplied: one count, or one an expert. The older form has its calls here instead.
    pub counts: Vec<u64>,
}

/// The two forms of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImatrixForm {
    /// Sums and counts, with the keys that say of what: what llama.cpp writes unless told.
    Gguf,
    /// Means times calls: what it wrote before, `.dat`.
    Legacy,
}

impl ImatrixForm {
    /// The form that a file's name asks for: the older one for `.dat`.
    pub fn of(path: &Path) -> Self {
        match path.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("dat") => Self::Legacy,
            _ => Self::Gguf,
        }
    }
}

impl Imatrix {
    /// Reads the file at `path`, of either form.
    ///
    /// # Errors
    /// [`Error`] naming the file, and the entry if one is to blame.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(path, &Region::map(path)?)
    }

    /// Reads the bytes of a file; `file` names it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(file: &Path, bytes: &Region) -> Result<Self, Error> {
        let read =
            if bytes.starts_with(b"GGUF") { read_gguf(file, bytes)? } else { read_legacy(file, bytes)? };
        if read.entries.is_empty() {
            return Err(wrong(file, "there are no entries".to_owned()));
        }
        for (name, entry) in &read.entries {
            if entry.counts.is_empty() || !entry.sums.len().is_multiple_of(entry.counts.len()) {
                let (sums, counts) = (entry.sums.len(), entry.counts.len());
                return Err(wrong(file, format!("`{name}` has {sums} sums for {counts} matrices")));
            }
            if let Some(sum) = entry.sums.iter().find(|sum| !(sum.is_finite() && **sum >= 0.0)) {
                return Err(wrong(file, format!("`{name}` has the sum of squares {sum}")));
            }
        }
        Ok(read)
    }

    /// Writes the file whole, or not at all.
    ///
    /// The older form leaves out entries without any token, and gives the columns of an expert without tokens 1 each, as
    /// llama.cpp does.
    ///
    /// # Errors
    /// Any [`Error`] of writing.
    pub fn write(&self, target: &Target, form: ImatrixForm) -> Result<Written, Error> {
        match form {
            ImatrixForm::Gguf => self.write_gguf(target),
            ImatrixForm::Legacy => write_file(target, &self.legacy_bytes()),
        }
    }

    /// The importance of each input of the matrix with this role, as llama-quantize takes it: the mean of x², and 1 for all
    /// inputs of an expert that met no token. `None` without an entry. `n_experts` counts for roles in experts only.
    ///
    /// # Errors
    /// [`Error::ImatrixEntry`] if the entry is of another size; the embedding then has no importance instead.
    pub fn importance(
        &self,
        role: Role,
        in_features: usize,
        n_experts: usize,
    ) -> Result<Option<Vec<f32>>, Error> {
        let Some((name, entry)) = self.entry(role) else { return Ok(None) };
        let (expert, matrices) = role.expert.map_or((0, 1), |expert| (expert, n_experts));
        let expected = in_features * matrices;
        if entry.sums.len() != expected || expert >= matrices {
            if role.kind == crate::RoleKind::TokenEmbedding {
                return Ok(None);
            }
            let tensor = role.canonical_name().unwrap_or_default();
            return Err(Error::ImatrixEntry {
                tensor,
                entry: name.to_owned(),
                found: entry.sums.len(),
                expected,
            });
        }
        let columns = expert * in_features..(expert + 1) * in_features;
        Ok(Some(columns.map(|at| entry.mean(at)).collect()))
    }

    /// The entry of the tensor that a role's matrix is in: its own, or the fused one of Qwen's first generation.
    fn entry(&self, role: Role) -> Option<(&str, &ImatrixEntry)> {
        let find =
            |name: String| self.entries.get_key_value(&name).map(|(name, entry)| (name.as_str(), entry));
        find(role.gguf_name()?).or_else(|| find(role.fused_gguf_name()?))
    }

    fn write_gguf(&self, target: &Target) -> Result<Written, Error> {
        let string = |text: &str| GgufValue::String(text.to_owned());
        let metadata = [
            ("general.type".to_owned(), string("imatrix")),
            (DATASETS.to_owned(), GgufValue::Array(GgufArray::String(self.datasets.clone()))),
            (CHUNK_COUNT.to_owned(), GgufValue::U32(self.chunk_count)),
            (CHUNK_SIZE.to_owned(), GgufValue::U32(self.chunk_size)),
        ];
        // ggml leaves out dimensions of one past the first.
        let shape = |matrices: usize, columns: usize| match matrices {
            1 => vec![columns],
            _ => vec![matrices, columns],
        };
        let mut specs = Vec::new();
        let mut tensors: Vec<Vec<u8>> = Vec::new();
        for (name, ImatrixEntry { sums, counts }) in &self.entries {
            let matrices = counts.len();
            for (suffix, columns) in [(SUMS, sums.len() / matrices.max(1)), (COUNTS, 1)] {
                specs.push(GgufTensorSpec {
                    name: format!("{name}{suffix}"),
                    shape: shape(matrices, columns),
                    encoding: Encoding::Float(FloatType::F32),
                });
            }
            tensors.push(sums.iter().flat_map(|sum| sum.to_le_bytes()).collect());
            tensors.push(counts.iter().flat_map(|count| (*count as f32).to_le_bytes()).collect());
        }
        let writer = GgufWriter::create(target, &metadata, &specs)?;
        for (index, bytes) in tensors.iter().enumerate() {
            writer.write_at(index, 0, bytes)?;
        }
        writer.finish()
    }

    fn legacy_bytes(&self) -> Vec<u8> {
        let int = |n: u64| i32::try_from(n).unwrap_or(i32::MAX).to_le_bytes();
        let stored: Vec<_> =
            self.entries.iter().filter(|(_, entry)| entry.counts.iter().any(|count| *count > 0)).collect();
        let mut bytes = int(stored.len() as u64).to_vec();
        for (name, entry) in stored {
            let tokens = entry.counts.iter().max().copied().unwrap_or(0);
            let calls = tokens.div_ceil(u64::from(self.chunk_size.max(1)));
            bytes.extend(int(name.len() as u64));
            bytes.extend(name.as_bytes());
            bytes.extend(int(calls));
            bytes.extend(int(entry.sums.len() as u64));
            let values = (0..entry.sums.len()).map(|at| entry.mean(at) * calls as f32);
            bytes.extend(values.flat_map(f32::to_le_bytes));
        }
        bytes.extend(int(self.chunk_count.into()));
        let dataset = self.datasets.last().map(String::as_str).unwrap_or_default();
        bytes.extend(int(dataset.len() as u64));
        bytes.extend(dataset.as_bytes());
        bytes
    }
}

impl ImatrixEntry {
    /// The mean of x² in column `at`, counted over all matrices; 1 in a matrix that met no token.
    fn mean(&self, at: usize) -> f32 {
        let columns = self.sums.len() / self.counts.len().max(1);
        match self.counts.get(at / columns.max(1)) {
            None | Some(0) => 1.0,
            Some(&count) => self.sums[at] / count as f32,
        }
    }
}

fn wrong(file: &Path, problem: String) -> Error {
    Error::Imatrix { file: file.to_owned(), problem }
}

fn read_gguf(file: &Path, bytes: &Region) -> Result<Imatrix, Error> {
    let (metadata, tensors) = gguf_in::read(file, bytes)?;
    // llama-quantize refuses a file without one of them.
    let key = |name: &str| match metadata.iter().find(|(key, _)| key == name) {
        Some((_, value)) => Ok(value),
        None => Err(Error::GgufMissingKey { file: file.to_owned(), key: name.to_owned() }),
    };
    let wrong_type = |name: &str, value: &GgufValue, expected| Error::GgufKeyType {
        file: file.to_owned(),
        key: name.to_owned(),
        found: value.describe(),
        expected,
    };
    let number = |name| match key(name)? {
        GgufValue::U32(number) => Ok(*number),
        value => Err(wrong_type(name, value, "u32")),
    };
    let datasets = match key(DATASETS)? {
        GgufValue::Array(GgufArray::String(datasets)) => datasets.clone(),
        value => return Err(wrong_type(DATASETS, value, "an array of string")),
    };
    let mut halves: BTreeMap<String, [Option<Vec<f32>>; 2]> = BTreeMap::new();
    for tensor in &tensors {
        let Some((name, half)) = [SUMS, COUNTS]
            .iter()
            .enumerate()
            .find_map(|(half, suffix)| Some((tensor.name.strip_suffix(suffix)?, half)))
        else {
            continue;
        };
        if tensor.encoding != Encoding::Float(FloatType::F32) {
            return Err(wrong(
                file,
                format!("`{}` is {}; sums and counts are f32", tensor.name, tensor.encoding),
            ));
        }
        halves.entry(name.to_owned()).or_default()[half] = Some(floats(&tensor.bytes));
    }
    let mut entries = BTreeMap::new();
    for (name, halves) in halves {
        let [Some(sums), Some(counts)] = halves else {
            return Err(wrong(file, format!("`{name}` has sums or counts and not both")));
        };
        let mut whole = Vec::with_capacity(counts.len());
        for count in counts {
            if !(0.0..=MOST_TOKENS).contains(&count) {
                return Err(wrong(file, format!("`{name}` has the count {count}")));
            }
            whole.push(count.round() as u64);
        }
        entries.insert(name, ImatrixEntry { sums, counts: whole });
    }
    Ok(Imatrix { entries, datasets, chunk_count: number(CHUNK_COUNT)?, chunk_size: number(CHUNK_SIZE)? })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn read_legacy(file: &Path, bytes: &[u8]) -> Result<Imatrix, Error> {
    let mut reader = Reader { file, bytes, at: 0 };
    let count = positive(&mut reader, "the number of entries")?;
    reader.count("number of entries", count, SMALLEST_ENTRY)?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let name = text(&mut reader, "an entry's name")?;
        let calls = int(&mut reader, &name)?;
        let values = positive(&mut reader, &name)?;
        reader.count(&format!("values of `{name}`"), values, 4)?;
        let sums = floats(reader.take(4 * values, &name)?);
        // Without calls the values are taken as they are.
        let entry = ImatrixEntry { sums, counts: vec![calls.max(1) as u64] };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(Error::DuplicateTensor { file: file.to_owned(), tensor: name });
        }
    }
    let mut read = Imatrix { entries, ..Imatrix::default() };
    if reader.left() > 0 {
        read.chunk_count = int(&mut reader, "the number of chunks")?.max(0) as u32;
    }
    if reader.left() > 0 {
        read.datasets.extend(Some(text(&mut reader, "the text's path")?).filter(|path| !path.is_empty()));
    }
    Ok(read)
}

fn int(reader: &mut Reader<'_>, what: &str) -> Result<i32, Error> {
    reader.array(what).map(i32::from_le_bytes)
}

/// A number of things of which there is at least one.
fn positive(reader: &mut Reader<'_>, what: &str) -> Result<u64, Error> {
    match int(reader, what)? {
        found @ 1.. => Ok(found as u64),
        found => Err(wrong(reader.file, format!("{what}: {found}"))),
    }
}

fn text(reader: &mut Reader<'_>, what: &str) -> Result<String, Error> {
    let length = int(reader, what)?;
    let Ok(length) = u64::try_from(length) else {
        return Err(wrong(reader.file, format!("{what} is {length} bytes long")));
    };
    match std::str::from_utf8(reader.take(length, what)?) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(wrong(reader.file, format!("{what} is not UTF-8"))),
    }
}
