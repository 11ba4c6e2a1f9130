//! Which tiny models there are.

use crate::tokenizer::Split;

/// Experts of the variants that have them, and their width.
pub(crate) const EXPERTS: (usize, usize) = (8, 64);
/// Width of the shared expert.
pub(crate) const SHARED: usize = 96;
/// Query heads of every variant.
pub(crate) const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// A model's shape and family. All have a vocabulary of 320 rows for 283 tokens, 4 query heads over 2 KV heads and 2
/// layers; hidden 64 and FFN 160 unless said otherwise. RoPE's theta is 50000, so that a reader's default shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Qwen2: biases on q, k and v; untied head; config as transformers 5 writes it.
    Qwen2,
    /// Qwen2 with a tied head.
    Qwen2Tied,
    /// The weights of [`Qwen2`](Self::Qwen2), config as published checkpoints have it.
    Qwen2OldConfig,
    /// Llama: no biases; untied head.
    Llama,
    /// Llama 3's scaled RoPE, original context 16.
    LlamaLlama3,
    /// Qwen2 with hidden 256 and FFN 288: some rows divide into blocks of 256, some only into blocks of 32.
    Qwen2Wide,
    /// Llama with hidden 256, FFN 512 and a tied head: every matrix takes blocks of 256.
    LlamaWide,
    /// Llama 2: a KV head for every head, config with the few keys that published ones have, so theta is 10000.
    Llama2,
    /// Llama with linear RoPE scaling, factor 2.
    LlamaLinear,
    /// Llama with dynamic RoPE scaling, factor 2 from 16 positions on.
    LlamaDynamic,
    /// Mistral with a window of 12 positions in every layer.
    Mistral,
    /// Mistral as later ones are: `sliding_window` null, heads of 32 that are wider than hidden divided by heads.
    MistralNull,
    /// Qwen2 with a window of 8 positions in its second layer.
    Qwen2Window,
    /// Qwen2 with YaRN, factor 4 from 32 positions on, config as Qwen 2.5's model cards say to write it.
    Qwen2Yarn,
    /// Qwen3: norms of each head, no biases, heads of 32.
    Qwen3,
    /// Qwen3 with a tied head and every option of YaRN.
    Qwen3Yarn,
    /// Qwen's first generation: fused q, k and v, a KV head for every head.
    QwenV1,
    /// The same, trained on 16 positions, with dynamic NTK and log-n attention past them.
    QwenV1Long,
    /// Qwen2-MoE: 8 experts of 64, 2 for a token, and a shared one of 96.
    Qwen2Moe,
    /// The same with shares that sum to one and an ordinary block in the first layer: llama.cpp has no form for either.
    Qwen2MoeMixed,
    /// Qwen3-MoE: 8 experts of 64, 3 for a token, their shares summing to one.
    Qwen3Moe,
}

/// What a variant's names, shapes and config are made like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Qwen2,
    Llama,
    Mistral,
    Qwen3,
    QwenV1,
    Qwen2Moe,
    Qwen3Moe,
}

impl Variant {
    /// Every variant.
    pub const ALL: [Self; 21] = [
        Self::Qwen2,
        Self::Qwen2Tied,
        Self::Qwen2OldConfig,
        Self::Llama,
        Self::LlamaLlama3,
        Self::Qwen2Wide,
        Self::LlamaWide,
        Self::Llama2,
        Self::LlamaLinear,
        Self::LlamaDynamic,
        Self::Mistral,
        Self::MistralNull,
        Self::Qwen2Window,
        Self::Qwen2Yarn,
        Self::Qwen3,
        Self::Qwen3Yarn,
        Self::QwenV1,
        Self::QwenV1Long,
        Self::Qwen2Moe,
        Self::Qwen2MoeMixed,
        Self::Qwen3Moe,
    ];

    /// A folder's name: `tiny-qwen2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "tiny-qwen2",
            Self::Qwen2Tied => "tiny-qwen2-tied",
            Self::Qwen2OldConfig => "tiny-qwen2-old-config",
            Self::Llama => "tiny-llama",
            Self::LlamaLlama3 => "tiny-llama-llama3",
            Self::Qwen2Wide => "tiny-qwen2-wide",
            Self::LlamaWide => "tiny-llama-wide",
            Self::Llama2 => "tiny-llama-2",
            Self::LlamaLinear => "tiny-llama-linear",
            Self::LlamaDynamic => "tiny-llama-dynamic",
            Self::Mistral => "tiny-mistral",
            Self::MistralNull => "tiny-mistral-null",
            Self::Qwen2Window => "tiny-qwen2-window",
            Self::Qwen2Yarn => "tiny-qwen2-yarn",
            Self::Qwen3 => "tiny-qwen3",
            Self::Qwen3Yarn => "tiny-qwen3-yarn",
            Self::QwenV1 => "tiny-qwen-v1",
            Self::QwenV1Long => "tiny-qwen-v1-long",
            Self::Qwen2Moe => "tiny-qwen2-moe",
            Self::Qwen2MoeMixed => "tiny-qwen2-moe-mixed",
            Self::Qwen3Moe => "tiny-qwen3-moe",
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Qwen2
            | Self::Qwen2Tied
            | Self::Qwen2OldConfig
            | Self::Qwen2Wide
            | Self::Qwen2Window
            | Self::Qwen2Yarn => Kind::Qwen2,
            Self::Llama
            | Self::LlamaLlama3
            | Self::LlamaWide
            | Self::Llama2
            | Self::LlamaLinear
            | Self::LlamaDynamic => Kind::Llama,
            Self::Mistral | Self::MistralNull => Kind::Mistral,
            Self::Qwen3 | Self::Qwen3Yarn => Kind::Qwen3,
            Self::QwenV1 | Self::QwenV1Long => Kind::QwenV1,
            Self::Qwen2Moe | Self::Qwen2MoeMixed => Kind::Qwen2Moe,
            Self::Qwen3Moe => Kind::Qwen3Moe,
        }
    }

    /// Whether llama.cpp could run it: what it cannot is not written as GGUF.
    pub fn has_gguf_form(self) -> bool {
        self != Self::Qwen2MoeMixed
    }

    /// Whether `layer` has experts.
    pub(crate) fn has_experts(self, layer: usize) -> bool {
        match self {
            Self::Qwen2Moe | Self::Qwen3Moe => true,
            Self::Qwen2MoeMixed => layer % 2 == 1,
            _ => false,
        }
    }

    pub(crate) fn is_tied(self) -> bool {
        matches!(self, Self::Qwen2Tied | Self::LlamaWide | Self::Qwen3Yarn)
    }

    /// Hidden and FFN width.
    pub(crate) fn widths(self) -> (usize, usize) {
        match self {
            Self::Qwen2Wide => (256, 288),
            Self::LlamaWide => (256, 512),
            _ => (64, 160),
        }
    }

    pub(crate) fn head_dim(self) -> usize {
        match self {
            Self::Qwen3 | Self::Qwen3Yarn | Self::Qwen3Moe | Self::MistralNull => 32,
            _ => self.widths().0 / HEADS,
        }
    }

    pub(crate) fn kv_heads(self) -> usize {
        if self.kind() == Kind::QwenV1 || self == Self::Llama2 { HEADS } else { KV_HEADS }
    }

    /// The name that seeds the weights.
    pub(crate) fn seed(self) -> &'static str {
        match self {
            Self::Qwen2OldConfig => Self::Qwen2.name(),
            other => other.name(),
        }
    }

    /// How its tokenizer splits text.
    pub fn split(self) -> Split {
        if matches!(self.kind(), Kind::Llama | Kind::Mistral) { Split::SmolLm } else { Split::Qwen2 }
    }
}
