//! What a tensor does in the model: the one table of names and shapes.

use crate::ModelConfig;

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
    AttnK,
    AttnKBias,
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
const ROLES: [Row; 16] = [
    outside(RoleKind::TokenEmbedding, "model.embed_tokens.weight", "token_embd.weight", Always, |c| {
        vec![c.vocab_size, c.hidden_size]
    }),
    layer(RoleKind::AttnNorm, "input_layernorm.weight", "attn_norm.weight", Always, |c| vec![c.hidden_size]),
    layer(RoleKind::AttnQ, "self_attn.q_proj.weight", "attn_q.weight", Always, |c| {
        vec![c.q_width(), c.hidden_size]
    }),
    layer(RoleKind::AttnQBias, "self_attn.q_proj.bias", "attn_q.bias", AllOrNone, |c| vec![c.q_width()]),
    layer(RoleKind::AttnK, "self_attn.k_proj.weight", "attn_k.weight", Always, |c| {
        vec![c.kv_width(), c.hidden_size]
    }),
    layer(RoleKind::AttnKBias, "self_attn.k_proj.bias", "attn_k.bias", AllOrNone, |c| vec![c.kv_width()]),
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

    fn parse(name: &str, prefix: &str, of: fn(&Row) -> &'static str) -> Self {
        let (layer, rest) = match name.strip_prefix(prefix).and_then(|rest| rest.split_once('.')) {
            Some((number, rest)) => match canonical_number(number) {
                Some(layer) => (Some(layer), rest),
                None => return Self::outside(RoleKind::Other),
            },
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
        let row = |layer: Option<usize>| move |row: &'static Row| (Self { layer, kind: row.kind }, row.need);
        let first = ROLES.iter().take_while(|row| !row.per_layer).map(row(None));
        let layers = (0..config.n_layers)
            .flat_map(move |index| ROLES.iter().filter(|row| row.per_layer).map(row(Some(index))));
        let last = ROLES.iter().skip_while(|row| !row.per_layer).filter(|row| !row.per_layer).map(row(None));
        first.chain(layers).chain(last)
    }
}

impl RoleKind {
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
