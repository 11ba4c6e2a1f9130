//! The matrices of a layer: statistics are summed, factored once for all that share them, and spent.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bitmill_calib::Inputs;
use bitmill_checkpoint::{Role, RoleKind, Tensor};
use bitmill_kernels::Compute;
use bitmill_quant::Clip;
use bitmill_stats::{
    ChannelAccumulator, ChannelStats, Cross, CrossAccumulator, Factor, Hessian, HessianAccumulator,
};
use bitmill_tensor::{Encoding, Matrix};

use super::clock::{Clock, Work};
use super::reshaping::ScaleRecord;
use super::sample::{Sample, of_one_length};
use super::shared::{InputsKey, Sharing, bits};
use super::tensor::{
    ERROR_TOKENS, MethodRecord, Rows, Statistics, as_stored, encode_alone, encode_calibrated, group_ranges,
    output_error, six_digits,
};
use crate::Error;
use crate::balancing::{AwqStep, Balance};
use crate::encode::ScaleBase;
use crate::method::{Method, Order};
use crate::plan::{Plan, PlannedTensor};
use crate::source::Source;
use crate::tensor_run::{Encoded, TensorRun};

/// Calibration tokens by which ranges of groups are searched.
const CLIP_TOKENS: usize = 512;

/// A matrix that is encoded.
pub(crate) struct Done {
    pub encoded: Vec<Encoded>,
    /// How its codes were chosen, where not by its weights alone.
    pub method: Option<MethodRecord>,
    /// What scales of fp8 are divided by.
    pub base: ScaleBase,
}

/// What is summed of the inputs that some matrices share.
pub(crate) struct Sums {
    hessian: Option<HessianAccumulator>,
    cross: Option<CrossAccumulator>,
    /// Columns of the matrices, those that pad included.
    cols: usize,
    /// Some calibration rows, to measure errors on and to search ranges by.
    some: Sample,
    /// Of each column by itself.
    channels: ChannelAccumulator,
    /// The inputs by their bits, where another run may have the same.
    key: Option<InputsKey>,
    /// The Hessian that such a run found.
    known: Option<Arc<Hessian>>,
}

impl Sums {
    /// Adds all rows that there are to calibrate on; their Hessian may be known from another run.
    pub fn add_all(&mut self, inputs: &Inputs<'_>, sharing: Option<Sharing<'_>>) {
        if let (Some(sharing), Some(_), 1..) =
            (sharing.filter(Sharing::has_twin), &self.hessian, inputs.calibration_rows)
        {
            let key = (bits(inputs.x, inputs.calibration_rows), self.cols);
            self.known = sharing.hessian(key);
            self.key = Some(key);
        }
        self.add(inputs);
    }

    /// The Hessian of all that was added; others may need it too.
    fn take_hessian(&mut self, sharing: Option<Sharing<'_>>) -> Option<Hessian> {
        let summed = self.hessian.take()?;
        if let Some(known) = self.known.take() {
            return Some((*known).clone());
        }
        let hessian = summed.finish();
        if let (Some(sharing), Some(key)) = (sharing, self.key) {
            sharing.keep_hessian(key, Arc::new(hessian.clone()));
        }
        Some(hessian)
    }

    /// Adds the rows that are there to calibrate on.
    pub fn add(&mut self, inputs: &Inputs<'_>) {
        let rows = inputs.calibration_rows;
        if rows == 0 || self.cols == 0 {
            return;
        }
        self.some.add(inputs.x, rows);
        let x = part(inputs.x, rows, self.cols);
        self.channels.add(&x);
        if let (Some(hessian), None) = (&mut self.hessian, &self.known) {
            hessian.add(&x);
        }
        if let (Some(cross), Some(dense)) = (&mut self.cross, inputs.dense) {
            cross.add(&part(dense, rows, self.cols), &x);
        }
    }
}

/// The first `rows` of `x`, with columns of zeros up to `cols`.
pub(crate) fn part(x: &Matrix, rows: usize, cols: usize) -> Cow<'_, Matrix> {
    if (rows, cols) == (x.rows(), x.cols()) {
        return Cow::Borrowed(x);
    }
    let mut part = Matrix::zeros(rows, cols);
    for row in 0..rows {
        part.row_mut(row)[..x.cols()].copy_from_slice(x.row(row));
    }
    Cow::Owned(part)
}

/// The largest of magnitudes of inputs, to six digits.
pub(super) fn largest_input(of_columns: &[f32]) -> Option<f64> {
    // One that is NaN is not passed over.
    let most = of_columns.iter().copied().max_by(f32::total_cmp)?;
    most.is_finite().then(|| six_digits(f64::from(most)))
}

/// What LLM.int8() (arXiv:2208.07339) calls an outlier: a feature whose magnitude reaches this.
const OUTLIER: f32 = 6.0;

/// Columns whose inputs are outliers.
fn outliers(of_columns: &[f32]) -> usize {
    of_columns.iter().filter(|most| **most >= OUTLIER).count()
}

/// What sums became.
struct Spent {
    /// Of each column.
    mean_square: Vec<f32>,
    factor: Option<Factor>,
    /// What dense inputs add, and how much of it is made up for.
    cross: Option<(Cross, f32)>,
    hessian: Option<Vec<f32>>,
    /// Why there is no factor though one is wanted.
    failure: Option<String>,
}

impl Spent {
    /// What is known of each column by itself.
    fn new(channels: ChannelStats) -> Self {
        let failure = match channels.tokens {
            0 => Some("no calibration token meets it"),
            _ if channels.mean_square.iter().all(|value| value.is_finite()) => None,
            _ => Some("the squares of its calibration tokens' activations are infinite or NaN"),
        };
        Self {
            mean_square: channels.mean_square,
            factor: None,
            cross: None,
            hessian: None,
            failure: failure.map(str::to_owned),
        }
    }

    /// And the Hessian, factored in its own memory, for all matrices that share it.
    fn factored(
        mut self,
        method: Method,
        shrinkage: f32,
        mut hessian: Hessian,
        cross: Option<CrossAccumulator>,
    ) -> Self {
        if self.failure.is_some() {
            return self;
        }
        hessian.shrink(shrinkage);
        let factored = match (method, method.gptq()) {
            (_, Some(how)) => {
                let order = (how.order != Order::None).then(|| hessian.falling_order());
                hessian.factor(how.damping, order.as_deref())
            }
            (Method::Compensated(how), _) => {
                hessian.mirror();
                let mut square = hessian.as_slice().to_vec();
                let n = hessian.in_features();
                for at in 0..n {
                    let value = &mut square[at * n + at];
                    *value = if *value == 0.0 { 1.0 } else { *value };
                }
                self.hessian = Some(square);
                hessian.factor(how.options.damping, None)
            }
            _ => return self,
        };
        match factored {
            Ok(factor) => self.factor = Some(factor),
            Err(error) => self.failure = Some(error.to_string()),
        }
        if let (Some(cross), Some(strength)) = (cross, method.asymmetry()) {
            let cross = cross.finish();
            match cross.as_slice().iter().all(|value| value.is_finite()) {
                true => self.cross = Some((cross, strength)),
                false => self.failure = Some("the dense model's activations are infinite or NaN".to_owned()),
            }
        }
        self
    }
}

/// Encodes the matrices of one layer.
pub(crate) struct Compressing<'a> {
    pub(super) source: Source<'a>,
    compute: Compute,
    /// Places in the plan.
    tensors: HashMap<Role, usize>,
    /// How columns were scaled beforehand.
    pub(super) scales: HashMap<Role, ScaleRecord>,
    pub(super) done: HashMap<usize, Done>,
    sharing: Option<Sharing<'a>>,
    /// What the layer's time went into so far.
    pub(super) clock: Clock,
}

impl<'a> Compressing<'a> {
    pub fn new(
        source: Source<'a>,
        compute: Compute,
        tensors: HashMap<Role, usize>,
        scales: HashMap<Role, ScaleRecord>,
        sharing: Option<Sharing<'a>>,
        clock: Clock,
    ) -> Self {
        Self { source, compute, tensors, scales, done: HashMap::new(), sharing, clock }
    }

    fn plan(&self) -> &'a Plan {
        self.source.plan
    }

    fn planned(&self, role: Role) -> Option<(usize, &'a PlannedTensor)> {
        let index = *self.tensors.get(&role)?;
        Some((index, &self.plan().tensors[index]))
    }

    /// What is to be summed of the inputs of `roles`, about `expected` of them.
    pub fn sums(&self, roles: &[Role], expected: usize) -> Sums {
        let members = || roles.iter().filter_map(|&role| self.planned(role)).map(|(_, planned)| planned);
        let cols = members().map(PlannedTensor::in_features).max().unwrap_or(0);
        let wanted = if members().any(|planned| self.clips(planned)) { CLIP_TOKENS } else { ERROR_TOKENS };
        Sums {
            hessian: members().any(|planned| planned.method.factors()).then(|| HessianAccumulator::new(cols)),
            cross: members()
                .any(|planned| planned.method.wants_dense_inputs())
                .then(|| CrossAccumulator::new(cols)),
            cols,
            some: Sample::new(wanted, expected),
            channels: ChannelAccumulator::new(cols),
            key: None,
            known: None,
        }
    }

    /// Whether the ranges of its groups are searched by what they multiply. As in AutoAWQ not those of q and k, whose
    /// product no layer's output shows.
    fn clips(&self, planned: &PlannedTensor) -> bool {
        let is_asked = matches!(self.plan().recipe.balance(), Some(Balance::Awq(AwqStep { clip: true })));
        let is_plain = planned.method == Method::Alone && planned.clip == Clip::None;
        is_asked
            && is_plain
            && matches!(planned.to, Encoding::Grouped(_))
            && !matches!(planned.role.kind, RoleKind::AttnQ | RoleKind::AttnK)
    }

    /// Encodes the matrices of `roles`, and what was changed beside them; returns what the layer runs on with instead.
    ///
    /// # Errors
    /// If a weight is not finite or its form cannot hold it; [`Error::Fallback`] where the plan is strict.
    pub fn quantize(&mut self, roles: &[Role], mut sums: Sums) -> Result<Vec<Tensor>, Error> {
        let members: Vec<(Role, usize, &'a PlannedTensor)> = roles
            .iter()
            .copied()
            .chain(self.changed_beside(roles))
            .filter_map(|role| self.planned(role).map(|(index, planned)| (role, index, planned)))
            .collect();
        let hessian = sums.take_hessian(self.sharing);
        let channels = sums.channels.finish();
        let largest = if channels.tokens == 0 { Vec::new() } else { channels.max_abs.clone() };
        let spent = Spent::new(channels);
        // Matrices that share inputs factor in one way, see `refuse_unlike_methods`.
        let method = members.iter().map(|(_, _, planned)| planned.method).find(|method| method.factors());
        let spent = match (method, hessian) {
            (Some(method), Some(hessian)) => {
                let shrinkage = self.plan().recipe.shrinkage(&hessian);
                self.clock.time(Work::Factor, || spent.factored(method, shrinkage, hessian, sums.cross))
            }
            _ => spent,
        };
        let isa = self.compute.isa();
        let some = sums.some.into_matrix();
        let mut stored = Vec::new();
        for (role, index, planned) in members {
            let spent = Some(&spent).filter(|_| planned.method.is_calibrated());
            let is_same = planned.to == planned.from
                && !planned.is_padded()
                && !self.source.has_changed(role)
                && !planned.has_input_scale();
            if spent.is_none() && is_same {
                continue;
            }
            let opened = self.source.open(isa, planned)?;
            let run = TensorRun::new(&self.source, planned, &opened, isa)?;
            let run = match spent {
                Some(Spent { failure: None, mean_square, .. }) if planned.method == Method::Weighed => {
                    run.weighed_by(mean_square.clone())
                }
                _ => run,
            };
            let ranges = match planned.to {
                Encoding::Grouped(grouped) if self.clips(planned) => {
                    let x = of_one_length(part(&some, some.rows(), sums.cols).into_owned());
                    group_ranges(&run, planned, &grouped, &x)?
                        .map(|ranges| (ranges, grouped.group_size.get()))
                }
                _ => None,
            };
            let clipped = ranges.is_some();
            let run = match ranges {
                Some((ranges, group_size)) => run.clipped_by(ranges, group_size),
                None => run,
            };
            let began = Instant::now();
            let (rows, method) = self.encode(&run, planned, spent)?;
            let replacement = as_stored(isa, &opened.tensor, planned, &run, &rows);
            self.clock.add(Work::Codes, began.elapsed());
            let scaled = self.scales.get(&role).cloned();
            let method = method.or_else(|| {
                let alone = planned.method.fallback(planned.to).to_owned();
                (clipped || scaled.is_some() || planned.has_input_scale())
                    .then(|| MethodRecord { method: alone, ..MethodRecord::default() })
            });
            let method = method.map(|method| MethodRecord {
                output_error: output_error(&self.compute, (&opened.tensor, &some), (&replacement, &some)),
                scaled,
                clipped,
                largest_input: largest_input(&largest),
                outlier_columns: if planned.has_row_scales() { outliers(&largest) } else { 0 },
                ..method
            });
            opened.tensor.release();
            stored.push(replacement);
            self.done.insert(index, Done { encoded: rows.encoded, method, base: run.base().clone() });
        }
        Ok(stored)
    }

    /// Changed biases and routers that the layer meets with the matrices of `roles`: the layer runs on with them as stored.
    fn changed_beside(&self, roles: &[Role]) -> Vec<Role> {
        let beside = |role: &Role| {
            let kinds: &[RoleKind] = match role.kind {
                RoleKind::AttnV => &[RoleKind::AttnVBias],
                RoleKind::AttnOutput => &[RoleKind::AttnOutputBias, RoleKind::Router],
                RoleKind::SharedDown => &[RoleKind::SharedRouter],
                _ => &[],
            };
            let layer = role.layer;
            kinds.iter().map(move |&kind| Role { layer, expert: None, kind })
        };
        roles.iter().flat_map(beside).filter(|&role| self.source.has_changed(role)).collect()
    }

    /// What was encoded, with all else that was changed, and what the layer's time went into.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn finish(mut self) -> Result<(HashMap<usize, Done>, Clock), Error> {
        let isa = self.compute.isa();
        for role in self.source.changed() {
            let Some((index, planned)) = self.planned(role) else { continue };
            if self.done.contains_key(&index) {
                continue;
            }
            let opened = self.source.open(isa, planned)?;
            let run = TensorRun::new(&self.source, planned, &opened, isa)?;
            let encoded = encode_alone(&run, planned)?.encoded;
            self.done.insert(index, Done { encoded, method: None, base: run.base().clone() });
        }
        Ok((self.done, self.clock))
    }

    /// All rows of a matrix and how they came about.
    fn encode(
        &self,
        run: &TensorRun<'_>,
        planned: &PlannedTensor,
        spent: Option<&Spent>,
    ) -> Result<(Rows, Option<MethodRecord>), Error> {
        let Some(spent) = spent else { return Ok((encode_alone(run, planned)?, None)) };
        let fall_back = |why: String| match self.plan().strict {
            true => Err(Error::Fallback { tensor: planned.name.clone(), why }),
            false => {
                let (method, fallback) = (planned.method.fallback(planned.to).to_owned(), Some(why));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_reach_six_and_the_largest_is_told_if_it_is_a_number() {
        assert_eq!(outliers(&[5.99, 6.0, 0.0, 1e5]), 2);
        assert_eq!(largest_input(&[5.99, 6.0, 123_456.7]), Some(123_457.0));
        assert_eq!((largest_input(&[]), largest_input(&[f32::INFINITY])), (None, None));
    }
}
