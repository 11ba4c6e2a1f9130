//! The shape of a model: the numbers its tensors and its forward pass follow from.

use bitmill_tensor::FloatType;

use crate::{Family, Pairing};

/// The numbers of a decoder-only model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The model family.
    pub family: Family,
    /// Rows of the embedding; the tokenizer may have fewer tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
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
    /// The longest context that the model was made for, in tokens.
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

impl ModelConfig {
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
