//! Where everything goes in the output, decided before a weight is read: headers come first in both formats.

use bitmill_checkpoint::{
    Checkpoint, FolderWriter, GgufOptions, GgufTensorSpec, GgufValue, GgufWriter, Identity, ModuleScheme,
    PackedScheme, Region, RoleKind, StTensorSpec, Target, TokenizerSource, Written,
};
use bitmill_tensor::{BlockType, ColumnPacking, Encoding, FloatType, Granularity, Grouped};
use bitmill_text::Tokenizer;
use serde_json::Value;

use crate::card::CARD;
use crate::depth::Cut;
use crate::error::Error;
use crate::merged::{self, Place};
use crate::method::{Gptq, Method, Order};
use crate::plan::{PlanOptions, PlannedTensor, Treatment, made_of, rows_and_columns};
use crate::recipe::{Format, Recipe};
use crate::{packings, padding};

/// The name of the record in a folder, and the end of its name beside a GGUF file.
pub(crate) const RECORD: &str = "bitmill.json";

/// Where GPTQ's libraries look for what config.json says too.
pub(crate) const QUANTIZE_CONFIG: &str = "quantize_config.json";

/// Headers, sizes and small files of an output.
#[derive(Debug)]
pub(crate) enum Layout {
    Gguf {
        metadata: Vec<(String, GgufValue)>,
        specs: Vec<GgufTensorSpec>,
        places: Vec<Place>,
        rope_factors: Option<Vec<f32>>,
        split_bytes: Option<u64>,
    },
    Folder {
        specs: Vec<StTensorSpec>,
        files: Vec<(String, Region)>,
        shard_bytes: u64,
        parts: Vec<Vec<usize>>,
        packing: Option<ColumnPacking>,
    },
}

/// Decides the layout for `tensors`, which are in writing order. A GGUF file gets `provenance` among its keys.
pub(crate) fn layout(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    cut: &Cut,
    tensors: &[PlannedTensor],
    provenance: Vec<(String, GgufValue)>,
    options: &PlanOptions,
) -> Result<Layout, Error> {
    match recipe.format {
        Format::Gguf => gguf(checkpoint, recipe, cut, tensors, provenance, options.split_bytes),
        _ => folder(checkpoint, recipe, cut, tensors, options.shard_bytes),
    }
}

fn gguf(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    cut: &Cut,
    tensors: &[PlannedTensor],
    provenance: Vec<(String, GgufValue)>,
    split_bytes: Option<u64>,
) -> Result<Layout, Error> {
    let config = &cut.config;
    bitmill_checkpoint::check_gguf(&checkpoint.name(), config)?;
    let mut metadata =
        bitmill_checkpoint::gguf_metadata(config, &checkpoint.name(), file_type(recipe, tensors));
    if checkpoint.format() == bitmill_checkpoint::Format::Gguf {
        // As they are: keys that nothing here knows included.
        let tokenizer = checkpoint.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
        metadata.extend(tokenizer.cloned());
    } else {
        let tokenizer = Tokenizer::from_checkpoint(checkpoint)?.to_gguf(config.vocab_size, checkpoint)?;
        metadata.extend(tokenizer.to_metadata());
    }
    metadata.extend(provenance);
    metadata.push(("bitmill.version".into(), GgufValue::String(env!("CARGO_PKG_VERSION").into())));
    metadata.push(("bitmill.recipe".into(), GgufValue::String(recipe.to_toml())));
    let padded = padding::weights_that_pad(checkpoint, config.n_layers, tensors);
    if padded > 0 {
        metadata.push((padding::GGUF_KEY.into(), GgufValue::U64(padded)));
    }
    let (mut specs, places) = merged::merge(tensors)?;
    let rope_factors = bitmill_checkpoint::rope_freqs(config);
    if let Some(factors) = &rope_factors {
        specs.push(GgufTensorSpec {
            name: "rope_freqs.weight".into(),
            shape: vec![factors.len()],
            encoding: Encoding::Float(FloatType::F32),
        });
    }
    Ok(Layout::Gguf { metadata, specs, places, rope_factors, split_bytes })
}

/// `general.file_type` of a file in which most weights are of this type: that of llama.cpp's usual mix around it.
fn file_type_of(block: BlockType) -> u32 {
    match block {
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Q5_0 => 8,
        BlockType::Q5_1 => 9,
        BlockType::Q2_K => 10,
        BlockType::Q3_K => 12,
        BlockType::Q4_K => 15,
        BlockType::Q5_K => 17,
        BlockType::Q6_K => 18,
        BlockType::IQ2_XXS => 19,
        BlockType::IQ2_XS => 20,
        BlockType::IQ3_XXS => 23,
        BlockType::IQ1_S => 24,
        BlockType::IQ4_NL => 25,
        BlockType::IQ3_S => 26,
        BlockType::IQ2_S => 28,
        BlockType::IQ4_XS => 30,
        BlockType::IQ1_M => 31,
        BlockType::TQ1_0 => 36,
        BlockType::TQ2_0 => 37,
        BlockType::MXFP4 => 38,
    }
}

/// `general.file_type`: the mix's own, else that of the type that holds most weights.
fn file_type(recipe: &Recipe, tensors: &[PlannedTensor]) -> u32 {
    if let Some(mix) = recipe.mix() {
        return mix.file_type();
    }
    match most_weights(tensors) {
        Some(Encoding::Block(block)) => file_type_of(block),
        Some(Encoding::Float(FloatType::F16)) => 1,
        Some(Encoding::Float(FloatType::BF16)) => 32,
        _ => 0,
    }
}

/// The encoding that holds most weights.
fn most_weights(tensors: &[PlannedTensor]) -> Option<Encoding> {
    let mut weights: Vec<(Encoding, u64)> = Vec::new();
    for tensor in tensors {
        match weights.iter_mut().find(|(encoding, _)| *encoding == tensor.to) {
            Some((_, sum)) => *sum += tensor.weights(),
            None => weights.push((tensor.to, tensor.weights())),
        }
    }
    weights.iter().max_by_key(|(_, sum)| *sum).map(|(encoding, _)| *encoding)
}

fn folder(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    cut: &Cut,
    tensors: &[PlannedTensor],
    shard_bytes: u64,
) -> Result<Layout, Error> {
    let packing = packings::packing(recipe, tensors)?;
    let mut specs = Vec::new();
    // The indexes in `specs` of each planned tensor's parts.
    let mut parts = Vec::with_capacity(tensors.len());
    let mut groups: Vec<(ModuleScheme, Vec<String>)> = Vec::new();
    let mut ignore = Vec::new();
    let mut codebook = None;
    for tensor in tensors {
        let first = specs.len();
        let (rows, cols) = rows_and_columns(&tensor.shape);
        let module = tensor.name.trim_end_matches(".weight").to_owned();
        match tensor.to {
            Encoding::Grouped(grouped) => {
                specs.extend(match packing {
                    Some(ColumnPacking::Words) => {
                        bitmill_checkpoint::word_specs(&tensor.name, rows, cols, &grouped)
                    }
                    Some(packing) => {
                        bitmill_checkpoint::column_specs(&tensor.name, rows, cols, &grouped, packing)
                    }
                    None => bitmill_checkpoint::grouped_specs(&tensor.name, rows, cols, &grouped),
                });
                put(&mut groups, ModuleScheme::Packed(scheme(&grouped, cols)), module);
            }
            Encoding::Scaled(layout) if recipe.format == Format::Bitsandbytes => {
                specs.extend(bitmill_checkpoint::codebook_specs(
                    &tensor.name,
                    rows,
                    cols,
                    &layout,
                    made_of(tensor),
                ));
                codebook = Some(layout);
            }
            Encoding::Scaled(layout) => {
                specs.extend(bitmill_checkpoint::scaled_specs(&tensor.name, rows, cols, &layout));
                put(&mut groups, ModuleScheme::Scaled(layout, tensor.activations), module);
            }
            Encoding::Sparse { float, values } => {
                specs.extend(bitmill_checkpoint::sparse_specs(&tensor.name, rows, cols, float, values));
            }
            Encoding::Float(float) => {
                specs.push(StTensorSpec {
                    name: tensor.name.clone(),
                    shape: tensor.shape.clone(),
                    dtype: float.into(),
                });
                if is_linear(tensor.role.kind) {
                    ignore.push(module);
                }
            }
            Encoding::Block(_) => {}
        }
        let float = checkpoint.config().dtype;
        if tensor.has_input_scale() {
            specs.push(bitmill_checkpoint::input_scale_spec(&tensor.name, float));
        }
        if recipe.kv_cache.is_some() {
            specs.extend(bitmill_checkpoint::cache_scale_spec(&tensor.name, tensor.role.kind, float));
        }
        parts.push((first..specs.len()).collect());
    }
    if cut.config.tied {
        // The head is a Linear module all the same, and loaders look for it here.
        ignore.push("lm_head".into());
    }
    let mut config = checkpoint.to_config_json()?;
    cut.rewrite(&mut config);
    if checkpoint.config().tied && !cut.config.tied {
        config["tie_word_embeddings"] = false.into();
    }
    let padded = padding::weights_that_pad(checkpoint, cut.config.n_layers, tensors);
    if padded > 0 {
        padding::rewrite(&mut config, &cut.config, padded);
    }
    match packing {
        Some(packing) if recipe.format.is_by_column() => {
            let mut has_order = tensors.iter().any(in_full_order);
            for copied in tensors.iter().filter(|tensor| tensor.treatment == Treatment::Copied) {
                has_order |= packings::has_own_order(checkpoint, &checkpoint.tensor(&copied.source)?.info)?;
            }
            config["quantization_config"] = column_config(packing, &groups, ignore, has_order);
        }
        _ if recipe.format == Format::CompressedTensors => {
            config["quantization_config"] = match sparsity(tensors) {
                Some(sparsity) => bitmill_checkpoint::sparse_config(sparsity, &ignore),
                None => bitmill_checkpoint::modules_config(&groups, &ignore),
            };
        }
        _ => match codebook {
            Some(layout) => {
                let made_in = checkpoint.config().dtype;
                config["quantization_config"] =
                    bitmill_checkpoint::bitsandbytes_config(&layout, made_in, &ignore);
            }
            None => declare_floats(&mut config, tensors),
        },
    }
    if recipe.kv_cache.is_some() {
        config["quantization_config"]["kv_cache_scheme"] = bitmill_checkpoint::fp8_cache_scheme();
    }
    let mut files = vec![("config.json".to_owned(), pretty(&config))];
    if recipe.format == Format::Gptq {
        files.push((QUANTIZE_CONFIG.to_owned(), pretty(&config["quantization_config"])));
    }
    files.extend(carried_files(checkpoint));
    files.extend(rebuilt_files(checkpoint)?);
    Ok(Layout::Folder { specs, files, shard_bytes, parts, packing })
}

/// Adds a module to those of its scheme.
fn put(groups: &mut Vec<(ModuleScheme, Vec<String>)>, scheme: ModuleScheme, module: String) {
    match groups.iter_mut().find(|(seen, _)| *seen == scheme) {
        Some((_, modules)) => modules.push(module),
        None => groups.push((scheme, vec![module])),
    }
}

/// What a folder of GPTQ or AWQ declares: the scheme of most modules, and those that have another or none.
fn column_config(
    packing: ColumnPacking,
    groups: &[(ModuleScheme, Vec<String>)],
    ignore: Vec<String>,
    has_order: bool,
) -> Value {
    let packed = |(scheme, modules): &(ModuleScheme, Vec<String>)| match scheme {
        ModuleScheme::Packed(scheme) => Some((*scheme, modules.clone())),
        ModuleScheme::Scaled(..) => None,
    };
    let groups: Vec<(PackedScheme, Vec<String>)> = groups.iter().filter_map(packed).collect();
    // The first of several that have as many; a plan without any is refused.
    let Some((scheme, _)) = groups.iter().rev().max_by_key(|(_, modules)| modules.len()) else {
        return Value::Null;
    };
    if packing == ColumnPacking::Awq {
        return bitmill_checkpoint::awq_config(scheme, &ignore);
    }
    let others = groups.iter().filter(|(other, _)| other != scheme);
    let others = others.flat_map(|(own, modules)| modules.iter().map(|module| (module.clone(), Some(*own))));
    let others: Vec<_> = others.chain(ignore.into_iter().map(|module| (module, None))).collect();
    bitmill_checkpoint::gptq_config(scheme, packing, has_order, &others)
}

/// Whether its columns are in groups in the order of their activations.
fn in_full_order(tensor: &PlannedTensor) -> bool {
    matches!(tensor.method, Method::Gptq(Gptq { order: Order::Full, .. }))
}

/// The files that a folder has and a GGUF file keeps in its metadata.
fn rebuilt_files(checkpoint: &Checkpoint) -> Result<Vec<(String, Region)>, Error> {
    let mut files = Vec::new();
    if checkpoint.format() == bitmill_checkpoint::Format::Gguf {
        files.push(("generation_config.json".to_owned(), pretty(&checkpoint.to_generation_config())));
        if let TokenizerSource::Gguf(keys) = checkpoint.tokenizer_source() {
            let rebuilt = Tokenizer::folder_files(&keys, checkpoint.config().max_positions)?;
            files.extend(rebuilt.into_iter().map(|(name, bytes)| (name, Region::from_vec(bytes))));
        }
    }
    Ok(files)
}

fn pretty(json: &serde_json::Value) -> Region {
    Region::from_vec(format!("{json:#}\n").into_bytes())
}

/// Whether loaders may have it as a module of the class `Linear`.
fn is_linear(kind: RoleKind) -> bool {
    kind.is_router() || (kind.is_matrix() && kind != RoleKind::TokenEmbedding)
}

/// The fraction of zeros of the matrices that are stored sparse, to four places; `None` if there are none.
fn sparsity(tensors: &[PlannedTensor]) -> Option<f64> {
    let sparse = tensors.iter().filter(|tensor| matches!(tensor.to, Encoding::Sparse { .. }));
    let (zeros, weights) =
        sparse.fold((0, 0), |(zeros, weights), tensor| (zeros + tensor.zeros(), weights + tensor.weights()));
    (weights > 0).then(|| (zeros as f64 / weights as f64 * 1e4).round() / 1e4)
}

/// Makes `config` say that the weights are plain floats, of the dtype that holds most of them: what loaders take for
/// the whole model where nobody tells them another.
fn declare_floats(config: &mut serde_json::Value, tensors: &[PlannedTensor]) {
    let Some(fields) = config.as_object_mut() else { return };
    fields.shift_remove("quantization_config");
    if let Some(Encoding::Float(float)) = most_weights(tensors) {
        // transformers 5 writes `dtype` and reads both.
        let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        fields.insert(key.into(), float.long_name().into());
    }
}

/// One scale a row is one scheme, however wide the rows are.
pub(crate) fn scheme(grouped: &Grouped, in_features: usize) -> PackedScheme {
    let granularity = if grouped.group_size.get() == in_features {
        Granularity::Channel
    } else {
        Granularity::Group { size: grouped.group_size }
    };
    PackedScheme { granularity, ..(*grouped).into() }
}

impl Layout {
    /// Exact bytes of the output, all but its record and its card.
    pub(crate) fn total_bytes(&self) -> u64 {
        match self {
            Self::Gguf { .. } => self.gguf_files("").iter().map(|(_, bytes)| bytes).sum(),
            Self::Folder { specs, shard_bytes, files, .. } => {
                let files: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
                bitmill_checkpoint::folder_bytes(specs, *shard_bytes) + files
            }
        }
    }

    /// The files of a GGUF output for a target of this name, with their sizes; a folder has none.
    pub(crate) fn gguf_files(&self, target: &str) -> Vec<(String, u64)> {
        match self {
            Self::Gguf { metadata, specs, split_bytes, .. } => {
                bitmill_checkpoint::gguf_files(target, metadata, specs, *split_bytes)
            }
            Self::Folder { .. } => Vec::new(),
        }
    }

    /// Begins the output, or goes on with that of an interrupted run; `beside` are the names of what lies beside a file.
    pub(crate) fn resume(
        &self,
        target: &Target,
        beside: Vec<String>,
        identity: Identity,
    ) -> Result<Output<'_>, Error> {
        Ok(match self {
            Self::Gguf { metadata, specs, places, rope_factors, split_bytes } => {
                let options = GgufOptions { split_bytes: *split_bytes, beside };
                let writer = GgufWriter::resume(target, metadata, specs, options, identity)?;
                if let Some(factors) = rope_factors {
                    let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
                    writer.write_at(specs.len() - 1, 0, &bytes)?;
                }
                Output::Gguf(writer, places)
            }
            Self::Folder { specs, shard_bytes, parts, files, packing } => {
                let writer = FolderWriter::resume(target, specs, *shard_bytes, identity)?;
                for (name, bytes) in files {
                    writer.add_file(name, bytes)?;
                }
                Output::Folder(writer, parts, *packing)
            }
        })
    }
}

/// The files beside weights and config that make up a checkpoint; an earlier run's record is none of them, nor what declares
/// how its weights are packed.
pub(crate) fn carried_files(checkpoint: &Checkpoint) -> impl Iterator<Item = (String, Region)> {
    checkpoint
        .other_files()
        .into_iter()
        .filter(|(name, _)| ![RECORD, CARD, QUANTIZE_CONFIG].contains(&name.as_str()))
}

/// An output under way.
pub(crate) enum Output<'a> {
    Gguf(GgufWriter, &'a [Place]),
    Folder(FolderWriter, &'a [Vec<usize>], Option<ColumnPacking>),
}

impl Output<'_> {
    /// How codes in groups lie, if not as a stream row by row.
    pub(crate) fn packing(&self) -> Option<ColumnPacking> {
        match self {
            Self::Gguf(..) => None,
            Self::Folder(_, _, packing) => *packing,
        }
    }

    /// Writes `bytes` at `offset` into part `part` of planned tensor `tensor`. 0: weights, codes or kept values; 1: scales or
    /// bits; 2: shape, or by column zero points, or what scales are divided by, or the list that codes are
    /// places in; 3: zero points or row offsets, or by column groups of columns, or what bitsandbytes says of a matrix; 4 and 5:
    /// what scales that are codes are read with.
    pub(crate) fn write_at(
        &self,
        tensor: usize,
        part: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Error> {
        match self {
            Self::Gguf(writer, places) => {
                let place = places[tensor];
                writer.write_at(place.spec, place.offset + offset, bytes)?;
            }
            Self::Folder(writer, parts, _) => writer.write_at(parts[tensor][part], offset, bytes)?,
        }
        Ok(())
    }

    /// Writes a planned tensor's scales for runtimes, one element each: its last parts in a folder.
    pub(crate) fn write_scales(&self, tensor: usize, scales: &[Vec<u8>]) -> Result<(), Error> {
        let Self::Folder(_, parts, _) = self else { return Ok(()) };
        let first = parts[tensor].len() - scales.len();
        scales.iter().enumerate().try_for_each(|(at, bytes)| self.write_at(tensor, first + at, 0, bytes))
    }

    /// What was recorded of the tensors that an interrupted run had finished.
    pub(crate) fn finished(&self) -> &[Value] {
        match self {
            Self::Gguf(writer, _) => writer.finished(),
            Self::Folder(writer, ..) => writer.finished(),
        }
    }

    /// Counts planned tensor `tensor`, of `bytes` in a file, as written by that run.
    pub(crate) fn count_written(&self, tensor: usize, bytes: u64) {
        match self {
            Self::Gguf(writer, places) => writer.count_written(places[tensor].spec, bytes),
            Self::Folder(writer, parts, _) => {
                parts[tensor].iter().for_each(|&part| writer.count_written(part))
            }
        }
    }

    /// Has what was written on disk and notes these records of finished tensors.
    pub(crate) fn note(&self, records: &[Value]) -> Result<(), Error> {
        match self {
            Self::Gguf(writer, _) => writer.note(records)?,
            Self::Folder(writer, ..) => writer.note(records)?,
        }
        Ok(())
    }

    /// Lets the system forget what it holds of the output in memory.
    pub(crate) fn forget(&self) {
        match self {
            Self::Gguf(writer, _) => writer.forget(),
            Self::Folder(writer, ..) => writer.forget(),
        }
    }

    /// Whether what is written stays if this is dropped unfinished.
    pub(crate) fn keep(&self, keep: bool) {
        match self {
            Self::Gguf(writer, _) => writer.keep(keep),
            Self::Folder(writer, ..) => writer.keep(keep),
        }
    }

    /// Adds what goes with the output: `beside` is its name beside a file, `within` in a folder.
    pub(crate) fn add_beside(&self, beside: &str, within: &str, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Self::Gguf(writer, _) => writer.add_file(beside, bytes)?,
            Self::Folder(writer, ..) => writer.add_file(within, bytes)?,
        }
        Ok(())
    }

    /// Where the bytes lie until [`Output::finish`].
    pub(crate) fn staged(&self) -> std::path::PathBuf {
        match self {
            Self::Gguf(writer, _) => writer.staged(),
            Self::Folder(writer, ..) => writer.staged(),
        }
    }

    /// The folder that goes with an unfinished output, and is gone with it.
    pub(crate) fn partial(&self) -> std::path::PathBuf {
        match self {
            Self::Gguf(writer, _) => writer.partial(),
            Self::Folder(writer, ..) => writer.partial(),
        }
    }

    /// Puts the output in its place.
    pub(crate) fn finish(self) -> Result<Written, Error> {
        Ok(match self {
            Self::Gguf(writer, _) => writer.finish()?,
            Self::Folder(writer, ..) => writer.finish()?,
        })
    }
}
