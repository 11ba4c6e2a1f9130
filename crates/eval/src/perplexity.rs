//! Perplexity over fixed windows.

use bitmill_kernels::Compute;
use bitmill_model::Model;
use bitmill_text::Windows;

use crate::statistics::clustered_mean;
use crate::walk::walk;
use crate::{Error, Progress};

/// Mean negative log-likelihood of some targets, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NllScore {
    /// The mean.
    pub mean: f64,
    /// Its standard error, between windows: tokens of one window are not independent samples. Of a single window:
    /// between its tokens.
    pub stderr: f64,
    /// How many targets.
    pub targets: usize,
}

impl NllScore {
    fn of(nlls: &[f64], per_window: usize) -> Self {
        let (mean, stderr) = clustered_mean(nlls, per_window);
        Self { mean, stderr, targets: nlls.len() }
    }

    /// exp of the mean.
    pub fn perplexity(&self) -> f64 {
        self.mean.exp()
    }

    /// The perplexity's standard error, by the delta method: perplexity · stderr.
    pub fn perplexity_stderr(&self) -> f64 {
        self.perplexity() * self.stderr
    }
}

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerplexityScore {
    /// Every target but each window's first.
    pub all: NllScore,
    /// As llama.cpp's perplexity tool scores windows of N: tokens N/2+1 to N−1, each window's first token replaced by
    /// BOS where the model asks for BOS.
    pub second_half: NllScore,
    /// Windows scored.
    pub windows: usize,
    /// Tokens in a window.
    pub window: usize,
}

/// Scores every window, told apart from every other.
///
/// # Errors
/// [`Error::NoWindows`], [`Error::WindowTooShort`], [`Error::NotFiniteInWindow`], or the model's own.
pub fn perplexity(
    model: &Model,
    compute: &Compute,
    windows: &Windows,
    progress: Progress<'_>,
) -> Result<PerplexityScore, Error> {
    let steps = Steps::new(model, windows, progress);
    let nlls = nlls_of(model, compute, windows, 0, &|done| steps.first(done))?;
    score(model, compute, windows, &nlls, &steps)
}

/// Completes the score of a pass that gave `nlls`.
pub(crate) fn score(
    model: &Model,
    compute: &Compute,
    windows: &Windows,
    nlls: &[f64],
    steps: &Steps<'_>,
) -> Result<PerplexityScore, Error> {
    let (length, per_window) = (windows.length, windows.length - 1);
    // The row of position p scores token p + 1.
    let half = length / 2;
    let after_bos = match &steps.after_bos {
        Some(windows) => nlls_of(model, compute, windows, half, &|done| steps.second(done))?,
        None => nlls.chunks_exact(per_window).flat_map(|window| &window[half..]).copied().collect(),
    };
    Ok(PerplexityScore {
        all: NllScore::of(nlls, per_window),
        second_half: NllScore::of(&after_bos, per_window - half),
        windows: windows.len(),
        window: length,
    })
}

/// Negative log-likelihoods of the targets of positions from `first` on, window after window.
pub(crate) fn nlls_of(
    model: &Model,
    compute: &Compute,
    windows: &Windows,
    first: usize,
    done: &dyn Fn(usize),
) -> Result<Vec<f64>, Error> {
    let mut nlls = Vec::with_capacity(windows.tokens.len());
    let mut row_nlls = Vec::new();
    walk(model, compute, windows, first, &|windows, _| done(windows), |rows| {
        compute.cross_entropy(rows.logits, rows.targets, &mut row_nlls);
        check_finite(&row_nlls, rows.before, windows.length.saturating_sub(1 + first))?;
        nlls.extend_from_slice(&row_nlls);
        Ok(())
    })?;
    Ok(nlls)
}

/// The window of the first value that is no number, if one is.
pub(crate) fn check_finite(values: &[f64], before: usize, per_window: usize) -> Result<(), Error> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(row) => Err(Error::NotFiniteInWindow { window: (before + row) / per_window.max(1) }),
        None => Ok(()),
    }
}

/// The passes that a score takes: a second one where the second halves are to be scored after BOS.
pub(crate) struct Steps<'a> {
    progress: Progress<'a>,
    windows: usize,
    after_bos: Option<Windows>,
}

impl<'a> Steps<'a> {
    pub fn new(model: &Model, windows: &Windows, progress: Progress<'a>) -> Self {
        let bos = model.config().bos.filter(|_| model.config().add_bos);
        let after_bos = bos.filter(|&bos| windows.iter().any(|window| window[0] != bos)).map(|bos| {
            let mut after_bos = windows.clone();
            after_bos.tokens.chunks_mut(windows.length).for_each(|window| window[0] = bos);
            after_bos
        });
        Self { progress, windows: windows.len(), after_bos }
    }

    fn total(&self) -> usize {
        if self.after_bos.is_some() { 2 * self.windows } else { self.windows }
    }

    pub fn first(&self, done: usize) {
        (self.progress)(done, self.total());
    }

    pub fn second(&self, done: usize) {
        (self.progress)(self.windows + done, self.total());
    }
}
