//! The matrices of a layer: statistics are summed, factored once for all that share them, and spent.

use std::borrow::Cow;
use std::collections::HashMap;

use bitmill_calib::Inputs;
use bitmill_checkpoint::{Checkpoint, Role, Tensor};
use bitmill_kernels::Compute;
use bitmill_stats::{Cross, CrossAccumulator, Factor, HessianAccumulator};
use bitmill_tensor::Matrix;

use super::tensor::{
    MethodRecord, Rows, Statistics, as_stored, encode_alone, encode_calibrated, output_error, six_digits,
    some_rows,
};
use crate::Error;
use crate::method::{Method, Order};
use crate::plan::{Plan, PlannedTensor};
use crate::tensor_run::{Encoded, TensorRun};

/// A matrix that is encoded.
pub(crate) struct Done {
    pub encoded: Vec<Encoded>,
    /// How its codes were chosen, where not by its weights alone.
    pub method: Option<MethodRecord>,
    /// What scales of fp8 are divided by.
    pub global: f32,
}

/// What is summed of the inputs that some matrices share.
pub(crate) struct Sums {
    hessian: Option<HessianAccumulator>,
    cross: Option<CrossAccumulator>,
    /// Columns of the matrices, those that pad included.
    cols: usize,
    /// Some calibration rows, to measure errors on.
    some: Matrix,
}

impl Sums {
    /// Adds the rows that are there to calibrate on.
    pub fn add(&mut self, inputs: &Inputs<'_>) {
        let rows = inputs.calibration_rows;
        if rows == 0 {
            return;
        }
        if self.some.rows() == 0 {
            self.some = some_rows(inputs.x, rows);
        }
        let Some(hessian) = &mut self.hessian else { return };
        let x = part(inputs.x, rows, self.cols);
        hessian.add(&x);
        if let (Some(cross), Some(dense)) = (&mut self.cross, inputs.dense) {
            cross.add(&part(dense, rows, self.cols), &x);
        }
    }
}

/// The first `rows` of `x`, with columns of zeros up to `cols`.
fn part(x: &Matrix, rows: usize, cols: usize) -> Cow<'_, Matrix> {
    if (rows, cols) == (x.rows(), x.cols()) {
        return Cow::Borrowed(x);
    }
    let mut part = Matrix::zeros(rows, cols);
    for row in 0..rows {
        part.row_mut(row)[..x.cols()].copy_from_slice(x.row(row));
    }
    Cow::Owned(part)
}

/// What sums became.
struct Spent {
    diagonal: Vec<f32>,
    factor: Option<Factor>,
    /// What dense inputs add, and how much of it is made up for.
    cross: Option<(Cross, f32)>,
    hessian: Option<Vec<f32>>,
    /// Why there is no factor though one is wanted.
    failure: Option<String>,
}

impl Spent {
    /// Factors the Hessian in its own memory, for all matrices that share it.
    fn new(
        method: Method,
        shrinkage: f32,
        sums: HessianAccumulator,
        cross: Option<CrossAccumulator>,
    ) -> Self {
        let mut hessian = sums.finish();
        let mut spent = Self {
            diagonal: hessian.diagonal(),
            factor: None,
            cross: None,
            hessian: None,
            failure: (hessian.tokens() == 0).then(|| "no calibration token meets it".to_owned()),
        };
        if spent.failure.is_some() {
            return spent;
        }
        hessian.shrink(shrinkage);
        let factored = match method {
            Method::Alone | Method::Weighed | Method::Learned(_) => return spent,
            Method::Gptq(how) => {
                let order = (how.order != Order::None).then(|| hessian.falling_order());
                hessian.factor(how.damping, order.as_deref())
            }
            Method::Compensated(how) => {
                hessian.mirror();
                let mut square = hessian.as_slice().to_vec();
                let n = hessian.in_features();
                for (at, _) in spent.diagonal.iter().enumerate().filter(|(_, value)| **value == 0.0) {
                    square[at * n + at] = 1.0;
                }
                spent.hessian = Some(square);
                hessian.factor(how.options.damping, None)
            }
        };
        match factored {
            Ok(factor) => spent.factor = Some(factor),
            Err(error) => spent.failure = Some(error.to_string()),
        }
        if let (Some(cross), Some(strength)) = (cross, method.asymmetry()) {
            let cross = cross.finish();
            match cross.as_slice().iter().all(|value| value.is_finite()) {
                true => spent.cross = Some((cross, strength)),
                false => spent.failure = Some("the dense model's activations are infinite or NaN".to_owned()),
            }
        }
        spent
    }
}

/// Encodes the matrices of one layer.
pub(crate) struct Compressing<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    compute: Compute,
    /// Places in the plan.
    tensors: HashMap<Role, usize>,
    pub done: HashMap<usize, Done>,
}

impl<'a> Compressing<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        plan: &'a Plan,
        compute: Compute,
        tensors: HashMap<Role, usize>,
    ) -> Self {
        Self { checkpoint, plan, compute, tensors, done: HashMap::new() }
    }

    fn planned(&self, role: Role) -> Option<(usize, &'a PlannedTensor)> {
        let index = *self.tensors.get(&role)?;
        Some((index, &self.plan.tensors[index]))
    }

    /// What is to be summed of the inputs of `roles`.
    pub fn sums(&self, roles: &[Role]) -> Sums {
        let members = || roles.iter().filter_map(|&role| self.planned(role)).map(|(_, planned)| planned);
        let cols = members().map(PlannedTensor::in_features).max().unwrap_or(0);
        Sums {
            hessian: members()
                .any(|planned| planned.method.is_calibrated())
                .then(|| HessianAccumulator::new(cols)),
            cross: members()
                .any(|planned| planned.method.wants_dense_inputs())
                .then(|| CrossAccumulator::new(cols)),
            cols,
            some: Matrix::default(),
        }
    }

    /// Encodes the matrices of `roles`; returns what the layer runs on with instead of them.
    ///
    /// # Errors
    /// If a weight is not finite or its form cannot hold it; [`Error::Fallback`] where the plan is strict.
    pub fn quantize(&mut self, roles: &[Role], sums: Sums) -> Result<Vec<Tensor>, Error> {
        let members: Vec<(usize, &'a PlannedTensor)> =
            roles.iter().filter_map(|&role| self.planned(role)).collect();
        // Those that factor come first: matrices that share inputs factor in one way, see `refuse_unlike_methods`.
        let methods = || members.iter().map(|(_, planned)| planned.method);
        let method =
            methods().find(|method| method.factors()).or_else(|| methods().find(|&m| m == Method::Weighed));
        let spent = match (method, sums.hessian) {
            (Some(method), Some(hessian)) => {
                Some(Spent::new(method, self.plan.recipe.shrinkage(method), hessian, sums.cross))
            }
            _ => None,
        };
        let mut stored = Vec::new();
        for (index, planned) in members {
            let tensor = self.checkpoint.tensor(&planned.source)?;
            let run = TensorRun::new(self.checkpoint, self.plan, planned, &tensor, self.compute.isa())?;
            let spent = spent.as_ref().filter(|_| planned.method.is_calibrated());
            if spent.is_none() && planned.to == planned.from && !planned.is_padded() {
                continue;
            }
            let run = match spent {
                Some(Spent { failure: None, diagonal, .. }) if planned.method == Method::Weighed => {
                    run.weighed_by(diagonal.clone())
                }
                _ => run,
            };
            let (rows, method) = self.encode(&run, planned, spent)?;
            let replacement = as_stored(self.compute.isa(), &tensor, planned, &run, &rows);
            let method = method.map(|method| MethodRecord {
                output_error: output_error(&self.compute, &tensor, &replacement, &sums.some),
                ..method
            });
            tensor.release();
            stored.push(replacement);
            self.done.insert(index, Done { encoded: rows.encoded, method, global: run.global() });
        }
        Ok(stored)
    }

    /// All rows of a matrix and how they came about.
    fn encode(
        &self,
        run: &TensorRun<'_>,
        planned: &PlannedTensor,
        spent: Option<&Spent>,
    ) -> Result<(Rows, Option<MethodRecord>), Error> {
        let Some(spent) = spent else { return Ok((encode_alone(run, planned)?, None)) };
        let fall_back = |why: String| match self.plan.strict {
            true => Err(Error::Fallback { tensor: planned.name.clone(), why }),
            false => {
                let (method, fallback) = (planned.method.fallback().to_owned(), Some(why));
                Ok((
                    encode_alone(run, planned)?,
                    Some(MethodRecord { method, fallback, ..MethodRecord::default() }),
                ))
            }
        };
        if let Some(why) = &spent.failure {
            return fall_back(why.clone());
        }
        let method = planned.method.name().to_owned();
        let Some(factor) = spent.factor.as_ref().filter(|_| planned.method.factors()) else {
            return Ok((
                encode_alone(run, planned)?,
                Some(MethodRecord { method, ..MethodRecord::default() }),
            ));
        };
        let statistics =
            Statistics { factor, cross: spent.cross.as_ref(), hessian: spent.hessian.as_deref() };
        match encode_calibrated(self.compute.isa(), run, planned, &statistics) {
            Ok(rows) => {
                let damping = Some(six_digits(f64::from(factor.damping())));
                let dead_columns = factor.dead().len();
                Ok((rows, Some(MethodRecord { method, damping, dead_columns, ..MethodRecord::default() })))
            }
            Err(Error::Quantize { source: source @ bitmill_quant::Error::Diverged { .. }, .. }) => {
                fall_back(source.to_string())
            }
            Err(error) => Err(error),
        }
    }
}
