//! Runs a plan: tensor by tensor, rows at a time, written as they are made, read back before the output is put in place.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bitmill_checkpoint::{
    Checkpoint, Overwrite, Pairing, RoleKind, Target, Tensor, TensorInfo, Written, halves_row,
};
use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_prune::{Sparsity, Threshold, mask_bytes};
use bitmill_quant::{
    BlockEncoder, Clip, Importance, pack_zero_points, quantize_blocks, quantize_rows_clipped,
};
use bitmill_tensor::{Encoding, FloatType, Grouped, WeightData, WeightView};
use rayon::prelude::*;
use serde::Serialize;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::Error;
use crate::importance::is_weighed;
use crate::layout::{Output, RECORD, carried_files};
use crate::plan::{Plan, PlannedTensor, Treatment, rows_and_columns};
use crate::progress::Progress;
use crate::pruned::Mask;
use crate::pruning::Removal;
use crate::recipe::Format;

/// Weights that are widened to f32 at once: two such buffers and their codes are all that a run holds.
const CHUNK_WEIGHTS: usize = 1 << 24;

/// Rows that one task quantizes, in weights: small enough to balance, large enough to be worth a task.
const TASK_WEIGHTS: usize = 1 << 16;

/// What happened to one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Values that are zero as stored, where weights were removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zeros: Option<u64>,
    /// xxh3 of the source's values, widened to f32.
    pub source_hash: String,
    /// xxh3 of the values that the stored codes stand for; checked against the output.
    pub decided_hash: String,
    /// Why this encoding, where the recipe alone does not say.
    #[serde(skip_serializing_if = "String::is_empty")]
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
}

/// Writes what `plan` says of `checkpoint` to `path`.
///
/// Streams: memory does not grow with the model. The output lies beside its target until every packed tensor has been
/// read back and found to be what was decided; then it is renamed. A record goes with it: `bitmill.json` in a folder,
/// `OUT.bitmill.json` beside a GGUF file.
///
/// # Errors
/// If the target exists and `overwrite` refuses, a weight is not finite, or the disk fails; nothing is left behind.
pub fn compress(
    checkpoint: &Checkpoint,
    plan: &Plan,
    path: &Path,
    overwrite: Overwrite,
    progress: &dyn Progress,
) -> Result<CompressRecord, Error> {
    let began = Instant::now();
    refuse_collisions(checkpoint, plan, path, overwrite)?;
    let target = Target { path: path.into(), overwrite };
    let output = plan.layout.create(&target)?;
    let isa = Isa::best();
    let total = plan.tensors.iter().map(PlannedTensor::weights).sum();
    let mut done = 0;
    let mut records = Vec::with_capacity(plan.tensors.len());
    progress.begin(&format!("{}: compressing", plan.recipe.name));
    for (index, planned) in plan.tensors.iter().enumerate() {
        let tensor = checkpoint.tensor(&planned.source)?;
        let mut run = TensorRun::new(checkpoint, plan, planned, &tensor, isa)?;
        run.stream(&output, index, |weights| {
            done += weights;
            progress.at(done, total);
        })?;
        records.push(run.into_record());
        tensor.release();
    }
    let document = document(plan, &records);
    let text = format!("{document:#}\n");
    output.add_record(text.as_bytes())?;
    progress.begin(&format!("{}: reading back", plan.recipe.name));
    read_back(output.staged(), path, plan, &records, isa, progress)?;
    let is_file = matches!(output, Output::Gguf(..));
    let written = output.finish()?;
    if is_file {
        let beside = record_path(path);
        crate::write_file(&beside, text.as_bytes())?;
    }
    progress.end();
    Ok(CompressRecord { written, document, seconds: began.elapsed().as_secs_f64() })
}

/// Where the record of a GGUF file lies: `model.gguf` → `model.gguf.bitmill.json`.
pub(crate) fn record_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(RECORD);
    PathBuf::from(name)
}

/// Refuses a run whose record would have to replace something, or whose output is its own source.
fn refuse_collisions(
    checkpoint: &Checkpoint,
    plan: &Plan,
    path: &Path,
    overwrite: Overwrite,
) -> Result<(), Error> {
    let same = |source: &Path| matches!((source.canonicalize(), path.canonicalize()), (Ok(source), Ok(target)) if source == target);
    if checkpoint.path().is_some_and(same) {
        return Err(Error::OutputIsSource { path: path.into() });
    }
    let record = record_path(path);
    if plan.recipe.format == Format::Gguf
        && (record.is_dir() || (overwrite == Overwrite::Refuse && record.exists()))
    {
        return Err(Error::RecordExists { path: record });
    }
    Ok(())
}

fn document(plan: &Plan, records: &[TensorRecord]) -> serde_json::Value {
    let mut document = plan.to_json();
    document["schema"] = "bitmill.compress/1".into();
    // What was measured is called `peak_bytes` everywhere; this is the plan's guess.
    document["planned_peak_bytes"] = plan.peak_bytes.into();
    if let Some(fields) = document.as_object_mut() {
        fields.remove("peak_bytes");
    }
    // Records hold strings and finite numbers: they always have a JSON form.
    document["tensors"] = serde_json::to_value(records).unwrap_or_default();
    document
}

/// Peak memory of a run with these tensors: the largest chunk as f32 twice (source and decided), its bytes on both
/// sides, and what the program itself takes.
pub(crate) fn peak_bytes(tensors: &[PlannedTensor]) -> u64 {
    const PROGRAM: u64 = 24 << 20;
    let chunk = |tensor: &PlannedTensor| {
        let (rows, cols) = rows_and_columns(&tensor.shape);
        let chunk_rows = rows_per_chunk(cols).min(rows);
        let weights = (chunk_rows * cols) as u64;
        // A sparse encoding counts the values of the whole matrix; of a chunk there are no more than weights.
        let after = match tensor.to {
            Encoding::Sparse { float, .. } => Encoding::Float(float),
            to => to,
        };
        let bytes = tensor.from.matrix_bytes(chunk_rows, cols) + after.matrix_bytes(chunk_rows, cols);
        // Zero points are packed along the rows, and row offsets follow from them: both are held until the tensor ends.
        let held = match tensor.to {
            Encoding::Grouped(grouped) => rows * grouped.groups_per_row(cols),
            Encoding::Sparse { .. } => 8 * rows,
            _ => 0,
        };
        // The source's values, those decided, and, where weights are removed, what is left with its mask.
        let copies = if tensor.removal.is_some() { 3 } else { 2 };
        let mask = if tensor.removal.is_some() { chunk_rows * mask_bytes(cols) } else { 0 };
        copies * 4 * weights + (bytes + held + mask) as u64
    };
    PROGRAM + tensors.iter().map(chunk).max().unwrap_or(0)
}

fn rows_per_chunk(cols: usize) -> usize {
    // A multiple of 8 rows, so that chunks of codes end on whole words of zero points too.
    ((CHUNK_WEIGHTS / cols.max(1)) / 8 * 8).max(8)
}

fn rows_per_task(cols: usize) -> usize {
    (TASK_WEIGHTS / cols.max(1)).max(1)
}

/// One tensor on its way from the source to the output.
struct TensorRun<'a> {
    planned: &'a PlannedTensor,
    tensor: &'a Tensor,
    isa: Isa,
    /// Of each column; the order of rows is of no matter to it.
    importance: Option<Vec<f32>>,
    /// Head width, where the output wants the rows of each head in adjacent pairs.
    adjacent_pairs: Option<usize>,
    source: RowHashes,
    decided: RowHashes,
    squared_error: f64,
    squared_norm: f64,
    zeros: u64,
}

impl<'a> TensorRun<'a> {
    fn new(
        checkpoint: &Checkpoint,
        plan: &Plan,
        planned: &'a PlannedTensor,
        tensor: &'a Tensor,
        isa: Isa,
    ) -> Result<Self, Error> {
        let config = checkpoint.config();
        let rotated = matches!(
            planned.role.kind,
            RoleKind::AttnQ | RoleKind::AttnK | RoleKind::AttnQBias | RoleKind::AttnKBias
        );
        let importance = match &plan.weighed {
            Some(weighed) if is_weighed(planned) => weighed.of(checkpoint, &tensor.info)?,
            _ => None,
        };
        let adjacent = rotated
            && plan.recipe.format == Format::Gguf
            && config.family.gguf_pairing() == Pairing::Adjacent;
        Ok(Self {
            planned,
            tensor,
            isa,
            importance,
            adjacent_pairs: adjacent.then_some(config.head_dim),
            source: RowHashes::default(),
            decided: RowHashes::default(),
            squared_error: 0.0,
            squared_norm: 0.0,
            zeros: 0,
        })
    }

    /// Widens, rounds and writes all rows, a chunk at a time; `advance` gets the weights of each.
    fn stream(
        &mut self,
        output: &Output<'_>,
        index: usize,
        mut advance: impl FnMut(u64),
    ) -> Result<(), Error> {
        let (rows, cols) = (self.planned.out_features(), self.planned.in_features());
        let mut weight = Vec::new();
        let mut pruned = Vec::new();
        let mut decided = Vec::new();
        let mask = self.planned.removal.map(|removal| self.mask(removal));
        let mut zero_codes = Vec::new();
        let (mut row_offsets, mut values) = (Vec::new(), 0);
        let mut offsets = [0u64; 2];
        for first in (0..rows).step_by(rows_per_chunk(cols)) {
            let chunk = rows_per_chunk(cols).min(rows - first);
            weight.resize(chunk * cols, 0.0);
            decided.resize(chunk * cols, 0.0);
            self.read_rows(first, &mut weight);
            self.refuse_non_finite(first, &weight)?;
            let (left, bits) = match &mask {
                None => (&weight, Vec::new()),
                Some(mask) => {
                    pruned.clone_from(&weight);
                    let bits = mask
                        .apply(&mut pruned, cols, rows_per_task(cols), |row| self.source_row(first + row))
                        .map_err(|source| Error::Prune { tensor: self.planned.name.clone(), source })?;
                    (&pruned, bits)
                }
            };
            let parts = self.encode(first, left, bits, &mut decided)?;
            for kept in &parts.kept {
                row_offsets.extend((values as i64).to_le_bytes());
                values += kept;
            }
            for (part, bytes) in [parts.codes, parts.scales].iter().enumerate() {
                if !bytes.is_empty() {
                    output.write_at(index, part, offsets[part], bytes)?;
                    offsets[part] += bytes.len() as u64;
                }
            }
            zero_codes.extend_from_slice(&parts.zero_codes);
            self.account(&weight, &decided);
            self.tensor.release();
            advance((chunk * cols) as u64);
        }
        if matches!(self.planned.to, Encoding::Grouped(_) | Encoding::Sparse { .. }) {
            let shape: Vec<u8> = [rows, cols].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
            output.write_at(index, 2, 0, &shape)?;
        }
        match self.planned.to {
            Encoding::Sparse { .. } => output.write_at(index, 3, 0, &row_offsets)?,
            Encoding::Grouped(grouped) if !zero_codes.is_empty() => {
                let packed = pack_zero_points(&zero_codes, rows, grouped.groups_per_row(cols), grouped.bits);
                output.write_at(index, 3, 0, &packed)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// What decides which weights go: for a line through the whole tensor, after passes over it.
    fn mask(&self, removal: Removal) -> Mask {
        match removal {
            Removal::Rows(rule) => Mask::Rows(rule),
            Removal::Tensor(sparsity) => Mask::Tensor(self.threshold(sparsity)),
        }
    }

    fn threshold(&self, sparsity: Sparsity) -> Threshold {
        let (rows, cols) = (self.planned.out_features(), self.planned.in_features());
        let mut weight = Vec::new();
        let selected = Threshold::select(sparsity.removed(self.planned.weights()), |take| {
            for first in (0..rows).step_by(rows_per_chunk(cols)) {
                weight.resize(rows_per_chunk(cols).min(rows - first) * cols, 0.0);
                self.read_rows_of(|row| first + row, &mut weight);
                take(&weight);
                self.tensor.release();
            }
            Ok::<(), Infallible>(())
        });
        let Ok(threshold) = selected;
        threshold
    }

    /// Rows `first..` of the output, widened, in the output's order.
    fn read_rows(&self, first: usize, out: &mut [f32]) {
        self.read_rows_of(|row| self.source_row(first + row), out);
    }

    /// Rows of the checkpoint, widened; `source_row` gives the place of each in canonical order.
    fn read_rows_of(&self, source_row: impl Fn(usize) -> usize + Sync, out: &mut [f32]) {
        let view = self.tensor.view();
        let (isa, cols) = (self.isa, view.in_features());
        if self.planned.shape.len() < 2 {
            // A vector is one row; its elements are what is permuted.
            let mut stored = vec![0.0; cols];
            dequantize_rows(isa, &view, 0, &mut stored);
            for (at, value) in out.iter_mut().enumerate() {
                *value = stored[self.tensor.stored_row(source_row(at))];
            }
            return;
        }
        let tasks = rows_per_task(cols);
        out.par_chunks_mut(tasks * cols).enumerate().for_each(|(task, out)| {
            for (row, out) in out.chunks_exact_mut(cols).enumerate() {
                let source = source_row(task * tasks + row);
                dequantize_rows(isa, &view, self.tensor.stored_row(source), out);
            }
        });
    }

    /// Which row of the checkpoint, in canonical order, becomes row `row` of the output.
    fn source_row(&self, row: usize) -> usize {
        match self.adjacent_pairs {
            Some(head_dim) => halves_row(row, head_dim),
            None => row,
        }
    }

    fn refuse_non_finite(&self, first: usize, weight: &[f32]) -> Result<(), Error> {
        let cols = self.planned.in_features();
        // The smallest index, whatever order the threads look in.
        match weight.par_iter().position_first(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(self.failed(bitmill_quant::Error::NonFinite {
                row: self.source_row(first + at / cols),
                col: at % cols,
                value: weight[at],
            })),
        }
    }

    /// A weight that the new type does not reach: infinity would be stored in its place.
    fn refuse_overflow(
        &self,
        float: FloatType,
        first: usize,
        weight: &[f32],
        decided: &[f32],
    ) -> Result<(), Error> {
        let cols = self.planned.in_features();
        match decided.par_iter().position_first(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => Err(Error::FloatOverflow {
                tensor: self.planned.name.clone(),
                row: self.source_row(first + at / cols),
                col: at % cols,
                value: weight[at],
                float,
            }),
        }
    }

    /// The stored bytes of rows `first..first + rows` of the output, in the output's order. Blocks end with their rows.
    fn copy_rows(&self, first: usize, rows: usize) -> Vec<u8> {
        let view = self.tensor.view();
        let WeightData::Block { block, bytes } = view.data() else {
            unreachable!("only blocks are copied");
        };
        let row_bytes = view.in_features() / block.weights() * block.bytes();
        let stored =
            (first..first + rows).map(|row| self.tensor.stored_row(self.source_row(row)) * row_bytes);
        stored.flat_map(|at| &bytes[at..at + row_bytes]).copied().collect()
    }

    fn failed(&self, source: bitmill_quant::Error) -> Error {
        Error::Quantize { tensor: self.planned.name.clone(), source }
    }

    /// The bytes of a chunk of rows; `bits` marks what was kept of them where some was removed.
    fn encode(
        &self,
        first: usize,
        weight: &[f32],
        bits: Vec<u8>,
        decided: &mut [f32],
    ) -> Result<Parts, Error> {
        let cols = self.planned.in_features();
        if self.planned.treatment == Treatment::Copied {
            decided.copy_from_slice(weight);
            return Ok(Parts { codes: self.copy_rows(first, weight.len() / cols), ..Parts::default() });
        }
        let parts = match self.planned.to {
            Encoding::Sparse { float, .. } => Ok(encode_sparse(float, cols, weight, bits, decided)),
            encoding => self.importance.as_deref().map(Importance::new).transpose().and_then(|importance| {
                let rounding = Rounding { encoding, clip: self.planned.clip, importance };
                encode_rows(self.isa, &rounding, cols, weight, decided)
            }),
        };
        let parts = parts.map_err(|error| self.failed(error.relocate(first)))?;
        if let Encoding::Float(float) | Encoding::Sparse { float, .. } = self.planned.to {
            self.refuse_overflow(float, first, weight, decided)?;
        }
        Ok(parts)
    }

    fn account(&mut self, weight: &[f32], decided: &[f32]) {
        let cols = self.planned.in_features();
        self.source.add(weight, cols);
        self.decided.add(decided, cols);
        let sums: Vec<(f64, f64, u64)> = weight
            .par_chunks(cols)
            .zip(decided.par_chunks(cols))
            .map(|(weight, decided)| {
                weight.iter().zip(decided).fold((0.0, 0.0, 0), |(error, norm, zeros), (&w, &d)| {
                    let (w, d) = (f64::from(w), f64::from(d));
                    (error + (w - d) * (w - d), norm + w * w, zeros + u64::from(d == 0.0))
                })
            })
            .collect();
        for (error, norm, zeros) in sums {
            self.squared_error += error;
            self.squared_norm += norm;
            self.zeros += zeros;
        }
    }

    fn into_record(self) -> TensorRecord {
        let relative_error =
            if self.squared_norm > 0.0 { (self.squared_error / self.squared_norm).sqrt() } else { 0.0 };
        TensorRecord {
            name: self.planned.name.clone(),
            from: self.planned.from.to_string(),
            to: self.planned.to.to_string(),
            bytes: self.planned.bytes_after,
            relative_error,
            source: (self.planned.source != self.planned.name).then(|| self.planned.source.clone()),
            zeros: self.planned.removal.map(|_| self.zeros),
            source_hash: self.source.finish(),
            decided_hash: self.decided.finish(),
            reason: self.planned.reason.clone(),
        }
    }
}

/// The bytes of one chunk of rows.
#[derive(Default)]
pub(crate) struct Parts {
    /// Or floats; of a sparse matrix the kept weights.
    pub(crate) codes: Vec<u8>,
    /// Of a sparse matrix the bits.
    scales: Vec<u8>,
    zero_codes: Vec<u8>,
    /// Of a sparse matrix the weights kept of each row.
    kept: Vec<usize>,
}

/// What rows become, and how that is chosen.
pub(crate) struct Rounding<'a> {
    pub(crate) encoding: Encoding,
    /// How the ranges of groups are chosen.
    pub(crate) clip: Clip,
    /// What the errors of each column count in blocks.
    pub(crate) importance: Option<Importance<'a>>,
}

/// Rounds whole rows of `cols` weights; `decided` becomes the values that the bytes stand for. Floats that the type does not
/// reach become infinite.
pub(crate) fn encode_rows(
    isa: Isa,
    rounding: &Rounding<'_>,
    cols: usize,
    weight: &[f32],
    decided: &mut [f32],
) -> Result<Parts, bitmill_quant::Error> {
    match rounding.encoding {
        Encoding::Float(float) => Ok(encode_floats(float, weight, decided)),
        Encoding::Block(block) => {
            let encoder = BlockEncoder { block, importance: rounding.importance };
            encode_blocks(isa, &encoder, cols, weight, decided)
        }
        Encoding::Grouped(grouped) => encode_groups(&grouped, rounding.clip, cols, weight, decided),
        Encoding::Sparse { .. } => unreachable!("what is kept of a sparse matrix is not told by its weights"),
    }
}

fn encode_floats(float: FloatType, weight: &[f32], decided: &mut [f32]) -> Parts {
    let size = float.size_bytes();
    let mut codes = vec![0; weight.len() * size];
    codes.par_chunks_mut(TASK_WEIGHTS * size).zip(weight.par_chunks(TASK_WEIGHTS)).for_each(
        |(bytes, weight)| {
            for (bytes, &value) in bytes.chunks_exact_mut(size).zip(weight) {
                float.write(value, bytes);
            }
        },
    );
    decided.par_iter_mut().zip(weight).for_each(|(decided, &value)| *decided = float.round(value));
    Parts { codes, ..Parts::default() }
}

/// The values that `bits` keeps, row after row.
fn encode_sparse(float: FloatType, cols: usize, weight: &[f32], bits: Vec<u8>, decided: &mut [f32]) -> Parts {
    let rows: Vec<(Vec<u8>, usize)> = weight
        .par_chunks(cols)
        .zip(bits.par_chunks(mask_bytes(cols)))
        .map(|(weight, bits)| {
            let (mut values, mut kept) = (Vec::new(), 0);
            for (_, value) in weight.iter().enumerate().filter(|(i, _)| bits[i / 8] >> (i % 8) & 1 == 1) {
                float.push(*value, &mut values);
                kept += 1;
            }
            (values, kept)
        })
        .collect();
    decided.par_iter_mut().zip(weight).for_each(|(decided, &value)| *decided = float.round(value));
    let mut parts = Parts { scales: bits, ..Parts::default() };
    for (values, kept) in rows {
        parts.codes.extend_from_slice(&values);
        parts.kept.push(kept);
    }
    parts
}

fn encode_blocks(
    isa: Isa,
    encoder: &BlockEncoder<'_>,
    cols: usize,
    weight: &[f32],
    decided: &mut [f32],
) -> Result<Parts, bitmill_quant::Error> {
    let block = encoder.block;
    let row_bytes = cols / block.weights() * block.bytes();
    let rows = weight.len() / cols;
    let tasks = rows_per_task(cols);
    let mut codes = vec![0; rows * row_bytes];
    let failed: Vec<bitmill_quant::Error> = codes
        .par_chunks_mut(tasks * row_bytes)
        .zip(weight.par_chunks(tasks * cols))
        .zip(decided.par_chunks_mut(tasks * cols))
        .enumerate()
        .filter_map(|(task, ((bytes, weight), decided))| {
            if let Err(error) = quantize_blocks(encoder, cols, weight, bytes) {
                return Some(error.relocate(task * tasks));
            }
            let data = WeightData::Block { block, bytes };
            let view = WeightView::new(weight.len() / cols, cols, data).expect("whole rows of whole blocks");
            dequantize_rows(isa, &view, 0, decided);
            None
        })
        .collect();
    match failed.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(Parts { codes, ..Parts::default() }),
    }
}

fn encode_groups(
    grouped: &Grouped,
    clip: Clip,
    cols: usize,
    weight: &[f32],
    decided: &mut [f32],
) -> Result<Parts, bitmill_quant::Error> {
    let tasks = rows_per_task(cols);
    let done: Vec<Result<_, bitmill_quant::Error>> = weight
        .par_chunks(tasks * cols)
        .zip(decided.par_chunks_mut(tasks * cols))
        .enumerate()
        .map(|(task, (weight, decided))| {
            quantize_rows_clipped(grouped, clip, weight, cols, decided)
                .map_err(|error| error.relocate(task * tasks))
        })
        .collect();
    let mut parts = Parts::default();
    for rows in done {
        let rows = rows?;
        parts.codes.extend_from_slice(&rows.packed);
        parts.scales.extend_from_slice(&rows.scales);
        parts.zero_codes.extend_from_slice(&rows.zero_codes);
    }
    Ok(parts)
}

/// A hash of a matrix that threads can share the work of: the hash of its rows' hashes.
#[derive(Default)]
struct RowHashes(Xxh3);

impl RowHashes {
    /// Adds whole rows.
    fn add(&mut self, values: &[f32], cols: usize) {
        let hashes: Vec<u64> = values
            .par_chunks(cols)
            .map_init(Vec::new, |bytes, row| {
                bytes.clear();
                bytes.extend(row.iter().flat_map(|value| value.to_bits().to_le_bytes()));
                xxh3_64(bytes)
            })
            .collect();
        for hash in hashes {
            self.0.update(&hash.to_le_bytes());
        }
    }

    fn finish(&self) -> String {
        format!("{:016x}", self.0.digest())
    }
}

/// Opens what was written and compares the values that its codes stand for with those that were decided.
fn read_back(
    staged: &Path,
    path: &Path,
    plan: &Plan,
    records: &[TensorRecord],
    isa: Isa,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let written = Checkpoint::open(staged)?;
    let total = plan.tensors.iter().map(PlannedTensor::weights).sum();
    let mut done = 0;
    let mut values = Vec::new();
    for (planned, record) in plan.tensors.iter().zip(records) {
        let tensor = written.tensor(&planned.name)?;
        let view = tensor.view();
        let cols = view.in_features();
        let mut hashes = RowHashes::default();
        let mismatch = || Error::Verify { path: path.into(), tensor: planned.name.clone() };
        if tensor.info.shape != planned.shape {
            return Err(mismatch());
        }
        for first in (0..view.out_features()).step_by(rows_per_chunk(cols)) {
            let chunk = rows_per_chunk(cols).min(view.out_features() - first);
            values.resize(chunk * cols, 0.0);
            let tasks = rows_per_task(cols);
            values.par_chunks_mut(tasks * cols).enumerate().for_each(|(task, out)| {
                dequantize_rows(isa, &view, first + task * tasks, out);
            });
            hashes.add(&values, cols);
            tensor.release();
            done += (chunk * cols) as u64;
            progress.at(done, total);
        }
        if hashes.finish() != record.decided_hash {
            return Err(mismatch());
        }
    }
    Ok(())
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

/// Weights of a model: every element of every tensor, a tied head counted once.
pub fn n_weights(checkpoint: &Checkpoint) -> u64 {
    let written = checkpoint.tensors().iter().filter(|info| crate::plan::is_written(checkpoint, info));
    written.map(weights_of).sum()
}
