//! Weights of each encoding as vectors of f32, 32 at a time.

use std::arch::x86_64::*;

use bitmill_tensor::BlockType;

use crate::row::{GroupedRow, Row, q4_k, q4_k_scale_min, q6_k};
use crate::scalar;

/// A row whose weights come 32 at a time.
pub(crate) trait Unpack: Copy {
    /// Weights `[32 * block, 32 * block + 32)`, the same bits as [`scalar::unpack`].
    ///
    /// # Safety
    /// Inside a function with AVX2, FMA and F16C; those weights lie within the row.
    unsafe fn unpack32(self, block: usize) -> [__m256; 4];
}

/// Runs an expression with the row as its own [`Unpack`] type.
macro_rules! with_unpack {
    ($row:expr, $weights:ident => $body:expr) => {{
        use bitmill_tensor::{BlockType, FloatType};
        use $crate::avx2::unpack::*;
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
                let $weights = Q4K(bytes.as_ptr());
                $body
            }
            Row::Block { block: BlockType::Q6_K, bytes } => {
                let $weights = Q6K(bytes.as_ptr());
                $body
            }
            Row::Grouped(row) => match (row.layout.bits.get(), row.blocks_have_one_group()) {
                (4, true) => {
                    let $weights = Grouped::<4>::new(&row);
                    $body
                }
                (8, true) => {
                    let $weights = Grouped::<8>::new(&row);
                    $body
                }
                (4, false) if row.layout.group_size.get() >= 8 => {
                    let $weights = Uneven::<4>(&row);
                    $body
                }
                (8, false) if row.layout.group_size.get() >= 8 => {
                    let $weights = Uneven::<8>(&row);
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
pub(crate) use with_unpack;

/// See [`scalar::unpack`].
///
/// # Safety
/// Inside a function with AVX2, FMA and F16C.
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
            for (j, w) in w.into_iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * j), w);
            }
        }
        at += 32;
    }
    // Only floats and groups of codes end within a block; both may be read from any column.
    let rest = blocks.into_remainder();
    if !rest.is_empty() {
        scalar::unpack(row, at, rest);
    }
}

/// The columns from `first` to the end, weights and activations, padded with zeros.
#[inline(always)]
pub(crate) fn tail(row: &Row<'_>, first: usize, x: &[f32]) -> ([f32; 32], [f32; 32]) {
    let (mut w, mut padded) = ([0f32; 32], [0f32; 32]);
    let rest = &x[first..];
    scalar::unpack(row, first, &mut w[..rest.len()]);
    padded[..rest.len()].copy_from_slice(rest);
    (w, padded)
}

/// Plain f32.
#[derive(Clone, Copy)]
pub(crate) struct F32(pub *const u8);
impl Unpack for F32 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: 128 bytes of the row.
        unsafe {
            let at = self.0.add(128 * block).cast::<f32>();
            [
                _mm256_loadu_ps(at),
                _mm256_loadu_ps(at.add(8)),
                _mm256_loadu_ps(at.add(16)),
                _mm256_loadu_ps(at.add(24)),
            ]
        }
    }
}

/// IEEE half precision.
#[derive(Clone, Copy)]
pub(crate) struct F16(pub *const u8);
impl Unpack for F16 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: 64 bytes of the row.
        unsafe {
            let at = self.0.add(64 * block).cast::<__m128i>();
            let part = |i| _mm256_cvtph_ps(_mm_loadu_si128(at.add(i)));
            [part(0), part(1), part(2), part(3)]
        }
    }
}

/// The upper half of an f32.
#[derive(Clone, Copy)]
pub(crate) struct Bf16(pub *const u8);
impl Unpack for Bf16 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: 64 bytes of the row.
        unsafe {
            let at = self.0.add(64 * block).cast::<__m128i>();
            let part = |i: usize| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(i)));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            [part(0), part(1), part(2), part(3)]
        }
    }
}

/// `(code − zero) * scale` of 32 unsigned codes.
#[inline(always)]
unsafe fn scaled(codes: __m256i, zero: i32, scale: f32) -> [__m256; 4] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let (zero, scale) = (_mm256_set1_epi32(zero), _mm256_set1_ps(scale));
        let mut out = [_mm256_setzero_ps(); 4];
        for (out, code) in out.iter_mut().zip(widen_codes(codes)) {
            *out = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero)), scale);
        }
        out
    }
}

/// 32 bytes as four vectors of i32, zero-extended.
#[inline(always)]
unsafe fn widen_codes(codes: __m256i) -> [__m256i; 4] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let (low, high) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
        [
            _mm256_cvtepu8_epi32(low),
            _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(low)),
            _mm256_cvtepu8_epi32(high),
            _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(high)),
        ]
    }
}

/// Little-endian f16 at `at`, widened.
///
/// # Safety
/// Two bytes may be read; the caller has F16C.
#[inline(always)]
pub(crate) unsafe fn f16_at(at: *const u8) -> f32 {
    // SAFETY: as this function's.
    unsafe {
        let bits = i32::from(at.cast::<u16>().read_unaligned());
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
    }
}

/// 16 bytes of nibbles as 32 codes: low nibbles first, then high ones.
///
/// # Safety
/// 16 bytes may be read; the caller has AVX2.
#[inline(always)]
pub(crate) unsafe fn halves_of_nibbles(at: *const u8) -> __m256i {
    // SAFETY: as this function's.
    unsafe {
        let twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast()));
        let shifted = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4));
        _mm256_and_si256(shifted, _mm256_set1_epi8(15))
    }
}

/// 16 bytes of nibbles as 32 codes in order: each byte its low nibble, then its high one.
///
/// # Safety
/// 16 bytes may be read; the caller has AVX2.
#[inline(always)]
pub(crate) unsafe fn nibbles_in_order(at: *const u8) -> __m256i {
    // SAFETY: as this function's.
    unsafe {
        let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(at.cast()));
        let both = _mm256_or_si256(wide, _mm256_slli_epi16::<4>(wide));
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// 32 bits as 32 bytes: 16 where the bit is set.
///
/// # Safety
/// Four bytes may be read; the caller has AVX2.
#[inline(always)]
pub(crate) unsafe fn fifth_bits(at: *const u8) -> __m256i {
    // SAFETY: as this function's.
    unsafe {
        let bits = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
        let byte_of =
            _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let spread = _mm256_shuffle_epi8(bits, byte_of);
        let bit_of = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of);
        _mm256_and_si256(set, _mm256_set1_epi8(16))
    }
}

/// See [`BlockType::Q8_0`].
#[derive(Clone, Copy)]
pub(crate) struct Q8_0(pub *const u8);
impl Unpack for Q8_0 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.add(BlockType::Q8_0.bytes() * block);
            let scale = _mm256_set1_ps(f16_at(at));
            let part = |i: usize| {
                let codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.add(2 + 8 * i).cast()));
                _mm256_mul_ps(_mm256_cvtepi32_ps(codes), scale)
            };
            [part(0), part(1), part(2), part(3)]
        }
    }
}

/// See [`BlockType::Q4_0`].
#[derive(Clone, Copy)]
pub(crate) struct Q4_0(pub *const u8);
impl Unpack for Q4_0 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.add(BlockType::Q4_0.bytes() * block);
            scaled(halves_of_nibbles(at.add(2)), 8, f16_at(at))
        }
    }
}

/// See [`BlockType::Q5_0`].
#[derive(Clone, Copy)]
pub(crate) struct Q5_0(pub *const u8);
impl Unpack for Q5_0 {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.add(BlockType::Q5_0.bytes() * block);
            let codes = _mm256_or_si256(halves_of_nibbles(at.add(6)), fifth_bits(at.add(2)));
            scaled(codes, 16, f16_at(at))
        }
    }
}

/// See [`BlockType::Q4_K`].
#[derive(Clone, Copy)]
pub(crate) struct Q4K(pub *const u8);
impl Q4K {
    /// Codes of sub-block `block`, counted over the row.
    #[inline(always)]
    pub unsafe fn codes32(self, block: usize) -> __m256i {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.add(q4_k::BYTES * (block / 8) + q4_k::CODES + 32 * (block % 8 / 2));
            let both = _mm256_loadu_si256(at.cast());
            let own = if block.is_multiple_of(2) { both } else { _mm256_srli_epi16::<4>(both) };
            _mm256_and_si256(own, _mm256_set1_epi8(15))
        }
    }
}
impl Unpack for Q4K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.add(q4_k::BYTES * (block / 8));
            let scales = std::slice::from_raw_parts(at.add(q4_k::SCALES), 12);
            let (scale, min) = q4_k_scale_min(scales, block % 8);
            let scale = _mm256_set1_ps(f16_at(at.add(q4_k::D)) * f32::from(scale));
            let min = _mm256_set1_ps(f16_at(at.add(q4_k::DMIN)) * f32::from(min));
            let mut out = [_mm256_setzero_ps(); 4];
            for (out, code) in out.iter_mut().zip(widen_codes(self.codes32(block))) {
                *out = _mm256_sub_ps(_mm256_mul_ps(scale, _mm256_cvtepi32_ps(code)), min);
            }
            out
        }
    }
}

/// See [`BlockType::Q6_K`].
#[derive(Clone, Copy)]
pub(crate) struct Q6K(pub *const u8);
impl Q6K {
    /// Unsigned codes of the 32 weights `block`, counted over the row.
    #[inline(always)]
    pub unsafe fn codes32(self, block: usize) -> __m256i {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.add(q6_k::BYTES * (block / 8));
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
impl Unpack for Q6K {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: one block of the row.
        unsafe {
            let at = self.0.add(q6_k::BYTES * (block / 8));
            let d = f16_at(at.add(q6_k::D));
            let scale = |i: usize| {
                let scale = at.add(q6_k::SCALES + 2 * (block % 8) + i).cast::<i8>().read();
                _mm256_set1_ps(d * f32::from(scale))
            };
            let scales = [scale(0), scale(1)];
            let zero = _mm256_set1_epi32(32);
            let mut out = [_mm256_setzero_ps(); 4];
            for (i, code) in widen_codes(self.codes32(block)).into_iter().enumerate() {
                out[i] = _mm256_mul_ps(scales[i / 2], _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero)));
            }
            out
        }
    }
}

/// Codes of `BITS` (4 or 8), every 32 of one group.
#[derive(Clone, Copy)]
pub(crate) struct Grouped<'a, const BITS: usize> {
    row: &'a GroupedRow<'a>,
    /// Blocks in a group, and their logarithm where they are a power of two: a division costs as much as a block.
    blocks: usize,
    shift: Option<u32>,
}

impl<'a, const BITS: usize> Grouped<'a, BITS> {
    #[inline(always)]
    pub fn new(row: &'a GroupedRow<'a>) -> Self {
        // One group spans the row where it is not a multiple of 32.
        let size = row.layout.group_size.get();
        let blocks = if size.is_multiple_of(32) { size / 32 } else { usize::MAX };
        let shift = blocks.is_power_of_two().then(|| blocks.trailing_zeros());
        Self { row, blocks, shift }
    }

    /// Codes, zero point and scale of block `block`.
    ///
    /// # Safety
    /// As [`Unpack::unpack32`].
    #[inline(always)]
    pub unsafe fn parts(self, block: usize) -> (__m256i, i32, f32) {
        let group = match self.shift {
            Some(shift) => block >> shift,
            None => block / self.blocks,
        };
        // SAFETY: the block's bytes lie within the row.
        let codes = unsafe { any_codes::<BITS>(self.row.packed.as_ptr(), block) };
        (codes, i32::from(self.row.zero(group)), self.row.scale(group))
    }
}

impl<const BITS: usize> Unpack for Grouped<'_, BITS> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: as this function's.
        unsafe {
            let (codes, zero, scale) = self.parts(block);
            scaled(codes, zero, scale)
        }
    }
}

/// 32 unsigned codes of `BITS` (4 or 8) in order.
#[inline(always)]
unsafe fn any_codes<const BITS: usize>(packed: *const u8, block: usize) -> __m256i {
    // SAFETY: the caller's: the block's bytes lie within the row.
    unsafe {
        let at = packed.add(4 * BITS * block);
        if BITS == 8 { _mm256_loadu_si256(at.cast()) } else { nibbles_in_order(at) }
    }
}

/// Codes of `BITS` (4 or 8) in groups of at least eight that do not tile blocks of 32.
#[derive(Clone, Copy)]
pub(crate) struct Uneven<'a, const BITS: usize>(pub &'a GroupedRow<'a>);

impl<const BITS: usize> Uneven<'_, BITS> {
    /// Scale and zero point of each of 32 weights.
    ///
    /// # Safety
    /// As [`Unpack::unpack32`].
    #[inline(always)]
    pub unsafe fn scales(self, block: usize) -> ([f32; 64], [f32; 64]) {
        let size = self.0.layout.group_size.get();
        let (mut scales, mut zeros) = ([0f32; 64], [0f32; 64]);
        let (mut group, mut at) = (32 * block / size, 0);
        let mut end = (group + 1) * size - 32 * block;
        while at < 32 {
            // SAFETY: `at` stays below 32 and 32 lanes are written; what spills over a group's end is overwritten.
            unsafe {
                let scale = _mm256_set1_ps(self.0.scale(group));
                let zero = _mm256_set1_ps(f32::from(self.0.zero(group)));
                for i in (at..end.min(32)).step_by(8) {
                    _mm256_storeu_ps(scales.as_mut_ptr().add(i), scale);
                    _mm256_storeu_ps(zeros.as_mut_ptr().add(i), zero);
                }
            }
            at = end;
            end += size;
            group += 1;
        }
        (scales, zeros)
    }

    /// Codes of block `block`.
    ///
    /// # Safety
    /// As [`Unpack::unpack32`].
    #[inline(always)]
    pub unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: as this function's.
        unsafe { any_codes::<BITS>(self.0.packed.as_ptr(), block) }
    }
}

impl<const BITS: usize> Unpack for Uneven<'_, BITS> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: as this function's; differences of codes are exact as floats too.
        unsafe {
            let (scales, zeros) = self.scales(block);
            let mut out = [_mm256_setzero_ps(); 4];
            for (j, code) in widen_codes(self.codes(block)).into_iter().enumerate() {
                let zero = _mm256_loadu_ps(zeros.as_ptr().add(8 * j));
                let scale = _mm256_loadu_ps(scales.as_ptr().add(8 * j));
                out[j] = _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(code), zero), scale);
            }
            out
        }
    }
}

/// Any other width, and groups of less than eight: plain code, compiled for these instructions.
#[derive(Clone, Copy)]
pub(crate) struct AnyGrouped<'a>(pub &'a GroupedRow<'a>);
impl Unpack for AnyGrouped<'_> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        let mut values = [0f32; 32];
        scalar::unpack_grouped(self.0, 32 * block, &mut values);
        // SAFETY: the array holds 32.
        unsafe { F32(values.as_ptr().cast()).unpack32(0) }
    }
}
