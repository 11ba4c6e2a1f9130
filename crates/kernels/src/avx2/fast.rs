//! Sums of int8 activations times integer codes.

use std::arch::x86_64::*;

use bitmill_tensor::{BlockType, FloatType, ZeroPoint};

use super::exact::{add_up, sum8};
use super::unpack::{Q4K, Q6K, f16_at, fifth_bits, halves_of_nibbles, nibbles_in_order};
use crate::activations::{CHUNK, CHUNK_BLOCKS, Token};
use crate::row::{GroupedRow, Row, q4_k, q6_k};

/// A row of codes with eight blocks of 32 to a chunk. See [`scalar::Chunk`](crate::scalar::Chunk).
pub(crate) trait Codes: Copy {
    /// Codes are signed and use all eight bits; otherwise they are unsigned and below 64.
    const SIGNED: bool;
    /// Each block has two scales and two offsets, one a half.
    const HALVES: bool = false;
    /// There is something to subtract.
    const OFFSETS: bool = true;

    /// Scales and offsets of the first `n` blocks of chunk `chunk`, zeros behind them. The second pair is of the
    /// halves 8 to 15 where there are [`HALVES`](Self::HALVES), else unspecified.
    ///
    /// # Safety
    /// Inside a function with AVX2, FMA and F16C; the blocks lie within the row.
    unsafe fn scales(self, chunk: usize, n: usize) -> ([__m256; 2], [__m256; 2]);

    /// Codes of block `block`, counted over the row.
    ///
    /// # Safety
    /// As [`scales`](Self::scales).
    unsafe fn codes(self, block: usize) -> __m256i;

    /// The same of a block that the row may end in.
    ///
    /// # Safety
    /// As [`scales`](Self::scales).
    #[inline(always)]
    unsafe fn last_codes(self, block: usize) -> __m256i {
        // SAFETY: as this function's.
        unsafe { self.codes(block) }
    }
}

/// Runs an expression with the row as its own [`Codes`] type; `None` where the encoding has no fast path.
macro_rules! with_codes {
    ($row:expr, $in_features:expr, $codes:ident => $body:expr) => {{
        use bitmill_tensor::BlockType;
        use $crate::avx2::{fast::*, unpack::*};
        use $crate::row::Row;
        match *$row {
            Row::Float { .. } => None,
            Row::Block { block: BlockType::Q8_0, bytes } => {
                let $codes = Simple::<Q8_0>::new(bytes);
                Some($body)
            }
            Row::Block { block: BlockType::Q4_0, bytes } => {
                let $codes = Simple::<Q4_0>::new(bytes);
                Some($body)
            }
            Row::Block { block: BlockType::Q5_0, bytes } => {
                let $codes = Simple::<Q5_0>::new(bytes);
                Some($body)
            }
            Row::Block { block: BlockType::Q4_K, bytes } => {
                let $codes = Q4K(bytes.as_ptr());
                Some($body)
            }
            Row::Block { block: BlockType::Q6_K, bytes } => {
                let $codes = Q6K(bytes.as_ptr());
                Some($body)
            }
            Row::Grouped(row) if !row.blocks_have_one_group() => None,
            Row::Grouped(row) => match row.layout.bits.get() {
                4 => {
                    let $codes = Groups::<4>::new(&row, $in_features);
                    Some($body)
                }
                8 => {
                    let $codes = Groups::<8>::new(&row, $in_features);
                    Some($body)
                }
                _ => None,
            },
        }
    }};
}
pub(crate) use with_codes;

/// See [`scalar::fast_dot`](crate::scalar::fast_dot).
///
/// # Safety
/// Inside a function with AVX2, FMA and F16C; `token` is as long as the row; the encoding has a fast path.
#[inline(always)]
pub(super) unsafe fn dot_row(row: &Row<'_>, in_features: usize, token: Token<'_>) -> f32 {
    // SAFETY: the caller's promises are those of what is called.
    unsafe { with_codes!(row, in_features, codes => dot(codes, in_features, token)).unwrap_or(f32::NAN) }
}

#[inline(always)]
unsafe fn dot<C: Codes>(codes: C, in_features: usize, token: Token<'_>) -> f32 {
    let mut sums = Sums::default();
    let chunks = in_features / CHUNK;
    // SAFETY: all blocks lie within the row, and the token's arrays are padded to whole chunks.
    unsafe {
        for chunk in 0..chunks {
            add_chunk::<C, true>(codes, chunk, CHUNK_BLOCKS, token, &mut sums);
        }
        let rest = (in_features % CHUNK).div_ceil(32);
        if rest > 0 {
            add_chunk::<C, false>(codes, chunks, rest, token, &mut sums);
        }
        let total = add_up(sums.products);
        if C::OFFSETS { total - sum8(sums.offsets) } else { total }
    }
}

/// The lanes of [`scalar::fast_dot`](crate::scalar::fast_dot).
struct Sums {
    products: [__m256; 4],
    offsets: __m256,
}

impl Default for Sums {
    #[inline(always)]
    fn default() -> Self {
        // SAFETY: all bits zero is a vector of zeros.
        unsafe { std::mem::zeroed() }
    }
}

/// Adds the first `n` blocks of a chunk; `WHOLE` says that they are all eight.
#[inline(always)]
unsafe fn add_chunk<C: Codes, const WHOLE: bool>(
    codes: C,
    chunk: usize,
    n: usize,
    token: Token<'_>,
    sums: &mut Sums,
) {
    // SAFETY: the blocks lie within the row, and the token's arrays hold the whole chunk.
    unsafe {
        let first = CHUNK_BLOCKS * chunk;
        let (scales, offsets) = codes.scales(chunk, n);
        let token_scales = _mm256_loadu_ps(token.scales.as_ptr().add(first));
        // A block's two scales lie side by side, the same twice where there are no halves.
        let mut products = [0f32; 16];
        if C::HALVES {
            let low = _mm256_permutevar8x32_ps(token_scales, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
            let high = _mm256_permutevar8x32_ps(token_scales, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
            _mm256_storeu_ps(products.as_mut_ptr(), _mm256_mul_ps(scales[0], low));
            _mm256_storeu_ps(products.as_mut_ptr().add(8), _mm256_mul_ps(scales[1], high));
            let half_sums = token.half_sums.as_ptr().add(2 * first);
            sums.offsets = _mm256_fmadd_ps(offsets[0], _mm256_loadu_ps(half_sums), sums.offsets);
            sums.offsets = _mm256_fmadd_ps(offsets[1], _mm256_loadu_ps(half_sums.add(8)), sums.offsets);
        } else {
            _mm256_storeu_ps(products.as_mut_ptr(), _mm256_mul_ps(scales[0], token_scales));
            if C::OFFSETS {
                let block_sums = _mm256_loadu_ps(token.sums.as_ptr().add(first));
                sums.offsets = _mm256_fmadd_ps(offsets[0], block_sums, sums.offsets);
            }
        }
        // Spelled out so that lanes are indexed by constants and stay in registers.
        macro_rules! add_blocks {
            ($($j:literal)*) => {
                $(if WHOLE || $j < n {
                    let block = first + $j;
                    let own = if WHOLE { codes.codes(block) } else { codes.last_codes(block) };
                    add_block::<C, $j>(own, block, token, &products, sums);
                })*
            };
        }
        add_blocks!(0 1 2 3 4 5 6 7);
    }
}

/// Adds block `block`, the `J`th of its chunk; `scales` are the chunk's, times the token's.
#[inline(always)]
unsafe fn add_block<C: Codes, const J: usize>(
    codes: __m256i,
    block: usize,
    token: Token<'_>,
    scales: &[f32; 16],
    sums: &mut Sums,
) {
    // SAFETY: the block lies within the row and within the token's codes.
    unsafe {
        let activations = _mm256_loadu_si256(token.codes.as_ptr().add(32 * block).cast());
        let lanes =
            if C::SIGNED { lanes_signed(codes, activations) } else { lanes_unsigned(codes, activations) };
        let scale = if C::HALVES {
            let pair = scales.as_ptr().add(2 * J).cast::<f64>().read_unaligned();
            _mm256_permutevar_ps(
                _mm256_castpd_ps(_mm256_set1_pd(pair)),
                _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1),
            )
        } else {
            _mm256_set1_ps(scales[J])
        };
        sums.products[J % 4] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(lanes), scale, sums.products[J % 4]);
    }
}

/// Sums of four products each. Codes stay below 64, so that a pair of products fits 16 bits: 2 * 63 * 127 < 2^15.
#[inline(always)]
unsafe fn lanes_unsigned(codes: __m256i, activations: __m256i) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(codes, activations), _mm256_set1_epi16(1)) }
}

/// The same for signed codes: the sign moves to the activation. |−128| is 128 as an unsigned byte, and
/// 2 * 128 * 127 < 2^15.
#[inline(always)]
unsafe fn lanes_signed(codes: __m256i, activations: __m256i) -> __m256i {
    // SAFETY: no memory is touched; the features are the caller's.
    unsafe {
        let magnitudes = _mm256_abs_epi8(codes);
        let signed = _mm256_sign_epi8(activations, codes);
        _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, signed), _mm256_set1_epi16(1))
    }
}

/// Blocks of 32 with one f16 scale in front.
pub(crate) trait SimpleBlock: Copy {
    const BYTES: usize;
    const SIGNED: bool;
    /// The code that stands for zero.
    const ZERO: f32;
    unsafe fn codes(block: *const u8) -> __m256i;
}

/// A row of [`SimpleBlock`]s.
#[derive(Clone, Copy)]
pub(crate) struct Simple<B>(*const u8, std::marker::PhantomData<B>);
impl<B> Simple<B> {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr(), std::marker::PhantomData)
    }
}

impl<B: SimpleBlock> Codes for Simple<B> {
    const SIGNED: bool = B::SIGNED;
    const OFFSETS: bool = B::ZERO != 0.0;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: the first `n` blocks of the chunk.
        unsafe {
            let first = self.0.add(B::BYTES * CHUNK_BLOCKS * chunk);
            let mut halves = [0u16; 8];
            for (j, half) in halves.iter_mut().enumerate().take(n) {
                *half = first.add(B::BYTES * j).cast::<u16>().read_unaligned();
            }
            let scales = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
            let offsets = _mm256_mul_ps(scales, _mm256_set1_ps(B::ZERO));
            ([scales, scales], [offsets, offsets])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe { B::codes(self.0.add(B::BYTES * block)) }
    }
}

impl SimpleBlock for super::unpack::Q8_0 {
    const BYTES: usize = BlockType::Q8_0.bytes();
    const SIGNED: bool = true;
    const ZERO: f32 = 0.0;
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: the bytes of one block.
        unsafe { _mm256_loadu_si256(block.add(2).cast()) }
    }
}

impl SimpleBlock for super::unpack::Q4_0 {
    const BYTES: usize = BlockType::Q4_0.bytes();
    const SIGNED: bool = false;
    const ZERO: f32 = 8.0;
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: the bytes of one block.
        unsafe { halves_of_nibbles(block.add(2)) }
    }
}

impl SimpleBlock for super::unpack::Q5_0 {
    const BYTES: usize = BlockType::Q5_0.bytes();
    const SIGNED: bool = false;
    const ZERO: f32 = 16.0;
    #[inline(always)]
    unsafe fn codes(block: *const u8) -> __m256i {
        // SAFETY: the bytes of one block.
        unsafe { _mm256_or_si256(halves_of_nibbles(block.add(6)), fifth_bits(block.add(2))) }
    }
}

impl Codes for Q4K {
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe {
            let at = self.0.add(q4_k::BYTES * chunk);
            let word = |i: usize| at.add(q4_k::SCALES + 4 * i).cast::<u32>().read_unaligned();
            let (a, b, c) = (word(0), word(1), word(2));
            // Four bytes at a time what `q4_k_scale_min` does one by one.
            let scales = [a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | ((a >> 2) & 0x3030_3030)];
            let mins = [b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | ((b >> 2) & 0x3030_3030)];
            let widen = |words: [u32; 2], factor: usize| {
                let bytes = i64::from(words[0]) | i64::from(words[1]) << 32;
                let codes = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes)));
                _mm256_mul_ps(_mm256_set1_ps(f16_at(at.add(factor))), codes)
            };
            let (scales, offsets) = (widen(scales, q4_k::D), widen(mins, q4_k::DMIN));
            ([scales, scales], [offsets, offsets])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe { self.codes32(block) }
    }
}

impl Codes for Q6K {
    const SIGNED: bool = false;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn scales(self, chunk: usize, _n: usize) -> ([__m256; 2], [__m256; 2]) {
        // SAFETY: a chunk is a block of the row.
        unsafe {
            let at = self.0.add(q6_k::BYTES * chunk);
            let d = _mm256_set1_ps(f16_at(at.add(q6_k::D)));
            let eight = |i: usize| {
                let codes = _mm_loadl_epi64(at.add(q6_k::SCALES + 8 * i).cast());
                _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)))
            };
            let scales = [eight(0), eight(1)];
            let zero = _mm256_set1_ps(32.0);
            (scales, [_mm256_mul_ps(scales[0], zero), _mm256_mul_ps(scales[1], zero)])
        }
    }

    #[inline(always)]
    unsafe fn codes(self, block: usize) -> __m256i {
        // SAFETY: the block lies within the row.
        unsafe { self.codes32(block) }
    }
}

/// Codes of `BITS` (4 or 8) in groups of whole blocks.
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
    const ZERO: f32 = if BITS == 8 { 0.0 } else { 8.0 };

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
            let words = _mm256_maskload_epi32(words.as_ptr().add(4 * group).cast(), self.mask);
            let codes = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
            let codes = _mm256_and_si256(codes, _mm256_set1_epi32((1 << BITS) - 1));
            let shift = _mm256_set1_epi32(if BITS == 8 { 128 } else { 0 });
            (scales, _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, shift)))
        }
    }
}

impl<const BITS: usize> Codes for Groups<'_, BITS> {
    const SIGNED: bool = BITS == 8;

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
                    zeros[j] = f32::from(self.row.zero(group)) - if BITS == 8 { 128.0 } else { 0.0 };
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
            if BITS == 8 {
                _mm256_xor_si256(_mm256_loadu_si256(at.cast()), _mm256_set1_epi8(-128))
            } else {
                nibbles_in_order(at)
            }
        }
    }
}
