//! Activations rounded to int8 in blocks of 32, each with a scale of its own.

use bitmill_tensor::Matrix;
use rayon::prelude::*;

use crate::isa::{Isa, Kind};

/// Columns that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Rows are padded to whole chunks of this many blocks, so that kernels may load eight scales at once.
pub(crate) const CHUNK_BLOCKS: usize = 8;
/// Columns of a chunk.
pub(crate) const CHUNK: usize = BLOCK * CHUNK_BLOCKS;

/// Tokens from which rounding is worth splitting over threads.
const PARALLEL_TOKENS: usize = 16;

/// Rounded activations of some tokens. `x ≈ scale * code`; padding is zero.
#[derive(Default)]
pub(crate) struct Activations {
    tokens: usize,
    blocks: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
    half_sums: Vec<f32>,
    code_sums: Vec<i32>,
}

/// One token of [`Activations`].
#[derive(Clone, Copy)]
pub(crate) struct Token<'a> {
    /// int8 codes in −127..=127, padded to whole chunks.
    pub codes: &'a [i8],
    /// One scale a block.
    pub scales: &'a [f32],
    /// `scale * Σ code` of each block.
    pub sums: &'a [f32],
    /// The same of each half block of 16 columns.
    pub half_sums: &'a [f32],
    /// `Σ code` of each half block.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "the VNNI twin reads it"))]
    pub code_sums: &'a [i32],
}

/// Where one token's rounded values go.
struct TokenMut<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    half_sums: &'a mut [f32],
    code_sums: &'a mut [i32],
}

impl Activations {
    /// Rounds every row of `x`, keeping the memory of the last call.
    pub fn round(&mut self, isa: Isa, x: &Matrix) {
        let chunks = x.cols().div_ceil(CHUNK);
        self.tokens = x.rows();
        self.blocks = chunks * CHUNK_BLOCKS;
        let blocks = self.tokens * self.blocks;
        self.codes.resize(blocks * BLOCK, 0);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(blocks, 0.0);
        self.half_sums.resize(2 * blocks, 0.0);
        self.code_sums.resize(2 * blocks, 0);
        if blocks == 0 {
            return;
        }
        let per_row = self.blocks;
        let rows = self
            .codes
            .chunks_exact_mut(per_row * BLOCK)
            .zip(self.scales.chunks_exact_mut(per_row))
            .zip(self.sums.chunks_exact_mut(per_row))
            .zip(self.half_sums.chunks_exact_mut(2 * per_row))
            .zip(self.code_sums.chunks_exact_mut(2 * per_row))
            .enumerate()
            .map(|(t, ((((codes, scales), sums), half_sums), code_sums))| {
                (x.row(t), TokenMut { codes, scales, sums, half_sums, code_sums })
            });
        if self.tokens < PARALLEL_TOKENS {
            rows.for_each(|(x, out)| round_token(isa, x, out));
        } else {
            let rows: Vec<_> = rows.collect();
            rows.into_par_iter().for_each(|(x, out)| round_token(isa, x, out));
        }
    }

    /// Token `token`.
    pub fn token(&self, token: usize) -> Token<'_> {
        let blocks = token * self.blocks..(token + 1) * self.blocks;
        Token {
            codes: &self.codes[blocks.start * BLOCK..blocks.end * BLOCK],
            scales: &self.scales[blocks.clone()],
            sums: &self.sums[blocks.clone()],
            half_sums: &self.half_sums[2 * blocks.start..2 * blocks.end],
            code_sums: &self.code_sums[2 * blocks.start..2 * blocks.end],
        }
    }
}

fn round_token(isa: Isa, x: &[f32], out: TokenMut<'_>) {
    let mut padded = [0f32; BLOCK];
    for (block, codes) in out.codes.chunks_exact_mut(BLOCK).enumerate() {
        let rest = x.get(block * BLOCK..).unwrap_or(&[]);
        let x: &[f32; BLOCK] = match rest.first_chunk() {
            Some(x) => x,
            None => {
                padded[..rest.len()].copy_from_slice(rest);
                padded[rest.len()..].fill(0.0);
                &padded
            }
        };
        // The chunks are 32 long.
        let Some(codes) = codes.first_chunk_mut() else { continue };
        let (scale, halves) = round_block(isa, x, codes);
        let sum = halves[0] + halves[1];
        out.scales[block] = scale;
        out.sums[block] = scale * sum as f32;
        out.half_sums[2 * block] = scale * halves[0] as f32;
        out.half_sums[2 * block + 1] = scale * halves[1] as f32;
        out.code_sums[2 * block..][..2].copy_from_slice(&halves);
    }
}

/// Rounds 32 activations; returns the scale and the codes' sum over each half.
///
/// The scale is the largest magnitude / 127; codes are `x * (127 / largest)`, rounded to nearest with ties to even.
/// A block that holds an infinity or a NaN gets codes of zero and a scale of NaN, so that what is computed from it
/// is NaN too.
fn round_block(isa: Isa, x: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    // Magnitudes order as their bits do, infinities and NaN above all, so the largest has no order of evaluation.
    let largest = f32::from_bits(x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)));
    if !largest.is_finite() {
        codes.fill(0);
        return (f32::NAN, [0, 0]);
    }
    // Below this 127 / largest is not finite; such activations are zero for every purpose.
    if largest < 1e-30 {
        codes.fill(0);
        return (0.0, [0, 0]);
    }
    let (scale, inverse) = (largest / 127.0, 127.0 / largest);
    let halves = match isa.0 {
        Kind::Scalar => round_scalar(x, inverse, codes),
        // SAFETY: only `Isa::available` makes these, after asking the CPU.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 | Kind::Avx512 => unsafe { crate::avx2::round32(x, inverse, codes) },
    };
    (scale, halves)
}

fn round_scalar(x: &[f32; BLOCK], inverse: f32, codes: &mut [i8; BLOCK]) -> [i32; 2] {
    let mut halves = [0; 2];
    for (i, (x, code)) in x.iter().zip(codes).enumerate() {
        *code = (x * inverse).round_ties_even() as i8;
        halves[i / 16] += i32::from(*code);
    }
    halves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        let mut state = 88172645463325252u64;
        (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state as i32) as f32 / i32::MAX as f32
            })
            .collect()
    }

    #[test]
    fn every_isa_rounds_to_the_same_codes() {
        for cols in [1, 31, 32, 33, 255, 256, 300, 896] {
            let x = Matrix::from_vec(3, cols, values(3 * cols));
            let mut reference = Activations::default();
            reference.round(Isa::scalar(), &x);
            for isa in Isa::available() {
                let mut found = Activations::default();
                found.round(isa, &x);
                assert_eq!(found.codes, reference.codes, "{isa} {cols}");
                assert_eq!(found.scales, reference.scales, "{isa} {cols}");
                assert_eq!(found.sums, reference.sums, "{isa} {cols}");
                assert_eq!(found.half_sums, reference.half_sums, "{isa} {cols}");
                assert_eq!(found.code_sums, reference.code_sums, "{isa} {cols}");
            }
        }
    }

    #[test]
    fn rounding_moves_an_activation_by_at_most_half_a_scale() {
        let x = Matrix::from_vec(2, 100, values(200));
        for isa in Isa::available() {
            let mut rounded = Activations::default();
            rounded.round(isa, &x);
            for t in 0..2 {
                let token = rounded.token(t);
                for (i, &x) in x.row(t).iter().enumerate() {
                    let scale = token.scales[i / BLOCK];
                    let error = (scale * f32::from(token.codes[i]) - x).abs();
                    assert!(error <= scale * 0.5001, "{isa}: {x} moved by {error}, scale {scale}");
                }
                assert!(token.codes[100..].iter().all(|&code| code == 0), "{isa}: padding");
            }
        }
    }

    #[test]
    fn a_block_with_nan_or_infinity_becomes_nan_and_zeros_stay_zero() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut data = values(96);
                data[40] = bad;
                data[64..].fill(0.0);
                let mut rounded = Activations::default();
                rounded.round(isa, &Matrix::from_vec(1, 96, data));
                let token = rounded.token(0);
                assert!(token.scales[0].is_finite() && token.scales[1].is_nan(), "{isa} {bad}");
                assert!(token.sums[1].is_nan() && token.half_sums[3].is_nan(), "{isa} {bad}");
                assert_eq!((token.scales[2], token.sums[2]), (0.0, 0.0), "{isa} {bad}");
            }
        }
    }
}
