//! Layer after layer, with codes that the statistics of each matrix's inputs decide: what was quantized before shows in what
//! comes after.
//!
//! ```text
//! states of layer k ─▶ inputs of q k v ─▶ Hessian ─▶ factor ─▶ codes ─▶ run on with them ─▶ inputs of o ─▶ …
//!                                                        └▶ rows, in the plan's order, to the writer
//!                      … ─▶ states of layer k + 1, on disk before a tensor of layer k is written
//! ```

mod clock;
mod compressing;
mod learning;
mod material;
mod outliers;
mod quality;
mod reshaping;
mod sample;
mod scales;
mod shared;
mod states;
mod tensor;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bitmill_calib::{Cached, Dense, DensePass, Inputs, Streams, pass_layer};
use bitmill_checkpoint::{Checkpoint, ModelConfig, Role, RoleKind, Tensor};
use bitmill_kernels::{Compute, Isa, Path as ComputePath};
use bitmill_model::Model;
use bitmill_tensor::Matrix;

use crate::Error;
use crate::balancing::Balance;
use crate::method::Method;
use crate::plan::{Plan, PlannedTensor, rows_and_columns};
use crate::progress::Progress;
use crate::source::Source;
use crate::tensor_run::TensorRun;

pub use clock::LayerSeconds;
pub(crate) use compressing::Done;
pub(crate) use material::Material;
pub use outliers::OutlierRecord;
pub(crate) use outliers::{Fallback, Fallbacks, find as find_outliers};
pub use quality::{Continuation, HeldOut};
pub use reshaping::ScaleRecord;
pub(crate) use scales::{RuntimeScales, StoredScale};
pub(crate) use shared::{Shared, Sharing};
pub use tensor::MethodRecord;
pub(crate) use tensor::six_digits;

use clock::{Clock, Work};
use compressing::{Compressing, Sums};
use reshaping::{Collected, Reshaped};
use shared::DenseKey;
use states::{Section, Shape, States, StatesFolder, StatesWriter};

/// A layer's number in the source, and its tensors' places in the plan by their roles there.
type LayerTensors = (usize, HashMap<Role, usize>);

/// A run through the layers of a model.
pub(crate) struct Calibrated<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    material: &'a Material,
    compute: Compute,
    model: Model,
    folder: StatesFolder,
    /// What enters the next layer.
    states: States,
    /// Of each layer of the output.
    layers: Vec<LayerTensors>,
    /// Counted in the output.
    next: usize,
    /// What the last layer's tensors became.
    done: HashMap<usize, Done>,
    /// How far its keys and values reached, where the recipe asks.
    cached: Option<Cached>,
    /// What it shares with runs of other recipes over the same tokens.
    sharing: Option<Sharing<'a>>,
    clock: Clock,
}

impl<'a> Calibrated<'a> {
    /// Stands before the layer of the first tensor that is not among the first `finished` of the plan; `None` if the plan
    /// needs no statistics. `folder` keeps states from one run to the next.
    ///
    /// # Errors
    /// If the states of an interrupted run are gone, the model cannot run, or the disk fails.
    pub fn begin(
        checkpoint: &'a Checkpoint,
        plan: &'a Plan,
        folder: PathBuf,
        finished: usize,
        sharing: Option<Sharing<'a>>,
    ) -> Result<Option<Self>, Error> {
        let Some(material) = &plan.material else { return Ok(None) };
        let compute = Compute::new(Isa::best(), ComputePath::Exact);
        let mut model = Model::load(checkpoint)?;
        let layers = layers(checkpoint, plan)?;
        let next = match plan.tensors.get(finished) {
            Some(planned) => planned.role.layer.unwrap_or(if finished == 0 { 0 } else { layers.len() }),
            None => layers.len(),
        };
        let (rows, held_out) = material.rows(&(0..material.calibration.windows.len()));
        let shape = Shape {
            columns: model.config().hidden_size,
            calibration: rows.len(),
            held_out: held_out.len(),
            dense_calibration: plan.tensors.iter().any(|planned| planned.method.wants_dense_states()),
            float: material.states,
        };
        let states_folder = StatesFolder::new(folder.clone(), shape);
        let states = match states_folder.open(next)? {
            Some(states) => states,
            None if next == 0 => enter(checkpoint, plan, &mut model, &compute, material, &states_folder)?,
            None => return Err(Error::StatesGone { folder, layer: next }),
        };
        if let Some(sharing) = sharing {
            sharing.enters(next, states.calibration_hash());
            let learns = plan.tensors.iter().any(|planned| planned.method.learning().is_some());
            if plan.turn.is_none() && plan.recipe.balance().is_none() && !learns {
                sharing.runs_dense(shape.dense_calibration);
            }
        }
        let done = HashMap::new();
        Ok(Some(Self {
            checkpoint,
            plan,
            material,
            compute,
            model,
            folder: states_folder,
            states,
            layers,
            next,
            done,
            cached: None,
            sharing,
            clock: Clock::default(),
        }))
    }

    /// What planned tensor `index` became, if its layer's run decides about it; runs layers up to that one. The first `noted`
    /// tensors of the plan are on disk: what they were made from is needed no more.
    ///
    /// # Errors
    /// If a matrix cannot be quantized, or the disk fails.
    pub fn take(
        &mut self,
        index: usize,
        noted: usize,
        progress: &dyn Progress,
        path: &Path,
    ) -> Result<Option<Done>, Error> {
        if let Some(layer) = self.plan.tensors[index].role.layer {
            while self.next <= layer {
                if progress.is_stopped() {
                    return Err(Error::Stopped { path: path.into() });
                }
                // The first tensor that is not on disk may be of an earlier layer than the next.
                let needed = self.plan.tensors.get(noted).and_then(|planned| planned.role.layer);
                self.folder.remove_before(needed.unwrap_or(0).min(self.next))?;
                self.run_layer()?;
            }
        }
        Ok(self.done.remove(&index))
    }

    /// How often it took over what another run of the pass had found: statistics of inputs, layers of the dense model.
    pub fn taken_over(&self) -> usize {
        self.sharing.map_or(0, |sharing| sharing.taken())
    }

    /// What its layers took so far; `None` before the first.
    pub fn layer_seconds(&self) -> Option<LayerSeconds> {
        self.clock.read()
    }

    /// Measures the output that lies at `staged` on the windows that were held out; `None` if there are none.
    ///
    /// # Errors
    /// If it cannot be opened and run.
    pub fn measure(&mut self, staged: &Path) -> Result<Option<HeldOut>, Error> {
        if self.material.held_out == 0 {
            return Ok(None);
        }
        while self.next < self.layers.len() {
            self.run_layer()?;
        }
        let checkpoint = Checkpoint::open(staged)?;
        let written = Model::load(&checkpoint)?;
        let rows = self.material.held_out * self.material.length();
        let states = self.states.read(Section::HeldOut, 0..rows);
        let mut dense = self.states.read(Section::DenseHeldOut, 0..rows);
        if let Some(turn) = &self.plan.turn {
            turn.turn_back(dense.as_mut_slice());
        }
        let windows = &self.material.calibration.windows;
        let windows: Vec<&[u32]> =
            (self.material.windows()..windows.len()).map(|at| windows.get(at)).collect();
        let quality = quality::held_out(&self.compute, (&written, &states), (&self.model, &dense), &windows)?;
        self.model.release();
        let continuation = quality::continuation(&self.compute, &checkpoint, &written, windows[0])?;
        Ok(Some(HeldOut { continuation, ..quality }))
    }

    fn run_layer(&mut self) -> Result<(), Error> {
        self.done.clear();
        let (began, mut clock) = (Instant::now(), Clock::default());
        self.cached = self.plan.recipe.kv_cache.map(|_| Cached::default());
        if let Some(sharing) = self.sharing {
            sharing.begin(self.next);
        }
        let mut reshaped = clock.time(Work::Reshaping, || self.reshape_layer())?;
        let originals = reshaped.take_originals();
        let Reshaped { tensors, scales, .. } = reshaped;
        let (_, places) = &self.layers[self.next];
        let source = Source::with_changed(self.checkpoint, self.plan, tensors);
        let mut compressing =
            Compressing::new(source, self.compute, places.clone(), scales, self.sharing, clock);
        let batches = self.material.batches(self.model.config());
        match (self.learning(), batches.as_slice()) {
            (Some(how), batches) => self.run_learned(batches, how, &mut compressing)?,
            (None, [all]) => self.run_at_once(all.clone(), &mut compressing)?,
            (None, several) => self.run_in_batches(several, &mut compressing)?,
        }
        let clock;
        (self.done, clock) = compressing.finish()?;
        if let Some(Cached { keys, values }) = self.cached
            && !(keys.is_finite() && values.is_finite())
        {
            return Err(Error::CacheRange { layer: self.next });
        }
        for tensor in originals {
            self.model.replace(tensor);
        }
        self.model.release();
        self.next += 1;
        if let Some(sharing) = self.sharing {
            sharing.enters(self.next, self.states.calibration_hash());
        }
        self.clock.add_layer(began.elapsed(), &clock);
        Ok(())
    }

    /// Turns and scales the layer as the recipe asks; the model then runs with what it became.
    fn reshape_layer(&mut self) -> Result<Reshaped, Error> {
        let mut reshaped = Reshaped::default();
        let (checkpoint, plan, isa) = (self.checkpoint, self.plan, self.compute.isa());
        reshaped.turn(&mut self.model, checkpoint, plan, isa, &self.layers[self.next])?;
        if let Some(balance) = plan.recipe.balance() {
            let collected = self.look(balance)?;
            let layer = &self.layers[self.next];
            reshaped.balance(&mut self.model, checkpoint, plan, isa, layer, balance, &collected)?;
        }
        Ok(reshaped)
    }

    /// Runs the calibration windows through the layer as it is and keeps what its matrices multiply.
    fn look(&mut self, balance: Balance) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        let material = self.material;
        let batches = material.batches(self.model.config());
        for windows in &batches {
            let windows = windows.start..windows.end.min(material.windows());
            if windows.is_empty() {
                continue;
            }
            let mut streams = Streams { dense: None, ..self.streams(windows)? };
            pass_layer(&mut self.model, &self.compute, &mut streams, &mut |model, roles, inputs| {
                let expected = expected_inputs(material, model.config(), batches.len(), roles, &inputs);
                collected.add(balance, roles, &inputs, expected);
                Ok::<_, Error>(Vec::new())
            })?;
        }
        Ok(collected)
    }

    /// All tokens together: each matrix is quantized as soon as its inputs are there, and runs on quantized.
    fn run_at_once(&mut self, windows: Range<usize>, compressing: &mut Compressing<'_>) -> Result<(), Error> {
        let mut streams = self.streams(windows.clone())?;
        streams.cached = self.cached;
        let key = self.share_dense(&windows, &mut streams, self.folder.shape().dense_calibration);
        self.quantize_at_once(&mut streams, compressing)?;
        self.cached = streams.cached;
        let mut next = self.folder.create(self.next + 1)?;
        self.keep_compressed(&streams, &mut next)?;
        self.keep_dense(&streams, &mut next)?;
        self.tell_dense(key, streams);
        self.states = next.finish()?;
        Ok(())
    }

    fn quantize_at_once(
        &mut self,
        streams: &mut Streams,
        compressing: &mut Compressing<'_>,
    ) -> Result<(), Error> {
        let sharing = self.sharing;
        pass_layer(&mut self.model, &self.compute, streams, &mut |model, roles, inputs| {
            let mut sums = compressing.sums(roles, inputs.calibration_rows);
            compressing.clock.time(Work::Statistics, || sums.add_all(&inputs, sharing));
            let stored = compressing.quantize(roles, sums)?;
            Ok::<_, Error>(stored.into_iter().filter_map(|tensor| model.replace(tensor)).collect())
        })
    }

    /// Has the dense model's stream take the place of one that ran through the layer beside another run, or note what others
    /// need; by what it is to be told of afterwards, if it is. What its matrices multiply is noted where `with_inputs` asks for it.
    fn share_dense(
        &self,
        windows: &Range<usize>,
        streams: &mut Streams,
        with_inputs: bool,
    ) -> Option<DenseKey> {
        let sharing = self.sharing.filter(Sharing::has_dense_twin)?;
        let (source_layer, _) = self.layers[self.next];
        let stage = match streams.dense.take()? {
            Dense::Runs(stage) => stage,
            other => {
                streams.dense = Some(other);
                return None;
            }
        };
        let states = stage.hidden();
        let key = (shared::bits(states, states.rows()), source_layer, windows.clone(), with_inputs);
        if let Some(ran) = sharing.dense(&key) {
            streams.dense = Some(Dense::Ran(ran));
            return None;
        }
        streams.dense = Some(if with_inputs { Dense::Noted(stage, Vec::new()) } else { Dense::Runs(stage) });
        Some(key)
    }

    /// Tells other runs what the dense model's stream made of the layer.
    fn tell_dense(&self, key: Option<DenseKey>, streams: Streams) {
        let (Some(sharing), Some(key)) = (self.sharing, key) else { return };
        match streams.dense {
            Some(Dense::Runs(stage)) => {
                sharing.keep_dense(key, DensePass { inputs: Vec::new(), hidden: stage.hidden().clone() });
            }
            Some(Dense::Noted(stage, inputs)) => {
                sharing.keep_dense(key, DensePass { inputs, hidden: stage.hidden().clone() });
            }
            Some(Dense::Ran(_)) | None => {}
        }
    }

    /// Batch after batch: a first pass with the layer as it is collects all statistics, a second one runs it quantized.
    fn run_in_batches(
        &mut self,
        batches: &[Range<usize>],
        compressing: &mut Compressing<'_>,
    ) -> Result<(), Error> {
        let mut next = self.folder.create(self.next + 1)?;
        let replaced = self.quantize_in_batches(batches, compressing, Some(&mut next))?;
        self.run_on(batches, replaced, next, |_, _| ())
    }

    /// Statistics of all batches, then the codes of all matrices; what they replaced in the model. The dense model's states go to
    /// `next`, if there is one.
    fn quantize_in_batches(
        &mut self,
        batches: &[Range<usize>],
        compressing: &mut Compressing<'_>,
        mut next: Option<&mut StatesWriter>,
    ) -> Result<Vec<Tensor>, Error> {
        let mut collected: Vec<(Vec<Role>, Sums)> = Vec::new();
        for windows in batches {
            let mut streams = self.streams(windows.clone())?;
            // What many batches multiply would not fit in memory: only a stream of held-out windows is shared.
            let key = match self.folder.shape().dense_calibration {
                true => None,
                false => self.share_dense(windows, &mut streams, false),
            };
            let material = self.material;
            pass_layer(&mut self.model, &self.compute, &mut streams, &mut |model, roles, inputs| {
                let place = collected.iter().position(|(other, _)| other == roles).unwrap_or_else(|| {
                    let expected = expected_inputs(material, model.config(), batches.len(), roles, &inputs);
                    collected.push((roles.to_vec(), compressing.sums(roles, expected)));
                    collected.len() - 1
                });
                compressing.clock.time(Work::Statistics, || collected[place].1.add(&inputs));
                Ok::<_, Error>(Vec::new())
            })?;
            if let Some(next) = &mut next {
                self.keep_dense(&streams, next)?;
            }
            self.tell_dense(key, streams);
        }
        let mut replaced: Vec<Tensor> = Vec::new();
        for (roles, sums) in collected {
            let stored = compressing.quantize(&roles, sums)?;
            replaced.extend(stored.into_iter().filter_map(|tensor| self.model.replace(tensor)));
        }
        Ok(replaced)
    }

    /// Runs the layer as it has become and keeps what it puts out; `dense` is what it was, put back afterwards. `see` is shown what
    /// matrices multiply.
    fn run_on(
        &mut self,
        batches: &[Range<usize>],
        dense: Vec<Tensor>,
        mut next: StatesWriter,
        mut see: impl FnMut(&[Role], &Inputs<'_>),
    ) -> Result<(), Error> {
        for windows in batches {
            let cached = self.cached;
            let mut streams = Streams { dense: None, cached, ..self.streams(windows.clone())? };
            let run_on = &mut |_: &mut Model, roles: &[Role], inputs: Inputs<'_>| {
                see(roles, &inputs);
                Ok::<_, Error>(Vec::new())
            };
            pass_layer(&mut self.model, &self.compute, &mut streams, run_on)?;
            self.cached = streams.cached;
            self.keep_compressed(&streams, &mut next)?;
        }
        for tensor in dense {
            self.model.replace(tensor);
        }
        self.states = next.finish()?;
        Ok(())
    }

    /// The texts of `windows`, before the next layer.
    fn streams(&self, windows: Range<usize>) -> Result<Streams, Error> {
        let (source_layer, _) = self.layers[self.next];
        let all = &self.material.calibration.windows;
        let columns = self.model.config().hidden_size;
        let stand = |windows: Range<usize>, hidden: Vec<f32>| {
            let texts: Vec<&[u32]> = windows.map(|at| all.get(at)).collect();
            let mut stage = self.model.enter(&self.compute, &texts)?;
            stage.stand_before(source_layer, Matrix::from_vec(hidden.len() / columns, columns, hidden));
            Ok::<_, Error>(stage)
        };
        let (rows, held_out) = self.material.rows(&windows);
        let read = |section, rows: &Range<usize>| self.states.read(section, rows.clone()).into_vec();
        let mut hidden = read(Section::Calibration, &rows);
        hidden.append(&mut read(Section::HeldOut, &held_out));
        let (mut dense_hidden, dense_windows) = match self.folder.shape().dense_calibration {
            true => (read(Section::DenseCalibration, &rows), windows.clone()),
            false => (Vec::new(), self.material.held_out_of(&windows)),
        };
        dense_hidden.append(&mut read(Section::DenseHeldOut, &held_out));
        let dense = (!dense_windows.is_empty()).then(|| stand(dense_windows, dense_hidden)).transpose()?;
        let dense = dense.map(Dense::Runs);
        let compressed = stand(windows, hidden)?;
        Ok(Streams { compressed, dense, calibration_rows: rows.len(), cached: None })
    }

    fn keep_compressed(&self, streams: &Streams, next: &mut StatesWriter) -> Result<(), Error> {
        let hidden = streams.compressed.hidden();
        let (calibration, held_out) = hidden.as_slice().split_at(streams.calibration_rows * hidden.cols());
        next.add(Section::Calibration, calibration)?;
        next.add(Section::HeldOut, held_out)
    }

    fn keep_dense(&self, streams: &Streams, next: &mut StatesWriter) -> Result<(), Error> {
        let Some(dense) = &streams.dense else { return Ok(()) };
        let hidden = dense.hidden();
        let rows = if self.folder.shape().dense_calibration { streams.calibration_rows } else { 0 };
        let (calibration, held_out) = hidden.as_slice().split_at(rows * hidden.cols());
        next.add(Section::DenseCalibration, calibration)?;
        next.add(Section::DenseHeldOut, held_out)
    }
}

/// How many inputs matrices are going to see in all batches: those at hand if there is one, else a fair share of tokens for
/// an expert.
fn expected_inputs(
    material: &Material,
    config: &ModelConfig,
    batches: usize,
    roles: &[Role],
    inputs: &Inputs<'_>,
) -> usize {
    let tokens = material.windows() * material.length();
    match (&config.experts, roles.iter().any(|role| role.expert.is_some())) {
        _ if batches == 1 => inputs.calibration_rows,
        (Some(experts), true) => tokens * experts.used / experts.count.max(1),
        _ => tokens,
    }
}

/// Of each layer of the output, its number in the source, and its tensors' places in the plan by their roles there.
fn layers(checkpoint: &Checkpoint, plan: &Plan) -> Result<Vec<LayerTensors>, Error> {
    let mut layers: Vec<LayerTensors> = Vec::new();
    for (index, planned) in plan.tensors.iter().enumerate() {
        let source = checkpoint.tensor(&planned.source)?.info.role;
        if let (Some(layer), Some(source_layer)) = (planned.role.layer, source.layer) {
            if layers.len() <= layer {
                layers.resize_with(layer + 1, || (source_layer, HashMap::new()));
            }
            layers[layer].0 = source_layer;
            layers[layer].1.insert(source, index);
        }
    }
    Ok(layers)
}

/// The states that enter the first layer: embeddings, of the model that it becomes as they will be stored.
fn enter(
    checkpoint: &Checkpoint,
    plan: &Plan,
    model: &mut Model,
    compute: &Compute,
    material: &Material,
    folder: &StatesFolder,
) -> Result<States, Error> {
    let mut states = folder.create(0)?;
    let windows = &material.calibration.windows;
    let texts: Vec<&[u32]> = windows.iter().collect();
    let rows_of_calibration = material.windows() * material.length() * model.config().hidden_size;
    let mut hidden = model.enter(compute, &texts)?.hidden().clone();
    if let Some(turn) = &plan.turn {
        turn.turn(hidden.as_mut_slice());
    }
    let (calibration, held_out) = hidden.as_slice().split_at(rows_of_calibration);
    if folder.shape().dense_calibration {
        states.add(Section::DenseCalibration, calibration)?;
    }
    states.add(Section::DenseHeldOut, held_out)?;
    let embedding = plan.tensors.iter().find(|planned| planned.role.kind == RoleKind::TokenEmbedding);
    let stored = match embedding {
        Some(planned) if planned.to != planned.from || planned.reshaped => {
            let source = Source::new(checkpoint, plan);
            let opened = source.open(compute.isa(), planned)?;
            let run = TensorRun::new(&source, planned, &opened, compute.isa())?;
            let rows = tensor::encode_alone(&run, planned)?;
            Some(tensor::as_stored(compute.isa(), &opened.tensor, planned, &run, &rows))
        }
        _ => None,
    };
    let dense = stored.and_then(|tensor| model.replace(tensor));
    let stage = model.enter(compute, &texts)?;
    if let Some(dense) = dense {
        model.replace(dense);
    }
    let (calibration, held_out) = stage.hidden().as_slice().split_at(rows_of_calibration);
    states.add(Section::Calibration, calibration)?;
    states.add(Section::HeldOut, held_out)?;
    states.finish()
}

/// What runs of several plans over the same tokens hold of a layer beside the largest of them: the rows of each, and what they
/// share.
pub(crate) fn shared_peak_bytes(config: &ModelConfig, plans: &[&Plan]) -> u64 {
    let of_layers = |plan: &Plan| {
        let mut layers: HashMap<usize, u64> = HashMap::new();
        for planned in &plan.tensors {
            *layers.entry(planned.role.layer.unwrap_or_default()).or_default() += planned.bytes_after;
        }
        2 * layers.values().max().copied().unwrap_or(0)
    };
    let rows: u64 = plans.iter().map(|plan| of_layers(plan)).sum();
    let wanting = |wants: fn(&Method) -> bool| {
        let has = |plan: &&&Plan| plan.tensors.iter().any(|planned| wants(&planned.method));
        plans.iter().filter(has).count()
    };
    // Hessians of the inputs of q/k/v, of the attention's output, of gate/up and of down.
    let (q, width) = (config.n_heads * config.head_dim, config.intermediate_size);
    let squares = 2 * config.hidden_size * config.hidden_size + q * q + width * width;
    let squares = if wanting(|method| method.factors()) > 1 { 4 * squares as u64 } else { 0 };
    // What the dense model's matrices multiply, and what it puts out.
    let tokens = plans.iter().filter_map(|plan| plan.material.as_ref());
    let tokens = tokens.map(|material| material.calibration.windows.tokens.len()).max().unwrap_or(0);
    let noted = tokens * (3 * config.hidden_size + q + width);
    let noted = if wanting(|method| method.wants_dense_inputs()) > 1 { 4 * noted as u64 } else { 0 };
    rows + squares + noted
}

/// What lies freed between buffers that are in use: glibc gives back what is larger than this, and keeps what is not.
const KEPT_BY_ALLOCATOR: u64 = 32 << 20;

/// Peak memory of a run through the layers, about: activations, the statistics of the widest inputs, and the rows of a layer
/// before they are written, beside what the program takes by now; where steps reshape a layer, its tensors in f32 too. What
/// measuring the output takes, if that is more.
pub(crate) fn peak_bytes(
    material: &Material,
    config: &ModelConfig,
    tensors: &[PlannedTensor],
    reshapes: bool,
    output_bytes: u64,
) -> u64 {
    let copied = material.copied_rows(config) as u64;
    let statistics = |planned: &PlannedTensor| {
        let cols = planned.in_features() as u64;
        let crosses = u64::from(planned.method.wants_dense_inputs());
        let squares = match planned.method {
            Method::Compensated(_) => 2,
            method => u64::from(method.factors()),
        } + crosses;
        let (rows, _) = rows_and_columns(&planned.shape);
        let chunk = (rows as u64 * cols).min(tensor::CHUNK_WEIGHTS as u64);
        let copies = if planned.is_looked_at() { (1 + crosses) * copied * cols } else { 0 };
        // Inputs are summed first; then weights as they are, as they are pushed, and transposed.
        4 * (squares * cols * cols + (3 * chunk).max(copies))
    };
    let in_layers = || tensors.iter().filter(|planned| planned.role.layer.is_some());
    let mut layers: HashMap<usize, u64> = HashMap::new();
    let mut floats: HashMap<usize, u64> = HashMap::new();
    for planned in tensors {
        if let Some(layer) = planned.role.layer {
            *layers.entry(layer).or_default() += planned.bytes_after;
            *floats.entry(layer).or_default() += 4 * planned.source_weights();
        }
    }
    // One more while it is scaled.
    let largest = in_layers().map(|planned| 4 * planned.source_weights()).max().unwrap_or(0);
    let reshaped = if reshapes { floats.values().max().copied().unwrap_or(0) + largest } else { 0 };
    let several = material.batches(config).len() > 1;
    let alone: u64 = in_layers().map(statistics).max().unwrap_or(0);
    // Batches sum all statistics of a layer side by side.
    let beside: u64 = match several {
        true => {
            let of_layer = tensors.iter().filter(|planned| planned.role.layer == Some(0));
            let inputs = [RoleKind::AttnQ, RoleKind::AttnOutput, RoleKind::FfnUp, RoleKind::FfnDown];
            of_layer.filter(|planned| inputs.contains(&planned.role.kind)).map(statistics).sum()
        }
        false => 0,
    };
    // The rows that wait, and what the layer runs on with.
    let rows = 2 * layers.values().max().copied().unwrap_or(0);
    let program = bitmill_bench::resident_bytes().unwrap_or(0);
    let learning = learning::peak_bytes(material, config, tensors);
    let dense_calibration = tensors.iter().any(|planned| planned.method.wants_dense_states());
    let activations = material.activation_bytes(config, dense_calibration);
    // The rows of the embedding that tokens look up, and all of it where the layers run on with another.
    let embedding = tensors.iter().find(|planned| planned.role.kind == RoleKind::TokenEmbedding);
    let tokens = material.calibration.windows.tokens.len() as u64;
    let states = 4 * tokens * config.hidden_size as u64;
    let looked_up = embedding.map_or(0, |planned| {
        planned.bytes_before.min(tokens * planned.bytes_before / planned.shape[0].max(1) as u64)
    });
    let changed = embedding.filter(|planned| planned.to != planned.from || planned.reshaped);
    let entering = looked_up + 2 * states + changed.map_or(0, |planned| 3 * planned.bytes_after);
    let passing = looked_up + activations + alone.max(beside).max(learning) + rows + reshaped;
    let running = passing.max(entering).max(quality::peak_bytes(material, config, tensors, output_bytes));
    program + running + KEPT_BY_ALLOCATOR
}
