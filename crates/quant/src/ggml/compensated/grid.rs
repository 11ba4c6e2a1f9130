//! What each block type can say, for any number of rows side by side.

use bitmill_tensor::BlockType;
use half::f16;

use super::lanes::{LANES, Rows};
use crate::ggml::{
    f16_scale,
    iq4::{self, index_of},
    q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0,
    refine::{Codes, Levels, Refine, Space},
};

/// Columns that are rounded before the rest of the rows hear of their errors.
pub(super) const SPAN: usize = 256;
/// Sub-blocks in a span at most.
const SUB_BLOCKS: usize = 16;
/// Blocks in a span at most.
const BLOCKS: usize = 8;

/// A block type: `weight ≈ d · scale · code − d_min · shift`.
pub(super) struct Grid {
    pub block: BlockType,
    pub space: Space,
    /// Weights in a sub-block: 16 or 32.
    pub len: usize,
    read: fn(&[u8]) -> Levels<SUB_BLOCKS>,
    write: fn(&Levels<SUB_BLOCKS>, &[u8], &mut [u8]),
}

impl Grid {
    /// `None` for types whose codes are points of a lattice, ternary or without scales of their own.
    pub(super) fn of(block: BlockType) -> Option<Self> {
        Some(match block {
            BlockType::Q4_0 => grid::<q4_0::Q4_0, 1, 32, 32, 18>(block),
            BlockType::Q4_1 => grid::<q4_1::Q4_1, 1, 32, 32, 20>(block),
            BlockType::Q5_0 => grid::<q5_0::Q5_0, 1, 32, 32, 22>(block),
            BlockType::Q5_1 => grid::<q5_1::Q5_1, 1, 32, 32, 24>(block),
            BlockType::Q8_0 => grid::<q8_0::Q8_0, 1, 32, 32, 34>(block),
            BlockType::Q2_K => grid::<q2_k::Q2_K, 16, 16, 256, 84>(block),
            BlockType::Q3_K => grid::<q3_k::Q3_K, 16, 16, 256, 110>(block),
            BlockType::Q4_K => grid::<q4_k::Q4_K, 8, 32, 256, 144>(block),
            BlockType::Q5_K => grid::<q5_k::Q5_K, 8, 32, 256, 176>(block),
            BlockType::Q6_K => grid::<q6_k::Q6_K, 16, 16, 256, 210>(block),
            BlockType::IQ4_NL => grid::<iq4::IQ4_NL, 1, 32, 32, 18>(block),
            BlockType::IQ4_XS => grid::<iq4::IQ4_XS, 8, 32, 256, 136>(block),
            BlockType::IQ1_S | BlockType::IQ1_M | BlockType::IQ2_XXS | BlockType::IQ2_XS => return None,
            BlockType::IQ2_S | BlockType::IQ3_XXS | BlockType::IQ3_S => return None,
            BlockType::TQ1_0 | BlockType::TQ2_0 | BlockType::MXFP4 => return None,
        })
    }

    /// Whether sub-blocks have scales within the block's.
    pub(super) fn has_sub_scales(&self) -> bool {
        self.space.scales.0 != self.space.scales.1
    }

    /// Whether a shift is stored.
    pub(super) fn has_shifts(&self) -> bool {
        self.space.shifts != (0, 0)
    }

    /// Reads lane `lane` of `levels` from whole blocks of one row.
    pub(super) fn read(&self, bytes: &[u8], lane: usize, levels: &mut SpanLevels) {
        let per_block = self.block.weights() / self.len;
        for (b, bytes) in bytes.chunks_exact(self.block.bytes()).enumerate() {
            let read = (self.read)(bytes);
            levels.d[b].0[lane] = read.d.to_f32();
            levels.d_min[b].0[lane] = read.d_min.to_f32();
            for j in 0..per_block {
                levels.scales[b * per_block + j].0[lane] = read.scales[j] as f32;
                levels.shifts[b * per_block + j].0[lane] = read.shifts[j] as f32;
            }
        }
    }

    /// Writes whole blocks of one row: lane `lane` of `levels` and of `codes`.
    pub(super) fn write(&self, levels: &SpanLevels, codes: &[Rows], lane: usize, bytes: &mut [u8]) {
        let weights = self.block.weights();
        let per_block = weights / self.len;
        let mut stored = [0u8; SPAN];
        for (b, bytes) in bytes.chunks_exact_mut(self.block.bytes()).enumerate() {
            let mut block =
                Levels { d: f16::ZERO, d_min: f16::ZERO, scales: [0; SUB_BLOCKS], shifts: [0; SUB_BLOCKS] };
            block.d = f16_scale(levels.d[b].0[lane]).unwrap_or(f16::ZERO);
            block.d_min = f16_scale(levels.d_min[b].0[lane]).unwrap_or(f16::ZERO);
            for j in 0..per_block {
                block.scales[j] = levels.scales[b * per_block + j].0[lane] as i32;
                block.shifts[j] = levels.shifts[b * per_block + j].0[lane] as i32;
            }
            for (stored, code) in stored.iter_mut().zip(&codes[b * weights..][..weights]) {
                *stored = match self.space.codes {
                    Codes::Integers { low, .. } => (code.0[lane] as i32 - low) as u8,
                    Codes::Values => index_of(code.0[lane]),
                };
            }
            (self.write)(&block, &stored[..weights], bytes);
        }
    }
}

fn grid<
    E: Refine<S, LEN, WEIGHTS, BYTES>,
    const S: usize,
    const LEN: usize,
    const WEIGHTS: usize,
    const BYTES: usize,
>(
    block: BlockType,
) -> Grid {
    fn widened<const S: usize>(levels: Levels<S>) -> Levels<SUB_BLOCKS> {
        let (mut scales, mut shifts) = ([0; SUB_BLOCKS], [0; SUB_BLOCKS]);
        scales[..S].copy_from_slice(&levels.scales);
        shifts[..S].copy_from_slice(&levels.shifts);
        Levels { d: levels.d, d_min: levels.d_min, scales, shifts }
    }
    Grid {
        block,
        space: E::SPACE,
        len: LEN,
        read: |bytes| widened(E::levels(bytes.try_into().expect("one block"))),
        write: |levels, codes, out| {
            let levels = Levels {
                d: levels.d,
                d_min: levels.d_min,
                scales: std::array::from_fn(|j| levels.scales[j]),
                shifts: std::array::from_fn(|j| levels.shifts[j]),
            };
            let codes = codes.try_into().expect("the codes of one block");
            E::write(&levels, codes, out.try_into().expect("one block"));
        },
    }
}

/// Scales and shifts of the blocks in a span of sixteen rows.
#[derive(Clone)]
pub(super) struct SpanLevels {
    pub d: [Rows; BLOCKS],
    pub d_min: [Rows; BLOCKS],
    pub scales: [Rows; SUB_BLOCKS],
    pub shifts: [Rows; SUB_BLOCKS],
}

impl SpanLevels {
    pub(super) const ZERO: Self = Self {
        d: [Rows::ZERO; BLOCKS],
        d_min: [Rows::ZERO; BLOCKS],
        scales: [Rows::ZERO; SUB_BLOCKS],
        shifts: [Rows::ZERO; SUB_BLOCKS],
    };

    /// Those of sub-block `j`, which lies in block `b`.
    #[inline(always)]
    pub(super) fn level(&self, b: usize, j: usize) -> Level {
        Level { d: self.d[b], d_min: self.d_min[b], scale: self.scales[j], shift: self.shifts[j] }
    }

    #[inline(always)]
    pub(super) fn set(&mut self, b: usize, j: usize, level: Level) {
        (self.d[b], self.d_min[b]) = (level.d, level.d_min);
        (self.scales[j], self.shifts[j]) = (level.scale, level.shift);
    }
}

/// Scale and shift of one sub-block.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub d: Rows,
    pub d_min: Rows,
    pub scale: Rows,
    pub shift: Rows,
}

impl Level {
    #[inline(always)]
    pub(super) fn step(&self) -> Rows {
        self.d * self.scale
    }

    #[inline(always)]
    pub(super) fn low(&self) -> Rows {
        self.d_min * self.shift
    }

    /// With the scales as f16 rounds them; those of `other` where f16 does not reach.
    #[inline(always)]
    pub(super) fn in_f16(self, other: &Self) -> Self {
        Self { d: in_f16(self.d, other.d), d_min: in_f16(self.d_min, other.d_min), ..self }
    }
}

/// `values` rounded to f16, `other` where that is infinite.
#[inline(always)]
pub(super) fn in_f16(values: Rows, other: Rows) -> Rows {
    let mut out = other;
    for lane in 0..LANES {
        if let Ok(value) = f16_scale(values.0[lane]) {
            out.0[lane] = value.to_f32();
        }
    }
    out
}
