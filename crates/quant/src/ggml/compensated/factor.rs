//! Factors of small diagonal blocks of a Hessian.

/// Of the symmetric `block`, `m` by `m`, the upper triangle U with block⁻¹ = UᵀU, into `upper`. The diagonal is raised
/// until the block is positive definite; a block that is nothing of the kind counts for no more than a diagonal.
///
/// block = M·Mᵀ with M upper, from the last column back; U = M⁻¹.
pub(super) fn invert(block: &[f64], m: usize, upper: &mut [f64], scratch: &mut [f64]) {
    let mean = (0..m).map(|i| block[i * m + i]).sum::<f64>() / m as f64;
    let floor = if mean > 0.0 && mean.is_finite() { mean } else { 1.0 };
    let mut raised = 0.0;
    while !decompose(block, m, raised, scratch) {
        raised = if raised == 0.0 { 1e-8 * floor } else { 10.0 * raised };
        if raised > floor {
            scratch[..m * m].fill(0.0);
            (0..m).for_each(|i| scratch[i * m + i] = floor.sqrt());
            break;
        }
    }
    upper[..m * m].fill(0.0);
    for column in 0..m {
        upper[column * m + column] = 1.0 / scratch[column * m + column];
        for row in (0..column).rev() {
            let sum: f64 = (row + 1..=column).map(|k| scratch[row * m + k] * upper[k * m + column]).sum();
            upper[row * m + column] = -sum / scratch[row * m + row];
        }
    }
}

fn decompose(block: &[f64], m: usize, raised: f64, out: &mut [f64]) -> bool {
    out[..m * m].fill(0.0);
    for column in (0..m).rev() {
        let mut diagonal = block[column * m + column] + raised;
        for k in column + 1..m {
            diagonal -= out[column * m + k] * out[column * m + k];
        }
        // What cancels to the last bits is no number to divide by.
        if diagonal.is_nan() || diagonal <= 1e-10 * block[column * m + column].abs() {
            return false;
        }
        let diagonal = diagonal.sqrt();
        out[column * m + column] = diagonal;
        for row in 0..column {
            let mut value = block[row * m + column];
            for k in column + 1..m {
                value -= out[row * m + k] * out[column * m + k];
            }
            out[row * m + column] = value / diagonal;
        }
    }
    true
}

/// `UᵀU` for an upper triangle.
pub(super) fn square(upper: &[f64], m: usize, out: &mut [f64]) {
    for i in 0..m {
        for j in 0..m {
            out[i * m + j] = (0..=i.min(j)).map(|k| upper[k * m + i] * upper[k * m + j]).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_square_of_the_factor_is_the_inverse() {
        let block = [4.0, 1.0, 0.5, 1.0, 3.0, -0.25, 0.5, -0.25, 2.0];
        let (mut upper, mut scratch, mut inverse) = ([0.0; 9], [0.0; 9], [0.0; 9]);
        invert(&block, 3, &mut upper, &mut scratch);
        square(&upper, 3, &mut inverse);
        for i in 0..3 {
            for j in 0..3 {
                let found: f64 = (0..3).map(|k| block[i * 3 + k] * inverse[k * 3 + j]).sum();
                assert!((found - f64::from(u8::from(i == j))).abs() < 1e-12, "{i} {j}: {found}");
            }
        }
    }

    #[test]
    fn a_block_that_is_not_positive_definite_gives_finite_numbers() {
        for block in [[0.0; 4], [1.0; 4], [1.0, 9.0, 9.0, 1.0], [f64::NAN; 4]] {
            let (mut upper, mut scratch) = ([0.0; 4], [0.0; 4]);
            invert(&block, 2, &mut upper, &mut scratch);
            assert!(upper.iter().all(|value| value.is_finite()), "{upper:?}");
        }
    }
}
