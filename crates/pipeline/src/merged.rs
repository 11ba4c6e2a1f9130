//! The tensors of a GGUF file: as planned, but for experts, which it holds in one tensor a layer, `[experts, out, in]`.

use std::collections::HashMap;

use bitmill_checkpoint::{GgufTensorSpec, RoleKind};

use crate::error::Error;
use crate::plan::PlannedTensor;

/// Where a planned tensor lies in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which of the file's tensors holds it.
    pub spec: usize,
    /// Where it begins there, in bytes.
    pub offset: u64,
}

/// The file's tensors, in the order in which `tensors` first need them, and the place of each planned one.
///
/// # Errors
/// [`Error::ExpertsDiffer`] if experts that share a tensor were given different types.
pub(crate) fn merge(tensors: &[PlannedTensor]) -> Result<(Vec<GgufTensorSpec>, Vec<Place>), Error> {
    let mut specs: Vec<GgufTensorSpec> = Vec::with_capacity(tensors.len());
    let mut places = Vec::with_capacity(tensors.len());
    let mut merged: HashMap<String, usize> = HashMap::new();
    for tensor in tensors {
        let name = tensor.role.gguf_name().unwrap_or_else(|| tensor.name.clone());
        let Some(expert) = tensor.role.expert else {
            places.push(Place { spec: specs.len(), offset: 0 });
            specs.push(GgufTensorSpec { name, shape: stored_shape(tensor), encoding: tensor.to });
            continue;
        };
        let spec = *merged.entry(name.clone()).or_insert_with(|| {
            let shape = [&[0], tensor.shape.as_slice()].concat();
            specs.push(GgufTensorSpec { name: name.clone(), shape, encoding: tensor.to });
            specs.len() - 1
        });
        if specs[spec].encoding != tensor.to {
            return Err(Error::ExpertsDiffer {
                tensor: name,
                expected: specs[spec].encoding.to_string(),
                expert,
                found: tensor.to.to_string(),
            });
        }
        // Every expert is there: the checkpoint was held against its config.
        specs[spec].shape[0] += 1;
        places.push(Place { spec, offset: expert as u64 * tensor.bytes_after });
    }
    Ok((specs, places))
}

/// llama.cpp has the shared expert's gate as a vector.
fn stored_shape(tensor: &PlannedTensor) -> Vec<usize> {
    match tensor.role.kind {
        RoleKind::SharedRouter => tensor.shape[1..].to_vec(),
        _ => tensor.shape.clone(),
    }
}
