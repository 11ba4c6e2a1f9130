//! Where compressed-tensors' `marlin-24` keeps a weight: two of each four, in tiles as a kernel for GPUs reads them.
//!
//! Of a matrix `[out, in]` the kept weights `[out, in / 2]` are transposed and cut into tiles of 16 by 16, of which four side by side are put in
//! an order of 1024 (`compressed_tensors/utils/permutations_24.py`, up to version 0.12). Which two of a four are kept is told by 4 bits, two
//! for each place, in 16-bit elements `[out, in / 16]` whose order is CUTLASS's (`utils/semi_structured_conversions.py` there).

/// Weights that are put in order together: four tiles.
const ORDERED: usize = 1024;

/// Where each weight of four tiles goes.
const fn places(interleave: &[usize]) -> [u16; ORDERED] {
    let mut places = [0; ORDERED];
    // `at` counts as permutations_24.py lists: for each of 32 threads four columns, of each eight weights.
    let mut at = 0;
    while at < ORDERED {
        let length = interleave.len();
        let from = at / length * length + interleave[at % length];
        let (thread, column, weight) = (from / 32, from / 8 % 4, from % 8);
        let row = 2 * (thread % 4 + 4 * (weight / 2 % 2)) + weight % 2;
        let lane = thread / 4;
        places[16 * row + 256 * (lane / 2) + 8 * (lane % 2) + 4 * (weight / 4) + column] = at as u16;
        at += 1;
    }
    places
}

static PLACES_4: [u16; ORDERED] = places(&[0, 2, 4, 6, 1, 3, 5, 7]);
static PLACES_8: [u16; ORDERED] = places(&[0, 2, 1, 3]);

/// The word of kept weight `column` of a row, and its first bit there.
#[inline(always)]
pub(crate) fn place(out_features: usize, bits: usize, row: usize, column: usize) -> (usize, usize) {
    let along = row / 16 * 256 + column % 16 * 16 + row % 16;
    let order = if bits == 4 { &PLACES_4 } else { &PLACES_8 };
    let at = along / ORDERED * ORDERED + usize::from(order[along % ORDERED]);
    let in_word = 32 / bits;
    (column / 16 * (out_features * 16 / in_word) + at / in_word, at % in_word * bits)
}

/// Which kept weight of a row column `column` is, if it is one.
#[inline(always)]
pub(crate) fn stored(places: &[[u8; 2]], out_features: usize, row: usize, column: usize) -> Option<usize> {
    let (four, within) = (column / 4, (column % 4) as u16);
    let (mut line, mut element) =
        (row / 64 * 64 + row % 2 * 2 + row % 8 / 4 + row % 4 / 2 * 32 + row % 64 / 8 * 4, four / 4);
    // The corners of each square of two by two change places.
    match (line % 2, element % 2) {
        (0, 1) => (line, element) = (line + 1, element - 1),
        (1, 0) => (line, element) = (line - 1, element + 1),
        _ => {}
    }
    let at = element / 2 * out_features * 2 + line * 2 + element % 2;
    let both = u16::from_le_bytes(places[at]) >> (4 * (four % 4));
    match within {
        _ if both & 3 == within => Some(2 * four),
        _ if both >> 2 & 3 == within => Some(2 * four + 1),
        _ => None,
    }
}

/// The column of the scales that is a row's, where there are several groups.
#[inline(always)]
pub(crate) fn scale_column(row: usize) -> usize {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    row / 8 * 8 + ORDER[row % 8]
}
