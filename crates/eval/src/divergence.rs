//! How far a model's predictions lie from the dense model's.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::Model;
use bitmill_report::{Divergence, quantile};
use bitmill_tensor::Matrix;
use bitmill_text::Windows;

use crate::perplexity::{PerplexityScore, Steps, check_finite, score};
use crate::statistics::{clustered_mean, mean};
use crate::walk::{Rows, walk};
use crate::{Error, Progress};

/// The dense model's predictions for some windows, run once for all the models compared with it.
///
/// Its logits lie in a temporary file without a name where they fit the bound given, as the f32 that the model
/// returned; otherwise they are computed again alongside each model.
#[derive(Debug)]
pub struct DenseReference<'m> {
    windows: Windows,
    perplexity: PerplexityScore,
    /// The likeliest token of each row.
    first: Vec<u32>,
    vocab_size: usize,
    logits: Logits<'m>,
}

#[derive(Debug)]
enum Logits<'m> {
    Spooled(File),
    Recomputed(&'m Model),
}

impl<'m> DenseReference<'m> {
    /// Runs the dense model over `windows`, keeping at most `spool_bytes` on disk.
    ///
    /// # Errors
    /// As [`perplexity`](crate::perplexity()). A disk that is full is none: logits are computed again then.
    pub fn build(
        model: &'m Model,
        compute: &Compute,
        windows: &Windows,
        spool_bytes: u64,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        let vocab_size = model.config().vocab_size;
        let rows = windows.len() * windows.length.saturating_sub(1);
        let bytes = rows as u64 * vocab_size as u64 * 4;
        let mut spool = if bytes <= spool_bytes { Spool::create() } else { None };
        let steps = Steps::new(model, windows, progress);
        let (mut nlls, mut row_nlls) = (Vec::with_capacity(rows), Vec::new());
        let (mut first, mut row_first) = (Vec::with_capacity(rows), Vec::new());
        walk(model, compute, windows, 0, &|done, _| steps.first(done), |rows| {
            compute.cross_entropy(rows.logits, rows.targets, &mut row_nlls);
            check_finite(&row_nlls, rows.before, windows.length - 1)?;
            nlls.extend_from_slice(&row_nlls);
            compute.largest(rows.logits, &mut row_first);
            first.extend_from_slice(&row_first);
            spool = spool.take().and_then(|spool| spool.append(rows.logits));
            Ok(())
        })?;
        Ok(Self {
            perplexity: score(model, compute, windows, &nlls, &steps)?,
            windows: windows.clone(),
            first,
            vocab_size,
            logits: spool.map_or(Logits::Recomputed(model), |spool| Logits::Spooled(spool.file)),
        })
    }

    /// The dense model's own score.
    pub fn perplexity(&self) -> &PerplexityScore {
        &self.perplexity
    }

    /// The windows it was run on.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Whether logits come from disk rather than from running the dense model again.
    pub fn is_spooled(&self) -> bool {
        matches!(self.logits, Logits::Spooled(_))
    }
}

/// Scores `model` on the reference's windows, and its divergence from dense over the same targets, in one pass.
///
/// KL(dense‖model) of each target's distribution over all rows of the vocabulary, padded ones as the models give
/// them; the standard error is between windows, as that of perplexity.
///
/// # Errors
/// [`Error::OtherVocabulary`] if the models have not the same number of logits; [`Error::Spool`] if the temporary
/// file cannot be read; otherwise as [`perplexity`](crate::perplexity()).
pub fn against_dense(
    model: &Model,
    compute: &Compute,
    reference: &DenseReference<'_>,
    progress: Progress<'_>,
) -> Result<(PerplexityScore, Divergence), Error> {
    let windows = &reference.windows;
    let (dense, found) = (reference.vocab_size, model.config().vocab_size);
    if dense != found {
        return Err(Error::OtherVocabulary { dense, found });
    }
    let steps = Steps::new(model, windows, progress);
    let (mut nlls, mut row_nlls) = (Vec::new(), Vec::new());
    let (mut kls, mut row_kls) = (Vec::new(), Vec::new());
    let (mut agreed, mut row_first) = (0, Vec::new());
    let compare = |rows: Rows<'_>, dense: &Matrix| {
        compute.cross_entropy(rows.logits, rows.targets, &mut row_nlls);
        check_finite(&row_nlls, rows.before, windows.length - 1)?;
        nlls.extend_from_slice(&row_nlls);
        divergence_rows(compute, dense, &rows, windows, &mut row_kls)?;
        kls.extend_from_slice(&row_kls);
        compute.largest(rows.logits, &mut row_first);
        agreed += row_first.iter().zip(&reference.first[rows.before..]).filter(|(a, b)| a == b).count();
        Ok(())
    };
    match &reference.logits {
        Logits::Spooled(file) => {
            let (mut compare, mut dense, mut bytes) = (compare, Matrix::default(), Vec::new());
            walk(model, compute, windows, 0, &|done, _| steps.first(done), |rows| {
                read_rows(file, rows.before, rows.logits, &mut dense, &mut bytes)
                    .map_err(|source| Error::Spool { source })?;
                compare(rows, &dense)
            })?;
        }
        Logits::Recomputed(dense) => {
            walk_two((dense, compute), (model, compute), windows, &|done| steps.first(done), compare)?;
        }
    }
    let perplexity = score(model, compute, windows, &nlls, &steps)?;
    let (kl_mean, kl_stderr) = clustered_mean(&kls, windows.length - 1);
    let targets = kls.len() as f64;
    kls.sort_by(f64::total_cmp);
    let divergence = Divergence {
        kl_mean,
        kl_stderr,
        kl_median: quantile(&kls, 0.5),
        kl_p90: quantile(&kls, 0.9),
        kl_p99: quantile(&kls, 0.99),
        top1_agreement: agreed as f64 / targets,
    };
    Ok((perplexity, divergence))
}

/// Mean divergence of the fast path from the exact path of the same model, in nats a target.
///
/// # Errors
/// As [`perplexity`](crate::perplexity()).
pub fn fast_path_kl(model: &Model, isa: Isa, windows: &Windows) -> Result<f64, Error> {
    let (exact, fast) = (Compute::new(isa, Path::Exact), Compute::new(isa, Path::Fast));
    let (mut kls, mut row_kls) = (Vec::new(), Vec::new());
    walk_two((model, &exact), (model, &fast), windows, &|_| (), |rows, dense| {
        divergence_rows(&exact, dense, &rows, windows, &mut row_kls)?;
        kls.extend_from_slice(&row_kls);
        Ok(())
    })?;
    Ok(mean(&kls))
}

/// KL of each row, never negative: what rounding leaves of 0 is 0.
fn divergence_rows(
    compute: &Compute,
    dense: &Matrix,
    rows: &Rows<'_>,
    windows: &Windows,
    kls: &mut Vec<f64>,
) -> Result<(), Error> {
    compute.divergence(dense, rows.logits, kls);
    check_finite(kls, rows.before, windows.length - 1)?;
    kls.iter_mut().for_each(|kl| *kl = kl.max(0.0));
    Ok(())
}

/// Walks two models of one vocabulary through the same windows in step: one batch of windows through the first, then
/// through the second.
fn walk_two(
    (dense, dense_compute): (&Model, &Compute),
    (model, compute): (&Model, &Compute),
    windows: &Windows,
    done: &dyn Fn(usize),
    mut visit: impl FnMut(Rows<'_>, &Matrix) -> Result<(), Error>,
) -> Result<(), Error> {
    let per_window = windows.length.saturating_sub(1).max(1);
    let at_once = (crate::walk::rows_at_once(model.config().vocab_size) / per_window).max(1);
    let mut dense_rows: Vec<Matrix> = Vec::new();
    for start in (0..windows.len().max(1)).step_by(at_once) {
        let end = (start + at_once).min(windows.len());
        let tokens = windows.tokens[start * windows.length..end * windows.length].to_vec();
        let batch = Windows { length: windows.length, tokens };
        // A window longer than one pass comes in parts: its dense logits are kept whole meanwhile.
        dense_rows.clear();
        walk(dense, dense_compute, &batch, 0, &|_, _| (), |rows| {
            dense_rows.push(rows.logits.clone());
            Ok(())
        })?;
        let mut parts = dense_rows.iter();
        walk(model, compute, &batch, 0, &|_, _| (), |rows| match parts.next() {
            Some(part) => visit(Rows { before: start * per_window + rows.before, ..rows }, part),
            None => Ok(()),
        })?;
        done(end);
    }
    Ok(())
}

/// The temporary file while it is written.
struct Spool {
    file: File,
    bytes: Vec<u8>,
}

impl Spool {
    fn create() -> Option<Self> {
        match tempfile::tempfile() {
            Ok(file) => Some(Self { file, bytes: Vec::new() }),
            Err(error) => {
                tracing::warn!(
                    "no temporary file for the dense model's logits, so it runs again each time: {error}"
                );
                None
            }
        }
    }

    /// Itself with `logits` at its end; nothing if they could not be written.
    fn append(mut self, logits: &Matrix) -> Option<Self> {
        for row in 0..logits.rows() {
            self.bytes.clear();
            self.bytes.extend(logits.row(row).iter().flat_map(|logit| logit.to_le_bytes()));
            if let Err(error) = self.file.write_all(&self.bytes) {
                tracing::warn!("cannot spool the dense model's logits, so it runs again each time: {error}");
                return None;
            }
        }
        Some(self)
    }
}

/// As many rows as `like` has, from row `first` of the spool on, into `rows`.
fn read_rows(
    mut file: &File,
    first: usize,
    like: &Matrix,
    rows: &mut Matrix,
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    rows.reshape(like.rows(), like.cols());
    bytes.resize(4 * like.cols(), 0);
    file.seek(SeekFrom::Start(first as u64 * bytes.len() as u64))?;
    for row in 0..like.rows() {
        file.read_exact(bytes)?;
        for (logit, bytes) in rows.row_mut(row).iter_mut().zip(bytes.chunks_exact(4)) {
            *logit = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }
    Ok(())
}
