//! What steps before rounding make of a layer: its tensors turned, then scaled by what the model runs over. The layer runs
//! with them in the place of its own, those of the dense model's stream included: they compute the same.

use std::borrow::Cow;
use std::collections::HashMap;

use bitmill_calib::Inputs;
use bitmill_checkpoint::{Checkpoint, Role, Tensor};
use bitmill_kernels::Isa;
use bitmill_model::{Folding, MadeBy, Model};
use bitmill_quant::fold::{self, Sharing};
use bitmill_quant::{AwqOptions, BlockSearch, RtnGrid, awq, first_non_finite, global_scale, smooth};
use bitmill_stats::{ChannelAccumulator, ChannelStats};
use bitmill_tensor::{
    Bits, BlockType, Encoding, Extent, FloatType, Granularity, Grouped, ScaleType, Scaled, ZeroPoint,
};
use serde::{Deserialize, Serialize};

use super::LayerTensors;
use super::compressing::part;
use super::sample::{Sample, of_one_length};
use super::tensor::six_digits;
use crate::Error;
use crate::balancing::Balance;
use crate::encode::{Rounding, ScaleBase, encode_scaled};
use crate::plan::{Plan, PlannedTensor, rows_and_columns};
use crate::source::Source;
use crate::turning::widened;

/// Inputs of each group of matrices that errors are counted over.
const TOKENS: usize = 512;
/// Rows of all matrices of a group together that errors are counted over, and of each at least.
const ROWS: usize = 512;
const LEAST_ROWS: usize = 16;

/// How the columns of a matrix were scaled before it was rounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleRecord {
    /// `awq` or `smooth`.
    pub by: String,
    /// The exponent that was taken; none where no scales are better than none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The error that they left of the outputs of all matrices with the same inputs, relative to that without, to six digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// Why there are none though they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// What some matrices of a layer multiply.
struct Seen {
    channels: ChannelAccumulator,
    some: Sample,
    cols: usize,
}

/// What all matrices of a layer multiply.
#[derive(Default)]
pub(crate) struct Collected(Vec<(Vec<Role>, Seen)>);

impl Collected {
    /// Adds what `roles` multiply, as `balance` counts it; about `expected` of them are going to be added.
    pub fn add(&mut self, balance: Balance, roles: &[Role], inputs: &Inputs<'_>, expected: usize) {
        if inputs.calibration_rows == 0 {
            return;
        }
        let x = part(inputs.x, inputs.calibration_rows, inputs.x.cols());
        let x = match balance {
            Balance::Awq(_) => Cow::Owned(of_one_length(x.into_owned())),
            Balance::Smooth(_) => x,
        };
        let place = self.0.iter().position(|(others, _)| others == roles).unwrap_or_else(|| {
            let cols = x.cols();
            let some = Sample::new(TOKENS, expected);
            self.0.push((roles.to_vec(), Seen { channels: ChannelAccumulator::new(cols), some, cols }));
            self.0.len() - 1
        });
        let (_, seen) = &mut self.0[place];
        seen.some.add(&x, x.rows());
        seen.channels.add(&x);
    }

    /// What the matrices of `roles` multiply, all of which read the same features, if only some tokens each; `None` if no
    /// token meets them.
    fn of(&self, roles: &[Role]) -> Option<(ChannelStats, Vec<f32>)> {
        let meets = |(group, _): &&(Vec<Role>, Seen)| group.iter().any(|role| roles.contains(role));
        let mut seen: Vec<&(Vec<Role>, Seen)> = self.0.iter().filter(meets).collect();
        // A block that is not an expert's meets all tokens.
        if let Some(all) = seen.iter().find(|(group, _)| group.iter().all(|role| role.expert.is_none())) {
            seen = vec![*all];
        }
        let (_, first) = seen.first()?;
        let cols = first.cols;
        let of_groups: Vec<ChannelStats> =
            seen.iter().map(|(_, seen)| seen.channels.clone().finish()).collect();
        let tokens: u64 = of_groups.iter().map(|stats| stats.tokens).sum();
        let mean = |of: fn(&ChannelStats) -> &[f32]| -> Vec<f32> {
            let sum = |col: usize| -> f64 {
                of_groups.iter().map(|stats| f64::from(of(stats)[col]) * stats.tokens as f64).sum()
            };
            (0..cols).map(|col| (sum(col) / tokens as f64) as f32).collect()
        };
        let largest = |col: usize| {
            let most = |most: f32, stats: &ChannelStats| {
                if stats.max_abs[col] > most || stats.max_abs[col].is_nan() {
                    stats.max_abs[col]
                } else {
                    most
                }
            };
            of_groups.iter().fold(0.0, most)
        };
        let stats = match of_groups.as_slice() {
            [one] => one.clone(),
            _ => ChannelStats {
                tokens,
                mean_abs: mean(|stats| &stats.mean_abs),
                max_abs: (0..cols).map(largest).collect(),
                mean_square: mean(|stats| &stats.mean_square),
            },
        };
        let rows: Vec<&[f32]> =
            seen.iter().flat_map(|(_, seen)| seen.some.as_slice().chunks_exact(cols)).collect();
        let count = rows.len().min(TOKENS);
        let some = (0..count).flat_map(|at| rows[at * rows.len() / count]).copied().collect();
        Some((stats, some))
    }
}

/// The tensors of a layer that are others now.
#[derive(Default)]
pub(crate) struct Reshaped {
    /// By their roles in the source.
    pub tensors: HashMap<Role, Tensor>,
    /// How columns were scaled.
    pub scales: HashMap<Role, ScaleRecord>,
    originals: Vec<Tensor>,
}

impl Reshaped {
    /// Turns the residual stream of the layer, if the plan does.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn turn(
        &mut self,
        model: &mut Model,
        checkpoint: &Checkpoint,
        plan: &Plan,
        isa: Isa,
        (_, tensors): &LayerTensors,
    ) -> Result<(), Error> {
        if plan.turn.is_none() {
            return Ok(());
        }
        let source = Source::new(checkpoint, plan);
        for planned in tensors.values().map(|&index| &plan.tensors[index]) {
            if plan.recipe.rotation().is_some_and(|step| step.changes(planned.role.kind)) {
                self.put(model, source.open(isa, planned)?.into_tensor(isa));
            }
        }
        Ok(())
    }

    /// Scales the layer's features as `balance` says, folding after folding: a later one finds the weights as earlier ones left
    /// them.
    ///
    /// # Errors
    /// If a weight is not finite; [`Error::Fallback`] where scales cannot be found and the plan is strict.
    pub fn balance(
        &mut self,
        model: &mut Model,
        checkpoint: &Checkpoint,
        plan: &Plan,
        isa: Isa,
        layer: &LayerTensors,
        balance: Balance,
        collected: &Collected,
    ) -> Result<(), Error> {
        let (source_layer, tensors) = layer;
        let planned = |role: &Role| tensors.get(role).map(|&index| &plan.tensors[index]);
        for folding in balance.foldings(model.config(), *source_layer) {
            let readers: Vec<(Role, &PlannedTensor)> = folding
                .read_by
                .iter()
                .filter(|role| role.is_matrix())
                .filter_map(|role| Some((*role, planned(role)?)))
                .collect();
            if matches!(balance, Balance::Awq(_))
                && !readers.iter().any(|(_, planned)| planned.to.is_quantized())
            {
                continue;
            }
            let weights = readers
                .iter()
                .map(|(role, planned)| finite(planned, self.widened(checkpoint, isa, *role)?))
                .collect::<Result<Vec<Vec<f32>>, Error>>()?;
            let found = match collected.of(&folding.read_by) {
                None => Err("no calibration token meets it".to_owned()),
                Some((stats, _)) if !stats.max_abs.iter().all(|most| most.is_finite()) => {
                    Err("activations are infinite or NaN".to_owned())
                }
                Some((stats, tokens)) => {
                    let search = Search { isa, model, readers: &readers, weights: &weights, stats, tokens };
                    search.scales(balance, &folding)?
                }
            };
            let (scales, record) = match found {
                Ok(found) => found,
                Err(why) => {
                    let (_, first) = readers[0];
                    if plan.strict {
                        return Err(Error::Fallback { tensor: first.name.clone(), why });
                    }
                    let by = balance.name().to_owned();
                    (None, ScaleRecord { by, alpha: None, error: None, fallback: Some(why) })
                }
            };
            self.scales.extend(readers.iter().map(|(role, _)| (*role, record.clone())));
            drop(weights);
            if let Some(scales) = scales {
                self.fold(model, checkpoint, isa, &folding, scales, &planned)?;
            }
        }
        Ok(())
    }

    /// Divides what makes the features by `scales` and multiplies the columns of what reads them.
    fn fold<'p>(
        &mut self,
        model: &mut Model,
        checkpoint: &Checkpoint,
        isa: Isa,
        folding: &Folding,
        mut scales: Vec<f32>,
        planned: &impl Fn(&Role) -> Option<&'p PlannedTensor>,
    ) -> Result<(), Error> {
        match folding.made_by {
            MadeBy::Norm(role) => {
                let mut norm = self.widened(checkpoint, isa, role)?;
                let stored = match planned(&role).map(|planned| planned.to) {
                    Some(Encoding::Float(float)) => float,
                    _ => FloatType::F32,
                };
                fold::into_norm(&mut norm, &mut scales, stored);
                self.put_values(model, checkpoint, role, norm)?;
            }
            MadeBy::Matrix { weight, bias, features_for_each_row } => {
                let of_rows = match sharing(model, features_for_each_row) {
                    Some(sharing) => first_of_each(&sharing, &scales),
                    None => scales.clone(),
                };
                for role in [Some(weight), bias.filter(|bias| planned(bias).is_some())].into_iter().flatten()
                {
                    let mut values = self.widened(checkpoint, isa, role)?;
                    fold::divide_rows(&mut values, &of_rows);
                    self.put_values(model, checkpoint, role, values)?;
                }
            }
        }
        for &role in folding.read_by.iter().filter(|role| planned(role).is_some()) {
            let mut values = self.widened(checkpoint, isa, role)?;
            fold::multiply_columns(&mut values, &scales);
            self.put_values(model, checkpoint, role, values)?;
        }
        Ok(())
    }

    /// The values of a tensor of the layer as they are by now.
    fn widened(&self, checkpoint: &Checkpoint, isa: Isa, role: Role) -> Result<Vec<f32>, Error> {
        match self.tensors.get(&role) {
            Some(tensor) => Ok(widened(isa, tensor)),
            None => Ok(widened(isa, &original(checkpoint, role)?)),
        }
    }

    fn put_values(
        &mut self,
        model: &mut Model,
        checkpoint: &Checkpoint,
        role: Role,
        values: Vec<f32>,
    ) -> Result<(), Error> {
        let tensor = original(checkpoint, role)?.with_values(values);
        self.put(model, tensor);
        Ok(())
    }

    /// Has the model run with `tensor`.
    fn put(&mut self, model: &mut Model, tensor: Tensor) {
        let is_first = self.tensors.insert(tensor.info.role, tensor.clone()).is_none();
        let before = model.replace(tensor);
        if is_first {
            self.originals.extend(before);
        }
    }

    /// What the model had before, and is to have again once the layer has run.
    pub fn take_originals(&mut self) -> Vec<Tensor> {
        std::mem::take(&mut self.originals)
    }
}

fn original(checkpoint: &Checkpoint, role: Role) -> Result<Tensor, Error> {
    Ok(checkpoint.tensor(&role.canonical_name().unwrap_or_default())?)
}

/// The weights of `planned`, if all are finite.
fn finite(planned: &PlannedTensor, weight: Vec<f32>) -> Result<Vec<f32>, Error> {
    let (_, cols) = rows_and_columns(&planned.source_shape);
    match first_non_finite(&weight) {
        None => Ok(weight),
        Some(at) => {
            let (row, col, value) = (at / cols, at % cols, weight[at]);
            let source = bitmill_quant::Error::NonFinite { row, col, value };
            Err(Error::Quantize { tensor: planned.name.clone(), source })
        }
    }
}

/// Which rows of v are which features of the output projection, where several of these are one row.
fn sharing(model: &Model, features_for_each_row: usize) -> Option<Sharing> {
    let config = model.config();
    (features_for_each_row > 1).then(|| Sharing::of_heads(config.n_heads, config.n_kv_heads, config.head_dim))
}

/// The scale of each row of v: all of its features have the same.
fn first_of_each(sharing: &Sharing, scales: &[f32]) -> Vec<f32> {
    let mut of_rows = vec![1.0; sharing.sources];
    for (&source, &scale) in sharing.source.iter().zip(scales) {
        of_rows[source as usize] = scale;
    }
    of_rows
}

/// A search for the scales of some features.
struct Search<'a> {
    isa: Isa,
    model: &'a Model,
    readers: &'a [(Role, &'a PlannedTensor)],
    weights: &'a [Vec<f32>],
    stats: ChannelStats,
    /// Some of the inputs.
    tokens: Vec<f32>,
}

/// Scales, if any are better than none; or why none can be found.
type Found = Result<(Option<Vec<f32>>, ScaleRecord), String>;

impl Search<'_> {
    fn scales(&self, balance: Balance, folding: &Folding) -> Result<Found, Error> {
        let weights: Vec<&[f32]> = self.weights.iter().map(Vec::as_slice).collect();
        let by = balance.name().to_owned();
        let failed = |source| Error::Quantize { tensor: self.readers[0].1.name.clone(), source };
        match balance {
            Balance::Smooth(step) => {
                let alpha = step.alpha.0;
                let scales = smooth::scales(&self.stats.max_abs, &weights, alpha).map_err(failed)?;
                let alpha = Some(six_digits(f64::from(alpha)));
                Ok(Ok((Some(scales), ScaleRecord { by, alpha, error: None, fallback: None })))
            }
            Balance::Awq(_) => {
                let sharing = match folding.made_by {
                    MadeBy::Matrix { features_for_each_row, .. } => {
                        sharing(self.model, features_for_each_row)
                    }
                    MadeBy::Norm(_) => None,
                };
                let rows = (ROWS / self.readers.len().max(1)).max(LEAST_ROWS);
                let options =
                    AwqOptions { sharing: sharing.as_ref(), rows: Some(rows), ..AwqOptions::default() };
                let round = |matrix: usize, rows: &[f32], decided: &mut [f32]| {
                    round(self.isa, self.readers[matrix].1, rows, decided)
                };
                let group_size = group_size(self.readers[0].1);
                let inputs = awq::Inputs::Tokens(&self.tokens);
                let found = awq::search_scales_by(
                    &round,
                    group_size,
                    &weights,
                    &self.stats.mean_abs,
                    inputs,
                    &options,
                );
                let found = match found {
                    Err(bitmill_quant::Error::BadInputs) => {
                        return Ok(Err("the outputs' errors are infinite or NaN".into()));
                    }
                    found => found.map_err(failed)?,
                };
                let alpha = found.scales.is_some().then(|| six_digits(f64::from(found.alpha)));
                let relative = found.error / found.unscaled_error;
                let error = relative.is_finite().then(|| six_digits(relative));
                Ok(Ok((found.scales, ScaleRecord { by, alpha, error, fallback: None })))
            }
        }
    }
}

/// Rows of the source as `planned` will store them, or nearly so: without what statistics decide.
fn round(
    isa: Isa,
    planned: &PlannedTensor,
    rows: &[f32],
    decided: &mut [f32],
) -> Result<(), bitmill_quant::Error> {
    let (_, source_cols) = rows_and_columns(&planned.source_shape);
    let cols = planned.in_features();
    if cols == source_cols {
        return round_whole(isa, planned, rows, decided);
    }
    let count = rows.len() / source_cols;
    let (mut padded, mut padded_decided) = (vec![0.0; count * cols], vec![0.0; count * cols]);
    for (padded, row) in padded.chunks_exact_mut(cols).zip(rows.chunks_exact(source_cols)) {
        padded[..source_cols].copy_from_slice(row);
    }
    round_whole(isa, planned, &padded, &mut padded_decided)?;
    for (decided, row) in decided.chunks_exact_mut(source_cols).zip(padded_decided.chunks_exact(cols)) {
        decided.copy_from_slice(&row[..source_cols]);
    }
    Ok(())
}

fn round_whole(
    isa: Isa,
    planned: &PlannedTensor,
    rows: &[f32],
    decided: &mut [f32],
) -> Result<(), bitmill_quant::Error> {
    let cols = planned.in_features();
    let encoding = match planned.to {
        Encoding::Scaled(layout) => {
            // What scales of scales would add is small.
            let layout = match layout.scale {
                ScaleType::Nested => Scaled { scale: ScaleType::Float(FloatType::F32), ..layout },
                _ => layout,
            };
            let global = match layout.scale {
                ScaleType::Fp8 => global_scale(rows.iter().fold(0.0, |most, weight| weight.abs().max(most))),
                _ => 1.0,
            };
            let base = ScaleBase { global, nested: None };
            return encode_scaled(&layout, &base, 0, cols, rows, decided).map(drop);
        }
        Encoding::Block(block) => stand_in(block, cols).map_or(planned.to, Encoding::Grouped),
        other => other,
    };
    let rounding = Rounding { encoding, clip: planned.clip, importance: None, search: BlockSearch::Ggml };
    rounding.encode(isa, cols, rows, decided).map(drop)
}

/// A plain grid in the place of blocks whose points take long to find.
fn stand_in(block: BlockType, cols: usize) -> Option<Grouped> {
    let bits = match block {
        BlockType::IQ1_S | BlockType::IQ1_M | BlockType::IQ2_XXS | BlockType::IQ2_XS | BlockType::IQ2_S => 2,
        BlockType::IQ3_XXS | BlockType::IQ3_S => 3,
        _ => return None,
    };
    let grid = RtnGrid {
        bits: Bits::new(bits)?,
        granularity: Granularity::Group { size: SUB_BLOCK.try_into().ok()? },
        zero_point: ZeroPoint::Symmetric,
        scale: FloatType::F32,
    };
    grid.layout(cols).ok()
}

/// Weights that share a scale within most blocks.
const SUB_BLOCK: usize = 32;

/// How many weights of `planned` share a scale.
fn group_size(planned: &PlannedTensor) -> usize {
    match planned.to {
        Encoding::Grouped(grouped) => grouped.group_size.get(),
        Encoding::Block(_) => SUB_BLOCK,
        Encoding::Scaled(layout) => match layout.extent {
            Extent::Columns(cols) | Extent::Block { cols, .. } => cols.get(),
            Extent::Row | Extent::Matrix => planned.in_features(),
        },
        Encoding::Float(_) | Encoding::Sparse { .. } => planned.in_features(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_checkpoint::RoleKind;
    use bitmill_tensor::Matrix;

    fn seen(balance: Balance, groups: &[(Role, &[f32])]) -> Collected {
        let mut collected = Collected::default();
        for &(role, x) in groups {
            let x = Matrix::from_vec(x.len() / 2, 2, x.to_vec());
            let rows = x.rows();
            let inputs = Inputs { x: &x, calibration_rows: rows, dense: None };
            collected.add(balance, &[role], &inputs, rows);
        }
        collected
    }

    #[test]
    fn features_of_experts_are_those_of_all_their_tokens() {
        let experts = [0, 1, 2].map(|expert| Role::in_expert(3, expert, RoleKind::FfnUp));
        let smooth = Balance::Smooth(crate::SmoothStep { alpha: crate::recipe::Damping(0.5) });
        let mut groups: Vec<(Role, &[f32])> =
            vec![(experts[0], &[1.0, -2.0, 3.0, 0.0]), (experts[1], &[-5.0, 1.0])];
        let (stats, tokens) = seen(smooth, &groups).of(&experts).unwrap();
        assert_eq!((stats.tokens, stats.mean_abs, stats.max_abs), (3, vec![3.0, 1.0], vec![5.0, 2.0]));
        assert_eq!(tokens, [1.0, -2.0, 3.0, 0.0, -5.0, 1.0]);
        assert!(seen(smooth, &groups).of(&experts[2..]).is_none(), "no token met it");
        // What is no expert's has met every token.
        let shared = Role::in_layer(3, RoleKind::SharedUp);
        groups.push((shared, &[1.0, 1.0]));
        let (stats, _) = seen(smooth, &groups).of(&[experts[0], experts[1], shared]).unwrap();
        assert_eq!((stats.tokens, stats.max_abs), (1, vec![1.0, 1.0]));
    }

    #[test]
    fn awq_counts_tokens_alike_and_smoothing_takes_the_largest_as_it_is() {
        let role = Role::in_layer(0, RoleKind::FfnDown);
        let groups: [(Role, &[f32]); 1] = [(role, &[3e3, 4e3, 1.2, 1.6])];
        let (stats, _) = seen(Balance::Awq(crate::AwqStep::default()), &groups).of(&[role]).unwrap();
        assert!((stats.mean_abs[0] / stats.mean_abs[1] - 0.75).abs() < 1e-6 && stats.max_abs[1] < 1.2);
        let smooth = Balance::Smooth(crate::SmoothStep { alpha: crate::recipe::Damping(0.5) });
        assert_eq!(seen(smooth, &groups).of(&[role]).unwrap().0.max_abs, [3e3, 4e3]);
    }
}
