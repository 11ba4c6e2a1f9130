//! A panel of 16 rows of f32 times a few tokens.
#![allow(clippy::needless_range_loop, reason = "indices name registers, of several arrays at once")]

use std::arch::x86_64::*;

use crate::dense_panel::{COLUMNS, ROWS};

/// `[16 rows][256]` to `[256][16 rows]`.
///
/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn transpose(rows: &[f32; ROWS * COLUMNS], values: &mut [f32; ROWS * COLUMNS]) {
    for half in 0..2 {
        for column in (0..COLUMNS).step_by(8) {
            // SAFETY: eight rows of eight columns lie within both arrays.
            unsafe {
                let from = rows.as_ptr().add(8 * half * COLUMNS + column);
                let to = values.as_mut_ptr().add(column * ROWS + 8 * half);
                transpose8(from, to);
            }
        }
    }
}

/// Eight rows, 256 apart, of eight columns to eight columns, 16 apart, of eight rows.
#[target_feature(enable = "avx2")]
unsafe fn transpose8(from: *const f32, to: *mut f32) {
    // SAFETY: the caller's.
    unsafe {
        let mut r = [_mm256_setzero_ps(); 8];
        for (i, r) in r.iter_mut().enumerate() {
            *r = _mm256_loadu_ps(from.add(COLUMNS * i));
        }
        let mut pairs = [_mm256_setzero_ps(); 8];
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut quads = [_mm256_setzero_ps(); 8];
        for i in 0..2 {
            let p = &pairs[4 * i..4 * i + 4];
            quads[4 * i] = _mm256_shuffle_ps::<0x44>(p[0], p[2]);
            quads[4 * i + 1] = _mm256_shuffle_ps::<0xee>(p[0], p[2]);
            quads[4 * i + 2] = _mm256_shuffle_ps::<0x44>(p[1], p[3]);
            quads[4 * i + 3] = _mm256_shuffle_ps::<0xee>(p[1], p[3]);
        }
        for i in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(quads[i], quads[4 + i]);
            let high = _mm256_permute2f128_ps::<0x31>(quads[i], quads[4 + i]);
            _mm256_storeu_ps(to.add(ROWS * i), low);
            _mm256_storeu_ps(to.add(ROWS * (4 + i)), high);
        }
    }
}

/// See [`dense_panel::multiply`](crate::dense_panel::multiply).
///
/// # Safety
/// The CPU has AVX2 and FMA; `sums` is `[tokens][16]`, and every token has `columns` activations from `x` on.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn multiply_dense(
    values: &[f32; ROWS * COLUMNS],
    columns: usize,
    x: &[f32],
    stride: usize,
    sums: &mut [f32],
) {
    // Six tokens: twelve sums, two vectors of weights and an activation fill fifteen of sixteen registers.
    for (t, sums) in sums.chunks_mut(6 * ROWS).enumerate() {
        // SAFETY: as this function's.
        unsafe {
            let x = x.as_ptr().add(6 * t * stride);
            match sums.len() / ROWS {
                6 => tile::<6>(values, columns, x, stride, sums),
                5 => tile::<5>(values, columns, x, stride, sums),
                4 => tile::<4>(values, columns, x, stride, sums),
                3 => tile::<3>(values, columns, x, stride, sums),
                2 => tile::<2>(values, columns, x, stride, sums),
                _ => tile::<1>(values, columns, x, stride, sums),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const T: usize>(
    values: &[f32; ROWS * COLUMNS],
    columns: usize,
    x: *const f32,
    stride: usize,
    sums: &mut [f32],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut own = [[_mm256_setzero_ps(); 2]; T];
        for column in 0..columns {
            let at = values.as_ptr().add(ROWS * column);
            let weights = [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))];
            for t in 0..T {
                let x = _mm256_broadcast_ss(&*x.add(t * stride + column));
                own[t][0] = _mm256_fmadd_ps(weights[0], x, own[t][0]);
                own[t][1] = _mm256_fmadd_ps(weights[1], x, own[t][1]);
            }
        }
        for t in 0..T {
            for v in 0..2 {
                let at = sums.as_mut_ptr().add(ROWS * t + 8 * v);
                _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), own[t][v]));
            }
        }
    }
}
