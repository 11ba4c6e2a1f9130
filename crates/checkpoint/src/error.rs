//! What can be wrong with a checkpoint or with the place one is written to.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use bitmill_tensor::ViewError;

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    NotACheckpoint { path: PathBuf, problem: String },
    #[error("{}: {found}", path.display())]
    Foreign { path: PathBuf, found: String, way_out: String },

    // safetensors
    #[error("{}: the header says it is {header_bytes} bytes long; at most {limit} are read", file.display())]
    HeaderTooLong { file: PathBuf, header_bytes: u64, limit: u64 },
    #[error("{}: truncated: {what} takes {needed} bytes and {found} are there", file.display())]
    Truncated { file: PathBuf, what: String, needed: u64, found: u64 },
    #[error("{}: the header is not UTF-8 (first bad byte at {at})", file.display())]
    HeaderNotUtf8 { file: PathBuf, at: usize },
    #[error("{}: malformed header: {problem}", file.display())]
    HeaderSyntax { file: PathBuf, problem: String },
    #[error("{}: `{tensor}` appears twice", file.display())]
    DuplicateTensor { file: PathBuf, tensor: String },
    #[error("{}: `{tensor}` has the unknown dtype `{dtype}`", file.display())]
    UnknownDtype { file: PathBuf, tensor: String, dtype: String },
    #[error("{}: `{tensor}` is {dtype}, which bitmill does not compute from", file.display())]
    UnsupportedDtype { file: PathBuf, tensor: String, dtype: String },
    #[error("{}: `{tensor}`: the shape {shape:?} is too large to address", file.display())]
    ShapeOverflow { file: PathBuf, tensor: String, shape: Vec<u64> },
    #[error("{}: `{tensor}`: {found} bytes stored where its shape and dtype take {expected}", file.display())]
    TensorBytes { file: PathBuf, tensor: String, found: u64, expected: u64 },
    #[error("{}: `{tensor}` ends at byte {end} of the data, which is {available} bytes long", file.display())]
    OutOfBounds { file: PathBuf, tensor: String, end: u64, available: u64 },
    #[error("{}: `{tensor}` overlaps `{other}`", file.display())]
    Overlap { file: PathBuf, tensor: String, other: String },
    #[error("{}: {bytes} bytes at {at} of the data belong to no tensor", file.display())]
    Gap { file: PathBuf, at: u64, bytes: u64 },

    // folders
    #[error("{}: `{tensor}` is said to be in `{shard}`, which is not there", index.display())]
    MissingShard { index: PathBuf, shard: String, tensor: String },
    #[error("{}: `{tensor}` is said to be in `{shard}`, a path outside the folder", index.display())]
    ShardOutsideFolder { index: PathBuf, shard: String, tensor: String },
    #[error("{}: `{tensor}` is said to be in `{shard}`, which does not hold it", index.display())]
    MissingFromShard { index: PathBuf, shard: String, tensor: String },
    #[error("`{tensor}` is in both {} and {}", first.display(), second.display())]
    TensorInTwoShards { tensor: String, first: PathBuf, second: PathBuf },
    #[error("{}: {problem}", file.display())]
    Json { file: PathBuf, problem: String },

    // configs, and tensors against them
    #[error("{}: `{key}`: {problem}", file.display())]
    ConfigValue { file: PathBuf, key: String, problem: String },
    #[error("{}: the model family is `{found}`, which bitmill does not read", file.display())]
    UnsupportedFamily { file: PathBuf, found: String },
    #[error("{}: {what} is not supported", file.display())]
    Unsupported { file: PathBuf, what: String },
    #[error("{}: the RoPE scaling `{kind}` is not supported", file.display())]
    UnsupportedRope { file: PathBuf, kind: String },
    #[error("{checkpoint}: there is no tensor `{tensor}`")]
    MissingTensor { checkpoint: String, tensor: String },
    #[error("{checkpoint}: `{tensor}` has the shape {found:?} where the config asks for {expected:?}")]
    TensorShape { checkpoint: String, tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{checkpoint}: `{tensor}` has no place in a {family} model of {n_layers} layers")]
    UnexpectedTensor { checkpoint: String, tensor: String, family: &'static str, n_layers: usize },
    #[error("{checkpoint}: `{tensor}` is {encoding}; a norm, bias or router must be f32, f16 or bf16")]
    QuantizedVector { checkpoint: String, tensor: String, encoding: String },

    // GGUF
    #[error("{}: not a GGUF file (it begins with {found})", file.display())]
    GgufMagic { file: PathBuf, found: String },
    #[error("{}: GGUF version {version}; bitmill reads versions 2 and 3", file.display())]
    GgufVersion { file: PathBuf, version: u32 },
    #[error("{}: {what}: {found}, more than the {limit} possible here", file.display())]
    GgufLimit { file: PathBuf, what: String, found: u64, limit: u64 },
    #[error("{}: {what} is not UTF-8", file.display())]
    GgufNotUtf8 { file: PathBuf, what: String },
    #[error("{}: `{key}` has the unknown value type {id}", file.display())]
    GgufValueType { file: PathBuf, key: String, id: u32 },
    #[error("{}: the key `{key}` appears twice", file.display())]
    GgufDuplicateKey { file: PathBuf, key: String },
    #[error("{}: the key `{key}` is missing", file.display())]
    GgufMissingKey { file: PathBuf, key: String },
    #[error("{}: `{key}` is {found} where {expected} is expected", file.display())]
    GgufKeyType { file: PathBuf, key: String, found: String, expected: &'static str },
    #[error("{}: `{tensor}` is of type {type_name}, which bitmill does not read", file.display())]
    GgufTensorType { file: PathBuf, tensor: String, type_name: String },
    #[error("{}: `general.alignment` is {alignment}; it must be a power of two between 1 and {limit}", file.display())]
    GgufAlignment { file: PathBuf, alignment: u64, limit: u64 },
    #[error("{}: `{tensor}` begins at byte {offset} of the data, not a multiple of {alignment}", file.display())]
    GgufMisaligned { file: PathBuf, tensor: String, offset: u64, alignment: u64 },

    #[error("{}: {problem}", file.display())]
    GgufSplit { file: PathBuf, problem: String },
    #[error("{}: its part {part} is not there", file.display())]
    GgufPartMissing { file: PathBuf, part: String },

    // importance matrices
    #[error("{}: not an importance matrix: {problem}", file.display())]
    Imatrix { file: PathBuf, problem: String },
    #[error(
        "`{tensor}`: the importance matrix has {found} values under `{entry}` where {expected} are expected"
    )]
    ImatrixEntry { tensor: String, entry: String, found: usize, expected: usize },

    // compressed-tensors
    #[error("{}: quantization_config: {what} is not supported", file.display())]
    UnsupportedQuantization { file: PathBuf, what: String },
    #[error("`{tensor}`: {problem}")]
    PackedTensor { tensor: String, problem: String },
    #[error("`{tensor}`: {source}")]
    View { tensor: String, source: ViewError },

    // writing
    #[error("{} exists", path.display())]
    TargetExists { path: PathBuf },
    #[error("{} cannot be replaced: {problem}", path.display())]
    TargetNotReplaceable { path: PathBuf, problem: String },
    #[error("cannot write {}: its folder {} {problem}", path.display(), parent.display())]
    TargetFolder { path: PathBuf, parent: PathBuf, problem: String },
    #[error("cannot write {}: the disk is full{}", path.display(), Room { needed: *needed, missing: *missing })]
    DiskFull { path: PathBuf, needed: u64, missing: Option<u64> },
    #[error("cannot write {}: another run writes it and has locked {}", path.display(), partial.display())]
    TargetBusy { path: PathBuf, partial: PathBuf },
    #[error(
        "cannot go on with {}, which an interrupted run left for {}: another {differences}",
        partial.display(), path.display()
    )]
    OtherPartial { path: PathBuf, partial: PathBuf, differences: String },
    #[error("cannot go on with what an interrupted run left for {}: {} is not what it was", path.display(), file.display())]
    DamagedPartial { path: PathBuf, file: PathBuf },
    #[error("{}: `{tensor}` was written to {written} of {expected} bytes", path.display())]
    Incomplete { path: PathBuf, tensor: String, written: u64, expected: u64 },
    #[error("`{tensor}`: {bytes} bytes at {offset} do not fit its {size}")]
    WriteOutside { tensor: String, offset: u64, bytes: u64, size: u64 },
    #[error("`{tensor}` cannot be written: {problem}")]
    BadSpec { tensor: String, problem: String },
    #[error("`{name}` is not a file name that can be written into the folder: {problem}")]
    BadFileName { name: String, problem: &'static str },
}

impl Error {
    /// What the reader can change, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "check the spelling of the path"
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "check the permissions of the file and its folder"
            }
            Self::NotACheckpoint { .. } => {
                "a model is a Hugging Face folder (config.json and *.safetensors) or a .gguf file"
            }
            Self::Foreign { way_out, .. } => return Some(way_out.clone()),
            Self::GgufSplit { .. } => {
                "the parts of a split model lie in one folder, named as they were published: NAME-00001-of-0000N.gguf"
            }
            Self::GgufPartMissing { .. } => "fetch the missing part into the same folder",
            Self::Truncated { .. } | Self::OutOfBounds { .. } | Self::MissingFromShard { .. } => {
                "the download or copy is probably incomplete: fetch the file again"
            }
            Self::MissingShard { .. } => "fetch the missing file, or the whole folder again",
            Self::HeaderTooLong { .. } | Self::HeaderNotUtf8 { .. } | Self::HeaderSyntax { .. } => {
                "this is probably not a safetensors file: compare its checksum with the publisher's"
            }
            Self::DuplicateTensor { .. }
            | Self::Overlap { .. }
            | Self::Gap { .. }
            | Self::TensorBytes { .. }
            | Self::ShapeOverflow { .. }
            | Self::GgufLimit { .. }
            | Self::GgufMisaligned { .. } => {
                "the file is damaged or was made by a faulty writer: compare its checksum with the publisher's"
            }
            Self::ShardOutsideFolder { .. } => {
                "shards lie beside their index: move the file there and correct `weight_map`"
            }
            Self::TensorInTwoShards { .. } => "remove the shard that is left over from another version",
            Self::UnsupportedDtype { .. } => "weights may be F32, F16 or BF16; convert the checkpoint first",
            Self::UnsupportedFamily { .. } => {
                return Some(format!("families that are read: {}", crate::family::supported()));
            }
            Self::UnsupportedRope { .. } => "RoPE scalings that are read: linear, dynamic, llama3, yarn",
            Self::MissingTensor { tensor, .. } if tensor == "lm_head.weight" => {
                "if the head shares the embedding's weights, config.json must say `\"tie_word_embeddings\": true`"
            }
            Self::TensorShape { .. } | Self::UnexpectedTensor { .. } => {
                "config.json and the weights are of different models, or the config was edited"
            }
            Self::GgufVersion { .. } => "convert the file with a current llama.cpp",
            Self::GgufTensorType { .. } => {
                "types that are read: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ1_S to IQ4_XS, TQ1_0, TQ2_0, MXFP4; requantize the file to one of them"
            }
            Self::Imatrix { .. } => {
                "an importance matrix is what `bitmill imatrix` or llama-imatrix writes, as .gguf or .dat"
            }
            Self::ImatrixEntry { .. } => {
                "it was made of another model: make one of this model with `bitmill imatrix`"
            }
            Self::UnsupportedQuantization { .. } => {
                "docs/families.md lists the packed forms that are read; others are unpacked by the program that made them, or start from the model that it was made of"
            }
            Self::PackedTensor { .. } => {
                "config.json and the weights are of different models, or a file is damaged: fetch the folder again; docs/families.md lists the packed forms that are read"
            }
            Self::TargetExists { .. } => "name another output, or replace it with --force",
            Self::TargetNotReplaceable { .. } => "name another output, or remove it yourself",
            Self::TargetFolder { .. } => "create the folder, or choose one that can be written to",
            Self::DiskFull { .. } => {
                "free space and run it again, which goes on where it stopped, or choose another disk; nothing that was there has changed"
            }
            Self::TargetBusy { .. } => "wait for it, or name another output",
            Self::OtherPartial { .. } => {
                "run the command that was interrupted to end it, discard what it left with --restart, or name another output"
            }
            Self::DamagedPartial { .. } => "discard it with --restart",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// What a disk would need.
struct Room {
    needed: u64,
    missing: Option<u64>,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.needed > 0 {
            write!(f, "; it takes {} in all", Bytes(self.needed))?;
        }
        match self.missing {
            Some(missing) => write!(f, ", {missing} bytes more than there is room for"),
            None => Ok(()),
        }
    }
}

/// A byte count as people read it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..10_000 => write!(f, "{} bytes", self.0),
            10_000..10_000_000 => write!(f, "{:.1} kB", self.0 as f64 / 1e3),
            10_000_000..10_000_000_000 => write!(f, "{:.1} MB", self.0 as f64 / 1e6),
            _ => write!(f, "{:.1} GB", self.0 as f64 / 1e9),
        }
    }
}
