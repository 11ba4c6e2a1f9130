//! Squares of f32, row major: how tasks split them, how they are mirrored and reordered in place.

use rayon::prelude::*;

/// Rows of a large square that one task computes. Wide ones take more at a time: each task packs anew what all multiply.
pub(crate) fn task_rows(n: usize) -> usize {
    if n < 8192 { 128 } else { 256 }
}

/// Edge of the tiles that are transposed at once: both fit an L1 cache.
const TILE: usize = 32;

/// Copies the lower triangle over the upper one.
pub(crate) fn mirror_lower(square: &mut [f32], n: usize) {
    for top in (0..n).step_by(TILE) {
        let (above, below) = square.split_at_mut((top + TILE).min(n) * n);
        let upper = &mut above[top * n..];
        let height = upper.len() / n;
        for row in 0..height {
            for col in top + row + 1..top + height {
                upper[row * n + col] = upper[(col - top) * n + top + row];
            }
        }
        for (tile, lower) in below.chunks(TILE * n).enumerate() {
            let left = top + height + tile * TILE;
            for row in 0..height {
                let out = &mut upper[row * n + left..][..lower.len() / n];
                for (out, lower) in out.iter_mut().zip(lower.chunks_exact(n)) {
                    *out = lower[top + row];
                }
            }
        }
    }
}

/// Makes row and column `i` what row and column `order[i]` were, with one row of memory a thread.
pub(crate) fn reorder(square: &mut [f32], n: usize, order: &[usize]) {
    reorder_rows(square, n, order);
    square.par_chunks_mut(n.max(1)).for_each_init(
        || vec![0.0; n],
        |before, row| {
            before.copy_from_slice(row);
            for (value, &from) in row.iter_mut().zip(order) {
                *value = before[from];
            }
        },
    );
}

/// Follows the cycles of `order`.
fn reorder_rows(square: &mut [f32], n: usize, order: &[usize]) {
    let mut done = vec![false; n];
    let mut first_row = vec![0.0; n];
    for first in 0..n {
        if done[first] || order[first] == first {
            continue;
        }
        first_row.copy_from_slice(&square[first * n..(first + 1) * n]);
        let mut row = first;
        loop {
            done[row] = true;
            let from = order[row];
            if from == first {
                break;
            }
            square.copy_within(from * n..(from + 1) * n, row * n);
            row = from;
        }
        square[row * n..(row + 1) * n].copy_from_slice(&first_row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_every_size() {
        for n in [0, 1, 2, 31, 32, 33, 64, 100] {
            let mut square: Vec<f32> = (0..n * n).map(|i| i as f32).collect();
            let lower = square.clone();
            mirror_lower(&mut square, n);
            for (at, &value) in square.iter().enumerate() {
                let (row, col) = (at / n, at % n);
                assert_eq!(value, lower[row.max(col) * n + row.min(col)], "{n}: {row}, {col}");
            }
        }
    }

    #[test]
    fn reorders_rows_and_columns_by_any_permutation() {
        let n = 7;
        let before: Vec<f32> = (0..n * n).map(|i| i as f32).collect();
        for order in
            [[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [1, 2, 0, 4, 3, 5, 6], [3, 0, 6, 2, 5, 1, 4]]
        {
            let mut square = before.clone();
            reorder(&mut square, n, &order);
            for (at, &value) in square.iter().enumerate() {
                assert_eq!(value, before[order[at / n] * n + order[at % n]], "{order:?}");
            }
        }
    }
}
