//! Qwen's first generation (`QWenLMHeadModel`): what [`Qwen2`](crate::Family::Qwen2) computes, under other names.
//!
//! ```text
//! config.json               here
//! intermediate_size         twice the width of the feed-forward block; so too `feed_forward_length` in GGUF
//! kv_channels               head_dim
//! layer_norm_epsilon        rms_norm_eps
//! rotary_emb_base           rope_theta
//! seq_length                the context of training; `use_dynamic_ntk` and `use_logn_attn` begin where it ends
//!
//! tensors                   here
//! attn.c_attn               q, k and v, one after another: each becomes a view of its rows
//! mlp.w1, mlp.w2            up, gate
//! ```
//!
//! Such a checkpoint has the config.json of the same model as a Qwen2 (`config_out`), which is what can be written of it: transformers
//! no longer has the class.

use crate::config::{Limits, check_sizes};
use crate::config_json::{Fields, FromJson, dtype, end_tokens};
use crate::gguf_in::GgufTensor;
use crate::safetensors_in::StTensor;
use crate::{Error, Family, ModelConfig, Pairing, Region, Role, Rope, RopeScaling};

/// Reads config.json and generation_config.json; what is absent is as in `configuration_qwen.py`.
pub(crate) fn read(fields: &Fields, generation: Option<&Fields>) -> Result<FromJson, Error> {
    let hidden_size = fields.size("hidden_size", Limits::WIDTH)?;
    let n_heads = fields.size("num_attention_heads", Limits::WIDTH)?;
    let head_dim = fields.optional_size("kv_channels", Limits::WIDTH)?.unwrap_or(128);
    // The model splits its fused projection at multiples of the hidden size.
    if n_heads.checked_mul(head_dim) != Some(hidden_size) {
        let problem = format!("{n_heads} heads of {head_dim} are not the hidden size {hidden_size}");
        return Err(fields.wrong("kv_channels", problem));
    }
    let doubled = fields.size("intermediate_size", Limits::WIDTH)?;
    if !doubled.is_multiple_of(2) {
        return Err(fields.wrong("intermediate_size", format!("{doubled} is odd, and counts gate and up")));
    }
    if fields.flag("no_bias")? == Some(false) {
        return Err(fields.unsupported("biases beside those of q, k and v (`no_bias` false)"));
    }
    for key in ["rotary_pct", "seq_length_expansion"] {
        if let Some(value) = fields.float(key)?
            && value != 1.0
        {
            return Err(fields.unsupported(&format!("`{key}` {value} in Qwen's first generation")));
        }
    }
    let theta = fields.float("rotary_emb_base")?.unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(fields.wrong("rotary_emb_base", format!("{theta} is not a positive number")));
    }
    let positions = fields.optional_size("max_position_embeddings", Limits::POSITIONS)?.unwrap_or(8192);
    let original = fields.optional_size("seq_length", Limits::POSITIONS)?.unwrap_or(positions);
    if original < 2 {
        return Err(fields.wrong("seq_length", format!("{original} tokens are no context")));
    }
    let grows = fields.flag("use_dynamic_ntk")?.unwrap_or(true);
    let log_n = fields.flag("use_logn_attn")?.unwrap_or(true);
    let longest = if grows || log_n { positions.max(original) } else { original };
    let vocab_size = fields.size("vocab_size", Limits::VOCAB)?;
    let (bos, eos) = end_tokens(fields, generation, vocab_size)?;
    let scaling =
        if grows && longest > original { RopeScaling::PromptNtk { original } } else { RopeScaling::None };
    let config = ModelConfig {
        family: Family::Qwen,
        vocab_size,
        hidden_size,
        intermediate_size: doubled / 2,
        experts: None,
        n_layers: fields.size("num_hidden_layers", Limits::LAYERS)?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        rms_norm_eps: fields.float("layer_norm_epsilon")?.unwrap_or(1e-6) as f32,
        rope: Rope { theta, pairing: Pairing::Halves, scaling },
        window: None,
        log_n: (log_n && longest > original).then_some(original),
        max_positions: longest,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        bos,
        eos,
        add_bos: false,
        dtype: bitmill_tensor::FloatType::F32,
    };
    check_sizes(&config).map_err(|(key, problem)| fields.wrong(key, problem))?;
    Ok(FromJson { config, dtype: dtype(fields)?, attention_bias: true })
}

/// The tensors of a folder under today's names, fused ones as views of their rows.
pub(crate) fn rename(
    checkpoint: &str,
    config: &ModelConfig,
    stored: Vec<StTensor>,
) -> Result<Vec<StTensor>, Error> {
    let mut tensors = Vec::with_capacity(stored.len());
    for tensor in stored {
        if let Some(roles) = Role::fused(&tensor.name) {
            for (role, shape, bytes) in
                split(checkpoint, config, &tensor.name, roles, &tensor.shape, &tensor.bytes)?
            {
                let name = role.canonical_name().unwrap_or_default();
                tensors.push(StTensor { name, shape, bytes, ..tensor.clone() });
            }
            continue;
        }
        // A constant that old checkpoints carry along.
        if tensor.name.ends_with(".attn.masked_bias") {
            continue;
        }
        let role = Role::from_generation_1_name(&tensor.name);
        let name = role.canonical_name().unwrap_or_else(|| tensor.name.clone());
        tensors.push(StTensor { name, ..tensor });
    }
    Ok(tensors)
}

/// The tensors of a GGUF file, fused ones as views of their rows.
pub(crate) fn unfuse(
    checkpoint: &str,
    config: &ModelConfig,
    stored: Vec<GgufTensor>,
) -> Result<Vec<GgufTensor>, Error> {
    let mut tensors = Vec::with_capacity(stored.len());
    for tensor in stored {
        let Some(roles) = Role::fused(&tensor.name) else {
            tensors.push(tensor);
            continue;
        };
        for (role, shape, bytes) in
            split(checkpoint, config, &tensor.name, roles, &tensor.shape, &tensor.bytes)?
        {
            let name = role.gguf_name().unwrap_or_default();
            tensors.push(GgufTensor { name, shape, bytes, encoding: tensor.encoding });
        }
    }
    Ok(tensors)
}

/// The rows of each of `roles`, one after another; blocks lie along rows, so packed ones split alike.
fn split(
    checkpoint: &str,
    config: &ModelConfig,
    name: &str,
    roles: [Role; 3],
    shape: &[usize],
    bytes: &Region,
) -> Result<Vec<(Role, Vec<usize>, Region)>, Error> {
    let shapes = roles.map(|role| role.expected_shape(config).unwrap_or_default());
    let rows = |shape: &[usize]| shape.first().copied().unwrap_or(0);
    let all: usize = shapes.iter().map(|shape| rows(shape)).sum();
    let mut expected = shapes[0].clone();
    if let Some(first) = expected.first_mut() {
        *first = all;
    }
    if shape != expected {
        return Err(Error::TensorShape {
            checkpoint: checkpoint.to_owned(),
            tensor: name.to_owned(),
            found: shape.to_vec(),
            expected,
        });
    }
    // Heads and widths are at least 1, so there are rows.
    let row_bytes = bytes.len() / all;
    let mut first = 0;
    let mut parts = Vec::with_capacity(roles.len());
    for (role, shape) in roles.into_iter().zip(shapes) {
        let end = first + rows(&shape) * row_bytes;
        parts.push((role, shape, bytes.slice(first..end)));
        first = end;
    }
    Ok(parts)
}

/// What no other form can say of a model of this generation, in a sentence for people.
pub(crate) fn lost_beyond(config: &ModelConfig) -> Option<String> {
    let ntk = matches!(config.rope.scaling, RopeScaling::PromptNtk { .. });
    let lost = match (ntk, config.log_n) {
        (true, Some(_)) => "dynamic NTK and log-n attention have",
        (true, None) => "dynamic NTK has",
        (false, Some(_)) => "log-n attention has",
        (false, None) => return None,
    };
    Some(format!(
        "{lost} no form in what Qwen's first generation is written as: it is the same model up to {} tokens, which it says \
         is its context",
        config.plain_positions()
    ))
}

/// What a reader of a folder written from a model with `config` should know, in sentences for people.
pub fn folder_notes(config: &ModelConfig) -> Vec<String> {
    let mut notes = Vec::new();
    if config.family == Family::Qwen {
        let class = config.family.written().class();
        notes.push(format!("Qwen's first generation is written as {class}, which computes the same"));
    }
    notes.extend(lost_beyond(config));
    notes
}
