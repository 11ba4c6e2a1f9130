//! What will happen to each tensor, with sizes and reasons: made from a recipe and a checkpoint's headers.

use std::collections::BTreeMap;

use bitmill_checkpoint::{Activations, Checkpoint, ModelConfig, Role, RoleKind, TensorInfo};
use bitmill_quant::{BlockSearch, Clip, Compensation, MixTensor, RtnGrid, can_compensate, choose};
use bitmill_tensor::{Encoding, Extent, FloatType, WeightData};
use serde::Serialize;

use crate::balancing::Balance;
use crate::calibrated::{Fallback, Fallbacks, Material, OutlierRecord};
use crate::calibration::{CalibrationOptions, Outliers};
use crate::depth::{Cut, Depth};
use crate::error::Error;
use crate::importance::{Weighed, refuse_unweighed};
use crate::layout::{self, Layout};
use crate::learned::LearnedStep;
use crate::method::{Compensated, Gptq, Method};
use crate::padding::{self, PadWidth};
use crate::pattern::Pattern;
use crate::pruning::{Removal, Storage};
use crate::recipe::{Format, Recipe, SearchName, Step};
use crate::turning::Turn;
use crate::{packings, ranks};

/// Choices of a run that are no part of the recipe.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// Accept a source whose weights are codes already.
    pub allow_requantize: bool,
    /// Bytes of a safetensors shard at most, 5 GB unless told.
    pub shard_bytes: u64,
    /// Bytes of tensors in a GGUF file at most; a larger model is split into several, as llama-gguf-split does.
    pub split_bytes: Option<u64>,
    /// Whether it is an error where a method falls back to another for want of statistics.
    pub strict: bool,
    /// What the run may take in memory, by what is predicted.
    pub max_memory: Option<u64>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            allow_requantize: false,
            shard_bytes: 5_000_000_000,
            split_bytes: None,
            strict: false,
            max_memory: None,
        }
    }
}

/// What will happen to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// Canonical (Hugging Face) name.
    pub name: String,
    /// The same tensor's name in the source: another where layers before it are removed.
    pub source: String,
    /// What it is in the output.
    pub role: Role,
    /// `[out_features, in_features]`, or `[len]`.
    pub shape: Vec<usize>,
    /// Its shape in the source: another where zeros make it larger, at the end of either side.
    pub source_shape: Vec<usize>,
    /// Before.
    pub from: Encoding,
    /// After.
    pub to: Encoding,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after, alignment not counted.
    pub bytes_after: u64,
    /// Which weights become zero before anything else happens to them.
    pub removal: Option<Removal>,
    /// How the bytes after come from the bytes before.
    pub treatment: Treatment,
    /// How the ranges of groups are chosen; of no matter to other encodings.
    pub clip: Clip,
    /// How scales and codes of blocks are chosen.
    pub search: BlockSearch,
    /// Whether, and how, what the tensor multiplies decides.
    pub method: Method,
    /// What small numbers are multiplied with; of no matter to other encodings.
    pub activations: Activations,
    /// Whether a step gives it other values beforehand, with which the model computes the same.
    pub reshaped: bool,
    /// Why it is stored otherwise than its step says, if it has outliers.
    pub outliers: Option<OutlierRecord>,
    /// Why this encoding, where the recipe alone does not say: a fallback, a `skip`.
    pub reason: String,
}

/// How a tensor's new bytes come from its old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// Values are widened and rounded to the new encoding; without loss where it holds them all.
    Rounded,
    /// Codes are taken over as they are.
    Copied,
}

impl PlannedTensor {
    /// Weights of the tensor.
    pub fn weights(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    /// Whether runtimes round what it multiplies by a scale that is stored.
    pub(crate) fn has_input_scale(&self) -> bool {
        self.activations == Activations::Static && matches!(self.to, Encoding::Scaled(_))
    }

    /// Whether what it multiplies in a run over calibration tokens counts for how it is stored, scales of features aside.
    pub(crate) fn is_looked_at(&self) -> bool {
        self.method.is_calibrated() || self.has_input_scale()
    }

    /// Weights that it has in the source.
    pub(crate) fn source_weights(&self) -> u64 {
        self.source_shape.iter().map(|&n| n as u64).product()
    }

    /// Columns: what groups and blocks are counted along.
    pub fn in_features(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows; 1 for a vector.
    pub fn out_features(&self) -> usize {
        if self.shape.len() == 2 { self.shape[0] } else { 1 }
    }

    /// Whether one scale spans all columns.
    pub(crate) fn has_row_scales(&self) -> bool {
        match self.to {
            Encoding::Grouped(grouped) => grouped.group_size.get() == self.in_features(),
            Encoding::Scaled(layout) => matches!(layout.extent, Extent::Row | Extent::Matrix),
            _ => false,
        }
    }

    /// Whether it is larger than in the source.
    pub fn is_padded(&self) -> bool {
        self.shape != self.source_shape
    }

    /// Whether codes are rounded to other codes: a loss on top of the source's own.
    fn is_quantized_again(&self) -> bool {
        self.from.is_quantized() && self.to.is_quantized() && self.treatment == Treatment::Rounded
    }

    /// Whether nothing happens to it.
    fn is_kept(&self) -> bool {
        self.from == self.to
            && self.removal.is_none()
            && !self.is_padded()
            && !self.reshaped
            && !self.is_quantized_again()
    }

    /// Weights that become zero, by number; exact.
    pub fn zeros(&self) -> u64 {
        let (rows, cols) = rows_and_columns(&self.source_shape);
        // The plan was made with it, so it fits.
        let kept = self.removal.and_then(|removal| removal.kept(rows, cols).ok());
        kept.map_or(0, |kept| (rows * cols - kept) as u64)
    }

    /// What it is stored as and how much of it is zero: `bf16, 50 % zeros`.
    fn what(&self) -> String {
        let stored = if self.is_kept() { format!("kept {}", self.to) } else { self.to.to_string() };
        match self.removal {
            None => stored,
            Some(_) => {
                let hundredths = self.zeros() as f64 * 10_000.0 / self.source_weights().max(1) as f64;
                format!("{stored}, {} % zeros", hundredths.round() / 100.0)
            }
        }
    }
}

/// The whole of a run before it happens.
#[derive(Debug)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// What was asked for.
    pub recipe: Recipe,
    /// Every tensor of the output, in the order in which it is written.
    pub tensors: Vec<PlannedTensor>,
    /// Bytes of the source, every file counted.
    pub source_bytes: u64,
    /// Bytes of the output, every file counted but its record and its card; exact.
    pub output_bytes: u64,
    /// Layers that go.
    pub depth: Option<Depth>,
    /// Weights of the source: what size is counted against, layers and weights that go included.
    pub weights: u64,
    /// `output_bytes · 8 / weights`.
    pub bits_per_weight: f64,
    /// Most memory that the run takes, about.
    pub peak_bytes: u64,
    /// What weighs the errors of blocks.
    pub(crate) weighed: Option<Weighed>,
    /// How the residual stream is turned.
    pub(crate) turn: Option<Turn>,
    /// What the model runs over, where a method looks at what tensors multiply.
    pub(crate) material: Option<Material>,
    /// Whether falling back is an error.
    pub(crate) strict: bool,
    /// What the output says to bitmill alone, or cannot say, in sentences for people.
    pub notes: Vec<String>,
    pub(crate) layout: Layout,
}

impl Plan {
    /// Decides for each tensor of `checkpoint` what `recipe` makes of it. Reads headers, of a GGUF file its vectors, and no
    /// other weights, unless layers of least influence go, or a calibrated recipe asks for one scale a row and outliers are to
    /// be found: then the model runs over calibration tokens.
    ///
    /// # Errors
    /// If the source is quantized already, a pattern matches nothing, a group size does not divide a row, or members
    /// that runtimes fuse would differ; [`Error::Outliers`] where tensors fall back and that is not allowed.
    pub fn new(checkpoint: &Checkpoint, recipe: &Recipe, options: &PlanOptions) -> Result<Self, Error> {
        Self::reading(checkpoint, recipe, options, None)
    }

    /// Decides what each of `recipes` makes of the tensors of `checkpoint`, for [`compress_all`](crate::compress_all): what is to be
    /// calibrated on is read once.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::UnlikeCalibration`] if calibrated recipes ask for other tokens, or for other treatment of
    /// them; [`Error::TooMuchMemory`] for all together.
    pub fn several(
        checkpoint: &Checkpoint,
        recipes: &[Recipe],
        options: &PlanOptions,
    ) -> Result<Vec<Self>, Error> {
        refuse_unlike_calibration(recipes)?;
        let mut plans: Vec<Self> = Vec::with_capacity(recipes.len());
        for recipe in recipes {
            let read = plans.iter().find_map(|plan| plan.material.clone());
            plans.push(Self::reading(checkpoint, recipe, options, read)?);
        }
        let needed = Self::joint_peak_bytes(checkpoint, &plans);
        if let Some(allowed) = options.max_memory.filter(|&allowed| needed > allowed) {
            let calibrates = plans.iter().any(|plan| plan.material.is_some());
            return Err(Error::TooMuchMemory { needed, allowed, calibrates });
        }
        Ok(plans)
    }

    /// Most memory that [`compress_all`](crate::compress_all) takes, about: that of the largest run, what the others hold of a layer,
    /// and what they share.
    pub fn joint_peak_bytes(checkpoint: &Checkpoint, plans: &[Self]) -> u64 {
        let largest = plans.iter().map(|plan| plan.peak_bytes).max().unwrap_or(0);
        let calibrated: Vec<&Self> = plans.iter().filter(|plan| plan.material.is_some()).collect();
        let beside = match calibrated.len() {
            0 | 1 => 0,
            _ => crate::calibrated::shared_peak_bytes(checkpoint.config(), &calibrated),
        };
        largest + beside
    }

    fn reading(
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        options: &PlanOptions,
        read: Option<Material>,
    ) -> Result<Self, Error> {
        let mut plan = Self::decided(checkpoint, recipe, options, &Fallbacks::new(), read)?;
        let calibration = recipe.calibration.as_ref().map(|options| options.outliers).unwrap_or_default();
        if calibration == Outliers::Report || !plan.tensors.iter().any(PlannedTensor::has_row_scales) {
            return Ok(plan);
        }
        // Few tokens are looked at: an expert that meets none of them is no fallback.
        plan.strict = false;
        let fallbacks = crate::calibrated::find_outliers(checkpoint, &plan)?;
        plan.strict = options.strict;
        if fallbacks.is_empty() {
            return Ok(plan);
        }
        let plan = Self::decided(checkpoint, recipe, options, &fallbacks, plan.material.take())?;
        let mut fallen = plan.tensors.iter().filter(|planned| planned.outliers.is_some());
        match fallen.next() {
            Some(first) if options.strict => Err(Error::Outliers {
                tensor: first.name.clone(),
                others: fallen.count(),
                to: first.to.to_string(),
                reason: first.reason.clone(),
            }),
            _ => Ok(plan),
        }
    }

    /// The plan with some tensors stored otherwise; `read` is what was read to calibrate on, if it was.
    fn decided(
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        options: &PlanOptions,
        fallbacks: &Fallbacks,
        read: Option<Material>,
    ) -> Result<Self, Error> {
        if recipe.is_search() {
            return Err(Error::NotSearched { recipe: recipe.name.clone() });
        }
        let turn = recipe.rotation().map(|step| Turn::new(&checkpoint.name(), checkpoint.config(), step));
        let turn = turn.transpose()?;
        let untied = if turn.is_some() { untied_head(checkpoint)? } else { None };
        let mut sources: Vec<&TensorInfo> =
            checkpoint.tensors().iter().filter(|info| is_written(checkpoint, info)).chain(&untied).collect();
        sources.sort_by_key(|info| reading_order(&info.role));
        let weights = crate::own_weights(checkpoint);
        let depth = recipe.steps.iter().find_map(|step| match step {
            Step::Depth(step) => Some(Depth::resolve(checkpoint, &recipe.name, step)),
            _ => None,
        });
        let depth = depth.transpose()?;
        let mut cut = Cut::new(checkpoint.config(), depth.as_ref());
        cut.config.tied &= untied.is_none();
        sources.retain(|info| cut.role(info.role).is_some());
        let steps = resolve_steps(checkpoint, recipe, &sources)?;
        let planned = |padding: Option<PadWidth>| -> Result<Vec<PlannedTensor>, Error> {
            let placed = sources.iter().filter_map(|info| Some((info, cut.role(info.role)?)));
            placed
                .map(|(info, role)| {
                    plan_tensor(checkpoint, recipe, &cut, &steps, padding, fallbacks, info, role)
                })
                .collect()
        };
        let Padded { tensors, width, note } = Padded::new(recipe, &cut.config, planned)?;
        if let Some(width) = width {
            padding::widen(&mut cut.config, width);
        }
        if let Some(ranks) = recipe.tensor_parallel {
            ranks::check(&tensors, &cut.config, recipe.format, usize::from(ranks.get()))?;
        }
        if let Some(twice) = tensors.iter().find(|tensor| tensor.is_quantized_again())
            && !options.allow_requantize
        {
            return Err(Error::AlreadyQuantized {
                model: checkpoint.name(),
                tensor: twice.name.clone(),
                encoding: twice.from.to_string(),
            });
        }
        if recipe.format.packs_modules() {
            // Its config would list no scheme, and its readers then find nothing that they know.
            let sparse = tensors.iter().find(|tensor| matches!(tensor.to, Encoding::Sparse { .. }));
            let quantized = tensors.iter().find(|tensor| tensor.to.is_quantized());
            if let (Some(sparse), Some(quantized)) = (sparse, quantized) {
                return Err(Error::SparseBesideCodes {
                    recipe: recipe.name.clone(),
                    sparse: sparse.name.clone(),
                    quantized: quantized.name.clone(),
                    encoding: quantized.to.to_string(),
                });
            }
            if sparse.or(quantized).is_none() {
                let lost =
                    tensors.iter().find(|tensor| tensor.from.is_quantized() && !tensor.reason.is_empty());
                let because = |tensor: &PlannedTensor| format!("; `{}`: {}", tensor.name, tensor.reason);
                return Err(Error::NothingToDo {
                    because: lost.map(because).unwrap_or_default(),
                    format: recipe.format.name(),
                    recipe: recipe.name.clone(),
                    model: checkpoint.name(),
                });
            }
            refuse_split_fusion(&tensors)?;
        }
        refuse_unlike_methods(&tensors)?;
        refuse_half_learned(&tensors)?;
        let weighed = recipe.imatrix.as_deref().map(Weighed::open).transpose()?;
        refuse_unweighed(checkpoint, recipe, weighed.as_ref(), &tensors)?;
        let mut notes = match recipe.format {
            Format::Gguf => bitmill_checkpoint::check_gguf(&checkpoint.name(), &cut.config)?,
            _ => bitmill_checkpoint::folder_notes(&cut.config),
        };
        if let (true, [first, ..]) = (recipe.format != Format::Gguf, checkpoint.left_behind()) {
            let count = checkpoint.left_behind().len();
            notes.push(format!(
                "{count} folders and links to elsewhere beside the model, such as {first}, are not carried over: copy what it needs of them"
            ));
        }
        notes.extend(note);
        notes.extend(turn.as_ref().map(|turn| turn.note(untied.is_some())));
        notes.extend(recipe.balance().map(Balance::note));
        if let Some(weighed) = &weighed {
            notes.extend(weighed.check(checkpoint, &tensors)?);
        }
        let looks = recipe.balance().is_some() || tensors.iter().any(PlannedTensor::is_looked_at);
        let fallen = tensors.iter().filter(|tensor| tensor.outliers.is_some()).count();
        if fallen > 0 {
            notes.push(format!(
                "outliers: {fallen} tensors do not bear one scale a row and are stored otherwise; `outliers = \"report\"` in [calibration] leaves them"
            ));
        }
        notes.extend(runtime_notes(checkpoint, recipe));
        let material = match looks {
            true => {
                let options = recipe.calibration.clone().unwrap_or_default();
                Some(read.map_or_else(|| Material::read(checkpoint, &options), Ok)?)
            }
            false => None,
        };
        let provenance = weighed.as_ref().map(Weighed::metadata).unwrap_or_default();
        let layout = layout::layout(checkpoint, recipe, &cut, &tensors, provenance, options)?;
        let output_bytes = layout.total_bytes();
        let measuring = depth.as_ref().map_or(0, |depth| depth.peak_bytes(checkpoint.config()));
        let reshapes = recipe.steps.iter().any(Step::reshapes);
        let running = material.as_ref().map_or(0, |material| {
            crate::calibrated::peak_bytes(material, checkpoint.config(), &tensors, reshapes, output_bytes)
        });
        let alone = crate::compress::peak_bytes(&tensors, recipe.format, turn.as_ref());
        let peak_bytes = alone.max(measuring).max(running);
        if let Some(allowed) = options.max_memory.filter(|&allowed| peak_bytes > allowed) {
            return Err(Error::TooMuchMemory { needed: peak_bytes, allowed, calibrates: material.is_some() });
        }
        Ok(Self {
            model: checkpoint.name(),
            recipe: recipe.clone(),
            source_bytes: crate::size_on_disk(checkpoint),
            output_bytes,
            weights,
            bits_per_weight: output_bytes as f64 * 8.0 / weights.max(1) as f64,
            peak_bytes,
            tensors,
            depth,
            weighed,
            turn,
            material,
            strict: options.strict,
            notes,
            layout,
        })
    }

    /// The plan as a JSON document, `bitmill.plan/1`.
    pub fn to_json(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct Line<'a> {
            name: &'a str,
            shape: &'a [usize],
            from: String,
            to: String,
            bytes_before: u64,
            bytes_after: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            source_shape: Option<&'a [usize]>,
            #[serde(skip_serializing_if = "Option::is_none")]
            zeros: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            outliers: Option<&'a OutlierRecord>,
            #[serde(skip_serializing_if = "str::is_empty")]
            reason: &'a str,
        }
        let tensors: Vec<Line<'_>> = self
            .tensors
            .iter()
            .map(|t| Line {
                name: &t.name,
                shape: &t.shape,
                from: t.from.to_string(),
                to: t.to.to_string(),
                bytes_before: t.bytes_before,
                bytes_after: t.bytes_after,
                source_shape: t.is_padded().then_some(&t.source_shape),
                zeros: t.removal.map(|_| t.zeros()),
                outliers: t.outliers.as_ref(),
                reason: &t.reason,
            })
            .collect();
        let mut document = serde_json::json!({
            "schema": "bitmill.plan/1",
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "strategy": self.recipe.name,
            "format": self.recipe.format.name(),
            "recipe": self.recipe.to_toml(),
            "source_bytes": self.source_bytes,
            "bytes": self.output_bytes,
            "ratio": self.source_bytes as f64 / self.output_bytes.max(1) as f64,
            "weights": self.weights,
            "bits_per_weight": self.bits_per_weight,
            "peak_bytes": self.peak_bytes,
            "notes": self.notes,
            "tensors": tensors,
        });
        if let Some(weighed) = &self.weighed {
            document["imatrix"] = weighed.to_json();
        }
        if let Some(material) = &self.material {
            document["calibration"] = material.to_json();
        }
        if let Some(depth) = &self.depth {
            // Numbers and strings always have a JSON form.
            document["depth"] = serde_json::to_value(depth).unwrap_or_default();
        }
        document
    }

    /// The plan as a table for people: a line for each kind of tensor and encoding, layers folded together.
    pub fn to_text(&self) -> String {
        use std::fmt::Write as _;

        let mut folded: Vec<(String, &PlannedTensor, usize, u64, u64)> = Vec::new();
        for tensor in &self.tensors {
            let mut name = tensor.name.clone();
            if let Some(layer) = tensor.role.layer {
                name = name.replacen(&format!(".layers.{layer}."), ".layers.*.", 1);
            }
            if let Some(expert) = tensor.role.expert {
                name = name.replacen(&format!(".experts.{expert}."), ".experts.*.", 1);
            }
            let alike = |first: &PlannedTensor| (first.to, first.removal) == (tensor.to, tensor.removal);
            match folded.iter_mut().find(|(seen, first, ..)| *seen == name && alike(first)) {
                Some((_, _, count, before, after)) => {
                    *count += 1;
                    *before += tensor.bytes_before;
                    *after += tensor.bytes_after;
                }
                None => folded.push((name, tensor, 1, tensor.bytes_before, tensor.bytes_after)),
            }
        }
        let by = |shape: &[usize]| shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        let width = folded.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, tensor, count, before, after) in &folded {
            let what = tensor.what();
            let shape = by(&tensor.shape);
            // A String takes every write.
            let _ = write!(
                text,
                "{name:width$}  {count:>4} of {shape:<15}  {what:<22}  {:>10} -> {:>10}",
                bitmill_report::size(*before),
                bitmill_report::size(*after),
            );
            if tensor.is_padded() {
                let _ = write!(text, "  padded from {}", by(&tensor.source_shape));
            }
            if !tensor.reason.is_empty() {
                let _ = write!(text, "  {}", tensor.reason);
            }
            text.push('\n');
        }
        if let Some(depth) = &self.depth {
            text.push('\n');
            text.push_str(&depth.to_text());
        }
        let quantized = self.tensors.iter().filter(|tensor| tensor.to.is_quantized()).count();
        let _ = writeln!(
            text,
            "\n{}: {} of {} tensors quantized, {} -> {}, {:.2} bits/weight, peak memory about {}",
            self.recipe.name,
            quantized,
            self.tensors.len(),
            bitmill_report::size(self.source_bytes),
            bitmill_report::size(self.output_bytes),
            self.bits_per_weight,
            bitmill_report::size(self.peak_bytes),
        );
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

/// Recipes that share a pass have the same tokens, kept and batched in the same way.
fn refuse_unlike_calibration(recipes: &[Recipe]) -> Result<(), Error> {
    let mut calibrated = recipes.iter().filter(|recipe| recipe.calibrates());
    let Some(first) = calibrated.next() else { return Ok(()) };
    let tokens = |recipe: &Recipe| {
        let CalibrationOptions { source, samples, length, seed, fit, held_out, states, memory, .. } =
            recipe.calibration.clone().unwrap_or_default();
        [
            ("source", format!("{source:?}")),
            ("samples", samples.to_string()),
            ("length", length.to_string()),
            ("seed", seed.to_string()),
            ("fit", format!("{fit:?}")),
            ("held_out", held_out.to_string()),
            ("states", format!("{:?}", states.0)),
            ("memory", memory.0.to_string()),
        ]
    };
    for other in calibrated {
        let unlike = tokens(first).into_iter().zip(tokens(other)).find(|(a, b)| a != b);
        if let Some(((key, _), _)) = unlike {
            let (recipe, other) = (first.name.clone(), other.name.clone());
            return Err(Error::UnlikeCalibration { recipe, other, key });
        }
    }
    Ok(())
}

/// What becomes of scales for what runtimes round as they go: inputs of matrices, and a cache of keys and values in 8 bits.
fn runtime_notes(checkpoint: &Checkpoint, recipe: &Recipe) -> Vec<String> {
    let mut notes = Vec::new();
    let inputs = checkpoint.input_scales().len();
    if inputs > 0 {
        notes.push(format!(
            "the source's {inputs} scales of activations (input_scale) are left out: they are of the model as it was; `activations = \"static\"` in a step of kind `scaled` finds new ones"
        ));
    }
    let there = checkpoint.cache_scales().len();
    if there > 0 {
        let instead = match recipe.kv_cache {
            Some(_) => "new ones are found",
            None => {
                "they are of the model as it was; `[kv_cache]` in a calibrated compressed-tensors recipe finds new ones"
            }
        };
        notes.push(format!(
            "the source's {there} scales of an 8-bit cache (k_scale, v_scale) are left out: {instead}"
        ));
    }
    if recipe.kv_cache.is_some() {
        notes.push(
            "kv cache: vLLM and SGLang may keep keys and values in fp8 by the scales stored (--kv-cache-dtype fp8); bitmill's own figures are with a cache in f32"
                .to_owned(),
        );
    }
    notes
}

/// The tensors of a plan, their feed-forward blocks widened or not.
struct Padded {
    tensors: Vec<PlannedTensor>,
    width: Option<PadWidth>,
    /// What that did, in a sentence.
    note: Option<String>,
}

impl Padded {
    /// By the step that asks for it, or, where blocks of 256 would be had but for the width, unasked; `planned` plans all
    /// tensors with a padding or without.
    fn new(
        recipe: &Recipe,
        config: &ModelConfig,
        planned: impl Fn(Option<PadWidth>) -> Result<Vec<PlannedTensor>, Error>,
    ) -> Result<Self, Error> {
        if let Some(width) = recipe.padding() {
            let tensors = planned(Some(width))?;
            let note = padding::note(&tensors, None);
            return Ok(Self { tensors, width: Some(width), note });
        }
        let unpadded = planned(None);
        if let Some(ranks) = recipe.tensor_parallel {
            let ranks = usize::from(ranks.get());
            let is_whole =
                |tensors: &Vec<_>| !ranks::would_padding_help(tensors, config, recipe.format, ranks);
            let Some(width) =
                ranks::pad_width(recipe, ranks).filter(|_| !unpadded.as_ref().is_ok_and(is_whole))
            else {
                return Ok(Self { tensors: unpadded?, width: None, note: None });
            };
            let tensors = planned(Some(width))?;
            let note = padding::note(&tensors, None)
                .map(|note| format!("{note}; each of {ranks} ranks then has whole groups"));
            return Ok(Self { tensors, width: Some(width), note });
        }
        if !recipe.pad.is_auto() || !recipe.makes_blocks() {
            return Ok(Self { tensors: unpadded?, width: None, note: None });
        }
        let width = PadWidth::SUPER_BLOCK;
        match planned(Some(width)) {
            Ok(tensors) if tensors.iter().any(padding::is_won) => {
                let note = padding::note(&tensors, unpadded.as_deref().ok());
                Ok(Self { tensors, width: Some(width), note })
            }
            // What keeps it from being planned has nothing to do with widths.
            _ => Ok(Self { tensors: unpadded?, width: None, note: None }),
        }
    }
}

/// The head of a tied model as a tensor of its own; `None` where it is one.
fn untied_head(checkpoint: &Checkpoint) -> Result<Option<TensorInfo>, Error> {
    if !checkpoint.config().tied {
        return Ok(None);
    }
    let name = |kind| Role::outside(kind).canonical_name().unwrap_or_default();
    let embedding = checkpoint.tensor(&name(RoleKind::TokenEmbedding))?.info;
    let role = Role::outside(RoleKind::Output);
    Ok(Some(TensorInfo { name: name(role.kind), role, ..embedding }))
}

/// A tied model may still store its head; it is the embedding again, and no runtime reads it.
pub(crate) fn is_written(checkpoint: &Checkpoint, info: &TensorInfo) -> bool {
    !(checkpoint.config().tied && info.role.kind == RoleKind::Output)
}

/// Embedding, layers in their order, then what follows them.
pub(crate) fn reading_order(role: &Role) -> (u8, usize) {
    match (role.layer, role.kind) {
        (_, RoleKind::TokenEmbedding) => (0, 0),
        (Some(layer), _) => (1, layer),
        (None, _) => (2, 0),
    }
}

/// A step and what it claims.
struct Resolved<'a> {
    step: &'a Step,
    /// `None`: every matrix of the decoder layers, or (a mix) everything.
    targets: Option<Vec<Pattern>>,
    skip: Vec<Pattern>,
}

impl Resolved<'_> {
    fn claims(&self, info: &TensorInfo) -> bool {
        let targeted = match (&self.targets, self.step) {
            (_, Step::Mix { .. } | Step::Search { .. }) => true,
            (None, _) => info.role.layer.is_some() && info.role.kind.is_matrix(),
            (Some(patterns), _) => patterns.iter().any(|pattern| pattern.matches(&info.name)),
        };
        targeted && !self.skips(info)
    }

    fn skips(&self, info: &TensorInfo) -> bool {
        self.skip.iter().any(|pattern| pattern.matches(&info.name))
    }
}

/// Compiles the patterns and refuses those that would do nothing.
fn resolve_steps<'a>(
    checkpoint: &Checkpoint,
    recipe: &'a Recipe,
    sources: &[&TensorInfo],
) -> Result<Vec<Resolved<'a>>, Error> {
    let compile = |texts: &[String], for_step: Option<&Step>| -> Result<Vec<Pattern>, Error> {
        texts.iter().map(|text| live_pattern(checkpoint, recipe, sources, text, for_step)).collect()
    };
    recipe
        .steps
        .iter()
        .map(|step| {
            let targets = step.targets().map(|texts| compile(texts, Some(step))).transpose()?;
            Ok(Resolved { step, targets, skip: compile(step.skip(), None)? })
        })
        .collect()
}

fn live_pattern(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    sources: &[&TensorInfo],
    text: &str,
    for_step: Option<&Step>,
) -> Result<Pattern, Error> {
    let pattern = Pattern::new(text);
    let matched: Vec<_> = sources.iter().filter(|info| pattern.matches(&info.name)).collect();
    let Some(first) = matched.first() else {
        return Err(Error::PatternMatchesNothing {
            recipe: recipe.name.clone(),
            pattern: text.into(),
            model: checkpoint.name(),
        });
    };
    if let Some(step) = for_step
        && !matched.iter().any(|info| can_change(recipe.format, step, info))
    {
        return Err(Error::PatternMatchesNoMatrix {
            recipe: recipe.name.clone(),
            pattern: pattern.text().into(),
            tensor: first.name.clone(),
            format: recipe.format.name(),
        });
    }
    Ok(pattern)
}

/// Whether `format` lets a step decide how a tensor is stored. Codes are for matrices, in folders for
/// `Linear` modules, of which the embedding is none; floats are for whatever the format does not fix.
fn can_change(format: Format, step: &Step, info: &TensorInfo) -> bool {
    match step {
        Step::Float { .. } | Step::Keep { .. } => !is_fixed(format, info),
        // Every tensor that stays is stored by another step, or kept.
        Step::Depth(_)
        | Step::Pad { .. }
        | Step::Rotate(_)
        | Step::Awq(_)
        | Step::Smooth(_)
        | Step::Search { .. } => false,
        Step::Magnitude(step) if step.storage == Storage::Dense => info.role.kind.is_matrix(),
        Step::Magnitude(_)
        | Step::Mix { .. }
        | Step::Block { .. }
        | Step::Rtn { .. }
        | Step::Gptq { .. }
        | Step::Learned(_)
        | Step::Scaled { .. } => info.role.kind.is_matrix() && format.has_codes_of(info.role.kind),
    }
}

/// llama.cpp reads vectors (norms, biases) as f32 only, and its converter stores routers so.
fn is_fixed(format: Format, info: &TensorInfo) -> bool {
    format == Format::Gguf && (info.shape.len() < 2 || info.role.kind.is_router())
}

fn plan_tensor(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    cut: &Cut,
    steps: &[Resolved<'_>],
    padding: Option<PadWidth>,
    fallbacks: &Fallbacks,
    info: &TensorInfo,
    role: Role,
) -> Result<PlannedTensor, Error> {
    let shape = match padding {
        Some(width) => padding::padded(role, &info.shape, width),
        None => info.shape.clone(),
    };
    let (source_rows, source_cols) = rows_and_columns(&info.shape);
    let last_claim = |prunes: bool| {
        let may_decide = move |step: &&Resolved<'_>| {
            step.step.prunes() == prunes && can_change(recipe.format, step.step, info)
        };
        (steps.iter().rev().filter(may_decide).find(|step| step.claims(info)), may_decide)
    };
    let pruning = match last_claim(true).0.map(|claim| claim.step) {
        Some(Step::Magnitude(step)) => Some(step),
        _ => None,
    };
    let removal = pruning.map(|step| step.removal);
    let refused = |source| Error::Prune { tensor: info.name.clone(), source };
    let kept = removal.map(|removal| removal.kept(source_rows, source_cols).map_err(refused)).transpose()?;
    let (claim, may_decide) = last_claim(false);
    let name = role.canonical_name().unwrap_or_else(|| info.name.clone());
    let fallback = fallbacks.get(&name);
    let Decision { to, treatment, clip, activations, method, reason } = match claim {
        Some(claim) => {
            let decision = decide(checkpoint, recipe, cut, claim.step, info, &shape, role)?;
            match fallback {
                None => decision,
                Some(Fallback { to, record }) => {
                    let decision = match to {
                        Some(grouped) => Decision { to: Encoding::Grouped(*grouped), ..decision },
                        None => as_floats(checkpoint, recipe.format, info)?,
                    };
                    Decision { reason: record.reason(), ..decision }
                }
            }
        }
        None => {
            let skipped = steps.iter().filter(may_decide).any(|step| step.skips(info));
            let kept = as_floats(checkpoint, recipe.format, info)?;
            if skipped { Decision { reason: "matched `skip`".into(), ..kept } } else { kept }
        }
    };
    let to = match (pruning.map(|step| step.storage), kept, to) {
        (Some(Storage::Sparse), Some(values), Encoding::Float(float)) => Encoding::Sparse { float, values },
        (Some(Storage::Sparse), _, codes) => {
            return Err(Error::SparseBesideCodes {
                recipe: recipe.name.clone(),
                sparse: info.name.clone(),
                quantized: info.name.clone(),
                encoding: codes.to_string(),
            });
        }
        (_, _, to) => to,
    };
    // Copied codes know nothing of zeros.
    let treatment = if removal.is_some() || shape != info.shape { Treatment::Rounded } else { treatment };
    let (rows, cols) = rows_and_columns(&shape);
    // A head that is untied is made from the embedding.
    let is_untied = checkpoint.config().tied && role.kind == RoleKind::Output;
    let embedding = Role::outside(RoleKind::TokenEmbedding).canonical_name();
    let turned = recipe.rotation().is_some_and(|step| step.changes(role.kind));
    Ok(PlannedTensor {
        name,
        source: embedding.filter(|_| is_untied).unwrap_or_else(|| info.name.clone()),
        role,
        shape,
        source_shape: info.shape.clone(),
        from: info.encoding,
        to,
        bytes_before: info.stored_bytes,
        bytes_after: (to.matrix_bytes(rows, cols) + packings::bytes_beside(recipe, to, rows, cols)) as u64,
        removal,
        treatment,
        clip,
        search: recipe.search.into(),
        method,
        activations,
        reshaped: turned || recipe.balance().is_some_and(|balance| balance.changes(role.kind)),
        outliers: fallback.map(|fallback| fallback.record.clone()),
        reason,
    })
}

/// `[out_features, in_features]`; a vector is one row.
pub(crate) fn rows_and_columns(shape: &[usize]) -> (usize, usize) {
    match shape {
        [rows, cols] => (*rows, *cols),
        other => (1, other.iter().product()),
    }
}

/// What becomes of a tensor, and why where that is not plain.
struct Decision {
    to: Encoding,
    treatment: Treatment,
    clip: Clip,
    method: Method,
    activations: Activations,
    reason: String,
}

impl Decision {
    fn rounded(to: Encoding) -> Self {
        Self {
            to,
            treatment: Treatment::Rounded,
            clip: Clip::None,
            activations: Activations::Full,
            method: Method::Alone,
            reason: String::new(),
        }
    }

    /// Blocks, chosen as the recipe says.
    fn blocks(recipe: &Recipe, role: Role, to: Encoding) -> Self {
        let method = match to {
            Encoding::Block(_) if recipe.importance.is_some() && is_met(role) => Method::Weighed,
            // Of embedding, head and routers nothing is known.
            Encoding::Block(block) if recipe.search == SearchName::Compensated && is_met(role) => {
                match can_compensate(block) {
                    true => Method::Compensated(Compensated {
                        options: Compensation::default(),
                        asymmetry: recipe.asymmetry(),
                    }),
                    false => Method::Weighed,
                }
            }
            _ => Method::Alone,
        };
        Self { method, ..Self::rounded(to) }
    }
}

/// Whether a run through the layers shows what a matrix multiplies before it is needed.
fn is_met(role: Role) -> bool {
    role.layer.is_some() && role.kind.is_matrix() && !role.kind.is_router()
}

/// What a step makes of a tensor.
fn decide(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    cut: &Cut,
    step: &Step,
    info: &TensorInfo,
    shape: &[usize],
    role: Role,
) -> Result<Decision, Error> {
    let (out_features, in_features) = rows_and_columns(shape);
    let refused = |source| Error::Quantize { tensor: info.name.clone(), source };
    match step {
        Step::Mix { mix } => {
            let config = &cut.config;
            let gguf_name = role.gguf_name().unwrap_or_else(|| info.name.clone());
            let choice = choose(
                mix.0,
                &MixTensor {
                    gguf_name: &gguf_name,
                    layer: role.layer,
                    n_layers: config.n_layers,
                    in_features,
                    out_features,
                    n_dims: shape.len(),
                    n_heads: config.n_heads,
                    n_kv_heads: config.n_kv_heads,
                    n_experts: config.experts.as_ref().map_or(0, |experts| experts.count),
                    architecture: config.family.gguf_name(),
                    has_output: !config.tied,
                    has_importance: recipe.imatrix.is_some()
                        || recipe.importance.is_some()
                        || recipe.search == SearchName::Compensated,
                },
            );
            Ok(Decision { reason: choice.reason, ..Decision::blocks(recipe, role, choice.encoding) })
        }
        Step::Block { block, .. } => {
            let group_size = block.0.weights();
            if !in_features.is_multiple_of(group_size) {
                return Err(refused(bitmill_quant::Error::UnevenGroups { in_features, group_size }));
            }
            Ok(Decision::blocks(recipe, role, Encoding::Block(block.0)))
        }
        Step::Rtn { bits, granularity, zero_point, scale, clip, .. }
        | Step::Gptq { bits, granularity, zero_point, scale, clip, .. }
        | Step::Learned(LearnedStep { bits, granularity, zero_point, scale, clip, .. }) => {
            let scale = scale.map_or_else(|| scale_of(recipe, info), |name| name.0);
            let grid = RtnGrid {
                bits: bits.0,
                granularity: (*granularity).into(),
                zero_point: (*zero_point).into(),
                scale,
            };
            let layout = grid.layout(in_features).map_err(refused)?;
            let method = match step {
                Step::Gptq { damping, order, refine, .. } if is_met(role) => Method::Gptq(Gptq {
                    damping: damping.0,
                    order: *order,
                    asymmetry: recipe.asymmetry(),
                    refine: usize::from(*refine),
                }),
                Step::Learned(step) if is_met(role) => Method::Learned(step.learning(recipe.asymmetry())),
                _ => Method::Alone,
            };
            Ok(Decision { clip: (*clip).into(), method, ..Decision::rounded(Encoding::Grouped(layout)) })
        }
        Step::Scaled { number, activations, .. } => {
            let layout = number.layout(scale_dtype(info.encoding));
            bitmill_quant::layout_of(&layout, in_features).map_err(refused)?;
            Ok(Decision { activations: (*activations).into(), ..Decision::rounded(Encoding::Scaled(layout)) })
        }
        // A step that comes first stores nothing: it decides as none would.
        Step::Depth(_)
        | Step::Magnitude(_)
        | Step::Pad { .. }
        | Step::Rotate(_)
        | Step::Awq(_)
        | Step::Smooth(_) => as_floats(checkpoint, recipe.format, info),
        Step::Float { float, .. } => Ok(Decision::rounded(Encoding::Float(float.0))),
        Step::Keep { .. } => match info.encoding {
            Encoding::Block(_) if recipe.format == Format::Gguf && shape == info.shape => {
                Ok(Decision { treatment: Treatment::Copied, ..Decision::rounded(info.encoding) })
            }
            Encoding::Grouped(grouped) if recipe.format.packs_modules() && shape == info.shape => {
                match packings::copy_problem(checkpoint, recipe.format, info, &grouped)? {
                    None => Ok(Decision { treatment: Treatment::Copied, ..Decision::rounded(info.encoding) }),
                    Some(problem) => {
                        let floats = as_floats(checkpoint, recipe.format, info)?;
                        Ok(Decision { reason: format!("{}: {problem}", floats.reason), ..floats })
                    }
                }
            }
            _ => as_floats(checkpoint, recipe.format, info),
        },
        Step::Search { .. } => as_floats(checkpoint, recipe.format, info),
    }
}

/// The dtype of scales where none is asked for.
fn scale_of(recipe: &Recipe, info: &TensorInfo) -> FloatType {
    // What the libraries of GPTQ and AWQ write.
    if recipe.format.is_by_column() { FloatType::F16 } else { scale_dtype(info.encoding) }
}

/// The type of the weights that a matrix is made of, and that those who unpack it make of it again; bf16 for codes.
pub(crate) fn made_of(tensor: &PlannedTensor) -> FloatType {
    match tensor.from {
        Encoding::Float(float) | Encoding::Sparse { float, .. } => float,
        _ => FloatType::BF16,
    }
}

/// Scales in the checkpoint's own 16-bit dtype; bf16 where it has none, since it spans every f32 scale.
pub(crate) fn scale_dtype(source: Encoding) -> FloatType {
    match source {
        Encoding::Float(FloatType::F16) => FloatType::F16,
        _ => FloatType::BF16,
    }
}

/// A tensor that no step changes: its own floats, and codes in the dtype that the model was made in.
fn as_floats(checkpoint: &Checkpoint, format: Format, info: &TensorInfo) -> Result<Decision, Error> {
    let model = checkpoint.config().dtype;
    let is_small = info.shape.len() < 2 || info.role.kind.is_router();
    let (float, reason) = match info.encoding {
        _ if is_fixed(format, info) => (FloatType::F32, String::new()),
        // They go back to the model's dtype where they came from it.
        Encoding::Float(FloatType::F32)
            if is_small && checkpoint.format() == bitmill_checkpoint::Format::Gguf =>
        {
            (if holds(checkpoint, info, model)? { model } else { FloatType::F32 }, String::new())
        }
        Encoding::Float(float) => (float, String::new()),
        codes => (model, format!("unpacked from {codes}")),
    };
    Ok(Decision { reason, ..Decision::rounded(Encoding::Float(float)) })
}

/// Whether `float` has every value of an f32 tensor, which is small.
fn holds(checkpoint: &Checkpoint, info: &TensorInfo, float: FloatType) -> Result<bool, Error> {
    let tensor = checkpoint.tensor(&info.name)?;
    let view = tensor.view();
    let WeightData::Float { float: stored, bytes } = view.data() else { return Ok(false) };
    let mut values = (0..view.out_features() * view.in_features()).map(|at| stored.read(bytes, at));
    let holds = values.all(|value| float.round(value).to_bits() == value.to_bits());
    tensor.release();
    Ok(holds)
}

/// What vLLM and SGLang load as one matrix each.
pub(crate) const FUSIONS: [(&str, &[RoleKind]); 3] = [
    ("q/k/v", &[RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV]),
    ("gate/up", &[RoleKind::FfnGate, RoleKind::FfnUp]),
    ("the shared expert's gate/up", &[RoleKind::SharedGate, RoleKind::SharedUp]),
];

/// How many weights a sparse matrix keeps is its own affair.
fn are_one_scheme(a: Encoding, b: Encoding) -> bool {
    match (a, b) {
        (Encoding::Sparse { float: a, .. }, Encoding::Sparse { float: b, .. }) => a == b,
        _ => a == b,
    }
}

/// The statistics of inputs that matrices share are factored once, in one way.
fn refuse_unlike_methods(tensors: &[PlannedTensor]) -> Result<(), Error> {
    let mut met: BTreeMap<_, &PlannedTensor> = BTreeMap::new();
    for tensor in tensors.iter().filter(|tensor| tensor.method.factors()) {
        let shared = FUSIONS.iter().position(|(_, kinds)| kinds.contains(&tensor.role.kind));
        let (Some(layer), Some(shared)) = (tensor.role.layer, shared) else { continue };
        let first = *met.entry((layer, shared, tensor.role.expert)).or_insert(tensor);
        if first.method != tensor.method {
            let (tensor, other) = (tensor.name.clone(), first.name.clone());
            return Err(Error::UnlikeMethods { tensor, other });
        }
    }
    Ok(())
}

/// A layer is learned as a whole, in one way; beside that there may be matrices that are rounded by their weights alone.
fn refuse_half_learned(tensors: &[PlannedTensor]) -> Result<(), Error> {
    let mut learned: BTreeMap<usize, &PlannedTensor> = BTreeMap::new();
    let calibrated = || tensors.iter().filter(|tensor| tensor.method.is_calibrated());
    for tensor in calibrated().filter(|tensor| tensor.method.learning().is_some()) {
        if let Some(layer) = tensor.role.layer {
            learned.entry(layer).or_insert(tensor);
        }
    }
    for tensor in calibrated() {
        let first = tensor.role.layer.and_then(|layer| learned.get(&layer));
        if let Some(first) = first.filter(|first| first.method != tensor.method) {
            let (tensor, other) = (tensor.name.clone(), first.name.clone());
            return Err(Error::HalfLearned { tensor, other });
        }
    }
    Ok(())
}

/// Members of one matrix have one scheme.
fn refuse_split_fusion(tensors: &[PlannedTensor]) -> Result<(), Error> {
    let mut encodings: BTreeMap<_, Vec<Encoding>> = BTreeMap::new();
    for tensor in tensors {
        let fused = FUSIONS.iter().position(|(_, kinds)| kinds.contains(&tensor.role.kind));
        if let (Some(layer), Some(fusion)) = (tensor.role.layer, fused) {
            encodings.entry((layer, fusion, tensor.role.expert)).or_default().push(tensor.to);
        }
    }
    for ((layer, fusion, expert), found) in encodings {
        if found.windows(2).any(|pair| !are_one_scheme(pair[0], pair[1])) {
            let members = match expert {
                Some(expert) => format!("expert {expert}'s {}", FUSIONS[fusion].0),
                None => FUSIONS[fusion].0.to_owned(),
            };
            let found = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Error::SplitFusion { layer, members, found });
        }
    }
    Ok(())
}
