//! An importance matrix of a model, from text.

use std::path::PathBuf;

use bitmill_calib::SumsOfSquares;
use bitmill_checkpoint::{Checkpoint, Imatrix};
use bitmill_kernels::{Compute, Isa, Path as ComputePath};
use bitmill_model::Model;
use bitmill_text::{Tokenizer, Windows};

use crate::{Error, Progress, embedded};

/// Tokens that run together: each layer is read once for all of them, and their activations are what is held.
const TOKENS_AT_ONCE: usize = 2048;

/// What an importance matrix is made of.
#[derive(Debug, Clone)]
pub struct ImatrixOptions {
    /// A UTF-8 text; the built-in calibration text if absent.
    pub text: Option<PathBuf>,
    /// Tokens of a window, fewer where the model's context is shorter. llama-imatrix has 512.
    pub window: usize,
    /// Windows to run at most.
    pub windows: Option<usize>,
}

/// Runs the model of `checkpoint` over windows of the text and sums the squares of what each of its matrices multiplies, as
/// llama-imatrix does: windows do not overlap, the text's rest is dropped, and where the model begins a text with BOS every
/// window's first token is replaced by it.
///
/// # Errors
/// [`Error::ShortText`] if the text has less than one window, and whatever keeps the model from being run.
pub fn imatrix(
    checkpoint: &Checkpoint,
    options: &ImatrixOptions,
    progress: &dyn Progress,
) -> Result<Imatrix, Error> {
    let tokenizer = Tokenizer::from_checkpoint(checkpoint)?;
    let (name, text) = embedded::calibration(options.text.as_deref(), &tokenizer)?;
    let model = Model::load(checkpoint)?;
    let window = options.window.min(model.config().max_positions);
    let mut windows = Windows::of_text(&tokenizer, &text, window, options.windows)?;
    if windows.is_empty() {
        let tokens = tokenizer.encode_document(&text)?.len();
        return Err(Error::ShortText { text: name, tokens, window });
    }
    if let Some(bos) = tokenizer.bos_to_add() {
        windows.tokens.iter_mut().step_by(window).for_each(|token| *token = bos);
    }
    progress.begin(&format!("{}: importance", checkpoint.name()));
    let compute = Compute::new(Isa::best(), ComputePath::Exact);
    let mut sums = SumsOfSquares::default();
    let texts: Vec<&[u32]> = windows.iter().collect();
    let mut done = 0;
    for texts in texts.chunks((TOKENS_AT_ONCE / window).max(1)) {
        sums.add(&model, &compute, texts)?;
        done += texts.len() as u64;
        progress.at(done, windows.len() as u64);
    }
    let entries = sums.finish(&model)?;
    progress.end();
    Ok(Imatrix {
        entries,
        datasets: vec![name],
        chunk_count: u32::try_from(windows.len()).unwrap_or(u32::MAX),
        chunk_size: u32::try_from(window).unwrap_or(u32::MAX),
    })
}
