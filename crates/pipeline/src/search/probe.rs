//! What the predictions of a model lose when some of its matrices are rounded.

use std::collections::HashMap;

use bitmill_checkpoint::{Checkpoint, RoleKind, Tensor};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Model, Stage};
use bitmill_tensor::Matrix;
use bitmill_text::Windows;

use crate::search::candidate::{Candidate, Unit};
use crate::search::rounding::{errors, rounded};
use crate::{Error, Progress};

/// Rows of logits that are worked on at once.
const LOGIT_ROWS: usize = 256;
/// Tokens whose inputs a unit's error is measured on, evenly spread over the text.
const INPUT_TOKENS: usize = 256;

/// A model, calibration texts, and what the dense model predicts of them.
pub(crate) struct Probe<'a> {
    checkpoint: &'a Checkpoint,
    compute: Compute,
    model: Model,
    windows: &'a Windows,
    /// Logits of every token, some rows each.
    dense: Vec<Matrix>,
    /// What the dense model's head multiplies, some tokens.
    head_inputs: Matrix,
    /// Copies of a stage, run on.
    branch: Stage,
}

/// What was found of one unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    /// Relative squared error of each candidate; `None` where it cannot hold the weights.
    pub errors: Vec<Option<f64>>,
    /// Mean KL of the candidates that were run.
    pub kls: Vec<Option<f64>>,
}

impl<'a> Probe<'a> {
    /// Runs the dense model over `windows`.
    ///
    /// # Errors
    /// If the model cannot run.
    pub(crate) fn new(checkpoint: &'a Checkpoint, windows: &'a Windows) -> Result<Self, Error> {
        let compute = Compute::new(Isa::best(), Path::Exact);
        let model = Model::load(checkpoint)?;
        let (dense, head_inputs, branch) = (Vec::new(), Matrix::default(), Stage::default());
        let mut probe = Self { checkpoint, compute, model, windows, dense, head_inputs, branch };
        let mut stage = probe.enter()?;
        while stage.layer() < probe.model.config().n_layers {
            probe.model.pass_layer(&compute, &mut stage, |_, _, _| ());
        }
        let some = spread(stage.hidden().rows());
        probe.model.before_head(&compute, &stage, &some, &mut probe.head_inputs);
        for rows in chunks(stage.hidden().rows()) {
            let mut logits = Matrix::default();
            probe.model.leave(&compute, &mut stage, &rows, &mut logits);
            probe.dense.push(logits);
        }
        Ok(probe)
    }

    fn enter(&self) -> Result<Stage, Error> {
        let texts: Vec<&[u32]> = self.windows.iter().collect();
        Ok(self.model.enter(&self.compute, &texts)?)
    }

    /// Completes `found` in one walk through the model: the error of every candidate where there is none yet, and the
    /// divergence of the candidates that `run` picks, when their unit alone is rounded. A unit of layer `l` runs layers
    /// `l` and later only.
    ///
    /// # Errors
    /// If a tensor cannot be read or rounded.
    pub(crate) fn each_alone(
        &mut self,
        units: &[Unit],
        found: &mut [Found],
        run: &dyn Fn(usize, &Found) -> Vec<usize>,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let compute = self.compute;
        let n_layers = self.model.config().n_layers;
        let mut done = 0;
        let mut stage = self.enter()?;
        // The embedding, then the layers, then the head: the place after the last layer.
        for place in 0..=n_layers + 1 {
            let members: Vec<usize> =
                (0..units.len()).filter(|&unit| self.place(&units[unit]) == place).collect();
            let mut next = Stage::default();
            let mut inputs: HashMap<RoleKind, Matrix> = HashMap::new();
            if (1..=n_layers).contains(&place) {
                next.copy_from(&stage);
                self.model.pass_layer(&compute, &mut next, |kind, expert, x| {
                    // The experts of a layer meet different tokens: their errors are those of the weights.
                    if expert.is_some() {
                        return;
                    }
                    let mut some = Matrix::default();
                    compute.gather(x, &spread(x.rows()), &mut some);
                    inputs.insert(kind, some);
                });
            }
            for &index in &members {
                let unit = &units[index];
                let tensors = unit.read(self.checkpoint)?;
                if found[index].errors.is_empty() {
                    let inputs = match self.meets_the_head(unit) {
                        true => Some(&self.head_inputs),
                        false => inputs.get(&unit.tensors[0].role.kind),
                    };
                    let errors = errors(&compute, unit, &tensors, inputs)?;
                    found[index] = Found { kls: vec![None; errors.len()], errors };
                }
                for candidate in run(index, &found[index]) {
                    let form = unit.candidates[candidate];
                    let swap = |(place, tensor)| rounded(&compute, tensor, form, unit.importance(place));
                    let swapped: Result<Vec<Tensor>, Error> = tensors.iter().enumerate().map(swap).collect();
                    found[index].kls[candidate] = Some(self.with(swapped?, &stage)?);
                }
                done += 1;
                progress.at(done, units.len() as u64);
                tensors.iter().for_each(Tensor::release);
            }
            if (1..=n_layers).contains(&place) {
                stage = next;
            }
        }
        Ok(())
    }

    /// The divergence of the model with every unit in its chosen form.
    ///
    /// # Errors
    /// As [`each_alone`](Self::each_alone).
    pub(crate) fn all(&mut self, units: &[Unit], chosen: &[Candidate]) -> Result<f64, Error> {
        let mut all = Vec::new();
        for (unit, &form) in units.iter().zip(chosen) {
            for (place, tensor) in unit.read(self.checkpoint)?.into_iter().enumerate() {
                all.push(rounded(&self.compute, &tensor, form, unit.importance(place))?);
                tensor.release();
            }
        }
        let dense = self.put(all);
        let kl = self.enter().and_then(|stage| self.run_on(&stage));
        self.put(dense);
        kl
    }

    /// Where a unit is met first: 0 the embedding, then the layers, then the head.
    fn place(&self, unit: &Unit) -> usize {
        match unit.layer() {
            Some(layer) => layer + 1,
            None if unit.is_embedding() => 0,
            None => self.model.config().n_layers + 1,
        }
    }

    /// Whether a unit's outputs are logits: the head, and the embedding that serves as one.
    fn meets_the_head(&self, unit: &Unit) -> bool {
        unit.layer().is_none() && (!unit.is_embedding() || self.model.config().tied)
    }

    /// The divergence with `tensors` in their places, from `stage` on; from the beginning if one is the embedding.
    fn with(&mut self, tensors: Vec<Tensor>, stage: &Stage) -> Result<f64, Error> {
        let is_embedding = tensors.iter().any(|tensor| tensor.info.role.kind == RoleKind::TokenEmbedding);
        let dense = self.put(tensors);
        let kl = match is_embedding {
            true => self.enter().and_then(|stage| self.run_on(&stage)),
            false => self.run_on(stage),
        };
        self.put(dense);
        kl
    }

    /// Puts `tensors` in their places and returns what stood there.
    fn put(&mut self, tensors: Vec<Tensor>) -> Vec<Tensor> {
        tensors.into_iter().filter_map(|tensor| self.model.replace(tensor)).collect()
    }

    /// Mean divergence from the dense model of what follows from `stage`, over all tokens.
    fn run_on(&mut self, stage: &Stage) -> Result<f64, Error> {
        let compute = self.compute;
        let mut branch = std::mem::take(&mut self.branch);
        branch.copy_from(stage);
        while branch.layer() < self.model.config().n_layers {
            self.model.pass_layer(&compute, &mut branch, |_, _, _| ());
        }
        let (mut logits, mut kls, mut sum) = (Matrix::default(), Vec::new(), 0.0);
        let tokens = branch.hidden().rows();
        for (rows, dense) in chunks(tokens).zip(&self.dense) {
            self.model.leave(&compute, &mut branch, &rows, &mut logits);
            compute.divergence(dense, &logits, &mut kls);
            sum += kls.iter().map(|kl| kl.max(0.0)).sum::<f64>();
        }
        self.branch = branch;
        let mean = sum / tokens.max(1) as f64;
        if mean.is_finite() {
            Ok(mean)
        } else {
            Err(Error::NotFiniteOnCalibration { model: self.checkpoint.name() })
        }
    }
}

/// The rows of logits, some at a time.
fn chunks(rows: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..rows).step_by(LOGIT_ROWS).map(move |first| (first..(first + LOGIT_ROWS).min(rows)).collect())
}

/// Some of `rows`, evenly spread.
fn spread(rows: usize) -> Vec<usize> {
    let count = INPUT_TOKENS.min(rows);
    (0..count).map(|place| place * rows / count).collect()
}
