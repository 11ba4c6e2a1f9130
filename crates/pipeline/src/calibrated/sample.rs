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
    fn inputs_are_evenly_spread_however_they_come() {
        assert_eq!(taken(4, 10, &[10]), [0.0, 2.0, 5.0, 7.0]);
        assert_eq!(taken(4, 10, &[3, 1, 6]), [0.0, 2.0, 5.0, 7.0]);
        assert_eq!(taken(4, 3, &[3]), [0.0, 1.0, 2.0]);
        assert_eq!(taken(2, 2, &[5]), [0.0, 1.0], "more came than were expected");
        assert_eq!(taken(4, 10, &[4]), [0.0, 2.0], "and fewer");
        assert_eq!(taken(4, 0, &[0]), []);
    }
}
