//! The upper factor of an inverse, without the inverse: `U` with `H⁻¹ = UᵀU`, in place.
//!
//! `H = VVᵀ` with `V` upper triangular is a Cholesky factor found from the last column on (reverse rows and columns,
//! factor, reverse again); then `H⁻¹ = V⁻ᵀV⁻¹` and `U = V⁻¹`. Half the work of inverting `H` and factoring that.
//!
//! Both steps go by blocks: what is inside one is done by this same function, all else are products shared out over
//! rows or columns in pieces that follow from `n` alone, so that threads change no bit. Only the upper triangle is read
//! and written; the lower one can keep `H`.

use bitmill_kernels::{Strided, add_product, set_product};
use rayon::prelude::*;

use crate::square::task_rows;

/// Blocks of at most this edge are factored element by element.
const SMALLEST: usize = 32;

/// Replaces the upper triangle of `square`, which holds `H`, by `U`; or says which column's pivot is not above its
/// `floor`, and leaves the upper triangle in ruins.
pub(crate) fn inverse_factor(square: &mut [f32], n: usize, floor: &[f32]) -> Result<(), usize> {
    if n <= SMALLEST {
        return inverse_factor_of_block(square, n, floor);
    }
    let block = if n <= 256 { SMALLEST } else { task_rows(n) };
    factor(square, n, block, floor)?;
    invert(square, n, block);
    Ok(())
}

/// Leaves `V` above the diagonal blocks, and in each of these the inverse of `V`'s block.
fn factor(square: &mut [f32], n: usize, block: usize, floor: &[f32]) -> Result<(), usize> {
    // Too little to share out below.
    let rows = if n <= 256 { n } else { block };
    let mut diagonal = vec![0.0; block * block];
    let mut panel = vec![0.0; n * block];
    for left in (0..n).step_by(block).rev() {
        let width = block.min(n - left);
        let diagonal = &mut diagonal[..width * width];
        copy_upper(&square[left * n + left..], n, width, diagonal);
        inverse_factor(diagonal, width, &floor[left..left + width]).map_err(|column| left + column)?;
        for row in 0..width {
            square[(left + row) * n + left + row..][..width - row]
                .copy_from_slice(&diagonal[row * width + row..(row + 1) * width]);
        }

        // The columns above: V = H · (V of the block)⁻ᵀ. Kept apart too, for all rows to multiply with.
        let above = &mut square[..left * n];
        let panel = &mut panel[..left * width];
        let inverse = Strided::new(diagonal, width, width, width).transposed();
        above.par_chunks_mut(rows * n).zip(panel.par_chunks_mut(rows * width)).for_each(|(above, panel)| {
            let height = panel.len() / width;
            set_product(panel, width, 1.0, Strided::new(&above[left..], height, width, n), inverse);
            for (above, panel) in above.chunks_exact_mut(n).zip(panel.chunks_exact(width)) {
                above[left..left + width].copy_from_slice(panel);
            }
        });
        let panel = &*panel;
        above.par_chunks_mut(rows * n).enumerate().with_max_len(1).for_each(|(task, above)| {
            let mut corner = vec![0.0; block * block];
            for (inside, above) in above.chunks_mut(block * n).enumerate() {
                let (top, height) = (task * rows + inside * block, above.len() / n);
                let own = Strided::new(&panel[top * width..], height, width, width);
                // On the diagonal only the upper triangle, then all that is right of it.
                set_product(&mut corner, height, 1.0, own, own.transposed());
                for (row, above) in above.chunks_exact_mut(n).enumerate() {
                    let corner = &corner[row * height + row..(row + 1) * height];
                    above[top + row..].iter_mut().zip(corner).for_each(|(value, sum)| *value -= sum);
                }
                let right = top + height;
                let others = Strided::new(&panel[right * width..], left - right, width, width).transposed();
                add_product(&mut above[right..], n, -1.0, own, others);
            }
        });
    }
    Ok(())
}

/// `V`, as [`factor`] leaves it, to `V⁻¹`: rows of blocks from the last on, `U_I = −V_II⁻¹ · V_I · U` of what is below.
fn invert(square: &mut [f32], n: usize, block: usize) {
    let tile = if n <= 256 { n } else { 2 * block };
    let mut fresh = vec![0.0; block * n];
    for top in (0..n).step_by(block).rev().skip(1) {
        let right = top + block;
        let (head, below) = square.split_at_mut(right * n);
        let own = &mut head[top * n..];
        let mut inverse = vec![0.0; block * block];
        for row in 0..block {
            inverse[row * block + row..(row + 1) * block]
                .copy_from_slice(&own[row * n + top + row..row * n + right]);
        }
        let fresh = &mut fresh[..block * (n - right)];
        let (own_read, below) = (&*own, &*below);
        fresh.par_chunks_mut(block * tile).enumerate().rev().with_max_len(1).for_each(|(task, fresh)| {
            let width = fresh.len() / block;
            let left = right + task * tile;
            // What is above the tile of `U` on the diagonal, then that tile, whose lower triangle is not `U`'s.
            let mut sums = vec![0.0; block * width];
            let above = Strided::new(&own_read[right..], block, left - right, n);
            set_product(&mut sums, width, 1.0, above, Strided::new(&below[left..], left - right, width, n));
            let mut corner = vec![0.0; width * width];
            copy_upper(&below[(left - right) * n + left..], n, width, &mut corner);
            add_product(
                &mut sums,
                width,
                1.0,
                Strided::new(&own_read[left..], block, width, n),
                Strided::new(&corner, width, width, width),
            );
            let inverse = Strided::new(&inverse, block, block, block);
            set_product(fresh, width, -1.0, inverse, Strided::new(&sums, block, width, width));
        });
        for (task, fresh) in fresh.chunks(block * tile).enumerate() {
            let width = fresh.len() / block;
            for (own, fresh) in own.chunks_exact_mut(n).zip(fresh.chunks_exact(width)) {
                own[right + task * tile..][..width].copy_from_slice(fresh);
            }
        }
    }
}

/// The upper triangle of the block of `width` that begins `square`; what is below it is zero.
fn copy_upper(square: &[f32], n: usize, width: usize, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        out[..row].fill(0.0);
        out[row..].copy_from_slice(&square[row * n + row..][..width - row]);
    }
}

/// Element by element; sums are f64.
fn inverse_factor_of_block(square: &mut [f32], n: usize, floor: &[f32]) -> Result<(), usize> {
    for col in (0..n).rev() {
        let dot = |square: &[f32], row: usize| -> f64 {
            let (a, b) =
                (&square[row * n + col + 1..(row + 1) * n], &square[col * n + col + 1..(col + 1) * n]);
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let pivot = f64::from(square[col * n + col]) - dot(square, col);
        // Not `<=`: NaN is no pivot either.
        if !(pivot > f64::from(floor[col]) && pivot < f64::from(f32::MAX)) {
            return Err(col);
        }
        let root = pivot.sqrt();
        for row in 0..col {
            let rest = f64::from(square[row * n + col]) - dot(square, row);
            square[row * n + col] = (rest / root) as f32;
        }
        square[col * n + col] = root as f32;
    }
    let mut before = [0.0; SMALLEST];
    for row in (0..n).rev() {
        before[row..n].copy_from_slice(&square[row * n + row..(row + 1) * n]);
        let inverse = 1.0 / f64::from(before[row]);
        square[row * n + row] = inverse as f32;
        for col in row + 1..n {
            let sum: f64 =
                (row + 1..=col).map(|p| f64::from(before[p]) * f64::from(square[p * n + col])).sum();
            square[row * n + col] = (-inverse * sum) as f32;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `XᵀX / tokens + I / 100` of pseudo-random `X`, in f64.
    fn positive_definite(n: usize) -> Vec<f64> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        let tokens = n + 3;
        let x: Vec<f64> = (0..tokens * n).map(|_| uniform()).collect();
        let mut square = vec![0.0; n * n];
        for row in 0..n {
            for col in 0..n {
                let sum: f64 = (0..tokens).map(|t| x[t * n + row] * x[t * n + col]).sum();
                square[row * n + col] = sum / tokens as f64 + if row == col { 0.01 } else { 0.0 };
            }
        }
        square
    }

    #[test]
    fn the_factor_takes_the_matrix_to_the_identity_at_every_size() {
        for n in [1, 2, 31, 32, 33, 64, 100, 256, 257, 300, 391] {
            let matrix = positive_definite(n);
            let mut square: Vec<f32> = matrix.iter().map(|value| *value as f32).collect();
            for row in 0..n {
                square[row * n..row * n + row].fill(7.0);
            }
            inverse_factor(&mut square, n, &vec![0.0; n]).unwrap();
            // U H Uᵀ = I.
            let mut worst = 0f64;
            for row in 0..n {
                assert!(square[row * n..row * n + row].iter().all(|&below| below == 7.0), "{n}: wrote below");
                let left: Vec<f64> = (0..n)
                    .map(|col| (row..n).map(|p| f64::from(square[row * n + p]) * matrix[p * n + col]).sum())
                    .collect();
                for col in 0..n {
                    let sum: f64 = (col..n).map(|p| left[p] * f64::from(square[col * n + p])).sum();
                    worst = worst.max((sum - if row == col { 1.0 } else { 0.0 }).abs());
                }
            }
            // Condition numbers below 10³, f32's 6·10⁻⁸ and some room.
            assert!(worst < 5e-4, "{n}: {worst:e}");
        }
    }

    #[test]
    fn blocks_of_every_edge_give_the_same_factor() {
        let n = 300;
        let matrix: Vec<f32> = positive_definite(n).iter().map(|value| *value as f32).collect();
        let mut expected = matrix.clone();
        inverse_factor(&mut expected, n, &vec![0.0; n]).unwrap();
        for block in [33, 64, 100, 256, 299] {
            let mut square = matrix.clone();
            factor(&mut square, n, block, &vec![0.0; n]).unwrap();
            invert(&mut square, n, block);
            for row in 0..n {
                for col in row..n {
                    let (found, expected) = (square[row * n + col], expected[row * n + col]);
                    // Of elements up to 10.
                    assert!((found - expected).abs() < 1e-3, "{block}: {row}, {col}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn names_the_column_without_a_positive_pivot() {
        for n in [5, 40, 300] {
            let mut square = vec![0.0; n * n];
            for at in 0..n {
                square[at * n + at] = if at == 3 { -1.0 } else { 1.0 };
            }
            assert_eq!(inverse_factor(&mut square, n, &vec![0.0; n]), Err(3));
        }
    }
}
