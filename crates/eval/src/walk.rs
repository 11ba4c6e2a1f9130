//! Runs windows of tokens through a model, some at a time, so that products see many tokens and logits stay few.

use bitmill_kernels::Compute;
use bitmill_model::{Model, Sequence, Want};
use bitmill_tensor::Matrix;
use bitmill_text::Windows;

use crate::{Error, Progress};

/// Tokens of one forward pass: products with weights gain nothing from more.
pub(crate) const BATCH_TOKENS: usize = 2048;

/// Memory of one forward pass's logits.
const LOGITS_BYTES: usize = 256 << 20;

/// The most rows of logits that a pass may return.
pub(crate) fn rows_at_once(vocab_size: usize) -> usize {
    (LOGITS_BYTES / (4 * vocab_size.max(1))).clamp(16, BATCH_TOKENS)
}

/// Rows of logits, window after window, position after position.
pub(crate) struct Rows<'a> {
    /// `[rows, vocab_size]`.
    pub logits: &'a Matrix,
    /// The token that follows each row's position.
    pub targets: &'a [u32],
    /// How many rows came before these.
    pub before: usize,
}

/// Hands the logits of every position from `first` to a window's last but one to `visit`, for all windows in order.
///
/// The last position predicts a token that the window does not hold, so it is not run.
///
/// # Errors
/// [`Error::NoWindows`], the model's errors, or what `visit` returns.
pub(crate) fn walk(
    model: &Model,
    compute: &Compute,
    windows: &Windows,
    first: usize,
    progress: Progress<'_>,
    visit: impl FnMut(Rows<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let limit = rows_at_once(model.config().vocab_size);
    walk_by(limit, model, compute, windows, first, progress, visit)
}

/// [`walk`] with at most `limit` positions a pass.
fn walk_by(
    limit: usize,
    model: &Model,
    compute: &Compute,
    windows: &Windows,
    first: usize,
    progress: Progress<'_>,
    mut visit: impl FnMut(Rows<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let length = windows.length;
    if windows.is_empty() {
        return Err(Error::NoWindows { length });
    }
    // Of three tokens the last is the second half's only target.
    if length < 3 {
        return Err(Error::WindowTooShort { length });
    }
    // The model sees all tokens but the windows' last, which are targets all the same.
    let vocab_size = model.config().vocab_size;
    if let Some(&token) = windows.tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(bitmill_model::Error::TokenOutOfRange { token, vocab_size }.into());
    }
    let run = length - 1;
    // Several windows a pass where they fit; otherwise a window in equal parts, each after the cache of the last.
    let at_once = (limit / run).max(1);
    let part = run.div_ceil(run.div_ceil(limit));
    let mut caches: Vec<_> = (0..at_once.min(windows.len())).map(|_| model.new_cache()).collect();
    let (mut logits, mut targets, mut before) = (Matrix::default(), Vec::new(), 0);
    for start in (0..windows.len()).step_by(at_once) {
        let batch = start..(start + at_once).min(windows.len());
        caches.iter_mut().for_each(|cache| cache.truncate(0));
        for from in (0..run).step_by(part) {
            let positions = from..(from + part).min(run);
            let wanted = first.saturating_sub(from).min(positions.len());
            let mut sequences: Vec<_> = batch
                .clone()
                .zip(&mut caches)
                .map(|(window, cache)| Sequence {
                    tokens: &windows.get(window)[positions.clone()],
                    cache,
                    want: Want::From(wanted),
                })
                .collect();
            model.forward(compute, &mut sequences, &mut logits)?;
            if wanted == positions.len() {
                continue;
            }
            targets.clear();
            for window in batch.clone() {
                targets
                    .extend_from_slice(&windows.get(window)[positions.start + wanted + 1..positions.end + 1]);
            }
            visit(Rows { logits: &logits, targets: &targets, before })?;
            before += targets.len();
        }
        progress(batch.end, windows.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_checkpoint::Checkpoint;
    use bitmill_kernels::{Isa, Path};
    use bitmill_testkit::{Variant, assert_close, tiny};

    #[test]
    fn logits_do_not_depend_on_how_windows_are_cut_into_passes() {
        let folder = tiny(Variant::Qwen2);
        let model = Model::load(&Checkpoint::open(folder.path()).unwrap()).unwrap();
        let compute = Compute::new(Isa::best(), Path::Exact);
        let windows = Windows::new((0..5 * 12).map(|i| i * 37 % 320).collect(), 12, None);
        let run = |limit, first| {
            let (mut logits, mut targets, mut seen) = (Vec::new(), Vec::new(), Vec::new());
            let progress = |done, total| assert!(done <= total);
            walk_by(limit, &model, &compute, &windows, first, &progress, |rows| {
                assert_eq!(rows.before, targets.len());
                assert!(rows.targets.len() <= limit.max(1) && rows.logits.rows() == rows.targets.len());
                logits.extend_from_slice(rows.logits.as_slice());
                targets.extend_from_slice(rows.targets);
                seen.push(rows.targets.len());
                Ok(())
            })
            .unwrap();
            (logits, targets, seen)
        };
        let (whole, targets, seen) = run(2048, 0);
        assert_eq!(seen, [5 * 11]);
        let expected: Vec<u32> = windows.iter().flat_map(|window| &window[1..]).copied().collect();
        assert_eq!(targets, expected);
        // 4 fits no whole window (three parts of at most 4), 11 one, 25 two.
        for (limit, passes) in [(4, 15), (11, 5), (25, 3)] {
            let (parts, part_targets, seen) = run(limit, 0);
            assert_eq!((&part_targets, seen.len()), (&targets, passes));
            assert_close(&parts, &whole, 1e-5, "sums in another order");
        }
        for limit in [4, 25] {
            let (late, late_targets, _) = run(limit, 6);
            let expected: Vec<u32> = windows.iter().flat_map(|window| &window[7..]).copied().collect();
            assert_eq!(late_targets, expected);
            let expected: Vec<f32> =
                whole.chunks(11 * 320).flat_map(|window| &window[6 * 320..]).copied().collect();
            assert_close(&late, &expected, 1e-5, "sums in another order");
        }
    }
}
