//! Which tensors deserve more bits first, and the recipe that gives them.
//!
//! Without calibration: a tensor's loss is its squared error relative to its squared weights, and each further bit a
//! weight takes three quarters of a squared error away. What is gained so per byte orders the tensors.

use bitmill_checkpoint::{Checkpoint, Tensor};
use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_report::Deserving;
use bitmill_tensor::{BlockType, Encoding};
use rayon::prelude::*;

use crate::recipe::BlockName;
use crate::{Error, Format, Plan, PlanOptions, Progress, Recipe, Step};

/// Rows that are unpacked at a time.
const ROWS: usize = 64;

/// GGUF types by bits; the first three have blocks of 32 weights.
const LADDER: [(&str, f64); 6] =
    [("q2_k", 2.625), ("q3_k", 3.4375), ("q4_k", 4.5), ("q5_k", 5.5), ("q6_k", 6.5625), ("q8_0", 8.5)];
/// The same for rows that blocks of 256 do not divide.
const NARROW: [(&str, f64); 3] = [("q4_0", 4.5), ("q5_0", 5.5), ("q8_0", 8.5)];

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
            out.push(Deserving { tensor, form, error, gain_per_mb });
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

/// A recipe for `dense` that stores every matrix as `model` does and gives those that deserve it more bits, as far as a
/// file of `budget` bytes allows.
///
/// # Errors
/// [`Error::NotAdjustable`] if `model` is no GGUF file of block types, or takes more than the budget as it is.
pub fn adjust(
    model: &Checkpoint,
    dense: &Checkpoint,
    budget: u64,
    isa: Isa,
    progress: &dyn Progress,
) -> Result<Recipe, Error> {
    let not = |problem: String| Error::NotAdjustable { model: model.name(), problem };
    let lost = deserving(model, dense, isa, progress)?;
    let mut units = Vec::new();
    for lost in &lost {
        let info = &model.tensor(&lost.tensor)?.info;
        let Encoding::Block(block) = info.encoding else {
            return Err(not(format!(
                "`{}` is {}; only GGUF's block types can be adjusted",
                lost.tensor, lost.form
            )));
        };
        let weights = info.shape.iter().product::<usize>() as f64;
        let bits = info.stored_bytes as f64 * 8.0 / weights;
        let cols = info.shape.last().copied().unwrap_or(0);
        units.push(Unit { tensor: &lost.tensor, block, bits, weights, cols, error: lost.error });
    }
    if units.is_empty() {
        return Err(not("none of its matrices is quantized".into()));
    }
    let stored: Vec<(&str, String)> = model
        .tensors()
        .iter()
        .filter(|info| info.shape.len() >= 2 && !units.iter().any(|unit| unit.tensor == info.name))
        .map(|info| (info.name.as_str(), info.encoding.to_string()))
        .collect();
    let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
    let planned = |units: &[Unit]| -> Result<(Recipe, u64), Error> {
        let recipe = recipe(units, &stored)?;
        let bytes = Plan::new(dense, &recipe, &options)?.output_bytes;
        Ok((recipe, bytes))
    };
    let (mut best, bytes) = planned(&units)?;
    if bytes > budget {
        return Err(not(format!("as it is it takes {bytes} bytes, more than the budget of {budget}")));
    }
    // Whoever gains most per byte among those that still fit goes one step up, until none does.
    let mut expected = bytes as f64;
    let mut promoted: Vec<(usize, Unit)> = Vec::new();
    loop {
        let steps = units.iter().enumerate().filter_map(|(place, unit)| Some((place, unit.next()?)));
        let fitting =
            steps.filter(|(place, (_, bits))| expected + units[*place].cost(*bits) <= budget as f64);
        let gain = |step: &(usize, (BlockType, f64))| units[step.0].gain(step.1.1);
        let Some((place, (block, bits))) =
            fitting.max_by(|a, b| gain(a).total_cmp(&gain(b)).then(b.0.cmp(&a.0)))
        else {
            break;
        };
        promoted.push((place, units[place]));
        expected += units[place].cost(bits);
        let unit = &mut units[place];
        unit.error *= 4_f64.powf(unit.bits - bits);
        (unit.block, unit.bits) = (block, bits);
    }
    // Alignment may have taken it over: the last ones go back then.
    while let Some((place, before)) = promoted.pop() {
        let (recipe, bytes) = planned(&units)?;
        if bytes <= budget {
            best = recipe;
            break;
        }
        units[place] = before;
    }
    Ok(best)
}

/// A matrix and how it is stored.
#[derive(Debug, Clone, Copy)]
struct Unit<'a> {
    tensor: &'a str,
    block: BlockType,
    bits: f64,
    weights: f64,
    cols: usize,
    error: f64,
}

impl Unit<'_> {
    /// The next wider type; none where it would gain nothing.
    fn next(&self) -> Option<(BlockType, f64)> {
        let ladder: &[(&str, f64)] = if self.cols.is_multiple_of(256) { &LADDER } else { &NARROW };
        let (name, bits) = ladder.iter().find(|(_, bits)| *bits > self.bits + 0.1 && self.error > 0.0)?;
        Some((BlockType::parse(name)?, *bits))
    }

    /// Bytes that going to `bits` adds.
    fn cost(&self, bits: f64) -> f64 {
        (bits - self.bits) * self.weights / 8.0
    }

    /// Error taken away per byte by going to `bits`.
    fn gain(&self, bits: f64) -> f64 {
        self.error * (1.0 - 4_f64.powf(self.bits - bits)) / self.cost(bits)
    }
}

fn recipe(units: &[Unit], stored: &[(&str, String)]) -> Result<Recipe, Error> {
    let mut steps: Vec<Step> = Vec::new();
    let mut blocks: Vec<BlockType> = Vec::new();
    for unit in units {
        if !blocks.contains(&unit.block) {
            blocks.push(unit.block);
        }
    }
    for block in blocks {
        let targets =
            units.iter().filter(|unit| unit.block == block).map(|unit| unit.tensor.to_owned()).collect();
        steps.push(Step::Block { targets: Some(targets), skip: Vec::new(), block: BlockName(block) });
    }
    // Block types that lost nothing stay what they are.
    for (tensor, form) in stored {
        if let Some(block) = BlockType::parse(form) {
            let targets = Some(vec![(*tensor).to_owned()]);
            steps.push(Step::Block { targets, skip: Vec::new(), block: BlockName(block) });
        }
    }
    Ok(Recipe { name: "adjusted".into(), format: Format::Gguf, steps })
}
