//! Small numbers with scales, 32 at a time: codes become f32 by their bits, and lists by a shuffle.

use std::arch::x86_64::*;

use bitmill_tensor::Element;

use super::unpack::{F32, Unpack};
use crate::row::ScaledRow;
use crate::scalar;

/// A row of small numbers.
#[derive(Clone, Copy)]
pub(crate) struct Numbers<'a>(pub &'a ScaledRow<'a>);

impl Unpack for Numbers<'_> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        let (row, width) = (self.0, self.0.layout.extent.cols());
        let column = 32 * block;
        let halves = match width {
            usize::MAX => [0, 0],
            _ => [column / width, (column + 16) / width],
        };
        if row.is_halved() || (width != usize::MAX && !width.is_multiple_of(16)) {
            let mut values = [0f32; 32];
            scalar::unpack_scaled(row, column, &mut values);
            // SAFETY: the array holds 32.
            return unsafe { F32(values.as_ptr().cast()).unpack32(0) };
        }
        let bytes = row.layout.element.row_bytes(32);
        let codes = row.codes[bytes * block..bytes * (block + 1)].as_ptr();
        // SAFETY: as many bytes as 32 numbers take; the features are the caller's.
        unsafe {
            let mut values = match row.layout.element {
                Element::Int8 => {
                    let mut values = [_mm256_setzero_ps(); 4];
                    for (i, value) in values.iter_mut().enumerate() {
                        let eight = _mm_loadl_epi64(codes.add(8 * i).cast());
                        *value = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
                    }
                    values
                }
                Element::Fp8 => {
                    let mut values = [_mm256_setzero_ps(); 4];
                    for (i, value) in values.iter_mut().enumerate() {
                        let eight = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.add(8 * i).cast()));
                        *value = float::<4, 3>(eight);
                        // All ones are no number.
                        let ones = _mm256_set1_epi32(127);
                        let is_none = _mm256_cmpeq_epi32(_mm256_and_si256(eight, ones), ones);
                        let magnitude = _mm256_and_si256(is_none, _mm256_set1_epi32(i32::MAX));
                        let none = _mm256_and_si256(is_none, _mm256_set1_epi32(0x7fc0_0000));
                        *value = _mm256_andnot_ps(_mm256_castsi256_ps(magnitude), *value);
                        *value = _mm256_or_ps(*value, _mm256_castsi256_ps(none));
                    }
                    values
                }
                Element::Fp6 => six_bits(codes),
                Element::Fp4 => {
                    let (low, high) = nibbles(codes);
                    let codes = widen(_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high));
                    let mut values = [_mm256_setzero_ps(); 4];
                    for (value, codes) in values.iter_mut().zip(codes) {
                        *value = float::<2, 1>(codes);
                    }
                    values
                }
                Element::Listed(list) => {
                    let (low, high) = nibbles(codes);
                    let codes = widen(_mm_unpacklo_epi8(high, low), _mm_unpackhi_epi8(high, low));
                    let list = list.values().as_ptr();
                    let (first, second) = (_mm256_loadu_ps(list), _mm256_loadu_ps(list.add(8)));
                    let mut values = [_mm256_setzero_ps(); 4];
                    for (value, codes) in values.iter_mut().zip(codes) {
                        let [first, second] =
                            [_mm256_permutevar8x32_ps(first, codes), _mm256_permutevar8x32_ps(second, codes)];
                        // The fourth bit of a code becomes its sign, which chooses.
                        let which = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                        *value = _mm256_blendv_ps(first, second, which);
                    }
                    values
                }
            };
            for (half, at) in values.chunks_exact_mut(2).zip(halves) {
                let scale = _mm256_set1_ps(row.scale(at));
                for value in half {
                    *value = _mm256_mul_ps(*value, scale);
                }
            }
            values
        }
    }
}

/// Floats of a sign, so many bits of exponent with the usual bias, and so many of mantissa.
#[inline(always)]
unsafe fn float<const EXPONENT: i32, const MANTISSA: i32>(codes: __m256i) -> __m256 {
    let bias = (1 << (EXPONENT - 1)) - 1;
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let magnitude = _mm256_and_si256(codes, _mm256_set1_epi32((1 << (EXPONENT + MANTISSA)) - 1));
        let sign = _mm256_and_si256(codes, _mm256_set1_epi32(1 << (EXPONENT + MANTISSA)));
        let sign = _mm256_sll_epi32(sign, _mm_cvtsi32_si128(31 - EXPONENT - MANTISSA));
        // Below the first power of two they lie as far apart as in it: they are that power and more, less the power.
        let is_low = _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << MANTISSA), magnitude);
        let bits = _mm256_sll_epi32(magnitude, _mm_cvtsi32_si128(23 - MANTISSA));
        let bits = _mm256_add_epi32(bits, _mm256_set1_epi32((127 - bias) << 23));
        let bits = _mm256_add_epi32(bits, _mm256_and_si256(is_low, _mm256_set1_epi32(1 << 23)));
        let power = _mm256_and_si256(is_low, _mm256_set1_epi32((128 - bias) << 23));
        let value = _mm256_sub_ps(_mm256_castsi256_ps(bits), _mm256_castsi256_ps(power));
        _mm256_or_ps(value, _mm256_castsi256_ps(sign))
    }
}

/// The low and the high halves of 16 bytes.
#[inline(always)]
unsafe fn nibbles(codes: *const u8) -> (__m128i, __m128i) {
    // SAFETY: 16 bytes by the caller.
    unsafe {
        let (both, four) = (_mm_loadu_si128(codes.cast()), _mm_set1_epi8(15));
        (_mm_and_si128(both, four), _mm_and_si128(_mm_srli_epi16::<4>(both), four))
    }
}

/// 32 bytes as whole numbers.
#[inline(always)]
unsafe fn widen(first: __m128i, second: __m128i) -> [__m256i; 4] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        [
            _mm256_cvtepu8_epi32(first),
            _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(first)),
            _mm256_cvtepu8_epi32(second),
            _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(second)),
        ]
    }
}

/// 32 floats of 6 bits, four in three bytes.
#[inline(always)]
unsafe fn six_bits(codes: *const u8) -> [__m256; 4] {
    /// Three bytes in each of four lanes, and the three after them in the next four.
    const fn places(first: i8) -> [i8; 32] {
        let mut places = [-128; 32];
        let mut at = 0;
        while at < 32 {
            if at % 4 < 3 {
                places[at] = first + 3 * (at as i8 / 16) + (at % 4) as i8;
            }
            at += 1;
        }
        places
    }
    const PLACES: [[i8; 32]; 4] = [places(0), places(6), places(4), places(10)];
    // SAFETY: 24 bytes by the caller: 16 from the first on, and 16 from the ninth on.
    unsafe {
        let halves = [codes, codes.add(8)].map(|at| at.cast::<__m128i>());
        let shifts = _mm256_setr_epi32(0, 6, 12, 18, 0, 6, 12, 18);
        let mut values = [_mm256_setzero_ps(); 4];
        for (i, value) in values.iter_mut().enumerate() {
            let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(halves[i / 2]));
            let threes = _mm256_shuffle_epi8(bytes, _mm256_loadu_si256(PLACES[i].as_ptr().cast()));
            let codes = _mm256_and_si256(_mm256_srlv_epi32(threes, shifts), _mm256_set1_epi32(63));
            *value = float::<2, 3>(codes);
        }
        values
    }
}
