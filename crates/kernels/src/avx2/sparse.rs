//! Kept weights put in their places, eight at a time: a table says for each byte of bits which value goes where.

use std::arch::x86_64::*;
use std::cell::Cell;
use std::marker::PhantomData;

use super::unpack::Unpack;
use crate::row::SparseRow;

/// Runs an expression with a sparse row as its own [`Unpack`] type.
macro_rules! with_sparse {
    ($sparse:expr, $row:ident => $body:expr) => {{
        use $crate::avx2::sparse::*;
        let (sparse, place) = ($sparse, std::cell::Cell::new((0, 0)));
        match sparse.float {
            FloatType::F32 => {
                let $row = Sparse::<KeptF32>::new(sparse, &place);
                $body
            }
            FloatType::F16 => {
                let $row = Sparse::<KeptF16>::new(sparse, &place);
                $body
            }
            FloatType::BF16 => {
                let $row = Sparse::<KeptBf16>::new(sparse, &place);
                $body
            }
        }
    }};
}
pub(crate) use with_sparse;

/// A row whose blocks come in order: where the next one's values begin is kept; other orders count again.
pub(crate) struct Sparse<'a, K> {
    row: SparseRow<'a>,
    /// The next block and its first value.
    place: &'a Cell<(usize, usize)>,
    kept: PhantomData<K>,
}

impl<K> Clone for Sparse<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Sparse<'_, K> {}

impl<'a, K> Sparse<'a, K> {
    /// `place` is `(0, 0)`.
    #[inline(always)]
    pub(crate) fn new(row: SparseRow<'a>, place: &'a Cell<(usize, usize)>) -> Self {
        Self { row, place, kept: PhantomData }
    }
}

/// The last values of a matrix, with zeros behind them: 32 of any type.
#[cold]
fn with_zeros(left: &[u8]) -> [u8; 128] {
    let mut padded = [0; 128];
    padded[..left.len()].copy_from_slice(left);
    padded
}

/// The type of kept values.
pub(crate) trait Kept: Copy {
    const BYTES: usize;

    /// The values at `values` as `bits` places them.
    ///
    /// # Safety
    /// The caller has AVX2 and F16C; eight values may be read.
    unsafe fn expand(values: *const u8, bits: u8) -> __m256;
}

impl<K: Kept> Unpack for Sparse<'_, K> {
    #[inline(always)]
    unsafe fn unpack32(self, block: usize) -> [__m256; 4] {
        let (next, mut at) = self.place.get();
        if next != block {
            at = self.row.kept_before(32 * block);
        }
        let mut bits = [0; 4];
        bits.copy_from_slice(&self.row.bitmask[4 * block..4 * block + 4]);
        // Byte i: how many of the bytes before and of itself were kept; at most 32 in all.
        let counts = {
            let pairs = u32::from_le_bytes(bits);
            let pairs = pairs - ((pairs >> 1) & 0x5555_5555);
            let quads = (pairs & 0x3333_3333) + ((pairs >> 2) & 0x3333_3333);
            ((quads + (quads >> 4)) & 0x0f0f_0f0f).wrapping_mul(0x0101_0101).to_le_bytes()
        };
        self.place.set((block + 1, at + usize::from(counts[3])));
        // Each of four reads takes eight values, needed or not: the last begins 24 values on at most.
        let left = self.row.values.get(at * K::BYTES..).unwrap_or(&[]);
        let padded;
        let values = if left.len() >= 32 * K::BYTES {
            left.as_ptr()
        } else {
            padded = with_zeros(left);
            padded.as_ptr()
        };
        let starts = [0, counts[0], counts[1], counts[2]];
        // SAFETY: 32 values may be read from `values` on, and the counts of three bytes are at most 24; the features
        // are the caller's.
        unsafe {
            let part = |i: usize| K::expand(values.add(usize::from(starts[i]) * K::BYTES), bits[i]);
            [part(0), part(1), part(2), part(3)]
        }
    }
}

/// Plain f32.
#[derive(Clone, Copy)]
pub(crate) struct KeptF32;
impl Kept for KeptF32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn expand(values: *const u8, bits: u8) -> __m256 {
        // SAFETY: 32 bytes by the caller; 8 bytes of the table.
        unsafe {
            let order = _mm_loadl_epi64(LANES[usize::from(bits)].as_ptr().cast());
            let order = _mm256_cvtepi8_epi32(order);
            let placed = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values.cast()), order);
            // A lane without a value has a negative number.
            let without = _mm256_castsi256_ps(_mm256_srai_epi32::<31>(order));
            _mm256_andnot_ps(without, placed)
        }
    }
}

/// IEEE half precision.
#[derive(Clone, Copy)]
pub(crate) struct KeptF16;
impl Kept for KeptF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn expand(values: *const u8, bits: u8) -> __m256 {
        // SAFETY: as this function's.
        unsafe { _mm256_cvtph_ps(place16(values, bits)) }
    }
}

/// The upper half of an f32.
#[derive(Clone, Copy)]
pub(crate) struct KeptBf16;
impl Kept for KeptBf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn expand(values: *const u8, bits: u8) -> __m256 {
        // SAFETY: as this function's.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(place16(values, bits));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// Up to eight values of 16 bits in their places, zeros between them.
#[inline(always)]
unsafe fn place16(values: *const u8, bits: u8) -> __m128i {
    // SAFETY: 16 bytes by the caller; 16 bytes of the table.
    unsafe {
        let order = _mm_loadu_si128(HALVES[usize::from(bits)].as_ptr().cast());
        _mm_shuffle_epi8(_mm_loadu_si128(values.cast()), order)
    }
}

/// For each byte of bits: the value of each lane, or −128 for none.
const fn lanes() -> [[i8; 8]; 256] {
    let mut table = [[-128; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let (mut lane, mut value) = (0, 0);
        while lane < 8 {
            if bits >> lane & 1 == 1 {
                table[bits][lane] = value;
                value += 1;
            }
            lane += 1;
        }
        bits += 1;
    }
    table
}

static LANES: [[i8; 8]; 256] = lanes();

/// The same for two bytes a lane, as a shuffle of bytes has it.
static HALVES: [[i8; 16]; 256] = {
    let lanes = lanes();
    let mut table = [[-128; 16]; 256];
    let mut bits = 0;
    while bits < 256 {
        let mut lane = 0;
        while lane < 8 {
            if lanes[bits][lane] >= 0 {
                table[bits][2 * lane] = 2 * lanes[bits][lane];
                table[bits][2 * lane + 1] = 2 * lanes[bits][lane] + 1;
            }
            lane += 1;
        }
        bits += 1;
    }
    table
};
