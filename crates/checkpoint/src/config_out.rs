//! Writes a config.json for a model that has none: one that came as GGUF, or is of Qwen's first generation and goes out as a
//! Qwen2.
//!
//! Keys are in the spelling that every reader knows (`rope_theta`, `rope_scaling`, `torch_dtype`). What is written is read
//! back and held against the model's own numbers, so that a family or a RoPE scaling without a form here is an error and
//! never a model with other numbers.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::gguf_rope::rope_freqs;
use crate::{
    Error, Family, ModelConfig, Pairing, RoleKind, Rope, RopeScaling, TensorInfo, Yarn, config_json,
};

/// What a family's config.json says beside what all say.
struct Row {
    family: Family,
    keys: fn(&ModelConfig, &[TensorInfo]) -> Value,
}

const FAMILIES: [Row; 6] = [
    Row { family: Family::Qwen2, keys: |config, _| qwen_window(config) },
    Row {
        family: Family::Qwen3,
        keys: |config, tensors| {
            let mut keys = qwen_window(config);
            keys["attention_bias"] = json!(has(tensors, RoleKind::AttnQBias));
            keys
        },
    },
    Row {
        family: Family::Qwen2Moe,
        keys: |config, tensors| {
            let mut keys = mixture(config);
            keys["qkv_bias"] = json!(has(tensors, RoleKind::AttnQBias));
            keys
        },
    },
    Row {
        family: Family::Qwen3Moe,
        keys: |config, tensors| {
            let mut keys = mixture(config);
            keys["attention_bias"] = json!(has(tensors, RoleKind::AttnQBias));
            keys
        },
    },
    Row {
        family: Family::Llama,
        keys: |_, tensors| json!({"attention_bias": has(tensors, RoleKind::AttnQBias), "mlp_bias": false, "pretraining_tp": 1}),
    },
    Row {
        family: Family::Mistral,
        keys: |config, _| json!({"sliding_window": config.window.as_ref().map(|window| window.tokens)}),
    },
];

/// Which layers of a Qwen 2 or 3 have a window: by the list, which transformers prefers, and by the first, for readers that know
/// no list.
fn qwen_window(config: &ModelConfig) -> Value {
    match &config.window {
        None => {
            json!({"use_sliding_window": false, "sliding_window": null, "max_window_layers": config.n_layers})
        }
        Some(window) => {
            let kinds: Vec<&str> = window
                .layers
                .iter()
                .map(|slides| if *slides { "sliding_attention" } else { "full_attention" })
                .collect();
            let first = window.layers.iter().position(|slides| *slides).unwrap_or(config.n_layers);
            json!({
                "use_sliding_window": true, "sliding_window": window.tokens, "max_window_layers": first,
                "layer_types": kinds,
            })
        }
    }
}

/// The experts, and the window as [`qwen_window`] says it.
fn mixture(config: &ModelConfig) -> Value {
    let mut keys = qwen_window(config);
    if let Some(experts) = &config.experts {
        keys["num_experts"] = json!(experts.count);
        keys["num_experts_per_tok"] = json!(experts.used);
        keys["moe_intermediate_size"] = json!(experts.width);
        keys["norm_topk_prob"] = json!(experts.normalised);
        keys["decoder_sparse_step"] = json!(1);
        keys["mlp_only_layers"] = json!(experts.dense_layers);
        if let Some(width) = experts.shared_width {
            keys["shared_expert_intermediate_size"] = json!(width);
        }
    }
    keys
}

/// The config.json of the model `name` with `config`, whose tensors are `tensors`.
pub(crate) fn write(name: &str, config: &ModelConfig, tensors: &[TensorInfo]) -> Result<Value, Error> {
    let unsupported = |what: String| Error::Unsupported { file: name.into(), what };
    let config = &as_written(config);
    let row = FAMILIES
        .iter()
        .find(|row| row.family == config.family)
        .ok_or_else(|| unsupported(format!("a config.json for the family {}", config.family)))?;
    // transformers gives all four projections a bias or none.
    if matches!(config.family, Family::Llama | Family::Qwen3 | Family::Qwen3Moe)
        && has(tensors, RoleKind::AttnQBias) != has(tensors, RoleKind::AttnOutputBias)
    {
        return Err(unsupported(format!(
            "a {} config.json with biases on some of q, k, v and o",
            config.family
        )));
    }
    let scaling = rope_scaling(config).ok_or_else(|| {
        unsupported("a config.json for `rope_freqs.weight` with factors that are not Llama 3's".to_owned())
    })?;
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    put("architectures", json!([config.family.class()]));
    put("model_type", json!(config.family.name()));
    put("vocab_size", json!(config.vocab_size));
    put("hidden_size", json!(config.hidden_size));
    put("intermediate_size", json!(config.intermediate_size));
    put("num_hidden_layers", json!(config.n_layers));
    put("num_attention_heads", json!(config.n_heads));
    put("num_key_value_heads", json!(config.n_kv_heads));
    put("head_dim", json!(config.head_dim));
    put("hidden_act", json!("silu"));
    put("max_position_embeddings", json!(config.plain_positions()));
    put("rms_norm_eps", json!(shortest(config.rms_norm_eps)));
    put("rope_theta", json!(theta(config)));
    put("rope_scaling", scaling);
    put("tie_word_embeddings", json!(config.tied));
    put("attention_dropout", json!(0.0));
    put("use_cache", json!(true));
    put("torch_dtype", json!(config.dtype.long_name()));
    if let Some(bos) = config.bos {
        put("bos_token_id", json!(bos));
    }
    if let Some(eos) = end_tokens(config) {
        put("eos_token_id", eos);
    }
    if let Value::Object(keys) = (row.keys)(config, tensors) {
        fields.extend(keys);
    }
    let json = Value::Object(fields);
    refuse_other_numbers(name, config, &json)?;
    Ok(json)
}

/// What is written of the model: Qwen's first generation up to where it begins to stretch positions.
fn as_written(config: &ModelConfig) -> ModelConfig {
    let mut written = ModelConfig { family: config.family.written(), ..config.clone() };
    if config.family == Family::Qwen {
        written.max_positions = config.plain_positions();
        written.rope.scaling = RopeScaling::None;
        written.log_n = None;
    }
    written
}

/// generation_config.json: the tokens that begin and end a text.
pub(crate) fn write_generation(config: &ModelConfig) -> Value {
    let mut fields = Map::new();
    if let Some(bos) = config.bos {
        fields.insert("bos_token_id".to_owned(), json!(bos));
    }
    if let Some(eos) = end_tokens(config) {
        fields.insert("eos_token_id".to_owned(), eos);
    }
    Value::Object(fields)
}

/// One id, or several as a list.
fn end_tokens(config: &ModelConfig) -> Option<Value> {
    match config.eos.as_slice() {
        [] => None,
        [only] => Some(json!(only)),
        several => Some(json!(several)),
    }
}

fn has(tensors: &[TensorInfo], kind: RoleKind) -> bool {
    tensors.iter().any(|tensor| tensor.role.kind == kind)
}

/// The number that people wrote: `1e-6` and not `9.999999974752427e-7`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// GGUF has it as f32.
fn theta(config: &ModelConfig) -> f64 {
    let theta = config.rope.theta;
    if f64::from(theta as f32) == theta { shortest(theta as f32) } else { theta }
}

/// `rope_scaling`; `None` where it has no form.
fn rope_scaling(config: &ModelConfig) -> Option<Value> {
    let llama3 = |factor: f64, low: f64, high: f64, original: usize| {
        json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original,
        })
    };
    match &config.rope.scaling {
        RopeScaling::None => Some(Value::Null),
        RopeScaling::Linear { factor } => Some(json!({"rope_type": "linear", "factor": factor})),
        RopeScaling::Dynamic { factor, .. } => Some(json!({"rope_type": "dynamic", "factor": factor})),
        RopeScaling::Yarn(yarn) => Some(yarn_scaling(yarn)),
        // Qwen's first generation is written without it.
        RopeScaling::PromptNtk { .. } => None,
        RopeScaling::Llama3 { factor, low, high, original } => Some(llama3(*factor, *low, *high, *original)),
        RopeScaling::Factors(factors) => {
            // The slowest turn is divided by the whole factor. The other three numbers are Meta's own, but for the
            // context, of which there are few: those are right that make the same factors, bit for bit.
            let factor = f64::from(*factors.last()?);
            let original = (4..=24).map(|power| 1usize << power).find(|&original| {
                let scaling = RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original };
                let rope = Rope { scaling, ..config.rope.clone() };
                rope_freqs(&ModelConfig { rope, ..config.clone() }).as_ref() == Some(factors)
            })?;
            Some(llama3(factor, 1.0, 4.0, original))
        }
    }
}

/// YaRN with the keys that say something.
fn yarn_scaling(yarn: &Yarn) -> Value {
    let mut scaling = json!({
        "rope_type": "yarn", "factor": yarn.factor, "original_max_position_embeddings": yarn.original,
    });
    for (key, value, usual) in [
        ("attention_factor", yarn.attention, Yarn::usual_attention(yarn.factor, 1.0)),
        ("beta_fast", yarn.beta_fast, Yarn::BETA_FAST),
        ("beta_slow", yarn.beta_slow, Yarn::BETA_SLOW),
    ] {
        if value != usual {
            scaling[key] = json!(value);
        }
    }
    if !yarn.truncate {
        scaling["truncate"] = json!(false);
    }
    scaling
}

/// Reads `json` as any folder's and compares.
fn refuse_other_numbers(name: &str, config: &ModelConfig, json: &Value) -> Result<(), Error> {
    let read = config_json::read(Path::new(name), json, None)?.config;
    // What a folder says elsewhere or says otherwise by its nature.
    let rope = Rope { pairing: Pairing::Halves, scaling: read.rope.scaling.clone(), ..config.rope.clone() };
    let wanted = ModelConfig { rope, add_bos: read.add_bos, dtype: read.dtype, ..config.clone() };
    if read == wanted && rope_freqs(&read) == rope_freqs(config) {
        return Ok(());
    }
    let what = format!("a config.json for this {} model (it would say {read:?})", config.family);
    Err(Error::Unsupported { file: name.into(), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        assert_eq!(json!(shortest(1e-6)).to_string(), "1e-6");
        assert_eq!(json!(shortest(1e-5)).to_string(), "0.00001");
        assert_eq!(json!(shortest(1e6)).to_string(), "1000000.0");
    }

    #[test]
    fn every_family_that_is_read_has_a_row() {
        for family in Family::ALL {
            assert!(FAMILIES.iter().any(|row| row.family == family.written()), "{family}");
        }
    }
}
