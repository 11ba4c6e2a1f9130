//! Products of plain f32 matrices: the door to the `gemm` crate, in the calling thread.
//!
//! An element is a sum over `k` whose order follows from the shapes and the CPU alone.

/// A borrowed matrix whose rows, and the elements of a row, lie fixed distances apart.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Strided<'a> {
    /// The `[rows, cols]` matrix at the beginning of `data` whose rows begin `stride` elements apart.
    ///
    /// # Panics
    /// If it reaches beyond `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(data.len() >= extent(rows, cols, stride), "[{rows}, {cols}] by {stride} in {}", data.len());
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The same elements, rows for columns.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Elements from the first of a matrix to behind its last.
fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// `out = factor · lhs · rhs`, whatever `out` held.
///
/// ```
/// use bitmill_kernels::{Strided, set_product};
/// let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]);
/// let mut out = [f32::NAN; 2];
/// set_product(&mut out, 1, 1.0, Strided::new(&a, 2, 2, 2), Strided::new(&b, 1, 2, 2).transposed());
/// assert_eq!(out, [17.0, 39.0]);
/// ```
///
/// # Shapes
/// `lhs`: `[m, k]`. `rhs`: `[k, n]`. `out`: `[m, n]`, its rows `out_stride` apart.
///
/// # Panics
/// If the shapes do not fit, or rows of `out` overlap.
pub fn set_product(out: &mut [f32], out_stride: usize, factor: f32, lhs: Strided<'_>, rhs: Strided<'_>) {
    product(out, out_stride, false, factor, lhs, rhs);
}

/// `out += factor · lhs · rhs`.
///
/// # Shapes
/// As [`set_product`].
///
/// # Panics
/// As [`set_product`].
pub fn add_product(out: &mut [f32], out_stride: usize, factor: f32, lhs: Strided<'_>, rhs: Strided<'_>) {
    product(out, out_stride, true, factor, lhs, rhs);
}

fn product(out: &mut [f32], out_stride: usize, add: bool, factor: f32, lhs: Strided<'_>, rhs: Strided<'_>) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert_eq!(k, rhs.rows, "[{m}, {k}] times [{}, {n}]", rhs.rows);
    assert!(out.len() >= extent(m, n, out_stride), "[{m}, {n}] by {out_stride} in {}", out.len());
    assert!(m <= 1 || out_stride >= n, "rows of {n}, {out_stride} apart");
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: `Strided::new` keeps every element of `lhs` and `rhs` inside their slices, the assertions above those of
    // `out`, which no two share; `out` is borrowed alone. With k = 0 nothing of `lhs` and `rhs` is read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_plain_sums_at_every_stride() {
        let value = |seed: usize| ((seed * 37 + 11) % 17) as f32 - 8.0;
        for (m, n, k) in [(1, 1, 1), (3, 5, 0), (0, 4, 2), (7, 33, 16), (65, 17, 40), (2, 130, 3)] {
            let (lhs_stride, rhs_stride, out_stride) = (m + 3, n + 1, n + 2);
            let lhs: Vec<f32> = (0..k * lhs_stride).map(value).collect();
            let rhs: Vec<f32> = (0..k * rhs_stride).map(|i| value(i + 5)).collect();
            for add in [false, true] {
                let before = if add { 2.0 } else { f32::NAN };
                let mut out = vec![before; m * out_stride];
                let (a, b) = (Strided::new(&lhs, k, m, lhs_stride), Strided::new(&rhs, k, n, rhs_stride));
                if add {
                    add_product(&mut out, out_stride, -0.5, a.transposed(), b);
                } else {
                    set_product(&mut out, out_stride, -0.5, a.transposed(), b);
                }
                for (row, out) in out.chunks_exact(out_stride).enumerate() {
                    for (col, &found) in out.iter().enumerate() {
                        if col >= n {
                            assert!(found == before || before.is_nan() && found.is_nan(), "guard values");
                            continue;
                        }
                        // Small integers: every sum is exact.
                        let sum: f32 =
                            (0..k).map(|p| lhs[p * lhs_stride + row] * rhs[p * rhs_stride + col]).sum();
                        let begin = if add { 2.0 } else { 0.0 };
                        assert_eq!(found, begin - 0.5 * sum, "{m} {n} {k}, {row} {col}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "[2, 3] by 3 in 5")]
    fn refuses_a_matrix_beyond_its_slice() {
        Strided::new(&[0.0; 5], 2, 3, 3);
    }
}
