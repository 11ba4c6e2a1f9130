//! Writes Hugging Face folders: safetensors, sharded if need be, and other files. The layout of a safetensors file
//! is drawn in `safetensors_in`, that of a folder in `folder`.
//!
//! Shards are filled in the order of the specs, as transformers fills them: a tensor goes into the current shard
//! unless that would pass the limit; one that passes it alone gets a shard of its own. Headers are padded with
//! spaces to 8 bytes. Within a shard tensors keep the order of the specs, unless that would put one at an offset
//! that is not a multiple of its element size: then wider elements come first, because torch cannot view a
//! misaligned tensor.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use bitmill_tensor::Dtype;
use serde_json::{Map, Value, json};

use crate::atomic::Progress;
use crate::staging::{Shape, Staging, forget};
use crate::{Error, Identity, Target, Written};

const INDEX: &str = "model.safetensors.index.json";

/// A tensor that a safetensors file will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StTensorSpec {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: Dtype,
}

impl StTensorSpec {
    /// Bytes of its data.
    pub fn bytes(&self) -> u64 {
        let elements: usize = self.shape.iter().product();
        (elements * self.dtype.size_bytes()) as u64
    }
}

/// Writes a folder of safetensors and other files, tensor by tensor in any order and from any thread.
#[derive(Debug)]
pub struct FolderWriter {
    staging: Staging,
    shards: Vec<(String, u64, File)>,
    /// The shard of each tensor, and where it begins there.
    places: Vec<(usize, u64)>,
    progress: Progress,
    /// Index and added files.
    others: Mutex<Vec<(String, u64)>>,
    weight_bytes: u64,
}

impl FolderWriter {
    /// Creates the folder beside `target`, with all headers and the index written and room for the weights
    /// reserved: model.safetensors, or model-00001-of-0000N.safetensors and so on if the tensors take more than
    /// `shard_bytes`. Nothing of it stays if it is dropped.
    ///
    /// # Errors
    /// [`Error::BadSpec`] for two tensors of one name; [`Error::TargetExists`],
    /// [`TargetNotReplaceable`](Error::TargetNotReplaceable) or [`TargetFolder`](Error::TargetFolder) if the target
    /// cannot be written; [`TargetBusy`](Error::TargetBusy) if another run writes it; [`Error::DiskFull`].
    pub fn create(target: &Target, tensors: &[StTensorSpec], shard_bytes: u64) -> Result<Self, Error> {
        Self::resume(target, tensors, shard_bytes, Identity::default())
    }

    /// Goes on with what an interrupted run with this target and `identity` left, or begins it; tensors and `shard_bytes` must
    /// follow from `identity`. What was recorded of tensors that are finished is in [`finished`](Self::finished); other
    /// files are added again.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::OtherPartial`] if the interrupted run was another.
    pub fn resume(
        target: &Target,
        tensors: &[StTensorSpec],
        shard_bytes: u64,
        identity: Identity,
    ) -> Result<Self, Error> {
        check_specs(tensors)?;
        let plan = Plan::new(tensors, shard_bytes);
        let weight_bytes = plan.weight_bytes();
        let staging = Staging::resume(target, Shape::Folder, vec![target.name()?], identity)?;
        staging.check_space(weight_bytes)?;
        let mut shards = Vec::with_capacity(plan.shards.len());
        for shard in plan.shards {
            let file = staging.file(&shard.name, shard.bytes, weight_bytes)?;
            file.write_all_at(&shard.header, 0)
                .map_err(|source| staging.write_error(source, weight_bytes))?;
            shards.push((shard.name, shard.bytes, file));
        }
        staging.begin(shards.iter().map(|(_, _, file)| file))?;
        let writer = Self {
            staging,
            shards,
            places: plan.places,
            progress: Progress::new(tensors.iter().map(|spec| (spec.name.clone(), spec.bytes()))),
            others: Mutex::new(Vec::new()),
            weight_bytes,
        };
        if let Some(index) = plan.index {
            writer.put_file(INDEX, index.as_bytes())?;
        }
        Ok(writer)
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
        let (shard, start) = self.places[tensor];
        let (_, _, file) = &self.shards[shard];
        file.write_all_at(bytes, start + offset)
            .map_err(|source| self.staging.write_error(source, self.weight_bytes))?;
        self.progress.add(tensor, bytes.len() as u64);
        Ok(())
    }

    /// Adds a file: config.json, tokenizer.json.
    ///
    /// # Errors
    /// [`Error::BadFileName`] for a path, a name that is taken, or one that would be read as weights;
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub fn add_file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let bad = |problem| Err(Error::BadFileName { name: name.to_owned(), problem });
        let mut components = Path::new(name).components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name)
        {
            return bad("it is not the name of a file in the folder itself");
        }
        if name.ends_with(".safetensors") || name == INDEX {
            return bad("readers would take it for weights");
        }
        self.put_file(name, bytes)
    }

    fn put_file(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut others = self.others.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if others.iter().any(|(other, _)| other == name) {
            return Err(Error::BadFileName { name: name.to_owned(), problem: "it was written already" });
        }
        let needed = self.weight_bytes + bytes.len() as u64;
        self.staging.small_file(name, bytes, needed)?;
        others.push((name.to_owned(), bytes.len() as u64));
        Ok(())
    }

    /// What was recorded of tensors that an interrupted run had finished, in the order in which they were.
    pub fn finished(&self) -> &[Value] {
        self.staging.finished()
    }

    /// Counts a tensor as written: by the run that was interrupted.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn count_written(&self, tensor: usize) {
        self.progress.add_whole(tensor);
    }

    /// Has all that was written so far on disk, and notes these records of tensors that were finished before.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub fn note(&self, records: &[Value]) -> Result<(), Error> {
        self.staging.flush(self.shards.iter().map(|(_, _, file)| file))?;
        self.staging.note(records)
    }

    /// Lets the system forget what of the weights it holds in memory; for what is larger than that.
    pub fn forget(&self) {
        self.shards.iter().for_each(|(_, _, file)| forget(file));
    }

    /// Whether what is written stays if this is dropped unfinished, for another run to go on with.
    pub fn keep(&self, keep: bool) {
        self.staging.keep(keep);
    }

    /// The folder that goes with an unfinished output: what else a run keeps for the one that goes on with it.
    pub fn partial(&self) -> PathBuf {
        self.staging.path().to_owned()
    }

    /// Where the folder lies until [`finish`](Self::finish): complete once every tensor is written, to be read back.
    pub fn staged(&self) -> PathBuf {
        self.staging.output()
    }

    /// The exact size of all files: weights, index, and what was added so far.
    pub fn total_bytes(&self) -> u64 {
        let others = self.others.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let shards: u64 = self.shards.iter().map(|(_, bytes, _)| bytes).sum();
        shards + others.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Completes the folder, flushes it and renames it to its target.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if a tensor was not wholly written; the target is then as it was.
    pub fn finish(self) -> Result<Written, Error> {
        let Self { staging, shards, progress, others, .. } = self;
        progress.check_complete(staging.target())?;
        staging.flush(shards.iter().map(|(_, _, file)| file))?;
        let path = staging.target().to_owned();
        let mut files: Vec<(PathBuf, u64)> = Vec::new();
        files.extend(shards.iter().map(|(name, bytes, _)| (path.join(name), *bytes)));
        let others = others.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        files.extend(others.into_iter().map(|(name, bytes)| (path.join(name), bytes)));
        staging.finish()?;
        let bytes = files.iter().map(|(_, bytes)| bytes).sum();
        Ok(Written { path, files, bytes })
    }
}

/// The exact size of the weights, headers and index that [`FolderWriter`] writes for these.
pub fn folder_bytes(tensors: &[StTensorSpec], shard_bytes: u64) -> u64 {
    Plan::new(tensors, shard_bytes).weight_bytes()
}

struct Plan {
    shards: Vec<Shard>,
    places: Vec<(usize, u64)>,
    index: Option<String>,
}

struct Shard {
    name: String,
    header: Vec<u8>,
    bytes: u64,
}

impl Plan {
    fn new(tensors: &[StTensorSpec], shard_bytes: u64) -> Self {
        let members = split(tensors, shard_bytes);
        let n_shards = members.len();
        let mut shards = Vec::with_capacity(n_shards);
        let mut places = vec![(0, 0); tensors.len()];
        let mut weight_map = BTreeMap::new();
        for (number, mut members) in members.into_iter().enumerate() {
            order(tensors, &mut members);
            let (header, data_bytes) = header(tensors, &members);
            let mut at = header.len() as u64;
            let name = match n_shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{n_shards:05}.safetensors", number + 1),
            };
            for &member in &members {
                places[member] = (number, at);
                at += tensors[member].bytes();
                weight_map.insert(tensors[member].name.clone(), name.clone());
            }
            shards.push(Shard { name, bytes: header.len() as u64 + data_bytes, header });
        }
        let index = (n_shards > 1).then(|| {
            let total_size: u64 = tensors.iter().map(StTensorSpec::bytes).sum();
            let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
            format!("{index:#}\n")
        });
        Self { shards, places, index }
    }

    fn weight_bytes(&self) -> u64 {
        let index = self.index.as_ref().map_or(0, |index| index.len() as u64);
        self.shards.iter().map(|shard| shard.bytes).sum::<u64>() + index
    }
}

/// Which tensors go into which shard; at least one shard.
fn split(tensors: &[StTensorSpec], shard_bytes: u64) -> Vec<Vec<usize>> {
    let mut shards = Vec::new();
    let mut current = Vec::new();
    let mut current_bytes = 0;
    for (index, spec) in tensors.iter().enumerate() {
        let bytes = spec.bytes();
        if bytes > shard_bytes {
            shards.push(vec![index]);
            continue;
        }
        if current_bytes + bytes > shard_bytes {
            shards.push(std::mem::take(&mut current));
            current_bytes = 0;
        }
        current.push(index);
        current_bytes += bytes;
    }
    if !current.is_empty() || shards.is_empty() {
        shards.push(current);
    }
    shards
}

/// Puts wider elements first where the given order would misalign a tensor.
fn order(tensors: &[StTensorSpec], members: &mut [usize]) {
    let mut at = 0u64;
    let aligned = members.iter().all(|&member| {
        let begin = at;
        at += tensors[member].bytes();
        begin.is_multiple_of(tensors[member].dtype.size_bytes() as u64)
    });
    if !aligned {
        members.sort_by_key(|&member| std::cmp::Reverse(tensors[member].dtype.size_bytes()));
    }
}

/// The length and the header of a safetensors file, and the size of its data.
fn header(tensors: &[StTensorSpec], members: &[usize]) -> (Vec<u8>, u64) {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0u64;
    for &member in members {
        let spec = &tensors[member];
        let end = at + spec.bytes();
        let entry = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [at, end]});
        entries.insert(spec.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    (header, at)
}

fn check_specs(tensors: &[StTensorSpec]) -> Result<(), Error> {
    let mut names = HashSet::new();
    for spec in tensors {
        let problem = match spec.name.as_str() {
            "__metadata__" => "the name is the format's own",
            name if !names.insert(name) => "the tensor is there twice",
            _ => continue,
        };
        return Err(Error::BadSpec { tensor: spec.name.clone(), problem: problem.to_owned() });
    }
    Ok(())
}
