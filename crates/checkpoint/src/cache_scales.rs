//! Scales of a runtime's cache of keys and values in 8 bits: they belong to no matrix, and change no weight.
//!
//! ```text
//! model.layers.N.self_attn.k_scale, v_scale     F32|F16|BF16 [1], or one for each head [kv heads, 1, 1]
//! ```
//!
//! Beside them may stand `q_scale` and zero points of 8 bits, where a runtime multiplies queries and keys in 8 bits too: they are left aside.
//!
//! `quantization_config.kv_cache_scheme` says what the numbers of the cache are: FP8, `number · scale`. What keys were is found after
//! they were turned by their positions.

use bitmill_tensor::FloatType;
use serde_json::{Value, json};

use crate::safetensors_in::StTensor;
use crate::{Error, ModelConfig, RoleKind, StTensorSpec};

/// What keys or values of a layer are divided by before they are cached as 8-bit floats.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheScale {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The matrix that makes what is cached: [`RoleKind::AttnK`] or [`RoleKind::AttnV`].
    pub of: RoleKind,
    /// One for all, or one for each head of keys and values.
    pub values: Vec<f32>,
}

/// The parts of names after those of a layer's attention.
const NAMES: [(&str, RoleKind); 2] = [("k_scale", RoleKind::AttnK), ("v_scale", RoleKind::AttnV)];

/// What stands beside them.
const ASIDE: [&str; 4] = ["q_scale", "q_zero_point", "k_zero_point", "v_zero_point"];

/// Takes the scales of caches out of what is stored.
pub(crate) fn take(
    checkpoint: &str,
    config: &ModelConfig,
    stored: Vec<StTensor>,
) -> Result<(Vec<StTensor>, Vec<CacheScale>), Error> {
    let (mut left, mut scales) = (Vec::with_capacity(stored.len()), Vec::new());
    let is_aside = |name: &str| {
        let part = name.rsplit_once(".self_attn.").map(|(_, part)| part);
        part.is_some_and(|part| ASIDE.contains(&part))
    };
    for tensor in stored.into_iter().filter(|tensor| !is_aside(&tensor.name)) {
        let Some((layer, of)) = meaning(&tensor.name) else {
            left.push(tensor);
            continue;
        };
        if layer >= config.n_layers {
            return Err(Error::UnexpectedTensor {
                checkpoint: checkpoint.to_owned(),
                tensor: tensor.name,
                family: config.family.name(),
                n_layers: config.n_layers,
            });
        }
        let Some(float) = tensor.dtype.float() else {
            return Err(Error::UnsupportedDtype {
                file: tensor.file.to_path_buf(),
                tensor: tensor.name,
                dtype: tensor.dtype.to_string(),
            });
        };
        let count = tensor.bytes.len() / float.size_bytes();
        if count != 1 && count != config.n_kv_heads {
            return Err(Error::TensorShape {
                checkpoint: checkpoint.to_owned(),
                tensor: tensor.name,
                found: tensor.shape,
                expected: vec![1],
            });
        }
        let values = (0..count).map(|at| float.read(&tensor.bytes, at)).collect();
        scales.push(CacheScale { layer, of, values });
    }
    Ok((left, scales))
}

/// The layer and the matrix that a name is about, if it is that of a scale.
fn meaning(name: &str) -> Option<(usize, RoleKind)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = part.strip_prefix("self_attn.")?;
    let (_, of) = NAMES.into_iter().find(|(known, _)| *known == part)?;
    Some((layer.parse().ok()?, of))
}

/// The tensor that holds the scale of what the matrix `name`, of `of`, puts into a cache; `None` for a matrix that caches nothing.
///
/// ```
/// use bitmill_checkpoint::{RoleKind, cache_scale_spec};
/// use bitmill_tensor::FloatType;
///
/// let spec = cache_scale_spec("model.layers.3.self_attn.v_proj.weight", RoleKind::AttnV, FloatType::BF16).unwrap();
/// assert_eq!((spec.name.as_str(), spec.shape.as_slice()), ("model.layers.3.self_attn.v_scale", &[1][..]));
/// assert!(cache_scale_spec("model.layers.3.self_attn.q_proj.weight", RoleKind::AttnQ, FloatType::BF16).is_none());
/// ```
pub fn cache_scale_spec(name: &str, of: RoleKind, float: FloatType) -> Option<StTensorSpec> {
    let (part, _) = NAMES.into_iter().find(|(_, known)| *known == of)?;
    let attention = name.strip_suffix(".weight")?.rsplit_once('.')?.0;
    Some(StTensorSpec { name: format!("{attention}.{part}"), shape: vec![1], dtype: float.into() })
}

/// `kv_cache_scheme` of a `quantization_config`: 8-bit floats with one scale for all, found beforehand.
pub fn fp8_cache_scheme() -> Value {
    json!({
        "num_bits": 8,
        "type": "float",
        "symmetric": true,
        "strategy": "tensor",
        "group_size": null,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "static_minmax",
        "observer_kwargs": {},
    })
}
