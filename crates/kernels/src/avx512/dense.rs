//! A panel of 16 rows of f32 times a few tokens: one vector holds a column of all rows.
#![allow(clippy::needless_range_loop, reason = "indices name registers, of several arrays at once")]

use std::arch::x86_64::*;

use crate::dense_panel::{COLUMNS, ROWS};

/// See [`dense_panel::multiply`](crate::dense_panel::multiply).
///
/// # Safety
/// The CPU has AVX-512 F; `sums` is `[tokens][16]`, and every token has `columns` activations from `x` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn multiply_dense(
    values: &[f32; ROWS * COLUMNS],
    columns: usize,
    x: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    // SAFETY: as this function's.
    unsafe {
        if sums.len() == 12 * ROWS {
            return tile::<12>(values, columns, x.as_ptr(), stride, sums);
        }
        for (t, sums) in sums.chunks_mut(4 * ROWS).enumerate() {
            let x = x.as_ptr().add(4 * t * stride);
            match sums.len() / ROWS {
                4 => tile::<4>(values, columns, x, stride, sums),
                3 => tile::<3>(values, columns, x, stride, sums),
                2 => tile::<2>(values, columns, x, stride, sums),
                _ => tile::<1>(values, columns, x, stride, sums),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const T: usize>(
    values: &[f32; ROWS * COLUMNS],
    columns: usize,
    x: *const f32,
    stride: usize,
    sums: &mut [f32],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut own = [_mm512_setzero_ps(); T];
        for column in 0..columns {
            let weights = _mm512_loadu_ps(values.as_ptr().add(ROWS * column));
            for t in 0..T {
                own[t] = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x.add(t * stride + column)), own[t]);
            }
        }
        for t in 0..T {
            let at = sums.as_mut_ptr().add(ROWS * t);
            _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), own[t]));
        }
    }
}
