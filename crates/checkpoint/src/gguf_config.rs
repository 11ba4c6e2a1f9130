//! A model's shape as GGUF metadata: read, and written as llama.cpp's converter writes it.
//!
//! Keys are `general.*` and `ARCH.*`, where `ARCH` is `general.architecture`. Value types are the converter's:
//! counts u32, reals f32.

use std::path::Path;

use bitmill_tensor::{Encoding, FloatType};

use crate::config::{Limits, check_sizes};
use crate::gguf_in::GgufTensor;
use crate::gguf_rope::{self, ROPE_FREQS};
use crate::{Error, Family, GgufArray, GgufValue, ModelConfig, SlidingWindow};
use crate::{generation1, moe};

/// `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;

/// The config that `metadata` and the shapes of `tensors` say.
pub(crate) fn read(
    file: &Path,
    metadata: &[(String, GgufValue)],
    tensors: &[GgufTensor],
) -> Result<ModelConfig, Error> {
    let general = Keys { file, prefix: "general", metadata };
    if let Some(kind) = general.text("type")?
        && kind != "model"
    {
        return Err(Error::Unsupported {
            file: file.to_owned(),
            what: format!("a GGUF of the type `{kind}`"),
        });
    }
    let architecture = general.text("architecture")?.ok_or_else(|| general.missing("architecture"))?;
    let Some(family) = Family::from_gguf_name(architecture) else {
        return Err(Error::UnsupportedFamily { file: file.to_owned(), found: architecture.to_owned() });
    };
    let keys = Keys { file, prefix: architecture, metadata };
    let unsupported = |what: String| Err(Error::Unsupported { file: file.to_owned(), what });
    if let Some(number) = keys.count("expert_count", usize::MAX)?
        && number > 0
        && !family.has_experts()
    {
        return unsupported(format!("a model with `{architecture}.expert_count` {number}"));
    }
    let tensor = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
    let hidden_size = keys.needed("embedding_length", Limits::WIDTH)?;
    let n_heads = keys.needed("attention.head_count", Limits::WIDTH)?;
    let head_dim = match keys.size("attention.key_length", Limits::WIDTH)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
        None => {
            let problem = format!("{n_heads} heads do not divide the embedding length {hidden_size}");
            return Err(keys.wrong("attention.head_count", problem));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(width) = keys.count(key, Limits::WIDTH)?
            && width != head_dim
        {
            return unsupported(format!("`{architecture}.{key}` {width} beside keys of {head_dim}"));
        }
    }
    // The converter stores no size of the vocabulary for qwen2: the embedding has it.
    let embedding = tensor("token_embd.weight").filter(|tensor| tensor.shape.len() == 2);
    let Some(embedding) = embedding else {
        return Err(Error::MissingTensor {
            checkpoint: crate::folder::own_name(file),
            tensor: "model.embed_tokens.weight".to_owned(),
        });
    };
    let vocab_size = embedding.shape[0];
    if vocab_size == 0 || vocab_size > Limits::VOCAB {
        return Err(keys.wrong("vocab_size", format!("the embedding has {vocab_size} rows")));
    }
    let tokenizer = Keys { file, prefix: "tokenizer.ggml", metadata };
    let n_layers = keys.needed("block_count", Limits::LAYERS)?;
    let positions = keys.needed("context_length", Limits::POSITIONS)?;
    let rope = gguf_rope::read(&keys, family, head_dim, positions, tensor(ROPE_FREQS))?;
    let max_positions = rope.scaling.stretched(positions);
    let window = sliding_window(&keys, n_layers, max_positions)?;
    let mut intermediate_size = keys.needed("feed_forward_length", Limits::WIDTH)?;
    if family == Family::Qwen {
        // Generation 1 counts gate and up together.
        if !intermediate_size.is_multiple_of(2) {
            return Err(keys.wrong("feed_forward_length", format!("{intermediate_size} is odd")));
        }
        intermediate_size /= 2;
    }
    let config = ModelConfig {
        // The converter calls Mistral llama; a window tells them apart, as llama has none.
        family: if family == Family::Llama && window.is_some() { Family::Mistral } else { family },
        vocab_size,
        hidden_size,
        intermediate_size,
        experts: moe::from_keys(&keys, family, intermediate_size)?,
        n_layers,
        n_heads,
        n_kv_heads: keys.size("attention.head_count_kv", Limits::WIDTH)?.unwrap_or(n_heads),
        head_dim,
        rms_norm_eps: keys
            .real("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))? as f32,
        rope,
        window,
        log_n: None,
        max_positions,
        tied: tensor("output.weight").is_none(),
        bos: tokenizer.token("bos_token_id", vocab_size)?,
        eos: end_tokens(&tokenizer, vocab_size)?,
        add_bos: add_bos(&tokenizer)?,
        dtype: match embedding.encoding {
            Encoding::Float(float) => float,
            _ => FloatType::F16,
        },
    };
    check_sizes(&config).map_err(|(key, problem)| keys.wrong(key, problem))?;
    Ok(config)
}

/// `attention.sliding_window`, in the layers that `attention.sliding_window_pattern` says, or in all.
fn sliding_window(keys: &Keys, n_layers: usize, positions: usize) -> Result<Option<SlidingWindow>, Error> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let tokens = keys.count("attention.sliding_window", Limits::POSITIONS)?.unwrap_or(0);
    if tokens == 0 || tokens >= positions {
        return Ok(None);
    }
    let layers = match keys.get(PATTERN) {
        None => vec![true; n_layers],
        Some(GgufValue::Array(GgufArray::Bool(layers))) if layers.len() == n_layers => layers.clone(),
        Some(value) => return Err(keys.wrong_type(PATTERN, value, "a bool for each layer")),
    };
    Ok(Some(SlidingWindow { tokens, layers }).filter(|window| window.layers.contains(&true)))
}

/// The tokens llama.cpp ends a text at, as far as metadata names them.
fn end_tokens(tokenizer: &Keys, vocab_size: usize) -> Result<Vec<u32>, Error> {
    let mut tokens = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some(token) = tokenizer.token(key, vocab_size)?
            && !tokens.contains(&token)
        {
            tokens.push(token);
        }
    }
    Ok(tokens)
}

/// The split patterns that go with a BOS in llama.cpp (`src/llama-vocab.cpp`).
const BEGIN_WITH_BOS: [&str; 11] = [
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
];

/// `add_bos_token`, or what llama.cpp assumes without it.
fn add_bos(tokenizer: &Keys) -> Result<bool, Error> {
    if let Some(value) = tokenizer.get("add_bos_token") {
        return value.as_bool().ok_or_else(|| tokenizer.wrong_type("add_bos_token", value, "bool"));
    }
    let model = tokenizer.text("model")?;
    let pre = tokenizer.text("pre")?;
    Ok(model == Some("llama") || pre.is_some_and(|pre| BEGIN_WITH_BOS.contains(&pre)))
}

/// The architecture's metadata, keys and value types as llama.cpp's `convert_hf_to_gguf.py` writes them for the
/// family; `file_type` is ggml's number of the mix. Keys of the tokenizer come from
/// [`GgufTokenizer::to_metadata`](crate::GgufTokenizer::to_metadata).
///
/// Turns stretched as Llama 3 does are no key but the tensor of [`rope_freqs`](crate::rope_freqs). A sliding window is a key
/// that llama.cpp knows of other families; [`check_gguf`] says what it makes of it.
///
/// The converter writes key and value lengths where config.json names a `head_dim`; here they are written where
/// nothing else says them, which other readers take the same way.
pub fn gguf_metadata(config: &ModelConfig, name: &str, file_type: u32) -> Vec<(String, GgufValue)> {
    let arch = config.family.gguf_name();
    let mut keys: Vec<(String, GgufValue)> = vec![
        ("general.architecture".to_owned(), GgufValue::String(arch.to_owned())),
        ("general.type".to_owned(), GgufValue::String("model".to_owned())),
        ("general.name".to_owned(), GgufValue::String(name.to_owned())),
    ];
    let mut put = |key: &str, value: GgufValue| keys.push((format!("{arch}.{key}"), value));
    // Limits keep every size below 2^32.
    let count = |number: usize| GgufValue::U32(u32::try_from(number).unwrap_or(u32::MAX));
    put("block_count", count(config.n_layers));
    put("context_length", count(config.plain_positions()));
    put("embedding_length", count(config.hidden_size));
    put("feed_forward_length", count(config.intermediate_size));
    put("attention.head_count", count(config.n_heads));
    put("attention.head_count_kv", count(config.n_kv_heads));
    if let Some(experts) = &config.experts {
        put("expert_count", count(experts.count));
        put("expert_used_count", count(experts.used));
        put("expert_feed_forward_length", count(experts.width));
        if let Some(width) = experts.shared_width {
            put("expert_shared_feed_forward_length", count(width));
        }
    }
    for (key, value) in gguf_rope::scaling_keys(config) {
        put(&format!("rope.scaling.{key}"), value);
    }
    put("rope.freq_base", GgufValue::F32(config.rope.theta as f32));
    put("attention.layer_norm_rms_epsilon", GgufValue::F32(config.rms_norm_eps));
    if config.n_heads * config.head_dim != config.hidden_size {
        put("attention.key_length", count(config.head_dim));
        put("attention.value_length", count(config.head_dim));
    }
    if let Some(window) = &config.window {
        put("attention.sliding_window", count(window.tokens));
        if window.layers.contains(&false) {
            let layers = GgufArray::Bool(window.layers.clone());
            put("attention.sliding_window_pattern", GgufValue::Array(layers));
        }
    }
    if arch == "llama" {
        put("vocab_size", count(config.vocab_size));
        put("rope.dimension_count", count(config.head_dim));
    }
    keys.push(("general.file_type".to_owned(), GgufValue::U32(file_type)));
    keys.push(("general.quantization_version".to_owned(), GgufValue::U32(QUANTIZATION_VERSION)));
    keys
}

/// Whether a GGUF file can say all that `config` says; returns what it says to bitmill alone, or not at all, in sentences
/// for people.
///
/// # Errors
/// [`Error::Unsupported`] naming what has no form there: Llama 3's stretched turns exist for llama only.
pub fn check_gguf(checkpoint: &str, config: &ModelConfig) -> Result<Vec<String>, Error> {
    if let Some(what) = moe::unsaid_in_gguf(config) {
        return Err(Error::Unsupported { file: checkpoint.into(), what: format!("GGUF of {what}") });
    }
    let mut notes = Vec::new();
    gguf_rope::check(config, &mut notes)
        .map_err(|what| Error::Unsupported { file: checkpoint.into(), what })?;
    notes.extend(generation1::lost_beyond(config));
    if let Some(window) = &config.window {
        notes.push(format!(
            "llama.cpp reads no sliding window in {} files: past {} tokens it attends to more than this model was made for",
            config.family.gguf_name(),
            window.tokens,
        ));
    }
    Ok(notes)
}

/// Metadata keys below one prefix.
pub(crate) struct Keys<'a> {
    pub file: &'a Path,
    pub prefix: &'a str,
    metadata: &'a [(String, GgufValue)],
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a GgufValue> {
        let is_it =
            |name: &str| name.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.')) == Some(key);
        self.metadata.iter().find(|(name, _)| is_it(name)).map(|(_, value)| value)
    }

    fn missing(&self, key: &str) -> Error {
        Error::GgufMissingKey { file: self.file.to_owned(), key: format!("{}.{key}", self.prefix) }
    }

    pub fn wrong(&self, key: &str, problem: String) -> Error {
        Error::ConfigValue { file: self.file.to_owned(), key: format!("{}.{key}", self.prefix), problem }
    }

    fn wrong_type(&self, key: &str, value: &GgufValue, expected: &'static str) -> Error {
        let key = format!("{}.{key}", self.prefix);
        Error::GgufKeyType { file: self.file.to_owned(), key, found: value.describe(), expected }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_str().map(Some).ok_or_else(|| self.wrong_type(key, value, "string"))
    }

    pub fn real(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_f64().map(Some).ok_or_else(|| self.wrong_type(key, value, "f32"))
    }

    fn count(&self, key: &str, limit: usize) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_u64().ok_or_else(|| self.wrong_type(key, value, "u32"))?;
        match usize::try_from(number).ok().filter(|&number| number <= limit) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(key, format!("expected an integer up to {limit}, found {number}"))),
        }
    }

    pub fn size(&self, key: &str, limit: usize) -> Result<Option<usize>, Error> {
        match self.count(key, limit)? {
            Some(0) => Err(self.wrong(key, "it is 0".to_owned())),
            found => Ok(found),
        }
    }

    pub fn needed(&self, key: &str, limit: usize) -> Result<usize, Error> {
        self.size(key, limit)?.ok_or_else(|| self.missing(key))
    }

    fn token(&self, key: &str, vocab_size: usize) -> Result<Option<u32>, Error> {
        match self.count(key, usize::MAX)? {
            None => Ok(None),
            Some(token) if token < vocab_size => Ok(u32::try_from(token).ok()),
            Some(token) => {
                Err(self.wrong(key, format!("{token} is not below the {vocab_size} of the vocabulary")))
            }
        }
    }
}
