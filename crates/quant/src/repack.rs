//! Codes, scales and zero points taken out of one layout as they are, for another: rows of [`WeightData::Grouped`] from either.

use std::ops::Range;

use bitmill_kernels::Columns;
use bitmill_tensor::{ColumnPacking, Grouped, WeightData, WeightView, ZeroPoint};

use crate::pack::{pack_row, stream_code};
use crate::{Error, GroupedRows};

/// Rows of a matrix in groups as compressed-tensors stores them, zero points unpacked, whatever stores them here; `None` for a matrix that is
/// in no groups. The order that GPTQ's columns may have is not told.
///
/// # Errors
/// [`Error::OffCentre`] for zero points of codes that are declared symmetric, where they are stored and are not the middle.
///
/// # Panics
/// If the matrix has not as many rows.
pub fn grouped_rows(view: &WeightView<'_>, rows: Range<usize>) -> Result<Option<GroupedRows>, Error> {
    let (out_features, in_features) = (view.out_features(), view.in_features());
    assert!(rows.end <= out_features, "rows {rows:?} of {out_features}");
    match view.data() {
        WeightData::Grouped { layout, packed, scales, zero_points } => {
            let groups = layout.groups_per_row(in_features);
            let part =
                |bytes: &[u8], row_bytes: usize| bytes[rows.start * row_bytes..rows.end * row_bytes].to_vec();
            let mut zero_codes = Vec::new();
            if layout.zero_point == ZeroPoint::Asymmetric {
                let stream = Stream { words: zero_points, step: groups, bits: layout.bits.get() };
                zero_codes = rows
                    .clone()
                    .flat_map(|row| (0..groups).map(move |group| (row, group)))
                    .map(|(row, group)| stream.code(group, row))
                    .collect();
            }
            Ok(Some(GroupedRows {
                packed: part(packed, 4 * layout.words_per_row(in_features)),
                scales: part(scales, groups * layout.scale.size_bytes()),
                zero_codes,
            }))
        }
        WeightData::Columns { layout, packing, packed, scales, zero_points, .. } if packing.is_gptq() => {
            let groups = layout.groups_per_row(in_features);
            let codes = lines_as_rows(packed, layout.words_per_row(in_features), out_features, 4, &rows);
            let zero_codes = column_zeros(&layout, packing, zero_points, out_features, groups, &rows)?;
            let scales = lines_as_rows(scales, groups, out_features, layout.scale.size_bytes(), &rows);
            Ok(Some(GroupedRows { packed: codes, scales, zero_codes }))
        }
        WeightData::Columns { layout, scales, .. } => {
            let columns = Columns::of(view).expect("it is stored so");
            let groups = layout.groups_per_row(in_features);
            let row_bytes = 4 * layout.words_per_row(in_features);
            let mut packed = vec![0; rows.len() * row_bytes];
            let mut codes = vec![0; in_features];
            for (row, packed) in rows.clone().zip(packed.chunks_exact_mut(row_bytes)) {
                for (column, code) in codes.iter_mut().enumerate() {
                    *code = columns.code(row, column);
                }
                pack_row(&codes, layout.bits, packed);
            }
            let at = || rows.clone().flat_map(|row| (0..groups).map(move |group| (row, group)));
            let mut zero_codes = Vec::new();
            if layout.zero_point == ZeroPoint::Asymmetric {
                zero_codes = at().map(|(row, group)| columns.zero(row, group) as u8).collect();
            }
            let size = layout.scale.size_bytes();
            let scale = |(row, group)| {
                let from = size * columns.scale_at(row, group);
                scales[from..from + size].iter().copied()
            };
            Ok(Some(GroupedRows { packed, scales: at().flat_map(scale).collect(), zero_codes }))
        }
        _ => Ok(None),
    }
}

/// Zero points by row; none where codes are symmetric.
fn column_zeros(
    layout: &Grouped,
    packing: ColumnPacking,
    words: &[u8],
    out_features: usize,
    groups: usize,
    rows: &Range<usize>,
) -> Result<Vec<u8>, Error> {
    let bits = layout.bits.get();
    let mask = (0xff_u16 >> (8 - bits)) as u8;
    let stream = Stream { words, step: 1, bits };
    let line = layout.zero_point_words(out_features);
    let zero = |row: usize, group: usize| match packing {
        ColumnPacking::GptqV1 => stream.code(group * line, row).wrapping_add(1) & mask,
        _ => stream.code(group * line, row),
    };
    let at = || rows.clone().flat_map(|row| (0..groups).map(move |group| (row, group)));
    if layout.zero_point == ZeroPoint::Asymmetric {
        return Ok(at().map(|(row, group)| zero(row, group)).collect());
    }
    let middle = 1 << (bits - 1);
    match at().map(|(row, group)| (row, group, zero(row, group))).find(|(.., zero)| *zero != middle) {
        None => Ok(Vec::new()),
        Some((row, group, zero)) => Err(Error::OffCentre { row: row - rows.start, group, zero, middle }),
    }
}

/// Codes that run through words which lie `step` words apart.
struct Stream<'a> {
    words: &'a [u8],
    step: usize,
    bits: u8,
}

impl Stream<'_> {
    /// Code `index` of the stream whose first word is word `first`.
    fn code(&self, first: usize, index: usize) -> u8 {
        stream_code(self.bits, index, |word| {
            let at = 4 * (first + word * self.step);
            u32::from_le_bytes([self.words[at], self.words[at + 1], self.words[at + 2], self.words[at + 3]])
        })
    }
}

/// Elements of `size` bytes, `[lines, out]`, as `[rows, lines]`.
fn lines_as_rows(
    bytes: &[u8],
    lines: usize,
    out_features: usize,
    size: usize,
    rows: &Range<usize>,
) -> Vec<u8> {
    let mut taken = vec![0; rows.len() * lines * size];
    for line in 0..lines {
        let from = (line * out_features + rows.start) * size;
        let elements = bytes[from..from + rows.len() * size].chunks_exact(size);
        for (row, element) in elements.enumerate() {
            let at = (row * lines + line) * size;
            taken[at..at + size].copy_from_slice(element);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use bitmill_tensor::{Bits, FloatType};

    use super::*;
    use crate::{awq_codes, awq_zero_points, gptq_zero_points, pack_zero_points, transpose};

    const ROWS: usize = 32;
    const COLS: usize = 64;

    fn layout(bits: u8, zero_point: ZeroPoint) -> Grouped {
        let group_size = NonZeroUsize::new(16).unwrap();
        Grouped { bits: Bits::new(bits).unwrap(), group_size, zero_point, scale: FloatType::F16 }
    }

    /// Rows whose codes, scales and zero points are all different from those beside them.
    fn made(layout: &Grouped) -> GroupedRows {
        let bits = layout.bits.get();
        let mask = (0xff_u16 >> (8 - bits)) as u8;
        let groups = layout.groups_per_row(COLS);
        let row_bytes = 4 * layout.words_per_row(COLS);
        let mut packed = vec![0; ROWS * row_bytes];
        for (row, packed) in packed.chunks_exact_mut(row_bytes).enumerate() {
            let codes: Vec<u8> = (0..COLS).map(|column| (row * 29 + column * 7) as u8 & mask).collect();
            pack_row(&codes, layout.bits, packed);
        }
        let zero_codes = match layout.zero_point {
            ZeroPoint::Symmetric => Vec::new(),
            // 0 too, which GPTQ's first form stores as the largest.
            ZeroPoint::Asymmetric => (0..ROWS * groups).map(|at| (at * 5) as u8 & mask).collect(),
        };
        GroupedRows { packed, scales: (0..2 * ROWS * groups).map(|at| at as u8).collect(), zero_codes }
    }

    #[test]
    fn rows_come_out_of_every_layout_as_they_went_in() {
        for (bits, packings) in [
            (2, &[ColumnPacking::GptqV1, ColumnPacking::GptqV2][..]),
            (3, &[ColumnPacking::GptqV1, ColumnPacking::GptqV2]),
            (4, &[ColumnPacking::GptqV1, ColumnPacking::GptqV2, ColumnPacking::Awq]),
            (5, &[]),
            (8, &[ColumnPacking::GptqV1, ColumnPacking::GptqV2]),
        ] {
            for zero_point in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
                let layout = layout(bits, zero_point);
                let groups = layout.groups_per_row(COLS);
                let expected = made(&layout);
                let check = |data: WeightData<'_>| {
                    let view = WeightView::new(ROWS, COLS, data).unwrap();
                    assert_eq!(grouped_rows(&view, 0..ROWS).unwrap().unwrap(), expected, "{data:?}");
                    let some = grouped_rows(&view, 5..7).unwrap().unwrap();
                    let row_bytes = expected.packed.len() / ROWS;
                    assert_eq!(some.packed, expected.packed[5 * row_bytes..7 * row_bytes]);
                    assert_eq!(some.scales, expected.scales[2 * 5 * groups..2 * 7 * groups]);
                    if zero_point == ZeroPoint::Asymmetric {
                        assert_eq!(some.zero_codes, expected.zero_codes[5 * groups..7 * groups]);
                    }
                };
                let zero_points = match zero_point {
                    ZeroPoint::Symmetric => Vec::new(),
                    ZeroPoint::Asymmetric => {
                        pack_zero_points(&expected.zero_codes, ROWS, groups, layout.bits)
                    }
                };
                let (packed, scales) = (&expected.packed, &expected.scales);
                check(WeightData::Grouped { layout, packed, scales, zero_points: &zero_points });
                let zeros = match zero_point {
                    ZeroPoint::Symmetric => vec![1 << (bits - 1); ROWS * groups],
                    ZeroPoint::Asymmetric => expected.zero_codes.clone(),
                };
                for &packing in packings {
                    let (packed, zero_points) = match packing {
                        ColumnPacking::Awq => {
                            (awq_codes(packed, ROWS, COLS), awq_zero_points(&zeros, ROWS, groups))
                        }
                        _ => (
                            transpose(packed, ROWS, layout.words_per_row(COLS), 4),
                            gptq_zero_points(&zeros, ROWS, groups, layout.bits, packing),
                        ),
                    };
                    let scales = &transpose(scales, ROWS, groups, 2);
                    let (packed, zero_points) = (&packed, &zero_points);
                    check(WeightData::Columns {
                        layout,
                        packing,
                        packed,
                        scales,
                        zero_points,
                        group_of: &[],
                        places: &[],
                    });
                }
            }
        }
    }

    #[test]
    fn symmetric_codes_around_another_middle_are_named() {
        let layout = layout(4, ZeroPoint::Symmetric);
        let made = made(&layout);
        let mut zeros = vec![8; ROWS * 4];
        zeros[6 * 4 + 3] = 7;
        let data = WeightData::Columns {
            layout,
            packing: ColumnPacking::GptqV1,
            packed: &made.packed,
            scales: &made.scales,
            zero_points: &gptq_zero_points(&zeros, ROWS, 4, layout.bits, ColumnPacking::GptqV1),
            group_of: &[],
            places: &[],
        };
        let view = WeightView::new(ROWS, COLS, data).unwrap();
        assert!(grouped_rows(&view, 0..6).is_ok());
        let error = grouped_rows(&view, 5..8).unwrap_err();
        assert_eq!(error.relocate(5), Error::OffCentre { row: 6, group: 3, zero: 7, middle: 8 });
    }
}
