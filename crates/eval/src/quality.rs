//! Figures put together as a record.

use bitmill_report::{Divergence, Quality, Tasks};

use crate::{Error, PerplexityScore, TaskAnswers};

/// How much of a text and of each task to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Windows at most; `None`: all.
    pub windows: Option<usize>,
    /// Items of each task at most; `None`: all.
    pub items: Option<usize>,
}

/// The record of what was measured; `dense` are the dense model's answers, where this is not the dense model.
///
/// # Errors
/// [`Error::OtherItems`] if the dense model answered other items of a task.
pub fn quality(
    perplexity: &PerplexityScore,
    divergence: Option<Divergence>,
    tasks: &[TaskAnswers],
    dense: Option<&[TaskAnswers]>,
) -> Result<Quality, Error> {
    let score = |answers: &TaskAnswers| {
        let dense = dense.and_then(|dense| dense.iter().find(|task| task.name == answers.name));
        Ok((answers.name.clone(), answers.score(dense)?))
    };
    let tasks = tasks.iter().map(score).collect::<Result<Tasks, Error>>()?;
    Ok(Quality {
        perplexity: perplexity.all.perplexity(),
        perplexity_stderr: perplexity.all.perplexity_stderr(),
        perplexity_second_half: perplexity.second_half.perplexity(),
        perplexity_second_half_stderr: perplexity.second_half.perplexity_stderr(),
        targets: perplexity.all.targets,
        windows: perplexity.windows,
        window: perplexity.window,
        divergence,
        accuracy: tasks.mean_accuracy(),
        tasks,
    })
}
