//! Sums of f32 activations times weights unpacked in registers.
#![allow(clippy::needless_range_loop, reason = "indices name registers, of several arrays at once")]

use std::arch::x86_64::*;

use super::unpack::{Unpack, tail, with_unpack};
use crate::row::Row;

/// See [`scalar::exact_dot`](crate::scalar::exact_dot): the four accumulators are its 32 lanes.
///
/// # Safety
/// Inside a function with AVX2, FMA and F16C; `x` is as long as the row.
#[inline(always)]
pub(super) unsafe fn dot_row(row: &Row<'_>, x: &[f32]) -> f32 {
    // SAFETY: the caller's promises are those of what is called.
    unsafe { with_unpack!(row, weights => dot(weights, row, x)) }
}

#[inline(always)]
unsafe fn dot<U: Unpack>(weights: U, row: &Row<'_>, x: &[f32]) -> f32 {
    // SAFETY: whole blocks lie within the row and within `x`; the rest goes through padded buffers.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); 4];
        let blocks = x.len() / 32;
        for block in 0..blocks {
            let w = weights.unpack32(block);
            let x = x.as_ptr().add(32 * block);
            for j in 0..4 {
                sums[j] = _mm256_fmadd_ps(w[j], _mm256_loadu_ps(x.add(8 * j)), sums[j]);
            }
        }
        if !x.len().is_multiple_of(32) {
            let (w, x) = tail(row, 32 * blocks, x);
            for j in 0..4 {
                let w = _mm256_loadu_ps(w.as_ptr().add(8 * j));
                sums[j] = _mm256_fmadd_ps(w, _mm256_loadu_ps(x.as_ptr().add(8 * j)), sums[j]);
            }
        }
        add_up(sums)
    }
}

/// [`scalar::tree32`](crate::scalar::tree32).
#[inline(always)]
pub(super) unsafe fn add_up(sums: [__m256; 4]) -> f32 {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { sum8(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]))) }
}

/// [`scalar::tree8`](crate::scalar::tree8).
#[inline(always)]
pub(crate) unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}
