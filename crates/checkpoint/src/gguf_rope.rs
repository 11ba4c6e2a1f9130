//! RoPE as GGUF has it: keys `ARCH.rope.*`, and the tensor `rope_freqs.weight` of llama files.
//!
//! ```text
//! rope.freq_base                         theta
//! rope.scaling.type                      none, linear (also if absent), yarn
//! rope.scaling.factor                    of both; none or 0 is 1
//! rope.scaling.original_context_length   YaRN's original context; the file's context_length if absent
//! rope.scaling.attn_factor               multiplies YaRN's usual attention factor
//! rope.scaling.yarn_beta_fast, …_slow    YaRN's bounds, 32 and 1 if absent
//! ```
//!
//! The converter also writes `rope.scaling.yarn_attn_factor`, which llama.cpp reads and then overwrites
//! (`src/llama-context.cpp`); neither is it read here.

use bitmill_tensor::{Encoding, FloatType};

use crate::config::Limits;
use crate::gguf_config::Keys;
use crate::gguf_in::GgufTensor;
use crate::{Error, Family, GgufValue, ModelConfig, Rope, RopeScaling, Yarn};

/// The tensor of factors that divide RoPE's turns.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// What `keys` say, in a file whose context is `positions`; `freqs` is the tensor of factors.
pub(crate) fn read(
    keys: &Keys,
    family: Family,
    head_dim: usize,
    positions: usize,
    freqs: Option<&GgufTensor>,
) -> Result<Rope, Error> {
    let theta = positive(keys, "rope.freq_base")?.unwrap_or(10_000.0);
    let scaling = match (keys.text("rope.scaling.type")?, factor(keys)?) {
        (Some("none"), _) | (None | Some("linear"), None) => RopeScaling::None,
        (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
        (Some("yarn"), factor) => yarn(keys, factor.unwrap_or(1.0), positions)?,
        (Some(kind), _) => {
            return Err(Error::UnsupportedRope { file: keys.file.to_owned(), kind: kind.to_owned() });
        }
    };
    let scaling = match (freqs, scaling) {
        (None, scaling) => scaling,
        (Some(freqs), RopeScaling::None) => RopeScaling::Factors(factors(keys, family, head_dim, freqs)?),
        (Some(_), _) => {
            let what = format!("`{ROPE_FREQS}` beside `{}.rope.scaling.factor`", keys.prefix);
            return Err(Error::Unsupported { file: keys.file.to_owned(), what });
        }
    };
    Ok(Rope { theta, pairing: family.gguf_pairing(), scaling })
}

/// The factor of linear scaling or YaRN, in today's or the old key; `None` if it changes nothing.
fn factor(keys: &Keys) -> Result<Option<f64>, Error> {
    for key in ["rope.scaling.factor", "rope.scale_linear"] {
        // 0 has always meant none.
        if keys.real(key)? != Some(0.0)
            && let Some(factor) = positive(keys, key)?
        {
            return Ok(Some(factor).filter(|&factor| factor != 1.0));
        }
    }
    Ok(None)
}

fn yarn(keys: &Keys, factor: f64, positions: usize) -> Result<RopeScaling, Error> {
    for (key, usual) in [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)] {
        if let Some(value) = keys.real(key)?
            && value != usual
        {
            let what = format!("YaRN with `{}.{key}` {value}", keys.prefix);
            return Err(Error::Unsupported { file: keys.file.to_owned(), what });
        }
    }
    let original = keys.size("rope.scaling.original_context_length", Limits::POSITIONS)?;
    let attn_factor = positive(keys, "rope.scaling.attn_factor")?.unwrap_or(1.0);
    Ok(RopeScaling::Yarn(Yarn {
        factor,
        original: original.unwrap_or(positions),
        beta_fast: positive(keys, "rope.scaling.yarn_beta_fast")?.unwrap_or(Yarn::BETA_FAST),
        beta_slow: positive(keys, "rope.scaling.yarn_beta_slow")?.unwrap_or(Yarn::BETA_SLOW),
        attention: Yarn::usual_attention(factor, 1.0) * attn_factor,
        truncate: true,
    }))
}

fn positive(keys: &Keys, key: &str) -> Result<Option<f64>, Error> {
    match keys.real(key)? {
        Some(number) if !(number.is_finite() && number > 0.0) => {
            Err(keys.wrong(key, format!("{number} is not a positive number")))
        }
        found => Ok(found),
    }
}

fn factors(keys: &Keys, family: Family, head_dim: usize, freqs: &GgufTensor) -> Result<Vec<f32>, Error> {
    let is_whole = freqs.shape == [head_dim / 2] && freqs.encoding == Encoding::Float(FloatType::F32);
    if !takes_factors(family) || !is_whole {
        let what = format!("`{ROPE_FREQS}` of shape {:?} in {} for {family}", freqs.shape, freqs.encoding);
        return Err(Error::Unsupported { file: keys.file.to_owned(), what });
    }
    let factors: Vec<f32> = (0..head_dim / 2).map(|i| FloatType::F32.read(&freqs.bytes, i)).collect();
    match factors.iter().find(|factor| !(factor.is_finite() && **factor > 0.0)) {
        Some(factor) => Err(Error::PackedTensor {
            tensor: ROPE_FREQS.to_owned(),
            problem: format!("the factor {factor} is not a positive number"),
        }),
        None => Ok(factors),
    }
}

/// Whether llama.cpp looks for factors in files of this family.
fn takes_factors(family: Family) -> bool {
    family.gguf_name() == "llama"
}

/// The keys below `ARCH.rope.scaling` that say how `config` stretches turns.
pub(crate) fn scaling_keys(config: &ModelConfig) -> Vec<(&'static str, GgufValue)> {
    let text = |text: &str| GgufValue::String(text.to_owned());
    match &config.rope.scaling {
        RopeScaling::Linear { factor } => {
            vec![("type", text("linear")), ("factor", GgufValue::F32(*factor as f32))]
        }
        RopeScaling::Yarn(yarn) => {
            let original = u32::try_from(yarn.original).unwrap_or(u32::MAX);
            let mut keys = vec![
                ("type", text("yarn")),
                ("factor", GgufValue::F32(yarn.factor as f32)),
                ("original_context_length", GgufValue::U32(original)),
            ];
            let attn_factor = (yarn.attention / Yarn::usual_attention(yarn.factor, 1.0)) as f32;
            for (key, value, usual) in [
                ("attn_factor", attn_factor, 1.0),
                ("yarn_beta_fast", yarn.beta_fast as f32, Yarn::BETA_FAST as f32),
                ("yarn_beta_slow", yarn.beta_slow as f32, Yarn::BETA_SLOW as f32),
            ] {
                if value != usual {
                    keys.push((key, GgufValue::F32(value)));
                }
            }
            keys
        }
        RopeScaling::None
        | RopeScaling::Dynamic { .. }
        | RopeScaling::PromptNtk { .. }
        | RopeScaling::Llama3 { .. }
        | RopeScaling::Factors(_) => Vec::new(),
    }
}

/// What of RoPE has no form in GGUF; notes on what only other readers do not see.
pub(crate) fn check(config: &ModelConfig, notes: &mut Vec<String>) -> Result<(), String> {
    match &config.rope.scaling {
        RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) if !takes_factors(config.family) => {
            return Err(format!("GGUF of a {} model with Llama 3's RoPE scaling", config.family));
        }
        RopeScaling::Yarn(yarn) if !yarn.truncate => {
            return Err("GGUF of YaRN that is not truncated to whole pairs (`truncate`)".to_owned());
        }
        RopeScaling::Yarn(yarn)
            if (yarn.beta_fast, yarn.beta_slow) != (Yarn::BETA_FAST, Yarn::BETA_SLOW) =>
        {
            notes.push(format!(
                "llama.cpp computes YaRN of {} files with bounds of 32 and 1, and not with {} and {}",
                config.family.gguf_name(),
                yarn.beta_fast,
                yarn.beta_slow,
            ));
        }
        RopeScaling::Dynamic { .. } => notes.push(format!(
            "dynamic RoPE scaling has no form in GGUF: the file is the same model up to {} tokens, which it says is its \
             context",
            config.plain_positions(),
        )),
        _ => {}
    }
    Ok(())
}

/// The factors that divide RoPE's turns, `head_dim / 2` of them: the tensor `rope_freqs.weight` of a llama GGUF.
/// `None` where the turns are not stretched, or keys say how.
///
/// Computed in f32, step for step as llama.cpp's converter does (`conversion/llama.py`).
pub fn rope_freqs(config: &ModelConfig) -> Option<Vec<f32>> {
    match config.rope.scaling {
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
        RopeScaling::None
        | RopeScaling::Linear { .. }
        | RopeScaling::Dynamic { .. }
        | RopeScaling::PromptNtk { .. }
        | RopeScaling::Yarn(_) => None,
    }
}
