//! Where a run reads the tensors of its plan: in the checkpoint, with what the steps before rounding make of them.

use std::collections::HashMap;

use bitmill_checkpoint::{Checkpoint, Role, Tensor};
use bitmill_kernels::{Isa, dequantize_rows};

use crate::Error;
use crate::plan::{Plan, PlannedTensor};
use crate::turning::{RowChange, Turned, widened};

/// The tensors of a run.
pub(crate) struct Source<'a> {
    pub checkpoint: &'a Checkpoint,
    pub plan: &'a Plan,
    /// Tensors of the layer that runs, changed, by their roles in the checkpoint.
    changed: HashMap<Role, Tensor>,
}

/// A tensor that is read.
pub(crate) struct Opened<'a> {
    pub tensor: Tensor,
    /// What becomes of each row.
    change: Option<RowChange<'a>>,
}

impl<'a> Source<'a> {
    pub fn new(checkpoint: &'a Checkpoint, plan: &'a Plan) -> Self {
        Self::with_changed(checkpoint, plan, HashMap::new())
    }

    pub fn with_changed(checkpoint: &'a Checkpoint, plan: &'a Plan, changed: HashMap<Role, Tensor>) -> Self {
        Self { checkpoint, plan, changed }
    }

    /// The roles, in the checkpoint, of what a layer's run changed.
    pub fn changed(&self) -> impl Iterator<Item = Role> {
        self.changed.keys().copied()
    }

    /// Whether a layer's run changed the tensor of this role.
    pub fn has_changed(&self, role: Role) -> bool {
        self.changed.contains_key(&role)
    }

    /// The tensor that `planned` is made from.
    ///
    /// # Errors
    /// If the checkpoint lacks it.
    pub fn open(&self, isa: Isa, planned: &PlannedTensor) -> Result<Opened<'a>, Error> {
        let tensor = self.checkpoint.tensor(&planned.source)?;
        if let Some(changed) = self.changed.get(&tensor.info.role) {
            return Ok(Opened { tensor: changed.clone(), change: None });
        }
        let Some(turn) = &self.plan.turn else { return Ok(Opened { tensor, change: None }) };
        Ok(match turn.of(isa, self.checkpoint, &tensor, planned.role.kind)? {
            Turned::Same => Opened { tensor, change: None },
            Turned::Rows(change) => Opened { tensor, change: Some(change) },
            Turned::Whole(values) => Opened { tensor: tensor.with_values(values), change: None },
        })
    }
}

impl Opened<'_> {
    /// Rows from `row` on, as the tensor stores them, into `out`.
    pub fn read_rows(&self, isa: Isa, row: usize, out: &mut [f32]) {
        dequantize_rows(isa, &self.tensor.view(), row, out);
        self.change(out);
    }

    /// Makes rows as the checkpoint has them what they become.
    pub fn change(&self, rows: &mut [f32]) {
        if let Some(change) = &self.change {
            change.apply(rows);
        }
    }

    /// The tensor with what becomes of its rows.
    pub fn into_tensor(self, isa: Isa) -> Tensor {
        match self.change {
            None => self.tensor,
            Some(change) => {
                let mut values = widened(isa, &self.tensor);
                change.apply(&mut values);
                self.tensor.with_values(values)
            }
        }
    }
}
