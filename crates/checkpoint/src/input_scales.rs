//! Scales of what matrices multiply, found beforehand: they change no weight.
//!
//! ```text
//! NAME.input_scale     F32|F16|BF16 [1] or []
//! ```
//!
//! A runtime divides a matrix's inputs by it and rounds them to 8-bit floats; `input_activations` of a group of modules says so
//! (`"dynamic": false`, `"strategy": "tensor"`). What other shapes and dtypes go by that name is left to the form that it belongs to.

use bitmill_tensor::FloatType;

use crate::StTensorSpec;
use crate::safetensors_in::StTensor;

/// What the inputs of a matrix are divided by before they become 8-bit floats.
#[derive(Debug, Clone, PartialEq)]
pub struct InputScale {
    /// The matrix.
    pub name: String,
    /// The scale.
    pub value: f32,
}

const PART: &str = ".input_scale";

/// Takes the scales of inputs out of what is stored.
pub(crate) fn take(stored: Vec<StTensor>) -> (Vec<StTensor>, Vec<InputScale>) {
    let (mut left, mut scales) = (Vec::with_capacity(stored.len()), Vec::new());
    for tensor in stored {
        match meaning(&tensor) {
            Some(scale) => scales.push(scale),
            None => left.push(tensor),
        }
    }
    (left, scales)
}

fn meaning(tensor: &StTensor) -> Option<InputScale> {
    let module = tensor.name.strip_suffix(PART)?;
    let float = tensor.dtype.float()?;
    let is_single = tensor.bytes.len() == float.size_bytes();
    is_single.then(|| InputScale { name: format!("{module}.weight"), value: float.read(&tensor.bytes, 0) })
}

/// The tensor that holds the scale of what the matrix `name` multiplies.
///
/// ```
/// use bitmill_checkpoint::input_scale_spec;
/// use bitmill_tensor::FloatType;
///
/// let spec = input_scale_spec("model.layers.3.mlp.up_proj.weight", FloatType::BF16);
/// assert_eq!((spec.name.as_str(), spec.shape.as_slice()), ("model.layers.3.mlp.up_proj.input_scale", &[1][..]));
/// ```
pub fn input_scale_spec(name: &str, float: FloatType) -> StTensorSpec {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    StTensorSpec { name: format!("{module}{PART}"), shape: vec![1], dtype: float.into() }
}
