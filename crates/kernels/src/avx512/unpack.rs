//! Weights of each encoding as vectors of f32, 32 at a time.

use std::arch::x86_64::*;

use crate::avx2::unpack as narrow;
use crate::row::{GroupedRow, Row, q4_k, q4_k_scale_min, q6_k};
use crate::scalar;

/// A row whose weights come 32 at a time.
pub(super) trait Unpack: Copy {
    /// Weights `[32 * block, 32 * block + 32)`, the same bits as [`scalar::unpack`].
    ///
    /// # Safety
    /// Inside a function with the features of [`super::unpack`]; those weights lie within the row.
    unsafe fn unpack32(self, block: usize) -> [__m512; 2];
}

/// Runs an expression with the row as its own [`Unpack`] type.
macro_rules! with_unpack {
    ($row:expr, $weights:ident => $body:expr) => {{
        use bitmill_tensor::{BlockType, FloatType};
        use $crate::avx2::unpack as narrow;
        use $crate::avx512::unpack::*;
        match *$row {
            Row::Float { float: FloatType::F32, bytes } => {
                let $weights = F32(bytes.as_ptr());
                $body
            }
            Row::Float { float: FloatType::F16, bytes } => {
                let $weights = F16(bytes.as_ptr());
                $body
            }
            Row::Float { float: FloatType::BF16, bytes } => {
                let $weights = Bf16(bytes.as_ptr());
                $body
            }
            Row::Block { block: BlockType::Q8_0, bytes } => {
                let $weights = Q8_0(bytes.as_ptr());
                $body
            }
            Row::Block { block: BlockType::Q4_0, bytes } => {
                let $weights = Q4_0(bytes.as_ptr());
                $body
            }
            Row::Block { block: BlockType::Q5_0, bytes } => {
                let $weights = Q5_0(bytes.as_ptr());
                $body
            }
            Row::Block { block: BlockType::Q4_K, bytes } => {
                let $weights = Q4K(narrow::Q4K(bytes.as_ptr()));
                $body
            }
            Row::Block { block: BlockType::Q6_K, bytes } => {
                let $weights = Q6K(narrow::Q6K(bytes.as_ptr()));
                $body
            }
            Row::Grouped(row) => match (row.layout.bits.get(), row.blocks_have_one_group()) {
                (4, true) => {
                    let $weights = Grouped(narrow::Grouped::<4>::new(&row));
                    $body
                }
                (8, true) => {
                    let $weights = Grouped(narrow::Grouped::<8>::new(&row));
                    $body
                }
                (4, false) if row.layout.group_size.get() >= 8 => {
                    let $weights = Uneven(narrow::Uneven::<4>(&row));
                    $body
                }
                (8, false) if row.layout.group_size.get() >= 8 => {
                    let $weights = Uneven(narrow::Uneven::<8>(&row));
                    $body
                }
                _ => {
                    let $weights = AnyGrouped(&row);
                    $body
                }
            },
        }
    }};
}
pub(super) use with_unpack;

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
    // Only floats and groups of codes end within a block; both may be read from any column.
    let rest = blocks.into_remainder();
    if !rest.is_empty() {
        scalar::unpack(row, at, rest);
    }
}

/// Plain f32.
#[derive(Clone, Copy)]
pub(super) struct F32(pub *const u8);
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

/// IEEE half precision.
#[derive(Clone, Copy)]
pub(super) struct F16(pub *const u8);
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

/// The upper half of an f32.
#[derive(Clone, Copy)]
pub(super) struct Bf16(pub *const u8);
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

/// See [`BlockType::Q8_0`](bitmill_tensor::BlockType::Q8_0).
#[derive(Clone, Copy)]
pub(super) struct Q8_0(pub *const u8);
impl Unpack for Q8_0 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row: 34 bytes.
        unsafe {
            let at = self.0.add(34 * block);
            let scale = _mm512_set1_ps(narrow::f16_at(at));
            let part = |i: usize| {
                let codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(at.add(2 + 16 * i).cast()));
                _mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale)
            };
            [part(0), part(1)]
        }
    }
}

/// See [`BlockType::Q4_0`](bitmill_tensor::BlockType::Q4_0).
#[derive(Clone, Copy)]
pub(super) struct Q4_0(pub *const u8);
impl Unpack for Q4_0 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row: 18 bytes.
        unsafe {
            let at = self.0.add(18 * block);
            scaled(narrow::halves_of_nibbles(at.add(2)), 8, narrow::f16_at(at))
        }
    }
}

/// See [`BlockType::Q5_0`](bitmill_tensor::BlockType::Q5_0).
#[derive(Clone, Copy)]
pub(super) struct Q5_0(pub *const u8);
impl Unpack for Q5_0 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row: 22 bytes.
        unsafe {
            let at = self.0.add(22 * block);
            let codes = _mm256_or_si256(narrow::halves_of_nibbles(at.add(6)), narrow::fifth_bits(at.add(2)));
            scaled(codes, 16, narrow::f16_at(at))
        }
    }
}

/// See [`BlockType::Q4_K`](bitmill_tensor::BlockType::Q4_K).
#[derive(Clone, Copy)]
pub(super) struct Q4K(pub narrow::Q4K);
impl Unpack for Q4K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.0.add(q4_k::BYTES * (block / 8));
            let scales = std::slice::from_raw_parts(at.add(q4_k::SCALES), 12);
            let (scale, min) = q4_k_scale_min(scales, block % 8);
            let scale = _mm512_set1_ps(narrow::f16_at(at.add(q4_k::D)) * f32::from(scale));
            let min = _mm512_set1_ps(narrow::f16_at(at.add(q4_k::DMIN)) * f32::from(min));
            let [first, second] = widen_codes(self.0.codes32(block));
            [
                _mm512_sub_ps(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(first)), min),
                _mm512_sub_ps(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(second)), min),
            ]
        }
    }
}

/// See [`BlockType::Q6_K`](bitmill_tensor::BlockType::Q6_K).
#[derive(Clone, Copy)]
pub(super) struct Q6K(pub narrow::Q6K);
impl Unpack for Q6K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.0.add(q6_k::BYTES * (block / 8));
            let d = narrow::f16_at(at.add(q6_k::D));
            let scale = |i: usize| {
                let scale = at.add(q6_k::SCALES + 2 * (block % 8) + i).cast::<i8>().read();
                _mm512_set1_ps(d * f32::from(scale))
            };
            let zero = _mm512_set1_epi32(32);
            let [first, second] = widen_codes(self.0.codes32(block));
            [
                _mm512_mul_ps(scale(0), _mm512_cvtepi32_ps(_mm512_sub_epi32(first, zero))),
                _mm512_mul_ps(scale(1), _mm512_cvtepi32_ps(_mm512_sub_epi32(second, zero))),
            ]
        }
    }
}

/// Codes of `BITS` (4 or 8), every 32 of one group.
#[derive(Clone, Copy)]
pub(super) struct Grouped<'a, const BITS: usize>(pub narrow::Grouped<'a, BITS>);
impl<const BITS: usize> Unpack for Grouped<'_, BITS> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: as this function's.
        unsafe {
            let (codes, zero, scale) = self.0.parts(block);
            scaled(codes, zero, scale)
        }
    }
}

/// Codes of `BITS` (4 or 8) in groups of at least eight that do not tile blocks of 32.
#[derive(Clone, Copy)]
pub(super) struct Uneven<'a, const BITS: usize>(pub narrow::Uneven<'a, BITS>);
impl<const BITS: usize> Unpack for Uneven<'_, BITS> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        // SAFETY: as this function's; differences of codes are exact as floats too.
        unsafe {
            let (scales, zeros) = self.0.scales(block);
            let mut out = [_mm512_setzero_ps(); 2];
            for (j, code) in widen_codes(self.0.codes(block)).into_iter().enumerate() {
                let zero = _mm512_loadu_ps(zeros.as_ptr().add(16 * j));
                let scale = _mm512_loadu_ps(scales.as_ptr().add(16 * j));
                out[j] = _mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(code), zero), scale);
            }
            out
        }
    }
}

/// Any other width, and groups of less than eight: plain code, compiled for these instructions.
#[derive(Clone, Copy)]
pub(super) struct AnyGrouped<'a>(pub &'a GroupedRow<'a>);
impl Unpack for AnyGrouped<'_> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m512; 2] {
        let mut values = [0f32; 32];
        scalar::unpack_grouped(self.0, 32 * block, &mut values);
        // SAFETY: the array holds 32.
        unsafe { F32(values.as_ptr().cast()).unpack32(0) }
    }
}
