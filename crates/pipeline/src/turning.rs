//! A rotation of the residual stream, folded into what writes and reads it: outliers of some features are spread over all.
//!
//! ```toml
//! [[step]]
//! kind = "rotate"
//! seed = 0         # of the signs
//! values = false   # turn what v gives to the output projection too, head by head
//! ```
//!
//! QuaRot, arXiv:2404.00456, what needs nothing of a runtime: its R1, and with `values` its R2. Norms are multiplied into what
//! reads them and become 1; a head that shares the embedding's weights becomes a tensor of its own. The model computes the same.

use bitmill_checkpoint::{Checkpoint, ModelConfig, Role, RoleKind, Tensor};
use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_model::{Residual, residual};
use bitmill_quant::{Rotation, fold};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A step of kind `rotate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateStep {
    /// Decides the signs.
    #[serde(default)]
    pub seed: u32,
    /// Whether what v gives to the output projection is turned too, head by head.
    #[serde(default)]
    pub values: bool,
}

impl RotateStep {
    /// Whether tensors of a kind become others.
    pub(crate) fn changes(&self, kind: RoleKind) -> bool {
        changes(self.values, kind)
    }
}

fn changes(values: bool, kind: RoleKind) -> bool {
    let is_norm = matches!(kind, RoleKind::AttnNorm | RoleKind::FfnNorm | RoleKind::OutputNorm);
    is_norm || residual(kind).is_some() || (kind == RoleKind::AttnVBias && values)
}

/// The rotations of a model.
#[derive(Debug)]
pub(crate) struct Turn {
    stream: Rotation,
    /// Of each head of v.
    values: Option<Rotation>,
}

/// What becomes of each row of a matrix as it is read.
#[derive(Debug)]
pub(crate) struct RowChange<'a> {
    /// The weights of the norm before it.
    norm: Option<Vec<f32>>,
    rotation: &'a Rotation,
}

/// What becomes of a tensor.
pub(crate) enum Turned<'a> {
    /// Nothing.
    Same,
    /// Each row is changed for itself.
    Rows(RowChange<'a>),
    /// All of it at once: its values, in the order in which it stores them.
    Whole(Vec<f32>),
}

impl Turn {
    /// # Errors
    /// [`Error::NoRotation`] if features can only be mixed in pairs or not at all.
    pub fn new(model: &str, config: &ModelConfig, step: RotateStep) -> Result<Self, Error> {
        let of = |width: usize, seed: u64| {
            let rotation = Rotation::new(width, seed);
            match rotation.block() {
                0..=2 => Err(Error::NoRotation { model: model.into(), width }),
                _ => Ok(rotation),
            }
        };
        let stream = of(config.hidden_size, u64::from(step.seed))?;
        // Signs of its own.
        let values = step.values.then(|| of(config.head_dim, !u64::from(step.seed))).transpose()?;
        Ok(Self { stream, values })
    }

    /// What a plan says of it, in a sentence.
    pub fn note(&self, is_untied: bool) -> String {
        let values = match &self.values {
            Some(rotation) => {
                format!(", and what each head of v gives in blocks of {}", rotation.block())
            }
            None => String::new(),
        };
        let head = if is_untied { "; the head becomes a tensor of its own" } else { "" };
        format!(
            "`rotate` turns the residual stream in blocks of {} features{values}{head}",
            self.stream.block()
        )
    }

    /// States of the model as it was become those of the turned one, row by row.
    pub fn turn(&self, states: &mut [f32]) {
        self.stream.rotate_rows(states);
    }

    /// Takes [`turn`](Self::turn) back.
    pub fn turn_back(&self, states: &mut [f32]) {
        self.stream.restore_rows(states);
    }

    fn changes(&self, kind: RoleKind) -> bool {
        changes(self.values.is_some(), kind)
    }

    /// Whether a tensor of a kind is changed as a whole, in memory.
    pub fn is_whole(&self, kind: RoleKind) -> bool {
        let is_value = matches!(kind, RoleKind::AttnV | RoleKind::AttnVBias) && self.values.is_some();
        is_value || (self.changes(kind) && !matches!(residual(kind), Some(Residual::Rows | Residual::Read)))
    }

    /// What becomes of `tensor`, which stands where `kind` says: the embedding may stand for the head.
    pub fn of(
        &self,
        isa: Isa,
        checkpoint: &Checkpoint,
        tensor: &Tensor,
        kind: RoleKind,
    ) -> Result<Turned<'_>, Error> {
        if !self.changes(kind) {
            return Ok(Turned::Same);
        }
        if !self.is_whole(kind) {
            return Ok(Turned::Rows(self.rows(isa, checkpoint, tensor, kind)?));
        }
        let mut values = widened(isa, tensor);
        match kind {
            RoleKind::AttnNorm | RoleKind::FfnNorm | RoleKind::OutputNorm => values.fill(1.0),
            RoleKind::AttnV => {
                self.rows(isa, checkpoint, tensor, kind)?.apply(&mut values);
                let cols = tensor.view().in_features();
                if let Some(rotation) = &self.values {
                    values
                        .chunks_exact_mut(rotation.width() * cols)
                        .for_each(|head| rotation.rotate_columns(head));
                }
            }
            RoleKind::AttnVBias => {
                if let Some(rotation) = &self.values {
                    rotation.rotate_rows(&mut values);
                }
            }
            _ => {
                if let Some(rotation) = self.values.as_ref().filter(|_| kind == RoleKind::AttnOutput) {
                    // The columns of a head lie side by side: so many short rows.
                    rotation.rotate_rows(&mut values);
                }
                self.stream.rotate_columns(&mut values);
            }
        }
        Ok(Turned::Whole(values))
    }

    fn rows(
        &self,
        isa: Isa,
        checkpoint: &Checkpoint,
        tensor: &Tensor,
        kind: RoleKind,
    ) -> Result<RowChange<'_>, Error> {
        let norm = norm_before(tensor.info.role, kind).and_then(|role| role.canonical_name());
        let norm = norm.map(|name| checkpoint.tensor(&name)).transpose()?;
        let norm = norm.map(|norm| widened(isa, &norm));
        Ok(RowChange { norm, rotation: &self.stream })
    }
}

/// The norm whose weights are multiplied into a tensor of this kind, in the layer of `role`.
fn norm_before(role: Role, kind: RoleKind) -> Option<Role> {
    use RoleKind::{
        AttnK, AttnNorm, AttnQ, AttnV, FfnGate, FfnNorm, FfnUp, Output, OutputNorm, Router, SharedGate,
        SharedRouter, SharedUp,
    };
    match (kind, role.layer) {
        (Output, _) => Some(Role::outside(OutputNorm)),
        (AttnQ | AttnK | AttnV, Some(layer)) => Some(Role::in_layer(layer, AttnNorm)),
        (FfnGate | FfnUp | SharedGate | SharedUp | Router | SharedRouter, Some(layer)) => {
            Some(Role::in_layer(layer, FfnNorm))
        }
        _ => None,
    }
}

impl RowChange<'_> {
    /// Changes whole rows.
    pub fn apply(&self, rows: &mut [f32]) {
        if let Some(norm) = &self.norm {
            fold::multiply_columns(rows, norm);
        }
        self.rotation.rotate_rows(rows);
    }
}

/// All values of `tensor`, as it stores them.
pub(crate) fn widened(isa: Isa, tensor: &Tensor) -> Vec<f32> {
    let view = tensor.view();
    let (rows, cols) = (view.out_features(), view.in_features());
    let mut values = vec![0.0; rows * cols];
    values
        .par_chunks_mut(cols.max(1))
        .enumerate()
        .for_each(|(row, out)| dequantize_rows(isa, &view, row, out));
    tensor.release();
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded;

    #[test]
    fn widths_that_mix_in_pairs_at_most_are_refused() {
        let config = embedded::checkpoint().unwrap().config().clone();
        let turn = |hidden_size, head_dim, values| {
            let config = ModelConfig { hidden_size, head_dim, ..config.clone() };
            Turn::new("m", &config, RotateStep { seed: 0, values })
        };
        assert!(turn(768, 7, false).is_ok());
        for (hidden_size, values, width) in [(14, false, 14), (7, false, 7), (768, true, 7)] {
            let error = turn(hidden_size, 7, values).unwrap_err();
            assert!(matches!(error, Error::NoRotation { width: found, .. } if found == width), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn states_are_turned_and_turned_back() {
        let config = embedded::checkpoint().unwrap().config().clone();
        let turn = Turn::new("m", &config, RotateStep::default()).unwrap();
        let states: Vec<f32> = (0..3 * config.hidden_size).map(|at| (at * 37 % 101) as f32 - 50.0).collect();
        let mut turned = states.clone();
        turn.turn(&mut turned);
        assert!(turned.iter().zip(&states).any(|(a, b)| (a - b).abs() > 1.0));
        turn.turn_back(&mut turned);
        assert!(turned.iter().zip(&states).all(|(a, b)| (a - b).abs() < 1e-3));
    }
}
