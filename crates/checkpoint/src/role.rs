//! What a tensor does in the model: the one table of names and shapes.

use crate::{Family, ModelConfig};

/// What a tensor does, in which decoder layer and in which of its experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Role {
    /// The decoder layer, from 0; `None` outside the layers.
    pub layer: Option<usize>,
    /// The expert of that layer, from 0; `None` outside experts, also in a shared one.
    pub expert: Option<usize>,
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
    /// Rates the experts.
    Router,
    /// Says how much of the shared expert is let through.
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
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
    /// The part after `model.layers.N.` in a layer, after `model.layers.N.mlp.experts.E.` in an expert, else the whole name.
    hf: &'static str,
    /// The part after `blk.N.` in a layer or an expert, else the whole name.
    gguf: &'static str,
    place: Place,
    need: Need,
    shape: fn(&ModelConfig) -> Vec<usize>,
}

/// Where tensors of a kind are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    Layer,
    /// In each expert of a layer. GGUF has those of a layer in one tensor.
    Expert,
}

const fn layer(
    kind: RoleKind,
    hf: &'static str,
    gguf: &'static str,
    need: Need,
    shape: fn(&ModelConfig) -> Vec<usize>,
) -> Row {
    Row { kind, hf, gguf, place: Place::Layer, need, shape }
}

const fn expert(
    kind: RoleKind,
    hf: &'static str,
    gguf: &'static str,
    shape: fn(&ModelConfig) -> Vec<usize>,
) -> Row {
    Row { kind, hf, gguf, place: Place::Expert, need: Always, shape }
}

const fn outside(
    kind: RoleKind,
    hf: &'static str,
    gguf: &'static str,
    need: Need,
    shape: fn(&ModelConfig) -> Vec<usize>,
) -> Row {
    Row { kind, hf, gguf, place: Place::Outside, need, shape }
}

use Need::{AllOrNone, Always, UnlessTied};

/// In the order of a forward pass.
const ROLES: [Row; 26] = [
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
    layer(RoleKind::Router, "mlp.gate.weight", "ffn_gate_inp.weight", Always, |c| {
        vec![c.experts.as_ref().map_or(0, |experts| experts.count), c.hidden_size]
    }),
    expert(RoleKind::FfnGate, "gate_proj.weight", "ffn_gate_exps.weight", |c| {
        vec![expert_width(c), c.hidden_size]
    }),
    expert(RoleKind::FfnUp, "up_proj.weight", "ffn_up_exps.weight", |c| vec![expert_width(c), c.hidden_size]),
    expert(RoleKind::FfnDown, "down_proj.weight", "ffn_down_exps.weight", |c| {
        vec![c.hidden_size, expert_width(c)]
    }),
    layer(
        RoleKind::SharedRouter,
        "mlp.shared_expert_gate.weight",
        "ffn_gate_inp_shexp.weight",
        Always,
        |c| vec![1, c.hidden_size],
    ),
    layer(RoleKind::SharedGate, "mlp.shared_expert.gate_proj.weight", "ffn_gate_shexp.weight", Always, |c| {
        vec![shared_width(c), c.hidden_size]
    }),
    layer(RoleKind::SharedUp, "mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight", Always, |c| {
        vec![shared_width(c), c.hidden_size]
    }),
    layer(RoleKind::SharedDown, "mlp.shared_expert.down_proj.weight", "ffn_down_shexp.weight", Always, |c| {
        vec![c.hidden_size, shared_width(c)]
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

fn expert_width(config: &ModelConfig) -> usize {
    config.experts.as_ref().map_or(0, |experts| experts.width)
}

fn shared_width(config: &ModelConfig) -> usize {
    config.experts.as_ref().and_then(|experts| experts.shared_width).unwrap_or(0)
}

const HF_LAYER: &str = "model.layers.";
/// After the layer.
const HF_EXPERT: &str = "mlp.experts.";
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
        Self { layer: None, expert: None, kind }
    }

    /// A role in decoder layer `layer`.
    pub const fn in_layer(layer: usize, kind: RoleKind) -> Self {
        Self { layer: Some(layer), expert: None, kind }
    }

    /// A role in expert `expert` of decoder layer `layer`.
    pub const fn in_expert(layer: usize, expert: usize, kind: RoleKind) -> Self {
        Self { layer: Some(layer), expert: Some(expert), kind }
    }

    fn row(self) -> Option<&'static Row> {
        let place = match (self.layer, self.expert) {
            (None, _) => Place::Outside,
            (Some(_), None) => Place::Layer,
            (Some(_), Some(_)) => Place::Expert,
        };
        ROLES.iter().find(|row| row.kind == self.kind && row.place == place)
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
        Some(match (self.layer, self.expert) {
            (Some(layer), Some(expert)) => format!("{HF_LAYER}{layer}.{HF_EXPERT}{expert}.{}", row.hf),
            (Some(layer), None) => format!("{HF_LAYER}{layer}.{}", row.hf),
            (None, _) => row.hf.to_owned(),
        })
    }

    /// The GGUF name, `blk.3.attn_q.weight`; `None` for [`RoleKind::Other`]. The experts of a layer share one name.
    pub fn gguf_name(self) -> Option<String> {
        let row = self.row()?;
        Some(match self.layer {
            Some(layer) => format!("{GGUF_LAYER}{layer}.{}", row.gguf),
            None => row.gguf.to_owned(),
        })
    }

    /// The GGUF name of the tensor that holds it together with others in files of Qwen's first generation.
    pub(crate) fn fused_gguf_name(self) -> Option<String> {
        let holds =
            |(name, kinds): &&(&str, [RoleKind; 3])| !name.contains("c_attn") && kinds.contains(&self.kind);
        let (name, _) = FUSED.iter().find(holds)?;
        Some(format!("{GGUF_LAYER}{}.{name}", self.layer?))
    }

    /// The role of the tensor with this Hugging Face name; [`RoleKind::Other`] if it has none.
    pub fn from_canonical_name(name: &str) -> Self {
        let found = match split_layer(name, HF_LAYER) {
            None => Self::find(name, None, None, |row| row.hf),
            Some((None, _)) => None,
            Some((layer, rest)) => match split_layer(rest, HF_EXPERT) {
                None => Self::find(rest, layer, None, |row| row.hf),
                Some((None, _)) => None,
                Some((expert, rest)) => Self::find(rest, layer, expert, |row| row.hf),
            },
        };
        found.unwrap_or(Self::outside(RoleKind::Other))
    }

    /// The role of the tensor with this GGUF name; [`RoleKind::Other`] if it has none. A tensor with the experts of a layer
    /// gets the role of the first.
    pub fn from_gguf_name(name: &str) -> Self {
        let found = match split_layer(name, GGUF_LAYER) {
            None => Self::find(name, None, None, |row| row.gguf),
            Some((None, _)) => None,
            Some((layer, rest)) => Self::find(rest, layer, None, |row| row.gguf)
                .or_else(|| Self::find(rest, layer, Some(0), |row| row.gguf)),
        };
        found.unwrap_or(Self::outside(RoleKind::Other))
    }

    /// The role at this place whose row's name there is `name`.
    fn find(
        name: &str,
        layer: Option<usize>,
        expert: Option<usize>,
        of: fn(&Row) -> &'static str,
    ) -> Option<Self> {
        let role = |row: &Row| Self { layer, expert, kind: row.kind };
        let row = ROLES
            .iter()
            .find(|row| of(row) == name && role(row).row().is_some_and(|at| at.place == row.place))?;
        Some(role(row))
    }

    /// The role of the tensor that Qwen's first generation calls so; [`RoleKind::Other`] if it has none, or several.
    pub(crate) fn from_generation_1_name(name: &str) -> Self {
        let find = |rest: &str, layer: Option<usize>| {
            let (kind, _) = GENERATION_1.iter().find(|(_, known)| *known == rest)?;
            Some(Self { layer, expert: None, kind: *kind }).filter(|role| role.row().is_some())
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
        Some(kinds.map(|kind| Self { layer, expert: None, kind })).filter(|_| layer.is_some())
    }

    /// The shape that `config` asks for; `None` for [`RoleKind::Other`].
    pub fn expected_shape(self, config: &ModelConfig) -> Option<Vec<usize>> {
        self.row().map(|row| (row.shape)(config))
    }

    /// Whether it is a weight matrix: neither norm nor bias nor router.
    pub fn is_matrix(self) -> bool {
        self.kind.is_matrix()
    }

    /// Whether models with `config` may have it: the reference of the others never looks at it.
    pub(crate) fn belongs_to(self, config: &ModelConfig) -> bool {
        let experts = self.layer.and_then(|layer| config.experts_in(layer));
        match (self.expert, self.kind) {
            (Some(expert), _) => experts.is_some_and(|experts| expert < experts.count),
            (None, RoleKind::FfnGate | RoleKind::FfnUp | RoleKind::FfnDown) => experts.is_none(),
            (None, kind) if kind.is_router() || kind.is_shared() => {
                experts.is_some() && kind.belongs_to(config.family)
            }
            (None, kind) => kind.belongs_to(config.family),
        }
    }

    /// Every role of a model with `config`, in the order of a forward pass.
    pub(crate) fn all(config: &ModelConfig) -> impl Iterator<Item = (Self, Need)> {
        let outside = |row: &'static Row| (Self::outside(row.kind), row.need);
        let in_layer = |layer: usize| {
            let n_experts = config.experts_in(layer).map_or(0, |experts| experts.count);
            ROLES.iter().filter(|row| row.place != Place::Outside).flat_map(move |row| {
                let experts = if row.place == Place::Expert { 0..n_experts } else { 0..1 };
                experts.map(move |expert| {
                    let expert = (row.place == Place::Expert).then_some(expert);
                    (Self { layer: Some(layer), expert, kind: row.kind }, row.need)
                })
            })
        };
        let first = ROLES.iter().take_while(|row| row.place == Place::Outside).map(outside);
        let layers = (0..config.n_layers).flat_map(in_layer);
        let last = ROLES.iter().skip_while(|row| row.place == Place::Outside);
        let last = last.filter(|row| row.place == Place::Outside).map(outside);
        first.chain(layers).chain(last).filter(move |(role, _)| role.belongs_to(config))
    }
}

impl RoleKind {
    /// Whether models of `family` may have it, as far as the family alone decides.
    fn belongs_to(self, family: Family) -> bool {
        match self {
            Self::Router => family.has_experts(),
            Self::SharedRouter | Self::SharedGate | Self::SharedUp | Self::SharedDown => {
                family.has_shared_expert()
            }
            Self::AttnQNorm | Self::AttnKNorm => matches!(family, Family::Qwen3 | Family::Qwen3Moe),
            Self::AttnQBias | Self::AttnKBias | Self::AttnVBias => family != Family::Mistral,
            Self::AttnOutputBias => matches!(family, Family::Llama | Family::Qwen3 | Family::Qwen3Moe),
            _ => true,
        }
    }

    /// Whether it is a matrix of the block that every token goes through beside its experts.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::SharedGate | Self::SharedUp | Self::SharedDown)
    }

    /// Whether it is a router: a small matrix that decides where tokens go, and stays a float.
    pub fn is_router(self) -> bool {
        matches!(self, Self::Router | Self::SharedRouter)
    }

    /// Whether it is a weight matrix: neither norm nor bias nor router, and not [`RoleKind::Other`].
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
                | Self::SharedGate
                | Self::SharedUp
                | Self::SharedDown
        )
    }
}

/// The layer, if it is a number, and what follows `prefix` and it.
fn split_layer<'n>(name: &'n str, prefix: &str) -> Option<(Option<usize>, &'n str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    Some((canonical_number(number), rest))
}

/// `7` but not `07` or `+7`, so that no two names mean one tensor.
pub(crate) fn canonical_number(text: &str) -> Option<usize> {
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
            let role = match row.place {
                Place::Outside => Role::outside(row.kind),
                Place::Layer => Role::in_layer(12, row.kind),
                Place::Expert => Role::in_expert(12, 0, row.kind),
            };
            assert_eq!(Role::from_canonical_name(&role.canonical_name().unwrap()), role);
            assert_eq!(Role::from_gguf_name(&role.gguf_name().unwrap()), role);
            if row.place == Place::Expert {
                let other = Role { expert: Some(107), ..role };
                assert_eq!(Role::from_canonical_name(&other.canonical_name().unwrap()), other);
                assert_eq!(other.gguf_name(), role.gguf_name());
            }
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
            "model.layers.1.mlp.experts.07.up_proj.weight",
            "model.layers.1.mlp.experts.7.gate.weight",
            "model.layers.1.mlp.experts.mlp.up_proj.weight",
        ] {
            assert_eq!(Role::from_canonical_name(name).kind, RoleKind::Other, "{name}");
        }
    }
}
