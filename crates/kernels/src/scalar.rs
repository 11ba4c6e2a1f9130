//! The definition of every kernel, in plain Rust.
//!
//! Values are ggml's and compressed-tensors' own formulas in their own order, without fused multiply-adds. Sums
//! have a fixed order, which the SIMD twins keep: see each function.

use bitmill_tensor::{BlockType, Element, fp8_to_f32};

use crate::activations::Token;
use crate::blocks::{self, Zero};
use crate::row::{GroupedRow, Row, ScaledRow};

/// Unpacks columns `[first, first + out.len())` of `row` to f32.
///
/// `first` is a multiple of the block's weights.
pub(crate) fn unpack(row: &Row<'_>, first: usize, out: &mut [f32]) {
    match *row {
        Row::Float { float, bytes } => {
            for (i, value) in out.iter_mut().enumerate() {
                *value = float.read(bytes, first + i);
            }
        }
        Row::Block { block, bytes } => {
            let bytes = &bytes[first / block.weights() * block.bytes()..];
            for (bytes, out) in bytes.chunks_exact(block.bytes()).zip(out.chunks_exact_mut(block.weights())) {
                unpack_block(block, bytes, out);
            }
        }
        Row::Grouped(row) => unpack_grouped(&row, first, out),
        Row::Scaled(row) => unpack_scaled(&row, first, out),
        Row::Column { of, row } => of.unpack_row(row, first, out),
        Row::Sparse(row) => {
            let mut at = row.kept_before(first);
            for (i, value) in out.iter_mut().enumerate() {
                let kept = row.keeps(first + i);
                *value = if kept { row.value(at) } else { 0.0 };
                at += usize::from(kept);
            }
        }
    }
}

/// `scale * (code − zero)`, a group at a time.
#[inline(always)]
pub(crate) fn unpack_grouped(row: &GroupedRow<'_>, first: usize, out: &mut [f32]) {
    let group_size = row.layout.group_size.get();
    let mut done = 0;
    while done < out.len() {
        let column = first + done;
        let group = column / group_size;
        let len = (group_size - column % group_size).min(out.len() - done);
        let (scale, zero) = (row.scale(group), i32::from(row.zero(group)));
        for (i, value) in out[done..done + len].iter_mut().enumerate() {
            *value = scale * (i32::from(row.code(column + i)) - zero) as f32;
        }
        done += len;
    }
}

/// `number * scale`, as many numbers at a time as have one scale.
#[inline(always)]
pub(crate) fn unpack_scaled(row: &ScaledRow<'_>, first: usize, out: &mut [f32]) {
    let width = row.layout.extent.cols();
    let mut done = 0;
    while done < out.len() {
        let column = first + done;
        let len = (width - column % width).min(out.len() - done);
        let scale = row.scale(column / width);
        let out = &mut out[done..done + len];
        match row.layout.element {
            _ if row.is_halved() => {
                for (i, value) in out.iter_mut().enumerate() {
                    *value = row.halved(column + i) * scale;
                }
            }
            Element::Int8 => {
                for (value, code) in out.iter_mut().zip(&row.codes[column..column + len]) {
                    *value = f32::from(*code as i8) * scale;
                }
            }
            Element::Fp8 => {
                for (value, code) in out.iter_mut().zip(&row.codes[column..column + len]) {
                    *value = fp8_to_f32(*code) * scale;
                }
            }
            element @ (Element::Fp4 | Element::Fp6 | Element::Listed(_)) => {
                for (i, value) in out.iter_mut().enumerate() {
                    *value = element.read(row.codes, column + i) * scale;
                }
            }
        }
        done += len;
    }
}

fn unpack_block(block: BlockType, bytes: &[u8], out: &mut [f32]) {
    for (half, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, zero) = blocks::scale_zero(block, bytes, half);
        for (i, value) in out.iter_mut().enumerate() {
            let code = blocks::code(block, bytes, 16 * half + i);
            *value = match zero {
                Zero::Code(zero) => scale * (code - zero) as f32,
                Zero::Minimum(min) => scale * code as f32 - min,
            };
        }
    }
}

/// Σ x·w in f32: column `i` belongs to lane `i % 32`, a lane is a chain of fused multiply-adds, and the lanes are
/// added as [`tree32`] has it. The last 32 columns count as padded with zeros.
pub(crate) fn exact_dot(row: &Row<'_>, x: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    let mut unpacked = [0f32; 256];
    for (chunk, x) in x.chunks(256).enumerate() {
        unpack(row, 256 * chunk, &mut unpacked[..x.len()]);
        for (w, x) in unpacked[..x.len()].chunks(32).zip(x.chunks(32)) {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                let at = |values: &[f32]| values.get(lane).copied().unwrap_or(0.0);
                *sum = at(w).mul_add(at(x), *sum);
            }
        }
    }
    tree32(&lanes)
}

/// Adds four vectors of eight lanes, `(0 + 1) + (2 + 3)`, then the eight lanes by [`tree8`].
pub(crate) fn tree32(lanes: &[f32; 32]) -> f32 {
    let mut eight = [0f32; 8];
    for (l, sum) in eight.iter_mut().enumerate() {
        *sum = (lanes[l] + lanes[8 + l]) + (lanes[16 + l] + lanes[24 + l]);
    }
    tree8(&eight)
}

/// Adds eight lanes: halves, then quarters, then the pair.
pub(crate) fn tree8(v: &[f32; 8]) -> f32 {
    ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
}

/// Up to eight blocks of 32 codes as the fast path has them: what activations of 256 columns meet.
pub(crate) struct Chunk {
    /// Codes as they are multiplied: unsigned and below 64, or signed.
    pub codes: [i16; 256],
    /// The scale of each half block.
    pub scales: [f32; 16],
    /// `scale * code that stands for zero` (or the minimum) of each half block.
    pub offsets: [f32; 16],
}

/// Whether a block's halves have scales of their own.
pub(crate) fn has_halves(row: &Row<'_>) -> bool {
    matches!(row, Row::Block { block, .. } if blocks::has_halves(*block))
}

/// Whether codes of this row use all eight bits, signed; else they are unsigned and below 64.
pub(crate) fn is_signed(row: &Row<'_>) -> bool {
    match row {
        Row::Block { block, .. } => blocks::is_signed(*block),
        Row::Grouped(row) => row.shift() > 0,
        Row::Float { .. } | Row::Sparse(_) | Row::Scaled(_) | Row::Column { .. } => false,
    }
}

/// Whether [`fast_dot`] can be asked for this row: blocks, and codes of 2 to 8 bits in groups of whole blocks.
pub(crate) fn has_fast_path(row: &Row<'_>) -> bool {
    match row {
        Row::Float { .. } | Row::Sparse(_) | Row::Scaled(_) | Row::Column { .. } => false,
        Row::Block { .. } => true,
        Row::Grouped(row) => row.layout.bits.get() >= 2 && row.blocks_have_one_group(),
    }
}

impl Chunk {
    /// Chunk `index` of `row`; what lies behind the row's end is zero.
    pub fn of(row: &Row<'_>, in_features: usize, index: usize) -> Self {
        let mut chunk = Self { codes: [0; 256], scales: [0.0; 16], offsets: [0.0; 16] };
        let first = 256 * index;
        for i in 0..256.min(in_features - first) {
            let half = i / 16;
            let (code, scale, offset) = match *row {
                Row::Float { .. } | Row::Sparse(_) | Row::Scaled(_) | Row::Column { .. } => {
                    (0, f32::NAN, 0.0)
                }
                Row::Block { block, bytes } => {
                    let at = (first + i) / block.weights() * block.bytes();
                    let (bytes, i) = (&bytes[at..at + block.bytes()], (first + i) % block.weights());
                    let (scale, zero) = blocks::scale_zero(block, bytes, i / 16);
                    let offset = match zero {
                        Zero::Code(0) => 0.0,
                        Zero::Code(zero) => scale * zero as f32,
                        Zero::Minimum(min) => min,
                    };
                    (blocks::code(block, bytes, i), scale, offset)
                }
                Row::Grouped(row) => {
                    let group = (first + i) / row.layout.group_size.get();
                    let scale = row.scale(group);
                    let zero = i32::from(row.zero(group)) - row.shift();
                    (i32::from(row.code(first + i)) - row.shift(), scale, scale * zero as f32)
                }
            };
            chunk.codes[i] = code as i16;
            chunk.scales[half] = scale;
            chunk.offsets[half] = offset;
        }
        // A row that ends within a block's first half gives the whole block its scale.
        if !has_halves(row) {
            for block in 0..8 {
                chunk.scales[2 * block + 1] = chunk.scales[2 * block];
                chunk.offsets[2 * block + 1] = chunk.offsets[2 * block];
            }
        }
        chunk
    }
}

/// Σ x·w of rounded activations: `Σ scale · token scale · Σ code · token code − Σ offset · token sum`.
///
/// Products: block `b` and four consecutive columns `l` belong to lane `(b % 4, l)`; their sum is an integer, exact,
/// and is added to the lane by a fused multiply-add. Offsets: block `b` (or half block, where halves have their own)
/// belongs to lane `b % 8`, fused too. The lanes are added as [`tree32`] and [`tree8`] have it.
pub(crate) fn fast_dot(row: &Row<'_>, in_features: usize, token: Token<'_>) -> f32 {
    let (mut lanes, mut offsets) = ([0f32; 32], [0f32; 8]);
    let halves = has_halves(row);
    for chunk in 0..in_features.div_ceil(256) {
        let weights = Chunk::of(row, in_features, chunk);
        for j in 0..(in_features - 256 * chunk).div_ceil(32).min(8) {
            let block = 8 * chunk + j;
            for l in 0..8 {
                let at = 32 * j + 4 * l;
                let sum: i32 = (0..4)
                    .map(|i| i32::from(weights.codes[at + i]) * i32::from(token.codes[256 * chunk + at + i]))
                    .sum();
                let scale = weights.scales[2 * j + l / 4] * token.scales[block];
                let lane = &mut lanes[8 * (block % 4) + l];
                *lane = (sum as f32).mul_add(scale, *lane);
            }
            if halves {
                for half in 2 * j..2 * j + 2 {
                    let lane = &mut offsets[half % 8];
                    *lane = weights.offsets[half].mul_add(token.half_sums[16 * chunk + half], *lane);
                }
            } else {
                offsets[j] = weights.offsets[2 * j].mul_add(token.sums[block], offsets[j]);
            }
        }
    }
    tree32(&lanes) - tree8(&offsets)
}
