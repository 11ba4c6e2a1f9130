//! Weights of each encoding as vectors of f32, 32 at a time.

use std::arch::x86_64::*;

use crate::avx2::Codes;
use crate::avx2::blocks::{Iq4Nl, Mxfp4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Simple, SimpleBlock};
use crate::avx2::grids::{Grid, Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Tq1, Tq2};
use crate::avx2::groups::{AnyGrouped, Grouped, Uneven};
use crate::avx2::numbers::Numbers;
use crate::avx2::sparse::{KeptBf16, KeptF16, KeptF32, Sparse};
use crate::avx2::super_blocks::{Iq4Xs, Q2K, Q3K, Q4K, Q5K, Q6K, scale_and_min};
use crate::avx2::unpack::{self as narrow, Bf16, ByColumn, F16, F32, with_unpack};
use crate::row::Row;
use crate::scalar;

/// A row whose weights come 32 at a time.
pub(super) trait Unpack: Copy {
    /// Weights `[32 * block, 32 * block + 32)`, the same bits as [`scalar::unpack`].
    ///
    /// # Safety
    /// Inside a function with the features of [`super::unpack`]; those weights lie within the row.
    unsafe fn unpack32(self, block: usize) -> [__m512; 2];
}

/// See [`scalar::unpack`].
///
/// # Safety
/// Inside a function with the features of [`super::unpack`].
#[inline(always)]
pub(super) unsafe fn unpack_row(row: &Row<'_>, first: usize, out: &mut [f32]) {
    // SAFETY: as this function's.
    unsafe { with_unpack!(row, weights => unpack_blocks(weights, row, first, out)) }
}

#[inline(always)]
unsafe fn unpack_blocks<U: Unpack>(weights: U, row: &Row<'_>, first: usize, out: &mut [f32]) {
    let mut blocks = out.chunks_exact_mut(32);
    let mut at = first;
    for out in &mut blocks {
        // SAFETY: these weights lie within the row, and `out` holds 32.
        unsafe {
            let w = weights.unpack32(at / 32);
            _mm512_storeu_ps(out.as_mut_ptr(), w[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), w[1]);
        }
        at += 32;
    }
    // Floats, sparse ones too, and groups of codes end within a block; all may be read from any column.
    let rest = blocks.into_remainder();
    if !rest.is_empty() {
        scalar::unpack(row, at, rest);
    }
}

impl Unpack for F32 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: 128 bytes of the row.
        unsafe {
            let at = self.0.add(128 * block).cast::<f32>();
            [_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))]
        }
    }
}

impl Unpack for F16 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: 64 bytes of the row.
        unsafe {
            let at = self.0.add(64 * block).cast::<__m256i>();
            let part = |i| _mm512_cvtph_ps(_mm256_loadu_si256(at.add(i)));
            [part(0), part(1)]
        }
    }
}

impl Unpack for Bf16 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: 64 bytes of the row.
        unsafe {
            let at = self.0.add(64 * block).cast::<__m256i>();
            let part = |i: usize| {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.add(i)));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            };
            [part(0), part(1)]
        }
    }
}

/// 32 bytes as two vectors of i32, zero-extended.
#[inline(always)]
unsafe fn widen_codes(codes: __m256i) -> [__m512i; 2] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        [
            _mm512_cvtepu8_epi32(_mm256_castsi256_si128(codes)),
            _mm512_cvtepu8_epi32(_mm256_extracti128_si256::<1>(codes)),
        ]
    }
}

/// `(code − zero) * scale` of 32 unsigned codes.
#[inline(always)]
unsafe fn scaled(codes: __m256i, zero: i32, scale: f32) -> [__m512; 2] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let (zero, scale) = (_mm512_set1_epi32(zero), _mm512_set1_ps(scale));
        let [first, second] = widen_codes(codes);
        [
            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(first, zero)), scale),
            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(second, zero)), scale),
        ]
    }
}

impl Unpack for Simple<Q8_0> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row: 34 bytes.
        unsafe {
            let at = self.at(block);
            let scale = _mm512_set1_ps(narrow::f16_at(at));
            let part = |i: usize| {
                let codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(at.add(2 + 16 * i).cast()));
                _mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale)
            };
            [part(0), part(1)]
        }
    }
}

impl Unpack for Simple<Q4_0> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            scaled(Q4_0::codes(at), 8, narrow::f16_at(at))
        }
    }
}

impl Unpack for Simple<Q5_0> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            scaled(Q5_0::codes(at), 16, narrow::f16_at(at))
        }
    }
}

/// Scale, minimum and codes of Q4_K or Q5_K put together.
#[inline(always)]
unsafe fn above(codes: __m256i, scale: f32, min: f32) -> [__m512; 2] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let (scale, min) = (_mm512_set1_ps(scale), _mm512_set1_ps(min));
        let [first, second] = widen_codes(codes);
        [
            _mm512_sub_ps(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(first)), min),
            _mm512_sub_ps(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(second)), min),
        ]
    }
}

impl Unpack for Q4K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let (scale, min) = scale_and_min(self.at(block), block % 8);
            above(self.codes(block), scale, min)
        }
    }
}

impl Unpack for Q5K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let (scale, min) = scale_and_min(self.at(block), block % 8);
            above(self.codes(block), scale, min)
        }
    }
}

impl Unpack for Q6K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let [a, b] = self.half_scales(block);
            let zero = _mm512_set1_epi32(32);
            let [first, second] = widen_codes(self.codes(block));
            [
                _mm512_mul_ps(_mm512_set1_ps(a), _mm512_cvtepi32_ps(_mm512_sub_epi32(first, zero))),
                _mm512_mul_ps(_mm512_set1_ps(b), _mm512_cvtepi32_ps(_mm512_sub_epi32(second, zero))),
            ]
        }
    }
}

/// Types whose codes take the work: the AVX2 twin's vectors, two by two.
macro_rules! joined {
    ($($row:ty),*) => {
        $(impl Unpack for $row {
            #[inline(always)]
            unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
                // SAFETY: as this function's.
                unsafe {
                    let [a, b, c, d] = narrow::Unpack::unpack32(self, block);
                    let join = |low: __m256, high: __m256| {
                        let low = _mm512_castsi256_si512(_mm256_castps_si256(low));
                        _mm512_castsi512_ps(_mm512_inserti64x4::<1>(low, _mm256_castps_si256(high)))
                    };
                    [join(a, b), join(c, d)]
                }
            }
        })*
    };
}
joined!(
    Simple<Q4_1>,
    Simple<Q5_1>,
    Simple<Iq4Nl>,
    Q2K,
    Q3K,
    Iq4Xs,
    AnyGrouped<'_>,
    ByColumn<'_>,
    Numbers<'_>
);
joined!(Mxfp4, Grid<Iq1S>, Grid<Iq1M>, Grid<Iq2Xxs>, Grid<Iq2Xs>, Grid<Iq2S>, Grid<Iq3Xxs>, Grid<Iq3S>);
joined!(Grid<Tq1>, Grid<Tq2>);
joined!(Sparse<'_, KeptF32>, Sparse<'_, KeptF16>, Sparse<'_, KeptBf16>);

impl<const BITS: usize> Unpack for Grouped<'_, BITS> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: as this function's.
        unsafe {
            let (codes, zero, scale) = self.parts(block);
            scaled(codes, zero, scale)
        }
    }
}

impl<const BITS: usize> Unpack for Uneven<'_, BITS> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: as this function's; differences of codes are exact as floats too.
        unsafe {
            let (scales, zeros) = self.scales(block);
            let mut out = [_mm512_setzero_ps(); 2];
            for (j, code) in widen_codes(self.codes(block)).into_iter().enumerate() {
                let zero = _mm512_loadu_ps(zeros.as_ptr().add(16 * j));
                let scale = _mm512_loadu_ps(scales.as_ptr().add(16 * j));
                out[j] = _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), zero), scale);
            }
            out
        }
    }
}
