//! Reads config.json, in the spellings of transformers 4 and 5.
//!
//! Every value is checked where it is read: later code multiplies sizes without looking.

use std::path::Path;

use bitmill_tensor::FloatType;
use serde_json::{Map, Value};

use crate::config::{Limits, check_sizes};
use crate::{Error, Family, ModelConfig, SlidingWindow, config_rope, generation1, moe};

/// What config.json says, before the tensors are known.
#[derive(Debug)]
pub(crate) struct FromJson {
    /// `tied` as configured, `add_bos` and `dtype` with defaults.
    pub config: ModelConfig,
    pub dtype: Option<FloatType>,
    /// What [`bias_key`] says: whether bias tensors mean anything to other readers.
    pub attention_bias: bool,
}

/// Reads `json`, the contents of `file`, and `generation`, generation_config.json's.
pub(crate) fn read(
    file: &Path,
    json: &Value,
    generation: Option<(&Path, &Value)>,
) -> Result<FromJson, Error> {
    let fields = Fields::new(file, json)?;
    let family = family(&fields)?;
    let generation = generation.map(|(file, json)| Fields::new(file, json)).transpose()?;
    if family == Family::Qwen {
        return generation1::read(&fields, generation.as_ref());
    }
    let n_layers = fields.size("num_hidden_layers", Limits::LAYERS)?;
    let hidden_size = fields.size("hidden_size", Limits::WIDTH)?;
    let n_heads = fields.size("num_attention_heads", Limits::WIDTH)?;
    let head_dim = match fields.optional_size("head_dim", Limits::WIDTH)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
        None => {
            return Err(fields.wrong(
                "num_attention_heads",
                format!(
                    "{n_heads} heads do not divide hidden_size {hidden_size}, and there is no `head_dim`"
                ),
            ));
        }
    };
    let positions = fields
        .optional_size("max_position_embeddings", Limits::POSITIONS)?
        .unwrap_or(default_positions(family));
    let rope = config_rope::read(&fields, positions)?;
    let max_positions = rope.scaling.stretched(positions);
    activation(&fields)?;
    let window = sliding_window(&fields, family, n_layers)?.filter(|window| window.tokens < max_positions);
    if fields.flag("mlp_bias")? == Some(true) {
        return Err(fields.unsupported("a feed-forward block with biases (`mlp_bias`)"));
    }
    let vocab_size = fields.size("vocab_size", Limits::VOCAB)?;
    let (bos, eos) = end_tokens(&fields, generation.as_ref(), vocab_size)?;
    let config = ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", Limits::WIDTH)?,
        experts: moe::from_json(&fields, family, n_layers)?,
        n_layers,
        n_heads,
        n_kv_heads: fields.optional_size("num_key_value_heads", Limits::WIDTH)?.unwrap_or(n_heads),
        head_dim,
        rms_norm_eps: fields.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        window,
        log_n: None,
        max_positions,
        // PretrainedConfig's default was true, but all families here set their own: false.
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        bos,
        eos,
        add_bos: false,
        dtype: FloatType::F32,
    };
    check_sizes(&config).map_err(|(key, problem)| fields.wrong(key, problem))?;
    Ok(FromJson {
        config,
        dtype: dtype(&fields)?,
        attention_bias: match bias_key(family) {
            Some((key, default)) => fields.flag(key)?.unwrap_or(default),
            None => true,
        },
    })
}

/// The key without which other readers skip biases of attention, and its default; `None` for families that have them, or
/// have none, whatever config.json says.
pub(crate) fn bias_key(family: Family) -> Option<(&'static str, bool)> {
    match family {
        Family::Llama | Family::Qwen3 | Family::Qwen3Moe => Some(("attention_bias", false)),
        Family::Qwen2Moe => Some(("qkv_bias", true)),
        Family::Qwen2 | Family::Mistral | Family::Qwen => None,
    }
}

/// The dtype that the weights are said to have.
pub(crate) fn dtype(fields: &Fields) -> Result<Option<FloatType>, Error> {
    let dtype = fields.text("dtype")?.or(fields.text("torch_dtype")?);
    Ok(dtype.and_then(|name| FloatType::parse(name.trim_start_matches("torch."))))
}

fn family(fields: &Fields) -> Result<Family, Error> {
    let model_type = fields.text("model_type")?;
    let class = match fields.get("architectures") {
        None => None,
        Some(Value::Array(classes)) => classes.first().and_then(Value::as_str),
        Some(_) => return Err(fields.wrong("architectures", "expected a list of class names".to_owned())),
    };
    let of_type = model_type.and_then(Family::from_name);
    let of_class = class.and_then(Family::from_class);
    match (model_type, class) {
        (None, None) => Err(fields.wrong("model_type", "missing".to_owned())),
        (Some(_), None) if of_type.is_some() => Ok(of_type.unwrap_or(Family::Llama)),
        (None, Some(_)) if of_class.is_some() => Ok(of_class.unwrap_or(Family::Llama)),
        (Some(_), Some(_)) if of_type.is_some() && of_type == of_class => {
            Ok(of_type.unwrap_or(Family::Llama))
        }
        (model_type, class) => {
            let found = match (model_type, class) {
                (Some(model_type), Some(class)) => format!("{model_type} ({class})"),
                (found, other) => found.or(other).unwrap_or_default().to_owned(),
            };
            Err(Error::UnsupportedFamily { file: fields.file.to_owned(), found })
        }
    }
}

/// What transformers assumes when `max_position_embeddings` is absent.
fn default_positions(family: Family) -> usize {
    match family {
        Family::Qwen2 | Family::Qwen3 | Family::Qwen2Moe | Family::Qwen3Moe => 32_768,
        Family::Llama => 2048,
        Family::Mistral => 131_072,
        Family::Qwen => 8192,
    }
}

fn activation(fields: &Fields) -> Result<(), Error> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(fields.unsupported(&format!("the activation `{other}` (`hidden_act`)"))),
    }
}

/// The window and the layers that have it, as transformers decides: Mistral has one in every layer unless
/// `sliding_window` is null, Qwen 2 and 3 have one if `use_sliding_window` says so, in the layers that `layer_types` lists or
/// from `max_window_layers` on, Llama has none whatever its config says.
fn sliding_window(fields: &Fields, family: Family, n_layers: usize) -> Result<Option<SlidingWindow>, Error> {
    let listed = layer_types(fields, n_layers)?;
    let window = |layers: Vec<bool>| {
        let tokens = fields.optional_size("sliding_window", Limits::POSITIONS)?.unwrap_or(4096);
        Ok(Some(SlidingWindow { tokens, layers }).filter(|window| window.layers.contains(&true)))
    };
    match family {
        Family::Mistral if fields.map.get("sliding_window").is_some_and(Value::is_null) => Ok(None),
        Family::Mistral => window(vec![true; n_layers]),
        Family::Qwen2 | Family::Qwen3 if fields.flag("use_sliding_window")?.unwrap_or(false) => {
            let first = fields.optional_count("max_window_layers", Limits::LAYERS)?.unwrap_or(28);
            if fields.map.get("sliding_window").is_some_and(Value::is_null) && listed.is_none() {
                return Ok(None);
            }
            window(listed.unwrap_or_else(|| (0..n_layers).map(|layer| layer >= first).collect()))
        }
        Family::Qwen2Moe | Family::Qwen3Moe if fields.flag("use_sliding_window")?.unwrap_or(false) => {
            let first = fields.optional_count("max_window_layers", Limits::LAYERS)?.unwrap_or(28);
            // Qwen2-MoE slides in every other of the layers where Qwen2 does not; Qwen3-MoE in all.
            let slides =
                |layer: usize| family == Family::Qwen3Moe || (layer.is_multiple_of(2) && layer < first);
            window(listed.unwrap_or_else(|| (0..n_layers).map(slides).collect()))
        }
        _ if listed.is_some_and(|layers| layers.contains(&true)) => {
            Err(fields.unsupported("sliding-window attention by `layer_types` alone"))
        }
        _ => Ok(None),
    }
}

/// Whether each layer slides, as `layer_types` lists it.
fn layer_types(fields: &Fields, n_layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let wrong = |problem: String| fields.wrong("layer_types", problem);
    let kinds = match fields.get("layer_types") {
        None => return Ok(None),
        Some(Value::Array(kinds)) => kinds,
        Some(_) => return Err(wrong("expected a list of names".to_owned())),
    };
    let mut layers = Vec::with_capacity(kinds.len());
    for kind in kinds {
        layers.push(match kind.as_str() {
            Some("full_attention") => false,
            Some("sliding_attention") => true,
            Some(other) => {
                return Err(fields.unsupported(&format!("a layer of the kind `{other}` (`layer_types`)")));
            }
            None => return Err(wrong("expected a list of names".to_owned())),
        });
    }
    if layers.len() != n_layers {
        return Err(wrong(format!("it lists {} layers of {n_layers}", layers.len())));
    }
    Ok(Some(layers))
}

/// `bos` and every `eos` of config.json and generation_config.json.
pub(crate) fn end_tokens(
    fields: &Fields,
    generation: Option<&Fields>,
    vocab_size: usize,
) -> Result<(Option<u32>, Vec<u32>), Error> {
    let mut bos = None;
    let mut eos = Vec::new();
    // What generation_config.json names ends a text first: it is what `generate` follows.
    for part in generation.into_iter().chain([fields]) {
        eos.extend(part.tokens("eos_token_id", vocab_size)?);
    }
    for part in [Some(fields), generation].into_iter().flatten() {
        bos = bos.or(part.tokens("bos_token_id", vocab_size)?.first().copied());
    }
    let mut seen = Vec::new();
    eos.retain(|token| {
        let new = !seen.contains(token);
        seen.push(*token);
        new
    });
    Ok((bos, eos))
}

/// The fields of a JSON object; `null` is absent.
pub(crate) struct Fields<'a> {
    pub file: &'a Path,
    /// The key this object is the value of; empty at the top.
    pub prefix: &'a str,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn new(file: &'a Path, json: &'a Value) -> Result<Self, Error> {
        match json {
            Value::Object(map) => Ok(Self { file, prefix: "", map }),
            _ => Err(Error::Json { file: file.to_owned(), problem: "expected an object".to_owned() }),
        }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn wrong(&self, key: &str, problem: String) -> Error {
        let key = if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) };
        Error::ConfigValue { file: self.file.to_owned(), key, problem }
    }

    pub fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported { file: self.file.to_owned(), what: what.to_owned() }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, format!("expected text, found {}", kind(other)))),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, format!("expected true or false, found {}", kind(other)))),
        }
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, format!("expected a number, found {}", kind(value)))),
            },
        }
    }

    /// An integer from 0 to `limit`.
    pub fn optional_count(&self, key: &str, limit: usize) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) if number <= limit => Ok(Some(number)),
            _ => Err(self.wrong(key, format!("expected an integer up to {limit}, found {}", kind(value)))),
        }
    }

    /// An integer from 1 to `limit`.
    pub fn optional_size(&self, key: &str, limit: usize) -> Result<Option<usize>, Error> {
        match self.optional_count(key, limit)? {
            Some(0) => Err(self.wrong(key, "it is 0".to_owned())),
            found => Ok(found),
        }
    }

    pub fn size(&self, key: &str, limit: usize) -> Result<usize, Error> {
        self.optional_size(key, limit)?.ok_or_else(|| self.wrong(key, "missing".to_owned()))
    }

    /// A list of integers from 0 to `limit`; empty if absent.
    pub fn counts(&self, key: &str, limit: usize) -> Result<Vec<usize>, Error> {
        let wrong = |value: &Value| {
            self.wrong(key, format!("expected a list of integers up to {limit}, found {}", kind(value)))
        };
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values,
            Some(other) => return Err(wrong(other)),
        };
        let number = |value: &Value| {
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.filter(|&number| number <= limit).ok_or_else(|| wrong(value))
        };
        values.iter().map(number).collect()
    }

    /// A token, a list of tokens, or nothing.
    fn tokens(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, Error> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let token = |value: &Value| {
            let id =
                value.as_u64().filter(|&id| id < vocab_size as u64).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| {
                self.wrong(key, format!("expected token numbers below {vocab_size}, found {}", kind(value)))
            })
        };
        values.iter().map(token).collect()
    }
}

/// What a JSON value is, in few characters.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.len() <= 40 => format!("\"{text}\""),
        Value::String(_) => "a long text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
