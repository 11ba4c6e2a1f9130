//! What was asked for: a preset's name or a TOML file, read into a [`Recipe`].
//!
//! ```toml
//! name = "w4 with an 8-bit down_proj"
//! format = "compressed-tensors"
//!
//! [[step]]
//! kind = "rtn"
//! bits = 4
//! granularity = { group = { size = 64 } }
//!
//! [[step]]
//! kind = "rtn"
//! targets = ["*.mlp.down_proj.weight"]
//! bits = 8
//! granularity = "channel"
//! ```
//!
//! Steps are read in order and the last one that targets a tensor decides; those that prune, pad, rotate or scale come before
//! those that store, and compose with them. A step without `targets` means every
//! matrix of the decoder layers. A pattern that matches nothing is an error, and so is a key nobody knows.

use std::num::{NonZeroU16, NonZeroUsize};
use std::path::{Path, PathBuf};

use bitmill_checkpoint::{Activations, RoleKind};
use bitmill_quant::{BlockSearch, Clip, Mix};
use bitmill_stats::Hessian;
use bitmill_tensor::{
    Bits, BlockType, Codebook, Element, Extent, FloatType, Granularity, ScaleType, Scaled, ZeroPoint,
};
use serde::{Deserialize, Serialize};

use crate::balancing::{AwqStep, Balance, SmoothStep};
use crate::calibration::CalibrationOptions;
use crate::error::CALIBRATION_TOKENS;
use crate::learned::LearnedStep;
use crate::method::{Order, usual_shrinkage};
use crate::padding::{Pad, PadWidth};
use crate::pruning::{DepthStep, MagnitudeStep, Storage};
use crate::search::{Budget, Measure};
use crate::turning::RotateStep;
use crate::{Error, presets};

/// What a run writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// One GGUF v3 file, for llama.cpp.
    Gguf,
    /// A Hugging Face folder in compressed-tensors' `pack-quantized` form, for transformers, vLLM and SGLang.
    CompressedTensors,
    /// A Hugging Face folder in GPTQ's form, for GPTQModel, transformers, vLLM and SGLang.
    Gptq,
    /// A Hugging Face folder in AWQ's GEMM form, for AutoAWQ, transformers, vLLM and SGLang.
    Awq,
    /// A Hugging Face folder in bitsandbytes' 4-bit form, for transformers with bitsandbytes, and vLLM.
    Bitsandbytes,
    /// A Hugging Face folder of plain floats, for everything that reads safetensors.
    HuggingFace,
}

impl Format {
    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::CompressedTensors => "compressed-tensors",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Bitsandbytes => "bitsandbytes",
            Self::HuggingFace => "hugging-face",
        }
    }

    /// Whether it is a folder of matrices whose codes lie column by column.
    pub(crate) fn is_by_column(self) -> bool {
        matches!(self, Self::Gptq | Self::Awq)
    }

    /// Whether it is a folder of packed `Linear` modules.
    pub(crate) fn packs_modules(self) -> bool {
        matches!(self, Self::CompressedTensors | Self::Bitsandbytes) || self.is_by_column()
    }

    /// Whether matrices of a kind have codes there; embeddings are no `Linear` modules.
    pub(crate) fn has_codes_of(self, kind: RoleKind) -> bool {
        match kind {
            RoleKind::TokenEmbedding => !self.packs_modules(),
            // AutoAWQ and what reads bitsandbytes have packed matrices in layers alone.
            RoleKind::Output => !matches!(self, Self::Awq | Self::Bitsandbytes),
            _ => true,
        }
    }

    /// Whether a step can be written in it.
    pub(crate) fn takes(self, step: &Step) -> bool {
        match step {
            Step::Magnitude(step) => step.storage == Storage::Dense || self == Self::CompressedTensors,
            Step::Depth(_)
            | Step::Pad { .. }
            | Step::Rotate(_)
            | Step::Awq(_)
            | Step::Smooth(_)
            | Step::Float { .. } => true,
            Step::Mix { .. } | Step::Block { .. } => self == Self::Gguf,
            Step::Rtn { .. } | Step::Gptq { .. } | Step::Learned(_) => {
                self.packs_modules() && self != Self::Bitsandbytes
            }
            Step::Scaled { number, .. } => self == number.format(),
            Step::Keep { .. } => self != Self::Bitsandbytes,
            Step::Search { .. } => matches!(self, Self::Gguf | Self::CompressedTensors),
        }
    }
}

/// A list of steps, the format they are written in, and a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// How tables call it; a file's stem if the file gives none.
    #[serde(default)]
    pub name: String,
    /// What is written.
    pub format: Format,
    /// An importance matrix, of either form: the errors of GGUF blocks are weighed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<PathBuf>,
    /// Errors of GGUF blocks are weighed by what their columns multiply in a run over calibration tokens, each layer by what the
    /// layers before it have become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<ImportanceName>,
    /// How scales and codes of GGUF blocks are chosen, in steps of kind `mix` and `block`.
    #[serde(default, skip_serializing_if = "SearchName::is_ggml")]
    pub search: SearchName,
    /// Whether a GGUF file may be padded where no step says so.
    #[serde(default, skip_serializing_if = "Pad::is_auto")]
    pub pad: Pad,
    /// What the model runs over for steps that look at what weights multiply; what [`CalibrationOptions::default`] says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationOptions>,
    /// How words hold codes of 3, 5, 6 and 7 bits in compressed-tensors.
    #[serde(default, skip_serializing_if = "PackingName::is_stream")]
    pub packing: PackingName,
    /// What a runtime's cache of keys and values holds: its scales are found in the run over calibration tokens. For
    /// compressed-tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache: Option<KvCacheOptions>,
    /// Ranks of a runtime's tensor parallelism: every matrix must divide among them, and feed-forward blocks are padded where
    /// they do not. For folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor_parallel: Option<NonZeroU16>,
    /// Read in order; the last step that targets a tensor decides.
    #[serde(rename = "step", default)]
    pub steps: Vec<Step>,
}

/// One line of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Whole layers taken away; stands before what stores weights.
    Depth(DepthStep),
    /// Weights of small magnitude set to zero; stands before what stores weights, and composes with it.
    Magnitude(MagnitudeStep),
    /// Feed-forward blocks made wider with zeros, which change no output; stands before what stores weights.
    Pad {
        /// Their width is rounded up to a multiple of this.
        ffn: PadWidth,
    },
    /// The residual stream turned, so that outliers are spread; stands before what stores weights.
    Rotate(RotateStep),
    /// Features scaled so that weights of large ones get more of the grid; stands before what stores weights.
    Awq(AwqStep),
    /// Outliers of activations moved into weights; stands before what stores weights.
    Smooth(SmoothStep),
    /// llama.cpp's own choice of a type for each tensor.
    Mix {
        /// As llama-quantize calls it: `q8_0`, `q4_k_m`, `iq4_xs`.
        mix: MixName,
    },
    /// One GGUF block type for the tensors that match.
    Block {
        /// Patterns of canonical tensor names; absent: every matrix of the decoder layers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        targets: Option<Vec<String>>,
        /// Patterns taken out again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        skip: Vec<String>,
        /// `q4_0`, `q4_1`, `q5_0`, `q5_1`, `q8_0`, `q2_k` to `q6_k`, `iq1_s` to `iq4_xs`, `tq1_0`, `tq2_0` or `mxfp4`.
        #[serde(rename = "type")]
        block: BlockName,
    },
    /// Round-to-nearest codes with a scale a group or a row.
    Rtn {
        /// Patterns of canonical tensor names; absent: every matrix of the decoder layers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        targets: Option<Vec<String>>,
        /// Patterns taken out again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        skip: Vec<String>,
        /// 2 to 8.
        bits: BitsNumber,
        /// `{ group = { size = 128 } }` or `"channel"`.
        granularity: GranularityName,
        /// `"symmetric"` (the default) or `"asymmetric"`.
        #[serde(default)]
        zero_point: ZeroPointName,
        /// The dtype of scales, `"f16"` or `"bf16"`; absent: the checkpoint's own, `bf16` if that is f32.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scale: Option<ScaleName>,
        /// `"none"` (the default): codes span the weights of a group; `"mse"`: the part of them that leaves the smallest
        /// squared error; `"hqq"`: scale and zero point as HQQ finds them.
        #[serde(default)]
        clip: ClipName,
    },
    /// Codes of `rtn`'s grids, chosen column by column so that a column's error is made up for by those after it.
    Gptq {
        /// Patterns of canonical tensor names; absent: every matrix of the decoder layers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        targets: Option<Vec<String>>,
        /// Patterns taken out again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        skip: Vec<String>,
        /// 2 to 8.
        bits: BitsNumber,
        /// `{ group = { size = 128 } }` or `"channel"`.
        granularity: GranularityName,
        /// `"symmetric"` (the default) or `"asymmetric"`.
        #[serde(default)]
        zero_point: ZeroPointName,
        /// The dtype of scales, `"f16"` or `"bf16"`; absent: the checkpoint's own, `bf16` if that is f32.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scale: Option<ScaleName>,
        /// `"none"` (the default), `"mse"` or `"hqq"`, as in `rtn`.
        #[serde(default)]
        clip: ClipName,
        /// Added to the Hessian's diagonal, as a fraction of its mean: 0.01 by default.
        #[serde(default = "usual_damping")]
        damping: Damping,
        /// `"none"`, `"static"` (the default) or `"full"`: columns that matter most first, and whether groups follow.
        #[serde(default = "usual_order")]
        order: Order,
        /// How often scales are fitted again and codes moved afterwards, while the error of the outputs falls: 0 by default.
        #[serde(default)]
        refine: u8,
    },
    /// Codes whose rounding is learned, all matrices of a layer together.
    Learned(LearnedStep),
    /// Small numbers with a scale for many: 8-bit integers and floats, 4-bit floats.
    Scaled {
        /// Patterns of canonical tensor names; absent: every matrix of the decoder layers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        targets: Option<Vec<String>>,
        /// Patterns taken out again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        skip: Vec<String>,
        /// `"int8"`, `"fp8"`, `"fp8_block"`, `"nvfp4"`, `"mxfp4"`, `"mxfp6"` or `"mxfp8"`; in bitsandbytes `"nf4"` or `"nf4_double"`.
        #[serde(rename = "type")]
        number: NumberName,
        /// `"full"` (the default); `"dynamic"`, for 8-bit numbers: runtimes round them to the same kind of number as they go; or `"static"`, for
        /// `"fp8"`: by scales that a run over calibration tokens finds.
        #[serde(default)]
        activations: ActivationsName,
    },
    /// Plain floats. GGUF stores vectors (norms, biases) in f32 whatever is asked.
    Float {
        /// Patterns of canonical tensor names; absent: every matrix of the decoder layers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        targets: Option<Vec<String>>,
        /// Patterns taken out again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        skip: Vec<String>,
        /// `"f32"`, `"f16"` or `"bf16"`.
        #[serde(rename = "type")]
        float: FloatName,
    },
    /// As the source stores it, byte for byte, where the format has such a form; else in the dtype that the model was
    /// made in.
    Keep {
        /// Patterns of canonical tensor names; absent: every matrix of the decoder layers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        targets: Option<Vec<String>>,
        /// Patterns taken out again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        skip: Vec<String>,
    },
    /// The forms that lose least within a budget, found for the model at hand: the only step of its recipe.
    Search {
        /// The most that the output may take: `"4.5bpw"` or `"40GB"`.
        budget: Budget,
        /// `"kl"` (the default), `"output"` or `"weights"`.
        #[serde(default)]
        sensitivity: Measure,
        /// Calibration tokens to run; absent: fewer for larger models.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokens: Option<u32>,
    },
}

impl Step {
    /// `kind` as recipes write it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Depth(_) => "depth",
            Self::Magnitude(_) => "magnitude",
            Self::Pad { .. } => "pad",
            Self::Rotate(_) => "rotate",
            Self::Awq(_) => "awq",
            Self::Smooth(_) => "smooth",
            Self::Mix { .. } => "mix",
            Self::Block { .. } => "block",
            Self::Rtn { .. } => "rtn",
            Self::Gptq { .. } => "gptq",
            Self::Learned(_) => "learned",
            Self::Scaled { .. } => "scaled",
            Self::Float { .. } => "float",
            Self::Keep { .. } => "keep",
            Self::Search { .. } => "search",
        }
    }

    /// Whether it takes away weights or layers, whatever stores the rest.
    pub(crate) fn prunes(&self) -> bool {
        matches!(self, Self::Depth(_) | Self::Magnitude(_))
    }

    /// Whether it gives weights other values that compute the same.
    pub(crate) fn reshapes(&self) -> bool {
        matches!(self, Self::Rotate(_) | Self::Awq(_) | Self::Smooth(_))
    }

    /// Whether runtimes round what its weights multiply by scales that a run over calibration tokens finds.
    pub(crate) fn rounds_by_scales(&self) -> bool {
        matches!(self, Self::Scaled { activations: ActivationsName::Static, .. })
    }

    /// Whether it stands before what stores weights.
    fn comes_first(&self) -> bool {
        self.prunes() || self.reshapes() || matches!(self, Self::Pad { .. })
    }

    /// The patterns of what it is for; `None`: every matrix of the decoder layers, or (a mix) everything.
    pub(crate) fn targets(&self) -> Option<&[String]> {
        match self {
            Self::Depth(_)
            | Self::Pad { .. }
            | Self::Rotate(_)
            | Self::Awq(_)
            | Self::Smooth(_)
            | Self::Mix { .. }
            | Self::Search { .. } => None,
            Self::Magnitude(step) => step.targets.as_deref(),
            Self::Learned(step) => step.targets.as_deref(),
            Self::Block { targets, .. }
            | Self::Rtn { targets, .. }
            | Self::Gptq { targets, .. }
            | Self::Scaled { targets, .. }
            | Self::Float { targets, .. }
            | Self::Keep { targets, .. } => targets.as_deref(),
        }
    }

    /// The patterns of what it leaves alone.
    pub(crate) fn skip(&self) -> &[String] {
        match self {
            Self::Depth(_)
            | Self::Pad { .. }
            | Self::Rotate(_)
            | Self::Awq(_)
            | Self::Smooth(_)
            | Self::Mix { .. }
            | Self::Search { .. } => &[],
            Self::Magnitude(step) => &step.skip,
            Self::Learned(step) => &step.skip,
            Self::Block { skip, .. }
            | Self::Rtn { skip, .. }
            | Self::Gptq { skip, .. }
            | Self::Scaled { skip, .. }
            | Self::Float { skip, .. }
            | Self::Keep { skip, .. } => skip,
        }
    }
}

impl Recipe {
    /// These steps, and nothing else that could be asked for.
    pub fn new(name: &str, format: Format, steps: Vec<Step>) -> Self {
        Self {
            name: name.into(),
            format,
            imatrix: None,
            importance: None,
            search: SearchName::Ggml,
            pad: Pad::Auto,
            calibration: None,
            packing: PackingName::Stream,
            kv_cache: None,
            tensor_parallel: None,
            steps,
        }
    }

    /// The recipe written in another format.
    ///
    /// # Errors
    /// [`Error::OtherFormat`] if one of its steps makes what the format has no form for, [`Error::NoPlace`] for other parts.
    pub fn with_format(self, format: Format) -> Result<Self, Error> {
        let moved = Self { format, ..self };
        let name = format.name();
        if moved.steps.iter().any(|step| !format.takes(step)) {
            return Err(Error::OtherFormat { recipe: moved.name, format: name });
        }
        match moved.refuse_of_format() {
            Ok(()) => Ok(moved),
            Err(problem) => Err(Error::NoPlace { recipe: moved.name, format: name, problem }),
        }
    }

    /// Refuses what the format has no place for, beside its steps.
    fn refuse_of_format(&self) -> Result<(), String> {
        let (format, name) = (self.format, self.format.name());
        if self.tensor_parallel.is_some() && format == Format::Gguf {
            return Err("`tensor_parallel` is for folders, which vLLM and SGLang load".into());
        }
        if !self.packing.is_stream() && format != Format::CompressedTensors {
            return Err(format!("`packing = \"words\"` is compressed-tensors', and this is {name}"));
        }
        if self.kv_cache.is_some() && format != Format::CompressedTensors {
            return Err(format!(
                "`[kv_cache]` cannot be written as {name}: no runtime reads its scales there; `format = \"compressed-tensors\"` holds them"
            ));
        }
        let has_order = |step: &Step| matches!(step, Step::Gptq { order: Order::Full, .. });
        if format != Format::Gptq && self.steps.iter().any(has_order) {
            return Err("`order = \"full\"` is for the format gptq: no other tells readers of it".into());
        }
        Ok(())
    }

    /// The recipe with the errors of its blocks weighed by the importance matrix at `path`.
    ///
    /// # Errors
    /// [`Error::NoUse`] if none of its steps makes blocks.
    pub fn with_imatrix(self, path: &Path) -> Result<Self, Error> {
        if !self.weighs() || self.importance.is_some() || self.steps.iter().any(Step::reshapes) {
            return Err(Error::NoUse { recipe: self.name, what: "an importance matrix" });
        }
        Ok(Self { imatrix: Some(path.into()), ..self })
    }

    /// The recipe with the blocks of its steps searched so.
    ///
    /// # Errors
    /// [`Error::NoUse`] if none of its steps makes blocks.
    pub fn with_search(self, search: SearchName) -> Result<Self, Error> {
        if !self.makes_blocks() || (self.importance.is_some() && search == SearchName::Compensated) {
            return Err(Error::NoUse { recipe: self.name, what: "a search of blocks" });
        }
        Ok(Self { search, ..self })
    }

    /// The recipe with the tokens that its steps look at chosen so.
    ///
    /// # Errors
    /// [`Error::NoUse`] if none of its steps looks at any.
    pub fn with_calibration(self, options: CalibrationOptions) -> Result<Self, Error> {
        if !self.calibrates() {
            return Err(Error::NoUse { recipe: self.name, what: CALIBRATION_TOKENS });
        }
        Ok(Self { calibration: Some(options), ..self })
    }

    /// How much of what earlier layers changed in a layer's inputs is made up for.
    pub(crate) fn asymmetry(&self) -> Option<f32> {
        self.calibration.as_ref().and_then(|options| options.asymmetry).map(|strength| strength.0)
    }

    /// How much of what ties input features to one another is left out of statistics.
    pub(crate) fn shrinkage(&self, hessian: &Hessian) -> f32 {
        let asked = self.calibration.as_ref().and_then(|options| options.shrinkage);
        let usual = || usual_shrinkage(hessian.in_features(), hessian.tokens());
        asked.map_or_else(usual, |fraction| fraction.0)
    }

    /// Whether a step looks at what weights multiply.
    pub fn calibrates(&self) -> bool {
        self.balance().is_some()
            || self
                .steps
                .iter()
                .any(|step| matches!(step, Step::Gptq { .. } | Step::Learned(_)) || step.rounds_by_scales())
            || ((self.search == SearchName::Compensated || self.importance.is_some()) && self.makes_blocks())
    }

    /// The recipe without padding that no step asks for.
    ///
    /// # Errors
    /// [`Error::NoUse`] if there is none.
    pub fn without_padding(self) -> Result<Self, Error> {
        if !self.makes_blocks() || self.padding().is_some() {
            return Err(Error::NoUse { recipe: self.name, what: "being told not to pad" });
        }
        Ok(Self { pad: Pad::Off, ..self })
    }

    /// How features are scaled beforehand.
    pub(crate) fn balance(&self) -> Option<Balance> {
        self.steps.iter().find_map(|step| match step {
            Step::Awq(step) => Some(Balance::Awq(*step)),
            Step::Smooth(step) => Some(Balance::Smooth(*step)),
            _ => None,
        })
    }

    /// What its step of kind `rotate` asks for.
    pub(crate) fn rotation(&self) -> Option<RotateStep> {
        self.steps.iter().find_map(|step| if let Step::Rotate(step) = step { Some(*step) } else { None })
    }

    /// What its step of kind `pad` asks for.
    pub(crate) fn padding(&self) -> Option<PadWidth> {
        self.steps.iter().find_map(|step| if let Step::Pad { ffn } = step { Some(*ffn) } else { None })
    }

    /// Whether an importance matrix would say anything to it.
    fn weighs(&self) -> bool {
        self.makes_blocks() || (self.is_search() && self.format == Format::Gguf)
    }

    /// The mix that decides what no other step does.
    pub(crate) fn mix(&self) -> Option<Mix> {
        self.steps.iter().rev().find_map(|step| if let Step::Mix { mix } = step { Some(mix.0) } else { None })
    }

    /// Whether a step makes GGUF blocks of what it claims.
    pub(crate) fn makes_blocks(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Mix { .. } | Step::Block { .. }))
    }

    /// Reads `name_or_path`: a preset's name, else the path of a TOML file.
    ///
    /// # Errors
    /// [`Error::UnknownRecipe`] if it is neither, [`Error::MalformedRecipe`] if the file is no recipe.
    pub fn read(name_or_path: &str) -> Result<Self, Error> {
        if let Some(recipe) = presets::preset(name_or_path) {
            return Ok(recipe);
        }
        let path = Path::new(name_or_path);
        if !name_or_path.ends_with(".toml") && !path.exists() {
            return Err(Error::UnknownRecipe { name: name_or_path.into() });
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::ReadRecipe { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a recipe; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::MalformedRecipe`] with the line, for wrong TOML, an unknown key or kind, or a value out of range.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let malformed = |message: String| Error::MalformedRecipe { path: PathBuf::from(path), message };
        let mut recipe: Self = toml::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if recipe.name.is_empty() {
            recipe.name =
                path.file_stem().map_or_else(|| "recipe".into(), |stem| stem.to_string_lossy().into());
        }
        if recipe.steps.is_empty() {
            return Err(malformed("no [[step]]: a recipe has at least one".into()));
        }
        for step in &recipe.steps {
            if !recipe.format.takes(step) {
                let (kind, format) = (step.kind(), recipe.format.name());
                let with = match step {
                    Step::Scaled { number, .. } if recipe.format.packs_modules() => {
                        format!(" with this `type` (it is {}'s)", number.format().name())
                    }
                    _ if step.prunes() => " with `storage = \"sparse\"`".to_owned(),
                    _ => String::new(),
                };
                return Err(malformed(format!(
                    "a step of kind `{kind}`{with} cannot be written as {format}"
                )));
            }
        }
        let rounds_others = |step: &Step| match step {
            Step::Scaled { number, activations: ActivationsName::Dynamic, .. } => {
                !matches!(number, NumberName::Int8 | NumberName::Fp8 | NumberName::Fp8Block)
            }
            _ => false,
        };
        if recipe.steps.iter().any(rounds_others) {
            return Err(malformed(
                "`activations = \"dynamic\"` is for `int8`, `fp8` and `fp8_block`: the other numbers are of weights alone"
                    .into(),
            ));
        }
        let is_static_elsewhere = |step: &Step| {
            matches!(step, Step::Scaled { number, .. } if *number != NumberName::Fp8)
                && step.rounds_by_scales()
        };
        if recipe.steps.iter().any(is_static_elsewhere) {
            return Err(malformed(
                "`activations = \"static\"` is for `type = \"fp8\"`: runtimes read scales of inputs beside those alone".into(),
            ));
        }
        for pair in recipe.steps.windows(2) {
            if pair[1].comes_first() && !pair[0].comes_first() {
                let (late, early) = (pair[1].kind(), pair[0].kind());
                let what = match pair[1].prunes() {
                    true => "pruning",
                    false if pair[1].reshapes() => "what rounding starts from",
                    false => "padding",
                };
                return Err(malformed(format!("`{late}` comes after `{early}`: {what} comes first")));
            }
        }
        for kind in ["depth", "pad", "rotate", "awq", "smooth"] {
            if recipe.steps.iter().filter(|step| step.kind() == kind).count() > 1 {
                return Err(malformed(format!("two steps of kind `{kind}`")));
            }
        }
        recipe.refuse_beside_reshaping().map_err(malformed)?;
        let is_sparse =
            |step: &Step| matches!(step, Step::Magnitude(step) if step.storage == Storage::Sparse);
        if recipe.padding().is_some() && recipe.steps.iter().any(is_sparse) {
            return Err(malformed(
                "`pad` and `storage = \"sparse\"`: zeros that pad are not stored there".into(),
            ));
        }
        if recipe.pad == Pad::Off && (!recipe.makes_blocks() || recipe.padding().is_some()) {
            return Err(malformed(
                "`pad = \"off\"` is for steps of kind `mix` and `block`, and not beside one of kind `pad`"
                    .into(),
            ));
        }
        recipe.refuse_of_format().map_err(malformed)?;
        if recipe.is_search() && recipe.steps.len() > 1 {
            return Err(malformed(
                "a step of kind `search` decides about everything: it stands alone".into(),
            ));
        }
        if recipe.calibration.is_some() && !recipe.calibrates() {
            return Err(malformed(
                "`[calibration]` is for steps of kind `gptq`, `learned`, `awq` and `smooth`, `activations = \"static\"`, `search = \"compensated\"` and `importance`: there is none"
                    .into(),
            ));
        }
        let may_be_uneven = |step: &Step| match step {
            Step::Rtn { bits, .. } | Step::Gptq { bits, .. } | Step::Learned(LearnedStep { bits, .. }) => {
                !32u8.is_multiple_of(bits.0.get())
            }
            Step::Keep { .. } | Step::Search { .. } => true,
            _ => false,
        };
        if !recipe.packing.is_stream() && !recipe.steps.iter().any(may_be_uneven) {
            return Err(malformed(
                "`packing = \"words\"` is for codes of 3, 5, 6 and 7 bits: there are none, and all others are packed the same either way"
                    .into(),
            ));
        }
        if recipe.kv_cache.is_some() && !recipe.calibrates() {
            return Err(malformed(
                "`[kv_cache]` needs a run over calibration tokens: a step of kind `gptq`, `learned`, `awq` or `smooth` makes one; there is none"
                    .into(),
            ));
        }
        if recipe.calibrates() && recipe.steps.iter().any(|step| matches!(step, Step::Magnitude(_))) {
            return Err(malformed(
                "`magnitude` beside what is calibrated: prune first, and compress what that wrote".into(),
            ));
        }
        if recipe.search != SearchName::Ggml && !recipe.makes_blocks() {
            return Err(malformed("`search` is for steps of kind `mix` and `block`: there is none".into()));
        }
        if recipe.importance.is_some()
            && (!recipe.makes_blocks()
                || recipe.imatrix.is_some()
                || recipe.search == SearchName::Compensated)
        {
            return Err(malformed(
                "`importance` is for steps of kind `mix` and `block`, without `imatrix`, which says it too, and `search = \"compensated\"`, which goes further"
                    .into(),
            ));
        }
        if recipe.imatrix.is_some() && !recipe.weighs() {
            return Err(malformed(
                "`imatrix` is for steps of kind `mix`, `block` and `search` in gguf: there is none".into(),
            ));
        }
        Ok(recipe)
    }

    /// Refuses what does not go together with steps that give weights other values.
    fn refuse_beside_reshaping(&self) -> Result<(), String> {
        let Some((at, step)) = self.steps.iter().enumerate().find(|(_, step)| step.reshapes()) else {
            return Ok(());
        };
        let kind = step.kind();
        let beside = |other: &&Step| match other {
            Step::Keep { .. } | Step::Search { .. } | Step::Magnitude(_) => true,
            other => {
                matches!((step, *other), (Step::Awq(_), Step::Smooth(_)) | (Step::Smooth(_), Step::Awq(_)))
            }
        };
        match self.steps.iter().find(beside) {
            Some(other @ Step::Keep { .. }) => {
                Err(format!("`{}` beside `{kind}`: what is kept is not changed", other.kind()))
            }
            Some(other @ Step::Magnitude(_)) => {
                Err(format!("`{}` beside `{kind}`: prune first, and compress what that wrote", other.kind()))
            }
            Some(Step::Search { .. }) => Ok(()),
            Some(_) => Err("`awq` and `smooth`: features have one scale".into()),
            None if self.imatrix.is_some() => {
                Err(format!("`imatrix` beside `{kind}`: it is of the model as it was"))
            }
            None if self.steps[at + 1..].iter().any(|later| matches!(later, Step::Rotate(_))) => Err(
                format!("`rotate` comes after `{kind}`: scales are found for the model that rotating leaves"),
            ),
            None => Ok(()),
        }
    }

    /// Whether it asks for a search, whose result can be planned: see [`resolve`](crate::resolve).
    pub fn is_search(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Search { .. }))
    }

    /// The recipe as TOML, every default written out.
    pub fn to_toml(&self) -> String {
        // Every value of a recipe has a TOML form: strings, numbers and tables with string keys.
        toml::to_string(self).unwrap_or_default()
    }
}

/// How words hold codes in compressed-tensors, as a recipe writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackingName {
    /// One stream of bits, as the library has them since 0.18.
    #[default]
    Stream,
    /// Whole codes in each word, as it had them before.
    Words,
}

impl PackingName {
    pub(crate) fn is_stream(&self) -> bool {
        *self == Self::Stream
    }
}

/// A runtime's cache of keys and values: `[kv_cache]` of a recipe.
///
/// ```
/// use bitmill_pipeline::{CacheNumber, KvCacheOptions};
/// let options: KvCacheOptions = toml::from_str("type = \"fp8\"")?;
/// assert_eq!(options.number, CacheNumber::Fp8);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvCacheOptions {
    /// `"fp8"`.
    #[serde(rename = "type")]
    pub number: CacheNumber,
}

/// What a cache holds, as a recipe writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheNumber {
    /// 8-bit floats (E4M3), one scale for the keys of a layer and one for its values.
    Fp8,
}

impl CacheNumber {
    /// The largest number.
    pub(crate) fn largest(self) -> f32 {
        match self {
            Self::Fp8 => Element::Fp8.reach(),
        }
    }
}

/// A [`Mix`] by its name in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MixName(pub Mix);

/// A [`BlockType`] by its name in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlockName(pub BlockType);

/// [`Bits`] as a number in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct BitsNumber(pub Bits);

/// The dtype of scales by its name in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScaleName(pub FloatType);

/// A [`FloatType`] by its name in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FloatName(pub FloatType);

/// A [`Granularity`] as a recipe writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GranularityName {
    /// One scale a row.
    Channel,
    /// One scale for `size` weights of a row.
    Group {
        /// Weights that share a scale.
        size: NonZeroUsize,
    },
}

/// A [`ZeroPoint`] as a recipe writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ZeroPointName {
    /// Codes centred on zero.
    #[default]
    Symmetric,
    /// Codes centred on a stored zero point.
    Asymmetric,
}

/// Numbers of few bits with what shares a scale, as a recipe writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NumberName {
    /// 8-bit integers, one scale a row.
    Int8,
    /// 8-bit floats (E4M3), one scale a row.
    Fp8,
    /// The same, one scale for 128 rows and 128 columns.
    Fp8Block,
    /// 4-bit floats, an 8-bit one as scale for 16 columns, and one for all.
    Nvfp4,
    /// 4-bit floats, a power of two as scale for 32 columns.
    Mxfp4,
    /// 6-bit floats (E2M3), a power of two as scale for 32 columns.
    Mxfp6,
    /// 8-bit floats, a power of two as scale for 32 columns.
    Mxfp8,
    /// bitsandbytes' NormalFloat, 16 values times the largest magnitude of 64 columns.
    Nf4,
    /// The same with those magnitudes as codes of 8 bits.
    Nf4Double,
}

impl NumberName {
    /// How they are stored; scales that may be of any float type are `float`.
    pub(crate) fn layout(self, float: FloatType) -> Scaled {
        const SIDE: NonZeroUsize = NonZeroUsize::new(128).unwrap();
        const NV: NonZeroUsize = NonZeroUsize::new(16).unwrap();
        const MX: NonZeroUsize = NonZeroUsize::new(32).unwrap();
        const NF: Extent = Extent::Columns(NonZeroUsize::new(Codebook::BLOCK).unwrap());
        let float = ScaleType::Float(float);
        let (element, extent, scale) = match self {
            Self::Int8 => (Element::Int8, Extent::Row, float),
            Self::Fp8 => (Element::Fp8, Extent::Row, float),
            Self::Fp8Block => (Element::Fp8, Extent::Block { rows: SIDE, cols: SIDE }, float),
            Self::Nvfp4 => (Element::Fp4, Extent::Columns(NV), ScaleType::Fp8),
            Self::Mxfp4 => (Element::Fp4, Extent::Columns(MX), ScaleType::PowerOfTwo),
            Self::Mxfp6 => (Element::Fp6, Extent::Columns(MX), ScaleType::PowerOfTwo),
            Self::Mxfp8 => (Element::Fp8, Extent::Columns(MX), ScaleType::PowerOfTwo),
            Self::Nf4 => (Element::Listed(Codebook::Nf4), NF, ScaleType::Float(FloatType::F32)),
            Self::Nf4Double => (Element::Listed(Codebook::Nf4), NF, ScaleType::Nested),
        };
        Scaled { element, extent, scale }
    }

    /// The format that has them.
    pub(crate) fn format(self) -> Format {
        match self {
            Self::Nf4 | Self::Nf4Double => Format::Bitsandbytes,
            _ => Format::CompressedTensors,
        }
    }
}

/// [`Activations`] as a recipe writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationsName {
    /// As the model has them.
    #[default]
    Full,
    /// Rounded as the model runs.
    Dynamic,
    /// Rounded by a scale for each matrix, which a run over calibration tokens finds.
    Static,
}

impl From<ActivationsName> for Activations {
    fn from(name: ActivationsName) -> Self {
        match name {
            ActivationsName::Full => Self::Full,
            ActivationsName::Dynamic => Self::Dynamic,
            ActivationsName::Static => Self::Static,
        }
    }
}

/// A [`Clip`] as a recipe writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipName {
    /// No search.
    #[default]
    None,
    /// By squared error.
    Mse,
    /// For heavy tails.
    Hqq,
}

/// Where the importance of columns comes from, as a recipe writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceName {
    /// A run over calibration tokens.
    Calibration,
}

/// A [`BlockSearch`] as a recipe writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchName {
    /// ggml's, byte for byte.
    #[default]
    Ggml,
    /// From there on, while the squared error falls.
    Best,
    /// By what the blocks multiply: what one column loses is made up for by those after it. Needs calibration tokens.
    Compensated,
}

impl SearchName {
    fn is_ggml(&self) -> bool {
        *self == Self::Ggml
    }
}

impl From<SearchName> for BlockSearch {
    fn from(name: SearchName) -> Self {
        match name {
            // What no statistics choose is ggml's.
            SearchName::Ggml | SearchName::Compensated => Self::Ggml,
            SearchName::Best => Self::Best,
        }
    }
}

/// A fraction from 0 to 1 in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Damping(pub f32);

impl TryFrom<f64> for Damping {
    type Error = String;

    fn try_from(fraction: f64) -> Result<Self, String> {
        match (0.0..=1.0).contains(&fraction) {
            true => Ok(Self(fraction as f32)),
            false => Err(format!("{fraction} is no fraction from 0 to 1")),
        }
    }
}

impl From<Damping> for f64 {
    fn from(damping: Damping) -> Self {
        // Its shortest digits: 0.01, not what is nearest to that in f32.
        damping.0.to_string().parse().unwrap_or(f64::from(damping.0))
    }
}

fn usual_damping() -> Damping {
    Damping(0.01)
}

fn usual_order() -> Order {
    Order::Static
}

impl TryFrom<String> for MixName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse().map(Self).map_err(|_| {
            let known = Mix::ALL.map(|mix| mix.name()).join(", ");
            format!("`{name}` is no mix: {known}")
        })
    }
}

impl From<MixName> for String {
    fn from(mix: MixName) -> Self {
        mix.0.name().into()
    }
}

impl TryFrom<String> for BlockName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        BlockType::parse(&name).map(Self).ok_or_else(|| {
            let known: Vec<_> = BlockType::ALL.iter().map(|block| block.name()).collect();
            format!("`{name}` is no block type: {}", known.join(", "))
        })
    }
}

impl From<BlockName> for String {
    fn from(block: BlockName) -> Self {
        block.0.name().into()
    }
}

impl TryFrom<u8> for BitsNumber {
    type Error = String;

    fn try_from(bits: u8) -> Result<Self, String> {
        match Bits::new(bits) {
            Some(width) if bits >= 2 => Ok(Self(width)),
            _ => Err(format!("{bits} bits: codes are written at 2 to 8")),
        }
    }
}

impl From<BitsNumber> for u8 {
    fn from(bits: BitsNumber) -> Self {
        bits.0.get()
    }
}

impl TryFrom<String> for ScaleName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match FloatType::parse(&name) {
            Some(float @ (FloatType::F16 | FloatType::BF16)) => Ok(Self(float)),
            _ => Err(format!("`{name}` is no dtype of scales: f16, bf16")),
        }
    }
}

impl From<ScaleName> for String {
    fn from(scale: ScaleName) -> Self {
        scale.0.name().into()
    }
}

impl TryFrom<String> for FloatName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        FloatType::parse(&name).map(Self).ok_or_else(|| format!("`{name}` is no float type: f32, f16, bf16"))
    }
}

impl From<FloatName> for String {
    fn from(float: FloatName) -> Self {
        float.0.name().into()
    }
}

impl From<GranularityName> for Granularity {
    fn from(name: GranularityName) -> Self {
        match name {
            GranularityName::Channel => Self::Channel,
            GranularityName::Group { size } => Self::Group { size },
        }
    }
}

impl From<ClipName> for Clip {
    fn from(name: ClipName) -> Self {
        match name {
            ClipName::None => Self::None,
            ClipName::Mse => Self::Mse,
            ClipName::Hqq => Self::Hqq,
        }
    }
}

impl From<ZeroPointName> for ZeroPoint {
    fn from(name: ZeroPointName) -> Self {
        match name {
            ZeroPointName::Symmetric => Self::Symmetric,
            ZeroPointName::Asymmetric => Self::Asymmetric,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe, Error> {
        Recipe::parse(text, Path::new("folder/mine.toml"))
    }

    #[test]
    fn reads_a_file_and_names_it_after_its_stem() {
        let recipe = parse(
            "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nskip = [\"lm_head.weight\"]\nbits = 4\n\
             granularity = { group = { size = 64 } }\nzero_point = \"asymmetric\"\n",
        )
        .unwrap();
        assert_eq!(recipe.name, "mine");
        let Step::Rtn { bits, granularity, zero_point, .. } = &recipe.steps[0] else { panic!("{recipe:?}") };
        assert_eq!(bits.0.get(), 4);
        assert_eq!(*granularity, GranularityName::Group { size: NonZeroUsize::new(64).unwrap() });
        assert_eq!(*zero_point, ZeroPointName::Asymmetric);
    }

    #[test]
    fn written_recipes_read_back_equal() {
        for name in [
            "q4_k_m",
            "q8_0",
            "w4a16_g128",
            "w8a16",
            "w4a16_g32_asym",
            "w3a16_g64_clip",
            "hqq_w3a16_g64_asym",
            "mixed_4.5",
        ] {
            let recipe = presets::preset(name).unwrap();
            assert_eq!(parse(&recipe.to_toml()).unwrap(), recipe, "{}", recipe.to_toml());
        }
        let floats = "name = \"mine\"\nformat = \"hugging-face\"\n\n[[step]]\nkind = \"keep\"\ntargets = [\"*\"]\n\n\
                      [[step]]\nkind = \"float\"\nskip = [\"*.down_proj.weight\"]\ntype = \"bf16\"\n";
        assert_eq!(parse(floats).unwrap().to_toml(), floats);
        let weighed = "name = \"mine\"\nformat = \"gguf\"\nimatrix = \"a/b.gguf\"\n\n[[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n";
        assert_eq!(parse(weighed).unwrap().to_toml(), weighed);
        let padded = "name = \"mine\"\nformat = \"gguf\"\n\n[[step]]\nkind = \"pad\"\nffn = 1024\n\n[[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n";
        assert_eq!(parse(padded).unwrap().to_toml(), padded);
        let off = padded.replace("\n[[step]]\nkind = \"pad\"\nffn = 1024\n", "pad = \"off\"\n");
        assert_eq!(parse(&off).unwrap().to_toml(), off);
        assert_eq!(
            presets::preset("q4_k_m").unwrap().without_padding().unwrap().steps,
            parse(&off).unwrap().steps
        );
        assert!(parse(padded).unwrap().without_padding().is_err());
        let named = presets::preset("q4_k_m").unwrap().with_imatrix(Path::new("a/b.gguf")).unwrap();
        assert_eq!(named.steps, parse(weighed).unwrap().steps);
        let searched = presets::preset("q4_k_m").unwrap().with_search(SearchName::Best).unwrap();
        let text = toml::to_string(&searched).unwrap();
        assert!(text.contains("search = \"best\""), "{text}");
        assert_eq!(Recipe::parse(&text, Path::new("x.toml")).unwrap(), searched);
        assert!(presets::preset("w4a16_g128").unwrap().with_search(SearchName::Best).is_err());
        assert!(presets::preset("w4a16_g128").unwrap().with_imatrix(Path::new("a/b.gguf")).is_err());
    }

    #[test]
    fn floats_are_for_every_format_and_keeping_is_for_those_that_store_what_was_read() {
        assert!(parse("format = \"bitsandbytes\"\n[[step]]\nkind = \"keep\"").is_err());
        for format in ["gguf", "compressed-tensors", "gptq", "awq", "hugging-face"] {
            for float in ["f32", "f16", "bf16"] {
                let text = format!("format = \"{format}\"\n[[step]]\nkind = \"float\"\ntype = \"{float}\"");
                assert!(parse(&text).is_ok(), "{text}");
            }
            let kept = parse(&format!("format = \"{format}\"\n[[step]]\nkind = \"keep\""));
            assert!(kept.is_ok(), "{format}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know_and_says_where() {
        for (text, said) in [
            ("format = \"gguf\"\nspeed = 3\n[[step]]\nkind = \"mix\"\nmix = \"q8_0\"", "speed"),
            ("format = \"gguf\"\n[[step]]\nkind = \"mix\"\nmix = \"q8_0\"\ndamping = 1", "damping"),
            ("format = \"gguf\"\n[[step]]\nkind = \"melt\"", "melt"),
            ("format = \"gguf\"\n[[step]]\nkind = \"mix\"\nmix = \"q9\"", "q9"),
            ("format = \"onnx\"\n[[step]]\nkind = \"mix\"\nmix = \"q8_0\"", "onnx"),
            ("format = \"gguf\"", "no [[step]]"),
            (
                "format = \"gguf\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = \"channel\"",
                "cannot be written",
            ),
            (
                "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 9\ngranularity = \"channel\"",
                "9 bits",
            ),
            ("format = \"gguf\"\n[[step]]\nkind = \"search\"\nbudget = \"4.5\"", "4.5"),
            (
                "format = \"gguf\"\n[[step]]\nkind = \"search\"\nbudget = \"4bpw\"\n[[step]]\nkind = \"keep\"",
                "stands alone",
            ),
            (
                "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 0 } }",
                "zero",
            ),
            ("format = \"hugging-face\"\n[[step]]\nkind = \"mix\"\nmix = \"q8_0\"", "cannot be written"),
            ("format = \"gguf\"\n[[step]]\nkind = \"float\"\ntype = \"f64\"", "f64"),
            (
                "format = \"gguf\"\nsearch = \"best\"\n[[step]]\nkind = \"float\"\ntype = \"f16\"",
                "`search` is for",
            ),
            (
                "format = \"gguf\"\nimatrix = \"i.gguf\"\n[[step]]\nkind = \"float\"\ntype = \"f16\"",
                "`imatrix` is for",
            ),
            (
                "format = \"gguf\"\n[[step]]\nkind = \"mix\"\nmix = \"q4_0\"\n[[step]]\nkind = \"pad\"\nffn = 256",
                "padding comes first",
            ),
            ("format = \"gguf\"\n[[step]]\nkind = \"pad\"\nffn = 0", "ffn = 0"),
            (
                "format = \"gguf\"\n[[step]]\nkind = \"pad\"\nffn = 2\n[[step]]\nkind = \"pad\"\nffn = 4",
                "two steps",
            ),
            (
                "format = \"gguf\"\npad = \"off\"\n[[step]]\nkind = \"pad\"\nffn = 2\n[[step]]\nkind = \"mix\"\nmix = \"q4_0\"",
                "not beside",
            ),
            (
                "format = \"gguf\"\npad = \"off\"\n[[step]]\nkind = \"float\"\ntype = \"f16\"",
                "`pad = \"off\"` is for",
            ),
            (
                "format = \"compressed-tensors\"\n[[step]]\nkind = \"pad\"\nffn = 64\n[[step]]\nkind = \"magnitude\"\nsparsity = 0.5\nstorage = \"sparse\"",
                "zeros that pad",
            ),
            ("format = ", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, Error::MalformedRecipe { .. }), "{error}");
            assert!(error.to_string().contains(said), "{text}: {error}");
            assert!(error.to_string().contains("mine.toml"), "{error}");
        }
    }
}
