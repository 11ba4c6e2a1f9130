//! Runs a plan: tensor by tensor, rows at a time, written as they are made, read back before the output is put in place.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bitmill_checkpoint::{Checkpoint, Finished, Overwrite, Target, TensorInfo, Written};
use bitmill_prune::mask_bytes;
use bitmill_tensor::{Encoding, ScaleType};
use serde::{Deserialize, Serialize};

use crate::calibrated::{Calibrated, HeldOut, LayerSeconds, MethodRecord, OutlierRecord, Shared, Sharing};
use crate::card::{CARD, card};
use crate::encode::rows_per_task;
use crate::error::Error;
use crate::identity::identity;
use crate::journal;
use crate::layout::{Output, RECORD, carried_files};
use crate::padding;
use crate::plan::{Plan, PlannedTensor, rows_and_columns};
use crate::progress::Progress;
use crate::read_back::read_back;
use crate::recipe::Format;
use crate::stream::{Job, WAITING, stream};
use crate::tensor_run::rows_per_chunk;
use crate::turning::Turn;

/// What happened to one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Canonical name.
    pub name: String,
    /// Encoding before.
    pub from: String,
    /// Encoding after.
    pub to: String,
    /// Bytes after.
    pub bytes: u64,
    /// `‖w − ŵ‖ / ‖w‖`; 0 where nothing was rounded.
    pub relative_error: f64,
    /// Name in the source, where layers before it were removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Shape in the source, where zeros make it larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_shape: Option<Vec<usize>>,
    /// Values that are zero as stored, where weights were removed; none that pad.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zeros: Option<u64>,
    /// xxh3 of the source's values, widened to f32.
    pub source_hash: String,
    /// xxh3 of the stored bytes; of a tensor in several parts (codes, scales, zero points; kept values, bits, row offsets)
    /// xxh3 of their hashes. Checked against the output.
    pub stored_hash: String,
    /// How its codes were chosen, where what it multiplies decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<MethodRecord>,
    /// What the keys or values that it makes are divided by in a cache of 8-bit floats, to six digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_scale: Option<f64>,
    /// What a runtime divides its inputs by before it rounds them to 8-bit floats, to six digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_scale: Option<f64>,
    /// Why it is stored otherwise than its step says, if it has outliers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outliers: Option<OutlierRecord>,
    /// Why this encoding, where the recipe alone does not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What a run did.
#[derive(Debug, Clone)]
pub struct CompressRecord {
    /// What was written, by file.
    pub written: Written,
    /// The document that lies with the output, `bitmill.compress/1`.
    pub document: serde_json::Value,
    /// Seconds of wall time.
    pub seconds: f64,
    /// Tensors that an interrupted run had finished.
    pub resumed: usize,
    /// Statistics, and layers of the dense model, that it took over from other recipes of its pass.
    pub taken_over: usize,
    /// What the layers of a calibrated run took, of those that this one ran.
    pub layer_seconds: Option<LayerSeconds>,
}

/// Writes what `plan` says of `checkpoint` to `path`.
///
/// Streams: memory does not grow with the model. The output lies beside its target until every tensor has been
/// read back and found to be what was decided; then it is renamed. A record goes with it, `bitmill.json` in a folder,
/// `OUT.bitmill.json` beside a GGUF file; and for people a model card, `bitmill.md` and `OUT.bitmill.md`.
///
/// What a run that was killed, stopped or out of space had finished is kept; a run of the same plan to the same `path`
/// goes on after it, to the same bytes.
///
/// # Errors
/// If the target exists and `overwrite` refuses, a weight is not finite, the disk fails, or an interrupted run of
/// another plan left its output there.
pub fn compress(
    checkpoint: &Checkpoint,
    plan: &Plan,
    path: &Path,
    overwrite: Overwrite,
    progress: &dyn Progress,
) -> Result<CompressRecord, Error> {
    let mut records = compress_all(checkpoint, &[(plan, path)], overwrite, progress)?;
    Ok(records.pop().expect("one output"))
}

/// Writes what each of `outputs` says of `checkpoint`, as [`compress`] does and to the same bytes, in one pass through the layers:
/// calibrated recipes over the same tokens run the dense model once beside them, and sum the statistics of inputs that are the
/// same once. Of several outputs those that are there already, of the same plan, whole and newer than the source, are left as they are.
///
/// # Errors
/// As [`compress`]; what the others had finished is kept.
pub fn compress_all(
    checkpoint: &Checkpoint,
    outputs: &[(&Plan, &Path)],
    overwrite: Overwrite,
    progress: &dyn Progress,
) -> Result<Vec<CompressRecord>, Error> {
    let began = Instant::now();
    let is_alone = outputs.len() == 1;
    let mut places: Vec<Place<'_>> = Vec::with_capacity(outputs.len());
    for &(plan, path) in outputs {
        let there =
            if is_alone || overwrite == Overwrite::Force { None } else { finished(checkpoint, plan, path) };
        places.push(match there {
            Some(record) => Place::There(Box::new(record)),
            None => Place::begin(checkpoint, plan, path, overwrite, began)?,
        });
    }
    let shared = Shared::default();
    let mut begun: Vec<&mut Begun<'_>> = places.iter_mut().filter_map(Place::begun).collect();
    if let Some(first) = begun.first() {
        let name = if is_alone { first.plan.recipe.name.clone() } else { format!("{} recipes", begun.len()) };
        progress.begin(&format!("{name}: compressing"));
    }
    let mut calibrated = Vec::with_capacity(begun.len());
    for (run, begun) in begun.iter().enumerate() {
        let sharing = (!is_alone).then_some(Sharing { shared: &shared, run });
        let (partial, done) = (begun.output.partial(), begun.finished.len());
        match Calibrated::begin(checkpoint, begun.plan, partial, done, sharing) {
            Ok(run) => calibrated.push(run),
            Err(error) => {
                begun.output.keep(error.may_go_on());
                return Err(error);
            }
        }
    }
    let jobs = begun.iter_mut().zip(&mut calibrated).map(|(begun, calibrated)| {
        let Begun { plan, path, output, finished, .. } = &mut **begun;
        let finished = std::mem::take(finished);
        Job { plan, path, output, finished, calibrated: calibrated.as_mut() }
    });
    match stream(checkpoint, jobs.collect(), progress) {
        Ok(records) => {
            for (begun, records) in begun.iter_mut().zip(records) {
                begun.finished = records;
                begun.output.keep(true);
            }
        }
        Err((failed, error)) => {
            // What would fail again the same way is not worth keeping.
            for (run, begun) in begun.iter().enumerate() {
                begun.output.keep(run != failed || error.may_go_on());
            }
            return Err(error);
        }
    }
    drop(begun);
    let mut calibrated = calibrated.into_iter();
    let mut records = Vec::with_capacity(places.len());
    for place in places {
        records.push(match place {
            Place::There(record) => *record,
            Place::Begun(begun) => {
                let mut calibrated = calibrated.next().flatten();
                begun.end(calibrated.as_mut(), progress, began)?
            }
        });
    }
    progress.end();
    Ok(records)
}

/// One of the outputs of a run.
enum Place<'a> {
    /// It is there.
    There(Box<CompressRecord>),
    Begun(Box<Begun<'a>>),
}

/// An output that lies beside its target.
struct Begun<'a> {
    plan: &'a Plan,
    path: &'a Path,
    output: Output<'a>,
    /// Of the tensors that are finished.
    finished: Vec<TensorRecord>,
    /// How many an interrupted run had finished.
    resumed: usize,
}

impl<'a> Place<'a> {
    /// Goes on with what an interrupted run left, if it did.
    fn begin(
        checkpoint: &Checkpoint,
        plan: &'a Plan,
        path: &'a Path,
        overwrite: Overwrite,
        began: Instant,
    ) -> Result<Self, Error> {
        refuse_sources(checkpoint, plan, path)?;
        let target = Target { path: path.into(), overwrite };
        let identity = identity(checkpoint, plan);
        if let Some(Finished { records, mut written }) =
            bitmill_checkpoint::finish_interrupted(&target, &identity)?
        {
            let records: Vec<TensorRecord> = journal::records(plan, &records).collect();
            written.files.retain(|(file, _)| ![RECORD, CARD].map(|name| beside(path, name)).contains(file));
            written.bytes = written.files.iter().map(|(_, bytes)| bytes).sum();
            let document = placed_document(path).unwrap_or_else(|| document(plan, &records, None));
            let resumed = records.len();
            let seconds = began.elapsed().as_secs_f64();
            let record =
                CompressRecord { written, document, seconds, resumed, taken_over: 0, layer_seconds: None };
            return Ok(Self::There(Box::new(record)));
        }
        let names = [RECORD, CARD].map(|name| file_name(&beside(path, name))).to_vec();
        let output = plan.layout.resume(&target, names, identity)?;
        let finished: Vec<TensorRecord> = journal::records(plan, output.finished()).collect();
        let resumed = finished.len();
        Ok(Self::Begun(Box::new(Begun { plan, path, output, finished, resumed })))
    }

    fn begun(&mut self) -> Option<&mut Begun<'a>> {
        match self {
            Self::Begun(begun) => Some(&mut **begun),
            Self::There(_) => None,
        }
    }
}

impl Begun<'_> {
    /// Reads everything back, measures it and puts it in its place.
    fn end(
        self,
        calibrated: Option<&mut Calibrated<'_>>,
        progress: &dyn Progress,
        began: Instant,
    ) -> Result<CompressRecord, Error> {
        let taken_over = calibrated.as_ref().map_or(0, |calibrated| calibrated.taken_over());
        let layer_seconds = calibrated.as_ref().and_then(|calibrated| calibrated.layer_seconds());
        let outcome = self.look_at(calibrated, progress);
        self.output.keep(outcome.as_ref().err().is_none_or(Error::may_go_on));
        let document = outcome?;
        let written = self.output.finish()?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(CompressRecord { written, document, seconds, resumed: self.resumed, taken_over, layer_seconds })
    }

    /// The document that goes with the output.
    fn look_at(
        &self,
        calibrated: Option<&mut Calibrated<'_>>,
        progress: &dyn Progress,
    ) -> Result<serde_json::Value, Error> {
        let Self { plan, path, output, finished: records, .. } = self;
        progress.begin(&format!("{}: reading back", plan.recipe.name));
        read_back(&output.staged(), path, plan, records, progress)?;
        let held_out = match calibrated {
            Some(calibrated) => {
                progress.begin(&format!("{}: measuring", plan.recipe.name));
                calibrated.measure(&output.staged())?
            }
            None => None,
        };
        let document = document(plan, records, held_out.as_ref());
        output.add_beside(&file_name(&beside(path, RECORD)), RECORD, format!("{document:#}\n").as_bytes())?;
        let card = card(plan, records, held_out.as_ref());
        output.add_beside(&file_name(&beside(path, CARD)), CARD, card.as_bytes())?;
        Ok(document)
    }
}

/// What lies at `path`, if it is the whole output of `plan`: its record says all that the plan does, and was written after the
/// source's files last changed.
fn finished(checkpoint: &Checkpoint, plan: &Plan, path: &Path) -> Option<CompressRecord> {
    let document = placed_document(path)?;
    let changed = |file: &Path| file.metadata().and_then(|there| there.modified()).ok();
    let written = changed(&record_of(path))?;
    if checkpoint.weight_files().iter().any(|file| changed(file).is_none_or(|changed| changed > written)) {
        return None;
    }
    let planned = self::document(plan, &[], None);
    // Fractions follow from numbers of bytes, and a parser may read them as their neighbours.
    let says =
        |key: &String| key == "tensors" || planned[key].is_f64() || document.get(key) == planned.get(key);
    let tensors = document["tensors"].as_array()?;
    let is_same = planned.as_object()?.keys().all(says)
        && tensors.len() == plan.tensors.len()
        && tensors.iter().zip(&plan.tensors).all(|(tensor, planned)| tensor["name"] == planned.name.as_str());
    let files = match path.is_dir() {
        true => std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        false => plan
            .layout
            .gguf_files(&file_name(path))
            .iter()
            .map(|(name, _)| path.with_file_name(name))
            .collect::<Vec<_>>(),
    };
    let files: Option<Vec<(PathBuf, u64)>> = files
        .into_iter()
        .filter(|file| ![RECORD, CARD].map(|name| path.join(name)).contains(file))
        .map(|file| Some((file.clone(), file.metadata().ok()?.len())))
        .collect();
    let files = files?;
    let bytes = files.iter().map(|(_, bytes)| bytes).sum();
    let written = Written { path: path.to_owned(), files, bytes };
    let resumed = plan.tensors.len();
    (is_same && bytes == plan.output_bytes).then_some(CompressRecord {
        written,
        document,
        seconds: 0.0,
        resumed,
        taken_over: 0,
        layer_seconds: None,
    })
}

/// Where what goes with a GGUF file lies, its record say: `model.gguf` → `model.gguf.bitmill.json`.
pub(crate) fn beside(path: &Path, name: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".");
    beside.push(name);
    PathBuf::from(beside)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Refuses a run whose output would replace what it is made from: a file of the source, or the folder that one lies in.
fn refuse_sources(checkpoint: &Checkpoint, plan: &Plan, path: &Path) -> Result<(), Error> {
    let real = |path: &Path| path.canonicalize().ok();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut outputs = vec![path.to_owned(), beside(path, RECORD), beside(path, CARD)];
    outputs.extend(plan.layout.gguf_files(&name).iter().map(|(name, _)| path.with_file_name(name)));
    let outputs: Vec<PathBuf> = outputs.iter().filter_map(|output| real(output)).collect();
    let mut sources = checkpoint.weight_files();
    sources.extend(checkpoint.path().map(Path::to_owned));
    let is_source = |source: &PathBuf| {
        real(source).is_some_and(|source| outputs.iter().any(|output| source.starts_with(output)))
    };
    match sources.iter().any(is_source) {
        true => Err(Error::OutputIsSource { path: path.into() }),
        false => Ok(()),
    }
}

/// The document that an interrupted run had put beside or into its output.
fn placed_document(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&std::fs::read(record_of(path)).ok()?).ok()
}

/// Where the record of what lies at `path` is.
fn record_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(RECORD) } else { beside(path, RECORD) }
}

fn document(plan: &Plan, records: &[TensorRecord], held_out: Option<&HeldOut>) -> serde_json::Value {
    let mut document = plan.to_json();
    document["schema"] = "bitmill.compress/1".into();
    if let Some(fields) = document.as_object_mut() {
        // It follows from the number of threads, and a record must not.
        fields.remove("peak_bytes");
    }
    // Records hold strings and finite numbers: they always have a JSON form.
    document["tensors"] = serde_json::to_value(records).unwrap_or_default();
    let beyond: Vec<&str> = beyond_f16(records).map(|(record, _)| record.name.as_str()).collect();
    if !beyond.is_empty() {
        document["inputs_beyond_f16"] = beyond.into();
    }
    if let Some(held_out) = held_out {
        document["held_out"] = serde_json::to_value(held_out).unwrap_or_default();
    }
    document
}

/// Tensors whose inputs, on calibration tokens, reach beyond what f16 holds, and how far.
pub(crate) fn beyond_f16(records: &[TensorRecord]) -> impl Iterator<Item = (&TensorRecord, f64)> {
    const LARGEST: f64 = 65504.0;
    records.iter().filter_map(|record| {
        let largest = record.method.as_ref()?.largest_input.filter(|largest| *largest > LARGEST)?;
        Some((record, largest))
    })
}

/// Peak memory of a run with these tensors: the pages of the largest chunk of a source, the bytes of chunks that are
/// encoded, wait, and are written, what threads work in, and what the program takes by now, the model's vocabulary and
/// whatever else planning read included; or what planning took, if that was more.
pub(crate) fn peak_bytes(tensors: &[PlannedTensor], format: Format, turn: Option<&Turn>) -> u64 {
    // Where the system does not tell.
    const PROGRAM: u64 = 24 << 20;
    let threads = rayon::current_num_threads();
    let chunk = |tensor: &PlannedTensor| {
        let (rows, cols) = rows_and_columns(&tensor.shape);
        let chunk_rows = rows_per_chunk(cols).min(rows);
        let chunks = rows.div_ceil(chunk_rows.max(1)).min(WAITING + 2);
        // A sparse encoding counts the values of the whole matrix; of a chunk there are no more than weights.
        let after = match tensor.to {
            Encoding::Sparse { float, .. } => Encoding::Float(float),
            to => to,
        };
        let bytes =
            tensor.from.matrix_bytes(chunk_rows, cols) + chunks * after.matrix_bytes(chunk_rows, cols);
        // Zero points are packed along the rows, and row offsets follow from them: both are held until the tensor ends.
        let held = match tensor.to {
            // What is turned into columns is held whole, and once more as it is turned.
            Encoding::Grouped(_) if format.is_by_column() => 3 * after.matrix_bytes(rows, cols),
            Encoding::Grouped(grouped) => rows * grouped.groups_per_row(cols),
            Encoding::Sparse { .. } => 8 * rows,
            // The largest magnitude of each block, and its code.
            Encoding::Scaled(layout) if layout.scale == ScaleType::Nested => {
                let (lines, per_line) = layout.extent.scales(rows, cols);
                5 * lines * per_line
            }
            _ => 0,
        };
        // The source's values, those decided, where weights are removed what is left with its mask, and the padded rows.
        let task_rows = rows_per_task(cols).min(rows);
        let copies = 2 + usize::from(tensor.removal.is_some()) + usize::from(tensor.is_padded());
        let mask = if tensor.removal.is_some() { chunk_rows * mask_bytes(cols) } else { 0 };
        // What is turned whole is read whole.
        let turned = match turn.is_some_and(|turn| turn.is_whole(tensor.role.kind)) {
            true => 4 * rows * cols + tensor.from.matrix_bytes(rows - chunk_rows, cols),
            false => 0,
        };
        (threads * copies * 4 * task_rows * cols + bytes + held + mask + turned) as u64
    };
    let program = bitmill_bench::resident_bytes().unwrap_or(PROGRAM);
    let run = program + tensors.iter().map(chunk).max().unwrap_or(0);
    run.max(bitmill_bench::peak_bytes().unwrap_or(0))
}

/// Bytes of everything that makes up a checkpoint on disk: weights, index, config, tokenizer and what else lies there.
pub fn size_on_disk(checkpoint: &Checkpoint) -> u64 {
    checkpoint.stored_bytes() + carried_files(checkpoint).map(|(_, bytes)| bytes.len() as u64).sum::<u64>()
}

/// Weights that a token meets: all but those of the experts that it does not go through.
pub fn active_weights(checkpoint: &Checkpoint) -> u64 {
    let in_experts: u64 =
        checkpoint.tensors().iter().filter(|info| info.role.expert.is_some()).map(weights_of).sum();
    let Some(experts) = &checkpoint.config().experts else { return n_weights(checkpoint) };
    let used = u128::from(in_experts) * experts.used as u128 / experts.count as u128;
    n_weights(checkpoint) - in_experts + used as u64
}

fn weights_of(info: &TensorInfo) -> u64 {
    info.shape.iter().map(|&n| n as u64).product()
}

/// Weights of a model that figures a weight are counted against: none that pad it.
pub fn own_weights(checkpoint: &Checkpoint) -> u64 {
    n_weights(checkpoint).saturating_sub(padding::padded_weights(checkpoint))
}

/// Weights of a model: every element of every tensor, a tied head counted once.
pub fn n_weights(checkpoint: &Checkpoint) -> u64 {
    let written = checkpoint.tensors().iter().filter(|info| crate::plan::is_written(checkpoint, info));
    written.map(weights_of).sum()
}
