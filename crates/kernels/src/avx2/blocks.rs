//! GGUF blocks of 32 weights.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use bitmill_tensor::BlockType;

use super::fast::Codes;
use super::unpack::{Unpack, f16_at, fifth_bits, halves_of_nibbles, scaled, scaled_signed, widen_codes};
use crate::activations::CHUNK_BLOCKS;
use crate::blocks::{IQ4_VALUES, MXFP4_VALUES, half_of_e8m0};

/// Runs an expression with a row of GGUF blocks as its own type, which is both [`Codes`] and [`Unpack`].
macro_rules! with_block {
    ($block:expr, $bytes:expr, $row:ident => $body:expr) => {{
        use bitmill_tensor::BlockType;
        use $crate::avx2::blocks::*;
        use $crate::avx2::grids::*;
        use $crate::avx2::super_blocks::*;
        macro_rules! arms {
            ($own:expr) => {{
                let $row = $own;
                $body
            }};
        }
        match $block {
            BlockType::Q4_0 => arms!(Simple::<Q4_0>::new($bytes)),
            BlockType::Q4_1 => arms!(Simple::<Q4_1>::new($bytes)),
            BlockType::Q5_0 => arms!(Simple::<Q5_0>::new($bytes)),
            BlockType::Q5_1 => arms!(Simple::<Q5_1>::new($bytes)),
            BlockType::Q8_0 => arms!(Simple::<Q8_0>::new($bytes)),
            BlockType::IQ4_NL => arms!(Simple::<Iq4Nl>::new($bytes)),
            BlockType::Q2_K => arms!(Q2K($bytes.as_ptr())),
            BlockType::Q3_K => arms!(Q3K($bytes.as_ptr())),
            BlockType::Q4_K => arms!(Q4K($bytes.as_ptr())),
            BlockType::Q5_K => arms!(Q5K($bytes.as_ptr())),
            BlockType::Q6_K => arms!(Q6K($bytes.as_ptr())),
            BlockType::IQ4_XS => arms!(Iq4Xs($bytes.as_ptr())),
            BlockType::MXFP4 => arms!(Mxfp4($bytes.as_ptr())),
            BlockType::IQ2_XXS => arms!(Grid::<Iq2Xxs>::new($bytes)),
            BlockType::IQ2_XS => arms!(Grid::<Iq2Xs>::new($bytes)),
            BlockType::IQ2_S => arms!(Grid::<Iq2S>::new($bytes)),
            BlockType::IQ3_XXS => arms!(Grid::<Iq3Xxs>::new($bytes)),
            BlockType::IQ3_S => arms!(Grid::<Iq3S>::new($bytes)),
            BlockType::IQ1_S => arms!(Grid::<Iq1S>::new($bytes)),
            BlockType::IQ1_M => arms!(Grid::<Iq1M>::new($bytes)),
            BlockType::TQ1_0 => arms!(Grid::<Tq1>::new($bytes)),
            BlockType::TQ2_0 => arms!(Grid::<Tq2>::new($bytes)),
        }
    }};
}
pub(crate) use with_block;

/// What stands for zero in a block type.
pub(crate) enum Zero {
    /// Nothing: codes are signed.
    None,
    /// This code.
    Code(i32),
    /// The f16 behind the scale is added.
    Shift,
}

/// A type of blocks of 32 with an f16 scale in front.
pub(crate) trait SimpleBlock: Copy {
    const BYTES: usize;
    const ZERO: Zero;

    /// The codes of the block at `block`.
    ///
    /// # Safety
    /// Inside a function with AVX2; the block's bytes may be read.
    unsafe fn codes(block: *const u8) -> __m256i;
}

/// A row of [`SimpleBlock`]s.
#[derive(Clone, Copy)]
pub(crate) struct Simple<B>(*const u8, PhantomData<B>);

impl<B: SimpleBlock> Simple<B> {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr(), PhantomData)
    }

    /// Where block `block` begins.
    ///
    /// # Safety
    /// It lies within the row.
    #[inline(always)]
    pub unsafe fn at(self, block: usize) -> *const u8 {
        // SAFETY: as this function's.
        unsafe { self.0.add(B::BYTES * block) }
    }

    /// The f16 at `offset` of the first `n` blocks of a chunk, zeros behind them.
    #[inline(always)]
    unsafe fn floats(self, chunk: usize, n: usize, offset: usize) -> __m256 {
        // SAFETY: the caller's: those blocks lie within the row.
        unsafe {
            let first = self.at(CHUNK_BLOCKS * chunk).add(offset);
            let mut halves = [0u16; 8];
            for (j, half) in halves.iter_mut().enumerate().take(n) {
                *half = first.add(B::BYTES * j).cast::<u16>().read_unaligned();
            }
            _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()))
        }
    }
}

impl<B: SimpleBlock> Codes for Simple<B> {
    const SIGNED: bool = matches!(B::ZERO, Zero::None);
    const OFFSETS: bool = !Self::SIGNED;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: as this function's.
        unsafe {
            let scales = self.floats(chunk, n, 0);
            let offsets = match B::ZERO {
                Zero::None => _mm256_setzero_ps(),
                Zero::Code(zero) => _mm256_mul_ps(scales, _mm256_set1_ps(zero as f32)),
                Zero::Shift => _mm256_xor_ps(self.floats(chunk, n, 2), _mm256_set1_ps(-0.0)),
            };
            ([scales, scales], [offsets, offsets])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe { B::codes(self.at(block)) }
    }
}

impl<B: SimpleBlock> Unpack for Simple<B> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.at(block);
            let (codes, scale) = (B::codes(at), f16_at(at));
            match B::ZERO {
                Zero::None => scaled_signed(codes, [scale, scale]),
                Zero::Code(zero) => scaled(codes, zero, [scale, scale]),
                Zero::Shift => {
                    let (scale, shift) = (_mm256_set1_ps(scale), _mm256_set1_ps(f16_at(at.add(2))));
                    let mut out = [_mm256_setzero_ps(); 4];
                    for (out, code) in out.iter_mut().zip(widen_codes(codes)) {
                        *out = _mm256_add_ps(_mm256_mul_ps(scale, _mm256_cvtepi32_ps(code)), shift);
                    }
                    out
                }
            }
        }
    }
}

/// Declares a [`SimpleBlock`]: its name here and in ggml, its zero, and its codes at a pointer.
macro_rules! simple_block {
    ($name:ident, $block:ident, $zero:expr, $at:ident => $codes:expr) => {
        #[doc = concat!("See [`BlockType::", stringify!($block), "`].")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl SimpleBlock for $name {
            const BYTES: usize = BlockType::$block.bytes();
            const ZERO: Zero = $zero;
            #[inline(always)]
            unsafe fn codes($at: *const u8) -> __m256i {
                // SAFETY: as this function's.
                unsafe { $codes }
            }
        }
    };
}

simple_block!(Q8_0, Q8_0, Zero::None, at => _mm256_loadu_si256(at.add(2).cast()));
simple_block!(Q4_0, Q4_0, Zero::Code(8), at => halves_of_nibbles(at.add(2)));
simple_block!(Q4_1, Q4_1, Zero::Shift, at => halves_of_nibbles(at.add(4)));
simple_block!(Q5_0, Q5_0, Zero::Code(16), at => {
    _mm256_or_si256(halves_of_nibbles(at.add(6)), fifth_bits(at.add(2)))
});
simple_block!(Q5_1, Q5_1, Zero::Shift, at => {
    _mm256_or_si256(halves_of_nibbles(at.add(8)), fifth_bits(at.add(4)))
});
simple_block!(Iq4Nl, IQ4_NL, Zero::None, at => looked_up(&IQ4_VALUES, halves_of_nibbles(at.add(2))));

/// See [`BlockType::MXFP4`]: the scale is a power of two in one byte.
#[derive(Clone, Copy)]
pub(crate) struct Mxfp4(pub *const u8);

impl Mxfp4 {
    /// Where block `block` begins.
    ///
    /// # Safety
    /// It lies within the row.
    #[inline(always)]
    unsafe fn at(self, block: usize) -> *const u8 {
        // SAFETY: as this function's.
        unsafe { self.0.add(BlockType::MXFP4.bytes() * block) }
    }
}

impl Codes for Mxfp4 {
    const SIGNED: bool = true;
    const OFFSETS: bool = false;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: those blocks lie within the row.
        unsafe {
            let mut scales = [0f32; 8];
            for (j, scale) in scales.iter_mut().enumerate().take(n) {
                *scale = half_of_e8m0(self.at(CHUNK_BLOCKS * chunk + j).read());
            }
            let scales = _mm256_loadu_ps(scales.as_ptr());
            ([scales, scales], [_mm256_setzero_ps(); 2])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe { looked_up(&MXFP4_VALUES, halves_of_nibbles(self.at(block).add(1))) }
    }
}

impl Unpack for Mxfp4 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let scale = half_of_e8m0(self.at(block).read());
            scaled_signed(self.codes(block), [scale, scale])
        }
    }
}

/// What 32 nibbles stand for.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
pub(super) unsafe fn looked_up(values: &[i8; 16], nibbles: __m256i) -> __m256i {
    // SAFETY: the table holds 16 bytes.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast()));
        _mm256_shuffle_epi8(table, nibbles)
    }
}
