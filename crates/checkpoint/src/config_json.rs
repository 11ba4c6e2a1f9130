//! Reads config.json, in the spellings of transformers 4 and 5.
//!
//! Every value is checked where it is read: later code multiplies sizes without looking.

use std::path::Path;

use bitmill_tensor::FloatType;
use serde_json::{Map, Value};

use crate::config::{Limits, check_sizes};
use crate::{Error, Family, ModelConfig, Pairing, Rope, RopeScaling};

/// What config.json says, before the tensors are known.
#[derive(Debug)]
pub(crate) struct FromJson {
    /// `tied` as configured, `add_bos` and `dtype` with defaults.
    pub config: ModelConfig,
    pub dtype: Option<FloatType>,
    /// Llama's `attention_bias`: whether bias tensors mean anything to other readers.
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
    let max_positions = fields
        .optional_size("max_position_embeddings", Limits::POSITIONS)?
        .unwrap_or(default_positions(family));
    let rope = rope(&fields, max_positions)?;
    activation(&fields)?;
    sliding_window(&fields, family, n_layers, max_positions)?;
    if fields.flag("mlp_bias")? == Some(true) {
        return Err(fields.unsupported("a feed-forward block with biases (`mlp_bias`)"));
    }
    let vocab_size = fields.size("vocab_size", Limits::VOCAB)?;
    let (bos, eos) = end_tokens(&fields, generation, vocab_size)?;
    let config = ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", Limits::WIDTH)?,
        n_layers,
        n_heads,
        n_kv_heads: fields.optional_size("num_key_value_heads", Limits::WIDTH)?.unwrap_or(n_heads),
        head_dim,
        rms_norm_eps: fields.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope,
        max_positions,
        // PretrainedConfig's default was true, but both families here set their own: false.
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        bos,
        eos,
        add_bos: false,
        dtype: FloatType::F32,
    };
    check_sizes(&config).map_err(|(key, problem)| fields.wrong(key, problem))?;
    let dtype = fields.text("dtype")?.or(fields.text("torch_dtype")?);
    Ok(FromJson {
        config,
        dtype: dtype.and_then(|name| FloatType::parse(name.trim_start_matches("torch."))),
        attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
    })
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
        Family::Qwen2 => 32_768,
        Family::Llama => 2048,
    }
}

/// `rope_theta` and `rope_scaling` at the top level, or both within `rope_parameters`.
fn rope(fields: &Fields, max_positions: usize) -> Result<Rope, Error> {
    let (key, map) = match (fields.get("rope_parameters"), fields.get("rope_scaling")) {
        (Some(Value::Object(map)), _) => ("rope_parameters", Some(map)),
        (Some(_), _) => return Err(fields.wrong("rope_parameters", "expected an object".to_owned())),
        (None, Some(Value::Object(map))) => ("rope_scaling", Some(map)),
        (None, Some(_)) => return Err(fields.wrong("rope_scaling", "expected an object".to_owned())),
        (None, None) => ("rope_parameters", None),
    };
    let empty = Map::new();
    let inner = Fields { file: fields.file, prefix: key, map: map.unwrap_or(&empty) };
    if let Some(nested) =
        ["full_attention", "sliding_attention"].into_iter().find(|kind| inner.get(kind).is_some())
    {
        return Err(
            fields.unsupported(&format!("a RoPE of its own for each kind of layer (`{key}.{nested}`)"))
        );
    }
    let theta = match inner.float("rope_theta")? {
        Some(theta) => theta,
        None => fields.float("rope_theta")?.unwrap_or(10_000.0),
    };
    if !(theta.is_finite() && theta > 0.0) {
        return Err(fields.wrong("rope_theta", format!("{theta} is not a positive number")));
    }
    for part in [fields, &inner] {
        if let Some(factor) = part.float("partial_rotary_factor")?
            && factor != 1.0
        {
            return Err(fields
                .unsupported(&format!("RoPE on a part of each head (`partial_rotary_factor` {factor})")));
        }
    }
    if inner.get("mrope_section").is_some() {
        return Err(fields.unsupported("multi-axis RoPE (`mrope_section`)"));
    }
    let kind = inner.text("rope_type")?.or(inner.text("type")?).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "llama3" => {
            let number = |key| inner.float(key)?.ok_or_else(|| inner.wrong(key, "missing".to_owned()));
            let (factor, low, high) =
                (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
            let original = inner
                .optional_size("original_max_position_embeddings", Limits::POSITIONS)?
                .unwrap_or(max_positions);
            if !(factor.is_finite() && factor > 0.0) {
                return Err(inner.wrong("factor", format!("{factor} is not a positive number")));
            }
            if !(low.is_finite() && high.is_finite() && 0.0 < low && low < high) {
                return Err(inner.wrong("low_freq_factor", format!("{low} is not between 0 and {high}")));
            }
            RopeScaling::Llama3 { factor, low, high, original }
        }
        other => return Err(fields.unsupported(&format!("the RoPE scaling `{other}`"))),
    };
    Ok(Rope { theta, pairing: Pairing::Halves, scaling })
}

fn activation(fields: &Fields) -> Result<(), Error> {
    match fields.text("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(fields.unsupported(&format!("the activation `{other}` (`hidden_act`)"))),
    }
}

/// A window at least as long as the context never applies; a shorter one changes the numbers.
fn sliding_window(
    fields: &Fields,
    family: Family,
    n_layers: usize,
    max_positions: usize,
) -> Result<(), Error> {
    let sliding_layers = match fields.get("layer_types") {
        None => None,
        Some(Value::Array(kinds)) => {
            let kinds: Option<Vec<&str>> = kinds.iter().map(Value::as_str).collect();
            let Some(kinds) = kinds else {
                return Err(fields.wrong("layer_types", "expected a list of names".to_owned()));
            };
            let known = ["full_attention", "sliding_attention"];
            if let Some(other) = kinds.iter().find(|kind| !known.contains(kind)) {
                return Err(fields.unsupported(&format!("a layer of the kind `{other}` (`layer_types`)")));
            }
            Some(kinds.contains(&"sliding_attention"))
        }
        Some(_) => return Err(fields.wrong("layer_types", "expected a list of names".to_owned())),
    };
    // LlamaConfig has no window: transformers carries the key along and does not look at it.
    let used = family == Family::Qwen2 && fields.flag("use_sliding_window")?.unwrap_or(false);
    if !used {
        if sliding_layers == Some(true) {
            return Err(fields.unsupported("sliding-window attention (`layer_types`)"));
        }
        return Ok(());
    }
    let window = fields.optional_size("sliding_window", Limits::POSITIONS)?.unwrap_or(4096);
    let first = fields.optional_count("max_window_layers", Limits::LAYERS)?.unwrap_or(28);
    if window < max_positions && sliding_layers.unwrap_or(first < n_layers) {
        return Err(fields.unsupported(&format!(
            "sliding-window attention (`use_sliding_window` with a window of {window} tokens)"
        )));
    }
    Ok(())
}

/// `bos` and every `eos` of config.json and generation_config.json.
fn end_tokens(
    fields: &Fields,
    generation: Option<(&Path, &Value)>,
    vocab_size: usize,
) -> Result<(Option<u32>, Vec<u32>), Error> {
    let generation = generation.map(|(file, json)| Fields::new(file, json)).transpose()?;
    let mut bos = None;
    let mut eos = Vec::new();
    // What generation_config.json names ends a text first: it is what `generate` follows.
    for part in generation.iter().chain([fields]) {
        eos.extend(part.tokens("eos_token_id", vocab_size)?);
    }
    for part in [Some(fields), generation.as_ref()].into_iter().flatten() {
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

    fn unsupported(&self, what: &str) -> Error {
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

    fn size(&self, key: &str, limit: usize) -> Result<usize, Error> {
        self.optional_size(key, limit)?.ok_or_else(|| self.wrong(key, "missing".to_owned()))
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
