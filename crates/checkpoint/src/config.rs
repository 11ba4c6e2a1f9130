//! The shape of a model: the numbers its tensors and its forward pass follow from.

use std::fmt;

use bitmill_tensor::FloatType;

use crate::{Experts, Family, Pairing};

/// The numbers of a decoder-only model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The model family.
    pub family: Family,
    /// Rows of the embedding; the tokenizer may have fewer tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block, in layers that have no experts.
    pub intermediate_size: usize,
    /// The experts, in families that have them.
    pub experts: Option<Experts>,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Where attention does not look back over the whole context; `None` where it does in every layer, or where the
    /// window is no shorter than the longest context.
    pub window: Option<SlidingWindow>,
    /// Queries at positions from this one on are multiplied by `ln(position + 1) / ln(log_n)`: log-n attention of
    /// Qwen's first generation.
    pub log_n: Option<usize>,
    /// The longest context that the model was made for, in tokens: what config.json says, times the factor by which
    /// YaRN or dynamic scaling stretches it.
    pub max_positions: usize,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// The token before a text.
    pub bos: Option<u32>,
    /// The tokens that end a text.
    pub eos: Vec<u32>,
    /// Whether `bos` is put before every text.
    pub add_bos: bool,
    /// The dtype the weights were published in.
    pub dtype: FloatType,
}

/// Attention that sees a part of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Positions that a token sees: its own and those before it.
    pub tokens: usize,
    /// Which layers have it, by their number; the others see everything.
    pub layers: Vec<bool>,
}

/// Rotary position embedding: how each pair of a head's dimensions turns with the position.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Pair `i` turns by `theta^(−2i / head_dim)` radians a token.
    pub theta: f64,
    /// Which dimensions make a pair.
    pub pairing: Pairing,
    /// How slower turns were stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How the turns of RoPE were stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every turn is divided by `factor`.
    Linear {
        /// Divides every turn.
        factor: f64,
    },
    /// Theta grows with the sequence (dynamic NTK): a sequence of `n > original` tokens turns by
    /// `theta · (factor · n / original − factor + 1)^(head_dim / (head_dim − 2))`, as transformers has it. Keys that
    /// were cached earlier keep their turns.
    Dynamic {
        /// How many times the original context the model is meant for.
        factor: f64,
        /// The context up to which nothing changes, in tokens.
        original: usize,
    },
    /// Theta grows with the prompt: `theta · (2^⌈log₂(n / original) + 1⌉ − 1)^(head_dim / (head_dim − 2))`, where `n` is
    /// the length of the first pass and of no other. Dynamic NTK as `modeling_qwen.py` of Qwen's first generation has it.
    PromptNtk {
        /// The context up to which nothing changes, in tokens.
        original: usize,
    },
    /// YaRN.
    Yarn(Yarn),
    /// Llama 3's: fast turns are kept, slow ones divided by `factor`, those between interpolated.
    Llama3 {
        /// Divides the slowest turns.
        factor: f64,
        /// Turns with wavelengths above `original / low` tokens are divided.
        low: f64,
        /// Turns with wavelengths below `original / high` tokens are kept.
        high: f64,
        /// The context before stretching, in tokens.
        original: usize,
    },
    /// Each pair's turn is divided by its own factor, `head_dim / 2` of them: GGUF's `rope_freqs.weight`.
    Factors(Vec<f32>),
}

/// YaRN (arXiv:2309.00071) with the options that transformers knows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Divides the slowest turns.
    pub factor: f64,
    /// The context before stretching, in tokens.
    pub original: usize,
    /// Pairs that turn at least so often within the original context are kept.
    pub beta_fast: f64,
    /// Pairs that turn at most so often within it are divided by `factor`.
    pub beta_slow: f64,
    /// Multiplies queries and keys.
    pub attention: f64,
    /// Whether the blend between the two begins and ends at whole pairs.
    pub truncate: bool,
}

impl Yarn {
    /// The usual [`beta_fast`](Self::beta_fast).
    pub const BETA_FAST: f64 = 32.0;
    /// The usual [`beta_slow`](Self::beta_slow).
    pub const BETA_SLOW: f64 = 1.0;

    /// The [`attention`](Self::attention) that goes with `factor`: `0.1 · mscale · ln(factor) + 1`, 1 up to a factor of 1.
    ///
    /// ```
    /// use bitmill_checkpoint::Yarn;
    /// assert!((Yarn::usual_attention(4.0, 1.0) - 1.1386).abs() < 1e-4);
    /// ```
    pub fn usual_attention(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }
}

impl RopeScaling {
    /// The longest context of a model whose config names `positions`.
    pub(crate) fn stretched(&self, positions: usize) -> usize {
        let times = |original: usize, factor: f64| (original as f64 * factor) as usize;
        let stretched = match self {
            &Self::Dynamic { factor, original } => times(original, factor),
            Self::Yarn(yarn) => times(yarn.original, yarn.factor),
            _ => positions,
        };
        stretched.clamp(positions, positions.max(Limits::POSITIONS))
    }
}

impl fmt::Display for RopeScaling {
    /// `yarn, 4 times 32768 tokens`; `plain` where nothing is stretched.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("plain"),
            Self::Linear { factor } => write!(f, "linear, {factor} times"),
            Self::Dynamic { factor, original } => write!(f, "dynamic, {factor} times {original} tokens"),
            Self::PromptNtk { original } => write!(f, "dynamic NTK past {original} tokens"),
            Self::Yarn(yarn) => write!(f, "yarn, {} times {} tokens", yarn.factor, yarn.original),
            Self::Llama3 { factor, original, .. } => write!(f, "llama3, {factor} times {original} tokens"),
            Self::Factors(_) => f.write_str("a factor for each pair"),
        }
    }
}

impl ModelConfig {
    /// How many positions a token sees in `layer`; `None` if all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        window.layers.get(layer).is_some_and(|slides| *slides).then_some(window.tokens)
    }

    /// The context, in tokens, up to which the model is one without growing theta and log-n attention: those have no
    /// form but in the config that they came from.
    pub fn plain_positions(&self) -> usize {
        let original = match self.rope.scaling {
            RopeScaling::Dynamic { original, .. } | RopeScaling::PromptNtk { original } => original,
            _ => self.max_positions,
        };
        original.min(self.log_n.unwrap_or(original))
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key heads, or value heads, together.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// The largest sizes that a config may name. Products of any three stay below 2^63, and loops over layers end.
pub(crate) struct Limits;

impl Limits {
    pub const LAYERS: usize = 1 << 16;
    pub const WIDTH: usize = 1 << 24;
    pub const VOCAB: usize = 1 << 28;
    pub const POSITIONS: usize = 1 << 28;
}

/// What must hold between the sizes of any config; else the key at fault and the problem.
pub(crate) fn check_sizes(config: &ModelConfig) -> Result<(), (&'static str, String)> {
    let (heads, kv_heads) = (config.n_heads, config.n_kv_heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(("num_key_value_heads", format!("{kv_heads} heads do not divide {heads} query heads")));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(("head_dim", format!("{} is odd, and RoPE turns pairs", config.head_dim)));
    }
    if heads.checked_mul(config.head_dim).is_none_or(|width| width > Limits::WIDTH) {
        return Err(("head_dim", format!("{heads} heads of {} are too wide", config.head_dim)));
    }
    if !(config.rms_norm_eps.is_finite() && config.rms_norm_eps >= 0.0) {
        return Err(("rms_norm_eps", format!("{} is not a number from 0", config.rms_norm_eps)));
    }
    Ok(())
}
