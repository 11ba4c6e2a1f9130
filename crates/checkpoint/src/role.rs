//! What a tensor does in the model: the one table of names and shapes.

use crate::{Family, ModelConfig};

/// What a tensor does, and in which decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Role {
    /// The decoder layer, from 0; `None` outside the layers.
    pub layer: Option<usize>,
    /// What it does there.
    pub kind: RoleKind,
}

/// What a tensor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are the blocks of a decoder")]
pub enum RoleKind {
    TokenEmbedding,
    Output,
    OutputNorm,
    AttnNorm,
    AttnQ,
    AttnQBias,
    /// The norm of each head of q.
    AttnQNorm,
    AttnK,
    AttnKBias,
    /// The norm of each head of k.
    AttnKNorm,
    AttnV,
    AttnVBias,
    AttnOutput,
    AttnOutputBias,
    FfnNorm,
    FfnGate,
    FfnUp,
    FfnDown,
    /// None of these.
    Other,
}

/// Whether a model can be without a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Always,
    /// Absent where the head shares the embedding's weights.
    UnlessTied,
    /// In every layer or in none.
    AllOrNone,
}

struct Row {
    kind: RoleKind,
    /// The part after `model.layers.N.` if `per_layer`, else the whole name.
    hf: &'static str,
    /// The part after `blk.N.` if `per_layer`, else the whole name.
    gguf: &'static str,
    per_layer: bool,
    need: Need,
    shape: fn(&ModelConfig) -> Vec<usize>,
}

const fn layer(
    kind: RoleKind,
    hf: &'static str,
    gguf: &'static str,
    need: Need,
    shape: fn(&ModelConfig) -> Vec<usize>,
) -> Row {
    Row { kind, hf, gguf, per_layer: true, need, shape }
}

const fn outside(
    kind: RoleKind,
    hf: &'static str,
    gguf: &'static str,
    need: Need,
    shape: fn(&ModelConfig) -> Vec<usize>,
) -> Row {
    Row { kind, hf, gguf, per_layer: false, need, shape }
}

use Need::{AllOrNone, Always, UnlessTied};

/// In the order of a forward pass.
const ROLES: [Row; 18] = [
    outside(RoleKind::TokenEmbedding, "model.embed_tokens.weight", "token_embd.weight", Always, |c| {
        vec![c.vocab_size, c.hidden_size]
    }),
    layer(RoleKind::AttnNorm, "input_layernorm.weight", "attn_norm.weight", Always, |c| vec![c.hidden_size]),
    layer(RoleKind::AttnQ, "self_attn.q_proj.weight", "attn_q.weight", Always, |c| {
        vec![c.q_width(), c.hidden_size]
    }),
    layer(RoleKind::AttnQBias, "self_attn.q_proj.bias", "attn_q.bias", AllOrNone, |c| vec![c.q_width()]),
    layer(RoleKind::AttnQNorm, "self_attn.q_norm.weight", "attn_q_norm.weight", Always, |c| vec![c.head_dim]),
    layer(RoleKind::AttnK, "self_attn.k_proj.weight", "attn_k.weight", Always, |c| {
        vec![c.kv_width(), c.hidden_size]
    }),
    layer(RoleKind::AttnKBias, "self_attn.k_proj.bias", "attn_k.bias", AllOrNone, |c| vec![c.kv_width()]),
    layer(RoleKind::AttnKNorm, "self_attn.k_norm.weight", "attn_k_norm.weight", Always, |c| vec![c.head_dim]),
    layer(RoleKind::AttnV, "self_attn.v_proj.weight", "attn_v.weight", Always, |c| {
        vec![c.kv_width(), c.hidden_size]
    }),
    layer(RoleKind::AttnVBias, "self_attn.v_proj.bias", "attn_v.bias", AllOrNone, |c| vec![c.kv_width()]),
    layer(RoleKind::AttnOutput, "self_attn.o_proj.weight", "attn_output.weight", Always, |c| {
        vec![c.hidden_size, c.q_width()]
    }),
    layer(RoleKind::AttnOutputBias, "self_attn.o_proj.bias", "attn_output.bias", AllOrNone, |c| {
        vec![c.hidden_size]
    }),
    layer(RoleKind::FfnNorm, "post_attention_layernorm.weight", "ffn_norm.weight", Always, |c| {
        vec![c.hidden_size]
    }),
    layer(RoleKind::FfnGate, "mlp.gate_proj.weight", "ffn_gate.weight", Always, |c| {
        vec![c.intermediate_size, c.hidden_size]
    }),
    layer(RoleKind::FfnUp, "mlp.up_proj.weight", "ffn_up.weight", Always, |c| {
        vec![c.intermediate_size, c.hidden_size]
    }),
    layer(RoleKind::FfnDown, "mlp.down_proj.weight", "ffn_down.weight", Always, |c| {
        vec![c.hidden_size, c.intermediate_size]
    }),
    outside(RoleKind::OutputNorm, "model.norm.weight", "output_norm.weight", Always, |c| vec![c.hidden_size]),
    outside(RoleKind::Output, "lm_head.weight", "output.weight", UnlessTied, |c| {
        vec![c.vocab_size, c.hidden_size]
    }),
];

const HF_LAYER: &str = "model.layers.";
const GGUF_LAYER: &str = "blk.";

/// What Qwen's first generation calls them; q, k and v are one.
const GENERATION_1: [(RoleKind, &str); 9] = [
    (RoleKind::TokenEmbedding, "transformer.wte.weight"),
    (RoleKind::AttnNorm, "ln_1.weight"),
    (RoleKind::AttnOutput, "attn.c_proj.weight"),
    (RoleKind::FfnNorm, "ln_2.weight"),
    (RoleKind::FfnUp, "mlp.w1.weight"),
    (RoleKind::FfnGate, "mlp.w2.weight"),
    (RoleKind::FfnDown, "mlp.c_proj.weight"),
    (RoleKind::OutputNorm, "transformer.ln_f.weight"),
    (RoleKind::Output, "lm_head.weight"),
];
const GENERATION_1_LAYER: &str = "transformer.h.";

/// Tensors that hold q, k and v, one after another.
const FUSED: [(&str, [RoleKind; 3]); 4] = [
    ("attn.c_attn.weight", [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV]),
    ("attn.c_attn.bias", [RoleKind::AttnQBias, RoleKind::AttnKBias, RoleKind::AttnVBias]),
    ("attn_qkv.weight", [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV]),
    ("attn_qkv.bias", [RoleKind::AttnQBias, RoleKind::AttnKBias, RoleKind::AttnVBias]),
];

impl Role {
    /// A role outside the layers, or [`RoleKind::Other`].
    pub const fn outside(kind: RoleKind) -> Self {
        Self { layer: None, kind }
    }

    /// A role in decoder layer `layer`.
    pub const fn in_layer(layer: usize, kind: RoleKind) -> Self {
        Self { layer: Some(layer), kind }
    }

    fn row(self) -> Option<&'static Row> {
        ROLES.iter().find(|row| row.kind == self.kind && row.per_layer == self.layer.is_some())
    }

    /// The Hugging Face name, `model.layers.3.self_attn.q_proj.weight`; `None` for [`RoleKind::Other`].
    ///
    /// ```
    /// use bitmill_checkpoint::{Role, RoleKind};
    /// let role = Role::in_layer(3, RoleKind::AttnQ);
    /// assert_eq!(role.canonical_name().as_deref(), Some("model.layers.3.self_attn.q_proj.weight"));
    /// assert_eq!(role.gguf_name().as_deref(), Some("blk.3.attn_q.weight"));
    /// assert_eq!(Role::from_gguf_name("blk.3.attn_q.weight"), role);
    /// ```
    pub fn canonical_name(self) -> Option<String> {
        let row = self.row()?;
        Some(match self.layer {
            Some(layer) => format!("{HF_LAYER}{layer}.{}", row.hf),
            None => row.hf.to_owned(),
        })
    }

    /// The GGUF name, `blk.3.attn_q.weight`; `None` for [`RoleKind::Other`].
    pub fn gguf_name(self) -> Option<String> {
        let row = self.row()?;
        Some(match self.layer {
            Some(layer) => format!("{GGUF_LAYER}{layer}.{}", row.gguf),
            None => row.gguf.to_owned(),
        })
    }

    /// The role of the tensor with this Hugging Face name; [`RoleKind::Other`] if it has none.
    pub fn from_canonical_name(name: &str) -> Self {
        Self::parse(name, HF_LAYER, |row| row.hf)
    }

    /// The role of the tensor with this GGUF name; [`RoleKind::Other`] if it has none.
    pub fn from_gguf_name(name: &str) -> Self {
        Self::parse(name, GGUF_LAYER, |row| row.gguf)
    }

    /// The role of the tensor that Qwen's first generation calls so; [`RoleKind::Other`] if it has none, or several.
    pub(crate) fn from_generation_1_name(name: &str) -> Self {
        let find = |rest: &str, layer: Option<usize>| {
            let (kind, _) = GENERATION_1.iter().find(|(_, known)| *known == rest)?;
            Some(Self { layer, kind: *kind }).filter(|role| role.row().is_some())
        };
        let found = match split_layer(name, GENERATION_1_LAYER) {
            Some((layer, rest)) => layer.and_then(|layer| find(rest, Some(layer))),
            None => find(name, None),
        };
        found.unwrap_or(Self::outside(RoleKind::Other))
    }

    /// The roles in the tensor with this name, a row of each after another, if it is a fused one of Qwen's first generation:
    /// `transformer.h.3.attn.c_attn.weight`, in GGUF `blk.3.attn_qkv.weight`.
    pub(crate) fn fused(name: &str) -> Option<[Self; 3]> {
        let (layer, rest) =
            split_layer(name, GENERATION_1_LAYER).or_else(|| split_layer(name, GGUF_LAYER))?;
        let (_, kinds) = FUSED.iter().find(|(known, _)| *known == rest)?;
        Some(kinds.map(|kind| Self { layer, kind })).filter(|_| layer.is_some())
    }

    fn parse(name: &str, prefix: &str, of: fn(&Row) -> &'static str) -> Self {
        let (layer, rest) = match split_layer(name, prefix) {
            Some((None, _)) => return Self::outside(RoleKind::Other),
            Some((layer, rest)) => (layer, rest),
            None => (None, name),
        };
        let row = ROLES.iter().find(|row| row.per_layer == layer.is_some() && of(row) == rest);
        match row {
            Some(row) => Self { layer, kind: row.kind },
            None => Self::outside(RoleKind::Other),
        }
    }

    /// The shape that `config` asks for; `None` for [`RoleKind::Other`].
    pub fn expected_shape(self, config: &ModelConfig) -> Option<Vec<usize>> {
        self.row().map(|row| (row.shape)(config))
    }

    /// Whether it is a weight matrix: neither norm nor bias.
    pub fn is_matrix(self) -> bool {
        self.kind.is_matrix()
    }

    /// Every role of a model with `config`, in the order of a forward pass.
    pub(crate) fn all(config: &ModelConfig) -> impl Iterator<Item = (Self, Need)> {
        let family = config.family;
        let row = |layer: Option<usize>| move |row: &'static Row| (Self { layer, kind: row.kind }, row.need);
        let first = ROLES.iter().take_while(|row| !row.per_layer).map(row(None));
        let layers = (0..config.n_layers)
            .flat_map(move |index| ROLES.iter().filter(|row| row.per_layer).map(row(Some(index))));
        let last = ROLES.iter().skip_while(|row| !row.per_layer).filter(|row| !row.per_layer).map(row(None));
        first.chain(layers).chain(last).filter(move |(role, _)| role.kind.belongs_to(family))
    }
}

impl RoleKind {
    /// Whether models of `family` may have it: the reference of the others never looks at it.
    pub(crate) fn belongs_to(self, family: Family) -> bool {
        match self {
            Self::AttnQNorm | Self::AttnKNorm => family == Family::Qwen3,
            Self::AttnQBias | Self::AttnKBias | Self::AttnVBias => family != Family::Mistral,
            Self::AttnOutputBias => matches!(family, Family::Llama | Family::Qwen3),
            _ => true,
        }
    }

    /// Whether it is a weight matrix: neither norm nor bias, and not [`RoleKind::Other`].
    pub fn is_matrix(self) -> bool {
        matches!(
            self,
            Self::TokenEmbedding
                | Self::Output
                | Self::AttnQ
                | Self::AttnK
                | Self::AttnV
                | Self::AttnOutput
                | Self::FfnGate
                | Self::FfnUp
                | Self::FfnDown
        )
    }
}

/// The layer, if it is a number, and what follows `prefix` and it.
fn split_layer<'n>(name: &'n str, prefix: &str) -> Option<(Option<usize>, &'n str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((canonical_number(number), rest))
}

/// `7` but not `07` or `+7`, so that no two names mean one tensor.
fn canonical_number(text: &str) -> Option<usize> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_found_by_both_of_its_names() {
        for row in &ROLES {
            let role = Role { layer: row.per_layer.then_some(12), kind: row.kind };
            assert_eq!(Role::from_canonical_name(&role.canonical_name().unwrap()), role);
            assert_eq!(Role::from_gguf_name(&role.gguf_name().unwrap()), role);
        }
    }

    #[test]
    fn the_first_generation_has_a_name_for_every_role() {
        for row in ROLES.iter().filter(|row| row.kind.belongs_to(Family::Qwen)) {
            let fused = FUSED.iter().filter(|(_, kinds)| kinds.contains(&row.kind)).count();
            let named = GENERATION_1.iter().filter(|(kind, _)| *kind == row.kind).count();
            // A name of its own, or a fused one in each of the two formats.
            assert!((named, fused) == (1, 0) || (named, fused) == (0, 2), "{:?}", row.kind);
        }
        let role = |name| Role::from_generation_1_name(name);
        assert_eq!(role("transformer.h.3.mlp.w2.weight"), Role::in_layer(3, RoleKind::FfnGate));
        assert_eq!(role("transformer.ln_f.weight"), Role::outside(RoleKind::OutputNorm));
        for name in [
            "transformer.h.03.ln_1.weight",
            "ln_1.weight",
            "transformer.h.1.lm_head.weight",
            "transformer.h.1.x",
        ] {
            assert_eq!(role(name).kind, RoleKind::Other, "{name}");
        }
        let fused = Role::fused("blk.7.attn_qkv.bias").unwrap();
        assert_eq!(fused[2], Role::in_layer(7, RoleKind::AttnVBias));
        assert!(
            Role::fused("transformer.h.x.attn.c_attn.bias").is_none()
                && Role::fused("attn_qkv.bias").is_none()
        );
    }

    #[test]
    fn one_tensor_has_one_name() {
        for name in [
            "model.layers.07.input_layernorm.weight",
            "model.layers.+7.input_layernorm.weight",
            "model.layers..input_layernorm.weight",
            "model.layers.99999999999999999999.input_layernorm.weight",
            "input_layernorm.weight",
            "model.layers.1.lm_head.weight",
            "model.layers.1.mlp.gate_proj.bias",
        ] {
            assert_eq!(Role::from_canonical_name(name).kind, RoleKind::Other, "{name}");
        }
    }
}
