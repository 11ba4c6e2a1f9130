//! A model's shape as GGUF metadata: read, and written as llama.cpp's converter writes it.
//!
//! Keys are `general.*` and `ARCH.*`, where `ARCH` is `general.architecture`. Value types are the converter's:
//! counts u32, reals f32.

use std::path::Path;

use bitmill_tensor::{Encoding, FloatType};

use crate::config::{Limits, check_sizes};
use crate::gguf_in::GgufTensor;
use crate::{Error, Family, GgufValue, ModelConfig, Rope, RopeScaling};

/// The tensor of factors that divide RoPE's turns.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";
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
    let Some(family) = Family::from_name(architecture) else {
        return Err(Error::UnsupportedFamily { file: file.to_owned(), found: architecture.to_owned() });
    };
    let keys = Keys { file, prefix: architecture, metadata };
    let unsupported = |what: String| Err(Error::Unsupported { file: file.to_owned(), what });
    for key in ["expert_count", "attention.sliding_window"] {
        if let Some(number) = keys.count(key, usize::MAX)?
            && number > 0
        {
            return unsupported(format!("a model with `{architecture}.{key}` {number}"));
        }
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
    let config = ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: keys.needed("feed_forward_length", Limits::WIDTH)?,
        n_layers: keys.needed("block_count", Limits::LAYERS)?,
        n_heads,
        n_kv_heads: keys.size("attention.head_count_kv", Limits::WIDTH)?.unwrap_or(n_heads),
        head_dim,
        rms_norm_eps: keys
            .real("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))? as f32,
        rope: rope(&keys, family, head_dim, tensor(ROPE_FREQS))?,
        max_positions: keys.needed("context_length", Limits::POSITIONS)?,
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

fn rope(keys: &Keys, family: Family, head_dim: usize, freqs: Option<&GgufTensor>) -> Result<Rope, Error> {
    let theta = keys.real("rope.freq_base")?.unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(keys.wrong("rope.freq_base", format!("{theta} is not a positive number")));
    }
    let unsupported = |what: String| Err(Error::Unsupported { file: keys.file.to_owned(), what });
    if let Some(kind) = keys.text("rope.scaling.type")?
        && kind != "none"
    {
        return unsupported(format!("the RoPE scaling `{kind}`"));
    }
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        if let Some(factor) = keys.real(key)?
            && factor != 1.0
            && factor != 0.0
        {
            return unsupported(format!("linear RoPE scaling (`{}.{key}` {factor})", keys.prefix));
        }
    }
    let scaling = match freqs {
        None => RopeScaling::None,
        Some(freqs) => {
            let is_whole = freqs.shape == [head_dim / 2] && freqs.encoding == Encoding::Float(FloatType::F32);
            if family != Family::Llama || !is_whole {
                let what =
                    format!("`{ROPE_FREQS}` of shape {:?} in {} for {family}", freqs.shape, freqs.encoding);
                return unsupported(what);
            }
            let factors: Vec<f32> = (0..head_dim / 2).map(|i| FloatType::F32.read(&freqs.bytes, i)).collect();
            if let Some(factor) = factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
                return Err(Error::PackedTensor {
                    tensor: ROPE_FREQS.to_owned(),
                    problem: format!("the factor {factor} is not a positive number"),
                });
            }
            RopeScaling::Factors(factors)
        }
    };
    Ok(Rope { theta, pairing: family.gguf_pairing(), scaling })
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
/// Turns stretched as Llama 3 does are no key but the tensor of [`rope_freqs`].
///
/// The converter writes key and value lengths where config.json names a `head_dim`; here they are written where
/// nothing else says them, which other readers take the same way.
pub fn gguf_metadata(config: &ModelConfig, name: &str, file_type: u32) -> Vec<(String, GgufValue)> {
    let arch = config.family.name();
    let mut keys: Vec<(String, GgufValue)> = vec![
        ("general.architecture".to_owned(), GgufValue::String(arch.to_owned())),
        ("general.type".to_owned(), GgufValue::String("model".to_owned())),
        ("general.name".to_owned(), GgufValue::String(name.to_owned())),
    ];
    let mut put = |key: &str, value: GgufValue| keys.push((format!("{arch}.{key}"), value));
    // Limits keep every size below 2^32.
    let count = |number: usize| GgufValue::U32(u32::try_from(number).unwrap_or(u32::MAX));
    put("block_count", count(config.n_layers));
    put("context_length", count(config.max_positions));
    put("embedding_length", count(config.hidden_size));
    put("feed_forward_length", count(config.intermediate_size));
    put("attention.head_count", count(config.n_heads));
    put("attention.head_count_kv", count(config.n_kv_heads));
    put("rope.freq_base", GgufValue::F32(config.rope.theta as f32));
    put("attention.layer_norm_rms_epsilon", GgufValue::F32(config.rms_norm_eps));
    if config.n_heads * config.head_dim != config.hidden_size {
        put("attention.key_length", count(config.head_dim));
        put("attention.value_length", count(config.head_dim));
    }
    if config.family == Family::Llama {
        put("vocab_size", count(config.vocab_size));
        put("rope.dimension_count", count(config.head_dim));
    }
    keys.push(("general.file_type".to_owned(), GgufValue::U32(file_type)));
    keys.push(("general.quantization_version".to_owned(), GgufValue::U32(QUANTIZATION_VERSION)));
    keys
}

/// The factors that divide RoPE's turns, `head_dim / 2` of them: the tensor `rope_freqs.weight` of a llama GGUF.
/// `None` where the turns are not stretched.
///
/// Computed in f32, step for step as llama.cpp's converter does (`conversion/llama.py`).
pub fn rope_freqs(config: &ModelConfig) -> Option<Vec<f32>> {
    match config.rope.scaling {
        RopeScaling::None => None,
        RopeScaling::Factors(ref factors) => Some(factors.clone()),
        RopeScaling::Llama3 { factor, low, high, original } => {
            let original = original as f64;
            let (slow, fast) = ((original / low) as f32, (original / high) as f32);
            let factor = factor as f32;
            let factor_of = |pair: usize| {
                let exponent = (2 * pair) as f32 / config.head_dim as f32;
                let turn = 1.0 / (config.rope.theta as f32).powf(exponent);
                let wavelength = std::f32::consts::TAU / turn;
                if wavelength < fast {
                    1.0
                } else if wavelength > slow {
                    factor
                } else {
                    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            };
            Some((0..config.head_dim / 2).map(factor_of).collect())
        }
    }
}

/// Whether a GGUF file can say all that `config` says.
///
/// # Errors
/// [`Error::Unsupported`] naming what has no form there: stretched turns exist for llama only.
pub fn check_gguf(checkpoint: &str, config: &ModelConfig) -> Result<(), Error> {
    if config.family != Family::Llama && config.rope.scaling != RopeScaling::None {
        let what = format!("GGUF of a {} model with Llama 3's RoPE scaling", config.family);
        return Err(Error::Unsupported { file: checkpoint.into(), what });
    }
    Ok(())
}

/// Metadata keys below one prefix.
struct Keys<'a> {
    file: &'a Path,
    prefix: &'a str,
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

    fn wrong(&self, key: &str, problem: String) -> Error {
        Error::ConfigValue { file: self.file.to_owned(), key: format!("{}.{key}", self.prefix), problem }
    }

    fn wrong_type(&self, key: &str, value: &GgufValue, expected: &'static str) -> Error {
        let key = format!("{}.{key}", self.prefix);
        Error::GgufKeyType { file: self.file.to_owned(), key, found: value.describe(), expected }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_str().map(Some).ok_or_else(|| self.wrong_type(key, value, "string"))
    }

    fn real(&self, key: &str) -> Result<Option<f64>, Error> {
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

    fn size(&self, key: &str, limit: usize) -> Result<Option<usize>, Error> {
        match self.count(key, limit)? {
            Some(0) => Err(self.wrong(key, "it is 0".to_owned())),
            found => Ok(found),
        }
    }

    fn needed(&self, key: &str, limit: usize) -> Result<usize, Error> {
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
