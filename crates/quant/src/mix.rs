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
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

impl Mix {
    /// Every mix, by kind and size.
    pub const ALL: [Self; 16] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K_S,
        Self::Q3_K_M,
        Self::Q3_K_L,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_K_S,
        Self::Q5_K_M,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// The name in lower case: `"q4_k_m"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2_K => "q2_k",
            Self::Q3_K_S => "q3_k_s",
            Self::Q3_K_M => "q3_k_m",
            Self::Q3_K_L => "q3_k_l",
            Self::Q4_K_S => "q4_k_s",
            Self::Q4_K_M => "q4_k_m",
            Self::Q5_K_S => "q5_k_s",
            Self::Q5_K_M => "q5_k_m",
            Self::Q6_K => "q6_k",
            Self::IQ4_NL => "iq4_nl",
            Self::IQ4_XS => "iq4_xs",
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
            Self::Q2_K => 10,
            Self::Q3_K_S => 11,
            Self::Q3_K_M => 12,
            Self::Q3_K_L => 13,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_S => 16,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::IQ4_NL => 25,
            Self::IQ4_XS => 30,
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
            Self::Q2_K => BlockType::Q2_K,
            Self::Q3_K_S | Self::Q3_K_M | Self::Q3_K_L => BlockType::Q3_K,
            Self::Q4_K_S | Self::Q4_K_M => BlockType::Q4_K,
            Self::Q5_K_S | Self::Q5_K_M => BlockType::Q5_K,
            Self::Q6_K => BlockType::Q6_K,
            Self::IQ4_NL => BlockType::IQ4_NL,
            Self::IQ4_XS => BlockType::IQ4_XS,
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
    /// Experts in a layer; 0 in a model without.
    pub n_experts: usize,
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
    AttnK,
    AttnOutput,
    FfnDown,
    Other,
}

/// Where a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    /// In every layer.
    Always,
    /// In the first of the layers, so many.
    First(usize),
    /// In the first of so many equal parts of the layers.
    FirstPart(usize),
    /// The first eighth, the last eighth, and every third between: llama.cpp's `use_more_bits`.
    MoreBits,
    /// Where four query heads or more share a key and value head.
    SharedByFour,
}

struct Rule {
    mix: Mix,
    category: Category,
    applies: Applies,
    gives: BlockType,
}

const fn rule(mix: Mix, category: Category, applies: Applies, gives: BlockType) -> Rule {
    Rule { mix, category, applies, gives }
}

/// The first rule that applies wins; without one a tensor gets the mix's default, and an output Q6_K.
const RULES: [Rule; 22] = [
    rule(Mix::Q2_K, Category::AttnV, Applies::SharedByFour, BlockType::Q4_K),
    rule(Mix::Q2_K, Category::AttnV, Applies::Always, BlockType::Q3_K),
    rule(Mix::Q2_K, Category::FfnDown, Applies::Always, BlockType::Q3_K),
    rule(Mix::Q2_K, Category::AttnOutput, Applies::Always, BlockType::Q3_K),
    rule(Mix::Q3_K_M, Category::AttnV, Applies::First(2), BlockType::Q5_K),
    rule(Mix::Q3_K_M, Category::AttnV, Applies::Always, BlockType::Q4_K),
    rule(Mix::Q3_K_M, Category::FfnDown, Applies::FirstPart(16), BlockType::Q5_K),
    rule(Mix::Q3_K_M, Category::FfnDown, Applies::Always, BlockType::Q4_K),
    rule(Mix::Q3_K_M, Category::AttnOutput, Applies::Always, BlockType::Q4_K),
    rule(Mix::Q3_K_L, Category::AttnV, Applies::Always, BlockType::Q5_K),
    rule(Mix::Q3_K_L, Category::FfnDown, Applies::Always, BlockType::Q5_K),
    rule(Mix::Q3_K_L, Category::AttnOutput, Applies::Always, BlockType::Q5_K),
    rule(Mix::Q4_K_S, Category::AttnV, Applies::First(4), BlockType::Q5_K),
    rule(Mix::Q4_K_S, Category::FfnDown, Applies::FirstPart(8), BlockType::Q5_K),
    rule(Mix::Q4_K_M, Category::AttnV, Applies::MoreBits, BlockType::Q6_K),
    rule(Mix::Q4_K_M, Category::FfnDown, Applies::MoreBits, BlockType::Q6_K),
    rule(Mix::Q5_K_M, Category::AttnV, Applies::MoreBits, BlockType::Q6_K),
    rule(Mix::Q5_K_M, Category::FfnDown, Applies::MoreBits, BlockType::Q6_K),
    rule(Mix::IQ4_NL, Category::AttnV, Applies::SharedByFour, BlockType::Q5_K),
    rule(Mix::IQ4_NL, Category::FfnDown, Applies::FirstPart(8), BlockType::Q5_K),
    rule(Mix::IQ4_XS, Category::AttnV, Applies::SharedByFour, BlockType::Q5_K),
    rule(Mix::IQ4_XS, Category::FfnDown, Applies::FirstPart(8), BlockType::Q5_K),
];

/// What stands in for a type whose blocks do not tile a row. Where that does not tile it either: f16.
const FALLBACKS: [(BlockType, BlockType); 6] = [
    (BlockType::Q2_K, BlockType::Q4_0),
    (BlockType::Q3_K, BlockType::Q4_0),
    (BlockType::Q4_K, BlockType::Q5_0),
    (BlockType::Q5_K, BlockType::Q5_1),
    (BlockType::Q6_K, BlockType::Q8_0),
    (BlockType::IQ4_XS, BlockType::IQ4_NL),
];

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
    let rule =
        RULES.iter().find(|rule| rule.mix == mix && rule.category == category && rule.applies.to(tensor));
    let mut block = match (rule, category) {
        (Some(rule), _) => rule.gives,
        (None, Category::Output) if mix != Mix::Q8_0 => BlockType::Q6_K,
        (None, _) => mix.default_block(),
    };
    if category == Category::AttnV && is_70b(tensor) && matches!(block, BlockType::Q3_K | BlockType::Q4_K) {
        block = BlockType::Q5_K;
    }
    if tensor.n_experts == 8 {
        block = of_eight_experts(mix, category).unwrap_or(block);
    }
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
        // Routers decide for whole experts.
        && !tensor.gguf_name.contains("ffn_gate_inp.weight")
}

fn category(tensor: &MixTensor) -> Category {
    let name = tensor.gguf_name;
    if name == "output.weight" || (name == "token_embd.weight" && !tensor.has_output) {
        Category::Output
    } else if name.contains("attn_v.weight") || name.contains("attn_qkv.weight") {
        Category::AttnV
    } else if name.contains("attn_k.weight") {
        Category::AttnK
    } else if name.contains("attn_output.weight") {
        Category::AttnOutput
    } else if name.contains("ffn_down") {
        Category::FfnDown
    } else {
        Category::Other
    }
}

impl Applies {
    fn to(self, tensor: &MixTensor) -> bool {
        let layer_is = |test: &dyn Fn(usize) -> bool| tensor.layer.is_some_and(test);
        match self {
            Self::Always => true,
            Self::First(count) => layer_is(&|layer| layer < count),
            Self::FirstPart(parts) => layer_is(&|layer| layer < tensor.n_layers / parts),
            Self::MoreBits => layer_is(&|layer| more_bits(layer, tensor.n_layers)),
            Self::SharedByFour => tensor.n_heads / tensor.n_kv_heads.max(1) >= 4,
        }
    }
}

/// Whether llama.cpp takes the model for a 70B, whose values are few and cheap to keep well: 80 layers, and grouped
/// queries or `qwen2`.
fn is_70b(tensor: &MixTensor) -> bool {
    tensor.n_layers == 80
        && match tensor.architecture {
            "qwen2" => true,
            "llama" => tensor.n_heads != tensor.n_kv_heads,
            _ => false,
        }
}

/// llama.cpp takes any model of eight experts for Mixtral, whose attention is a small part of it: what it gives that
/// in the place of a rule.
fn of_eight_experts(mix: Mix, category: Category) -> Option<BlockType> {
    use Mix::{IQ4_NL, IQ4_XS, Q2_K, Q3_K_M, Q3_K_S, Q4_K_M, Q4_K_S};
    match (category, mix) {
        (Category::AttnV | Category::AttnK, _) => Some(BlockType::Q8_0),
        (Category::AttnOutput, Q2_K | Q3_K_S | Q3_K_M | Q4_K_S | Q4_K_M | IQ4_NL | IQ4_XS) => {
            Some(BlockType::Q5_K)
        }
        (Category::AttnOutput, _) => Some(mix.default_block()),
        _ => None,
    }
}

fn more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}
