//! Codes in groups with a scale, as compressed-tensors packs them: one stream of bits, least significant first.

use std::arch::x86_64::*;

use bitmill_tensor::{FloatType, ZeroPoint};

use super::fast::Codes;
use super::unpack::{F32, Unpack, nibbles_in_order, scaled, widen_codes};
use crate::activations::CHUNK_BLOCKS;
use crate::row::GroupedRow;
use crate::scalar;

/// Runs an expression with a row of groups as its own [`Unpack`] type.
macro_rules! with_group {
    ($group:expr, $row:ident => $body:expr) => {{
        use $crate::avx2::groups::*;
        let group = $group;
        macro_rules! arm {
            ($own:expr) => {{
                let $row = $own;
                $body
            }};
        }
        match (group.layout.bits.get(), group.blocks_have_one_group()) {
            (2, true) => arm!(Grouped::<2>::new(&group)),
            (3, true) => arm!(Grouped::<3>::new(&group)),
            (4, true) => arm!(Grouped::<4>::new(&group)),
            (5, true) => arm!(Grouped::<5>::new(&group)),
            (6, true) => arm!(Grouped::<6>::new(&group)),
            (7, true) => arm!(Grouped::<7>::new(&group)),
            (8, true) => arm!(Grouped::<8>::new(&group)),
            (4, false) if group.layout.group_size.get() >= 8 => arm!(Uneven::<4>(&group)),
            (8, false) if group.layout.group_size.get() >= 8 => arm!(Uneven::<8>(&group)),
            _ => arm!(AnyGrouped(&group)),
        }
    }};
}
pub(crate) use with_group;

/// Runs an expression with a row of groups as its own [`Codes`] type; `None` where there is no fast path.
macro_rules! with_whole_groups {
    ($group:expr, $in_features:expr, $row:ident => $body:expr) => {{
        use $crate::avx2::groups::*;
        let group = $group;
        macro_rules! arm {
            ($bits:literal) => {{
                let $row = Groups::<$bits>::new(&group, $in_features);
                Some($body)
            }};
        }
        match group.layout.bits.get() {
            _ if !group.blocks_have_one_group() => None,
            2 => arm!(2),
            3 => arm!(3),
            4 => arm!(4),
            5 => arm!(5),
            6 => arm!(6),
            7 => arm!(7),
            8 => arm!(8),
            _ => None,
        }
    }};
}
pub(crate) use with_whole_groups;

/// 32 unsigned codes of `BITS` (2 to 8), in order.
///
/// # Safety
/// Inside a function with AVX2; the block's `4 * BITS` bytes may be read, and no others are.
#[inline(always)]
unsafe fn codes32<const BITS: usize>(at: *const u8) -> __m256i {
    // SAFETY: as this function's.
    unsafe {
        match BITS {
            8 => return _mm256_loadu_si256(at.cast()),
            4 => return nibbles_in_order(at),
            _ => {}
        }
        // Eight codes take `BITS` bytes: those go to the lower end of a quarter of the vector.
        let mut spread = if BITS < 4 {
            let mut bytes = [0u64; 4];
            for (i, eight) in bytes.iter_mut().enumerate() {
                let at = at.add(BITS * i);
                *eight = u64::from(at.cast::<u16>().read_unaligned());
                if BITS == 3 {
                    *eight |= u64::from(at.add(2).read()) << 16;
                }
            }
            _mm256_loadu_si256(bytes.as_ptr().cast())
        } else {
            // The first 16 bytes hold the first two quarters, the last 16 bytes the others.
            let first = _mm_loadu_si128(at.cast());
            let last = _mm_loadu_si128(at.add(4 * BITS - 16).cast());
            let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), last);
            _mm256_shuffle_epi8(both, _mm256_loadu_si256(Quarters::<BITS>::PLACES.as_ptr().cast()))
        };
        // The upper half of the codes moves to the upper half of its place: of eight bytes, of four, of two.
        for (codes, bytes) in [(4, 4), (2, 2), (1, 1)] {
            let (width, place) = (codes * BITS as i64, 8 * bytes);
            let low = ((1i64 << width) - 1)
                * match bytes {
                    4 => 1,
                    2 => 0x1_0000_0001,
                    _ => 0x1_0001_0001_0001,
                };
            let up = _mm256_sll_epi64(spread, _mm_cvtsi64_si128(place - width));
            spread = _mm256_or_si256(
                _mm256_and_si256(spread, _mm256_set1_epi64x(low)),
                _mm256_and_si256(up, _mm256_set1_epi64x(low << place)),
            );
        }
        spread
    }
}

/// Where each byte comes from when 32 codes of `BITS` (5 to 7) are spread over quarters of a vector.
struct Quarters<const BITS: usize>;
impl<const BITS: usize> Quarters<BITS> {
    const PLACES: [u8; 32] = {
        let mut places = [0x80; 32];
        let mut at = 0;
        while at < 32 {
            let (quarter, byte) = (at / 8, at % 8);
            if byte < BITS {
                // Quarters 2 and 3 are the last of the 16 bytes that end with the block.
                let first = if quarter < 2 { BITS * quarter } else { BITS * quarter + 16 - 4 * BITS };
                places[at] = (first + byte) as u8;
            }
            at += 1;
        }
        places
    };
}

/// Codes of `BITS`, every 32 of one group.
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
        let codes = unsafe { codes32::<BITS>(self.row.packed.as_ptr().add(4 * BITS * block)) };
        (codes, i32::from(self.row.zero(group)), self.row.scale(group))
    }
}

impl<const BITS: usize> Unpack for Grouped<'_, BITS> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        // SAFETY: as this function's.
        unsafe {
            let (codes, zero, scale) = self.parts(block);
            scaled(codes, zero, [scale, scale])
        }
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
        unsafe { codes32::<BITS>(self.0.packed.as_ptr().add(4 * BITS * block)) }
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

/// One-bit codes, and groups that tile no block of 32 in other ways: plain code, compiled for these instructions.
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

/// Codes of `BITS` (2 to 8) in groups of whole blocks.
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a, const BITS: usize> {
    row: &'a GroupedRow<'a>,
    /// Blocks in a group; more than the row has where there is one group.
    blocks: usize,
    /// Groups in a chunk, where they tile it: 1, 2, 4 or 8; 0 where they do not.
    per_chunk: usize,
    /// The group of each block in a chunk.
    group_of: __m256i,
    /// All ones in the first `per_chunk` lanes.
    mask: __m256i,
    symmetric: bool,
}

impl<'a, const BITS: usize> Groups<'a, BITS> {
    /// # Safety
    /// Inside a function with AVX2.
    #[inline(always)]
    pub unsafe fn new(row: &'a GroupedRow<'a>, in_features: usize) -> Self {
        let group_size = row.layout.group_size.get();
        let blocks = if group_size >= in_features { usize::MAX } else { group_size / 32 };
        let per_chunk = match blocks {
            1 => 8,
            2 => 4,
            4 => 2,
            _ if blocks == usize::MAX || blocks.is_multiple_of(CHUNK_BLOCKS) => 1,
            _ => 0,
        };
        // SAFETY: no memory is touched; the features are the caller's.
        let (group_of, mask) = unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let count = _mm256_set1_epi32(per_chunk as i32);
            let group_of = _mm256_srli_epi32::<3>(_mm256_mullo_epi32(lanes, count));
            (group_of, _mm256_cmpgt_epi32(count, lanes))
        };
        let symmetric = row.layout.zero_point == ZeroPoint::Symmetric;
        Self { row, blocks, per_chunk, group_of, mask, symmetric }
    }

    /// What stands for zero against codes as [`Codes::codes`] gives them, where nothing is stored.
    const ZERO: f32 = (1 << (BITS - 1)) as f32 - Self::SHIFT as f32;

    /// See [`GroupedRow::shift`].
    const SHIFT: i32 = if BITS >= 6 { 1 << (BITS - 1) } else { 0 };

    /// Scales and zero points of the `per_chunk` groups from `group` on.
    #[inline(always)]
    unsafe fn groups(&self, group: usize) -> (__m256, __m256) {
        // SAFETY: that many groups lie within the row; wider reads are masked.
        unsafe {
            let float = self.row.layout.scale;
            let at = self.row.scales.as_ptr().add(group * float.size_bytes());
            let scales = if float == FloatType::F32 {
                _mm256_maskload_ps(at.cast(), self.mask)
            } else {
                let halves = match self.per_chunk {
                    8 => _mm_loadu_si128(at.cast()),
                    4 => _mm_loadl_epi64(at.cast()),
                    2 => _mm_cvtsi32_si128(at.cast::<i32>().read_unaligned()),
                    _ => _mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned())),
                };
                if float == FloatType::F16 {
                    _mm256_cvtph_ps(halves)
                } else {
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
                }
            };
            if self.symmetric {
                return (scales, _mm256_set1_ps(Self::ZERO));
            }
            let (words, shift) = self.row.zero_words();
            let at = words.as_ptr().add(4 * group);
            let words = _mm256_maskload_epi32(at.cast(), self.mask);
            let mut codes = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
            if shift + BITS > 32 {
                let next = _mm256_maskload_epi32(at.add(self.row.word_row_bytes()).cast(), self.mask);
                codes = _mm256_or_si256(codes, _mm256_sll_epi32(next, _mm_cvtsi32_si128(32 - shift as i32)));
            }
            let codes = _mm256_and_si256(codes, _mm256_set1_epi32((1 << BITS) - 1));
            (scales, _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(Self::SHIFT))))
        }
    }
}

impl<const BITS: usize> Codes for Groups<'_, BITS> {
    const SIGNED: bool = Self::SHIFT > 0;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, n: usize) -> ([__m256; 2], [__m256; 2]) {
        let first = CHUNK_BLOCKS * chunk;
        // SAFETY: a whole chunk has its groups; where the row ends within a chunk only one group may span it.
        unsafe {
            let (scales, zeros) = if self.per_chunk > 0 && (n == CHUNK_BLOCKS || self.per_chunk == 1) {
                let group = match self.blocks {
                    1 => first,
                    2 => first / 2,
                    4 => first / 4,
                    8 => chunk,
                    blocks => first / blocks,
                };
                let (scales, zeros) = self.groups(group);
                if self.per_chunk == 8 {
                    (scales, zeros)
                } else {
                    (
                        _mm256_permutevar8x32_ps(scales, self.group_of),
                        _mm256_permutevar8x32_ps(zeros, self.group_of),
                    )
                }
            } else {
                let (mut scales, mut zeros) = ([0f32; CHUNK_BLOCKS], [0f32; CHUNK_BLOCKS]);
                for j in 0..n {
                    let group = (first + j) / self.blocks;
                    scales[j] = self.row.scale(group);
                    zeros[j] = f32::from(self.row.zero(group)) - Self::SHIFT as f32;
                }
                (_mm256_loadu_ps(scales.as_ptr()), _mm256_loadu_ps(zeros.as_ptr()))
            };
            let offsets = _mm256_mul_ps(scales, zeros);
            ([scales, scales], [offsets, offsets])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block's bytes lie within the row.
        unsafe { Self::decode(self.row.packed.as_ptr().add(4 * BITS * block)) }
    }

    #[inline(always)]
    unsafe fn last_codes(self, block: usize) -> __m256i {
        let rest = &self.row.packed[4 * BITS * block..];
        let mut padded = [0u8; 32];
        let len = rest.len().min(4 * BITS);
        padded[..len].copy_from_slice(&rest[..len]);
        // SAFETY: the buffer holds a block.
        unsafe { Self::decode(padded.as_ptr()) }
    }
}

impl<const BITS: usize> Groups<'_, BITS> {
    #[inline(always)]
    unsafe fn decode(at: *const u8) -> __m256i {
        // SAFETY: the caller's: `4 * BITS` bytes may be read.
        unsafe {
            let codes = codes32::<BITS>(at);
            if Self::SHIFT == 0 { codes } else { _mm256_sub_epi8(codes, _mm256_set1_epi8(Self::SHIFT as i8)) }
        }
    }
}
