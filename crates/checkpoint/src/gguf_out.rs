//! Writes GGUF, version 3, into one file or several: headers first, then tensors in any order.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bitmill_tensor::Encoding;
use serde_json::Value;

use crate::atomic::Progress;
use crate::gguf_layout::{Layout, check_specs, tensor_bytes};
use crate::staging::{Shape, Staging, forget};
use crate::{Error, GgufValue, Identity, Target, Written};

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
    staging: Staging,
    /// Name, size and file of each part.
    parts: Vec<(String, u64, File)>,
    /// Names of files that go with them.
    beside: Vec<String>,
    /// The part of each tensor, and where it begins there.
    places: Vec<(usize, u64)>,
    progress: Progress,
    total_bytes: u64,
}

/// How a GGUF output is written.
#[derive(Debug, Clone, Default)]
pub struct GgufOptions {
    /// Bytes of a part at most, its header not counted, if the output is to be split; a larger tensor has a part of its own.
    pub split_bytes: Option<u64>,
    /// Names of small files that appear with the output, in its folder; see [`GgufWriter::add_file`].
    pub beside: Vec<String>,
}

impl GgufWriter {
    /// Creates the file beside `target`, header written and room for everything reserved. Nothing of it stays if it is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::BadSpec`] for a key or tensor that GGUF cannot hold; [`Error::TargetExists`],
    /// [`TargetNotReplaceable`](Error::TargetNotReplaceable) or [`TargetFolder`](Error::TargetFolder) if the target
    /// cannot be written; [`TargetBusy`](Error::TargetBusy) if another run writes it; [`Error::DiskFull`].
    pub fn create(
        target: &Target,
        metadata: &[(String, GgufValue)],
        tensors: &[GgufTensorSpec],
    ) -> Result<Self, Error> {
        Self::resume(target, metadata, tensors, GgufOptions::default(), Identity::default())
    }

    /// Goes on with what an interrupted run with this target and `identity` left, or begins it; metadata, tensors and options
    /// must follow from `identity`. What was recorded of tensors that are finished is in [`finished`](Self::finished).
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::OtherPartial`] if the interrupted run was another.
    pub fn resume(
        target: &Target,
        metadata: &[(String, GgufValue)],
        tensors: &[GgufTensorSpec],
        options: GgufOptions,
        identity: Identity,
    ) -> Result<Self, Error> {
        check_specs(metadata, tensors)?;
        let layout = Layout::new(metadata, tensors, options.split_bytes);
        let total_bytes = layout.total_bytes();
        let part_names = layout.names(&target.name()?);
        let names: Vec<String> = part_names.iter().chain(&options.beside).cloned().collect();
        let staging = Staging::resume(target, Shape::Files, names, identity)?;
        let mut parts = Vec::with_capacity(part_names.len());
        staging.check_space(total_bytes)?;
        for (name, part) in part_names.into_iter().zip(&layout.parts) {
            let file = staging.file(&name, part.bytes, total_bytes)?;
            file.write_all_at(&part.header, 0).map_err(|source| staging.write_error(source, total_bytes))?;
            parts.push((name, part.bytes, file));
        }
        staging.begin(parts.iter().map(|(_, _, file)| file))?;
        let sizes = tensors.iter().map(|spec| (spec.name.clone(), tensor_bytes(spec)));
        let progress = Progress::new(sizes);
        Ok(Self { staging, parts, beside: options.beside, places: layout.places, progress, total_bytes })
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
        let (part, start) = self.places[tensor];
        let (_, _, file) = &self.parts[part];
        file.write_all_at(bytes, start + offset)
            .map_err(|source| self.staging.write_error(source, self.total_bytes))?;
        self.progress.add(tensor, bytes.len() as u64);
        Ok(())
    }

    /// Writes one of the files that appear beside the output, whole.
    ///
    /// # Errors
    /// [`Error::BadFileName`] if it is not among [`GgufOptions::beside`]; [`Error::DiskFull`] or [`Error::Io`].
    pub fn add_file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        if !self.beside.iter().any(|beside| beside == name) {
            return Err(Error::BadFileName { name: name.to_owned(), problem: "it was not announced" });
        }
        self.staging.small_file(name, bytes, self.total_bytes)
    }

    /// What was recorded of tensors that an interrupted run had finished, in the order in which they were.
    pub fn finished(&self) -> &[Value] {
        self.staging.finished()
    }

    /// Counts `bytes` of a tensor as written: by the run that was interrupted.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn count_written(&self, tensor: usize, bytes: u64) {
        self.progress.add(tensor, bytes);
    }

    /// Has all that was written so far on disk, and notes these records of tensors that were finished before.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub fn note(&self, records: &[Value]) -> Result<(), Error> {
        self.staging.flush(self.parts.iter().map(|(_, _, file)| file))?;
        self.staging.note(records)
    }

    /// Lets the system forget what of the output it holds in memory; for what is larger than that.
    pub fn forget(&self) {
        self.parts.iter().for_each(|(_, _, file)| forget(file));
    }

    /// Whether what is written stays if this is dropped unfinished, for another run to go on with.
    pub fn keep(&self, keep: bool) {
        self.staging.keep(keep);
    }

    /// The folder that goes with an unfinished output: what else a run keeps for the one that goes on with it.
    pub fn partial(&self) -> PathBuf {
        self.staging.path().to_owned()
    }

    /// Where the file, or the first of its parts, lies until [`finish`](Self::finish): complete once every tensor is
    /// written, to be read back.
    pub fn staged(&self) -> PathBuf {
        self.staging.output().join(&self.parts[0].0)
    }

    /// The exact size of the finished file, or of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Completes the output, flushes it and renames it to its target.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if a tensor was not wholly written; the target is then as it was.
    pub fn finish(self) -> Result<Written, Error> {
        let Self { staging, parts, progress, total_bytes, .. } = self;
        progress.check_complete(staging.target())?;
        staging.flush(parts.iter().map(|(_, _, file)| file))?;
        let path = staging.target().to_owned();
        let files = parts.iter().map(|(name, bytes, _)| (path.with_file_name(name), *bytes)).collect();
        staging.finish()?;
        Ok(Written { path, files, bytes: total_bytes })
    }
}

/// The files that [`GgufWriter`] writes for these and a target of the name `target`, with their exact sizes.
pub fn gguf_files(
    target: &str,
    metadata: &[(String, GgufValue)],
    tensors: &[GgufTensorSpec],
    split_bytes: Option<u64>,
) -> Vec<(String, u64)> {
    let layout = Layout::new(metadata, tensors, split_bytes);
    layout.names(target).into_iter().zip(layout.parts.iter().map(|part| part.bytes)).collect()
}
