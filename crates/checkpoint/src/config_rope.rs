//! What config.json says of RoPE: `rope_theta` and `rope_scaling` at the top level, or both within `rope_parameters`.

use serde_json::{Map, Value};

use crate::config::Limits;
use crate::config_json::Fields;
use crate::{Error, Pairing, Rope, RopeScaling, Yarn};

/// Reads it; `positions` is the context that the config names.
pub(crate) fn read(fields: &Fields, positions: usize) -> Result<Rope, Error> {
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
    Ok(Rope { theta, pairing: Pairing::Halves, scaling: scaling(&inner, positions)? })
}

/// `inner` is the object that says how turns are stretched. Keys that transformers does not look at (`finetuned`,
/// `attn_factor`, `extrapolation_factor`) are not looked at.
fn scaling(inner: &Fields, positions: usize) -> Result<RopeScaling, Error> {
    let needed = |key| positive(inner, key)?.ok_or_else(|| inner.wrong(key, "missing".to_owned()));
    let original = || inner.optional_size("original_max_position_embeddings", Limits::POSITIONS);
    let kind = inner.text("rope_type")?.or(inner.text("type")?).unwrap_or("default");
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: needed("factor")? },
        // The original context is the config's own: transformers looks for no other.
        "dynamic" => RopeScaling::Dynamic { factor: needed("factor")?, original: positions },
        "llama3" => {
            let (factor, low, high) =
                (needed("factor")?, needed("low_freq_factor")?, needed("high_freq_factor")?);
            if low >= high {
                return Err(inner.wrong("low_freq_factor", format!("{low} is not between 0 and {high}")));
            }
            RopeScaling::Llama3 { factor, low, high, original: original()?.unwrap_or(positions) }
        }
        "yarn" => {
            let original = original()?.unwrap_or(positions);
            let factor = positive(inner, "factor")?.unwrap_or(positions as f64 / original as f64);
            RopeScaling::Yarn(Yarn {
                factor,
                original,
                beta_fast: positive(inner, "beta_fast")?.unwrap_or(Yarn::BETA_FAST),
                beta_slow: positive(inner, "beta_slow")?.unwrap_or(Yarn::BETA_SLOW),
                attention: yarn_attention(inner, factor)?,
                truncate: inner.flag("truncate")?.unwrap_or(true),
            })
        }
        other => {
            return Err(Error::UnsupportedRope { file: inner.file.to_owned(), kind: other.to_owned() });
        }
    })
}

/// `attention_factor`, or what `mscale` and `mscale_all_dim` make of it, or the paper's.
fn yarn_attention(inner: &Fields, factor: f64) -> Result<f64, Error> {
    if let Some(attention) = positive(inner, "attention_factor")? {
        return Ok(attention);
    }
    // Neither counts alone, nor with the value 0.
    let of = |key| Ok::<_, Error>(inner.float(key)?.filter(|&mscale| mscale != 0.0));
    let attention = match (of("mscale")?, of("mscale_all_dim")?) {
        (Some(mscale), Some(all)) => {
            Yarn::usual_attention(factor, mscale) / Yarn::usual_attention(factor, all)
        }
        _ => Yarn::usual_attention(factor, 1.0),
    };
    if attention.is_finite() && attention > 0.0 {
        Ok(attention)
    } else {
        Err(inner.wrong("mscale", format!("it makes an attention factor of {attention}")))
    }
}

fn positive(inner: &Fields, key: &str) -> Result<Option<f64>, Error> {
    match inner.float(key)? {
        Some(number) if !(number.is_finite() && number > 0.0) => {
            Err(inner.wrong(key, format!("{number} is not a positive number")))
        }
        found => Ok(found),
    }
}
