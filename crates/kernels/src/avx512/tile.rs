//! A panel of 16 rows times a few tokens: one vector holds four columns of all rows.
#![allow(clippy::needless_range_loop, reason = "indices name registers, of several arrays at once")]

use std::arch::x86_64::*;

use crate::activations::Token;
use crate::panel::{Panel, ROWS};

/// See [`panel::multiply`](crate::panel::multiply).
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL and VNNI; blocks lie within the panel and the tokens; `sums` is `[tokens][16]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn multiply_tile(panel: &Panel, tokens: &[Token<'_>], sums: &mut [f32]) {
    let shape = panel.shape;
    // SAFETY: as this function's.
    unsafe {
        match (shape.signed, shape.halves, shape.offsets) {
            (true, false, false) => by_tokens::<true, false, false>(panel, tokens, sums),
            (true, false, true) => by_tokens::<true, false, true>(panel, tokens, sums),
            (true, true, _) => by_tokens::<true, true, false>(panel, tokens, sums),
            (false, false, _) => by_tokens::<false, false, true>(panel, tokens, sums),
            (false, true, _) => by_tokens::<false, true, true>(panel, tokens, sums),
        }
    }
}

#[inline(always)]
unsafe fn by_tokens<const SIGNED: bool, const HALVES: bool, const OFFSETS: bool>(
    panel: &Panel,
    tokens: &[Token<'_>],
    sums: &mut [f32],
) {
    // SAFETY: as the caller's.
    unsafe {
        if let Ok(tokens) = <[Token<'_>; 8]>::try_from(tokens) {
            return tile::<SIGNED, HALVES, OFFSETS, 8>(panel, tokens, sums);
        }
        for (tokens, sums) in tokens.chunks(4).zip(sums.chunks_mut(4 * ROWS)) {
            match *tokens {
                [a, b, c, d] => tile::<SIGNED, HALVES, OFFSETS, 4>(panel, [a, b, c, d], sums),
                [a, b, c] => tile::<SIGNED, HALVES, OFFSETS, 3>(panel, [a, b, c], sums),
                [a, b] => tile::<SIGNED, HALVES, OFFSETS, 2>(panel, [a, b], sums),
                [a] => tile::<SIGNED, HALVES, OFFSETS, 1>(panel, [a], sums),
                _ => {}
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<const SIGNED: bool, const HALVES: bool, const OFFSETS: bool, const T: usize>(
    panel: &Panel,
    tokens: [Token<'_>; T],
    sums: &mut [f32],
) {
    // SAFETY: `sums` is [T][16]; the blocks lie within the panel's arrays and the tokens'.
    unsafe {
        let sums = sums.as_mut_ptr();
        let mut totals = [_mm512_setzero_ps(); T];
        for t in 0..T {
            totals[t] = _mm512_loadu_ps(sums.add(ROWS * t));
        }
        let parts = if HALVES { 2 } else { 1 };
        let shift = _mm512_set1_epi8(-128);
        for own in 0..panel.blocks {
            let block = panel.first_block + own;
            let codes = panel.codes.as_ptr().add(8 * ROWS * own);
            for part in 0..parts {
                let mut products = [_mm512_setzero_si512(); T];
                if SIGNED {
                    // Codes are multiplied as code + 128; the sum starts 128 times the activations lower.
                    for t in 0..T {
                        let halves = tokens[t].code_sums.as_ptr().add(2 * block);
                        let sum = if HALVES { *halves.add(part) } else { *halves + *halves.add(1) };
                        products[t] = _mm512_set1_epi32(-128 * sum);
                    }
                }
                let quads = 8 / parts;
                for quad in part * quads..part * quads + quads {
                    let mut weights = _mm512_loadu_si512(codes.add(ROWS * quad).cast());
                    if SIGNED {
                        weights = _mm512_xor_si512(weights, shift);
                    }
                    for t in 0..T {
                        let at = tokens[t].codes.as_ptr().add(32 * block + 4 * quad);
                        let x = _mm512_set1_epi32(at.cast::<i32>().read_unaligned());
                        products[t] = _mm512_dpbusd_epi32(products[t], weights, x);
                    }
                }
                let at = (parts * own + part) * ROWS;
                let scales = _mm512_loadu_ps(panel.scales.as_ptr().add(at));
                let offsets = _mm512_loadu_ps(panel.offsets.as_ptr().add(at));
                for t in 0..T {
                    let scale = _mm512_set1_ps(*tokens[t].scales.as_ptr().add(block));
                    let products = _mm512_cvtepi32_ps(products[t]);
                    totals[t] = _mm512_fmadd_ps(products, _mm512_mul_ps(scales, scale), totals[t]);
                    if OFFSETS {
                        let token_sum = if HALVES {
                            *tokens[t].half_sums.as_ptr().add(2 * block + part)
                        } else {
                            *tokens[t].sums.as_ptr().add(block)
                        };
                        totals[t] = _mm512_fnmadd_ps(offsets, _mm512_set1_ps(token_sum), totals[t]);
                    }
                }
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(sums.add(ROWS * t), totals[t]);
        }
    }
}
