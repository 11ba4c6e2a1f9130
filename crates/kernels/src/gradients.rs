//! The backward half of the compute boundary: what gradients of an operation's result say of what went into it.
//!
//! Products are those of plain f32 matrices, in pieces of rows that follow from the shapes alone, so that threads change no
//! bit; what is said of a weight is added to what other tokens said before.

use bitmill_tensor::Matrix;
use rayon::prelude::*;

use crate::compute::each_row;
use crate::ops::attention::AttentionShape;
use crate::ops::rope::Rotations;
use crate::ops::{attention_backward, backward};
use crate::product::{Strided, add_product, set_product};
use crate::{Compute, Isa};

/// Rows of a product that one task makes: the other side is packed for each task again, which 128 rows hide.
const PRODUCT_ROWS: usize = 128;

/// What a product does with what stands where its result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Into {
    Set,
    Add,
}

/// `lhs · rhs` into `out`, row blocks side by side; `lhs(first, rows)` is some rows of the left side.
fn product<'a>(
    into: Into,
    out: &mut Matrix,
    lhs: impl Fn(usize, usize) -> Strided<'a> + Sync,
    rhs: Strided<'a>,
) {
    let cols = out.cols();
    if cols == 0 {
        return;
    }
    out.as_mut_slice().par_chunks_mut(PRODUCT_ROWS * cols).enumerate().for_each(|(task, out)| {
        let lhs = lhs(task * PRODUCT_ROWS, out.len() / cols);
        match into {
            Into::Set => set_product(out, cols, 1.0, lhs, rhs),
            Into::Add => add_product(out, cols, 1.0, lhs, rhs),
        }
    });
}

/// All of a matrix.
fn whole(matrix: &Matrix) -> Strided<'_> {
    Strided::new(matrix.as_slice(), matrix.rows(), matrix.cols(), matrix.cols())
}

/// Some rows of a matrix.
fn rows_of<'a>(matrix: &'a Matrix) -> impl Fn(usize, usize) -> Strided<'a> + Sync {
    let cols = matrix.cols();
    move |first, rows| Strided::new(&matrix.as_slice()[first * cols..], rows, cols, cols)
}

impl Compute {
    /// `y = x · weightᵀ` of a weight in f32 that changes from one call to the next: [`matmul`](Self::matmul), in the
    /// order of sums of the products below.
    ///
    /// # Shapes
    /// `x`: `[tokens, in_features]`. `weight`: `[out_features, in_features]`. `y` becomes `[tokens, out_features]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product(&self, x: &Matrix, weight: &Matrix, y: &mut Matrix) {
        assert_eq!(x.cols(), weight.cols(), "as many inputs as columns");
        y.reshape(x.rows(), weight.rows());
        product(Into::Set, y, rows_of(x), whole(weight).transposed());
    }

    /// What `dy` says of the `x` of [`product`](Self::product): `dx = dy · weight`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product_backward_input(&self, dy: &Matrix, weight: &Matrix, dx: &mut Matrix) {
        assert_eq!(dy.cols(), weight.rows(), "as many outputs as rows");
        dx.reshape(dy.rows(), weight.cols());
        product(Into::Set, dx, rows_of(dy), whole(weight));
    }

    /// What `dy` says of the weight of [`product`](Self::product), added to `dweight`: `dyᵀ · x`.
    ///
    /// ```
    /// use bitmill_kernels::{Compute, Isa, Path};
    /// use bitmill_tensor::Matrix;
    /// let compute = Compute::new(Isa::best(), Path::Exact);
    /// let (x, dy) = (Matrix::from_vec(1, 2, vec![3.0, 5.0]), Matrix::from_vec(1, 1, vec![2.0]));
    /// let mut dweight = Matrix::from_vec(1, 2, vec![1.0, 1.0]);
    /// compute.product_backward_weight(&dy, &x, &mut dweight);
    /// assert_eq!(dweight.as_slice(), [7.0, 11.0]);
    /// ```
    ///
    /// # Shapes
    /// `dy`: `[tokens, out_features]`. `x`: `[tokens, in_features]`. `dweight`: `[out_features, in_features]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product_backward_weight(&self, dy: &Matrix, x: &Matrix, dweight: &mut Matrix) {
        assert_eq!(dy.rows(), x.rows(), "the same tokens");
        assert_eq!((dweight.rows(), dweight.cols()), (dy.cols(), x.cols()), "the weight's shape");
        let (tokens, outputs) = (dy.rows(), dy.cols());
        let lhs = |first: usize, rows: usize| match tokens {
            0 => Strided::new(&[], 0, rows, outputs).transposed(),
            _ => Strided::new(&dy.as_slice()[first..], tokens, rows, outputs).transposed(),
        };
        product(Into::Add, dweight, lhs, whole(x));
    }

    /// What `dy` says of a bias, added to `dbias`: the sum over tokens.
    ///
    /// # Panics
    /// If there is not one bias a column.
    pub fn bias_backward(&self, dy: &Matrix, dbias: &mut [f32]) {
        assert_eq!(dbias.len(), dy.cols(), "one bias a column");
        for row in 0..dy.rows() {
            crate::ops::rows::add_row(self.isa(), dbias, dy.row(row));
        }
    }

    /// What `dy` says of the `x` of [`rms_norm`](Self::rms_norm), into `dx`, and of its weight, added to `dweight`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm_backward(
        &self,
        x: &Matrix,
        weight: &[f32],
        eps: f32,
        dy: &Matrix,
        dx: &mut Matrix,
        dweight: &mut [f32],
    ) {
        assert_eq!((x.rows(), x.cols()), (dy.rows(), dy.cols()), "two matrices of one shape");
        assert_eq!((weight.len(), dweight.len()), (x.cols(), x.cols()), "one weight a column");
        dx.reshape(x.rows(), x.cols());
        let (isa, cols) = (self.isa(), weight.len());
        if cols == 0 {
            return;
        }
        let mut scales = vec![0.0; x.rows()];
        let rows = dx.as_mut_slice().par_chunks_exact_mut(cols).with_min_len(16);
        rows.zip(&mut scales).enumerate().for_each(|(row, (dx, scale))| {
            *scale = backward::rms_norm_row(isa, x.row(row), weight, eps, dy.row(row), dx);
        });
        for (row, scale) in scales.into_iter().enumerate() {
            backward::rms_norm_weight_row(isa, x.row(row), scale, dy.row(row), dweight);
        }
    }

    /// What `dy` says of the `x` of [`rms_norm_heads`](Self::rms_norm_heads), in its place, and of the weight, added to
    /// `dweight`. `x` is as it was before.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn rms_norm_heads_backward(
        &self,
        x: &Matrix,
        weight: &[f32],
        eps: f32,
        dy: &mut Matrix,
        dweight: &mut [f32],
    ) {
        assert!(!weight.is_empty() && x.cols().is_multiple_of(weight.len()), "whole heads");
        assert_eq!((x.rows(), x.cols()), (dy.rows(), dy.cols()), "two matrices of one shape");
        assert_eq!(weight.len(), dweight.len(), "one weight an element");
        for row in 0..x.rows() {
            backward::rms_norm_heads_row(self.isa(), x.row(row), weight, eps, dy.row_mut(row), dweight);
        }
    }

    /// Turns gradients of what [`rope`](Self::rope) made into those of what it was given, in place.
    ///
    /// # Panics
    /// If rows or heads do not match.
    pub fn rope_backward(&self, dx: &mut Matrix, rotations: &Rotations) {
        assert_eq!(dx.rows(), rotations.rows(), "one position a row");
        assert!(dx.cols().is_multiple_of(rotations.head_dim().max(1)), "whole heads");
        let (isa, cols) = (self.isa(), dx.cols());
        each_row(dx.as_mut_slice(), cols, |row, dx| rotations.apply_backward(isa, row, dx));
    }

    /// What `dy` says of queries, keys and values of [`attention`](Self::attention) over whole sequences: those whose
    /// tokens are all new.
    ///
    /// # Shapes
    /// `q`, `dy`, `dq`: `[tokens, n_heads · head_dim]`; `k`, `v`, `dk`, `dv`: `[tokens, n_kv_heads · head_dim]`; `starts` as
    /// there.
    ///
    /// # Panics
    /// If shapes and `starts` do not fit each other.
    pub fn attention_backward(
        &self,
        shape: AttentionShape,
        [q, k, v]: [&Matrix; 3],
        starts: &[usize],
        dy: &Matrix,
        [dq, dk, dv]: [&mut Matrix; 3],
    ) {
        attention_backward::attention(self.isa(), shape, [q, k, v], starts, dy, [dq, dk, dv]);
    }

    /// What `dy` says of the gate and of the `up` of [`swiglu`](Self::swiglu): the first takes the place of `gate`, which is
    /// as it was before, the second that of `dy`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn swiglu_backward(&self, gate: &mut Matrix, up: &Matrix, dy: &mut Matrix) {
        let shape = |matrix: &Matrix| (matrix.rows(), matrix.cols());
        assert!(shape(gate) == shape(up) && shape(up) == shape(dy), "three matrices of one shape");
        let (isa, cols) = (self.isa(), up.cols());
        if cols == 0 {
            return;
        }
        let rows = gate.as_mut_slice().par_chunks_exact_mut(cols).with_min_len(16);
        rows.zip(dy.as_mut_slice().par_chunks_exact_mut(cols)).enumerate().for_each(|(row, (gate, dy))| {
            backward::swiglu_row(isa, gate, up.row(row), dy);
        });
    }

    /// `Σ w · (y − target)²`, `w` the weight of a row, and `factor · w · (y − target)` into `dy`: with a factor of 2 the gradient of
    /// the sum.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn squared_error(
        &self,
        y: &Matrix,
        target: &Matrix,
        weights: &[f32],
        factor: f32,
        dy: &mut Matrix,
    ) -> f64 {
        assert_eq!((y.rows(), y.cols()), (target.rows(), target.cols()), "two matrices of one shape");
        assert_eq!(y.rows(), weights.len(), "a weight for every row");
        dy.reshape(y.rows(), y.cols());
        let isa: Isa = self.isa();
        let row = |row: usize, dy: &mut [f32]| {
            let weight = weights[row];
            let error = backward::squared_error_row(isa, y.row(row), target.row(row), factor * weight, dy);
            f64::from(weight) * error
        };
        (0..y.rows()).map(|at| row(at, dy.row_mut(at))).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use bitmill_testkit::{assert_close, noise};

    use super::*;
    use crate::{KvCache, Pairing, Path, RopeTable};

    const REASON: &str = "differences in f32 of a loss that is summed in f64";

    fn computes() -> impl Iterator<Item = Compute> {
        Isa::available().into_iter().map(|isa| Compute::new(isa, Path::Exact))
    }

    fn matrix(seed: &str, rows: usize, cols: usize) -> Matrix {
        Matrix::from_vec(rows, cols, noise(seed, rows * cols))
    }

    /// `Σ weights · result`: a loss whose gradient with respect to the result is `weights`.
    fn loss(weights: &Matrix, result: &Matrix) -> f64 {
        let terms = weights.as_slice().iter().zip(result.as_slice());
        terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// Central differences of `loss` in every element of `x`, by half steps that an f32 holds exactly.
    fn differences(x: &[f32], loss: impl Fn(&[f32]) -> f64) -> Vec<f32> {
        const STEP: f32 = 1.0 / 128.0;
        let mut moved = x.to_vec();
        let mut at = |index: usize, step: f32| {
            moved[index] = x[index] + step;
            let (loss, by) = (loss(&moved), f64::from(moved[index]) - f64::from(x[index]));
            moved[index] = x[index];
            (loss, by)
        };
        let mut slope = |index| {
            let ((above, up), (below, down)) = (at(index, STEP), at(index, -STEP));
            ((above - below) / (up - down)) as f32
        };
        (0..x.len()).map(&mut slope).collect()
    }

    fn with(of: &Matrix, values: &[f32]) -> Matrix {
        Matrix::from_vec(of.rows(), of.cols(), values.to_vec())
    }

    #[test]
    fn products_pass_gradients_to_both_sides() {
        for (tokens, outputs, inputs) in [(3, 5, 7), (1, 1, 1), (0, 4, 2), (150, 140, 9)] {
            let (x, weight) = (matrix("x", tokens, inputs), matrix("weight", outputs, inputs));
            let dy = matrix("dy", tokens, outputs);
            let compute = Compute::new(Isa::best(), Path::Exact);
            let (mut y, mut dx) = (Matrix::default(), Matrix::default());
            let mut dweight = matrix("before", outputs, inputs);
            let before = dweight.clone();
            compute.product(&x, &weight, &mut y);
            compute.product_backward_input(&dy, &weight, &mut dx);
            compute.product_backward_weight(&dy, &x, &mut dweight);
            // Each is a sum that the definition gives.
            let sum = |terms: &mut dyn Iterator<Item = (f32, f32)>| terms.map(|(a, b)| a * b).sum::<f32>();
            let close = |found: &Matrix, expected: &dyn Fn(usize, usize) -> f32| {
                let all = (0..found.rows()).flat_map(|row| (0..found.cols()).map(move |col| (row, col)));
                let expected: Vec<f32> = all.map(|(row, col)| expected(row, col)).collect();
                assert_close(found.as_slice(), &expected, 1e-5, "another order of f32 sums");
            };
            let of = |m: &Matrix, row: usize, col: usize| m.row(row)[col];
            close(&y, &|t, o| sum(&mut (0..inputs).map(|i| (of(&x, t, i), of(&weight, o, i)))));
            close(&dx, &|t, i| sum(&mut (0..outputs).map(|o| (of(&dy, t, o), of(&weight, o, i)))));
            close(&dweight, &|o, i| {
                of(&before, o, i) + sum(&mut (0..tokens).map(|t| (of(&dy, t, o), of(&x, t, i))))
            });
        }
    }

    #[test]
    fn norms_pass_gradients_to_their_input_and_weight() {
        for cols in [1, 5, 16, 37] {
            let (x, dy) = (matrix("x", 3, cols), matrix("dy", 3, cols));
            let weight = noise("weight", cols);
            for compute in computes() {
                let run = |x: &Matrix, weight: &[f32]| {
                    let mut y = Matrix::default();
                    compute.rms_norm(x, weight, 1e-3, &mut y);
                    loss(&dy, &y)
                };
                let (mut dx, mut dweight) = (Matrix::default(), vec![0.0; cols]);
                compute.rms_norm_backward(&x, &weight, 1e-3, &dy, &mut dx, &mut dweight);
                let expected = differences(x.as_slice(), |values| run(&with(&x, values), &weight));
                assert_close(dx.as_slice(), &expected, 5e-3, REASON);
                assert_close(&dweight, &differences(&weight, |weight| run(&x, weight)), 1e-3, REASON);
            }
        }
    }

    #[test]
    fn norms_of_heads_pass_gradients_on() {
        let (x, dy, weight) = (matrix("x", 2, 24), matrix("dy", 2, 24), noise("weight", 8));
        for compute in computes() {
            let run = |x: &Matrix, weight: &[f32]| {
                let mut y = x.clone();
                compute.rms_norm_heads(&mut y, weight, 1e-3);
                loss(&dy, &y)
            };
            let (mut dx, mut dweight) = (dy.clone(), vec![0.0; 8]);
            compute.rms_norm_heads_backward(&x, &weight, 1e-3, &mut dx, &mut dweight);
            let expected = differences(x.as_slice(), |values| run(&with(&x, values), &weight));
            assert_close(dx.as_slice(), &expected, 5e-3, REASON);
            assert_close(&dweight, &differences(&weight, |weight| run(&x, weight)), 1e-3, REASON);
        }
    }

    #[test]
    fn rope_is_turned_back() {
        let (x, dy) = (matrix("x", 5, 16), matrix("dy", 5, 16));
        for compute in computes() {
            for pairing in [Pairing::Halves, Pairing::Adjacent] {
                let table = RopeTable::new(8, 100.0, pairing).scaled(1.3);
                let mut rotations = Rotations::default();
                compute.rotations(5, [(Cow::Owned(table), 3..8)].into_iter(), &mut rotations);
                let run = |values: &[f32]| {
                    let mut y = with(&x, values);
                    compute.rope(&mut y, &rotations);
                    loss(&dy, &y)
                };
                let mut dx = dy.clone();
                compute.rope_backward(&mut dx, &rotations);
                assert_close(dx.as_slice(), &differences(x.as_slice(), run), 1e-3, REASON);
            }
        }
    }

    #[test]
    fn gating_passes_gradients_to_both_sides() {
        let (gate, up, dy) = (matrix("gate", 3, 21), matrix("up", 3, 21), matrix("dy", 3, 21));
        for compute in computes() {
            let run = |gate: &Matrix, up: &Matrix| {
                let mut y = gate.clone();
                compute.swiglu(&mut y, up);
                loss(&dy, &y)
            };
            let (mut dgate, mut dup) = (gate.clone(), dy.clone());
            compute.swiglu_backward(&mut dgate, &up, &mut dup);
            let expected = differences(gate.as_slice(), |values| run(&with(&gate, values), &up));
            assert_close(dgate.as_slice(), &expected, 1e-3, REASON);
            let expected = differences(up.as_slice(), |values| run(&gate, &with(&up, values)));
            assert_close(dup.as_slice(), &expected, 1e-3, REASON);
        }
    }

    #[test]
    fn biases_get_sums_and_squared_errors_their_slope() {
        let compute = Compute::new(Isa::best(), Path::Exact);
        let mut dbias = vec![1.0, 2.0];
        compute.bias_backward(&Matrix::from_vec(2, 2, vec![1.0, 2.0, 3.0, 4.0]), &mut dbias);
        assert_eq!(dbias, [5.0, 8.0]);
        let (y, target) = (matrix("y", 3, 11), matrix("target", 3, 11));
        let weights = [0.5, 0.0, 2.0];
        let mut dy = Matrix::default();
        let run = |values: &[f32]| {
            compute.squared_error(&with(&y, values), &target, &weights, 2.0, &mut Matrix::default())
        };
        let found = compute.squared_error(&y, &target, &weights, 2.0, &mut dy);
        let by_hand = |row: usize| -> f64 {
            let moved = y.row(row).iter().zip(target.row(row)).map(|(y, t)| f64::from(y - t).powi(2));
            f64::from(weights[row]) * moved.sum::<f64>()
        };
        assert!((found - (by_hand(0) + by_hand(2))).abs() < 1e-9);
        assert!((found - run(y.as_slice())).abs() < 1e-12);
        assert_close(dy.as_slice(), &differences(y.as_slice(), run), 1e-3, REASON);
    }

    /// Sequences of several lengths, grouped heads, with and without a window.
    #[test]
    fn attention_passes_gradients_to_queries_keys_and_values() {
        for (heads, kv_heads, window) in [(4, 2, None), (3, 3, Some(4)), (2, 1, Some(1))] {
            let (head_dim, starts) = (6, [0, 1, 9, 16]);
            let shape = AttentionShape { n_heads: heads, n_kv_heads: kv_heads, head_dim, window };
            let (q, dy) = (matrix("q", 16, heads * head_dim), matrix("dy", 16, heads * head_dim));
            let (k, v) = (matrix("k", 16, kv_heads * head_dim), matrix("v", 16, kv_heads * head_dim));
            for compute in computes() {
                let run = |[q, k, v]: [&Matrix; 3]| {
                    let mut caches = Vec::new();
                    for rows in starts.windows(2) {
                        let mut cache = KvCache::new(kv_heads * head_dim);
                        compute.append(&mut cache, k, v, rows[0]..rows[1]);
                        caches.push(cache);
                    }
                    let mut y = Matrix::default();
                    compute.attention(shape, q, &starts, |sequence| &caches[sequence], &mut y);
                    loss(&dy, &y)
                };
                let [mut dq, mut dk, mut dv] =
                    [const { Vec::new() }; 3].map(|data| Matrix::from_vec(0, 0, data));
                compute.attention_backward(shape, [&q, &k, &v], &starts, &dy, [&mut dq, &mut dk, &mut dv]);
                let slopes = differences(q.as_slice(), |values| run([&with(&q, values), &k, &v]));
                assert_close(dq.as_slice(), &slopes, 2e-3, REASON);
                let slopes = differences(k.as_slice(), |values| run([&q, &with(&k, values), &v]));
                assert_close(dk.as_slice(), &slopes, 2e-3, REASON);
                let slopes = differences(v.as_slice(), |values| run([&q, &k, &with(&v, values)]));
                assert_close(dv.as_slice(), &slopes, 2e-3, REASON);
            }
        }
    }

    #[test]
    fn blocks_of_queries_and_threads_change_nothing() {
        // More queries than a block has, and a window that ends inside the one before.
        let shape = AttentionShape { n_heads: 2, n_kv_heads: 1, head_dim: 8, window: Some(100) };
        let (q, k, v) = (matrix("q", 300, 16), matrix("k", 300, 8), matrix("v", 300, 8));
        let dy = matrix("dy", 300, 16);
        let compute = Compute::new(Isa::best(), Path::Exact);
        let run = || {
            let mut found = [const { Vec::new() }; 3].map(|data| Matrix::from_vec(0, 0, data));
            let [dq, dk, dv] = &mut found;
            compute.attention_backward(shape, [&q, &k, &v], &[0, 300], &dy, [dq, dk, dv]);
            found
        };
        let [one, three] = [1, 3].map(|threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
        });
        assert_eq!(one, three);
        // By the definition, one query at a time.
        let row = |m: &Matrix, t: usize, head: usize| m.row(t)[head * 8..head * 8 + 8].to_vec();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let mut dk = vec![0f64; 300 * 8];
        for (t, head) in (0..300).flat_map(|t| [(t, 0), (t, 1)]) {
            let seen = (t + 1usize).saturating_sub(100)..t + 1;
            let scores: Vec<f64> =
                seen.clone().map(|s| dot(&row(&q, t, head), k.row(s)) / 8f64.sqrt()).collect();
            let total: f64 = scores.iter().map(|s| s.exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| s.exp() / total).collect();
            let dp: Vec<f64> = seen.clone().map(|s| dot(&row(&dy, t, head), v.row(s))).collect();
            let along: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for (at, s) in seen.enumerate() {
                let ds = p[at] * (dp[at] - along) / 8f64.sqrt();
                for (element, q) in row(&q, t, head).iter().enumerate() {
                    dk[s * 8 + element] += ds * f64::from(*q);
                }
            }
        }
        let dk: Vec<f32> = dk.into_iter().map(|x| x as f32).collect();
        assert_close(one[1].as_slice(), &dk, 1e-5, "f32 sums");
    }
}
