//! What a form does to a unit, without a file: the error of some rows, or the whole unit rounded.

use bitmill_checkpoint::Tensor;
use bitmill_kernels::{Compute, dequantize_rows};
use bitmill_quant::Importance;
use bitmill_tensor::{Encoding, FloatType, Matrix, WeightData, WeightView};
use rayon::prelude::*;

use crate::Error;

use crate::search::candidate::{Candidate, Unit};

/// Weights of a tensor whose rounding is looked at: errors of some hundred rows are those of all within a few percent.
const SAMPLE_WEIGHTS: usize = 1 << 18;
/// Rows that are looked at, at least.
const SAMPLE_ROWS: usize = 64;
/// Weights that are widened to f32 at once when a whole tensor is rounded.
const CHUNK_WEIGHTS: usize = 1 << 24;

/// The squared error of `unit` in each of its candidates, relative to the square of what is rounded: of its output for
/// `inputs`, or of its weights without them. `None` for a candidate that cannot hold the weights.
///
/// Rows evenly spread over the tensor stand for all of it.
///
/// # Shapes
/// `inputs`: `[tokens, in_features]`.
///
/// # Errors
/// [`Error::Quantize`] for a weight that is not finite.
pub(crate) fn errors(
    compute: &Compute,
    unit: &Unit,
    tensors: &[Tensor],
    inputs: Option<&Matrix>,
) -> Result<Vec<Option<f64>>, Error> {
    let mut sums = vec![Some(0.0f64); unit.candidates.len()];
    let mut energy = 0.0;
    for (place, tensor) in tensors.iter().enumerate() {
        let weight = sample(compute, tensor)?;
        let (rows, cols) = (weight.rows(), weight.cols());
        energy += square(compute, &weight, inputs);
        // Every row stands for as many of the tensor's.
        let mut decided = vec![0.0; rows * cols];
        for (candidate, sum) in unit.candidates.iter().zip(&mut sums) {
            let rounding = candidate.rounding(&tensor.info, unit.importance(place));
            let Some(so_far) = sum else { continue };
            if rounding.encode_shared(compute.isa(), cols, weight.as_slice(), &mut decided).is_err()
                || decided.iter().any(|value| !value.is_finite())
            {
                *sum = None;
                continue;
            }
            decided.iter_mut().zip(weight.as_slice()).for_each(|(decided, weight)| *decided -= weight);
            let difference = Matrix::from_vec(rows, cols, std::mem::take(&mut decided));
            *so_far += square(compute, &difference, inputs);
            decided = difference.into_vec();
        }
        tensor.release();
    }
    let relative = |sum: f64| if energy > 0.0 { sum / energy } else { 0.0 };
    Ok(sums.into_iter().map(|sum| sum.map(relative)).collect())
}

/// Rows of `tensor`, evenly spread, widened; as they lie in the checkpoint.
fn sample(compute: &Compute, tensor: &Tensor) -> Result<Matrix, Error> {
    let view = tensor.view();
    let (rows, cols) = (view.out_features(), view.in_features());
    let count = (SAMPLE_WEIGHTS / cols.max(1)).max(SAMPLE_ROWS).min(rows);
    let mut weight = Matrix::zeros(count, cols);
    for place in 0..count {
        let row = place * rows / count;
        dequantize_rows(compute.isa(), &view, row, weight.row_mut(place));
        if let Some(col) = weight.row(place).iter().position(|value| !value.is_finite()) {
            return Err(Error::Quantize {
                tensor: tensor.info.name.clone(),
                source: bitmill_quant::Error::NonFinite { row, col, value: weight.row(place)[col] },
            });
        }
    }
    Ok(weight)
}

/// `‖inputs · weightᵀ‖²`, or `‖weight‖²`.
fn square(compute: &Compute, weight: &Matrix, inputs: Option<&Matrix>) -> f64 {
    let squares = |values: &[f32]| {
        // Sums of chunks, added in their order: threads change nothing.
        let chunks: Vec<f64> = values
            .par_chunks(1 << 14)
            .map(|chunk| chunk.iter().map(|&value| f64::from(value) * f64::from(value)).sum())
            .collect();
        chunks.iter().sum()
    };
    let Some(inputs) = inputs else { return squares(weight.as_slice()) };
    let bytes: Vec<u8> = weight.as_slice().iter().flat_map(|value| value.to_le_bytes()).collect();
    let data = WeightData::Float { float: FloatType::F32, bytes: &bytes };
    let view = WeightView::new(weight.rows(), weight.cols(), data).expect("a matrix of f32");
    let mut outputs = Matrix::default();
    compute.matmul(&view, inputs, &mut outputs);
    squares(outputs.as_slice())
}

/// `tensor` as `candidate` would store it with its columns' `importance`, rows in the order in which it stores them.
///
/// # Errors
/// [`Error::Quantize`] if the form cannot hold a weight.
pub(crate) fn rounded(
    compute: &Compute,
    tensor: &Tensor,
    candidate: Candidate,
    importance: Option<Importance<'_>>,
) -> Result<Tensor, Error> {
    let view = tensor.view();
    let (rows, cols) = (view.out_features(), view.in_features());
    let rounding = candidate.rounding(&tensor.info, importance);
    let encoding = rounding.encoding;
    let failed = |source| Error::Quantize { tensor: tensor.info.name.clone(), source };
    let mut bytes = Vec::new();
    let (mut weight, mut decided) = (Vec::new(), Vec::new());
    let chunk_rows = (CHUNK_WEIGHTS / cols.max(1)).max(1);
    for first in (0..rows).step_by(chunk_rows) {
        let chunk = chunk_rows.min(rows - first);
        weight.resize(chunk * cols, 0.0);
        decided.resize(chunk * cols, 0.0);
        weight
            .par_chunks_mut(cols)
            .enumerate()
            .for_each(|(row, out)| dequantize_rows(compute.isa(), &view, first + row, out));
        let parts = rounding
            .encode_shared(compute.isa(), cols, &weight, &mut decided)
            .map_err(|error| failed(error.relocate(first)))?;
        match encoding {
            // They have several parts; their values as floats are the same numbers.
            Encoding::Grouped(_) | Encoding::Scaled(_) | Encoding::Sparse { .. } => {
                bytes.extend(decided.iter().flat_map(|value| value.to_le_bytes()))
            }
            Encoding::Float(_) | Encoding::Block(_) => bytes.extend_from_slice(&parts.codes),
        }
    }
    let stored = match encoding {
        Encoding::Grouped(_) | Encoding::Scaled(_) | Encoding::Sparse { .. } => {
            Encoding::Float(FloatType::F32)
        }
        other => other,
    };
    Ok(tensor.stored_as(stored, bytes).expect("whole rows of what was encoded"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_checkpoint::Checkpoint;
    use bitmill_kernels::{Isa, Path};
    use bitmill_testkit::{Variant, noise, tiny};

    use crate::Format;
    use crate::search::candidate::units;

    fn widened(tensor: &Tensor) -> Vec<f32> {
        let view = tensor.view();
        let mut out = vec![0.0; view.out_features() * view.in_features()];
        dequantize_rows(Isa::scalar(), &view, 0, &mut out);
        out
    }

    #[test]
    fn errors_are_those_of_the_rounded_tensors() {
        let folder = tiny(Variant::Llama);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let compute = Compute::new(Isa::best(), Path::Exact);
        for format in [Format::Gguf, Format::CompressedTensors] {
            for unit in units(&checkpoint, format).iter().take(6) {
                let tensors: Vec<Tensor> =
                    unit.names().iter().map(|name| checkpoint.tensor(name).unwrap()).collect();
                let cols = tensors[0].view().in_features();
                let inputs = Matrix::from_vec(5, cols, noise("inputs", 5 * cols));
                let found = [
                    errors(&compute, unit, &tensors, None).unwrap(),
                    errors(&compute, unit, &tensors, Some(&inputs)).unwrap(),
                ];
                for (place, &candidate) in unit.candidates.iter().enumerate() {
                    let (mut sums, mut energies) = ([0.0f64; 2], [0.0f64; 2]);
                    for tensor in &tensors {
                        let dense = widened(tensor);
                        let other = widened(&rounded(&compute, tensor, candidate, None).unwrap());
                        for (dense, other) in dense.chunks(cols).zip(other.chunks(cols)) {
                            let difference: Vec<f64> =
                                dense.iter().zip(other).map(|(a, b)| f64::from(a - b)).collect();
                            sums[0] += difference.iter().map(|d| d * d).sum::<f64>();
                            energies[0] += dense.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
                            for x in inputs.as_slice().chunks(cols) {
                                let x = || x.iter().map(|&x| f64::from(x));
                                sums[1] += x().zip(&difference).map(|(x, d)| x * d).sum::<f64>().powi(2);
                                energies[1] +=
                                    x().zip(dense).map(|(x, &w)| x * f64::from(w)).sum::<f64>().powi(2);
                            }
                        }
                    }
                    for kind in 0..2 {
                        let (found, expected) = (found[kind][place].unwrap(), sums[kind] / energies[kind]);
                        let bound = 1e-5 * expected + 1e-14;
                        assert!((found - expected).abs() <= bound, "{candidate:?}: {found} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named() {
        let folder = tiny(Variant::Llama);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let compute = Compute::new(Isa::best(), Path::Exact);
        let unit = &units(&checkpoint, Format::Gguf)[1];
        let tensor = checkpoint.tensor(&unit.names()[0]).unwrap();
        let mut values = widened(&tensor);
        values[3] = f32::NAN;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let broken = tensor.stored_as(Encoding::Float(FloatType::F32), bytes).unwrap();
        let error = errors(&compute, unit, &[broken], None).unwrap_err().to_string();
        assert!(error.contains(&tensor.info.name), "{error}");
    }
}
