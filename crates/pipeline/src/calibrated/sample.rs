//! Some of many inputs, evenly spread, though they come batch after batch.

use bitmill_tensor::Matrix;

/// Inputs that are kept.
pub(crate) struct Sample {
    wanted: usize,
    /// How many inputs there are going to be, about.
    expected: usize,
    met: usize,
    cols: usize,
    rows: Vec<f32>,
}

impl Sample {
    /// Of about `expected` inputs `wanted`, or all if they are fewer.
    pub fn new(wanted: usize, expected: usize) -> Self {
        Self { wanted: wanted.min(expected), expected, met: 0, cols: 0, rows: Vec::new() }
    }

    /// Takes what it wants of the first `rows` of `x`.
    pub fn add(&mut self, x: &Matrix, rows: usize) {
        self.cols = x.cols();
        for row in 0..rows {
            let at = self.met + row;
            // Of inputs 0..expected those at `place · expected / wanted`.
            let place = (at * self.wanted).div_ceil(self.expected.max(1));
            if place < self.wanted && place * self.expected / self.wanted == at {
                self.rows.extend_from_slice(x.row(row));
            }
        }
        self.met += rows;
    }

    /// `[inputs, in_features]`.
    pub fn as_slice(&self) -> &[f32] {
        &self.rows
    }

    /// `[inputs, in_features]`.
    pub fn into_matrix(self) -> Matrix {
        Matrix::from_vec(self.rows.len() / self.cols.max(1), self.cols, self.rows)
    }
}

/// Inputs of equal length, each divided by its root mean square. A few tokens, the first of a text above all, have activations
/// hundreds of times as large as others (arXiv:2402.17762); what they lose vanishes in a residual stream as large, and if it
/// were counted as it is, scales and ranges would be theirs alone.
pub(crate) fn of_one_length(mut x: Matrix) -> Matrix {
    for row in 0..x.rows() {
        let row = x.row_mut(row);
        let square: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        let rms = (square / row.len().max(1) as f64).sqrt();
        if rms > 0.0 {
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / rms) as f32);
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(wanted: usize, expected: usize, batches: &[usize]) -> Vec<f32> {
        let mut sample = Sample::new(wanted, expected);
        let mut next = 0;
        for &rows in batches {
            let values = (next..next + rows).map(|at| at as f32).collect();
            sample.add(&Matrix::from_vec(rows, 1, values), rows);
            next += rows;
        }
        sample.into_matrix().into_vec()
    }

    #[test]
    fn inputs_of_one_length_point_where_they_did() {
        let x = of_one_length(Matrix::from_vec(3, 2, vec![3e4, 4e4, 0.0, 0.0, -7.0, 1.0]));
        let root = 0.5f32.sqrt();
        let expected = [1.2 * root, 1.6 * root, 0.0, 0.0, -1.4, 0.2];
        assert!(x.as_slice().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{x:?}");
        let wild = of_one_length(Matrix::from_vec(1, 2, vec![f32::INFINITY, 1.0]));
        assert!(wild.as_slice()[0].is_nan(), "what is not finite stays so");
    }

    #[test]
    fn inputs_are_evenly_spread_however_they_come() {
        assert_eq!(taken(4, 10, &[10]), [0.0, 2.0, 5.0, 7.0]);
        assert_eq!(taken(4, 10, &[3, 1, 6]), [0.0, 2.0, 5.0, 7.0]);
        assert_eq!(taken(4, 3, &[3]), [0.0, 1.0, 2.0]);
        assert_eq!(taken(2, 2, &[5]), [0.0, 1.0], "more came than were expected");
        assert_eq!(taken(4, 10, &[4]), [0.0, 2.0], "and fewer");
        assert!(taken(4, 0, &[0]).is_empty());
    }
}
