//! What quality is measured on, and measuring it: shared by `eval` and `compare`.

use std::path::PathBuf;

use bitmill_checkpoint::Checkpoint;
use bitmill_eval::{DenseReference, TaskAnswers};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::Model;
use bitmill_report::Quality;
use bitmill_text::{Task, Tokenizer, Windows};

use crate::{Error, Progress, embedded};

/// Dense log-probabilities that are kept on disk at most; beyond it the dense model runs again beside each other one.
const SPOOL_BYTES: u64 = 2 << 30;

/// What to measure quality on, as asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// A UTF-8 text; the built-in one if absent.
    pub text: Option<PathBuf>,
    /// Tokens of a window; if absent, 256 for models of millet's shape (what it was trained on), else 512.
    pub window: Option<usize>,
    /// Windows at most; `None`: all.
    pub windows: Option<usize>,
    /// Which tasks.
    pub tasks: TaskChoice,
    /// Items of each task at most; `None`: all.
    pub items: Option<usize>,
}

/// Which tasks to measure accuracy on.
#[derive(Debug, Clone, Default)]
pub enum TaskChoice {
    /// Those that come with the program.
    #[default]
    BuiltIn,
    /// These JSON-lines files.
    Files(Vec<PathBuf>),
    /// None.
    Nothing,
}

/// What to measure quality on, read and cut into tokens.
#[derive(Debug)]
pub struct Material {
    /// What the text is called in reports.
    pub text: String,
    /// The text in tokens.
    pub windows: Windows,
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Items of each task at most; `None`: all.
    pub items: Option<usize>,
}

impl Material {
    /// Reads what `request` names and encodes it for `subject`.
    ///
    /// # Errors
    /// If a file cannot be read or is malformed, or the text is shorter than one window.
    pub fn gather(subject: &Subject, request: &Request) -> Result<Self, Error> {
        let is_millet = embedded::has_shape(&subject.config);
        let (name, text) = match &request.text {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| Error::ReadFile { path: path.clone(), source })?;
                (path.display().to_string(), text)
            }
            None => ("built-in text".into(), embedded::divided(embedded::TEXT, &subject.tokenizer)),
        };
        let window = request.window.unwrap_or(if is_millet { 256 } else { 512 });
        let windows = Windows::of_text(&subject.tokenizer, &text, window, request.windows)?;
        if windows.is_empty() {
            let tokens = subject.tokenizer.encode_document(&text)?.len();
            return Err(Error::ShortText { text: name, tokens, window });
        }
        let tasks = match &request.tasks {
            TaskChoice::BuiltIn => embedded::tasks(is_millet)?,
            TaskChoice::Files(paths) => {
                paths.iter().map(|path| Ok(Task::read(path)?)).collect::<Result<_, Error>>()?
            }
            TaskChoice::Nothing => Vec::new(),
        };
        Ok(Self { text: name, windows, tasks, items: request.items })
    }
}

/// A model that is measured.
#[derive(Debug)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// It, ready to run.
    pub model: Model,
    /// Its own tokenizer.
    pub tokenizer: Tokenizer,
    config: bitmill_checkpoint::ModelConfig,
}

impl Subject {
    /// Maps the model and reads its tokenizer.
    ///
    /// # Errors
    /// If either is malformed.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, Error> {
        Ok(Self {
            name: checkpoint.name(),
            model: Model::load(checkpoint)?,
            tokenizer: Tokenizer::from_checkpoint(checkpoint)?,
            config: checkpoint.config().clone(),
        })
    }
}

/// The dense model's side of a comparison.
#[derive(Debug)]
pub struct Dense<'m> {
    reference: DenseReference<'m>,
    answers: Vec<TaskAnswers>,
}

impl<'m> Dense<'m> {
    /// Runs the dense model over `material`.
    ///
    /// # Errors
    /// If the model cannot run, or its results are not finite.
    pub fn measure(
        subject: &'m Subject,
        material: &Material,
        isa: Isa,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let compute = Compute::new(isa, Path::Exact);
        progress.begin(&format!("{}: text", subject.name));
        let told = |done, total| progress.at(done as u64, total as u64);
        let reference =
            DenseReference::build(&subject.model, &compute, &material.windows, SPOOL_BYTES, &told)?;
        let answers = answer(subject, &compute, material, progress)?;
        Ok(Self { reference, answers })
    }

    /// Its own figures.
    ///
    /// # Errors
    /// As [`bitmill_eval::quality`].
    pub fn quality(&self) -> Result<Quality, Error> {
        Ok(bitmill_eval::quality(self.reference.perplexity(), None, &self.answers, None)?)
    }
}

/// Measures `subject` over `material`, against `dense` if there is one; the windows are the dense model's then.
///
/// # Errors
/// If the model cannot run, its results are not finite, or the two models have different vocabularies.
pub fn measure_quality(
    subject: &Subject,
    material: &Material,
    dense: Option<&Dense<'_>>,
    isa: Isa,
    progress: &dyn Progress,
) -> Result<Quality, Error> {
    let compute = Compute::new(isa, Path::Exact);
    progress.begin(&format!("{}: text", subject.name));
    let told = |done, total| progress.at(done as u64, total as u64);
    let (perplexity, divergence) = match dense {
        Some(dense) => {
            let (perplexity, divergence) =
                bitmill_eval::against_dense(&subject.model, &compute, &dense.reference, &told)?;
            (perplexity, Some(divergence))
        }
        None => (bitmill_eval::perplexity(&subject.model, &compute, &material.windows, &told)?, None),
    };
    let answers = answer(subject, &compute, material, progress)?;
    let dense_answers = dense.map(|dense| dense.answers.as_slice());
    Ok(bitmill_eval::quality(&perplexity, divergence, &answers, dense_answers)?)
}

pub(crate) fn answer(
    subject: &Subject,
    compute: &Compute,
    material: &Material,
    progress: &dyn Progress,
) -> Result<Vec<TaskAnswers>, Error> {
    progress.begin(&format!("{}: tasks", subject.name));
    let told = |done, total| progress.at(done as u64, total as u64);
    Ok(bitmill_eval::tasks(
        &subject.model,
        compute,
        &subject.tokenizer,
        &material.tasks,
        material.items,
        &told,
    )?)
}
