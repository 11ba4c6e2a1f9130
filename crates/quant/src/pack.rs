//! Codes as a dense stream of bits, in compressed-tensors' words.
//!
//! Code `i` of a row lies at bit `i * bits`, least significant first; a row ends at the next multiple of 32 bits and
//! the bits left over are zero. Words are stored little-endian, so the stream is one of bytes too. Widths that do not
//! divide 32 straddle words, as compressed-tensors packs them since 0.18; 4 and 8 bits are the same in all versions.

use bitmill_tensor::Bits;

/// Packs `codes` into `out`, which is as many whole words as they take.
pub(crate) fn pack_row(codes: &[u8], bits: Bits, out: &mut [u8]) {
    let width = u32::from(bits.get());
    debug_assert_eq!(out.len(), 4 * (codes.len() * width as usize).div_ceil(32));
    match width {
        8 => {
            out[..codes.len()].copy_from_slice(codes);
            out[codes.len()..].fill(0);
        }
        4 => {
            let pairs = codes.chunks_exact(2);
            let last = pairs.remainder();
            let used = codes.len().div_ceil(2);
            for (byte, pair) in out.iter_mut().zip(pairs) {
                *byte = pair[0] | pair[1] << 4;
            }
            if let [code] = last {
                out[used - 1] = *code;
            }
            out[used..].fill(0);
        }
        _ => {
            let mut stream = BitWriter::default();
            let mut bytes = out.iter_mut();
            for &code in codes {
                stream.push(code, width, || bytes.next());
            }
            stream.finish(bytes);
        }
    }
}

/// Code `index` of a stream of `bits` each, through words that `word` gives by their number.
pub(crate) fn stream_code(bits: u8, index: usize, word: impl Fn(usize) -> u32) -> u8 {
    let width = usize::from(bits);
    let (at, shift) = (index * width / 32, index * width % 32);
    let mut code = word(at) >> shift;
    if shift + width > 32 {
        code |= word(at + 1) << (32 - shift);
    }
    (code & ((1 << width) - 1)) as u8
}

/// Packs unsigned zero points `[rows, groups]` along the rows, into the 32-bit words `[ceil(rows * bits / 32),
/// groups]` that compressed-tensors stores as `weight_zero_point`.
///
/// ```
/// use bitmill_quant::pack_zero_points;
/// use bitmill_tensor::Bits;
/// // Three rows of two groups, four bits: column 0 holds 1, 2, 3 and column 1 holds 4, 5, 6.
/// let words = pack_zero_points(&[1, 4, 2, 5, 3, 6], 3, 2, Bits::new(4).unwrap());
/// assert_eq!(words, [0x21, 0x03, 0, 0, 0x54, 0x06, 0, 0]);
/// ```
///
/// # Panics
/// If there are not `rows * groups` codes.
pub fn pack_zero_points(zero_codes: &[u8], rows: usize, groups: usize, bits: Bits) -> Vec<u8> {
    assert_eq!(zero_codes.len(), rows * groups, "[{rows}, {groups}] zero points");
    let words = (rows * usize::from(bits.get())).div_ceil(32);
    let mut packed = vec![0; 4 * words * groups];
    let mut column = vec![0; rows];
    let mut column_words = vec![0; 4 * words];
    for group in 0..groups {
        for (row, code) in column.iter_mut().enumerate() {
            *code = zero_codes[row * groups + group];
        }
        pack_row(&column, bits, &mut column_words);
        for (word, bytes) in column_words.chunks_exact(4).enumerate() {
            packed[4 * (word * groups + group)..][..4].copy_from_slice(bytes);
        }
    }
    packed
}

/// Rows of `columns` codes from dense streams into words that hold whole codes, ⌊32 / bits⌋ each, as compressed-tensors before 0.18 has them:
/// where the width does not divide 32, the end of each word is zero.
///
/// # Panics
/// If they are not whole rows.
pub fn words_of_rows(packed: &[u8], columns: usize, bits: Bits) -> Vec<u8> {
    let width = usize::from(bits.get());
    let row_bytes = 4 * (columns * width).div_ceil(32);
    assert!(row_bytes > 0 && packed.len().is_multiple_of(row_bytes), "rows of {row_bytes} bytes");
    let mut words = Vec::with_capacity(packed.len() / row_bytes * 4 * columns.div_ceil(32 / width));
    for row in packed.chunks_exact(row_bytes) {
        let row = row.as_chunks::<4>().0;
        let code = |index| stream_code(bits.get(), index, |word| u32::from_le_bytes(row[word]));
        push_words((0..columns).map(code), width, &mut words);
    }
    words
}

/// [`pack_zero_points`] into words that hold whole codes: `[ceil(rows / ⌊32 / bits⌋), groups]`.
///
/// # Panics
/// If there are not `rows * groups` codes.
pub fn pack_zero_words(zero_codes: &[u8], rows: usize, groups: usize, bits: Bits) -> Vec<u8> {
    assert_eq!(zero_codes.len(), rows * groups, "[{rows}, {groups}] zero points");
    let width = usize::from(bits.get());
    let mut columns = Vec::new();
    for group in 0..groups {
        push_words((0..rows).map(|row| zero_codes[row * groups + group]), width, &mut columns);
    }
    crate::transpose(&columns, groups, rows.div_ceil(32 / width), 4)
}

fn push_words(codes: impl Iterator<Item = u8>, width: usize, words: &mut Vec<u8>) {
    let (mut word, mut filled) = (0u32, 0);
    for code in codes {
        word |= u32::from(code) << (filled * width);
        filled += 1;
        if filled == 32 / width {
            words.extend(word.to_le_bytes());
            (word, filled) = (0, 0);
        }
    }
    if filled > 0 {
        words.extend(word.to_le_bytes());
    }
}

#[derive(Default)]
struct BitWriter {
    pending: u32,
    filled: u32,
}

impl BitWriter {
    fn push<'a>(&mut self, code: u8, width: u32, mut next: impl FnMut() -> Option<&'a mut u8>) {
        self.pending |= u32::from(code) << self.filled;
        self.filled += width;
        if self.filled >= 8 {
            if let Some(byte) = next() {
                *byte = self.pending as u8;
            }
            self.pending >>= 8;
            self.filled -= 8;
        }
    }

    fn finish<'a>(self, rest: impl Iterator<Item = &'a mut u8>) {
        let mut last = self.pending as u8;
        for byte in rest {
            *byte = last;
            last = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, bit by bit.
    fn code_at(packed: &[u8], bits: u32, index: usize) -> u8 {
        (0..bits as usize).fold(0, |code, bit| {
            let at = index * bits as usize + bit;
            code | (packed[at / 8] >> (at % 8) & 1) << bit
        })
    }

    #[test]
    fn every_width_and_length_unpacks_to_what_was_packed() {
        for width in 1..=8u8 {
            let bits = Bits::new(width).unwrap();
            for len in [0, 1, 2, 3, 7, 8, 9, 10, 11, 31, 32, 33, 100] {
                let codes: Vec<u8> = (0..len).map(|i| (i * 37 + 11) as u8 & (0xff >> (8 - width))).collect();
                let mut packed = vec![0xaa; 4 * (len * usize::from(width)).div_ceil(32)];
                pack_row(&codes, bits, &mut packed);
                for (index, code) in codes.iter().enumerate() {
                    assert_eq!(
                        code_at(&packed, width.into(), index),
                        *code,
                        "{width} bits, {index} of {len}"
                    );
                }
                for bit in len * usize::from(width)..8 * packed.len() {
                    assert_eq!(packed[bit / 8] >> (bit % 8) & 1, 0, "{width} bits, padding after {len}");
                }
            }
        }
    }

    #[test]
    fn four_bit_words_begin_with_the_first_code_in_the_low_nibble() {
        let mut packed = [0; 8];
        pack_row(&[1, 2, 3, 4, 5, 6, 7, 8, 9], Bits::new(4).unwrap(), &mut packed);
        assert_eq!(u32::from_le_bytes(packed[..4].try_into().unwrap()), 0x8765_4321);
        assert_eq!(u32::from_le_bytes(packed[4..].try_into().unwrap()), 9);
    }
}
