//! One tensor's rows on their way from the source to the bytes of the output.

use std::convert::Infallible;
use std::sync::Arc;

use bitmill_checkpoint::{Pairing, RoleKind, halves_row};
use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_prune::{Sparsity, Threshold};
use bitmill_quant::{Importance, NestedAbsmax, awq, first_non_finite, global_scale, grouped_rows};
use bitmill_tensor::{Encoding, ScaleType, Scaled, WeightData};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::encode::{Parts, Rounding, ScaleBase, encode_scaled, encode_sparse, rows_per_task, rows_together};
use crate::error::Error;
use crate::importance::is_weighed;
use crate::plan::{FUSIONS, PlannedTensor, Treatment, rows_and_columns};
use crate::pruned::Mask;
use crate::pruning::Removal;
use crate::recipe::Format;
use crate::source::{Opened, Source};

/// Weights of one chunk for each thread: tasks enough that threads end together, and few enough that what waits to be
/// written is small.
const THREAD_WEIGHTS: usize = 1 << 21;
/// Weights of a chunk at most, however many threads there are.
const CHUNK_WEIGHTS: usize = 1 << 26;

/// Rows that are encoded between two looks at the output.
pub(crate) fn rows_per_chunk(cols: usize) -> usize {
    let weights = (rayon::current_num_threads() * THREAD_WEIGHTS).min(CHUNK_WEIGHTS);
    (weights / cols.max(1)).max(1).next_multiple_of(rows_per_task(cols))
}

/// Rows and what came of them.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub parts: Parts,
    pub rows: Vec<RowFigures>,
}

/// What is known of one row.
#[derive(Debug)]
pub(crate) struct RowFigures {
    /// xxh3 of the source's values, widened to f32.
    pub hash: u64,
    pub squared_error: f64,
    pub squared_norm: f64,
    /// Values that are zero as stored.
    pub zeros: u64,
}

/// What a task works in.
#[derive(Default)]
struct Scratch {
    weight: Vec<f32>,
    pruned: Vec<f32>,
    padded: Vec<f32>,
    clipped: Vec<f32>,
    decided: Vec<f32>,
}

/// Rows before they are rounded.
struct Prepared<'s> {
    /// As the source has them.
    weight: &'s [f32],
    /// What is left of them.
    left: &'s [f32],
    /// What was kept, where some was removed.
    bits: Vec<u8>,
}

/// Reads and encodes the rows of one tensor.
pub(crate) struct TensorRun<'a> {
    planned: &'a PlannedTensor,
    opened: &'a Opened<'a>,
    isa: Isa,
    /// Of each column; the order of rows is of no matter to it.
    importance: Option<Vec<f32>>,
    /// Head width, where the output wants the rows of each head in adjacent pairs.
    adjacent_pairs: Option<usize>,
    mask: Option<Mask>,
    /// The range of each group, row by row in the output's order, and how many weights a group has.
    clips: Option<(Vec<f32>, usize)>,
    /// What scales of small numbers are read with.
    base: ScaleBase,
}

impl<'a> TensorRun<'a> {
    /// Looks over the whole tensor first where a line through all of it decides which weights go, and over all that a runtime
    /// fuses with it where they share what scales are divided by.
    ///
    /// # Errors
    /// If its importance is another tensor's.
    pub fn new(
        source: &Source<'_>,
        planned: &'a PlannedTensor,
        opened: &'a Opened<'a>,
        isa: Isa,
    ) -> Result<Self, Error> {
        let Source { checkpoint, plan, .. } = source;
        let config = checkpoint.config();
        let rotated = matches!(
            planned.role.kind,
            RoleKind::AttnQ | RoleKind::AttnK | RoleKind::AttnQBias | RoleKind::AttnKBias
        );
        let importance = match &plan.weighed {
            Some(weighed) if is_weighed(planned) => weighed.of(checkpoint, planned, &opened.tensor.info)?,
            _ => None,
        };
        let adjacent = rotated
            && plan.recipe.format == Format::Gguf
            && config.family.gguf_pairing() == Pairing::Adjacent;
        let adjacent_pairs = adjacent.then_some(config.head_dim);
        let global = match planned.to {
            Encoding::Scaled(layout) if layout.scale == ScaleType::Fp8 => {
                global_scale(fused_absmax(source, planned, isa)?)
            }
            _ => 1.0,
        };
        let base = ScaleBase { global, nested: None };
        let mut run =
            Self { planned, opened, isa, importance, adjacent_pairs, mask: None, clips: None, base };
        run.mask = planned.removal.map(|removal| match removal {
            Removal::Rows(rule) => Mask::Rows(rule),
            Removal::Tensor(sparsity) => Mask::Tensor(run.threshold(sparsity)),
        });
        if let Encoding::Scaled(layout) = planned.to
            && layout.scale == ScaleType::Nested
        {
            run.base.nested = Some(Arc::new(NestedAbsmax::new(&run.block_maxima(&layout)?)));
        }
        Ok(run)
    }

    /// The same with the errors of blocks weighed by the `importance` of each column.
    pub fn weighed_by(self, importance: Vec<f32>) -> Self {
        Self { importance: Some(importance), ..self }
    }

    /// The same with the weights of each group of `group_size` held within its range before they are rounded; errors are
    /// still counted from where they were. Ranges are of rows in the output's order.
    pub fn clipped_by(self, ranges: Vec<f32>, group_size: usize) -> Self {
        Self { clips: Some((ranges, group_size)), ..self }
    }

    /// What scales of small numbers are read with.
    pub fn base(&self) -> &ScaleBase {
        &self.base
    }

    /// Rows `first..first + rows` of the output, in its order, task by task; `first` is a multiple of those that share scales.
    ///
    /// # Errors
    /// The first in the order of rows, whatever order threads work in.
    pub fn encode(&self, first: usize, rows: usize) -> Result<Vec<Encoded>, Error> {
        let tasks =
            rows_per_task(self.planned.in_features()).next_multiple_of(rows_together(self.planned.to));
        let importance = self.importance.as_deref().map(Importance::new).transpose();
        let importance = importance.map_err(|error| self.failed(error))?;
        let done: Vec<Result<Encoded, Error>> = (0..rows.div_ceil(tasks))
            .into_par_iter()
            .map_init(Scratch::default, |scratch, task| {
                self.task(scratch, importance, first + task * tasks, tasks.min(rows - task * tasks))
            })
            .collect();
        done.into_iter().collect()
    }

    /// Rows `first..first + rows` of the output, in its order, widened and padded.
    ///
    /// # Errors
    /// For a weight that is not finite.
    pub fn widen(&self, first: usize, rows: usize, out: &mut Vec<f32>) -> Result<(), Error> {
        let cols = self.planned.in_features();
        let (source_rows, source_cols) = rows_and_columns(&self.planned.source_shape);
        out.clear();
        out.resize(rows * cols, 0.0);
        let tasks = rows_per_task(cols);
        let done: Vec<Result<(), Error>> = out
            .par_chunks_mut(tasks * cols)
            .enumerate()
            .map_init(Vec::new, |row: &mut Vec<f32>, (task, out)| {
                row.resize(source_cols, 0.0);
                for (at, out) in out.chunks_exact_mut(cols).enumerate() {
                    let at = first + task * tasks + at;
                    if at < source_rows {
                        self.read_rows(|_| self.source_row(at), row);
                        self.refuse_non_finite(at, row)?;
                        out[..source_cols].copy_from_slice(row);
                    }
                }
                Ok(())
            })
            .collect();
        done.into_iter().collect()
    }

    /// What is known of rows that were [`widen`](Self::widen)ed and decided.
    pub fn figures(&self, weight: &[f32], decided: &[f32]) -> Vec<RowFigures> {
        let cols = self.planned.in_features();
        let (_, source_cols) = rows_and_columns(&self.planned.source_shape);
        let rows = weight.par_chunks_exact(cols).zip(decided.par_chunks_exact(cols));
        rows.map(|(weight, decided)| RowFigures::new(&weight[..source_cols], &decided[..source_cols], false))
            .collect()
    }

    /// Where row `row` of the output lies in the source; rows that pad come after all of its.
    pub fn stored_row(&self, row: usize) -> usize {
        let (source_rows, _) = rows_and_columns(&self.planned.source_shape);
        if row < source_rows { self.opened.tensor.stored_row(self.source_row(row)) } else { row }
    }

    /// Widens, prunes, rounds and measures rows while they are in the cache.
    fn task(
        &self,
        scratch: &mut Scratch,
        importance: Option<Importance<'_>>,
        first: usize,
        rows: usize,
    ) -> Result<Encoded, Error> {
        let cols = self.planned.in_features();
        let (_, source_cols) = rows_and_columns(&self.planned.source_shape);
        let mut decided = std::mem::take(&mut scratch.decided);
        decided.resize(rows * cols, 0.0);
        let Prepared { weight, left, bits } = self.prepare(scratch, first, rows)?;
        let parts = self.encode_rows(importance, first, left, bits, &mut decided)?;
        let count_zeros = self.mask.is_some();
        // What pads is no part of the error: whatever a column of zeros becomes, it is multiplied with zeros.
        let rows = weight.chunks_exact(source_cols).zip(decided.chunks_exact(cols));
        let figures = |(weight, decided): (&[f32], &[f32])| {
            RowFigures::new(weight, &decided[..source_cols], count_zeros)
        };
        let rows = rows.map(figures).collect();
        scratch.decided = decided;
        Ok(Encoded { parts, rows })
    }

    /// Reads rows `first..`, and prunes, pads and clips them.
    fn prepare<'s>(
        &self,
        scratch: &'s mut Scratch,
        first: usize,
        rows: usize,
    ) -> Result<Prepared<'s>, Error> {
        let cols = self.planned.in_features();
        let (source_rows, source_cols) = rows_and_columns(&self.planned.source_shape);
        let Scratch { weight, pruned, padded, clipped, .. } = scratch;
        weight.resize(rows * source_cols, 0.0);
        let (there, zeros) = weight.split_at_mut(source_rows.saturating_sub(first).min(rows) * source_cols);
        self.read_rows(|row| self.source_row(first + row), there);
        zeros.fill(0.0);
        self.refuse_non_finite(first, weight)?;
        let (left, bits): (&[f32], _) = match &self.mask {
            None => (weight, Vec::new()),
            Some(mask) => {
                pruned.clone_from(weight);
                let bits = mask
                    .apply(pruned, source_cols, |row| self.source_row(first + row))
                    .map_err(|source| Error::Prune { tensor: self.planned.name.clone(), source })?;
                (pruned, bits)
            }
        };
        let left = if cols == source_cols { left } else { pad_columns(left, source_cols, cols, padded) };
        let left = match &self.clips {
            None => left,
            Some((ranges, group_size)) => {
                clipped.clear();
                clipped.extend_from_slice(left);
                let groups = cols / group_size;
                awq::clip(clipped, &ranges[first * groups..(first + rows) * groups], *group_size);
                clipped
            }
        };
        Ok(Prepared { weight, left, bits })
    }

    /// The largest magnitude of what each scale is for, through the whole matrix.
    fn block_maxima(&self, layout: &Scaled) -> Result<Vec<f32>, Error> {
        let (rows, cols) = (self.planned.out_features(), self.planned.in_features());
        let width = layout.extent.cols().min(cols);
        let tasks = rows_per_task(cols);
        let mut maxima = vec![0f32; rows * cols / width];
        let step = rows_per_chunk(cols);
        for (chunk, maxima) in maxima.chunks_mut(step * cols / width).enumerate() {
            let found: Vec<Result<(), Error>> = maxima
                .par_chunks_mut(tasks * cols / width)
                .enumerate()
                .map_init(Scratch::default, |scratch, (task, maxima)| {
                    let rows = maxima.len() * width / cols;
                    let Prepared { left, .. } = self.prepare(scratch, chunk * step + task * tasks, rows)?;
                    for (most, block) in maxima.iter_mut().zip(left.chunks_exact(width)) {
                        *most = block.iter().fold(0.0, |most, weight| weight.abs().max(most));
                    }
                    Ok(())
                })
                .collect();
            found.into_iter().collect::<Result<(), Error>>()?;
            self.opened.tensor.release();
        }
        Ok(maxima)
    }

    /// The bytes of rows `first..`; `bits` marks what was kept of them where some was removed.
    fn encode_rows(
        &self,
        importance: Option<Importance<'_>>,
        first: usize,
        weight: &[f32],
        bits: Vec<u8>,
        decided: &mut [f32],
    ) -> Result<Parts, Error> {
        let cols = self.planned.in_features();
        if self.planned.treatment == Treatment::Copied {
            decided.copy_from_slice(weight);
            let rows = weight.len() / cols;
            return match self.planned.to {
                Encoding::Grouped(_) => self.copy_groups(first, rows),
                _ => Ok(Parts { codes: self.copy_rows(first, rows), ..Parts::default() }),
            };
        }
        let parts = match self.planned.to {
            Encoding::Sparse { float, .. } => encode_sparse(float, cols, weight, bits, decided),
            Encoding::Scaled(layout) => encode_scaled(&layout, &self.base, first, cols, weight, decided)
                .map_err(|error| self.failed(error.relocate(first)))?,
            encoding => {
                let PlannedTensor { clip, search, .. } = *self.planned;
                let rounding = Rounding { encoding, clip, importance, search };
                let encoded = rounding.encode(self.isa, cols, weight, decided);
                encoded.map_err(|error| self.failed(error.relocate(first)))?
            }
        };
        if let Encoding::Float(_) | Encoding::Sparse { .. } = self.planned.to {
            self.refuse_overflow(first, weight, decided)?;
        }
        Ok(parts)
    }

    fn threshold(&self, sparsity: Sparsity) -> Threshold {
        let (rows, cols) = rows_and_columns(&self.planned.source_shape);
        let mut weight = Vec::new();
        let selected = Threshold::select(sparsity.removed(self.planned.source_weights()), |take| {
            for first in (0..rows).step_by(rows_per_chunk(cols)) {
                weight.resize(rows_per_chunk(cols).min(rows - first) * cols, 0.0);
                let tasks = rows_per_task(cols);
                weight.par_chunks_mut(tasks * cols).enumerate().for_each(|(task, out)| {
                    self.read_rows(|row| first + task * tasks + row, out);
                });
                take(&weight);
                self.opened.tensor.release();
            }
            Ok::<(), Infallible>(())
        });
        let Ok(threshold) = selected;
        threshold
    }

    /// Rows of the checkpoint, widened; `source_row` gives the place of each in canonical order.
    fn read_rows(&self, source_row: impl Fn(usize) -> usize, out: &mut [f32]) {
        let tensor = &self.opened.tensor;
        let view = tensor.view();
        let (isa, cols) = (self.isa, view.in_features());
        if self.planned.shape.len() < 2 {
            // A vector is one row; its elements are what is permuted.
            let mut stored = vec![0.0; cols];
            self.opened.read_rows(isa, 0, &mut stored);
            for (at, value) in out.iter_mut().enumerate() {
                *value = stored[tensor.stored_row(source_row(at))];
            }
            return;
        }
        for (row, out) in out.chunks_exact_mut(cols).enumerate() {
            dequantize_rows(isa, &view, tensor.stored_row(source_row(row)), out);
        }
        self.opened.change(out);
    }

    /// Which row of the checkpoint, in canonical order, becomes row `row` of the output.
    fn source_row(&self, row: usize) -> usize {
        match self.adjacent_pairs {
            Some(head_dim) => halves_row(row, head_dim),
            None => row,
        }
    }

    fn refuse_non_finite(&self, first: usize, weight: &[f32]) -> Result<(), Error> {
        let (_, cols) = rows_and_columns(&self.planned.source_shape);
        match first_non_finite(weight) {
            None => Ok(()),
            Some(at) => Err(self.failed(bitmill_quant::Error::NonFinite {
                row: self.source_row(first + at / cols),
                col: at % cols,
                value: weight[at],
            })),
        }
    }

    /// A weight that the new type does not reach: infinity would be stored in its place.
    fn refuse_overflow(&self, first: usize, weight: &[f32], decided: &[f32]) -> Result<(), Error> {
        let cols = self.planned.in_features();
        let (Encoding::Float(float) | Encoding::Sparse { float, .. }) = self.planned.to else {
            return Ok(());
        };
        match first_non_finite(decided) {
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
        let tensor = &self.opened.tensor;
        let view = tensor.view();
        let WeightData::Block { block, bytes } = view.data() else {
            unreachable!("only blocks are copied");
        };
        let row_bytes = view.in_features() / block.weights() * block.bytes();
        let mut copied = Vec::with_capacity(rows * row_bytes);
        for row in first..first + rows {
            let at = self.opened.tensor.stored_row(self.source_row(row)) * row_bytes;
            copied.extend_from_slice(&bytes[at..at + row_bytes]);
        }
        copied
    }

    /// Codes, scales and zero points of rows `first..first + rows`, as they are; matrices in groups keep the order of their rows.
    fn copy_groups(&self, first: usize, rows: usize) -> Result<Parts, Error> {
        let view = self.opened.tensor.view();
        let taken = grouped_rows(&view, first..first + rows);
        let taken = taken.map_err(|error| self.failed(error.relocate(first)))?.expect("groups are copied");
        let group_of = match view.data() {
            WeightData::Columns { group_of, .. } if !group_of.is_empty() => {
                Some(group_of.as_chunks::<4>().0.iter().map(|group| u32::from_le_bytes(*group)).collect())
            }
            _ => None,
        };
        Ok(Parts { group_of, ..taken.into() })
    }

    fn failed(&self, source: bitmill_quant::Error) -> Error {
        Error::Quantize { tensor: self.planned.name.clone(), source }
    }
}

/// The largest magnitude of `planned` and of the matrices that a runtime makes one of with it.
fn fused_absmax(source: &Source<'_>, planned: &PlannedTensor, isa: Isa) -> Result<f32, Error> {
    let fused = |kind| FUSIONS.iter().find(|(_, kinds)| kinds.contains(&kind)).map(|(_, kinds)| *kinds);
    let own = planned.role;
    let is_member = |other: &&PlannedTensor| {
        let role = other.role;
        other.name == planned.name
            || ((role.layer, role.expert) == (own.layer, own.expert)
                && fused(own.kind).is_some_and(|kinds| kinds.contains(&role.kind)))
    };
    let mut most = 0f32;
    for member in source.plan.tensors.iter().filter(is_member) {
        let opened = source.open(isa, member)?;
        let view = opened.tensor.view();
        let (rows, cols) = (view.out_features(), view.in_features());
        let tasks = rows_per_task(cols);
        for first in (0..rows).step_by(rows_per_chunk(cols)) {
            let chunk = rows_per_chunk(cols).min(rows - first);
            let found = (0..chunk.div_ceil(tasks)).into_par_iter().map_init(Vec::new, |weight, task| {
                let first = first + task * tasks;
                weight.resize(tasks.min(rows - first) * cols, 0.0);
                opened.read_rows(isa, first, weight);
                weight.iter().fold(0f32, |most, weight| most.max(weight.abs()))
            });
            // The largest is the same in any order.
            most = most.max(found.reduce(|| 0.0, f32::max));
            opened.tensor.release();
        }
    }
    Ok(most)
}

/// Rows of `source_cols` with zeros after them up to `cols`.
fn pad_columns<'a>(rows: &[f32], source_cols: usize, cols: usize, padded: &'a mut Vec<f32>) -> &'a [f32] {
    padded.clear();
    padded.resize(rows.len() / source_cols * cols, 0.0);
    for (padded, row) in padded.chunks_exact_mut(cols).zip(rows.chunks_exact(source_cols)) {
        padded[..source_cols].copy_from_slice(row);
    }
    padded
}

impl RowFigures {
    fn new(weight: &[f32], decided: &[f32], count_zeros: bool) -> Self {
        // Eight sums, added up in their order: one sum would wait for each addition before it.
        const LANES: usize = 8;
        let (mut errors, mut norms) = ([0f64; LANES], [0f64; LANES]);
        let mut add = |lane: usize, weight: f32, decided: f32| {
            let (weight, decided) = (f64::from(weight), f64::from(decided));
            errors[lane] += (weight - decided) * (weight - decided);
            norms[lane] += weight * weight;
        };
        let (weights, rest) = weight.as_chunks::<LANES>();
        let (decideds, decided_rest) = decided.as_chunks::<LANES>();
        for (weights, decideds) in weights.iter().zip(decideds) {
            for lane in 0..LANES {
                add(lane, weights[lane], decideds[lane]);
            }
        }
        for (lane, (&weight, &decided)) in rest.iter().zip(decided_rest).enumerate() {
            add(lane, weight, decided);
        }
        Self {
            hash: xxh3_64(bytemuck::cast_slice(weight)),
            squared_error: errors.iter().sum(),
            squared_norm: norms.iter().sum(),
            zeros: if count_zeros { decided.iter().map(|&value| u64::from(value == 0.0)).sum() } else { 0 },
        }
    }
}
