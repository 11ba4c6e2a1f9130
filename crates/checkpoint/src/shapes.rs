//! Holds the tensors of a checkpoint against its config.

use std::collections::HashMap;

use bitmill_tensor::Encoding;

use crate::role::Need;
use crate::{Error, ModelConfig, Role, RoleKind, TensorInfo};

/// Checks that every tensor the model needs is there, in the shape that `config` asks for, and that none is there
/// that would change the numbers if it were left out.
pub(crate) fn check(checkpoint: &str, config: &ModelConfig, tensors: &[TensorInfo]) -> Result<(), Error> {
    for tensor in tensors {
        let unexpected = || Error::UnexpectedTensor {
            checkpoint: checkpoint.to_owned(),
            tensor: tensor.name.clone(),
            family: config.family.name(),
            n_layers: config.n_layers,
        };
        let Some(expected) = tensor.role.expected_shape(config) else {
            // `model.` or `transformer.` is the decoder itself and `lm_head.` its output; what lies beside them is not
            // run.
            let inside = ["model.", "transformer.", "lm_head.", "blk.", "output"]
                .iter()
                .any(|part| tensor.name.starts_with(part));
            if inside {
                return Err(unexpected());
            }
            continue;
        };
        if tensor.role.layer.is_some_and(|layer| layer >= config.n_layers) {
            return Err(unexpected());
        }
        // The reference does not use one there, so using it would change the numbers.
        if !tensor.role.belongs_to(config) {
            return Err(unexpected());
        }
        if tensor.shape != expected {
            return Err(Error::TensorShape {
                checkpoint: checkpoint.to_owned(),
                tensor: tensor.name.clone(),
                found: tensor.shape.clone(),
                expected,
            });
        }
        if !tensor.role.is_matrix() && !matches!(tensor.encoding, Encoding::Float(_)) {
            return Err(Error::QuantizedVector {
                checkpoint: checkpoint.to_owned(),
                tensor: tensor.name.clone(),
                encoding: tensor.encoding.to_string(),
            });
        }
    }
    all_there(checkpoint, config, tensors)
}

fn all_there(checkpoint: &str, config: &ModelConfig, tensors: &[TensorInfo]) -> Result<(), Error> {
    let mut roles: HashMap<Role, usize> = HashMap::new();
    let mut kinds: HashMap<RoleKind, usize> = HashMap::new();
    for tensor in tensors {
        *roles.entry(tensor.role).or_default() += 1;
        *kinds.entry(tensor.role.kind).or_default() += 1;
    }
    for (role, need) in Role::all(config) {
        let needed = match need {
            Need::Always => true,
            Need::UnlessTied => !config.tied,
            Need::AllOrNone => kinds.contains_key(&role.kind),
        };
        if needed && !roles.contains_key(&role) {
            return Err(Error::MissingTensor {
                checkpoint: checkpoint.to_owned(),
                tensor: role.canonical_name().unwrap_or_default(),
            });
        }
    }
    Ok(())
}
