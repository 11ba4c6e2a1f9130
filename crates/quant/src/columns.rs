//! Rows of codes, scales and zero points turned into the columns that GPTQ's and AWQ's files have.
//!
//! A row of GPTQ's words holds the same bits as a row of compressed-tensors', so codes are the transpose of those words:
//! `[out, words]` becomes `[words, out]`. AWQ's words hold eight rows of one column each, in the order 0, 2, 4, 6, 1, 3, 5, 7.

use bitmill_tensor::{Bits, ColumnPacking};

use crate::pack::pack_row;

/// Elements of `size` bytes, `[rows, columns]`, as `[columns, rows]`.
///
/// ```
/// use bitmill_quant::transpose;
/// assert_eq!(transpose(&[1, 2, 3, 4, 5, 6], 2, 3, 1), [1, 4, 2, 5, 3, 6]);
/// ```
///
/// # Panics
/// If there are not `rows * columns` elements.
pub fn transpose(bytes: &[u8], rows: usize, columns: usize, size: usize) -> Vec<u8> {
    assert_eq!(bytes.len(), rows * columns * size, "[{rows}, {columns}] elements of {size} bytes");
    // Squares whose lines of either side stay in the cache.
    const SIDE: usize = 32;
    let mut out = vec![0; bytes.len()];
    for first_row in (0..rows).step_by(SIDE) {
        for first in (0..columns).step_by(SIDE) {
            for column in first..(first + SIDE).min(columns) {
                for row in first_row..(first_row + SIDE).min(rows) {
                    let (from, to) = ((row * columns + column) * size, (column * rows + row) * size);
                    out[to..to + size].copy_from_slice(&bytes[from..from + size]);
                }
            }
        }
    }
    out
}

/// GPTQ's `qzeros`: unsigned zero points `[rows, groups]` as words `[groups, rows * bits / 32]`, each less one where
/// `packing` is the first form, in which 0 becomes the largest code.
///
/// ```
/// use bitmill_quant::gptq_zero_points;
/// use bitmill_tensor::{Bits, ColumnPacking};
/// let words = gptq_zero_points(&[8; 8], 8, 1, Bits::new(4).unwrap(), ColumnPacking::GptqV1);
/// assert_eq!(words, [0x77; 4]);
/// ```
///
/// # Panics
/// If there are not `rows * groups` codes, or they do not fill words.
pub fn gptq_zero_points(
    zero_codes: &[u8],
    rows: usize,
    groups: usize,
    bits: Bits,
    packing: ColumnPacking,
) -> Vec<u8> {
    let bytes = rows * usize::from(bits.get()) / 8;
    assert!((8 * bytes).is_multiple_of(32), "{rows} zero points of {bits} bits fill words");
    let mask = (0xff_u16 >> (8 - bits.get())) as u8;
    let mut words = vec![0; groups * bytes];
    for (column, words) in
        transpose(zero_codes, rows, groups, 1).chunks_mut(rows).zip(words.chunks_mut(bytes))
    {
        if packing == ColumnPacking::GptqV1 {
            column.iter_mut().for_each(|zero| *zero = zero.wrapping_sub(1) & mask);
        }
        pack_row(column, bits, words);
    }
    words
}

/// AWQ's `qweight` from 4-bit codes packed row by row, `[rows, columns / 2]` bytes: words `[columns, rows / 8]`.
///
/// # Panics
/// If the codes are not whole words of eight rows.
pub fn awq_codes(packed: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    let row_bytes = columns.div_ceil(8) * 4;
    assert_eq!(packed.len(), rows * row_bytes, "[{rows}, {columns}] codes of 4 bits");
    awq_words(rows, columns, |row, column| packed[row * row_bytes + column / 2] >> (4 * (column % 2)) & 15)
}

/// AWQ's `qzeros`: unsigned zero points `[rows, groups]` as words `[groups, rows / 8]`.
///
/// ```
/// use bitmill_quant::awq_zero_points;
/// // Eight rows with the zero points 0 to 7.
/// assert_eq!(awq_zero_points(&[0, 1, 2, 3, 4, 5, 6, 7], 8, 1), 0x7531_6420_u32.to_le_bytes());
/// ```
///
/// # Panics
/// If the zero points are not whole words of eight rows.
pub fn awq_zero_points(zero_codes: &[u8], rows: usize, groups: usize) -> Vec<u8> {
    assert_eq!(zero_codes.len(), rows * groups, "[{rows}, {groups}] zero points");
    awq_words(rows, groups, |row, group| zero_codes[row * groups + group])
}

fn awq_words(rows: usize, lines: usize, code: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    assert!(rows.is_multiple_of(8), "{rows} rows in words of eight");
    let mut words = vec![0; lines * rows / 2];
    for first in (0..rows).step_by(8) {
        for line in 0..lines {
            let mut word = 0u32;
            for (row, place) in ColumnPacking::AWQ_PLACES.into_iter().enumerate() {
                word |= u32::from(code(first + row, line)) << (4 * place);
            }
            let at = 4 * (line * (rows / 8) + first / 8);
            words[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_gives_what_was_there() {
        for (rows, columns, size) in [(0, 3, 4), (1, 1, 1), (33, 70, 2), (64, 5, 4)] {
            let bytes: Vec<u8> = (0..rows * columns * size).map(|i| (i * 31) as u8).collect();
            let back = transpose(&transpose(&bytes, rows, columns, size), columns, rows, size);
            assert_eq!(back, bytes);
        }
    }

    #[test]
    fn a_zero_point_of_zero_wraps_in_the_first_form_alone() {
        let bits = Bits::new(4).unwrap();
        let words = |packing| gptq_zero_points(&[0; 8], 8, 1, bits, packing);
        assert_eq!(words(ColumnPacking::GptqV1), [0xff; 4]);
        assert_eq!(words(ColumnPacking::GptqV2), [0; 4]);
    }

    #[test]
    fn awq_words_hold_rows_in_their_order() {
        // Row r has the codes r and 15 − r.
        let packed: Vec<u8> = (0..16u8).flat_map(|row| [(row % 8) | (15 - row % 8) << 4, 0, 0, 0]).collect();
        let words = awq_codes(&packed, 16, 2);
        let word = |at: usize| u32::from_le_bytes(words[4 * at..4 * at + 4].try_into().unwrap());
        assert_eq!([word(0), word(1)], [0x7531_6420; 2]);
        assert_eq!([word(2), word(3)], [0x8ace_9bdf; 2]);
    }
}
