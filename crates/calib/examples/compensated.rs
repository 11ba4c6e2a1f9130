//! What compensated blocks cost a model's predictions, beside blocks of an importance matrix: every matrix of the decoder
//! layers in one block type, layer after layer, each with the Hessians of what the quantized layers before it give.
//!
//! ```console
//! cargo run --release -p bitmill-calib --example compensated -- MODEL TEXTS q2_k,q3_k plain,best,3 [WINDOWS [EVAL]]
//! ```
//!
//! TEXTS holds calib-en.txt and eval-{wikitext2,zh,code}.txt. A number is compensation with so many sweeps.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path as FilePath;
use std::time::Instant;

use bitmill_checkpoint::{Checkpoint, Role, RoleKind, Tensor};
use bitmill_kernels::{Compute, Isa, Path, dequantize_rows};
use bitmill_model::{Model, Stage};
use bitmill_quant::{
    BlockEncoder, BlockSearch, Compensation, Importance, quantize_blocks, quantize_blocks_compensated,
};
use bitmill_tensor::{BlockType, Encoding, FloatType, Matrix, WeightData, WeightView};
use bitmill_text::{Tokenizer, Windows};
use rayon::prelude::*;

const LENGTH: usize = 512;
const TEXTS: [&str; 3] = ["wikitext2", "zh", "code"];

struct Statistics {
    hessian: Vec<f32>,
    upper: Vec<f32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts, blocks, ways, rest @ ..] = arguments.as_slice() else {
        return Err("MODEL TEXTS BLOCKS WAYS [WINDOWS [EVAL]]".into());
    };
    let number = |at: usize, default: usize| rest.get(at).map_or(Ok(default), |text| text.parse());
    let checkpoint = Checkpoint::open(FilePath::new(model))?;
    let compute = Compute::new(Isa::best(), Path::Exact);
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
    let windows = |file: String, limit| -> Result<Windows, Box<dyn Error>> {
        let text = std::fs::read_to_string(FilePath::new(texts).join(file))?;
        Ok(Windows::of_text(&tokenizer, &text, LENGTH, Some(limit))?)
    };
    let calibration = windows("calib-en.txt".into(), number(0, 16)?)?;
    let dense = Model::load(&checkpoint)?;
    if blocks == "dump" {
        return dump(&checkpoint, &dense, &compute, &calibration, FilePath::new(ways));
    }
    let evaluation: Vec<Windows> = TEXTS
        .iter()
        .map(|text| windows(format!("eval-{text}.txt"), number(1, 4)?))
        .collect::<Result<_, _>>()?;
    let dense_logits: Vec<Vec<Matrix>> =
        evaluation.iter().map(|windows| logits(&dense, &compute, windows)).collect::<Result<_, _>>()?;
    let importance = of_dense(&dense, &compute, &calibration)?;
    for block in blocks.split(',') {
        let block = BlockType::parse(block).ok_or("no such block type")?;
        for way in ways.split(',') {
            let mut model = Model::load(&checkpoint)?;
            let (seconds, error) =
                quantize(&checkpoint, &mut model, &compute, &calibration, block, way, &importance)?;
            let mut line = format!("{block} {way:>6}: {seconds:6.1} s error {error:.4e} KL");
            for ((windows, dense), text) in evaluation.iter().zip(&dense_logits).zip(TEXTS) {
                let mut sum = 0.0;
                let mut kls = Vec::new();
                for (logits, dense) in logits(&model, &compute, windows)?.iter().zip(dense) {
                    compute.divergence(dense, logits, &mut kls);
                    sum += kls.iter().sum::<f64>() / kls.len() as f64;
                }
                line += &format!(" {text} {:.5}", sum / windows.len() as f64);
            }
            #[allow(clippy::print_stdout, reason = "the table is what it is for")]
            {
                println!("{line}");
            }
        }
    }
    Ok(())
}

fn logits(model: &Model, compute: &Compute, windows: &Windows) -> Result<Vec<Matrix>, Box<dyn Error>> {
    windows
        .iter()
        .map(|window| {
            let mut stage = model.enter(compute, &[window])?;
            while stage.layer() < model.config().n_layers {
                model.pass_layer(compute, &mut stage, |_, _, _| ());
            }
            let mut logits = Matrix::default();
            let rows: Vec<usize> = (0..window.len()).collect();
            model.leave(compute, &mut stage, &rows, &mut logits);
            Ok(logits)
        })
        .collect()
}

/// Of each matrix, by layer and kind.
type Squares = HashMap<(usize, RoleKind), Vec<f32>>;

/// The mean squares of what the dense model's matrices multiply.
fn of_dense(model: &Model, compute: &Compute, windows: &Windows) -> Result<Squares, Box<dyn Error>> {
    let texts: Vec<&[u32]> = windows.iter().collect();
    let mut stage = model.enter(compute, &texts)?;
    let mut out = HashMap::new();
    for layer in 0..model.config().n_layers {
        model.pass_layer(compute, &mut stage, |kind, _, x| {
            let mut sums = vec![0.0f64; x.cols()];
            for row in x.as_slice().chunks(x.cols()) {
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            }
            let means = sums.iter().map(|sum| (sum / x.rows() as f64) as f32).collect();
            out.insert((layer, kind), means);
        });
    }
    Ok(out)
}

const SEEN: [RoleKind; 4] = [RoleKind::AttnQ, RoleKind::AttnOutput, RoleKind::FfnGate, RoleKind::FfnDown];
const MATRICES: [(RoleKind, usize); 7] = [
    (RoleKind::AttnQ, 0),
    (RoleKind::AttnK, 0),
    (RoleKind::AttnV, 0),
    (RoleKind::AttnOutput, 1),
    (RoleKind::FfnGate, 2),
    (RoleKind::FfnUp, 2),
    (RoleKind::FfnDown, 3),
];

fn quantize(
    checkpoint: &Checkpoint,
    model: &mut Model,
    compute: &Compute,
    windows: &Windows,
    block: BlockType,
    way: &str,
    importance: &HashMap<(usize, RoleKind), Vec<f32>>,
) -> Result<(f64, f64), Box<dyn Error>> {
    let texts: Vec<&[u32]> = windows.iter().collect();
    let mut stage = model.enter(compute, &texts)?;
    let (mut seconds, mut error) = (0.0, 0.0);
    let sweeps: Option<usize> = way.parse().ok();
    for layer in 0..model.config().n_layers {
        let mut statistics = HashMap::new();
        if sweeps.is_some() {
            let mut ahead = Stage::default();
            ahead.copy_from(&stage);
            model.pass_layer(compute, &mut ahead, |kind, _, x| {
                if let Some(place) = SEEN.iter().position(|seen| *seen == kind) {
                    statistics.insert(place, of_inputs(compute, x, 0.01));
                }
            });
        }
        let started = Instant::now();
        for (kind, place) in MATRICES {
            let role = Role { layer: Some(layer), expert: None, kind };
            let tensor = checkpoint.tensor_with_role(role).ok_or("a matrix is missing")?;
            let (weight, n) = widened(compute, &tensor);
            let mut bytes = Vec::new();
            if let Some(sweeps) = sweeps {
                let Statistics { hessian, upper } = &statistics[&place];
                let mut decided = vec![0.0; weight.len()];
                let options = Compensation { sweeps, ..Compensation::default() };
                let isa = compute.isa();
                error += quantize_blocks_compensated(
                    isa,
                    block,
                    &weight,
                    n,
                    hessian,
                    upper,
                    &options,
                    &mut bytes,
                    &mut decided,
                )?
                .error;
            } else {
                bytes.resize(weight.len() / block.weights() * block.bytes(), 0);
                let encoder = BlockEncoder {
                    block,
                    importance: Some(Importance::new(&importance[&(layer, kind)])?),
                    search: if way == "best" { BlockSearch::Best } else { BlockSearch::Ggml },
                };
                quantize_blocks(&encoder, n, &weight, &mut bytes)?;
            }
            model.replace(tensor.stored_as(Encoding::Block(block), bytes)?).ok_or("no such matrix")?;
        }
        seconds += started.elapsed().as_secs_f64();
        if sweeps.is_some() {
            model.pass_layer(compute, &mut stage, |_, _, _| ());
        }
    }
    Ok((seconds, error))
}

fn widened(compute: &Compute, tensor: &Tensor) -> (Vec<f32>, usize) {
    let view = tensor.view();
    let n = view.in_features();
    let mut weight = vec![0.0; view.out_features() * n];
    dequantize_rows(compute.isa(), &view, 0, &mut weight);
    (weight, n)
}

/// The mean of 2·x·xᵀ and the factor of its inverse.
fn of_inputs(compute: &Compute, x: &Matrix, damping: f64) -> Statistics {
    let (tokens, n) = (x.rows(), x.cols());
    let mut transposed = Matrix::zeros(n, tokens);
    for (t, row) in x.as_slice().chunks(n).enumerate() {
        for (c, &value) in row.iter().enumerate() {
            transposed.as_mut_slice()[c * tokens + t] = value;
        }
    }
    let bytes: Vec<u8> = transposed.as_slice().iter().flat_map(|value| value.to_le_bytes()).collect();
    let data = WeightData::Float { float: FloatType::F32, bytes: &bytes };
    let mut hessian = Matrix::default();
    compute.matmul(&WeightView::new(n, tokens, data).expect("f32"), &transposed, &mut hessian);
    let mut hessian = hessian.into_vec();
    hessian.iter_mut().for_each(|value| *value *= 2.0 / tokens as f32);
    let upper = factor(&hessian, n, damping);
    Statistics { hessian, upper }
}

/// U with H⁻¹ = UᵀU: H = M·Mᵀ from the last column back, U = M⁻¹.
fn factor(hessian: &[f32], n: usize, damping: f64) -> Vec<f32> {
    let mean = (0..n).map(|i| f64::from(hessian[i * n + i])).sum::<f64>() / n as f64;
    let mut a: Vec<f64> = hessian.iter().map(|&value| f64::from(value)).collect();
    (0..n).for_each(|i| a[i * n + i] += damping * mean);
    // Row j becomes column j of M, so that all loops run along rows.
    for j in (0..n).rev() {
        let pivot = a[j * n + j].sqrt();
        a[j * n..=j * n + j].iter_mut().for_each(|value| *value /= pivot);
        let (before, row) = a.split_at_mut(j * n);
        let row = &row[..j];
        before.chunks_mut(n).enumerate().for_each(|(i, out)| {
            let by = row[i];
            out[..=i].iter_mut().zip(row).for_each(|(out, value)| *out -= by * value);
        });
    }
    // Row `row` of U solves Mᵀ·y = e_row.
    let mut upper = vec![0.0f32; n * n];
    upper.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
        let mut y = vec![0.0; n];
        y[row] = 1.0 / a[row * n + row];
        for k in row + 1..n {
            y[k] = -dot(&a[k * n + row..k * n + k], &y[row..k]) / a[k * n + k];
        }
        out.iter_mut().zip(y).for_each(|(out, y)| *out = y as f32);
    });
    upper
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// Weights, Hessians and factors of some layers as plain floats, for `examples/compensated_layers.rs` of bitmill-quant.
fn dump(
    checkpoint: &Checkpoint,
    model: &Model,
    compute: &Compute,
    windows: &Windows,
    folder: &FilePath,
) -> Result<(), Box<dyn Error>> {
    let texts: Vec<&[u32]> = windows.iter().collect();
    let mut stage = model.enter(compute, &texts)?;
    let write = |name: String, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.join(name), bytes)
    };
    for layer in 0..model.config().n_layers {
        let mut statistics = HashMap::new();
        model.pass_layer(compute, &mut stage, |kind, _, x| {
            if let Some(place) = SEEN.iter().position(|seen| *seen == kind)
                && layer % 12 == 2
            {
                statistics.insert(place, of_inputs(compute, x, 0.01));
            }
        });
        for (kind, place) in MATRICES {
            let Some(Statistics { hessian, upper }) = statistics.get(&place) else { continue };
            let role = Role { layer: Some(layer), expert: None, kind };
            let tensor = checkpoint.tensor_with_role(role).ok_or("a matrix is missing")?;
            write(format!("{layer}-{kind:?}.weight"), &widened(compute, &tensor).0)?;
            write(format!("{layer}-{kind:?}.hessian"), hessian)?;
            write(format!("{layer}-{kind:?}.upper"), upper)?;
        }
    }
    Ok(())
}
