//! Which tensors deserve more bits first, where no table of sensitivities says it.
//!
//! Without calibration: a tensor's loss is its squared error relative to its squared weights, and each further bit a
//! weight takes three quarters of a squared error away. What is gained so per byte orders the tensors.

use bitmill_checkpoint::{Checkpoint, Tensor};
use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_report::Deserving;
use bitmill_tensor::Encoding;
use rayon::prelude::*;

use crate::{Error, Progress};

/// Rows that are unpacked at a time.
const ROWS: usize = 64;

/// The matrices of `model` that lost anything against `dense`, those first that gain most from further bytes.
///
/// # Errors
/// If `dense` lacks a tensor of `model`, or it has another shape there.
pub fn deserving(
    model: &Checkpoint,
    dense: &Checkpoint,
    isa: Isa,
    progress: &dyn Progress,
) -> Result<Vec<Deserving>, Error> {
    let mut out = Vec::new();
    let infos = model.tensors();
    for (done, info) in infos.iter().enumerate() {
        progress.at(done as u64, infos.len() as u64);
        let is_vector = info.shape.len() < 2;
        if is_vector || matches!(info.encoding, Encoding::Float(_)) {
            continue;
        }
        let (ours, theirs) = (model.tensor(&info.name)?, dense.tensor(&info.name)?);
        if theirs.info.shape != info.shape {
            return Err(bitmill_checkpoint::Error::TensorShape {
                checkpoint: dense.name(),
                tensor: info.name.clone(),
                found: theirs.info.shape.clone(),
                expected: info.shape.clone(),
            }
            .into());
        }
        let error = relative_error(&ours, &theirs, isa);
        if error > 0.0 {
            let weights = info.shape.iter().product::<usize>() as f64;
            // One bit a weight, in MB.
            let gain_per_mb = 0.75 * error / (weights / 8.0 / 1e6);
            let (tensor, form) = (info.name.clone(), info.encoding.to_string());
            out.push(Deserving { tensor, tied: 0, form, next: None, error, gain_per_mb });
        }
    }
    out.sort_by(|a, b| b.gain_per_mb.total_cmp(&a.gain_per_mb).then_with(|| a.tensor.cmp(&b.tensor)));
    Ok(out)
}

fn relative_error(ours: &Tensor, theirs: &Tensor, isa: Isa) -> f64 {
    let (our_view, their_view) = (ours.view(), theirs.view());
    let (rows, cols) = (our_view.out_features(), our_view.in_features());
    let sums: Vec<(f64, f64)> = (0..rows.div_ceil(ROWS))
        .into_par_iter()
        .map_init(
            || (vec![0.0_f32; cols], vec![0.0_f32; cols]),
            |(a, b), chunk| {
                let (mut error, mut square) = (0.0, 0.0);
                for row in chunk * ROWS..((chunk + 1) * ROWS).min(rows) {
                    dequantize_rows(isa, &our_view, ours.stored_row(row), a);
                    dequantize_rows(isa, &their_view, theirs.stored_row(row), b);
                    for (a, b) in a.iter().zip(&*b) {
                        let (a, b) = (f64::from(*a), f64::from(*b));
                        error += (a - b) * (a - b);
                        square += b * b;
                    }
                }
                (error, square)
            },
        )
        .collect();
    let (error, square) = sums.iter().fold((0.0, 0.0), |(e, s), (error, square)| (e + error, s + square));
    ours.release();
    theirs.release();
    if square > 0.0 { error / square } else { 0.0 }
}
