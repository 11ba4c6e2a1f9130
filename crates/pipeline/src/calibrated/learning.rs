//! Layers whose rounding is learned: all of a layer's matrices together, so that the layer makes of the states that it will meet
//! what the dense one makes of the dense model's.
//!
//! ```text
//! dense states ─▶ dense layer ─▶ targets
//! states of what was quantized before ─▶ layer of rounded weights ─▶ error ─▶ gradients ─▶ other roundings ─▶ …
//! ```

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use bitmill_calib::Dense;
use bitmill_checkpoint::{Role, RoleKind, Tensor};
use bitmill_kernels::Compute;
use bitmill_model::{LayerGradients, LayerRun, Model, PlainLayer, Reach, SplitMix64, Stage};
use bitmill_quant::{GroupedRows, Learned};
use bitmill_tensor::{Encoding, Matrix};
use rayon::prelude::*;

use super::clock::Work;
use super::compressing::{Compressing, largest_input};
use super::states::{Section, StatesWriter};
use super::tensor::{MethodRecord, Rows, as_stored, encode_alone, six_digits};
use super::{Calibrated, Done, Material};
use crate::Error;
use crate::method::{Learning, Method};
use crate::plan::{PlannedTensor, rows_and_columns};
use crate::tensor_run::{Encoded, TensorRun};

/// Tokens that run at once: products are large enough for the caches, and memory is that of a few windows.
const TOKENS_AT_ONCE: usize = 2048;
/// Tokens whose states have more than so many times the energy of the median token's count as if they had that.
const MOST_ENERGY: f32 = 4.0;

/// A matrix that is learned.
struct Learner {
    /// In the plan.
    index: usize,
    kind: RoleKind,
    /// Row `i` of the output is row `places[i]` of the source as it lies there; rows that pad are behind its last.
    places: Vec<usize>,
    /// The other way round.
    rows: Vec<usize>,
    learned: Learned,
}

/// What a tensor of the plan became, and what the layer runs on with.
type Made = (usize, Done, Tensor);

/// Mean squared errors of what a layer puts out, tokens weighed: as learning began, and of what was kept.
#[derive(Debug, Clone, Copy)]
struct Losses {
    before: f64,
    after: f64,
}

/// Which windows come next: all of them in an order that a seed draws, then in another.
struct Draw {
    order: Vec<usize>,
    next: usize,
    random: SplitMix64,
}

impl Draw {
    fn new(windows: usize, seed: u64) -> Self {
        let mut draw = Self { order: (0..windows).collect(), next: 0, random: SplitMix64::new(seed) };
        draw.shuffle();
        draw
    }

    fn shuffle(&mut self) {
        for at in (1..self.order.len()).rev() {
            let other = (self.random.unit() * (at + 1) as f64) as usize;
            self.order.swap(at, other);
        }
        self.next = 0;
    }

    /// `count` windows, or all that there are.
    fn windows(&mut self, count: usize) -> Vec<usize> {
        let count = count.min(self.order.len());
        if self.next + count > self.order.len() {
            self.shuffle();
        }
        self.next += count;
        self.order[self.next - count..self.next].to_vec()
    }
}

impl Calibrated<'_> {
    /// Whether the rounding of the next layer is learned, and how.
    pub(super) fn learning(&self) -> Option<Learning> {
        let (_, tensors) = &self.layers[self.next];
        tensors.values().find_map(|&index| self.plan.tensors[index].method.learning())
    }

    /// Runs the dense layer for what is to come out, learns, and runs the layer on with what was learned.
    pub(super) fn run_learned(
        &mut self,
        batches: &[Range<usize>],
        how: Learning,
        compressing: &mut Compressing<'_>,
    ) -> Result<(), Error> {
        let mut next = self.folder.create(self.next + 1)?;
        let targets = self.dense_outputs(batches, &mut next)?;
        let (source_layer, tensors) = &self.layers[self.next];
        let source_layer = *source_layer;
        let is_met = |role: &Role| role.kind.is_matrix() && !role.kind.is_router();
        let mut members: Vec<(Role, usize)> =
            tensors.iter().filter(|(role, _)| is_met(role)).map(|(&role, &index)| (role, index)).collect();
        members.sort_by_key(|&(_, index)| index);
        let is_learned = |&(_, index): &(Role, usize)| self.plan.tensors[index].method.learning().is_some();
        let (to_learn, others): (Vec<_>, Vec<_>) = members.into_iter().partition(is_learned);

        let mut begun = match how.begin {
            Some(_) => self.begin_learning(batches, &to_learn, compressing)?,
            None => HashMap::new(),
        };
        // What is rounded by its weights alone does not wait for the others: they make up for it.
        let mut dense = Vec::new();
        for (_, index) in others {
            let planned = &self.plan.tensors[index];
            if planned.to != planned.from || planned.is_padded() {
                let (_, done, stored) = self.store(compressing, index, None, None)?;
                compressing.done.insert(index, done);
                dense.extend(self.model.replace(stored));
            }
        }
        let began = Instant::now();
        let learned = match self.model.plain_layer(&self.compute, source_layer) {
            Ok(layer) => self.learn(compressing, layer, &to_learn, &begun, &targets, how)?,
            Err(error) => Err(error.to_string()),
        };
        drop(targets);
        compressing.clock.add(Work::Codes, began.elapsed());
        let made = match learned {
            Ok(made) => made,
            Err(why) => {
                let instead = |&(_, index): &(Role, usize)| {
                    let begun = begun.remove(&index);
                    let method = self.not_learned(index, begun.as_ref(), &why)?;
                    self.store(compressing, index, begun, Some(method))
                };
                to_learn.iter().map(instead).collect::<Result<_, Error>>()?
            }
        };
        for (index, done, stored) in made {
            compressing.done.insert(index, done);
            dense.extend(self.model.replace(stored));
        }
        let mut largest: HashMap<Role, f32> = HashMap::new();
        self.run_on(batches, dense, next, |roles, inputs| {
            let calibration = &inputs.x.as_slice()[..inputs.calibration_rows * inputs.x.cols()];
            // One that is NaN is not passed over.
            let most = calibration.par_iter().map(|x| x.abs()).max_by(f32::total_cmp);
            for role in roles {
                let most = most.into_iter().chain(largest.get(role).copied()).max_by(f32::total_cmp);
                largest.extend(most.map(|most| (*role, most)));
            }
        })?;
        for (role, index) in to_learn {
            let done = compressing.done.get_mut(&index).and_then(|done| done.method.as_mut());
            if let (Some(method), Some(&most)) = (done, largest.get(&role)) {
                method.largest_input = method.largest_input.or_else(|| largest_input(&[most]));
            }
        }
        Ok(())
    }

    /// What matrices of the layer become column after column, each with the ones before it as they became.
    fn begin_learning(
        &mut self,
        batches: &[Range<usize>],
        to_learn: &[(Role, usize)],
        compressing: &mut Compressing<'_>,
    ) -> Result<HashMap<usize, Done>, Error> {
        if let [all] = batches {
            let mut streams = self.streams(all.clone())?;
            self.quantize_at_once(&mut streams, compressing)?;
        } else {
            for dense in self.quantize_in_batches(batches, compressing, None)? {
                self.model.replace(dense);
            }
        }
        let taken = |&(_, index): &(Role, usize)| Some((index, compressing.done.remove(&index)?));
        Ok(to_learn.iter().filter_map(taken).collect())
    }

    /// What the dense layer makes of the dense model's states: those of calibration windows, the others kept too.
    fn dense_outputs(&self, batches: &[Range<usize>], next: &mut StatesWriter) -> Result<Vec<f32>, Error> {
        let (rows, _) = self.material.rows(&(0..self.material.windows()));
        let columns = self.model.config().hidden_size;
        let mut targets = Vec::with_capacity(rows.len() * columns);
        for windows in batches {
            let mut streams = self.streams(windows.clone())?;
            if let Some(Dense::Runs(dense)) = &mut streams.dense {
                self.model.pass_layer(&self.compute, dense, |_, _, _| ());
                let calibration = &dense.hidden().as_slice()[..streams.calibration_rows * columns];
                targets.extend_from_slice(calibration);
            }
            self.keep_dense(&streams, next)?;
        }
        Ok(targets)
    }

    /// What is told of a tensor that was not learned because of `why`.
    fn not_learned(&self, index: usize, begun: Option<&Done>, why: &str) -> Result<MethodRecord, Error> {
        let planned = &self.plan.tensors[index];
        if self.plan.strict {
            return Err(Error::Fallback { tensor: planned.name.clone(), why: why.to_owned() });
        }
        let record = begun.and_then(|done| done.method.clone()).unwrap_or_default();
        if record.fallback.is_some() {
            return Ok(record);
        }
        let method = match planned.method.gptq().filter(|_| begun.is_some()) {
            Some(begin) => Method::Gptq(begin).name(),
            None => planned.method.fallback(planned.to),
        };
        Ok(MethodRecord { method: method.to_owned(), fallback: Some(why.to_owned()), ..record })
    }

    /// A tensor as learning was to begin with it, or else as its weights alone say; what the layer runs on with.
    fn store(
        &self,
        compressing: &Compressing<'_>,
        index: usize,
        begun: Option<Done>,
        method: Option<MethodRecord>,
    ) -> Result<Made, Error> {
        let planned = &self.plan.tensors[index];
        let isa = self.compute.isa();
        let opened = compressing.source.open(isa, planned)?;
        let run = TensorRun::new(&compressing.source, planned, &opened, isa)?;
        let rows = match begun {
            Some(begun) => Rows::encoded(begun.encoded),
            None => encode_alone(&run, planned)?,
        };
        let stored = as_stored(isa, &opened.tensor, planned, &run, &rows);
        let base = run.base().clone();
        opened.tensor.release();
        Ok((index, Done { encoded: rows.encoded, method, base }, stored))
    }

    /// Learns the matrices `to_learn` of `layer`; what it runs on with, or why nothing was learned.
    fn learn(
        &self,
        compressing: &Compressing<'_>,
        mut layer: PlainLayer,
        to_learn: &[(Role, usize)],
        begun: &HashMap<usize, Done>,
        targets: &[f32],
        how: Learning,
    ) -> Result<Result<Vec<Made>, String>, Error> {
        let mut learners = Vec::new();
        for &(role, index) in to_learn {
            learners.push(self.learner(compressing, role.kind, index, begun.get(&index), how)?);
        }
        let losses = match self.descend(&mut layer, &mut learners, targets, how)? {
            Ok(losses) => losses,
            Err(why) => return Ok(Err(why)),
        };
        drop(layer);
        let mut made = Vec::new();
        for learner in learners {
            let Learner { index, learned, .. } = learner;
            let planned = &self.plan.tensors[index];
            let isa = self.compute.isa();
            let opened = compressing.source.open(isa, planned)?;
            let run = TensorRun::new(&compressing.source, planned, &opened, isa)?;
            let mut decided = vec![0.0; planned.out_features() * planned.in_features()];
            let parts = learned.finish(&mut decided).into();
            let mut weight = Vec::new();
            run.widen(0, planned.out_features(), &mut weight)?;
            let encoded = Encoded { parts, rows: run.figures(&weight, &decided) };
            let rows = Rows::whole(planned, encoded, decided);
            let stored = as_stored(isa, &opened.tensor, planned, &run, &rows);
            let began = begun.get(&index).and_then(|done| done.method.clone()).unwrap_or_default();
            let method = MethodRecord {
                method: planned.method.name().to_owned(),
                scaled: compressing.scales.get(&opened.tensor.info.role).cloned(),
                largest_input: began.largest_input,
                damping: began.damping,
                dead_columns: began.dead_columns,
                loss_before: Some(six_digits(losses.before)),
                loss_after: Some(six_digits(losses.after)),
                ..MethodRecord::default()
            };
            let base = run.base().clone();
            opened.tensor.release();
            made.push((index, Done { encoded: rows.encoded, method: Some(method), base }, stored));
        }
        Ok(Ok(made))
    }

    fn learner(
        &self,
        compressing: &Compressing<'_>,
        kind: RoleKind,
        index: usize,
        begun: Option<&Done>,
        how: Learning,
    ) -> Result<Learner, Error> {
        let planned = &self.plan.tensors[index];
        let Encoding::Grouped(grid) = planned.to else {
            unreachable!("{:?} is never planned for {}", planned.method, planned.to)
        };
        let isa = self.compute.isa();
        let opened = compressing.source.open(isa, planned)?;
        let run = TensorRun::new(&compressing.source, planned, &opened, isa)?;
        let mut weight = Vec::new();
        run.widen(0, planned.out_features(), &mut weight)?;
        let places: Vec<usize> = (0..planned.out_features()).map(|row| run.stored_row(row)).collect();
        let mut rows = vec![0; places.len()];
        places.iter().enumerate().for_each(|(row, &place)| rows[place] = row);
        let cols = planned.in_features();
        let learned = match begun {
            Some(begun) => {
                let mut found = GroupedRows::default();
                for Encoded { parts, .. } in &begun.encoded {
                    found.packed.extend_from_slice(&parts.codes);
                    found.scales.extend_from_slice(&parts.scales);
                    found.zero_codes.extend_from_slice(&parts.zero_codes);
                }
                Learned::from_codes(&grid, how.ranges, weight, cols, &found)
            }
            None => Learned::new(&grid, planned.clip, how.ranges, weight, cols),
        };
        let learned = learned.map_err(|source| Error::Quantize { tensor: planned.name.clone(), source })?;
        Ok(Learner { index, kind, places, rows, learned })
    }

    /// Signed gradient descent over windows that the seed draws, every layer's its own; or why there is none.
    fn descend(
        &self,
        layer: &mut PlainLayer,
        learners: &mut [Learner],
        targets: &[f32],
        how: Learning,
    ) -> Result<Result<Losses, String>, Error> {
        let (source_layer, _) = self.layers[self.next];
        let windows = self.material.windows();
        if windows == 0 || self.material.length() == 0 {
            return Ok(Err("there are no calibration tokens".to_owned()));
        }
        let seed = self.plan.recipe.calibration.as_ref().map_or(0, |options| options.seed);
        let mut draw = Draw::new(windows, seed.wrapping_add((self.next as u64) << 32));
        let mut lesson = Lesson {
            calibrated: self,
            layer: source_layer,
            targets,
            weights: weights(targets, self.model.config().hidden_size),
            stages: HashMap::new(),
            run: LayerRun::default(),
            gradients: LayerGradients::new(layer),
        };
        for learner in &*learners {
            learner.decide(layer.matrix_mut(learner.kind).expect("a matrix of a plain layer"));
        }
        let all: Vec<usize> = (0..windows).collect();
        let before = lesson.look(layer, &all, Look::Measure)?;
        if !before.is_finite() {
            return Ok(Err("what the layer puts out is infinite or NaN".to_owned()));
        }
        for iteration in 0..how.iterations {
            let drawn = draw.windows(how.batch);
            if !lesson.look(layer, &drawn, Look::Learn)?.is_finite() {
                break;
            }
            let left = 1.0 - f64::from(iteration) / f64::from(how.iterations);
            let rate = (f64::from(how.rate) * left) as f32;
            for learner in &mut *learners {
                learner.step(lesson.gradients.matrix(learner.kind).expect("as the layer's"), rate);
                learner.decide(layer.matrix_mut(learner.kind).expect("a matrix of a plain layer"));
            }
        }
        // Steps end in nothing, so the last iterate is the one; but what it began with stays where that loses less.
        let mut after = lesson.look(layer, &all, Look::Measure)?;
        if after < before {
            learners.iter_mut().for_each(|learner| learner.learned.keep());
        } else {
            after = before;
        }
        Ok(Ok(Losses { before, after }))
    }
}

/// How much the error of each token counts, by what the dense layer makes of it: 1, and less for the few whose states are hundreds
/// of times as large (arXiv:2402.17762). Norms make nothing of that size, but a sum of squares would be theirs alone.
fn weights(targets: &[f32], columns: usize) -> Vec<f32> {
    let energy = |state: &[f32]| state.iter().map(|x| x * x).sum::<f32>();
    let energies: Vec<f32> = targets.par_chunks_exact(columns).map(energy).collect();
    let mut sorted = energies.clone();
    let middle = sorted.len() / 2;
    let (_, &mut median, _) = sorted.select_nth_unstable_by(middle, f32::total_cmp);
    let most = MOST_ENERGY * median;
    energies.iter().map(|&energy| if energy > most { most / energy } else { 1.0 }).collect()
}

/// What states are run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Losses.
    Measure,
    /// And their gradients.
    Learn,
}

/// What a loss is found with.
struct Lesson<'a, 'c> {
    calibrated: &'a Calibrated<'c>,
    /// In the source.
    layer: usize,
    targets: &'a [f32],
    /// Of tokens.
    weights: Vec<f32>,
    /// Positions of so many windows.
    stages: HashMap<usize, Stage>,
    run: LayerRun,
    gradients: LayerGradients,
}

impl Lesson<'_, '_> {
    /// The mean squared error of what `layer` makes of `windows`, its gradients are those of the lesson then.
    fn look(&mut self, layer: &PlainLayer, windows: &[usize], what: Look) -> Result<f64, Error> {
        let Calibrated { compute, material, model, states, .. } = self.calibrated;
        let (length, columns) = (material.length(), model.config().hidden_size);
        let at_once = (TOKENS_AT_ONCE / length).max(1);
        let elements = (windows.len() * length * columns) as f64;
        let factor = (2.0 / elements) as f32;
        if what == Look::Learn {
            self.gradients.clear();
        }
        let mut sum = 0.0;
        for windows in windows.chunks(at_once) {
            let rows = |window: usize| material.rows(&(window..window + 1)).0;
            let states = |&window: &usize| states.read(Section::Calibration, rows(window)).into_vec();
            let hidden: Vec<f32> = windows.iter().flat_map(states).collect();
            let mut stage = match self.stages.remove(&windows.len()) {
                Some(stage) => stage,
                None => self.enter(model, compute, windows)?,
            };
            let tokens = windows.len() * length;
            stage.stand_before(self.layer, Matrix::from_vec(tokens, columns, hidden));
            layer.forward(compute, &stage, &mut self.run);
            let mut of_output = Vec::with_capacity(tokens * columns);
            for (output, &window) in self.run.output().as_slice().chunks(length * columns).zip(windows) {
                let rows = rows(window);
                let target = &self.targets[rows.start * columns..rows.end * columns];
                let [output, target] =
                    [output, target].map(|part| Matrix::from_vec(length, columns, part.to_vec()));
                let mut of = Matrix::default();
                sum += compute.squared_error(&output, &target, &self.weights[rows], factor, &mut of);
                of_output.append(&mut of.into_vec());
            }
            if what == Look::Learn {
                let of_output = Matrix::from_vec(tokens, columns, of_output);
                let Self { run, gradients, .. } = self;
                layer.backward(compute, &stage, run, &of_output, Reach::Matrices, gradients);
            }
            self.stages.insert(windows.len(), stage);
        }
        Ok(sum / elements)
    }

    /// Positions are those of any windows of that length.
    fn enter(&self, model: &Model, compute: &Compute, windows: &[usize]) -> Result<Stage, Error> {
        let all = &self.calibrated.material.calibration.windows;
        let texts: Vec<&[u32]> = windows.iter().map(|&window| all.get(window)).collect();
        Ok(model.enter(compute, &texts)?)
    }
}

impl Learner {
    /// What the weights stand for by now, in the order and shape of the source.
    fn decide(&self, matrix: &mut Matrix) {
        let (cols, in_features) = (matrix.cols(), self.learned.in_features());
        if cols == 0 {
            return;
        }
        let rows = matrix.as_mut_slice().par_chunks_exact_mut(cols).with_min_len(16).enumerate();
        rows.for_each_init(Vec::new, |padded, (place, out)| {
            let row = self.rows[place];
            if cols == in_features {
                return self.learned.decide(row, out);
            }
            padded.resize(in_features, 0.0);
            self.learned.decide(row, padded);
            out.copy_from_slice(&padded[..cols]);
        });
    }

    /// Moves by what the loss says of the matrix; nothing of what pads it.
    fn step(&mut self, of: &Matrix, rate: f32) {
        let (places, cols) = (&self.places, of.cols());
        let gradient = |row: usize, out: &mut [f32]| match places[row] {
            place if place < of.rows() => {
                out[..cols].copy_from_slice(of.row(place));
                out[cols..].fill(0.0);
            }
            _ => out.fill(0.0),
        };
        self.learned.step(gradient, rate);
    }
}

/// Peak memory of a layer that is learned, beside what its passes take; none if none is.
pub(super) fn peak_bytes(
    material: &Material,
    config: &bitmill_checkpoint::ModelConfig,
    tensors: &[PlannedTensor],
) -> u64 {
    /// Weights, offsets, the layer's copy and its gradients in f32, and the codes that are kept.
    const BYTES_A_WEIGHT: u64 = 4 * 4 + 1;
    let mut layers: HashMap<usize, (u64, u64)> = HashMap::new();
    for planned in tensors.iter().filter(|planned| matches!(planned.method, Method::Learned(_))) {
        let (rows, cols) = rows_and_columns(&planned.shape);
        let weights = rows as u64 * cols as u64;
        let (all, largest) = layers.entry(planned.role.layer.unwrap_or_default()).or_default();
        *all += weights;
        *largest = weights.max(*largest);
    }
    let weights = layers.values().map(|(all, largest)| BYTES_A_WEIGHT * all + 8 * largest).max();
    let Some(weights) = weights else { return 0 };
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    // What a layer's run keeps of a token, what flows back, and attention's copies.
    let floats = 10 * config.hidden_size + 8 * q + 11 * kv + 4 * config.intermediate_size;
    let (length, windows) = (material.length(), material.windows());
    let at_once = TOKENS_AT_ONCE.max(length).min(windows * length);
    let targets = windows * length * config.hidden_size;
    weights + 4 * (at_once * floats + targets) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_drawn_all_before_one_comes_again() {
        let mut draw = Draw::new(7, 3);
        let mut seen: Vec<usize> = (0..3).flat_map(|_| draw.windows(2)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 6);
        // The seventh is left out: a batch is of one order.
        assert_eq!(draw.windows(2).len(), 2);
        assert_eq!(Draw::new(3, 0).windows(8).len(), 3);
        let orders: Vec<Vec<usize>> = (0..4).map(|seed| Draw::new(50, seed).windows(50)).collect();
        assert!(orders.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(Draw::new(50, 2).windows(50), orders[2]);
    }
}
