//! One row of a weight matrix as stored, and how its parts are read.

use bitmill_tensor::{BlockType, FloatType, Grouped, Nested, Scaled, WeightData, WeightView, ZeroPoint};

use crate::columns::Columns;

/// One row of a [`WeightView`]; lengths were checked when the view was made.
#[derive(Clone, Copy)]
pub(crate) enum Row<'a> {
    Float {
        float: FloatType,
        bytes: &'a [u8],
    },
    Block {
        block: BlockType,
        bytes: &'a [u8],
    },
    Grouped(GroupedRow<'a>),
    Sparse(SparseRow<'a>),
    /// Small numbers with scales.
    Scaled(ScaledRow<'a>),
    /// A row of a matrix that is stored column by column.
    Column {
        of: Columns<'a>,
        row: usize,
    },
}

/// A row of which some weights were kept.
#[derive(Clone, Copy)]
pub(crate) struct SparseRow<'a> {
    pub float: FloatType,
    /// A bit for each weight.
    pub bitmask: &'a [u8],
    /// Kept values from this row's first on, those of later rows too; there may be fewer than the bits say.
    pub values: &'a [u8],
}

/// A row of small numbers.
#[derive(Clone, Copy)]
pub(crate) struct ScaledRow<'a> {
    pub layout: Scaled,
    /// This row's numbers.
    pub codes: &'a [u8],
    /// The scales of the line that it is in.
    pub scales: &'a [u8],
    /// What scales of fp8 are divided by.
    pub global: f32,
    /// What scales that are codes are read with, and how many of the matrix come before this line's.
    pub nested: Option<(Nested<'a>, usize)>,
    /// Where two of each four numbers are stored: a bit for each that is.
    kept: &'a [u8],
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
            WeightData::Scaled { layout, codes, scales, global, nested, kept } => {
                let (_, per_line) = layout.extent.scales(weight.out_features(), in_features);
                let (line, bytes) = (row / layout.extent.rows(), per_line * layout.scale.size_bytes());
                let (codes, kept) = match kept.is_empty() {
                    true => (part(codes, layout.element.row_bytes(in_features)), kept),
                    false => (part(codes, in_features.div_ceil(4) * 2), part(kept, in_features.div_ceil(8))),
                };
                let (scales, nested) =
                    (&scales[line * bytes..][..bytes], nested.map(|nested| (nested, line * per_line)));
                Self::Scaled(ScaledRow { layout, codes, scales, global, nested, kept })
            }
            WeightData::Columns { .. } => {
                let of = Columns::of(weight).expect("it is stored so");
                assert!(row < weight.out_features(), "row {row} of {}", weight.out_features());
                Self::Column { of, row }
            }
            WeightData::Sparse { float, bitmask, values, row_offsets } => {
                let offset = part(row_offsets, 8).try_into().map_or(i64::MAX, i64::from_le_bytes);
                let first = usize::try_from(offset).ok().and_then(|at| at.checked_mul(float.size_bytes()));
                Self::Sparse(SparseRow {
                    float,
                    bitmask: part(bitmask, in_features.div_ceil(8)),
                    values: first.and_then(|first| values.get(first..)).unwrap_or(&[]),
                })
            }
        }
    }
}

impl SparseRow<'_> {
    /// Whether weight `index` was kept.
    #[inline(always)]
    pub fn keeps(&self, index: usize) -> bool {
        self.bitmask[index / 8] >> (index % 8) & 1 == 1
    }

    /// How many weights before `index` were kept.
    #[inline(always)]
    pub fn kept_before(&self, index: usize) -> usize {
        let (words, rest) = self.bitmask[..index / 8].as_chunks::<8>();
        let words: usize = words.iter().map(|word| u64::from_le_bytes(*word).count_ones() as usize).sum();
        let rest: usize = rest.iter().map(|byte| byte.count_ones() as usize).sum();
        let last =
            if index.is_multiple_of(8) { 0 } else { self.bitmask[index / 8] & ((1 << (index % 8)) - 1) };
        words + rest + last.count_ones() as usize
    }

    /// Kept value `at`, counted from the row's first; zero if it is not there.
    #[inline(always)]
    pub fn value(&self, at: usize) -> f32 {
        if at < self.values.len() / self.float.size_bytes() { self.float.read(self.values, at) } else { 0.0 }
    }
}

impl ScaledRow<'_> {
    /// Whether two of each four numbers are stored alone.
    #[inline(always)]
    pub fn is_halved(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Number `index` of a row of which two of each four are stored; zero for the others. Files in which a four has more or fewer are
    /// refused before.
    #[inline(always)]
    pub fn halved(&self, index: usize) -> f32 {
        let four = self.kept[index / 8] >> (index / 4 % 2 * 4) & 15;
        let before = (four & ((1 << (index % 4)) - 1)).count_ones() as usize;
        match four >> (index % 4) & 1 {
            1 => self.layout.element.read(self.codes, index / 4 * 2 + before.min(1)),
            _ => 0.0,
        }
    }

    /// Scale `index` of the line.
    #[inline(always)]
    pub fn scale(&self, index: usize) -> f32 {
        match &self.nested {
            None => self.layout.scale.read(self.scales, index, self.global),
            Some((nested, before)) => nested.scale(before + index, self.scales[index]),
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

    /// What the fast path takes from codes of six bits and more: they become signed, which leaves its sums the room
    /// that they need, and zero points move along. 0 for shorter codes, which stay unsigned.
    #[inline(always)]
    pub fn shift(&self) -> i32 {
        let bits = self.layout.bits.get();
        if bits >= 6 { 1 << (bits - 1) } else { 0 }
    }

    /// The scale of group `group`.
    #[inline(always)]
    pub fn scale(&self, group: usize) -> f32 {
        self.layout.scale.read(self.scales, group)
    }

    /// Where the zero points of this row begin: one 32-bit word a group, this row's code shifted up in each. A code
    /// that does not fit there goes on in the next words, as many bytes further as [`word_row_bytes`] says. Empty when
    /// symmetric.
    ///
    /// [`word_row_bytes`]: Self::word_row_bytes
    #[inline(always)]
    pub fn zero_words(&self) -> (&[u8], usize) {
        let bits = usize::from(self.layout.bits.get());
        let at = self.row * bits / 32 * self.word_row_bytes();
        (self.zero_points.get(at..).unwrap_or(&[]), self.row * bits % 32)
    }

    /// Bytes of one word of zero points for each group.
    #[inline(always)]
    pub fn word_row_bytes(&self) -> usize {
        4 * self.groups
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
