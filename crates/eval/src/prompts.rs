//! Likelihoods of texts of different lengths, each on its own.

use bitmill_kernels::Compute;
use bitmill_model::Model;
use bitmill_report::PairedDifference;
use bitmill_text::Windows;

use crate::perplexity::nlls_of;
use crate::{Error, Progress};

/// Tokens that a prompt has at least.
const LEAST: usize = 3;

/// What a model makes of one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromptScore {
    /// Sum of the negative log-likelihoods of its tokens but the first, in nats.
    pub nll: f64,
    /// How many these are.
    pub targets: usize,
}

/// Scores each prompt's tokens; what goes beyond the model's context is left out.
///
/// # Errors
/// [`Error::ShortPrompt`]; otherwise as [`perplexity`](crate::perplexity()).
pub fn prompts(
    model: &Model,
    compute: &Compute,
    prompts: &[Vec<u32>],
    progress: Progress<'_>,
) -> Result<Vec<PromptScore>, Error> {
    let context = model.config().max_positions.max(LEAST);
    let mut scores = Vec::with_capacity(prompts.len());
    for (index, tokens) in prompts.iter().enumerate() {
        if tokens.len() < LEAST {
            return Err(Error::ShortPrompt { prompt: index, tokens: tokens.len(), least: LEAST });
        }
        let length = tokens.len().min(context);
        let window = Windows { length, tokens: tokens[..length].to_vec() };
        let nlls = nlls_of(model, compute, &window, 0, &|_| ())?;
        scores.push(PromptScore { nll: nlls.iter().sum(), targets: nlls.len() });
        progress(index + 1, prompts.len());
    }
    Ok(scores)
}

/// Mean difference a target of `nlls` (one sum a prompt) from `reference`, and its standard error between prompts.
///
/// The mean is a ratio of sums, long prompts weighing more; its error is the usual linearization's.
///
/// ```
/// let same = bitmill_eval::paired_prompts(&[3.0, 4.0], &[2.0, 3.0], &[2, 2]);
/// assert_eq!((same.mean, same.stderr), (0.5, 0.0));
/// ```
pub fn paired_prompts(nlls: &[f64], reference: &[f64], targets: &[usize]) -> PairedDifference {
    let all = targets.iter().sum::<usize>() as f64;
    let differences: Vec<f64> = nlls.iter().zip(reference).map(|(ours, theirs)| ours - theirs).collect();
    let mean = differences.iter().sum::<f64>() / all;
    let n = differences.len() as f64;
    let squares: f64 = differences
        .iter()
        .zip(targets)
        .map(|(difference, targets)| (difference - mean * *targets as f64).powi(2))
        .sum();
    PairedDifference { mean, stderr: (squares * n / (n - 1.0)).sqrt() / all }
}
