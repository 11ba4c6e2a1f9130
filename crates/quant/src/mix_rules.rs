//! The rules of llama.cpp's mixes (`llama_tensor_get_type_impl`, `tensor_type_fallback`), as tables.

use bitmill_tensor::BlockType;

use crate::mix::{Mix, MixTensor};

/// What llama.cpp's rules tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Category {
    /// `output.weight`, or the embedding that stands in for it.
    Output,
    /// The embedding of a model with an output of its own.
    Embedding,
    AttnQ,
    AttnK,
    /// Attention values, alone or fused with queries and keys.
    AttnV,
    AttnOutput,
    FfnGate,
    FfnUp,
    FfnDown,
    Other,
}

impl Category {
    pub fn of(tensor: &MixTensor) -> Self {
        let name = tensor.gguf_name;
        match name {
            "output.weight" => return Self::Output,
            "token_embd.weight" => return if tensor.has_output { Self::Embedding } else { Self::Output },
            _ => {}
        }
        const PARTS: [(&str, Category); 8] = [
            ("attn_qkv.weight", Category::AttnV),
            ("attn_v.weight", Category::AttnV),
            ("attn_k.weight", Category::AttnK),
            ("attn_q.weight", Category::AttnQ),
            ("attn_output.weight", Category::AttnOutput),
            ("ffn_up", Category::FfnUp),
            ("ffn_gate", Category::FfnGate),
            ("ffn_down", Category::FfnDown),
        ];
        PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |(_, category)| *category)
    }
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
    /// The same with an importance matrix, and without.
    FirstPartWeighed(usize),
    FirstPartUnweighed(usize),
    /// In the first of so many equal parts, counting the matrices of this kind and not their layers.
    FirstPartOfKind(usize),
    /// Without an importance matrix.
    Unweighed,
    /// Between the first eighth and the last.
    Middle,
    /// The first eighth, the last eighth, and every third between: llama.cpp's `use_more_bits`.
    MoreBits,
    /// Where four query heads or more share a key and value head.
    SharedByFour,
    /// The same, or where a layer has four experts or more.
    SharedByFourOrExperts,
    /// In the matrices of experts.
    Experts,
}

struct Rule {
    mixes: &'static [Mix],
    category: Category,
    applies: Applies,
    gives: BlockType,
}

const fn rule(mixes: &'static [Mix], category: Category, applies: Applies, gives: BlockType) -> Rule {
    Rule { mixes, category, applies, gives }
}

/// The mixes of least bits, whose attention values and first layers are raised by rules of their own.
const FEW_BITS: &[Mix] = &[Mix::IQ1_S, Mix::IQ1_M, Mix::IQ2_XXS, Mix::IQ2_XS, Mix::IQ2_S, Mix::IQ2_M];
const FEWEST_BITS: &[Mix] = &[Mix::IQ1_S, Mix::IQ1_M, Mix::IQ2_XXS, Mix::IQ2_XS];
const IQ2_LARGER: &[Mix] = &[Mix::IQ2_S, Mix::IQ2_M];
const IQ1: &[Mix] = &[Mix::IQ1_S, Mix::IQ1_M];
const IQ3_MIDDLE: &[Mix] = &[Mix::IQ3_XS, Mix::IQ3_S];
const IQ4: &[Mix] = &[Mix::IQ4_NL, Mix::IQ4_XS];
const TERNARY: &[Mix] = &[Mix::TQ1_0, Mix::TQ2_0];
const Q4_OR_Q5_M: &[Mix] = &[Mix::Q4_K_M, Mix::Q5_K_M];

/// The first rule that applies wins; without one a tensor gets the mix's default, and an output Q6_K.
const RULES: &[Rule] = &[
    rule(FEW_BITS, Category::Output, Applies::Always, BlockType::Q5_K),
    rule(&[Mix::IQ3_XXS], Category::Output, Applies::Always, BlockType::Q5_K),
    rule(FEWEST_BITS, Category::Embedding, Applies::Always, BlockType::Q2_K),
    rule(IQ2_LARGER, Category::Embedding, Applies::Always, BlockType::IQ3_S),
    rule(&[Mix::IQ3_XXS], Category::Embedding, Applies::Always, BlockType::IQ3_S),
    rule(TERNARY, Category::Embedding, Applies::Always, BlockType::Q4_K),
    rule(FEW_BITS, Category::AttnV, Applies::SharedByFourOrExperts, BlockType::Q4_K),
    rule(FEWEST_BITS, Category::AttnV, Applies::Always, BlockType::Q2_K),
    rule(IQ2_LARGER, Category::AttnV, Applies::Always, BlockType::IQ3_S),
    rule(FEWEST_BITS, Category::FfnDown, Applies::FirstPartOfKind(8), BlockType::Q2_K),
    rule(IQ2_LARGER, Category::FfnDown, Applies::FirstPartOfKind(8), BlockType::IQ3_S),
    rule(IQ1, Category::AttnOutput, Applies::Always, BlockType::IQ2_XXS),
    rule(IQ2_LARGER, Category::AttnOutput, Applies::Always, BlockType::IQ3_S),
    rule(&[Mix::Q2_K_S], Category::AttnV, Applies::SharedByFour, BlockType::Q4_K),
    rule(&[Mix::Q2_K_S], Category::FfnDown, Applies::FirstPart(8), BlockType::Q4_K),
    rule(&[Mix::Q2_K], Category::AttnV, Applies::SharedByFour, BlockType::Q4_K),
    rule(&[Mix::Q2_K], Category::AttnV, Applies::Always, BlockType::Q3_K),
    rule(&[Mix::Q2_K], Category::FfnDown, Applies::Always, BlockType::Q3_K),
    rule(&[Mix::Q2_K], Category::AttnOutput, Applies::Always, BlockType::Q3_K),
    rule(&[Mix::IQ3_XXS], Category::AttnV, Applies::SharedByFour, BlockType::Q4_K),
    rule(&[Mix::IQ3_XXS], Category::AttnV, Applies::Unweighed, BlockType::IQ3_S),
    rule(&[Mix::IQ3_XXS], Category::AttnK, Applies::Always, BlockType::IQ2_S),
    rule(&[Mix::IQ3_XXS], Category::AttnQ, Applies::Always, BlockType::IQ2_S),
    rule(&[Mix::IQ3_XXS], Category::FfnDown, Applies::FirstPartUnweighed(8), BlockType::Q4_K),
    rule(&[Mix::IQ3_XXS], Category::FfnDown, Applies::Unweighed, BlockType::Q3_K),
    rule(&[Mix::IQ3_XXS], Category::AttnOutput, Applies::Always, BlockType::IQ3_S),
    rule(IQ3_MIDDLE, Category::AttnV, Applies::SharedByFour, BlockType::Q4_K),
    rule(&[Mix::IQ3_XS], Category::AttnK, Applies::Always, BlockType::IQ3_XXS),
    rule(&[Mix::IQ3_XS], Category::AttnQ, Applies::Always, BlockType::IQ3_XXS),
    rule(&[Mix::IQ3_XS], Category::FfnGate, Applies::Middle, BlockType::IQ3_XXS),
    rule(&[Mix::IQ3_XS], Category::FfnUp, Applies::Middle, BlockType::IQ3_XXS),
    rule(&[Mix::IQ3_M], Category::AttnV, Applies::Always, BlockType::Q4_K),
    rule(&[Mix::IQ3_M], Category::FfnDown, Applies::FirstPart(8), BlockType::Q4_K),
    rule(&[Mix::IQ3_M], Category::AttnOutput, Applies::Always, BlockType::Q4_K),
    rule(&[Mix::Q3_K_M], Category::AttnV, Applies::First(2), BlockType::Q5_K),
    rule(&[Mix::Q3_K_M], Category::AttnV, Applies::Always, BlockType::Q4_K),
    rule(&[Mix::Q3_K_M], Category::FfnDown, Applies::FirstPart(16), BlockType::Q5_K),
    rule(&[Mix::Q3_K_M], Category::FfnDown, Applies::Always, BlockType::Q4_K),
    rule(&[Mix::Q3_K_M], Category::AttnOutput, Applies::Always, BlockType::Q4_K),
    rule(&[Mix::Q3_K_L], Category::AttnV, Applies::Always, BlockType::Q5_K),
    rule(&[Mix::Q3_K_L], Category::FfnDown, Applies::Always, BlockType::Q5_K),
    rule(&[Mix::Q3_K_L], Category::AttnOutput, Applies::Always, BlockType::Q5_K),
    rule(&[Mix::Q4_K_S], Category::AttnV, Applies::First(4), BlockType::Q5_K),
    rule(&[Mix::Q4_K_S], Category::FfnDown, Applies::FirstPart(8), BlockType::Q5_K),
    rule(Q4_OR_Q5_M, Category::AttnV, Applies::MoreBits, BlockType::Q6_K),
    rule(Q4_OR_Q5_M, Category::FfnDown, Applies::MoreBits, BlockType::Q6_K),
    rule(IQ4, Category::AttnV, Applies::SharedByFour, BlockType::Q5_K),
    rule(IQ4, Category::FfnDown, Applies::FirstPartUnweighed(8), BlockType::Q5_K),
    // Against what can happen to the first of them even with an importance matrix.
    rule(&[Mix::Q4_0], Category::FfnDown, Applies::FirstPartWeighed(8), BlockType::Q4_1),
    rule(&[Mix::Q5_0], Category::FfnDown, Applies::FirstPartWeighed(8), BlockType::Q5_1),
    rule(&[Mix::MXFP4_MOE], Category::FfnGate, Applies::Experts, BlockType::MXFP4),
    rule(&[Mix::MXFP4_MOE], Category::FfnUp, Applies::Experts, BlockType::MXFP4),
    rule(&[Mix::MXFP4_MOE], Category::FfnDown, Applies::Experts, BlockType::MXFP4),
];

/// The block type that the mix wants for a tensor, whatever the width of its rows.
pub(crate) fn block(mix: Mix, category: Category, tensor: &MixTensor) -> BlockType {
    let applies =
        |rule: &&Rule| rule.mixes.contains(&mix) && rule.category == category && rule.applies.to(tensor);
    let mut block = match (RULES.iter().find(applies), category) {
        (Some(rule), _) => rule.gives,
        (None, Category::Output) if mix.default_block() != BlockType::Q8_0 => BlockType::Q6_K,
        (None, _) => mix.default_block(),
    };
    let raised = category == Category::AttnV && !FEW_BITS.contains(&mix) && is_70b(tensor);
    if raised && matches!(block, BlockType::Q3_K | BlockType::Q4_K) {
        block = BlockType::Q5_K;
    }
    if tensor.n_experts == 8 {
        block = of_eight_experts(mix, category, tensor).unwrap_or(block);
    }
    block
}

/// What stands in for a type whose blocks do not tile a row; where that does not tile it either: f16.
pub(crate) const fn fallback(block: BlockType) -> BlockType {
    match block {
        BlockType::Q2_K | BlockType::Q3_K | BlockType::TQ1_0 | BlockType::TQ2_0 => BlockType::Q4_0,
        BlockType::Q4_K => BlockType::Q5_0,
        BlockType::Q5_K => BlockType::Q5_1,
        BlockType::Q6_K => BlockType::Q8_0,
        BlockType::IQ1_S | BlockType::IQ1_M | BlockType::IQ2_XXS | BlockType::IQ2_XS => BlockType::IQ4_NL,
        BlockType::IQ2_S | BlockType::IQ3_XXS | BlockType::IQ3_S | BlockType::IQ4_XS => BlockType::IQ4_NL,
        of_32 => of_32,
    }
}

impl Applies {
    fn to(self, tensor: &MixTensor) -> bool {
        let n = tensor.n_layers;
        let layer_is = |test: &dyn Fn(usize) -> bool| tensor.layer.is_some_and(test);
        let first_part = |parts: usize| layer_is(&|layer| layer < n / parts);
        let shared = tensor.n_heads / tensor.n_kv_heads.max(1) >= 4;
        match self {
            Self::Always => true,
            Self::First(count) => layer_is(&|layer| layer < count),
            Self::FirstPart(parts) => first_part(parts),
            Self::FirstPartWeighed(parts) => tensor.has_importance && first_part(parts),
            Self::FirstPartUnweighed(parts) => !tensor.has_importance && first_part(parts),
            Self::FirstPartOfKind(parts) => layer_is(&|layer| place_of_kind(tensor, layer) < n / parts),
            Self::Unweighed => !tensor.has_importance,
            Self::Middle => layer_is(&|layer| layer >= n / 8 && layer < 7 * n / 8),
            Self::MoreBits => layer_is(&|layer| more_bits(layer, n)),
            Self::SharedByFour => shared,
            Self::SharedByFourOrExperts => shared || tensor.n_experts >= 4,
            Self::Experts => tensor.n_experts > 1 && tensor.gguf_name.contains("_exps."),
        }
    }
}

/// How many matrices of the same kind come before: a layer of `qwen2moe` has those of its experts and the shared one's.
fn place_of_kind(tensor: &MixTensor, layer: usize) -> usize {
    match tensor.architecture {
        "qwen2moe" => 2 * layer + usize::from(tensor.gguf_name.contains("_shexp.")),
        _ => layer,
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
fn of_eight_experts(mix: Mix, category: Category, tensor: &MixTensor) -> Option<BlockType> {
    use Mix::{IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, IQ4_NL, IQ4_XS, Q2_K, Q3_K_M, Q3_K_S, Q4_K_M, Q4_K_S};
    const RAISED: &[Mix] =
        &[Q2_K, IQ3_XS, IQ3_XXS, Q3_K_S, Q3_K_M, IQ4_NL, Q4_K_S, Q4_K_M, IQ3_S, IQ3_M, IQ4_XS];
    match category {
        _ if mix == Mix::MXFP4_MOE => None,
        Category::AttnK if FEW_BITS.contains(&mix) => Some(BlockType::Q4_K),
        Category::AttnOutput if FEW_BITS.contains(&mix) => Some(BlockType::Q5_K),
        _ if FEW_BITS.contains(&mix) => None,
        Category::AttnV | Category::AttnK => Some(BlockType::Q8_0),
        Category::AttnOutput if RAISED.contains(&mix) => Some(BlockType::Q5_K),
        Category::AttnOutput => Some(mix.default_block()),
        Category::FfnDown if mix == IQ3_M && Applies::MoreBits.to(tensor) => Some(BlockType::Q4_K),
        _ => None,
    }
}

fn more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}
