//! Weights of each encoding as vectors of f32, 32 at a time.

use std::arch::x86_64::*;

use crate::columns::Columns;
use crate::row::Row;
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
        use bitmill_tensor::FloatType;
        use $crate::avx2::blocks::with_block;
        use $crate::avx2::groups::with_group;
        use $crate::avx2::numbers::Numbers;
        use $crate::avx2::sparse::with_sparse;
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
            Row::Block { block, bytes } => with_block!(block, bytes, $weights => $body),
            Row::Grouped(row) => with_group!(row, $weights => $body),
            Row::Sparse(row) => with_sparse!(row, $weights => $body),
            Row::Scaled(row) => {
                let $weights = Numbers(&row);
                $body
            }
            Row::Column { of, row } => {
                let $weights = ByColumn(&of, row);
                $body
            }
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
    // Floats, sparse ones too, and groups of codes end within a block; all may be read from any column.
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

/// A row of a matrix that is stored column by column: plain code, compiled for these instructions.
#[derive(Clone, Copy)]
pub(crate) struct ByColumn<'a>(pub &'a Columns<'a>, pub usize);
impl Unpack for ByColumn<'_> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        let mut values = [0f32; 32];
        self.0.unpack_row(self.1, 32 * block, &mut values);
        // SAFETY: the array holds 32.
        unsafe { F32(values.as_ptr().cast()).unpack32(0) }
    }
}

/// `(code − zero) * scale` of 32 unsigned codes, a scale for each half of them.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
pub(super) unsafe fn scaled(codes: __m256i, zero: i32, scales: [f32; 2]) -> [__m256; 4] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let zero = _mm256_set1_epi32(zero);
        let mut out = [_mm256_setzero_ps(); 4];
        for (i, code) in widen_codes(codes).into_iter().enumerate() {
            let scale = _mm256_set1_ps(scales[i / 2]);
            out[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero)), scale);
        }
        out
    }
}

/// `code * scale` of 32 signed codes, a scale for each half of them.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
pub(super) unsafe fn scaled_signed(codes: __m256i, scales: [f32; 2]) -> [__m256; 4] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let (low, high) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
        let wide = [
            _mm256_cvtepi8_epi32(low),
            _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(low)),
            _mm256_cvtepi8_epi32(high),
            _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(high)),
        ];
        let mut out = [_mm256_setzero_ps(); 4];
        for (i, code) in wide.into_iter().enumerate() {
            out[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(scales[i / 2]));
        }
        out
    }
}

/// `scale * code − minimum` of 32 unsigned codes, a scale and a minimum for each half of them.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
pub(super) unsafe fn above(codes: __m256i, scales: [f32; 2], mins: [f32; 2]) -> [__m256; 4] {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let mut out = [_mm256_setzero_ps(); 4];
        for (i, code) in widen_codes(codes).into_iter().enumerate() {
            let (scale, min) = (_mm256_set1_ps(scales[i / 2]), _mm256_set1_ps(mins[i / 2]));
            out[i] = _mm256_sub_ps(_mm256_mul_ps(scale, _mm256_cvtepi32_ps(code)), min);
        }
        out
    }
}

/// 32 bytes as four vectors of i32, zero-extended.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
pub(super) unsafe fn widen_codes(codes: __m256i) -> [__m256i; 4] {
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
        let bits = at.cast::<u32>().read_unaligned();
        _mm256_and_si256(bytes_of_bits(bits), _mm256_set1_epi8(16))
    }
}

/// 32 bits as 32 bytes, all ones where the bit is set.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
pub(crate) unsafe fn bytes_of_bits(bits: u32) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let bits = _mm256_set1_epi32(bits.cast_signed());
        let byte_of =
            _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let spread = _mm256_shuffle_epi8(bits, byte_of);
        let bit_of = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of)
    }
}
