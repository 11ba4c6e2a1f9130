//! Matrices that one scale a row ruins: found by a pass of the dense model over a few calibration tokens before anything is
//! planned, so that a plan's sizes are exact, and stored otherwise.
//!
//! A few weights far larger than the rest, or features of activations that are, take a scale that spans a row for themselves,
//! and all others are rounded to nothing (Llama-3-70B: arXiv:2408.15301). The rule: a matrix whose outputs lose more than
//! [`COLLAPSE`] of their energy by one scale a row is stored in the widest groups that lose less than [`GAIN`] of that, if any
//! do; where the form knows no groups (8-bit numbers with a scale a row), as floats. Those that runtimes make one matrix of go together.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;

use bitmill_calib::{Inputs, Streams, pass_layer};
use bitmill_checkpoint::{Activations, Checkpoint, Role, RoleKind, Tensor};
use bitmill_kernels::{Compute, Isa, Path as ComputePath};
use bitmill_model::Model;
use bitmill_tensor::{Element, Encoding, Grouped, Matrix};
use serde::{Deserialize, Serialize};

use super::reshaping::{Collected, Reshaped};
use super::sample::{Sample, of_one_length};
use super::tensor::{as_stored, encode_alone, output_error};
use super::{LayerTensors, layers};
use crate::Error;
use crate::method::Method;
use crate::plan::{FUSIONS, Plan, PlannedTensor};
use crate::ranks;
use crate::source::Source;
use crate::tensor_run::TensorRun;

/// Tokens that the dense model runs over.
const TOKENS: usize = 2048;
/// Inputs of each matrix that errors are counted over.
const INPUTS: usize = 256;

/// A matrix that loses more of the energy of what it puts out has collapsed.
const COLLAPSE: f64 = 0.01;
/// Groups help if they leave less than this of what is lost.
const GAIN: f64 = 1.0 / 7.0;

/// Group sizes that every runtime has, the widest first.
const GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// Why a matrix is stored otherwise than its step says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutlierRecord {
    /// How its step would have stored it.
    pub from: String,
    /// By which rule it is not.
    pub rule: String,
    /// `‖x·wᵀ − x̂·ŵᵀ‖² / ‖x·wᵀ‖²` if it were rounded to nearest so, over some calibration tokens that count alike, to six digits; none
    /// where no token meets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// The same as it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<f64>,
}

impl OutlierRecord {
    fn new(planned: &PlannedTensor, to: Option<Grouped>, error: Option<f64>, left: Option<f64>) -> Self {
        let percent = COLLAPSE * 100.0;
        let rule = match to {
            Some(_) => format!(
                "one scale a row loses more than {percent} % of the energy of the outputs, or does so in a matrix that runtimes fuse \
                 with it, and these are the widest groups of 128, 64 or 32 that lose less than a seventh of that"
            ),
            None => format!(
                "8-bit numbers with one scale a row lose more than {percent} % of the energy of the outputs, or do so in a matrix that \
                 runtimes fuse with it"
            ),
        };
        Self { from: planned.to.to_string(), rule, error, left }
    }

    /// What a plan says of it: a reason for what it is stored as.
    pub fn reason(&self) -> String {
        let percent = |error: f64| format!("{:.2} %", 100.0 * error);
        match (self.error, self.left) {
            (Some(error), Some(left)) if error > COLLAPSE => {
                format!(
                    "outliers: {} loses {} of the outputs, this {}",
                    self.from,
                    percent(error),
                    percent(left)
                )
            }
            _ => format!("outliers, instead of {}, as those that it goes with", self.from),
        }
    }
}

/// What a matrix is to be stored as instead.
#[derive(Debug, Clone)]
pub(crate) struct Fallback {
    /// As floats if none.
    pub to: Option<Grouped>,
    pub record: OutlierRecord,
}

/// By names.
pub(crate) type Fallbacks = HashMap<String, Fallback>;

/// What is lost of what a matrix puts out, where that is known.
#[derive(Debug, Clone, Default)]
struct Errors {
    by_row: Option<f64>,
    /// As each of what it could be instead.
    otherwise: Vec<Option<f64>>,
}

/// Runs the dense model, its layers reshaped as `plan` says, over some of the plan's calibration tokens, and says which matrices
/// fall back.
///
/// # Errors
/// If the model cannot run or a weight is not finite.
pub(crate) fn find(checkpoint: &Checkpoint, plan: &Plan) -> Result<Fallbacks, Error> {
    let mut found = Fallbacks::new();
    let Some(material) = &plan.material else { return Ok(found) };
    let compute = Compute::new(Isa::best(), ComputePath::Exact);
    let isa = compute.isa();
    let mut model = Model::load(checkpoint)?;
    let length = material.length().min(TOKENS);
    let windows = material.calibration.windows.iter().take(material.windows().min(TOKENS / length));
    let texts: Vec<&[u32]> = windows.map(|window| &window[..length]).collect();
    let mut stage = model.enter(&compute, &texts)?;
    let mut hidden = stage.hidden().clone();
    if let Some(turn) = &plan.turn {
        turn.turn(hidden.as_mut_slice());
    }
    for layer in layers(checkpoint, plan)? {
        let calibration_rows = hidden.rows();
        stage.stand_before(layer.0, hidden.clone());
        let mut streams = Streams { compressed: stage, dense: None, calibration_rows, cached: None };
        let mut reshaped = Reshaped::default();
        reshaped.turn(&mut model, checkpoint, plan, isa, &layer)?;
        if let Some(balance) = plan.recipe.balance() {
            let mut collected = Collected::default();
            pass_layer(&mut model, &compute, &mut streams, &mut |_, roles, inputs| {
                collected.add(balance, roles, &inputs, inputs.calibration_rows);
                Ok::<_, Error>(Vec::new())
            })?;
            reshaped.balance(&mut model, checkpoint, plan, isa, &layer, balance, &collected)?;
            streams.compressed.stand_before(layer.0, hidden);
        }
        let originals = reshaped.take_originals();
        let source = Source::with_changed(checkpoint, plan, reshaped.tensors);
        let mut looked = Looked::new(plan, &source, compute, &layer);
        pass_layer(&mut model, &compute, &mut streams, &mut |_, roles, inputs| {
            looked.at(roles, &inputs)?;
            Ok::<_, Error>(Vec::new())
        })?;
        found.extend(looked.decide());
        stage = streams.compressed;
        hidden = stage.hidden().clone();
        for tensor in originals {
            model.replace(tensor);
        }
        model.release();
    }
    Ok(found)
}

/// Matrices of a layer that go together: fused ones, and all experts.
type Together = (Option<usize>, bool, Role);

fn together(role: Role) -> Together {
    match (role.expert, FUSIONS.iter().position(|(_, kinds)| kinds.contains(&role.kind))) {
        (Some(_), _) => (role.layer, true, Role { expert: None, kind: RoleKind::FfnDown, ..role }),
        (None, Some(fusion)) => (role.layer, false, Role { kind: FUSIONS[fusion].1[0], ..role }),
        (None, None) => (role.layer, false, role),
    }
}

/// What is known of the matrices of a layer.
struct Looked<'a> {
    plan: &'a Plan,
    source: &'a Source<'a>,
    compute: Compute,
    tensors: &'a HashMap<Role, usize>,
    /// Those with one scale a row, by what goes together, and what they could be in groups, the widest first.
    groups: HashMap<Together, (Vec<usize>, Vec<Grouped>)>,
    errors: BTreeMap<usize, Errors>,
}

impl<'a> Looked<'a> {
    fn new(plan: &'a Plan, source: &'a Source<'a>, compute: Compute, (_, tensors): &'a LayerTensors) -> Self {
        let mut groups: HashMap<Together, (Vec<usize>, Vec<Grouped>)> = HashMap::new();
        let mut places: Vec<(&Role, &usize)> = tensors.iter().collect();
        places.sort_by_key(|(_, index)| **index);
        for (&role, &index) in places {
            if plan.tensors[index].has_row_scales() {
                groups.entry(together(role)).or_default().0.push(index);
            }
        }
        for (members, sizes) in groups.values_mut() {
            *sizes = in_groups(plan, members);
        }
        Self { plan, source, compute, tensors, groups, errors: BTreeMap::new() }
    }

    /// Measures the matrices of `roles`, which share their inputs.
    fn at(&mut self, roles: &[Role], inputs: &Inputs<'_>) -> Result<(), Error> {
        let members: Vec<(Role, usize)> =
            roles.iter().filter_map(|role| Some((*role, *self.tensors.get(role)?))).collect();
        let members: Vec<(Role, usize)> =
            members.into_iter().filter(|(_, index)| self.plan.tensors[*index].has_row_scales()).collect();
        if members.is_empty() || inputs.calibration_rows == 0 {
            return Ok(());
        }
        let mut sample = Sample::new(INPUTS, inputs.calibration_rows);
        sample.add(inputs.x, inputs.calibration_rows);
        let x = of_one_length(sample.into_matrix());
        let mut found: Vec<(usize, Errors)> = Vec::new();
        for &(_, index) in &members {
            let by_row = self.error(&self.plan.tensors[index], &x)?;
            found.push((index, Errors { by_row, otherwise: Vec::new() }));
        }
        if found.iter().any(|(_, errors)| errors.by_row.is_some_and(|error| error > COLLAPSE)) {
            for ((role, index), (_, errors)) in members.iter().zip(&mut found) {
                let planned = &self.plan.tensors[*index];
                let none = Vec::new();
                let sizes = self.groups.get(&together(*role)).map_or(&none, |(_, sizes)| sizes);
                let in_groups = |grouped: &Grouped| {
                    self.error(&PlannedTensor { to: Encoding::Grouped(*grouped), ..planned.clone() }, &x)
                };
                errors.otherwise = match planned.to {
                    // Floats lose nothing.
                    Encoding::Scaled(_) => vec![Some(0.0)],
                    _ => sizes.iter().map(in_groups).collect::<Result<_, Error>>()?,
                };
            }
        }
        self.errors.extend(found);
        Ok(())
    }

    /// What is lost of the outputs where `planned` is rounded to nearest.
    fn error(&self, planned: &PlannedTensor, x: &Matrix) -> Result<Option<f64>, Error> {
        let isa = self.compute.isa();
        let planned = &PlannedTensor { method: Method::Alone, ..planned.clone() };
        let opened = self.source.open(isa, planned)?;
        let run = TensorRun::new(self.source, planned, &opened, isa)?;
        let rows = encode_alone(&run, planned)?;
        let stored: Tensor = as_stored(isa, &opened.tensor, planned, &run, &rows);
        let rounds = planned.activations == Activations::Dynamic
            && matches!(planned.to, Encoding::Scaled(layout) if layout.element == Element::Int8);
        let error = match rounds {
            true => output_error(&self.compute, (&opened.tensor, x), (&stored, &rounded_by_token(x))),
            false => output_error(&self.compute, (&opened.tensor, x), (&stored, x)),
        };
        opened.tensor.release();
        Ok(error)
    }

    /// Those that fall back.
    fn decide(self) -> Vec<(String, Fallback)> {
        let mut all = Vec::new();
        let none = Errors::default();
        let errors = |index: &usize| self.errors.get(index).unwrap_or(&none);
        let left = |index: &usize, way: usize| errors(index).otherwise.get(way).copied().flatten();
        for (members, sizes) in self.groups.values() {
            let saves = |way: &usize| {
                members.iter().any(|index| match (errors(index).by_row, left(index, *way)) {
                    (Some(error), Some(left)) => error > COLLAPSE && left < GAIN * error,
                    _ => false,
                })
            };
            // Those that know no groups have one way: floats.
            let Some(way) = (0..sizes.len().max(1)).find(saves) else { continue };
            let to = sizes.get(way).copied();
            all.extend(members.iter().map(|index| {
                let planned = &self.plan.tensors[*index];
                let record = OutlierRecord::new(planned, to, errors(index).by_row, left(index, way));
                (planned.name.clone(), Fallback { to, record })
            }));
        }
        all
    }
}

/// The groups that all of `members` can be stored in, the widest first; none if their form knows none.
fn in_groups(plan: &Plan, members: &[usize]) -> Vec<Grouped> {
    let planned = || members.iter().map(|&index| &plan.tensors[index]);
    let Some(Encoding::Grouped(first)) = planned().next().map(|planned| planned.to) else {
        return Vec::new();
    };
    let fits = |size: &usize| {
        planned().all(|planned| {
            let own = ranks::own_columns(planned, plan.recipe.tensor_parallel);
            own.is_multiple_of(*size) && *size < planned.in_features()
        })
    };
    let sizes = GROUP_SIZES.into_iter().filter(fits).filter_map(NonZeroUsize::new);
    sizes.map(|group_size| Grouped { group_size, ..first }).collect()
}

/// Inputs as a runtime rounds them to 8-bit integers, each token by its own scale.
fn rounded_by_token(x: &Matrix) -> Matrix {
    let mut rounded = x.clone();
    for row in 0..rounded.rows() {
        let row = rounded.row_mut(row);
        let most = row.iter().fold(0f32, |most, value| most.max(value.abs()));
        let scale = most / 127.0;
        if scale > 0.0 {
            row.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
        }
    }
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_rounded_to_127_steps_of_their_own() {
        let x = Matrix::from_vec(3, 2, vec![127.0, 0.6, 1.27, -0.014, 0.0, 0.0]);
        let rounded = rounded_by_token(&x);
        let expected = [127.0, 1.0, 1.27, -0.01, 0.0, 0.0];
        assert!(rounded.as_slice().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{rounded:?}");
    }
}
