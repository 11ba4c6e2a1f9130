//! llama.cpp's choice of an encoding for each tensor of a GGUF mix (`src/llama-quant.cpp`), as tables.
//!
//! A mix has a default; the rules of `mix_rules.rs` raise some tensors above it, and its fallbacks replace what a row
//! does not divide into. One-dimensional tensors and norms stay f32, as the converter from Hugging Face leaves them.

use std::str::FromStr;

use bitmill_tensor::{BlockType, Encoding, FloatType};

use crate::Error;
use crate::mix_rules::{self, Category};

/// A GGUF mix, under the name that llama-quantize gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are llama.cpp's own names")]
#[allow(non_camel_case_types, reason = "the variants are llama.cpp's own names")]
pub enum Mix {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K_S,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ2_M,
    IQ3_XXS,
    IQ3_XS,
    IQ3_S,
    IQ3_M,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4_MOE,
}

impl Mix {
    /// Every mix, by kind and size.
    pub const ALL: [Self; 30] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K_S,
        Self::Q2_K,
        Self::Q3_K_S,
        Self::Q3_K_M,
        Self::Q3_K_L,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_K_S,
        Self::Q5_K_M,
        Self::Q6_K,
        Self::IQ1_S,
        Self::IQ1_M,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ2_S,
        Self::IQ2_M,
        Self::IQ3_XXS,
        Self::IQ3_XS,
        Self::IQ3_S,
        Self::IQ3_M,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::MXFP4_MOE,
    ];

    /// The name in lower case: `"q4_k_m"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2_K_S => "q2_k_s",
            Self::Q2_K => "q2_k",
            Self::Q3_K_S => "q3_k_s",
            Self::Q3_K_M => "q3_k_m",
            Self::Q3_K_L => "q3_k_l",
            Self::Q4_K_S => "q4_k_s",
            Self::Q4_K_M => "q4_k_m",
            Self::Q5_K_S => "q5_k_s",
            Self::Q5_K_M => "q5_k_m",
            Self::Q6_K => "q6_k",
            Self::IQ1_S => "iq1_s",
            Self::IQ1_M => "iq1_m",
            Self::IQ2_XXS => "iq2_xxs",
            Self::IQ2_XS => "iq2_xs",
            Self::IQ2_S => "iq2_s",
            Self::IQ2_M => "iq2_m",
            Self::IQ3_XXS => "iq3_xxs",
            Self::IQ3_XS => "iq3_xs",
            Self::IQ3_S => "iq3_s",
            Self::IQ3_M => "iq3_m",
            Self::IQ4_NL => "iq4_nl",
            Self::IQ4_XS => "iq4_xs",
            Self::TQ1_0 => "tq1_0",
            Self::TQ2_0 => "tq2_0",
            Self::MXFP4_MOE => "mxfp4_moe",
        }
    }

    /// `general.file_type` of a file in this mix.
    pub const fn file_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q8_0 => 7,
            Self::Q2_K_S => 21,
            Self::Q2_K => 10,
            Self::Q3_K_S => 11,
            Self::Q3_K_M => 12,
            Self::Q3_K_L => 13,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_S => 16,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::IQ1_S => 24,
            Self::IQ1_M => 31,
            Self::IQ2_XXS => 19,
            Self::IQ2_XS => 20,
            Self::IQ2_S => 28,
            Self::IQ2_M => 29,
            Self::IQ3_XXS => 23,
            Self::IQ3_XS => 22,
            Self::IQ3_S => 26,
            Self::IQ3_M => 27,
            Self::IQ4_NL => 25,
            Self::IQ4_XS => 30,
            Self::TQ1_0 => 36,
            Self::TQ2_0 => 37,
            Self::MXFP4_MOE => 38,
        }
    }

    /// What a tensor gets that no rule names.
    pub const fn default_block(self) -> BlockType {
        match self {
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q4_1 => BlockType::Q4_1,
            Self::Q5_0 => BlockType::Q5_0,
            Self::Q5_1 => BlockType::Q5_1,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q2_K_S | Self::Q2_K => BlockType::Q2_K,
            Self::Q3_K_S | Self::Q3_K_M | Self::Q3_K_L => BlockType::Q3_K,
            Self::Q4_K_S | Self::Q4_K_M => BlockType::Q4_K,
            Self::Q5_K_S | Self::Q5_K_M => BlockType::Q5_K,
            Self::Q6_K => BlockType::Q6_K,
            Self::IQ1_S => BlockType::IQ1_S,
            Self::IQ1_M => BlockType::IQ1_M,
            Self::IQ2_XXS => BlockType::IQ2_XXS,
            // As llama.cpp has it: the type of that name is IQ2_M's.
            Self::IQ2_XS | Self::IQ2_S => BlockType::IQ2_XS,
            Self::IQ2_M => BlockType::IQ2_S,
            Self::IQ3_XXS => BlockType::IQ3_XXS,
            Self::IQ3_XS | Self::IQ3_S | Self::IQ3_M => BlockType::IQ3_S,
            Self::IQ4_NL => BlockType::IQ4_NL,
            Self::IQ4_XS => BlockType::IQ4_XS,
            Self::TQ1_0 => BlockType::TQ1_0,
            Self::TQ2_0 => BlockType::TQ2_0,
            // Experts get MXFP4 by a rule.
            Self::MXFP4_MOE => BlockType::Q8_0,
        }
    }
}

impl Mix {
    /// Whether llama-quantize refuses to make a tensor's blocks without an importance matrix: those of few bits, of all
    /// tensors but embedding and head.
    ///
    /// ```
    /// use bitmill_quant::Mix;
    /// use bitmill_tensor::BlockType;
    /// assert!(Mix::IQ3_XXS.needs_importance("blk.0.attn_q.weight", BlockType::IQ2_S));
    /// assert!(Mix::Q2_K_S.needs_importance("blk.0.attn_q.weight", BlockType::Q2_K));
    /// assert!(!Mix::Q2_K.needs_importance("blk.0.attn_q.weight", BlockType::Q2_K));
    /// ```
    pub fn needs_importance(self, gguf_name: &str, block: BlockType) -> bool {
        let few_bits = match block {
            BlockType::IQ1_S | BlockType::IQ1_M | BlockType::IQ2_XXS | BlockType::IQ2_XS => true,
            BlockType::IQ2_S | BlockType::IQ3_XXS => true,
            BlockType::Q2_K => self == Self::Q2_K_S,
            _ => false,
        };
        few_bits && !matches!(gguf_name, "token_embd.weight" | "output.weight")
    }
}

impl FromStr for Mix {
    type Err = Error;

    /// In either case.
    fn from_str(name: &str) -> Result<Self, Error> {
        let lower = name.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|mix| mix.name() == lower)
            .ok_or_else(|| Error::UnknownMix { name: name.to_owned() })
    }
}

/// What the choice depends on: one tensor and the model around it.
#[derive(Debug, Clone, Copy)]
pub struct MixTensor<'a> {
    /// Its name in a GGUF file: `"blk.3.attn_v.weight"`.
    pub gguf_name: &'a str,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// Decoder layers of the model.
    pub n_layers: usize,
    /// Weights in a row.
    pub in_features: usize,
    /// Rows.
    pub out_features: usize,
    /// Dimensions of the tensor.
    pub n_dims: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Experts in a layer; 0 in a model without.
    pub n_experts: usize,
    /// `general.architecture`: `"qwen2"`, `"llama"`.
    pub architecture: &'a str,
    /// Whether the model has an `output.weight` of its own (untied).
    pub has_output: bool,
    /// Whether there is an importance matrix.
    pub has_importance: bool,
}

/// What a tensor gets, and why when that is not what the mix wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The encoding.
    pub encoding: Encoding,
    /// Why it fell back; empty where it did not.
    pub reason: String,
}

/// llama.cpp's encoding for `tensor` in `mix`.
///
/// ```
/// use bitmill_quant::{Mix, MixTensor, choose};
/// use bitmill_tensor::{BlockType, Encoding};
/// let down = MixTensor {
///     gguf_name: "blk.40.ffn_down.weight",
///     layer: Some(40),
///     n_layers: 80,
///     in_features: 29568,
///     out_features: 8192,
///     n_dims: 2,
///     n_heads: 64,
///     n_kv_heads: 8,
///     n_experts: 0,
///     architecture: "qwen2",
///     has_output: true,
///     has_importance: false,
/// };
/// let choice = choose(Mix::Q4_K_M, &down);
/// assert_eq!(choice.encoding, Encoding::Block(BlockType::Q5_0));
/// assert_eq!(choice.reason, "29568 input features do not divide into q4_k blocks of 256");
/// ```
pub fn choose(mix: Mix, tensor: &MixTensor) -> Choice {
    if !is_quantizable(tensor) {
        return Choice { encoding: Encoding::Float(FloatType::F32), reason: String::new() };
    }
    let category = Category::of(tensor);
    let mut reason = String::new();
    let uneven = |block: BlockType| !tensor.in_features.is_multiple_of(block.weights());
    let mut block = mix_rules::block(mix, category, tensor);
    if uneven(block) {
        let describe = |block: BlockType| {
            format!(
                "{} input features do not divide into {block} blocks of {}",
                tensor.in_features,
                block.weights()
            )
        };
        reason = describe(block);
        block = match category {
            Category::Output => BlockType::Q8_0,
            _ => mix_rules::fallback(block),
        };
        if uneven(block) {
            return Choice { encoding: Encoding::Float(FloatType::F16), reason: describe(block) };
        }
    }
    Choice { encoding: Encoding::Block(block), reason }
}

/// llama.cpp's `tensor_allows_quantization`, as far as Qwen2 and Llama models have such tensors.
fn is_quantizable(tensor: &MixTensor) -> bool {
    // ggml does not count trailing dimensions of 1: a matrix of one row is a vector to it.
    tensor.n_dims >= 2
        && tensor.out_features > 1
        && tensor.gguf_name.ends_with("weight")
        && !tensor.gguf_name.contains("_norm.weight")
        // Routers decide for whole experts.
        && !tensor.gguf_name.contains("ffn_gate_inp.weight")
}
