//! llama.cpp's choice of an encoding for each tensor of a GGUF mix (`src/llama-quant.cpp`), as tables.
//!
//! A mix has a default; `RULES` raises some tensors above it; `FALLBACKS` replaces what a row does not divide
//! into. One-dimensional tensors and norms stay f32, as the converter from Hugging Face leaves them.

use std::str::FromStr;

use bitmill_tensor::{BlockType, Encoding, FloatType};

use crate::Error;

/// A GGUF mix, under the name that llama-quantize gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are llama.cpp's own names")]
#[allow(non_camel_case_types, reason = "the variants are llama.cpp's own names")]
pub enum Mix {
    Q4_0,
    Q8_0,
    Q4_K_M,
}

impl Mix {
    /// Every mix.
    pub const ALL: [Self; 3] = [Self::Q4_0, Self::Q8_0, Self::Q4_K_M];

    /// The name in lower case: `"q4_k_m"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q8_0 => "q8_0",
            Self::Q4_K_M => "q4_k_m",
        }
    }

    /// `general.file_type` of a file in this mix.
    pub const fn file_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
        }
    }

    /// What a tensor gets that no rule names.
    pub const fn default_block(self) -> BlockType {
        match self {
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4_K_M => BlockType::Q4_K,
        }
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
    /// `general.architecture`: `"qwen2"`, `"llama"`.
    pub architecture: &'a str,
    /// Whether the model has an `output.weight` of its own (untied).
    pub has_output: bool,
}

/// What a tensor gets, and why when that is not what the mix wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The encoding.
    pub encoding: Encoding,
    /// Why it fell back; empty where it did not.
    pub reason: String,
}

/// What llama.cpp's rules tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Category {
    /// `output.weight`, or the embedding that stands in for it.
    Output,
    /// Attention values, alone or fused with queries and keys.
    AttnV,
    FfnDown,
    Other,
}

/// Where a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    /// In every layer, and outside of layers.
    All,
    /// The first eighth, the last eighth, and every third between: llama.cpp's `use_more_bits`.
    MoreBits,
    /// In every layer of a model that llama.cpp takes for a 70B: 80 layers, grouped queries or `qwen2`.
    Of70B,
}

/// What a rule gives: an encoding of ours, or one of llama.cpp's that we have a wider one for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gives {
    Block(BlockType),
    /// llama.cpp's choice by name, and the next wider type that is encoded here.
    Wider(&'static str, BlockType),
}

struct Rule {
    mix: Mix,
    category: Category,
    layers: Layers,
    gives: Gives,
}

/// The first rule that applies wins; without one a tensor gets the mix's default.
const RULES: [Rule; 5] = [
    Rule {
        mix: Mix::Q4_0,
        category: Category::Output,
        layers: Layers::All,
        gives: Gives::Block(BlockType::Q6_K),
    },
    Rule {
        mix: Mix::Q4_K_M,
        category: Category::Output,
        layers: Layers::All,
        gives: Gives::Block(BlockType::Q6_K),
    },
    Rule {
        mix: Mix::Q4_K_M,
        category: Category::AttnV,
        layers: Layers::MoreBits,
        gives: Gives::Block(BlockType::Q6_K),
    },
    Rule {
        mix: Mix::Q4_K_M,
        category: Category::AttnV,
        layers: Layers::Of70B,
        gives: Gives::Wider("q5_k", BlockType::Q6_K),
    },
    Rule {
        mix: Mix::Q4_K_M,
        category: Category::FfnDown,
        layers: Layers::MoreBits,
        gives: Gives::Block(BlockType::Q6_K),
    },
];

/// What stands in for a type whose blocks do not tile a row. Where that does not tile it either: f16.
const FALLBACKS: [(BlockType, BlockType); 2] =
    [(BlockType::Q4_K, BlockType::Q5_0), (BlockType::Q6_K, BlockType::Q8_0)];

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
///     architecture: "qwen2",
///     has_output: true,
/// };
/// let choice = choose(Mix::Q4_K_M, &down);
/// assert_eq!(choice.encoding, Encoding::Block(BlockType::Q5_0));
/// assert_eq!(choice.reason, "29568 input features do not divide into q4_k blocks of 256");
/// ```
pub fn choose(mix: Mix, tensor: &MixTensor) -> Choice {
    if !is_quantizable(tensor) {
        return Choice { encoding: Encoding::Float(FloatType::F32), reason: String::new() };
    }
    let category = category(tensor);
    let mut reason = String::new();
    let uneven = |block: BlockType| !tensor.in_features.is_multiple_of(block.weights());
    let rule = RULES
        .iter()
        .find(|rule| rule.mix == mix && rule.category == category && applies(rule.layers, tensor));
    let mut block = match rule.map(|rule| rule.gives) {
        None => mix.default_block(),
        Some(Gives::Block(block)) => block,
        Some(Gives::Wider(theirs, block)) => {
            reason = format!("llama.cpp's choice is {theirs}; {block} is the next wider type encoded here");
            block
        }
    };
    if uneven(block) {
        let describe = |block: BlockType| {
            format!(
                "{} input features do not divide into {block} blocks of {}",
                tensor.in_features,
                block.weights()
            )
        };
        reason = describe(block);
        if let Some((_, fallback)) = FALLBACKS.iter().find(|(from, _)| *from == block) {
            block = *fallback;
        }
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
}

fn category(tensor: &MixTensor) -> Category {
    let name = tensor.gguf_name;
    if name == "output.weight" || (name == "token_embd.weight" && !tensor.has_output) {
        Category::Output
    } else if name.contains("attn_v.weight") || name.contains("attn_qkv.weight") {
        Category::AttnV
    } else if name.contains("ffn_down") {
        Category::FfnDown
    } else {
        Category::Other
    }
}

fn applies(layers: Layers, tensor: &MixTensor) -> bool {
    match layers {
        Layers::All => true,
        Layers::MoreBits => tensor.layer.is_some_and(|layer| more_bits(layer, tensor.n_layers)),
        Layers::Of70B => {
            tensor.n_layers == 80
                && match tensor.architecture {
                    "qwen2" => true,
                    "llama" => tensor.n_heads != tensor.n_kv_heads,
                    _ => false,
                }
        }
    }
}

fn more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}
