//! A panel of 16 rows times a few tokens.
#![allow(clippy::needless_range_loop, reason = "indices name registers, of several arrays at once")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::fast::{Codes, with_codes};
use crate::activations::{CHUNK, CHUNK_BLOCKS, Token};
use crate::panel::{Panel, ROWS};
use crate::row::Row;

/// Unpacks some chunks of one row into place `r` of a panel.
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; the panel has the row's shape.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn fill_row(
    panel: &mut Panel,
    row: &Row<'_>,
    in_features: usize,
    chunks: Range<usize>,
    r: usize,
) {
    // SAFETY: the features are this function's own.
    unsafe { with_codes!(row, in_features, codes => fill(codes, panel, in_features, chunks, r)) };
}

#[inline(always)]
unsafe fn fill<C: Codes>(source: C, panel: &mut Panel, in_features: usize, chunks: Range<usize>, r: usize) {
    // SAFETY: blocks lie within the row; arrays hold a chunk.
    unsafe {
        for (place, chunk) in chunks.enumerate() {
            let n = (in_features - chunk * CHUNK).div_ceil(32).min(CHUNK_BLOCKS);
            let mut codes = [0u8; CHUNK];
            for j in 0..n {
                let block = CHUNK_BLOCKS * chunk + j;
                let block = if n == CHUNK_BLOCKS { source.codes(block) } else { source.last_codes(block) };
                _mm256_storeu_si256(codes.as_mut_ptr().add(32 * j).cast(), block);
            }
            let (s, o) = source.scales(chunk, n);
            let (mut scales, mut offsets) = ([0f32; 16], [0f32; 16]);
            if C::HALVES {
                for half in 0..2 {
                    _mm256_storeu_ps(scales.as_mut_ptr().add(8 * half), s[half]);
                    _mm256_storeu_ps(offsets.as_mut_ptr().add(8 * half), o[half]);
                }
                panel.place(r, place, &codes, &scales, &offsets, 1);
            } else {
                let spread = |v: __m256, out: &mut [f32; 16]| {
                    _mm256_storeu_ps(out.as_mut_ptr(), _mm256_unpacklo_ps(v, v));
                    _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_unpackhi_ps(v, v));
                };
                // Unpacking works within 128-bit halves, so their order is mended first.
                let order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
                spread(_mm256_permutevar8x32_ps(s[0], order), &mut scales);
                spread(_mm256_permutevar8x32_ps(o[0], order), &mut offsets);
                panel.place(r, place, &codes, &scales, &offsets, 2);
            }
        }
    }
}

/// See [`panel::multiply`](crate::panel::multiply).
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; blocks lie within the panel and the tokens; `sums` is `[tokens][16]`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn multiply_tile(panel: &Panel, tokens: &[Token<'_>], sums: &mut [f32]) {
    let shape = panel.shape;
    // Four tokens: their eight 16-bit sums stay in registers beside the codes.
    for (tokens, sums) in tokens.chunks(4).zip(sums.chunks_mut(4 * ROWS)) {
        // SAFETY: as this function's.
        unsafe {
            match (shape.signed, shape.nibbles, shape.halves, shape.offsets) {
                (true, _, false, false) => by_tokens::<SIGNED, false>(panel, tokens, sums),
                (true, _, false, true) => by_tokens::<SIGNED, true>(panel, tokens, sums),
                (true, _, true, _) => by_tokens::<SIGNED_HALVES, false>(panel, tokens, sums),
                (false, true, ..) => by_tokens::<NIBBLES, true>(panel, tokens, sums),
                (false, false, false, _) => by_tokens::<BYTES, true>(panel, tokens, sums),
                (false, false, true, _) => by_tokens::<HALVES, true>(panel, tokens, sums),
            }
        }
    }
}

/// Signed codes of eight bits.
const SIGNED: u8 = 0;
/// Unsigned codes below 16.
const NIBBLES: u8 = 1;
/// Unsigned codes below 32.
const BYTES: u8 = 2;
/// Unsigned codes below 64, with scales of half blocks.
const HALVES: u8 = 3;
/// Signed codes of eight bits, with scales of half blocks.
const SIGNED_HALVES: u8 = 4;

#[inline(always)]
unsafe fn by_tokens<const KIND: u8, const OFFSETS: bool>(
    panel: &Panel,
    tokens: &[Token<'_>],
    sums: &mut [f32],
) {
    // SAFETY: as the caller's.
    unsafe {
        match *tokens {
            [a, b, c, d] => tile::<KIND, OFFSETS, 4>(panel, [a, b, c, d], sums),
            [a, b, c] => tile::<KIND, OFFSETS, 3>(panel, [a, b, c], sums),
            [a, b] => tile::<KIND, OFFSETS, 2>(panel, [a, b], sums),
            [a] => tile::<KIND, OFFSETS, 1>(panel, [a], sums),
            _ => {}
        }
    }
}

#[inline(always)]
unsafe fn tile<const KIND: u8, const OFFSETS: bool, const T: usize>(
    panel: &Panel,
    tokens: [Token<'_>; T],
    sums: &mut [f32],
) {
    // SAFETY: `sums` is [T][16]; the blocks lie within the panel's arrays and the tokens'.
    unsafe {
        let sums = sums.as_mut_ptr();
        let mut totals = [[_mm256_setzero_ps(); 2]; T];
        for t in 0..T {
            for v in 0..2 {
                totals[t][v] = _mm256_loadu_ps(sums.add(ROWS * t + 8 * v));
            }
        }
        let parts = if matches!(KIND, HALVES | SIGNED_HALVES) { 2 } else { 1 };
        // Quads of columns whose pairs of products add up in 16 bits: 8 * 2 * 15 * 127, 4 * 2 * 31 * 127 and
        // 2 * 2 * 63 * 127 are all below 2^15. Signed pairs fill 16 bits alone.
        let run = match KIND {
            NIBBLES => 8,
            BYTES => 4,
            HALVES => 2,
            _ => 1,
        };
        // Opaque, so that this stays a loop: unrolled, the compiler reorders its sums and spills half of them, which
        // halves the speed.
        let runs = std::hint::black_box(8 / (run * parts));
        let run = if run > 2 { std::hint::black_box(run) } else { run };
        let ones = _mm256_set1_epi16(1);
        let mut weights_at = panel.codes.as_ptr().cast::<__m256i>();
        for own in 0..panel.blocks {
            let block = panel.first_block + own;
            let mut column = 32 * block;
            for part in 0..parts {
                let mut wide = [[_mm256_setzero_si256(); 2]; T];
                for _ in 0..runs {
                    let mut narrow = [[_mm256_setzero_si256(); 2]; T];
                    for _ in 0..run {
                        let weights = [_mm256_loadu_si256(weights_at), _mm256_loadu_si256(weights_at.add(1))];
                        for t in 0..T {
                            let at = tokens[t].codes.as_ptr().add(column);
                            let x = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
                            for v in 0..2 {
                                let pairs = if matches!(KIND, SIGNED | SIGNED_HALVES) {
                                    _mm256_maddubs_epi16(
                                        _mm256_abs_epi8(weights[v]),
                                        _mm256_sign_epi8(x, weights[v]),
                                    )
                                } else {
                                    _mm256_maddubs_epi16(weights[v], x)
                                };
                                narrow[t][v] = _mm256_add_epi16(narrow[t][v], pairs);
                            }
                        }
                        weights_at = weights_at.add(2);
                        column += 4;
                    }
                    for t in 0..T {
                        for v in 0..2 {
                            wide[t][v] = _mm256_add_epi32(wide[t][v], _mm256_madd_epi16(narrow[t][v], ones));
                        }
                    }
                }
                let at = (parts * own + part) * ROWS;
                for v in 0..2 {
                    let scales = _mm256_loadu_ps(panel.scales.as_ptr().add(at + 8 * v));
                    let offsets = _mm256_loadu_ps(panel.offsets.as_ptr().add(at + 8 * v));
                    for t in 0..T {
                        let scale = _mm256_set1_ps(*tokens[t].scales.as_ptr().add(block));
                        let products = _mm256_cvtepi32_ps(wide[t][v]);
                        totals[t][v] = _mm256_fmadd_ps(products, _mm256_mul_ps(scales, scale), totals[t][v]);
                        if OFFSETS {
                            let token_sum = if KIND == HALVES {
                                *tokens[t].half_sums.as_ptr().add(2 * block + part)
                            } else {
                                *tokens[t].sums.as_ptr().add(block)
                            };
                            totals[t][v] = _mm256_fnmadd_ps(offsets, _mm256_set1_ps(token_sum), totals[t][v]);
                        }
                    }
                }
            }
        }
        for t in 0..T {
            for v in 0..2 {
                _mm256_storeu_ps(sums.add(ROWS * t + 8 * v), totals[t][v]);
            }
        }
    }
}
