//! Reads a Hugging Face folder, on disk or in memory.
//!
//! ```text
//! config.json                                      the model's shape; see `config_json`
//! model.safetensors                                all tensors, or
//! model.safetensors.index.json                     {"weight_map": {"TENSOR": "SHARD", …}} and
//! model-00001-of-00002.safetensors, …              its shards
//! tokenizer.json, chat_template.jinja, …           carried along
//! ```
//!
//! Limits: config.json and its like have at most 16 MB, the index at most 100 MB. The index may name files within
//! the folder only. Symbolic links of weights and config are followed, as the Hub's cache is made of them; other
//! files, which get copied into outputs, are only taken from the folder itself or from that cache's `blobs`.

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use bitmill_tensor::{Dtype, Encoding, FloatType, ScaleType, Scaled};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::checkpoint::{Format, Parts};
use crate::declared::Declared;
use crate::safetensors_in::{self, StTensor};
use crate::{
    Checkpoint, Error, Family, ModelConfig, Region, Role, RoleKind, TensorInfo, bitsandbytes, cache_scales,
    columns, compressed_tensors, config_json, config_out, foreign, generation1, input_scales, marlin24, moe,
    scaled, shapes, sparse_bitmask,
};

const LONGEST_JSON: usize = 16_000_000;
const LONGEST_INDEX: usize = 100_000_000;
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The files of a folder.
pub(crate) enum Files<'a> {
    Folder(&'a Path),
    Memory { name: &'a str, files: &'a [(String, Region)] },
}

/// What runtimes read beside weights and config.
const USUAL_FILES: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

impl Files<'_> {
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::Memory { name: folder, .. } => Path::new(folder).join(name),
        }
    }

    fn checkpoint_name(&self) -> String {
        match self {
            Self::Folder(folder) => own_name(folder),
            Self::Memory { name, .. } => (*name).to_owned(),
        }
    }

    /// The file, if it is there.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Region>, Error> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                match std::fs::metadata(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(Error::io("open", &path, source)),
                    Ok(_) => Region::map(&path).map(Some),
                }
            }
            Self::Memory { files, .. } => {
                Ok(files.iter().find(|(file, _)| file == name).map(|(_, region)| region.clone()))
            }
        }
    }

    /// The names of all regular files, sorted.
    fn names(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::Memory { files, .. } => {
                let mut names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
                names.sort_unstable();
                Ok(names)
            }
            Self::Folder(folder) => listed(folder, std::fs::Metadata::is_file),
        }
    }

    /// The names of all folders in it, sorted, each with a slash behind; hidden ones (`.git`) aside.
    fn folders(&self) -> Result<Vec<String>, Error> {
        let Self::Folder(folder) = self else { return Ok(Vec::new()) };
        let names = listed(folder, std::fs::Metadata::is_dir)?;
        Ok(names.into_iter().filter(|name| !name.starts_with('.')).map(|name| name + "/").collect())
    }

    /// Whether a file may be copied into outputs: not if it is a link to somewhere else, unless it is one that every
    /// model has, so that a folder of links is a checkpoint and a stray link gives nothing away.
    fn is_own(&self, name: &str) -> bool {
        let Self::Folder(folder) = self else {
            return true;
        };
        if USUAL_FILES.contains(&name) {
            return true;
        }
        let (Ok(folder), Ok(file)) = (folder.canonicalize(), folder.join(name).canonicalize()) else {
            return false;
        };
        // The Hub's cache: REPO/snapshots/REVISION/NAME links to REPO/blobs/HASH.
        let blobs = folder
            .parent()
            .filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))
            .and_then(Path::parent)
            .map(|repo| repo.join("blobs"));
        file.starts_with(&folder) || blobs.is_some_and(|blobs| file.starts_with(blobs))
    }

    fn json(&self, name: &str) -> Result<Option<(PathBuf, Value)>, Error> {
        let Some(region) = self.open(name)? else {
            return Ok(None);
        };
        let path = self.path(name);
        let value = parse_json(&path, &region, LONGEST_JSON)?;
        Ok(Some((path, value)))
    }
}

/// Opens the checkpoint that `files` make up.
pub(crate) fn open(files: &Files) -> Result<Checkpoint, Error> {
    let name = files.checkpoint_name();
    let Some((config_path, json)) = files.json("config.json")? else {
        return Err(foreign::folder(&files.path(""), &files.names()?, "there is no config.json"));
    };
    let generation = files.json("generation_config.json")?;
    let generation = generation.as_ref().map(|(path, value)| (path.as_path(), value));
    let from_json = config_json::read(&config_path, &json, generation)?;
    let mut config = from_json.config;
    let beside = files.json("quantize_config.json")?;
    let beside = beside.as_ref().map(|(path, value)| (path.as_path(), value));
    let declared = match json.as_object() {
        Some(map) => Declared::read(&config_path, map, beside)?,
        None => None,
    };
    let (stored, weight_bytes) = weights(files)?;
    let config_bytes = files.open("config.json")?.map_or(0, |region| region.len() as u64);
    let stored = match config.family {
        Family::Qwen => generation1::rename(&name, &config, stored)?,
        _ => stored,
    };
    let (stored, cache_scales) = cache_scales::take(&name, &config, stored)?;
    let (stored, input_scales) = input_scales::take(stored);
    let stored = moe::cut_fused(&name, &config, stored)?;
    let mut tensors = logical_tensors(stored, declared.as_ref())?;
    if config.tied {
        config.tied = drop_tied_head(&mut tensors);
    }
    if !from_json.attention_bias {
        // Without that key other readers skip these: the numbers would differ.
        let is_bias = |kind| {
            use RoleKind::{AttnKBias, AttnOutputBias, AttnQBias, AttnVBias};
            matches!(kind, AttnQBias | AttnKBias | AttnVBias | AttnOutputBias)
        };
        if let Some((info, _)) = tensors.iter().find(|(info, _)| is_bias(info.role.kind)) {
            return Err(Error::ConfigValue {
                file: config_path,
                key: config_json::bias_key(config.family).map_or("attention_bias", |(key, _)| key).to_owned(),
                problem: format!("it is not true, and there is `{}`", info.name),
            });
        }
    }
    let (infos, parts): (Vec<TensorInfo>, Vec<Parts>) = tensors.into_iter().unzip();
    shapes::check(&name, &config, &infos)?;
    config.dtype = from_json.dtype.unwrap_or_else(|| embedding_dtype(&infos));
    let json = match config.family {
        Family::Qwen => config_out::write(&name, &config, &infos)?,
        _ => json,
    };

    let (mut others, mut left_behind) = (Vec::new(), files.folders()?);
    for file in files.names()? {
        if is_weights(&file) || file == "config.json" {
            continue;
        }
        if !files.is_own(&file) {
            left_behind.push(file);
        } else if let Some(region) = files.open(&file)? {
            others.push((file, region));
        }
    }
    let other = |name: &str| others.iter().find(|(file, _)| file == name).map(|(_, region)| region);
    config.add_bos = add_bos(&config, other("tokenizer_config.json"), other("tokenizer.json"));
    Ok(Checkpoint::new(name, Format::HuggingFace, config, infos, parts, weight_bytes + config_bytes)
        .with_folder(json, others, left_behind)
        .with_cache_scales(cache_scales)
        .with_input_scales(input_scales))
}

/// Every stored tensor, shard after shard, and the size of the files they are in.
fn weights(files: &Files) -> Result<(Vec<StTensor>, u64), Error> {
    if let Some(region) = files.open(SINGLE)? {
        return Ok((safetensors_in::read(&files.path(SINGLE), &region)?, region.len() as u64));
    }
    if let Some(index) = files.open(INDEX)? {
        return sharded(files, &index);
    }
    let names = files.names()?;
    let safetensors: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    let problem = match safetensors.as_slice() {
        [only] if !only.starts_with("consolidated") => {
            let path = files.path(only);
            let region = files.open(only)?.unwrap_or(Region::from_static(&[]));
            return Ok((safetensors_in::read(&path, &region)?, region.len() as u64));
        }
        [] => return Err(foreign::folder(&files.path(""), &names, "there are no weights (*.safetensors)")),
        several if several.iter().any(|name| name.starts_with("consolidated")) => {
            return Err(foreign::folder(&files.path(""), &names, "there is no index of the weights"));
        }
        several => format!("there are {} safetensors files and no {INDEX}", several.len()),
    };
    Err(Error::NotACheckpoint { path: files.path(""), problem })
}

fn sharded(files: &Files, index: &Region) -> Result<(Vec<StTensor>, u64), Error> {
    let index_path = files.path(INDEX);
    let parsed: Index = parse_json(&index_path, index, LONGEST_INDEX)?;
    // Each shard with a tensor that it should hold, in the order of their names, which is the order of writing.
    let mut shards: Vec<(&str, &str)> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (tensor, shard) in &parsed.weight_map.0 {
        let inside = !shard.is_empty()
            && !shard.contains(['\0', '\\'])
            && Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(Error::ShardOutsideFolder {
                index: index_path,
                shard: shard.clone(),
                tensor: tensor.clone(),
            });
        }
        known.entry(shard).or_insert_with(|| {
            shards.push((shard, tensor));
            shards.len() - 1
        });
    }
    shards.sort_unstable();
    let mut stored_bytes = index.len() as u64;
    let mut tensors: Vec<StTensor> = Vec::new();
    let mut shard_of: HashMap<String, PathBuf> = HashMap::new();
    for (shard, tensor) in shards {
        let Some(region) = files.open(shard)? else {
            return Err(Error::MissingShard {
                index: index_path,
                shard: shard.to_owned(),
                tensor: tensor.to_owned(),
            });
        };
        let path = files.path(shard);
        stored_bytes += region.len() as u64;
        for tensor in safetensors_in::read(&path, &region)? {
            if let Some(first) = shard_of.insert(tensor.name.clone(), path.clone()) {
                return Err(Error::TensorInTwoShards { tensor: tensor.name, first, second: path });
            }
            tensors.push(tensor);
        }
    }
    for (tensor, shard) in &parsed.weight_map.0 {
        if shard_of.get(tensor) != Some(&files.path(shard)) {
            return Err(Error::MissingFromShard {
                index: index_path,
                shard: shard.clone(),
                tensor: tensor.clone(),
            });
        }
    }
    Ok((tensors, stored_bytes))
}

/// Turns stored tensors into logical ones: the parts of a packed matrix become one tensor in the place of the
/// first of them, and buffers that old checkpoints carry along are dropped.
fn logical_tensors(
    stored: Vec<StTensor>,
    declared: Option<&Declared>,
) -> Result<Vec<(TensorInfo, Parts)>, Error> {
    let mut order: Vec<String> = Vec::new();
    let mut plain: HashMap<String, StTensor> = HashMap::new();
    let mut packed: HashMap<String, HashMap<&'static str, StTensor>> = HashMap::new();
    for tensor in stored {
        // Computed from the config; old checkpoints store them.
        if tensor.name.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        let part = match declared {
            Some(declared) => declared.matrix_of(&tensor),
            None => compressed_tensors::matrix_of(&tensor.name).or_else(|| columns::matrix_of(&tensor.name)),
        };
        match part {
            Some((matrix, _)) if declared.is_none() => {
                return Err(Error::PackedTensor {
                    tensor: matrix,
                    problem: format!(
                        "there is `{}`, but config.json has no quantization_config",
                        tensor.name
                    ),
                });
            }
            Some((matrix, part)) => {
                if !packed.contains_key(&matrix) {
                    order.push(matrix.clone());
                }
                packed.entry(matrix).or_default().insert(part, tensor);
            }
            None => {
                order.push(tensor.name.clone());
                plain.insert(tensor.name.clone(), tensor);
            }
        }
    }
    let mut tensors = Vec::with_capacity(order.len());
    for name in order {
        let role = Role::from_canonical_name(&name);
        match (plain.remove(&name), packed.remove(&name)) {
            (Some(_), Some(_)) => {
                return Err(Error::PackedTensor {
                    tensor: name,
                    problem: "it is stored both plain and packed".into(),
                });
            }
            (Some(tensor), None) => {
                let stored_bytes = tensor.bytes.len() as u64;
                let float = float_type(tensor.dtype).ok_or_else(|| Error::UnsupportedDtype {
                    file: tensor.file.to_path_buf(),
                    tensor: name.clone(),
                    dtype: tensor.dtype.to_string(),
                })?;
                let info = TensorInfo {
                    name,
                    shape: tensor.shape,
                    encoding: Encoding::Float(float),
                    stored_bytes,
                    role,
                };
                tensors.push((info, Parts::Whole(tensor.bytes)));
            }
            (None, Some(parts)) => {
                let stored_bytes = parts.values().map(|part| part.bytes.len() as u64).sum();
                let matrix = match declared {
                    Some(Declared::Columns(declared)) => columns::assemble(&name, parts, *declared)?,
                    Some(Declared::Bitsandbytes(_)) => bitsandbytes::assemble(&name, parts)?,
                    _ if sparse_bitmask::is_sparse(&parts) => {
                        let schemes = match declared {
                            Some(Declared::CompressedTensors(schemes)) => schemes.as_slice(),
                            _ => &[],
                        };
                        sparse_bitmask::assemble(&name, parts, schemes)?
                    }
                    _ if marlin24::is_marlin(&parts) => marlin24::assemble(&name, parts)?,
                    Some(Declared::CompressedTensors(schemes)) if scaled::is_scaled(&parts) => {
                        scaled::assemble(&name, parts, schemes, None)?
                    }
                    Some(Declared::CompressedTensors(schemes)) => {
                        compressed_tensors::assemble(&name, parts, schemes)?
                    }
                    None => compressed_tensors::assemble(&name, parts, &[])?,
                };
                let (shape, encoding) = (matrix.shape.to_vec(), matrix.encoding);
                tensors.push((TensorInfo { name, shape, encoding, stored_bytes, role }, matrix.parts));
            }
            // Seen before under the same name.
            (None, None) => {}
        }
    }
    Ok(tensors)
}

fn float_type(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::F32 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::BF16 => Some(FloatType::BF16),
        _ => None,
    }
}

/// Where config.json ties the head but both are stored: equal ones are one, different ones are not tied after all.
/// transformers 5 decides the same way. Returns whether they are tied.
fn drop_tied_head(tensors: &mut Vec<(TensorInfo, Parts)>) -> bool {
    let find = |kind| tensors.iter().position(|(info, _)| info.role == Role::outside(kind));
    let (Some(embedding), Some(head)) = (find(RoleKind::TokenEmbedding), find(RoleKind::Output)) else {
        return true;
    };
    let (a, b) = (&tensors[embedding], &tensors[head]);
    let equal = match (&a.1, &b.1) {
        (Parts::Whole(left), Parts::Whole(right)) if a.0.encoding == b.0.encoding => {
            // A slice at a time: the two may be gigabytes, and memory is counted.
            const STEP: usize = 1 << 24;
            left.len() == right.len()
                && (0..left.len()).step_by(STEP).all(|at| {
                    let range = at..(at + STEP).min(left.len());
                    let (left, right) = (left.slice(range.clone()), right.slice(range));
                    let equal = *left == *right;
                    left.release();
                    right.release();
                    equal
                })
        }
        _ => false,
    };
    if equal {
        tensors.remove(head);
    }
    equal
}

fn embedding_dtype(infos: &[TensorInfo]) -> FloatType {
    let embedding = infos.iter().find(|info| info.role.kind == RoleKind::TokenEmbedding);
    match embedding.map(|info| info.encoding) {
        Some(Encoding::Float(float)) => float,
        Some(Encoding::Grouped(grouped)) => grouped.scale,
        Some(Encoding::Scaled(Scaled { scale: ScaleType::Float(float), .. })) => float,
        Some(Encoding::Sparse { float, .. }) => float,
        _ => FloatType::BF16,
    }
}

/// The names of what lies in `folder` and `is_kind`, sorted.
fn listed(folder: &Path, is_kind: fn(&std::fs::Metadata) -> bool) -> Result<Vec<String>, Error> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("list", folder, source))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::io("list", folder, source))?;
        let is_kind = std::fs::metadata(entry.path()).is_ok_and(|metadata| is_kind(&metadata));
        if let (true, Ok(name)) = (is_kind, entry.file_name().into_string()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a file holds weights, in any format, or an index of them.
fn is_weights(name: &str) -> bool {
    let suffixes = [
        ".safetensors",
        ".index.json",
        ".gguf",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".onnx",
        ".onnx_data",
        ".ot",
    ];
    suffixes.iter().any(|suffix| name.ends_with(suffix))
        || (name.ends_with(".bin") && name.starts_with("pytorch_model"))
}

/// Whether the tokenizer puts `bos` before every text: tokenizer_config.json says so, or else tokenizer.json's
/// template does.
fn add_bos(config: &ModelConfig, tokenizer_config: Option<&Region>, tokenizer: Option<&Region>) -> bool {
    #[derive(Deserialize)]
    struct TokenizerConfig {
        add_bos_token: Option<bool>,
    }
    #[derive(Deserialize)]
    struct Tokenizer {
        post_processor: Option<Value>,
    }
    let said: Option<TokenizerConfig> = tokenizer_config.and_then(|bytes| serde_json::from_slice(bytes).ok());
    if let Some(add_bos) = said.and_then(|said| said.add_bos_token) {
        return add_bos;
    }
    // A tokenizer.json that cannot be parsed is reported by whoever needs it.
    let tokenizer: Option<Tokenizer> = tokenizer.and_then(|bytes| serde_json::from_slice(bytes).ok());
    match (tokenizer.and_then(|tokenizer| tokenizer.post_processor), config.bos) {
        (Some(processor), Some(bos)) => begins_with(&processor, bos),
        _ => false,
    }
}

fn begins_with(processor: &Value, bos: u32) -> bool {
    if let Some(processors) = processor.get("processors").and_then(Value::as_array) {
        return processors.iter().any(|processor| begins_with(processor, bos));
    }
    let first = processor.get("single").and_then(|single| single.get(0));
    let Some(id) = first.and_then(|part| part.get("SpecialToken")?.get("id")?.as_str()) else {
        return false;
    };
    let ids = processor.get("special_tokens").and_then(|tokens| tokens.get(id)?.get("ids")?.as_array());
    ids.is_some_and(|ids| ids.len() == 1 && ids[0].as_u64() == Some(bos.into()))
}

/// What tokenizer_config.json has for a chat template: text, or a list of named ones.
pub(crate) fn chat_template(tokenizer_config: &Region) -> Option<String> {
    #[derive(Deserialize)]
    struct TokenizerConfig {
        chat_template: Option<Value>,
    }
    let config: TokenizerConfig = serde_json::from_slice(tokenizer_config).ok()?;
    match config.chat_template? {
        Value::String(template) => Some(template),
        Value::Array(named) => {
            let default =
                named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// The last component of a path, also of `.` and of paths that end in `..`.
pub(crate) fn own_name(path: &Path) -> String {
    let own = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    // In the hubs' caches, [models--]OWNER--NAME/snapshots/REVISION, the folder's own name says nothing.
    let parent = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
    let repository = parent.and_then(|parent| own(parent.parent()?));
    if let Some((_, name)) = repository.as_deref().and_then(|repository| repository.rsplit_once("--")) {
        return name.to_owned();
    }
    own(path).or_else(|| own(&path.canonicalize().ok()?)).unwrap_or_else(|| "model".to_owned())
}

fn parse_json<T: for<'de> Deserialize<'de>>(path: &Path, bytes: &[u8], limit: usize) -> Result<T, Error> {
    if let Some(error) = foreign::stand_in(path, bytes) {
        return Err(error);
    }
    let wrong = |problem: String| Error::Json { file: path.to_owned(), problem };
    if bytes.len() > limit {
        return Err(wrong(format!("{} bytes long; at most {limit} are read", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Tensor → shard, each tensor once.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of shard names by tensor name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut entries: Vec<(String, String)> = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(WeightMap(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
