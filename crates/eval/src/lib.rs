//! Perplexity, divergence from dense, task accuracy.
//!
//! Everything here is a quality figure and so is computed with a [`Compute`](bitmill_kernels::Compute) on the exact
//! path, [`fast_path_kl`] excepted, which measures how far the fast one lies from it. Sums run in f64, in an order
//! that does not depend on the number of threads.
//!
//! | figure | function |
//! |---|---|
//! | perplexity, all targets and second halves | [`perplexity`] |
//! | the same and the divergence from dense, in one pass | [`DenseReference::build`], then [`against_dense`] |
//! | multiple-choice accuracy, flips, McNemar's p | [`tasks`], then [`TaskAnswers::score`] |
//! | all of these later, without the dense model | [`Baseline::record`], then [`Baseline::drift`] |
//! | divergence of the fast path | [`fast_path_kl`] |

mod baseline;
mod divergence;
mod error;
mod perplexity;
mod prompts;
mod quality;
mod sketch;
mod statistics;
mod tasks;
mod walk;

pub use baseline::{Baseline, BaselineHeader, BaselineTask, Drift};
pub use divergence::{DenseReference, against_dense, fast_path_kl};
pub use error::Error;
pub use perplexity::{NllScore, PerplexityScore, perplexity};
pub use prompts::{PromptScore, paired_prompts, prompts};
pub use quality::{Budget, quality};
pub use statistics::{mcnemar_p, mean, standard_error};
pub use tasks::{Answer, TaskAnswers, tasks};

/// Told how much is done, of how much: windows or items.
pub type Progress<'a> = &'a dyn Fn(usize, usize);
