//! The error of compensated blocks on matrices whose Hessians lie in a folder, relative to blocks weighed by importance.
//!
//! ```console
//! cargo run --release -p bitmill-calib --example compensated -- MODEL TEXTS dump FOLDER
//! cargo run --release -p bitmill-quant --example compensated_layers -- FOLDER q2_k,q4_k 0,1,3
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_quant::{
    BlockEncoder, BlockSearch, Compensation, Importance, quantize_blocks, quantize_blocks_compensated,
};
use bitmill_tensor::{BlockType, WeightData, WeightView};

/// Rows of each matrix that are looked at.
const ROWS: usize = 256;

struct Case {
    weight: Vec<f32>,
    hessian: Vec<f32>,
    upper: Vec<f32>,
    n: usize,
}

#[allow(clippy::print_stdout, reason = "the table is what it is for")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, blocks, sweeps] = arguments.as_slice() else { return Err("FOLDER BLOCKS SWEEPS".into()) };
    let read = |path: &Path| -> Result<Vec<f32>, std::io::Error> {
        let bytes = std::fs::read(path)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    };
    let mut paths: Vec<_> = std::fs::read_dir(folder)?
        .map(|entry| Ok::<_, std::io::Error>(entry?.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    let mut cases = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "weight")) {
        let (hessian, upper) = (read(&path.with_extension("hessian"))?, read(&path.with_extension("upper"))?);
        let n = hessian.len().isqrt();
        let mut weight = read(path)?;
        weight.truncate(ROWS * n);
        cases.push(Case { weight, hessian, upper, n });
    }
    for block in blocks.split(',') {
        let block = BlockType::parse(block).ok_or("no such block type")?;
        let mut plain = Vec::new();
        let mut line = format!("{block} ");
        for search in [BlockSearch::Ggml, BlockSearch::Best] {
            let mut sum = 0.0;
            for (i, case) in cases.iter().enumerate() {
                let importance: Vec<f32> = (0..case.n).map(|j| case.hessian[j * case.n + j]).collect();
                let encoder = BlockEncoder { block, importance: Some(Importance::new(&importance)?), search };
                let mut bytes = vec![0; case.weight.len() / block.weights() * block.bytes()];
                quantize_blocks(&encoder, case.n, &case.weight, &mut bytes)?;
                let mut decided = vec![0.0; case.weight.len()];
                let view = WeightView::new(
                    case.weight.len() / case.n,
                    case.n,
                    WeightData::Block { block, bytes: &bytes },
                )?;
                dequantize_rows(Isa::best(), &view, 0, &mut decided);
                let error = error(case, &decided);
                if search == BlockSearch::Ggml {
                    plain.push(error);
                }
                sum += (error / plain[i]).ln();
            }
            line += &format!("{search:?} {:.4} ", (sum / cases.len() as f64).exp());
        }
        for sweeps in sweeps.split(',') {
            let options = Compensation { sweeps: sweeps.parse()?, ..Compensation::default() };
            let (mut sum, mut seconds, mut weights) = (0.0, 0.0, 0);
            let mut each = String::new();
            for (case, plain) in cases.iter().zip(&plain) {
                let (mut bytes, mut decided) = (Vec::new(), vec![0.0; case.weight.len()]);
                let started = Instant::now();
                quantize_blocks_compensated(
                    Isa::best(),
                    block,
                    &case.weight,
                    case.n,
                    &case.hessian,
                    &case.upper,
                    &options,
                    &mut bytes,
                    &mut decided,
                )?;
                seconds += started.elapsed().as_secs_f64();
                weights += decided.len();
                let error = error(case, &decided);
                sum += (error / plain).ln();
                each += &format!(" {:.3}", error / plain);
            }
            let nanoseconds = 1e9 * seconds / weights as f64;
            line += &format!(
                "\n  {sweeps} sweeps: {:.4} {nanoseconds:.0} ns/weight |{each}",
                (sum / cases.len() as f64).exp()
            );
        }
        println!("{line}");
    }
    Ok(())
}

/// Σ ΔHΔᵀ.
fn error(case: &Case, decided: &[f32]) -> f64 {
    let n = case.n;
    let mut sum = 0.0;
    for (weight, decided) in case.weight.chunks(n).zip(decided.chunks(n)) {
        let difference: Vec<f32> = weight.iter().zip(decided).map(|(a, b)| b - a).collect();
        for (row, &by) in case.hessian.chunks(n).zip(&difference) {
            let mut sums = [0.0f32; 16];
            for (h, d) in row.as_chunks::<16>().0.iter().zip(difference.as_chunks::<16>().0) {
                for lane in 0..16 {
                    sums[lane] += h[lane] * d[lane];
                }
            }
            sum += f64::from(by) * f64::from(sums.iter().sum::<f32>());
        }
    }
    sum
}
