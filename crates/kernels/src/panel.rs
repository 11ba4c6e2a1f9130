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

use bitmill_tensor::{Encoding, WeightView, ZeroPoint};

use crate::activations::{BLOCK, CHUNK, CHUNK_BLOCKS, Token};
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
    /// Blocks of 32 columns.
    pub blocks: usize,
    /// Codes are signed and use all eight bits; else they are unsigned.
    pub signed: bool,
    /// Unsigned codes are below 16, which lets eight products of pairs add up in 16 bits.
    pub nibbles: bool,
    /// Scales and offsets are of half blocks.
    pub halves: bool,
    /// There are offsets to subtract.
    pub offsets: bool,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Panel {
    pub shape: Shape,
    pub codes: Vec<u32>,
    pub scales: Vec<f32>,
    pub offsets: Vec<f32>,
}

impl Panel {
    /// Unpacks rows `[first, first + 16)` of `weight`; rows behind its last are zero.
    pub fn fill(&mut self, isa: Isa, weight: &WeightView<'_>, first: usize) {
        let in_features = weight.in_features();
        let row = Row::of(weight, first);
        let halves = has_halves(&row);
        self.shape = Shape {
            blocks: in_features.div_ceil(BLOCK),
            signed: is_signed(&row),
            nibbles: match weight.encoding() {
                Encoding::Float(_) => false,
                Encoding::Block(block) => matches!(block.name(), "q4_0" | "q4_k"),
                Encoding::Grouped(layout) => layout.bits.get() == 4,
            },
            halves,
            offsets: match weight.encoding() {
                Encoding::Grouped(layout) => {
                    layout.bits.get() != 8 || layout.zero_point == ZeroPoint::Asymmetric
                }
                _ => !is_signed(&row),
            },
        };
        // Whole chunks, so that a row may write eight scales at once.
        let blocks = in_features.div_ceil(CHUNK) * CHUNK_BLOCKS;
        let per_block = if halves { 2 * ROWS } else { ROWS };
        self.codes.resize(blocks * 8 * ROWS, 0);
        self.scales.resize(blocks * per_block, 0.0);
        self.offsets.resize(blocks * per_block, 0.0);
        for r in 0..ROWS {
            if first + r < weight.out_features() {
                self.fill_row(isa, &Row::of(weight, first + r), in_features, r);
            } else {
                self.codes.iter_mut().skip(r).step_by(ROWS).for_each(|codes| *codes = 0);
                self.scales.iter_mut().skip(r).step_by(ROWS).for_each(|scale| *scale = 0.0);
                self.offsets.iter_mut().skip(r).step_by(ROWS).for_each(|offset| *offset = 0.0);
            }
        }
    }

    fn fill_row(&mut self, isa: Isa, row: &Row<'_>, in_features: usize, r: usize) {
        match isa.0 {
            Kind::Scalar => {
                let halves = self.shape.halves;
                for index in 0..in_features.div_ceil(CHUNK) {
                    let chunk = Chunk::of(row, in_features, index);
                    let codes = chunk.codes.map(|code| code as u8);
                    self.place(r, index, &codes, &chunk.scales, &chunk.offsets, if halves { 1 } else { 2 });
                }
            }
            // SAFETY: only `Isa::available` makes these, after asking the CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::Avx512 => unsafe { crate::avx2::fill_row(self, row, in_features, r) },
        }
    }

    /// Writes one chunk of row `r`; every `step`th scale and offset is taken.
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

/// Adds blocks `[first, first + n)` of a panel's product with up to [`TILE_TOKENS`] tokens to `sums`,
/// `[tokens][16 rows]`.
///
/// Each sum is one chain over the blocks, in order: `sum + Σ code · token code · (scale · token scale)`, then
/// `− offset · token sum`, each fused; with halves, so for each half. The inner sum is an integer, exact.
pub(crate) fn multiply(
    isa: Isa,
    panel: &Panel,
    tokens: &[Token<'_>],
    first: usize,
    n: usize,
    sums: &mut [f32],
) {
    assert!(tokens.len() <= TILE_TOKENS, "tokens of a tile");
    assert_eq!(sums.len(), tokens.len() * ROWS, "sums of a tile");
    assert!(first + n <= panel.shape.blocks, "blocks of a panel");
    match isa.0 {
        Kind::Scalar => multiply_scalar(panel, tokens, first, n, sums),
        // SAFETY: only `Isa::available` makes these, after asking the CPU; lengths checked above, and tokens are as
        // long as the panel's rows.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { crate::avx2::multiply_tile(panel, tokens, first, n, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { crate::avx512::multiply_tile(panel, tokens, first, n, sums) },
    }
}

fn multiply_scalar(panel: &Panel, tokens: &[Token<'_>], first: usize, n: usize, sums: &mut [f32]) {
    let Shape { signed, halves, offsets, .. } = panel.shape;
    let parts = if halves { 2 } else { 1 };
    for (token, sums) in tokens.iter().zip(sums.chunks_exact_mut(ROWS)) {
        for block in first..first + n {
            for part in 0..parts {
                let token_sum = if halves { token.half_sums[2 * block + part] } else { token.sums[block] };
                let quads = part * 4..part * 4 + 8 / parts;
                for (r, sum) in sums.iter_mut().enumerate() {
                    let mut products = 0;
                    for quad in quads.clone() {
                        let codes = panel.codes[(8 * block + quad) * ROWS + r].to_le_bytes();
                        for (i, code) in codes.into_iter().enumerate() {
                            let code = if signed { i32::from(code as i8) } else { i32::from(code) };
                            products += code * i32::from(token.codes[32 * block + 4 * quad + i]);
                        }
                    }
                    let at = (parts * block + part) * ROWS + r;
                    *sum = (products as f32).mul_add(panel.scales[at] * token.scales[block], *sum);
                    if offsets {
                        *sum = (-panel.offsets[at]).mul_add(token_sum, *sum);
                    }
                }
            }
        }
    }
}
