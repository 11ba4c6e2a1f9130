//! Groups of codes that are stored column by column, as GPTQ's and AWQ's files have them, and in other ways than as rows of one stream.
//!
//! A row alone is slow to read there: its words lie far apart. Sixteen rows side by side are what a panel of f32 wants, and
//! of 4-bit GPTQ one cache line holds eight columns of them: panels are filled straight from the words, and products of any
//! number of tokens go through panels.
//!
//! This is plain code without sums, so that every instruction set gives the same bits; the twins are the same function
//! compiled for wider vectors.

use bitmill_tensor::{ColumnPacking, FloatType, Grouped, WeightData, WeightView};

use crate::dense_panel::ROWS;
use crate::isa::{Isa, Kind};
use crate::marlin24;

/// A matrix that is stored so; lengths were checked when its view was made.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    layout: Grouped,
    packing: ColumnPacking,
    packed: &'a [[u8; 4]],
    scales: &'a [u8],
    zero_points: &'a [[u8; 4]],
    group_of: &'a [[u8; 4]],
    /// Codes and zero points that are a byte each.
    bytes: [&'a [u8]; 2],
    places: &'a [[u8; 2]],
    out_features: usize,
    in_features: usize,
    /// Words of a row, where they are stored row by row.
    row_words: usize,
    groups: usize,
}

impl<'a> Columns<'a> {
    /// `None` for a matrix that is stored in another way.
    pub fn of(weight: &WeightView<'a>) -> Option<Self> {
        let WeightData::Columns { layout, packing, packed, scales, zero_points, group_of, places } =
            weight.data()
        else {
            return None;
        };
        Some(Self {
            layout,
            packing,
            packed: packed.as_chunks().0,
            scales,
            zero_points: zero_points.as_chunks().0,
            group_of: group_of.as_chunks().0,
            bytes: [packed, zero_points],
            places: places.as_chunks().0,
            out_features: weight.out_features(),
            in_features: weight.in_features(),
            row_words: packed.len() / 4 / weight.out_features().max(1),
            groups: layout.groups_per_row(weight.in_features()),
        })
    }

    /// The group of column `column`. A number that no group has counts as the last: files with one are refused before.
    #[inline(always)]
    pub(crate) fn group(&self, column: usize) -> usize {
        match self.group_of.get(column) {
            None => column / self.layout.group_size.get(),
            Some(group) => (u32::from_le_bytes(*group) as usize).min(self.groups - 1),
        }
    }

    /// The unsigned code of one weight; the one that stands for zero where none is stored.
    ///
    /// # Panics
    /// Beyond the matrix, mostly.
    #[inline(always)]
    pub fn code(&self, row: usize, column: usize) -> u8 {
        let bits = usize::from(self.layout.bits.get());
        match self.packing {
            ColumnPacking::Awq => return self.awq_code(self.packed, column, row),
            ColumnPacking::Words => return self.whole_code(self.packed, row * self.row_words, 1, column),
            ColumnPacking::Bytes => return self.bytes[0][row * self.in_features + column] ^ 0x80,
            ColumnPacking::Marlin24 => {
                let stored = marlin24::stored(self.places, self.out_features, row, column);
                let place = stored.map(|at| marlin24::place(self.out_features, bits, row, at));
                return match place {
                    None => 1 << (bits - 1),
                    Some((word, shift)) => {
                        (u32::from_le_bytes(self.packed[word]) >> shift & ((1 << bits) - 1)) as u8
                    }
                };
            }
            ColumnPacking::GptqV1 | ColumnPacking::GptqV2 => {}
        }
        let (word, shift) = (column * bits / 32, column * bits % 32);
        let word_of = |word: usize| u32::from_le_bytes(self.packed[word * self.out_features + row]);
        let mut code = word_of(word) >> shift;
        if shift + bits > 32 {
            code |= word_of(word + 1) << (32 - shift);
        }
        (code & ((1 << bits) - 1)) as u8
    }

    /// Row `row` of line `line` of AWQ words.
    #[inline(always)]
    fn awq_code(&self, words: &[[u8; 4]], line: usize, row: usize) -> u8 {
        let word = u32::from_le_bytes(words[line * (self.out_features / 8) + row / 8]);
        (word >> (4 * ColumnPacking::AWQ_PLACES[row % 8]) & 15) as u8
    }

    /// Code `index` of words that hold whole codes; they begin at word `first` and are `step` words apart.
    #[inline(always)]
    fn whole_code(&self, words: &[[u8; 4]], first: usize, step: usize, index: usize) -> u8 {
        let (bits, codes) = (self.layout.bits.get(), self.layout.codes_per_word());
        let word = u32::from_le_bytes(words[first + index / codes * step]);
        (word >> (index % codes * usize::from(bits)) & ((1 << bits) - 1)) as u8
    }

    /// The code that stands for zero in a group of a row. GPTQ's first form stores it less one, 0 as the largest code.
    ///
    /// # Panics
    /// Beyond the matrix, mostly.
    #[inline(always)]
    pub fn zero(&self, row: usize, group: usize) -> i32 {
        let bits = usize::from(self.layout.bits.get());
        match self.packing {
            ColumnPacking::Awq => return i32::from(self.awq_code(self.zero_points, group, row)),
            ColumnPacking::Words if self.zero_points.is_empty() => return 1 << (bits - 1),
            ColumnPacking::Words => {
                return i32::from(self.whole_code(self.zero_points, group, self.groups, row));
            }
            ColumnPacking::Bytes => return i32::from(self.bytes[1][row * self.groups + group] ^ 0x80),
            ColumnPacking::Marlin24 => return 1 << (bits - 1),
            ColumnPacking::GptqV1 | ColumnPacking::GptqV2 => {}
        }
        let words = &self.zero_points[group * self.layout.zero_point_words(self.out_features)..];
        let (word, shift) = (row * bits / 32, row * bits % 32);
        let mut code = u32::from_le_bytes(words[word]) >> shift;
        if shift + bits > 32 {
            code |= u32::from_le_bytes(words[word + 1]) << (32 - shift);
        }
        let stored = if self.packing == ColumnPacking::GptqV1 { code.wrapping_add(1) } else { code };
        (stored & ((1 << bits) - 1)) as i32
    }

    /// Which of the scales is one group's of one row.
    #[inline(always)]
    pub fn scale_at(&self, row: usize, group: usize) -> usize {
        match self.packing {
            ColumnPacking::Words | ColumnPacking::Bytes => row * self.groups + group,
            ColumnPacking::Marlin24 if 2 * self.layout.group_size.get() < self.in_features => {
                group * self.out_features + marlin24::scale_column(row)
            }
            _ => group * self.out_features + row,
        }
    }

    #[inline(always)]
    fn scale(&self, row: usize, group: usize) -> f32 {
        self.layout.scale.read(self.scales, self.scale_at(row, group))
    }

    /// Columns `[first, first + out.len())` of row `row`, `scale * (code − zero)`.
    pub(crate) fn unpack_row(&self, row: usize, first: usize, out: &mut [f32]) {
        let (mut last, mut scale, mut zero) = (usize::MAX, 0.0, 0);
        for (column, value) in (first..).zip(out) {
            let group = self.group(column);
            if group != last {
                (last, scale, zero) = (group, self.scale(row, group), self.zero(row, group));
            }
            *value = scale * (i32::from(self.code(row, column)) - zero) as f32;
        }
    }

    /// The same of columns `[start, start + columns)` of the 16 rows from `first` on, `[column][16 rows]`.
    ///
    /// # Panics
    /// If there are not as many rows.
    pub(crate) fn fill(&self, isa: Isa, first: usize, start: usize, columns: usize, out: &mut [f32]) {
        assert!(first + ROWS <= self.out_features && first.is_multiple_of(ROWS), "rows of a panel");
        let out = &mut out[..columns * ROWS];
        match isa.0 {
            Kind::Scalar => self.fill_here(first, start, out),
            // SAFETY: only `Isa::available` makes these, after asking the CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { crate::avx2::fill_columns(self, first, start, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { crate::avx512::fill_columns(self, first, start, out) },
        }
    }

    #[inline(always)]
    pub(crate) fn fill_here(&self, first: usize, start: usize, out: &mut [f32]) {
        match (self.packing, self.layout.bits.get()) {
            (ColumnPacking::Awq, _) => {
                self.fill_with(first, start, out, |column| self.awq_codes(first, column))
            }
            (ColumnPacking::Words | ColumnPacking::Bytes | ColumnPacking::Marlin24, _) => {
                self.fill_with(first, start, out, |column| self.codes_one_by_one(first, column))
            }
            (_, 2) => self.fill_with(first, start, out, |column| self.gptq_codes::<2>(first, column)),
            (_, 4) => self.fill_with(first, start, out, |column| self.gptq_codes::<4>(first, column)),
            (_, 8) => self.fill_with(first, start, out, |column| self.gptq_codes::<8>(first, column)),
            _ => self.fill_with(first, start, out, |column| self.codes_one_by_one(first, column)),
        }
    }

    #[inline(always)]
    fn fill_with(&self, first: usize, start: usize, out: &mut [f32], codes: impl Fn(usize) -> [i32; ROWS]) {
        let (mut last, mut scales, mut zeros) = (usize::MAX, [0f32; ROWS], [0i32; ROWS]);
        for (column, out) in (start..).zip(out.as_chunks_mut::<ROWS>().0) {
            let group = self.group(column);
            if group != last {
                last = group;
                scales = self.scales(first, group);
                for (r, zero) in zeros.iter_mut().enumerate() {
                    *zero = self.zero(first + r, group);
                }
            }
            let codes = codes(column);
            for r in 0..ROWS {
                out[r] = scales[r] * (codes[r] - zeros[r]) as f32;
            }
        }
    }

    #[inline(always)]
    fn scales(&self, first: usize, group: usize) -> [f32; ROWS] {
        if self.packing.is_by_row() || self.packing == ColumnPacking::Marlin24 {
            return std::array::from_fn(|r| self.scale(first + r, group));
        }
        let at = group * self.out_features + first;
        let mut scales = [0f32; ROWS];
        match self.layout.scale {
            FloatType::BF16 => {
                let halves = &self.scales.as_chunks::<2>().0[at..at + ROWS];
                for (scale, half) in scales.iter_mut().zip(halves) {
                    *scale = f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
                }
            }
            float => {
                for (r, scale) in scales.iter_mut().enumerate() {
                    *scale = float.read(self.scales, at + r);
                }
            }
        }
        scales
    }

    /// Codes of widths that divide 32.
    #[inline(always)]
    fn gptq_codes<const BITS: usize>(&self, first: usize, column: usize) -> [i32; ROWS] {
        let (line, shift) = (column * BITS / 32, column * BITS % 32);
        let words = &self.packed[line * self.out_features + first..][..ROWS];
        let mut codes = [0i32; ROWS];
        for (code, word) in codes.iter_mut().zip(words) {
            *code = (u32::from_le_bytes(*word) >> shift & ((1 << BITS) - 1)) as i32;
        }
        codes
    }

    #[inline(always)]
    fn codes_one_by_one(&self, first: usize, column: usize) -> [i32; ROWS] {
        std::array::from_fn(|r| i32::from(self.code(first + r, column)))
    }

    #[inline(always)]
    fn awq_codes(&self, first: usize, column: usize) -> [i32; ROWS] {
        let words = &self.packed[column * (self.out_features / 8) + first / 8..][..2];
        let words = [u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1])];
        std::array::from_fn(|r| (words[r / 8] >> (4 * ColumnPacking::AWQ_PLACES[r % 8]) & 15) as i32)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use bitmill_tensor::{Bits, Matrix, ZeroPoint};

    use super::*;
    use crate::{Path, dequantize_rows, matmul};

    /// Numbers that follow from where they stand.
    fn code(bits: u8, row: usize, column: usize) -> u32 {
        ((row * 31 + column * 17 + row * column) % (1 << bits)) as u32
    }

    /// Sets `bits` at bit `at` of a stream.
    fn put(bytes: &mut [u8], at: usize, bits: u8, value: u32) {
        for bit in 0..usize::from(bits) {
            bytes[(at + bit) / 8] |= (value >> bit & 1) as u8 * (1 << ((at + bit) % 8));
        }
    }

    struct Sample {
        layout: Grouped,
        packing: ColumnPacking,
        rows: usize,
        columns: usize,
        parts: [Vec<u8>; 4],
        by_row: [Vec<u8>; 3],
    }

    impl Sample {
        fn new(
            bits: u8,
            packing: ColumnPacking,
            scale: FloatType,
            rows: usize,
            columns: usize,
            size: usize,
        ) -> Self {
            let layout = Grouped {
                bits: Bits::new(bits).unwrap(),
                group_size: NonZeroUsize::new(size).unwrap(),
                zero_point: ZeroPoint::Asymmetric,
                scale,
            };
            let (width, groups) = (usize::from(bits), columns / size);
            let whole = layout.codes_per_word();
            let row_words = columns.div_ceil(whole);
            let (mut packed, mut zero_points) = match packing {
                ColumnPacking::Words => {
                    (vec![0; 4 * rows * row_words], vec![0; 4 * rows.div_ceil(whole) * groups])
                }
                ColumnPacking::Bytes => (vec![0; rows * columns], vec![0; rows * groups]),
                _ => (vec![0; rows * columns * width / 8], vec![0; rows * groups * width / 8]),
            };
            let [mut scales, mut row_scales] = [Vec::new(), Vec::new()];
            let mut row_packed = vec![0; rows * columns * width / 8];
            let mut row_zeros = vec![0; 4 * layout.zero_point_words(rows) * groups];
            let zero = |row: usize, group: usize| code(bits, group + 3, row + 1).max(1);
            for row in 0..rows {
                for column in 0..columns {
                    let value = code(bits, row, column);
                    put(&mut row_packed[row * columns * width / 8..], column * width, bits, value);
                    match packing {
                        ColumnPacking::Awq => {
                            let nibble = ColumnPacking::AWQ_PLACES[row % 8];
                            put(&mut packed, 32 * (column * rows / 8 + row / 8) + 4 * nibble, 4, value);
                        }
                        ColumnPacking::Words => {
                            let place = 32 * (row * row_words + column / whole) + column % whole * width;
                            put(&mut packed, place, bits, value);
                        }
                        ColumnPacking::Bytes => packed[row * columns + column] = (value as i32 - 128) as u8,
                        _ => {
                            for bit in 0..width {
                                let at = column * width + bit;
                                let place = 32 * (at / 32 * rows + row) + at % 32;
                                put(&mut packed, place, 1, value >> bit & 1);
                            }
                        }
                    }
                }
                for group in 0..groups {
                    let stored = zero(row, group) - u32::from(packing == ColumnPacking::GptqV1);
                    match packing {
                        ColumnPacking::Awq => {
                            let nibble = ColumnPacking::AWQ_PLACES[row % 8];
                            put(&mut zero_points, 32 * (group * rows / 8 + row / 8) + 4 * nibble, 4, stored);
                        }
                        ColumnPacking::Words => {
                            let place = 32 * (row / whole * groups + group) + row % whole * width;
                            put(&mut zero_points, place, bits, stored);
                        }
                        ColumnPacking::Bytes => {
                            zero_points[row * groups + group] = (stored as i32 - 128) as u8;
                        }
                        _ => put(&mut zero_points[group * rows * width / 8..], row * width, bits, stored),
                    }
                    for bit in 0..width {
                        let at = row * width + bit;
                        let place = 32 * (at / 32 * groups + group) + at % 32;
                        put(&mut row_zeros, place, 1, zero(row, group) >> bit & 1);
                    }
                    scale.push(0.01 + (row * 7 + group) as f32 / 512.0, &mut row_scales);
                }
            }
            for group in 0..groups {
                for row in 0..rows {
                    scale.push(0.01 + (row * 7 + group) as f32 / 512.0, &mut scales);
                }
            }
            if packing.is_by_row() {
                scales.clone_from(&row_scales);
            }
            let parts = [packed, scales, zero_points, Vec::new()];
            Self { layout, packing, rows, columns, parts, by_row: [row_packed, row_scales, row_zeros] }
        }

        fn view(&self) -> WeightView<'_> {
            let [packed, scales, zero_points, group_of] = &self.parts;
            let (layout, packing) = (self.layout, self.packing);
            let places = &[];
            let data = WeightData::Columns { layout, packing, packed, scales, zero_points, group_of, places };
            WeightView::new(self.rows, self.columns, data).unwrap()
        }

        fn view_by_row(&self) -> WeightView<'_> {
            let [packed, scales, zero_points] = &self.by_row;
            let data = WeightData::Grouped { layout: self.layout, packed, scales, zero_points };
            WeightView::new(self.rows, self.columns, data).unwrap()
        }

        fn unpacked(isa: Isa, view: &WeightView<'_>) -> Vec<f32> {
            let mut out = vec![f32::NAN; view.out_features() * view.in_features()];
            dequantize_rows(isa, view, 0, &mut out);
            out
        }
    }

    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (bits, packing) in [
            (2, ColumnPacking::GptqV1),
            (3, ColumnPacking::GptqV1),
            (3, ColumnPacking::GptqV2),
            (4, ColumnPacking::GptqV1),
            (4, ColumnPacking::GptqV2),
            (8, ColumnPacking::GptqV2),
            (4, ColumnPacking::Awq),
            (3, ColumnPacking::Words),
            (5, ColumnPacking::Words),
            (6, ColumnPacking::Words),
            (7, ColumnPacking::Words),
            (8, ColumnPacking::Bytes),
        ] {
            // Whole panels, and one that is cut short; a chunk of columns and more.
            for (rows, columns, size) in [(32, 64, 32), (64, 320, 32), (96, 96, 96), (40, 288, 96)] {
                if rows * usize::from(bits) % 32 == 0 {
                    let scale = [FloatType::F16, FloatType::BF16, FloatType::F32][rows % 3];
                    samples.push(Sample::new(bits, packing, scale, rows, columns, size));
                }
            }
        }
        samples
    }

    #[test]
    fn columns_hold_what_the_same_rows_hold() {
        for sample in samples() {
            for isa in Isa::available() {
                let by_row = Sample::unpacked(isa, &sample.view_by_row());
                assert_eq!(Sample::unpacked(isa, &sample.view()), by_row, "{:?}", sample.packing);
            }
        }
    }

    #[test]
    fn products_are_those_of_the_rows_to_the_bit() {
        for sample in samples() {
            // More tokens than rows are read one by one for.
            let x = (0..7 * sample.columns).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
            let x = Matrix::from_vec(7, sample.columns, x);
            for isa in Isa::available() {
                let [mut rows, mut columns, mut one] = [(); 3].map(|()| Matrix::default());
                matmul(isa, Path::Exact, &sample.view_by_row(), &x, &mut rows);
                matmul(isa, Path::Exact, &sample.view(), &x, &mut columns);
                assert_eq!(rows, columns, "{:?}", sample.packing);
                let first = Matrix::from_vec(1, sample.columns, x.row(0).to_vec());
                matmul(isa, Path::Fast, &sample.view(), &first, &mut one);
                assert_eq!(one.row(0), columns.row(0));
            }
        }
    }

    #[test]
    fn a_zero_point_of_zero_comes_back_from_where_it_wrapped_to() {
        for bits in [2, 3, 4, 8] {
            let mut sample = Sample::new(bits, ColumnPacking::GptqV1, FloatType::F16, 32, 32, 32);
            sample.parts[2].fill(0xff);
            let view = sample.view();
            let of = Columns::of(&view).unwrap();
            assert!((0..32).all(|row| of.zero(row, 0) == 0), "{bits} bits");
        }
    }

    #[test]
    fn a_column_may_be_of_any_group() {
        let mut sample = Sample::new(4, ColumnPacking::GptqV2, FloatType::F16, 32, 128, 32);
        let plain = Sample::unpacked(Isa::scalar(), &sample.view());
        // The third group's columns take the first group's scales, and the last say a group that is not there.
        let group = |column: usize| [0u32, 1, 0, 77][column / 32];
        sample.parts[3] = (0..128).flat_map(|column| group(column).to_le_bytes()).collect();
        let view = sample.view();
        let of = Columns::of(&view).unwrap();
        for isa in Isa::available() {
            let ordered = Sample::unpacked(isa, &view);
            let mut panel = vec![f32::NAN; 128 * ROWS];
            of.fill(isa, 16, 0, 128, &mut panel);
            for (at, value) in ordered.iter().enumerate() {
                let (row, column) = (at / 128, at % 128);
                let group = [0, 1, 0, 3][column / 32];
                let expected =
                    of.scale(row, group) * (i32::from(of.code(row, column)) - of.zero(row, group)) as f32;
                assert_eq!(*value, expected);
                if row >= 16 {
                    assert_eq!(panel[column * ROWS + row - 16], expected);
                }
                if column / 32 != 2 {
                    assert_eq!(*value, plain[at]);
                }
            }
        }
    }
}
