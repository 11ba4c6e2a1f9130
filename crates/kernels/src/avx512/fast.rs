//! Sums of int8 activations times integer codes, two blocks at a time.

use std::arch::x86_64::*;

use super::exact::add_up;
use crate::activations::{CHUNK, CHUNK_BLOCKS, Token};
use crate::avx2::exact::sum8;
use crate::avx2::{Codes, with_codes};
use crate::row::Row;

/// See [`scalar::fast_dot`](crate::scalar::fast_dot).
///
/// # Safety
/// Inside a function with the features of [`super::fast_dot`]; `token` is as long as the row; the encoding has a
/// fast path.
#[inline(always)]
pub(super) unsafe fn dot_row(row: &Row<'_>, in_features: usize, token: Token<'_>) -> f32 {
    // SAFETY: the caller's promises are those of what is called.
    unsafe { with_codes!(row, in_features, codes => dot(codes, in_features, token)).unwrap_or(f32::NAN) }
}

#[inline(always)]
unsafe fn dot<C: Codes>(codes: C, in_features: usize, token: Token<'_>) -> f32 {
    // SAFETY: all blocks lie within the row, and the token's arrays are padded to whole chunks.
    unsafe {
        let mut sums = Sums { products: [_mm512_setzero_ps(); 2], offsets: _mm256_setzero_ps() };
        let chunks = in_features / CHUNK;
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

/// The lanes of [`scalar::fast_dot`](crate::scalar::fast_dot): an even block of a chunk has the lower half of an
/// accumulator, the odd one after it the upper half.
struct Sums {
    products: [__m512; 2],
    offsets: __m256,
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
        // Eight scales of blocks, or sixteen of half blocks.
        let products = if C::HALVES {
            let both = join_ps(scales[0], scales[1]);
            let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            let token_scales = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(token_scales));
            let half_sums = token.half_sums.as_ptr().add(2 * first);
            sums.offsets = _mm256_fmadd_ps(offsets[0], _mm256_loadu_ps(half_sums), sums.offsets);
            sums.offsets = _mm256_fmadd_ps(offsets[1], _mm256_loadu_ps(half_sums.add(8)), sums.offsets);
            _mm512_mul_ps(both, token_scales)
        } else {
            if C::OFFSETS {
                let block_sums = _mm256_loadu_ps(token.sums.as_ptr().add(first));
                sums.offsets = _mm256_fmadd_ps(offsets[0], block_sums, sums.offsets);
            }
            _mm512_castps256_ps512(_mm256_mul_ps(scales[0], token_scales))
        };
        macro_rules! add_pairs {
            ($($j:literal)*) => {
                $(if WHOLE || $j < n {
                    let block = first + $j;
                    let (even, odd) = if WHOLE {
                        (codes.codes(block), codes.codes(block + 1))
                    } else if $j + 1 < n {
                        (codes.last_codes(block), codes.last_codes(block + 1))
                    } else {
                        // A row may end after an odd number of blocks.
                        (codes.last_codes(block), _mm256_setzero_si256())
                    };
                    add_pair::<C, $j>(join(even, odd), block, token, products, sums);
                })*
            };
        }
        add_pairs!(0 2 4 6);
    }
}

/// Adds blocks `block` and the next, the `J`th of their chunk and the next.
#[inline(always)]
unsafe fn add_pair<C: Codes, const J: usize>(
    codes: __m512i,
    block: usize,
    token: Token<'_>,
    products: __m512,
    sums: &mut Sums,
) {
    // SAFETY: the token's codes hold whole chunks, so 64 of them may be read.
    unsafe {
        let activations = _mm512_loadu_si512(token.codes.as_ptr().add(32 * block).cast());
        let lanes = if C::SIGNED {
            lanes_signed(codes, activations)
        } else {
            _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, activations)
        };
        let j = J as i32;
        let own = if C::HALVES {
            let at = 2 * j;
            let (a, b, c, d) = (at, at + 1, at + 2, at + 3);
            _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d)
        } else {
            let (a, b) = (j, j + 1);
            _mm512_setr_epi32(a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b)
        };
        let scale = _mm512_permutexvar_ps(own, products);
        let sum = &mut sums.products[J / 2 % 2];
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(lanes), scale, *sum);
    }
}

/// Sums of four products of signed codes: code + 128 is unsigned, and 128 times the activations is taken off again.
#[inline(always)]
unsafe fn lanes_signed(codes: __m512i, activations: __m512i) -> __m512i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let shift = _mm512_set1_epi8(-128);
        let (zero, unsigned) = (_mm512_setzero_si512(), _mm512_xor_si512(codes, shift));
        let shifted = _mm512_dpbusd_epi32(zero, unsigned, activations);
        _mm512_sub_epi32(shifted, _mm512_dpbusd_epi32(zero, shift, activations))
    }
}

#[inline(always)]
unsafe fn join(low: __m256i, high: __m256i) -> __m512i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high) }
}

#[inline(always)]
unsafe fn join_ps(low: __m256, high: __m256) -> __m512 {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm512_castsi512_ps(join(_mm256_castps_si256(low), _mm256_castps_si256(high))) }
}
