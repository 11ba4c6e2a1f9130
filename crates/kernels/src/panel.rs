//! Sixteen rows of integer codes side by side, for products with many tokens.
//!
//! Codes lie as the multiply instructions want them: four columns of each of the 16 rows, then the next four
//! columns. One vector then multiplies 8 or 16 rows at once, sums stay in their rows, and a scale is applied once a
//! block instead of once a lane.
//!
//! ```text
//! codes    [block][8 quads of columns][16 rows][4 columns]   u8, or i8 where signed
//! scales   [block][1 or 2 halves][16 rows]                   f32
//! offsets  [block][1 or 2 halves][16 rows]                   f32
//! ```

use std::ops::Range;

use bitmill_tensor::{Encoding, WeightView, ZeroPoint};

use crate::activations::{BLOCK, CHUNK, CHUNK_BLOCKS, Token};
use crate::blocks;
use crate::isa::{Isa, Kind};
use crate::row::Row;
use crate::scalar::{Chunk, has_halves, is_signed};

/// Rows of a panel.
pub(crate) const ROWS: usize = 16;
/// Tokens that a tile takes at most.
pub(crate) const TILE_TOKENS: usize = 8;

/// What a panel holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Shape {
    /// Codes are signed and use all eight bits; else they are unsigned.
    pub signed: bool,
    /// Unsigned codes are below 16, which lets eight products of pairs add up in 16 bits.
    pub nibbles: bool,
    /// Scales and offsets are of half blocks.
    pub halves: bool,
    /// There are offsets to subtract.
    pub offsets: bool,
}

impl Shape {
    /// The shape of panels of `weight`, which has rows and a fast path.
    fn of(weight: &WeightView<'_>) -> Self {
        let row = Row::of(weight, 0);
        let signed = is_signed(&row);
        let (nibbles, offsets) = match weight.encoding() {
            Encoding::Float(_) | Encoding::Sparse { .. } | Encoding::Scaled(_) => (false, false),
            Encoding::Block(block) => (blocks::is_nibbles(block), !signed),
            Encoding::Grouped(layout) => {
                (layout.bits.get() <= 4, !signed || layout.zero_point == ZeroPoint::Asymmetric)
            }
        };
        Self { signed, nibbles, halves: has_halves(&row), offsets }
    }
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Panel {
    pub shape: Shape,
    /// The first block of 32 columns, counted over the row; the first of a chunk.
    pub first_block: usize,
    /// Blocks held.
    pub blocks: usize,
    pub codes: Vec<u32>,
    pub scales: Vec<f32>,
    pub offsets: Vec<f32>,
}

impl Panel {
    /// Unpacks chunks `chunks` of rows `[first, first + 16)` of `weight`; rows behind its last are zero.
    pub fn fill(&mut self, isa: Isa, weight: &WeightView<'_>, first: usize, chunks: Range<usize>) {
        let in_features = weight.in_features();
        self.shape = Shape::of(weight);
        self.first_block = chunks.start * CHUNK_BLOCKS;
        self.blocks = (chunks.end * CHUNK_BLOCKS).min(in_features.div_ceil(BLOCK)) - self.first_block;
        // Whole chunks, so that a row may write eight scales at once.
        let blocks = chunks.len() * CHUNK_BLOCKS;
        let per_block = if self.shape.halves { 2 * ROWS } else { ROWS };
        self.codes.resize(blocks * 8 * ROWS, 0);
        self.scales.resize(blocks * per_block, 0.0);
        self.offsets.resize(blocks * per_block, 0.0);
        for r in 0..ROWS {
            if first + r < weight.out_features() {
                self.fill_row(isa, &Row::of(weight, first + r), in_features, chunks.clone(), r);
            } else {
                self.codes.iter_mut().skip(r).step_by(ROWS).for_each(|codes| *codes = 0);
                self.scales.iter_mut().skip(r).step_by(ROWS).for_each(|scale| *scale = 0.0);
                self.offsets.iter_mut().skip(r).step_by(ROWS).for_each(|offset| *offset = 0.0);
            }
        }
    }

    fn fill_row(&mut self, isa: Isa, row: &Row<'_>, in_features: usize, chunks: Range<usize>, r: usize) {
        match isa.0 {
            Kind::Scalar => {
                let step = if self.shape.halves { 1 } else { 2 };
                for (place, index) in chunks.enumerate() {
                    let chunk = Chunk::of(row, in_features, index);
                    let codes = chunk.codes.map(|code| code as u8);
                    self.place(r, place, &codes, &chunk.scales, &chunk.offsets, step);
                }
            }
            // SAFETY: only `Isa::available` makes these, after asking the CPU; the chunks lie within the row.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::Avx512 => unsafe {
                crate::avx2::fill_row(self, row, in_features, chunks, r);
            },
        }
    }

    /// Writes the chunk `chunk`, counted over the panel, of row `r`; every `step`th scale and offset is taken.
    #[inline(always)]
    pub fn place(
        &mut self,
        r: usize,
        chunk: usize,
        codes: &[u8; CHUNK],
        scales: &[f32; 16],
        offsets: &[f32; 16],
        step: usize,
    ) {
        let quads = &mut self.codes[chunk * (CHUNK / 4) * ROWS..][..(CHUNK / 4) * ROWS];
        for (quad, codes) in quads.chunks_exact_mut(ROWS).zip(codes.chunks_exact(4)) {
            quad[r] = u32::from_le_bytes([codes[0], codes[1], codes[2], codes[3]]);
        }
        let parts = 16 / step;
        for part in 0..parts {
            let at = (chunk * parts + part) * ROWS + r;
            self.scales[at] = scales[part * step];
            self.offsets[at] = offsets[part * step];
        }
    }
}

/// Adds a panel's product with up to [`TILE_TOKENS`] tokens to `sums`, `[tokens][16 rows]`.
///
/// Each sum is one chain over the blocks, in order: `sum + Σ code · token code · (scale · token scale)`, then
/// `− offset · token sum`, each fused; with halves, so for each half. The inner sum is an integer, exact.
pub(crate) fn multiply(isa: Isa, panel: &Panel, tokens: &[Token<'_>], sums: &mut [f32]) {
    assert!(tokens.len() <= TILE_TOKENS, "tokens of a tile");
    assert_eq!(sums.len(), tokens.len() * ROWS, "sums of a tile");
    let end = panel.first_block + panel.blocks;
    assert!(tokens.iter().all(|token| token.scales.len() >= end), "blocks of the tokens");
    match isa.0 {
        Kind::Scalar => multiply_scalar(panel, tokens, sums),
        // SAFETY: only `Isa::available` makes these, after asking the CPU; lengths checked above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { crate::avx2::multiply_tile(panel, tokens, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { crate::avx512::multiply_tile(panel, tokens, sums) },
    }
}

fn multiply_scalar(panel: &Panel, tokens: &[Token<'_>], sums: &mut [f32]) {
    let Shape { signed, halves, offsets, .. } = panel.shape;
    let parts = if halves { 2 } else { 1 };
    for (token, sums) in tokens.iter().zip(sums.chunks_exact_mut(ROWS)) {
        for own in 0..panel.blocks {
            let block = panel.first_block + own;
            for part in 0..parts {
                let token_sum = if halves { token.half_sums[2 * block + part] } else { token.sums[block] };
                let quads = part * 4..part * 4 + 8 / parts;
                for (r, sum) in sums.iter_mut().enumerate() {
                    let mut products = 0;
                    for quad in quads.clone() {
                        let codes = panel.codes[(8 * own + quad) * ROWS + r].to_le_bytes();
                        for (i, code) in codes.into_iter().enumerate() {
                            let code = if signed { i32::from(code as i8) } else { i32::from(code) };
                            products += code * i32::from(token.codes[32 * block + 4 * quad + i]);
                        }
                    }
                    let at = (parts * own + part) * ROWS + r;
                    *sum = (products as f32).mul_add(panel.scales[at] * token.scales[block], *sum);
                    if offsets {
                        *sum = (-panel.offsets[at]).mul_add(token_sum, *sum);
                    }
                }
            }
        }
    }
}
