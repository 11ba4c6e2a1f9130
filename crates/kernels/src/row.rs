//! One row of a weight matrix as stored, and how its parts are read.

use bitmill_tensor::{BlockType, FloatType, Grouped, WeightData, WeightView, ZeroPoint};

/// One row of a [`WeightView`]; lengths were checked when the view was made.
#[derive(Clone, Copy)]
pub(crate) enum Row<'a> {
    Float { float: FloatType, bytes: &'a [u8] },
    Block { block: BlockType, bytes: &'a [u8] },
    Grouped(GroupedRow<'a>),
}

/// A row of codes in groups.
#[derive(Clone, Copy)]
pub(crate) struct GroupedRow<'a> {
    pub layout: Grouped,
    /// This row's codes.
    pub packed: &'a [u8],
    /// This row's scales.
    pub scales: &'a [u8],
    /// The zero points of the whole matrix: they are packed along its rows.
    zero_points: &'a [u8],
    row: usize,
    groups: usize,
}

impl<'a> Row<'a> {
    /// Row `row` of `weight`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn of(weight: &WeightView<'a>, row: usize) -> Self {
        let in_features = weight.in_features();
        let part = |bytes: &'a [u8], len: usize| &bytes[row * len..(row + 1) * len];
        match weight.data() {
            WeightData::Float { float, bytes } => {
                Self::Float { float, bytes: part(bytes, in_features * float.size_bytes()) }
            }
            WeightData::Block { block, bytes } => {
                Self::Block { block, bytes: part(bytes, in_features / block.weights() * block.bytes()) }
            }
            WeightData::Grouped { layout, packed, scales, zero_points } => {
                let groups = layout.groups_per_row(in_features);
                Self::Grouped(GroupedRow {
                    layout,
                    packed: part(packed, 4 * layout.words_per_row(in_features)),
                    scales: part(scales, groups * layout.scale.size_bytes()),
                    zero_points,
                    row,
                    groups,
                })
            }
        }
    }
}

impl GroupedRow<'_> {
    /// Whether no 32 consecutive weights, counted from the row's start, straddle two groups.
    #[inline(always)]
    pub fn blocks_have_one_group(&self) -> bool {
        self.groups == 1 || self.layout.group_size.get().is_multiple_of(32)
    }

    /// The unsigned code of weight `index`.
    #[inline(always)]
    pub fn code(&self, index: usize) -> u8 {
        let bits = usize::from(self.layout.bits.get());
        match bits {
            8 => self.packed[index],
            4 => (self.packed[index / 2] >> (4 * (index % 2))) & 15,
            _ => {
                // Little-endian words are one stream of bits; a code touches at most two bytes.
                let (byte, shift) = (index * bits / 8, index * bits % 8);
                let high = self.packed.get(byte + 1).copied().unwrap_or(0);
                let pair = u16::from_le_bytes([self.packed[byte], high]);
                ((pair >> shift) & ((1 << bits) - 1)) as u8
            }
        }
    }

    /// The scale of group `group`.
    #[inline(always)]
    pub fn scale(&self, group: usize) -> f32 {
        self.layout.scale.read(self.scales, group)
    }

    /// Where the zero points of 4- or 8-bit codes begin: one 32-bit word a group, this row's code shifted up in each.
    /// Empty when symmetric.
    #[inline(always)]
    pub fn zero_words(&self) -> (&[u8], usize) {
        let bits = usize::from(self.layout.bits.get());
        let at = 4 * (self.row * bits / 32) * self.groups;
        (self.zero_points.get(at..).unwrap_or(&[]), self.row * bits % 32)
    }

    /// The unsigned zero point of group `group`: the code that stands for zero.
    #[inline(always)]
    pub fn zero(&self, group: usize) -> u8 {
        let bits = usize::from(self.layout.bits.get());
        if self.layout.zero_point == ZeroPoint::Symmetric {
            return 1 << (bits - 1);
        }
        // Words are [word of the rows' stream, group].
        let word = |at: usize| -> u64 {
            let at = 4 * (at * self.groups + group);
            match self.zero_points.get(at..at + 4) {
                Some(&[a, b, c, d]) => u64::from(u32::from_le_bytes([a, b, c, d])),
                _ => 0,
            }
        };
        let (first, shift) = (self.row * bits / 32, self.row * bits % 32);
        let mut pair = word(first);
        if shift + bits > 32 {
            pair |= word(first + 1) << 32;
        }
        ((pair >> shift) & ((1 << bits) - 1)) as u8
    }
}

/// Little-endian f16 at `at`, widened.
#[inline(always)]
pub(crate) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Scale and minimum of sub-block `index` of a Q4_K block, from its 12 bytes of 6-bit numbers.
///
/// Sub-blocks 0..4 keep theirs in the low six bits of bytes 0..4 and 4..8; the others split them between the
/// nibbles of bytes 8..12 and the two bits left in the bytes before.
#[inline(always)]
pub(crate) fn q4_k_scale_min(scales: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (scales[index] & 63, scales[index + 4] & 63)
    } else {
        (
            (scales[index + 4] & 15) | ((scales[index - 4] >> 6) << 4),
            (scales[index + 4] >> 4) | ((scales[index] >> 6) << 4),
        )
    }
}

/// Bytes of a Q4_K block: f16 d, f16 dmin, 12 bytes of scales, 128 bytes of nibbles.
pub(crate) mod q4_k {
    pub const BYTES: usize = 144;
    pub const D: usize = 0;
    pub const DMIN: usize = 2;
    pub const SCALES: usize = 4;
    pub const CODES: usize = 16;
}

/// Bytes of a Q6_K block: 128 low nibbles, 64 pairs of high bits, 16 int8 scales, f16 d.
pub(crate) mod q6_k {
    pub const BYTES: usize = 210;
    pub const LOW: usize = 0;
    pub const HIGH: usize = 128;
    pub const SCALES: usize = 192;
    pub const D: usize = 208;
}

const _: () = assert!(q4_k::BYTES == BlockType::Q4_K.bytes() && q4_k::CODES + 128 == q4_k::BYTES);
const _: () = assert!(q6_k::BYTES == BlockType::Q6_K.bytes() && q6_k::D + 2 == q6_k::BYTES);
