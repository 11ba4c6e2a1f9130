//! Rows of weights become the bytes that stand for them.

use std::sync::Arc;

use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_prune::mask_bytes;
use bitmill_quant::{
    BlockEncoder, BlockSearch, Clip, GroupedRows, Importance, NestedAbsmax, ScaledRows, quantize_blocks,
    quantize_rows_clipped, quantize_scaled,
};
use bitmill_tensor::{Encoding, Extent, FloatType, Grouped, ScaleType, Scaled, WeightData, WeightView};
use rayon::prelude::*;

/// Weights of one task: few enough to lie in a core's cache while they are widened, rounded and measured, and to share the
/// work out evenly; enough to be worth a task.
const TASK_WEIGHTS: usize = 1 << 16;

/// Rows that one task encodes.
pub(crate) fn rows_per_task(cols: usize) -> usize {
    (TASK_WEIGHTS / cols.max(1)).max(1)
}

/// Rows that are encoded together at least, and in whole multiples.
pub(crate) fn rows_together(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Scaled(Scaled { extent: Extent::Block { rows, .. }, .. }) => rows.get(),
        _ => 1,
    }
}

/// The bytes of some rows.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Codes or floats; of a sparse matrix the kept weights.
    pub codes: Vec<u8>,
    /// Of a sparse matrix the bits.
    pub scales: Vec<u8>,
    /// One for each group, not yet packed.
    pub zero_codes: Vec<u8>,
    /// Of a sparse matrix the weights kept of each row.
    pub kept: Vec<usize>,
    /// The group of each column of the matrix, where that is not `column / group_size`; with its first rows.
    pub group_of: Option<Vec<u32>>,
}

impl Parts {
    fn append(&mut self, mut rows: Self) {
        if self.codes.is_empty() && self.kept.is_empty() {
            *self = rows;
            return;
        }
        self.codes.append(&mut rows.codes);
        self.scales.append(&mut rows.scales);
        self.zero_codes.append(&mut rows.zero_codes);
        self.kept.append(&mut rows.kept);
        self.group_of = self.group_of.take().or(rows.group_of);
    }
}

/// What rows become, and how that is chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounding<'a> {
    pub encoding: Encoding,
    /// How the ranges of groups are chosen.
    pub clip: Clip,
    /// What the errors of each column count in blocks.
    pub importance: Option<Importance<'a>>,
    /// How scales and codes of blocks are chosen.
    pub search: BlockSearch,
}

impl Rounding<'_> {
    /// Rounds whole rows of `cols` weights in the calling thread; `decided` becomes the values that the bytes stand for.
    /// Floats that the type does not reach become infinite.
    ///
    /// # Panics
    /// For small numbers and a sparse encoding: what scales are divided by and what is kept are not told by the weights, see
    /// [`encode_scaled`] and [`encode_sparse`].
    pub fn encode(
        &self,
        isa: Isa,
        cols: usize,
        weight: &[f32],
        decided: &mut [f32],
    ) -> Result<Parts, bitmill_quant::Error> {
        match self.encoding {
            Encoding::Float(float) => Ok(encode_floats(float, weight, decided)),
            Encoding::Block(block) => {
                let encoder = BlockEncoder { block, importance: self.importance, search: self.search };
                encode_blocks(isa, &encoder, cols, weight, decided)
            }
            Encoding::Grouped(grouped) => encode_groups(&grouped, self.clip, cols, weight, decided),
            Encoding::Scaled(_) => unreachable!("what scales are divided by is not told by some rows"),
            Encoding::Sparse { .. } => {
                unreachable!("what is kept of a sparse matrix is not told by its weights")
            }
        }
    }

    /// [`encode`](Self::encode) of many rows, shared among threads.
    pub fn encode_shared(
        &self,
        isa: Isa,
        cols: usize,
        weight: &[f32],
        decided: &mut [f32],
    ) -> Result<Parts, bitmill_quant::Error> {
        let tasks = rows_per_task(cols);
        let done: Vec<Result<Parts, bitmill_quant::Error>> = weight
            .par_chunks(tasks * cols)
            .zip(decided.par_chunks_mut(tasks * cols))
            .enumerate()
            .map(|(task, (weight, decided))| {
                self.encode(isa, cols, weight, decided).map_err(|error| error.relocate(task * tasks))
            })
            .collect();
        let mut parts = Parts::default();
        for rows in done {
            parts.append(rows?);
        }
        Ok(parts)
    }
}

fn encode_blocks(
    isa: Isa,
    encoder: &BlockEncoder<'_>,
    cols: usize,
    weight: &[f32],
    decided: &mut [f32],
) -> Result<Parts, bitmill_quant::Error> {
    let block = encoder.block;
    let rows = weight.len() / cols;
    let mut codes = vec![0; rows * (cols / block.weights() * block.bytes())];
    quantize_blocks(encoder, cols, weight, &mut codes)?;
    let data = WeightData::Block { block, bytes: &codes };
    let view = WeightView::new(rows, cols, data).expect("whole rows of whole blocks");
    dequantize_rows(isa, &view, 0, decided);
    Ok(Parts { codes, ..Parts::default() })
}

fn encode_groups(
    grouped: &Grouped,
    clip: Clip,
    cols: usize,
    weight: &[f32],
    decided: &mut [f32],
) -> Result<Parts, bitmill_quant::Error> {
    Ok(quantize_rows_clipped(grouped, clip, weight, cols, decided)?.into())
}

impl From<GroupedRows> for Parts {
    fn from(rows: GroupedRows) -> Self {
        let (codes, scales, zero_codes) = (rows.packed, rows.scales, rows.zero_codes);
        Self { codes, scales, zero_codes, ..Self::default() }
    }
}

/// What the scales of a whole matrix of small numbers are read with.
#[derive(Debug, Clone)]
pub(crate) struct ScaleBase {
    /// What scales of fp8 are divided by; 1 where there are none.
    pub global: f32,
    /// Of [`Nested`](ScaleType::Nested) scales, all of them.
    pub nested: Option<Arc<NestedAbsmax>>,
}

/// Whole rows as small numbers, from row `first` on, which is the first of those that share scales; see [`quantize_scaled`].
pub(crate) fn encode_scaled(
    layout: &Scaled,
    base: &ScaleBase,
    first: usize,
    cols: usize,
    weight: &[f32],
    decided: &mut [f32],
) -> Result<Parts, bitmill_quant::Error> {
    let Some(nested) = &base.nested else {
        let ScaledRows { codes, scales } = quantize_scaled(layout, base.global, weight, cols, decided)?;
        return Ok(Parts { codes, scales, ..Parts::default() });
    };
    // Codes are those of the scales before they are rounded.
    let exact = Scaled { scale: ScaleType::Float(FloatType::F32), ..*layout };
    let ScaledRows { codes, .. } = quantize_scaled(&exact, base.global, weight, cols, decided)?;
    let width = layout.extent.cols().min(cols);
    let blocks = first * cols / width..(first * cols + weight.len()) / width;
    let scales = nested.codes[blocks.clone()].to_vec();
    for ((block, code), (at, decided)) in blocks.zip(&scales).zip(decided.chunks_exact_mut(width).enumerate())
    {
        let scale = nested.as_nested().scale(block, *code);
        let row = &codes[at * width / cols * layout.element.row_bytes(cols)..];
        for (column, decided) in decided.iter_mut().enumerate() {
            *decided = layout.element.read(row, at * width % cols + column) * scale;
        }
    }
    Ok(Parts { codes, scales, ..Parts::default() })
}

fn encode_floats(float: FloatType, weight: &[f32], decided: &mut [f32]) -> Parts {
    let size = float.size_bytes();
    let mut codes = vec![0; weight.len() * size];
    for (bytes, &value) in codes.chunks_exact_mut(size).zip(weight) {
        float.write(value, bytes);
    }
    round_floats(float, weight, decided);
    Parts { codes, ..Parts::default() }
}

fn round_floats(float: FloatType, weight: &[f32], decided: &mut [f32]) {
    for (decided, &value) in decided.iter_mut().zip(weight) {
        *decided = float.round(value);
    }
}

/// The values that `bits` keeps of whole rows of `cols` weights, row after row.
pub(crate) fn encode_sparse(
    float: FloatType,
    cols: usize,
    weight: &[f32],
    bits: Vec<u8>,
    decided: &mut [f32],
) -> Parts {
    let mut parts = Parts::default();
    for (row, bits) in weight.chunks_exact(cols).zip(bits.chunks_exact(mask_bytes(cols))) {
        let before = parts.codes.len();
        for (_, value) in row.iter().enumerate().filter(|(i, _)| bits[i / 8] >> (i % 8) & 1 == 1) {
            float.push(*value, &mut parts.codes);
        }
        parts.kept.push((parts.codes.len() - before) / float.size_bytes());
    }
    round_floats(float, weight, decided);
    parts.scales = bits;
    parts
}
