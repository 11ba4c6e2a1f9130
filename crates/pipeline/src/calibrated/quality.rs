//! What a calibrated model lost, on windows that nothing was calibrated on: the last layer's states of both models, which ran
//! side by side, through both heads.

use std::ops::Range;

use bitmill_checkpoint::{Checkpoint, ModelConfig, RoleKind};
use bitmill_eval::{mean, standard_error};
use bitmill_kernels::Compute;
use bitmill_model::Model;
use bitmill_tensor::Matrix;
use bitmill_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::calibrated::Material;
use crate::calibrated::tensor::six_digits;
use crate::plan::PlannedTensor;
use crate::stream::is_larger_than_memory;

/// Rows of logits that are worked on at once.
const LOGIT_ROWS: usize = 256;

/// Quality on held-out windows; figures to six digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Windows of the calibration source that nothing was calibrated on.
    pub windows: usize,
    /// Tokens predicted in them.
    pub targets: usize,
    /// Perplexity of the dense model.
    pub dense_perplexity: f64,
    /// Perplexity of what was written.
    pub perplexity: f64,
    /// Mean divergence of its predictions from the dense model's, nats a token.
    pub kl_mean: f64,
    /// Its standard error, of windows; none of a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_stderr: Option<f64>,
    /// Fraction of positions with the same likeliest token.
    pub top1_agreement: f64,
    /// How what was written goes on with the first of them; none where it does not fit in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<Continuation>,
}

impl HeldOut {
    /// Whether both models gave predictions for all of them.
    pub fn is_finite(&self) -> bool {
        [self.dense_perplexity, self.perplexity, self.kl_mean].into_iter().all(f64::is_finite)
    }
}

/// A few words of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// The beginning of a text.
    pub prompt: String,
    /// The likeliest token each time, up to one that ends the text.
    pub text: String,
}

/// Tokens of a prompt, and those that are to follow.
const PROMPT_TOKENS: usize = 32;
const NEW_TOKENS: usize = 32;

/// How `written` goes on with the beginning of `window`; `None` if its weights take more than half of the machine's memory.
pub(crate) fn continuation(
    compute: &Compute,
    checkpoint: &Checkpoint,
    written: &Model,
    window: &[u32],
) -> Result<Option<Continuation>, Error> {
    let most = written.config().max_positions / 2;
    let prompt = &window[..PROMPT_TOKENS.min(window.len()).min(most)];
    if prompt.is_empty() || is_larger_than_memory(checkpoint.stored_bytes()) {
        return Ok(None);
    }
    let tokenizer = Tokenizer::from_checkpoint(checkpoint)?;
    let text = tokenizer.decode(&written.greedy(compute, prompt, NEW_TOKENS)?)?;
    Ok(Some(Continuation { prompt: tokenizer.decode(prompt)?, text }))
}

/// Compares what the heads of two models make of their states.
///
/// # Shapes
/// `states`, `dense_states`: `[windows · length, hidden_size]`.
pub(crate) fn held_out(
    compute: &Compute,
    (written, states): (&Model, &Matrix),
    (dense, dense_states): (&Model, &Matrix),
    windows: &[&[u32]],
) -> Result<HeldOut, Error> {
    let rows = |range: Range<usize>| -> Vec<usize> { range.collect() };
    let mut sums = Sums::default();
    let mut window_kls = Vec::new();
    for (window, tokens) in windows.iter().enumerate() {
        let (first, before) = (window * tokens.len(), sums.targets);
        let kl_before = sums.kl;
        for start in (0..tokens.len().saturating_sub(1)).step_by(LOGIT_ROWS) {
            let end = (start + LOGIT_ROWS).min(tokens.len() - 1);
            let logits = |model: &Model, states: &Matrix| {
                let mut logits = Matrix::default();
                model.predict(compute, states, &rows(first + start..first + end), &mut logits);
                logits
            };
            sums.add(
                compute,
                &logits(dense, dense_states),
                &logits(written, states),
                &tokens[start + 1..end + 1],
            );
        }
        window_kls.push((sums.kl - kl_before) / (sums.targets - before).max(1) as f64);
    }
    let n = sums.targets.max(1) as f64;
    Ok(HeldOut {
        windows: windows.len(),
        targets: sums.targets,
        dense_perplexity: six_digits((sums.dense_nll / n).exp()),
        perplexity: six_digits((sums.nll / n).exp()),
        kl_mean: six_digits(mean(&window_kls)),
        kl_stderr: (window_kls.len() > 1).then(|| six_digits(standard_error(&window_kls))),
        top1_agreement: six_digits(sums.agreed as f64 / n),
        continuation: None,
    })
}

/// Memory that measuring takes, about: the states of both models, and then the heads' pages with what they make of some rows, or
/// the pages of what was written as it goes on with a text.
pub(crate) fn peak_bytes(
    material: &Material,
    config: &ModelConfig,
    tensors: &[PlannedTensor],
    output_bytes: u64,
) -> u64 {
    if material.held_out == 0 {
        return 0;
    }
    let states = 2 * 4 * (material.held_out * material.length() * config.hidden_size) as u64;
    let tokens = material.length().saturating_sub(1).min(LOGIT_ROWS);
    let logits = 2 * 4 * (tokens * config.vocab_size) as u64;
    let of_kind = |kind| tensors.iter().find(|planned| planned.role.kind == kind);
    let head = of_kind(RoleKind::Output).or_else(|| of_kind(RoleKind::TokenEmbedding));
    let heads = head.map_or(0, |head| head.bytes_before + head.bytes_after);
    let goes_on = if is_larger_than_memory(output_bytes) { 0 } else { output_bytes };
    states + (heads + logits).max(goes_on)
}

#[derive(Default)]
struct Sums {
    targets: usize,
    nll: f64,
    dense_nll: f64,
    kl: f64,
    agreed: usize,
}

impl Sums {
    fn add(&mut self, compute: &Compute, dense: &Matrix, logits: &Matrix, targets: &[u32]) {
        let (mut nlls, mut kls) = (Vec::new(), Vec::new());
        let (mut likeliest, mut dense_likeliest) = (Vec::new(), Vec::new());
        compute.cross_entropy(logits, targets, &mut nlls);
        self.nll += nlls.iter().sum::<f64>();
        compute.cross_entropy(dense, targets, &mut nlls);
        self.dense_nll += nlls.iter().sum::<f64>();
        compute.divergence(dense, logits, &mut kls);
        self.kl += kls.iter().sum::<f64>();
        compute.largest(logits, &mut likeliest);
        compute.largest(dense, &mut dense_likeliest);
        self.agreed += likeliest.iter().zip(&dense_likeliest).filter(|(a, b)| a == b).count();
        self.targets += targets.len();
    }
}
