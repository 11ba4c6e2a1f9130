//! GGUF blocks of 256 weights from grids, and ternary ones: signed codes, and small odd factors of one f16.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::slice;

use bitmill_tensor::{BlockType, grid};

use super::fast::Codes;
use super::super_blocks::both_times_signed;
use super::unpack::{Unpack, bytes_of_bits, scaled_signed};
use crate::grids::{self, iq1_m, iq1_s, iq2_s, iq3_s, iq3_xxs, tq1_0};

/// A block type of [`grids`].
pub(crate) trait GridBlock: Copy {
    const BLOCK: BlockType;

    /// The codes of weights `[32 * sub, 32 * sub + 32)` of the block at `block`.
    ///
    /// # Safety
    /// Inside a function with AVX2; the block's bytes may be read.
    unsafe fn codes(block: *const u8, sub: usize) -> __m256i;
}

/// A row of [`GridBlock`]s.
#[derive(Clone, Copy)]
pub(crate) struct Grid<B>(*const u8, PhantomData<B>);

impl<B: GridBlock> Grid<B> {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr(), PhantomData)
    }

    /// The bytes of the block that holds the 32 weights `block`, counted over the row.
    ///
    /// # Safety
    /// They lie within the row.
    #[inline(always)]
    unsafe fn at<'a>(self, block: usize) -> &'a [u8] {
        // SAFETY: as this function's; the row outlives what is computed from it.
        unsafe { slice::from_raw_parts(self.0.add(B::BLOCK.bytes() * (block / 8)), B::BLOCK.bytes()) }
    }

    /// What a factor of 1 is.
    #[inline(always)]
    unsafe fn d(bytes: &[u8]) -> f32 {
        let bits = i32::from(grids::d_bits(B::BLOCK, bytes));
        // SAFETY: no memory is touched; the features are the caller's.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))) * grids::unit(B::BLOCK) }
    }
}

impl<B: GridBlock> Codes for Grid<B> {
    const SIGNED: bool = true;
    const HALVES: bool = grids::has_halves(B::BLOCK);
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe {
            let bytes = self.at(8 * chunk);
            let mut factors = [0; 16];
            let step = if Self::HALVES { 1 } else { 2 };
            for (i, factor) in factors.iter_mut().enumerate().take(16 / step) {
                *factor = grids::factor(B::BLOCK, bytes, step * i);
            }
            let factors = _mm_loadu_si128(factors.as_ptr().cast());
            (both_times_signed(Self::d(bytes), factors), [_mm256_setzero_ps(); 2])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe { B::codes(self.at(block).as_ptr(), block % 8) }
    }
}

impl<B: GridBlock> Unpack for Grid<B> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let (bytes, half) = (self.at(block), 2 * (block % 8));
            let d = Self::d(bytes);
            let scales = [half, half + 1].map(|half| d * f32::from(grids::factor(B::BLOCK, bytes, half)));
            scaled_signed(self.codes(block), scales)
        }
    }
}

/// Declares a [`GridBlock`]: its name here and in ggml, and the codes of sub-block `$sub` of the block at `$at`.
macro_rules! grid_block {
    ($name:ident, $block:ident, ($at:ident, $sub:ident) => $codes:expr) => {
        #[doc = concat!("See [`BlockType::", stringify!($block), "`].")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl GridBlock for $name {
            const BLOCK: BlockType = BlockType::$block;
            #[inline(always)]
            unsafe fn codes($at: *const u8, $sub: usize) -> __m256i {
                // SAFETY: as this function's.
                unsafe { $codes }
            }
        }
    };
}

grid_block!(Iq2Xxs, IQ2_XXS, (at, sub) => {
    let both = at.add(2 + 8 * sub).cast::<u64>().read_unaligned();
    let point = |l: usize| grid::IQ2_XXS[(both >> (8 * l)) as usize & 255];
    signed(eights([point(0), point(1), point(2), point(3)]), even_signs((both >> 32) as u32))
});
grid_block!(Iq2Xs, IQ2_XS, (at, sub) => {
    let four = at.add(2 + 8 * sub).cast::<u64>().read_unaligned();
    let point = |l: usize| grid::IQ2_XS[(four >> (16 * l)) as usize & 511];
    // Seven signs of each, side by side as IQ2_XXS has them.
    let seven = |l: usize| (four >> (16 * l + 9)) as u32 & 127;
    let signs = seven(0) | seven(1) << 7 | seven(2) << 14 | seven(3) << 21;
    signed(eights([point(0), point(1), point(2), point(3)]), even_signs(signs))
});
grid_block!(Iq2S, IQ2_S, (at, sub) => {
    let low = at.add(2 + 4 * sub).cast::<u32>().read_unaligned();
    let high = u32::from(at.add(iq2_s::HIGH + sub).read());
    let point = |l: usize| grid::IQ2_S[(low >> (8 * l) & 255 | (high >> (2 * l) & 3) << 8) as usize];
    let signs = at.add(iq2_s::SIGNS + 4 * sub).cast::<u32>().read_unaligned();
    signed(eights([point(0), point(1), point(2), point(3)]), signs)
});
grid_block!(Iq3Xxs, IQ3_XXS, (at, sub) => {
    let low = at.add(2 + 8 * sub).cast::<u64>().read_unaligned();
    let point = |k: usize| grid::IQ3_XXS[(low >> (8 * k)) as usize & 255];
    let signs = at.add(iq3_xxs::SIGNS + 4 * sub).cast::<u32>().read_unaligned();
    let points = [0, 1, 2, 3, 4, 5, 6, 7].map(point);
    signed(fours(points), even_signs(signs))
});
grid_block!(Iq3S, IQ3_S, (at, sub) => {
    let low = at.add(2 + 8 * sub).cast::<u64>().read_unaligned();
    let high = u64::from(at.add(iq3_s::HIGH + sub).read());
    let point = |k: usize| grid::IQ3_S[(low >> (8 * k) & 255 | (high >> k & 1) << 8) as usize];
    let signs = at.add(iq3_s::SIGNS + 4 * sub).cast::<u32>().read_unaligned();
    let points = [0, 1, 2, 3, 4, 5, 6, 7].map(point);
    signed(fours(points), signs)
});
grid_block!(Iq1S, IQ1_S, (at, sub) => {
    let low = at.add(2 + 4 * sub).cast::<u32>().read_unaligned();
    let high = u32::from(at.add(iq1_s::HIGH + 2 * sub).cast::<u16>().read_unaligned());
    let point = |l: usize| grid::IQ1[(low >> (8 * l) & 255 | (high >> (3 * l) & 7) << 8) as usize];
    let down = 0u32.wrapping_sub(high >> 15);
    shifted(eights([point(0), point(1), point(2), point(3)]), down)
});
grid_block!(Iq1M, IQ1_M, (at, sub) => {
    let low = at.add(4 * sub).cast::<u32>().read_unaligned();
    let high = u32::from(at.add(iq1_m::HIGH + 2 * sub).cast::<u16>().read_unaligned());
    let point = |l: usize| grid::IQ1[(low >> (8 * l) & 255 | (high >> (4 * l) & 7) << 8) as usize];
    // Bit 3 of each nibble becomes a byte of ones.
    let bit = |l: usize| high >> (4 * l + 3) & 1;
    let down = (bit(0) | bit(1) << 8 | bit(2) << 16 | bit(3) << 24) * 255;
    shifted(eights([point(0), point(1), point(2), point(3)]), down)
});
grid_block!(Tq1, TQ1_0, (at, sub) => match sub {
    0..5 => trits(_mm256_loadu_si256(at.cast()), [[1, 3, 9, 27, 81][sub]; 32]),
    _ => {
        // Sixteen bytes hold two trits of sub-block 5, two of 6 and one of 7, whose other half is from four bytes.
        let bytes = _mm_loadu_si128(at.add(32).cast());
        let (mut powers, mut high) = ([[1, 9, 81][sub - 5]; 32], bytes);
        powers[16..].fill([3, 27, 0][sub - 5]);
        if sub == 7 {
            high = _mm_set1_epi32(at.add(tq1_0::LAST).cast::<i32>().read_unaligned());
            for (place, powers) in powers[16..].chunks_exact_mut(4).enumerate() {
                powers.fill([1, 3, 9, 27][place]);
            }
        }
        trits(_mm256_set_m128i(high, bytes), powers)
    }
});
grid_block!(Tq2, TQ2_0, (at, sub) => {
    let pairs = _mm256_loadu_si256(at.add(32 * (sub / 4)).cast());
    let pairs = _mm256_srl_epi16(pairs, _mm_cvtsi32_si128(2 * (sub % 4) as i32));
    _mm256_sub_epi8(_mm256_and_si256(pairs, _mm256_set1_epi8(3)), _mm256_set1_epi8(1))
});

/// Four points of eight weights.
#[inline(always)]
unsafe fn eights(points: [u64; 4]) -> __m256i {
    let [a, b, c, d] = points.map(u64::cast_signed);
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm256_setr_epi64x(a, b, c, d) }
}

/// Eight points of four weights.
#[inline(always)]
unsafe fn fours(points: [u32; 8]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = points.map(u32::cast_signed);
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm256_setr_epi32(a, b, c, d, e, f, g, h) }
}

/// Magnitudes, negative where a bit is set.
#[inline(always)]
unsafe fn signed(magnitudes: __m256i, signs: u32) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let negative = bytes_of_bits(signs);
        _mm256_sub_epi8(_mm256_xor_si256(magnitudes, negative), negative)
    }
}

/// Eight times each value, and one less where the bit is set, one more elsewhere.
#[inline(always)]
unsafe fn shifted(values: __m256i, down: u32) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        // No bit of a value crosses into the next byte: three shifts of a byte are three doublings.
        let twice = _mm256_add_epi8(values, values);
        let four = _mm256_add_epi8(twice, twice);
        let shift = _mm256_or_si256(bytes_of_bits(down), _mm256_set1_epi8(1));
        _mm256_add_epi8(_mm256_add_epi8(four, four), shift)
    }
}

/// [`grid::even_signs`] of four times seven bits.
#[inline(always)]
fn even_signs(sevens: u32) -> u32 {
    let seven = |l: usize| (sevens >> (7 * l) & 127) << (8 * l);
    let bytes = seven(0) | seven(1) | seven(2) | seven(3);
    let odd = bytes ^ (bytes >> 4 & 0x0f0f_0f0f);
    let odd = odd ^ odd >> 2;
    let odd = (odd ^ odd >> 1) & 0x0101_0101;
    bytes | odd << 7
}

/// The trit of each byte that multiplying with its power of 3 pushes out, less 1.
#[inline(always)]
unsafe fn trits(bytes: __m256i, powers: [u8; 32]) -> __m256i {
    // SAFETY: no memory but `powers` is touched; the features are the caller's.
    unsafe {
        let powers = _mm256_loadu_si256(powers.as_ptr().cast());
        let low_byte = _mm256_set1_epi16(255);
        let three = _mm256_set1_epi16(3);
        let even = _mm256_and_si256(_mm256_mullo_epi16(bytes, powers), low_byte);
        let odd = _mm256_mullo_epi16(_mm256_srli_epi16::<8>(bytes), _mm256_srli_epi16::<8>(powers));
        let odd = _mm256_and_si256(odd, low_byte);
        // A digit is the upper byte of three times the fraction.
        let even = _mm256_srli_epi16::<8>(_mm256_mullo_epi16(even, three));
        let odd = _mm256_andnot_si256(low_byte, _mm256_mullo_epi16(odd, three));
        _mm256_sub_epi8(_mm256_or_si256(even, odd), _mm256_set1_epi8(1))
    }
}
