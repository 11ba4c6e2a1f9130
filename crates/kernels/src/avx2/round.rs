//! Rounding activations to int8.

use std::arch::x86_64::*;

/// `x * inverse` rounded to nearest, ties to even; returns the codes' sums over the halves.
///
/// # Safety
/// The CPU has AVX2. Products stay within int8.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn round32(x: &[f32; 32], inverse: f32, codes: &mut [i8; 32]) -> [i32; 2] {
    // SAFETY: 32 floats are read and 32 bytes written, which the arrays hold.
    unsafe {
        let inverse = _mm256_set1_ps(inverse);
        let part =
            |i: usize| _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x.as_ptr().add(8 * i)), inverse));
        let (a, b, c, d) = (part(0), part(1), part(2), part(3));
        // Packing works within 128-bit halves: dwords come out as a0 b0 c0 d0 a1 b1 c1 d1.
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let packed = _mm256_permutevar8x32_epi32(packed, order);
        _mm256_storeu_si256(codes.as_mut_ptr().cast(), packed);
        [sum8(_mm256_add_epi32(a, b)), sum8(_mm256_add_epi32(c, d))]
    }
}

#[target_feature(enable = "avx2")]
fn sum8(v: __m256i) -> i32 {
    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b00_00_00_01>(v));
    _mm_cvtsi128_si32(v)
}
