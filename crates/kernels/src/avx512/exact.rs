//! Sums of f32 activations times weights unpacked in registers.
#![allow(clippy::needless_range_loop, reason = "indices name registers, of several arrays at once")]

use std::arch::x86_64::*;

use super::unpack::Unpack;
use crate::avx2::exact::sum8;
use crate::avx2::unpack::{tail, with_unpack};
use crate::row::Row;

/// See [`scalar::exact_dot`](crate::scalar::exact_dot): the two accumulators are its 32 lanes.
///
/// # Safety
/// Inside a function with the features of [`super::exact_dot`]; `x` is as long as the row.
#[inline(always)]
pub(super) unsafe fn dot_row(row: &Row<'_>, x: &[f32]) -> f32 {
    // SAFETY: the caller's promises are those of what is called.
    unsafe { with_unpack!(row, weights => dot(weights, row, x)) }
}

#[inline(always)]
unsafe fn dot<U: Unpack>(weights: U, row: &Row<'_>, x: &[f32]) -> f32 {
    // SAFETY: whole blocks lie within the row and within `x`; the rest goes through padded buffers.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); 2];
        let blocks = x.len() / 32;
        for block in 0..blocks {
            let w = weights.unpack32(block);
            let x = x.as_ptr().add(32 * block);
            sums[0] = _mm512_fmadd_ps(w[0], _mm512_loadu_ps(x), sums[0]);
            sums[1] = _mm512_fmadd_ps(w[1], _mm512_loadu_ps(x.add(16)), sums[1]);
        }
        if !x.len().is_multiple_of(32) {
            let (w, x) = tail(row, 32 * blocks, x);
            for j in 0..2 {
                let w = _mm512_loadu_ps(w.as_ptr().add(16 * j));
                sums[j] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x.as_ptr().add(16 * j)), sums[j]);
            }
        }
        add_up(sums)
    }
}

/// [`scalar::tree32`](crate::scalar::tree32): the halves of each are added first.
#[inline(always)]
pub(super) unsafe fn add_up(sums: [__m512; 2]) -> f32 {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let first = _mm256_add_ps(_mm512_castps512_ps256(sums[0]), upper(sums[0]));
        let second = _mm256_add_ps(_mm512_castps512_ps256(sums[1]), upper(sums[1]));
        sum8(_mm256_add_ps(first, second))
    }
}

/// The upper eight lanes. (The instruction that takes them as floats is AVX-512 DQ's.)
#[inline(always)]
unsafe fn upper(v: __m512) -> __m256 {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v))) }
}
