//! Mixtures of experts: what configs say of them, and files that hold all experts of a layer in one tensor.
//!
//! ```text
//! here, and in Hugging Face folders              in GGUF
//! mlp.gate.weight              [n, hidden]       ffn_gate_inp.weight         [n, hidden]
//! mlp.experts.E.gate_proj      [width, hidden]   ffn_gate_exps.weight        [n, width, hidden]
//! mlp.experts.E.up_proj        [width, hidden]   ffn_up_exps.weight          [n, width, hidden]
//! mlp.experts.E.down_proj      [hidden, width]   ffn_down_exps.weight        [n, hidden, width]
//! mlp.shared_expert_gate       [1, hidden]       ffn_gate_inp_shexp.weight   [hidden]
//! mlp.shared_expert.gate_proj  …                 ffn_gate_shexp.weight       …
//! ```
//!
//! transformers 5 holds `mlp.experts.gate_up_proj` `[n, 2 · width, hidden]`, gate first, and `mlp.experts.down_proj`
//! `[n, hidden, width]` in memory; folders that were saved so are read. Each expert is a slice of the larger tensor,
//! nothing is copied.

use crate::config::Limits;
use crate::config_json::Fields;
use crate::gguf_config::Keys;
use crate::gguf_in::GgufTensor;
use crate::role::canonical_number;
use crate::safetensors_in::StTensor;
use crate::{Error, Family, ModelConfig, Role, RoleKind};

/// The experts of a model: feed-forward blocks of which a router picks some for each token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experts {
    /// How many there are in a layer.
    pub count: usize,
    /// How many a token goes through.
    pub used: usize,
    /// Width of each.
    pub width: usize,
    /// Width of the block that every token goes through beside them; `None` where there is none.
    pub shared_width: Option<usize>,
    /// Whether the shares of the experts used are made to sum to one.
    pub normalised: bool,
    /// Layers with one ordinary block of `intermediate_size` instead, in order.
    pub dense_layers: Vec<usize>,
}

impl ModelConfig {
    /// The experts of `layer`; `None` if it has an ordinary feed-forward block.
    pub fn experts_in(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.dense_layers.binary_search(&layer).is_err())
    }
}

impl Family {
    /// Whether layers have experts.
    pub fn has_experts(self) -> bool {
        matches!(self, Self::Qwen2Moe | Self::Qwen3Moe)
    }

    /// Whether every token goes through a block of its own beside them.
    pub(crate) fn has_shared_expert(self) -> bool {
        self == Self::Qwen2Moe
    }

    /// Whether llama.cpp makes shares sum to one: no key says so.
    fn gguf_normalises_shares(self) -> bool {
        self == Self::Qwen3Moe
    }
}

/// The most experts that a config may name; loops over the experts of all layers end at the first that is missing.
const MOST: usize = 1 << 16;

/// Reads what config.json says; `None` for families without experts.
pub(crate) fn from_json(fields: &Fields, family: Family, n_layers: usize) -> Result<Option<Experts>, Error> {
    if !family.has_experts() {
        return Ok(None);
    }
    // transformers 5 writes `num_local_experts` for qwen3_moe.
    let count = match fields.optional_size("num_local_experts", MOST)? {
        Some(count) => count,
        None => fields.size("num_experts", MOST)?,
    };
    let step = fields.optional_size("decoder_sparse_step", Limits::LAYERS)?.unwrap_or(1);
    let named = fields.counts("mlp_only_layers", Limits::LAYERS)?;
    let is_dense = |layer: &usize| named.contains(layer) || !(layer + 1).is_multiple_of(step);
    let experts = Experts {
        count,
        used: fields.size("num_experts_per_tok", MOST)?,
        width: fields.size("moe_intermediate_size", Limits::WIDTH)?,
        shared_width: match family.has_shared_expert() {
            true => Some(fields.size("shared_expert_intermediate_size", Limits::WIDTH)?),
            false => None,
        },
        normalised: fields.flag("norm_topk_prob")?.unwrap_or(false),
        dense_layers: (0..n_layers).filter(is_dense).collect(),
    };
    check(&experts).map_err(|problem| fields.wrong("num_experts_per_tok", problem))?;
    Ok(Some(experts))
}

/// Reads what GGUF metadata says, and what llama.cpp takes for granted: no layer without experts, shares that sum to
/// one for qwen3moe alone, widths that follow from `feed_forward` where no key names them.
pub(crate) fn from_keys(keys: &Keys, family: Family, feed_forward: usize) -> Result<Option<Experts>, Error> {
    if !family.has_experts() {
        return Ok(None);
    }
    let used = keys.needed("expert_used_count", MOST)?;
    let width = match keys.size("expert_feed_forward_length", Limits::WIDTH)? {
        Some(width) => width,
        None => feed_forward / used,
    };
    let shared = keys.size("expert_shared_feed_forward_length", Limits::WIDTH)?.unwrap_or(feed_forward);
    let experts = Experts {
        count: keys.needed("expert_count", MOST)?,
        used,
        width,
        shared_width: family.has_shared_expert().then_some(shared),
        normalised: family.gguf_normalises_shares(),
        dense_layers: Vec::new(),
    };
    check(&experts).map_err(|problem| keys.wrong("expert_used_count", problem))?;
    Ok(Some(experts))
}

fn check(experts: &Experts) -> Result<(), String> {
    let Experts { count, used, .. } = experts;
    if used > count { Err(format!("{used} experts a token in a model of {count}")) } else { Ok(()) }
}

/// What a GGUF file cannot say of `config`, in words; llama.cpp would compute something else.
pub(crate) fn unsaid_in_gguf(config: &ModelConfig) -> Option<String> {
    let (family, experts) = (config.family, config.experts.as_ref()?);
    if !experts.dense_layers.is_empty() {
        return Some(format!("a {family} model with layers that have no experts"));
    }
    if experts.normalised != family.gguf_normalises_shares() {
        let normalised = if experts.normalised { "true" } else { "false" };
        return Some(format!("a {family} model with `norm_topk_prob` {normalised}"));
    }
    if config.tied && family.has_shared_expert() {
        return Some(format!("a {family} model with a tied head"));
    }
    None
}

/// The tensors of a GGUF file with their roles, those with the experts of a layer cut into one tensor an expert.
///
/// A tensor of another shape than `config` asks for stays whole, under its own name and without a role: it has no place in
/// the model then.
pub(crate) fn cut_merged(
    config: &ModelConfig,
    tensors: impl Iterator<Item = GgufTensor>,
) -> impl Iterator<Item = (Role, GgufTensor)> {
    tensors.flat_map(|tensor| {
        let role = Role::from_gguf_name(&tensor.name);
        let shape = role.expected_shape(config).unwrap_or_default();
        if role.kind == RoleKind::SharedRouter && tensor.shape == shape[1..] {
            return vec![(role, GgufTensor { shape, ..tensor })];
        }
        let Some(first) = role.expert else {
            return vec![(role, tensor)];
        };
        let n_experts = match (&config.experts, tensor.shape.split_first()) {
            (Some(experts), Some((&count, rest))) if count == experts.count && rest == shape => count,
            _ => return vec![(Role::outside(RoleKind::Other), tensor)],
        };
        let size = tensor.bytes.len() / n_experts;
        let cut = |expert: usize| {
            let bytes = tensor.bytes.slice(expert * size..(expert + 1) * size);
            let part = GgufTensor { shape: shape.clone(), bytes, ..tensor.clone() };
            (Role { expert: Some(expert), ..role }, part)
        };
        (first..n_experts).map(cut).collect()
    })
}

/// The tensors of a folder, `mlp.experts.gate_up_proj` and `mlp.experts.down_proj` cut into one tensor an expert.
pub(crate) fn cut_fused(
    checkpoint: &str,
    config: &ModelConfig,
    stored: Vec<StTensor>,
) -> Result<Vec<StTensor>, Error> {
    let Some(experts) = &config.experts else {
        return Ok(stored);
    };
    let mut tensors = Vec::with_capacity(stored.len());
    for tensor in stored {
        let Some((layer, kinds)) = fused(&tensor.name) else {
            tensors.push(tensor);
            continue;
        };
        let role = |expert, kind| Role::in_expert(layer, expert, kind);
        let shape = role(0, kinds[0]).expected_shape(config).unwrap_or_default();
        let expected = vec![experts.count, kinds.len() * shape[0], shape[1]];
        if tensor.shape != expected {
            return Err(Error::TensorShape {
                checkpoint: checkpoint.to_owned(),
                tensor: tensor.name,
                found: tensor.shape,
                expected,
            });
        }
        let size = tensor.bytes.len() / (experts.count * kinds.len());
        let parts = (0..experts.count).flat_map(|expert| kinds.iter().map(move |&kind| role(expert, kind)));
        tensors.extend(parts.enumerate().map(|(at, role)| StTensor {
            name: role.canonical_name().unwrap_or_default(),
            shape: shape.clone(),
            bytes: tensor.bytes.slice(at * size..(at + 1) * size),
            ..tensor.clone()
        }));
    }
    Ok(tensors)
}

/// The layer of a fused tensor, and what it holds of each expert.
fn fused(name: &str) -> Option<(usize, &'static [RoleKind])> {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let (layer, matrix) = name.strip_prefix("model.layers.")?.split_once(".mlp.experts.")?;
    let kinds: &[RoleKind] = match matrix {
        "gate_up_proj" => &[RoleKind::FfnGate, RoleKind::FfnUp],
        "down_proj" => &[RoleKind::FfnDown],
        _ => return None,
    };
    Some((canonical_number(layer)?, kinds))
}
