//! GGUF blocks of 256 weights: sub-blocks of 16 or 32 with small integer scales, which f16 scales multiply.
//!
//! Each type gives the codes of 32 weights, `codes32`, and the scales: of eight blocks of 32 at once for the fast path,
//! of one for the exact path.

use std::arch::x86_64::*;
use std::slice;

use super::blocks::looked_up;
use super::fast::Codes;
use super::unpack::{Unpack, above, f16_at, halves_of_nibbles, scaled, scaled_signed};
use crate::blocks::{
    IQ4_VALUES, iq4_xs, iq4_xs_scale, q2_k, q3_k, q3_k_scale, q4_k, q4_k_scale_min, q5_k, q6_k,
};

/// Eight signed bytes, the lower half of `bytes`, times `d`.
#[inline(always)]
unsafe fn times_signed(d: f32, bytes: __m128i) -> __m256 {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))) }
}

/// Sixteen signed bytes times `d`.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
pub(super) unsafe fn both_times_signed(d: f32, bytes: __m128i) -> [__m256; 2] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { [times_signed(d, bytes), times_signed(d, _mm_srli_si128::<8>(bytes))] }
}

/// Bits `[shift, shift + width)` of each byte; `width + shift` is at most 8.
#[inline(always)]
unsafe fn bits_of_bytes(bytes: __m256i, shift: usize, width: usize) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
        _mm256_and_si256(shifted, _mm256_set1_epi8((1 << width) - 1))
    }
}

/// Nibbles of sub-block `sub` of 32, of the 128 bytes from `codes` on: low ones first, by 64 weights.
#[inline(always)]
unsafe fn wide_nibbles(codes: *const u8, sub: usize) -> __m256i {
    // SAFETY: the caller's: those bytes may be read.
    unsafe {
        let both = _mm256_loadu_si256(codes.add(32 * (sub / 2)).cast());
        let own = if sub.is_multiple_of(2) { both } else { _mm256_srli_epi16::<4>(both) };
        _mm256_and_si256(own, _mm256_set1_epi8(15))
    }
}

/// Scales and minimums of a Q4_K or Q5_K block.
#[inline(always)]
unsafe fn scales_and_mins(at: *const u8) -> ([__m256; 2], [__m256; 2]) {
    // SAFETY: the caller's: a block begins at `at`.
    unsafe {
        let word = |i: usize| at.add(q4_k::SCALES + 4 * i).cast::<u32>().read_unaligned();
        let (a, b, c) = (word(0), word(1), word(2));
        // Four bytes at a time what `q4_k_scale_min` does one by one.
        let scales = [a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | ((a >> 2) & 0x3030_3030)];
        let mins = [b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | ((b >> 2) & 0x3030_3030)];
        let widen = |words: [u32; 2], factor: usize| {
            let bytes = i64::from(words[0]) | i64::from(words[1]) << 32;
            times_signed(f16_at(at.add(factor)), _mm_cvtsi64_si128(bytes))
        };
        let (scales, offsets) = (widen(scales, q4_k::D), widen(mins, q4_k::DMIN));
        ([scales, scales], [offsets, offsets])
    }
}

/// Scale and minimum of sub-block `sub` of a Q4_K or Q5_K block.
///
/// # Safety
/// A block begins at `at`; the caller has F16C.
#[inline(always)]
pub(crate) unsafe fn scale_and_min(at: *const u8, sub: usize) -> (f32, f32) {
    // SAFETY: as this function's.
    unsafe {
        let (scale, min) = q4_k_scale_min(slice::from_raw_parts(at.add(q4_k::SCALES), 12), sub);
        (f16_at(at.add(q4_k::D)) * f32::from(scale), f16_at(at.add(q4_k::DMIN)) * f32::from(min))
    }
}

/// Declares a row of super-blocks with the pointer to a block.
macro_rules! super_block {
    ($name:ident, $block:ident, $bytes:expr) => {
        #[doc = concat!("See [`BlockType::", stringify!($block), "`](bitmill_tensor::BlockType::", stringify!($block), ").")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name(pub *const u8);
        impl $name {
            /// Where the block begins that holds the 32 weights `block`, counted over the row.
            ///
            /// # Safety
            /// They lie within the row.
            #[inline(always)]
            pub unsafe fn at(self, block: usize) -> *const u8 {
                // SAFETY: as this function's.
                unsafe { self.0.add($bytes * (block / 8)) }
            }
        }
    };
}

super_block!(Q2K, Q2_K, q2_k::BYTES);
super_block!(Q3K, Q3_K, q3_k::BYTES);
super_block!(Q4K, Q4_K, q4_k::BYTES);
super_block!(Q5K, Q5_K, q5_k::BYTES);
super_block!(Q6K, Q6_K, q6_k::BYTES);
super_block!(Iq4Xs, IQ4_XS, iq4_xs::BYTES);

impl Codes for Q2K {
    const SIGNED: bool = false;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe {
            let at = self.at(8 * chunk);
            let both = _mm_loadu_si128(at.add(q2_k::SCALES).cast());
            let low = _mm_and_si128(both, _mm_set1_epi8(15));
            let high = _mm_and_si128(_mm_srli_epi16::<4>(both), _mm_set1_epi8(15));
            (
                both_times_signed(f16_at(at.add(q2_k::D)), low),
                both_times_signed(f16_at(at.add(q2_k::DMIN)), high),
            )
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe {
            let at = self.at(block).add(q2_k::CODES + 32 * (block % 8 / 4));
            bits_of_bytes(_mm256_loadu_si256(at.cast()), 2 * (block % 4), 2)
        }
    }
}

impl Unpack for Q2K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            let (d, dmin) = (f16_at(at.add(q2_k::D)), f16_at(at.add(q2_k::DMIN)));
            let both = [0, 1].map(|half| at.add(q2_k::SCALES + 2 * (block % 8) + half).read());
            let scales = both.map(|both| d * f32::from(both & 15));
            let mins = both.map(|both| dmin * f32::from(both >> 4));
            above(self.codes(block), scales, mins)
        }
    }
}

impl Codes for Q3K {
    const SIGNED: bool = false;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe {
            let at = self.at(8 * chunk);
            let word = |i: usize| at.add(q3_k::SCALES + 4 * i).cast::<u32>().read_unaligned();
            let (a, b, high) = (word(0), word(1), word(2));
            // Four bytes at a time what `q3_k_scale` does one by one.
            let scale = |low: u32, shift: u32| {
                ((low & 0x0f0f_0f0f) | ((high >> shift) & 0x0303_0303) << 4).cast_signed()
            };
            let scales = _mm_setr_epi32(scale(a, 0), scale(b, 2), scale(a >> 4, 4), scale(b >> 4, 6));
            let scales = _mm_sub_epi8(scales, _mm_set1_epi8(32));
            let scales = both_times_signed(f16_at(at.add(q3_k::D)), scales);
            let zero = _mm256_set1_ps(4.0);
            (scales, [_mm256_mul_ps(scales[0], zero), _mm256_mul_ps(scales[1], zero)])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe {
            let at = self.at(block);
            let low = _mm256_loadu_si256(at.add(q3_k::LOW + 32 * (block % 8 / 4)).cast());
            let high = bits_of_bytes(_mm256_loadu_si256(at.add(q3_k::HIGH).cast()), block % 8, 1);
            _mm256_or_si256(bits_of_bytes(low, 2 * (block % 4), 2), _mm256_slli_epi16::<2>(high))
        }
    }
}

impl Unpack for Q3K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            let d = f16_at(at.add(q3_k::D));
            let scales = slice::from_raw_parts(at.add(q3_k::SCALES), 12);
            let scales = [0, 1].map(|half| d * f32::from(q3_k_scale(scales, 2 * (block % 8) + half)));
            scaled(self.codes(block), 4, scales)
        }
    }
}

impl Codes for Q4K {
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe { scales_and_mins(self.at(8 * chunk)) }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe { wide_nibbles(self.at(block).add(q4_k::CODES), block % 8) }
    }
}

impl Unpack for Q4K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let (scale, min) = scale_and_min(self.at(block), block % 8);
            above(self.codes(block), [scale, scale], [min, min])
        }
    }
}

impl Codes for Q5K {
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe { scales_and_mins(self.at(8 * chunk)) }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe {
            let at = self.at(block);
            let high = bits_of_bytes(_mm256_loadu_si256(at.add(q5_k::HIGH).cast()), block % 8, 1);
            _mm256_or_si256(wide_nibbles(at.add(q5_k::CODES), block % 8), _mm256_slli_epi16::<4>(high))
        }
    }
}

impl Unpack for Q5K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let (scale, min) = scale_and_min(self.at(block), block % 8);
            above(self.codes(block), [scale, scale], [min, min])
        }
    }
}

impl Codes for Q6K {
    const SIGNED: bool = false;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe {
            let at = self.at(8 * chunk);
            let codes = _mm_loadu_si128(at.add(q6_k::SCALES).cast());
            let scales = both_times_signed(f16_at(at.add(q6_k::D)), codes);
            let zero = _mm256_set1_ps(32.0);
            (scales, [_mm256_mul_ps(scales[0], zero), _mm256_mul_ps(scales[1], zero)])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            let (half, quarter) = (block % 8 / 4, block % 4);
            let low = _mm256_loadu_si256(at.add(q6_k::LOW + 64 * half + 32 * (quarter % 2)).cast());
            let low = if quarter < 2 { low } else { _mm256_srli_epi16::<4>(low) };
            let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
            let high = _mm256_loadu_si256(at.add(q6_k::HIGH + 32 * half).cast());
            // The pair of bits moves to bits 4 and 5 of its byte.
            let high = match quarter {
                0 => _mm256_slli_epi16::<4>(high),
                1 => _mm256_slli_epi16::<2>(high),
                2 => high,
                _ => _mm256_srli_epi16::<2>(high),
            };
            _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)))
        }
    }
}

impl Q6K {
    /// The scales of the halves of block `block`.
    ///
    /// # Safety
    /// As [`Unpack::unpack32`].
    #[inline(always)]
    pub unsafe fn half_scales(self, block: usize) -> [f32; 2] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            let d = f16_at(at.add(q6_k::D));
            let own = at.add(q6_k::SCALES + 2 * (block % 8)).cast::<i8>();
            [d * f32::from(own.read()), d * f32::from(own.add(1).read())]
        }
    }
}

impl Unpack for Q6K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe { scaled(self.codes(block), 32, self.half_scales(block)) }
    }
}

impl Codes for Iq4Xs {
    const SIGNED: bool = true;
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe {
            let at = self.at(8 * chunk);
            let high = i32::from(at.add(iq4_xs::SCALES_HIGH).cast::<u16>().read_unaligned());
            let low = at.add(iq4_xs::SCALES_LOW).cast::<i32>().read_unaligned();
            let pairs = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
            let high =
                _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(high), pairs), _mm256_set1_epi32(3));
            let low = _mm256_srlv_epi32(_mm256_set1_epi32(low), _mm256_slli_epi32::<1>(pairs));
            let low = _mm256_and_si256(low, _mm256_set1_epi32(15));
            let codes = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
            let codes = _mm256_sub_epi32(codes, _mm256_set1_epi32(32));
            let scales = _mm256_mul_ps(_mm256_set1_ps(f16_at(at.add(iq4_xs::D))), _mm256_cvtepi32_ps(codes));
            ([scales, scales], [_mm256_setzero_ps(); 2])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe {
            looked_up(&IQ4_VALUES, halves_of_nibbles(self.at(block).add(iq4_xs::CODES + 16 * (block % 8))))
        }
    }
}

impl Unpack for Iq4Xs {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            let scale = iq4_xs_scale(slice::from_raw_parts(at, iq4_xs::CODES), block % 8);
            let scale = f16_at(at.add(iq4_xs::D)) * f32::from(scale);
            scaled_signed(self.codes(block), [scale, scale])
        }
    }
}
