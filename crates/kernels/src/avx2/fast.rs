//! Sums of int8 activations times integer codes.

use std::arch::x86_64::*;

use super::exact::{add_up, sum8};
use crate::activations::{CHUNK, CHUNK_BLOCKS, Token};
use crate::row::Row;

/// A row of codes with eight blocks of 32 to a chunk. See [`scalar::Chunk`](crate::scalar::Chunk).
pub(crate) trait Codes: Copy {
    /// Codes are signed and use all eight bits; otherwise they are unsigned and below 64.
    const SIGNED: bool;
    /// Each block has two scales and two offsets, one a half.
    const HALVES: bool = false;
    /// There is something to subtract.
    const OFFSETS: bool = true;

    /// Scales and offsets of the first `n` blocks of chunk `chunk`, zeros behind them. The second pair is of the
    /// halves 8 to 15 where there are [`HALVES`](Self::HALVES), else unspecified.
    ///
    /// # Safety
    /// Inside a function with AVX2, FMA and F16C; the blocks lie within the row.
    unsafe fn scales(self, chunk: usize, n: usize) -> ([__m256; 2], [__m256; 2]);

    /// Codes of block `block`, counted over the row.
    ///
    /// # Safety
    /// As [`scales`](Self::scales).
    unsafe fn codes(self, block: usize) -> __m256i;

    /// The same of a block that the row may end in.
    ///
    /// # Safety
    /// As [`scales`](Self::scales).
    #[inline(always)]
    unsafe fn last_codes(self, block: usize) -> __m256i {
        // SAFETY: as this function's.
        unsafe { self.codes(block) }
    }
}

/// Runs an expression with the row as its own [`Codes`] type; `None` where the encoding has no fast path.
macro_rules! with_codes {
    ($row:expr, $in_features:expr, $codes:ident => $body:expr) => {{
        use $crate::avx2::blocks::with_block;
        use $crate::avx2::groups::with_whole_groups;
        use $crate::row::Row;
        match *$row {
            Row::Float { .. } | Row::Sparse(_) | Row::Scaled(_) | Row::Column { .. } => None,
            Row::Block { block, bytes } => Some(with_block!(block, bytes, $codes => $body)),
            Row::Grouped(row) => with_whole_groups!(row, $in_features, $codes => $body),
        }
    }};
}
pub(crate) use with_codes;

/// See [`scalar::fast_dot`](crate::scalar::fast_dot).
///
/// # Safety
/// Inside a function with AVX2, FMA and F16C; `token` is as long as the row; the encoding has a fast path.
#[inline(always)]
pub(super) unsafe fn dot_row(row: &Row<'_>, in_features: usize, token: Token<'_>) -> f32 {
    // SAFETY: the caller's promises are those of what is called.
    unsafe { with_codes!(row, in_features, codes => dot(codes, in_features, token)).unwrap_or(f32::NAN) }
}

#[inline(always)]
unsafe fn dot<C: Codes>(codes: C, in_features: usize, token: Token<'_>) -> f32 {
    let mut sums = Sums::default();
    let chunks = in_features / CHUNK;
    // SAFETY: all blocks lie within the row, and the token's arrays are padded to whole chunks.
    unsafe {
        for chunk in 0..chunks {
            add_chunk::<C, true>(codes, chunk, CHUNK_BLOCKS, token, &mut sums);
        }
        let rest = (in_features % CHUNK).div_ceil(32);
        if rest > 0 {
            add_chunk::<C, false>(codes, chunks, rest, token, &mut sums);
        }
        let total = add_up(sums.products);
        if C::OFFSETS { total - sum8(sums.offsets) } else { total }
    }
}

/// The lanes of [`scalar::fast_dot`](crate::scalar::fast_dot).
struct Sums {
    products: [__m256; 4],
    offsets: __m256,
}

impl Default for Sums {
    #[inline(always)]
    fn default() -> Self {
        // SAFETY: all bits zero is a vector of zeros.
        unsafe { std::mem::zeroed() }
    }
}

/// Adds the first `n` blocks of a chunk; `WHOLE` says that they are all eight.
#[inline(always)]
unsafe fn add_chunk<C: Codes, const WHOLE: bool>(
    codes: C,
    chunk: usize,
    n: usize,
    token: Token<'_>,
    sums: &mut Sums,
) {
    // SAFETY: the blocks lie within the row, and the token's arrays hold the whole chunk.
    unsafe {
        let first = CHUNK_BLOCKS * chunk;
        let (scales, offsets) = codes.scales(chunk, n);
        let token_scales = _mm256_loadu_ps(token.scales.as_ptr().add(first));
        // A block's two scales lie side by side, the same twice where there are no halves.
        let mut products = [0f32; 16];
        if C::HALVES {
            let low = _mm256_permutevar8x32_ps(token_scales, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
            let high = _mm256_permutevar8x32_ps(token_scales, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
            _mm256_storeu_ps(products.as_mut_ptr(), _mm256_mul_ps(scales[0], low));
            _mm256_storeu_ps(products.as_mut_ptr().add(8), _mm256_mul_ps(scales[1], high));
            let half_sums = token.half_sums.as_ptr().add(2 * first);
            sums.offsets = _mm256_fmadd_ps(offsets[0], _mm256_loadu_ps(half_sums), sums.offsets);
            sums.offsets = _mm256_fmadd_ps(offsets[1], _mm256_loadu_ps(half_sums.add(8)), sums.offsets);
        } else {
            _mm256_storeu_ps(products.as_mut_ptr(), _mm256_mul_ps(scales[0], token_scales));
            if C::OFFSETS {
                let block_sums = _mm256_loadu_ps(token.sums.as_ptr().add(first));
                sums.offsets = _mm256_fmadd_ps(offsets[0], block_sums, sums.offsets);
            }
        }
        // Spelled out so that lanes are indexed by constants and stay in registers.
        macro_rules! add_blocks {
            ($($j:literal)*) => {
                $(if WHOLE || $j < n {
                    let block = first + $j;
                    let own = if WHOLE { codes.codes(block) } else { codes.last_codes(block) };
                    add_block::<C, $j>(own, block, token, &products, sums);
                })*
            };
        }
        add_blocks!(0 1 2 3 4 5 6 7);
    }
}

/// Adds block `block`, the `J`th of its chunk; `scales` are the chunk's, times the token's.
#[inline(always)]
unsafe fn add_block<C: Codes, const J: usize>(
    codes: __m256i,
    block: usize,
    token: Token<'_>,
    scales: &[f32; 16],
    sums: &mut Sums,
) {
    // SAFETY: the block lies within the row and within the token's codes.
    unsafe {
        let activations = _mm256_loadu_si256(token.codes.as_ptr().add(32 * block).cast());
        let lanes =
            if C::SIGNED { lanes_signed(codes, activations) } else { lanes_unsigned(codes, activations) };
        let scale = if C::HALVES {
            let pair = scales.as_ptr().add(2 * J).cast::<f64>().read_unaligned();
            _mm256_permutevar_ps(
                _mm256_castpd_ps(_mm256_set1_pd(pair)),
                _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1),
            )
        } else {
            _mm256_set1_ps(scales[J])
        };
        sums.products[J % 4] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(lanes), scale, sums.products[J % 4]);
    }
}

/// Sums of four products each. Codes stay below 64, so that a pair of products fits 16 bits: 2 * 63 * 127 < 2^15.
#[inline(always)]
unsafe fn lanes_unsigned(codes: __m256i, activations: __m256i) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(codes, activations), _mm256_set1_epi16(1)) }
}

/// The same for signed codes: the sign moves to the activation. |−128| is 128 as an unsigned byte, and
/// 2 * 128 * 127 < 2^15.
#[inline(always)]
unsafe fn lanes_signed(codes: __m256i, activations: __m256i) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let magnitudes = _mm256_abs_epi8(codes);
        let signed = _mm256_sign_epi8(activations, codes);
        _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, signed), _mm256_set1_epi16(1))
    }
}
