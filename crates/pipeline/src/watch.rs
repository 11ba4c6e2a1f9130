//! One measurement of a model against a baseline, and the history of them.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use bitmill_checkpoint::Checkpoint;
use bitmill_eval::{Baseline, PromptScore, paired_prompts};
use bitmill_kernels::{Compute, Isa};
use bitmill_report::{PairedDifference, PromptReport, Tasks, WatchReport, WatchSchema, timestamp};
use bitmill_text::{Task, Tokenizer};
use xxhash_rust::xxh3::Xxh3;

use crate::baseline::{fingerprint, fingerprint_of_items};
use crate::{Error, Progress, Sensitivity, Subject, deserving, embedded, most_sensitive, size_on_disk};

/// Windows that are run twice for the noise floor.
const NOISE_WINDOWS: usize = 2;
/// Prompts of a file, at most.
const MOST_PROMPTS: usize = 10_000;
/// Tensors that a report names.
const MOST_DESERVING: usize = 20;

/// What to measure beside the baseline's text.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions<'a> {
    /// The dense model, to compare prompts and weights with.
    pub dense: Option<&'a Checkpoint>,
    /// What each tensor loses in each form: who deserves more bits is taken from it, and not from the weights.
    pub sensitivity: Option<&'a Sensitivity>,
    /// Fresh prompts: JSON lines of `prompt` or `text`.
    pub prompts: Option<PathBuf>,
    /// Leave the baseline's tasks out.
    pub no_tasks: bool,
    /// The relative increase of perplexity that is allowed.
    pub max_drift: Option<f64>,
}

/// Measures the model against `baseline`; prompts without a dense model against the first entry of `history` with the same.
///
/// # Errors
/// If the model has another vocabulary, cannot run, or a file that is asked for cannot be read.
pub fn watch(
    checkpoint: &Checkpoint,
    baseline: &Baseline,
    history: &[WatchReport],
    options: &WatchOptions<'_>,
    progress: &dyn Progress,
) -> Result<WatchReport, Error> {
    let isa = Isa::best();
    let compute = Compute::new(isa, bitmill_kernels::Path::Exact);
    // First, for it takes no time and may be refused.
    let by_table = options.sensitivity.map(|table| most_sensitive(checkpoint, table)).transpose()?;
    let subject = Subject::load(checkpoint)?;
    let told = |done: usize, total: usize| progress.at(done as u64, total as u64);
    progress.begin(&format!("{}: text", subject.name));
    let drift = baseline.drift(&subject.model, &compute, &told)?;
    let noise_floor = baseline.noise(&subject.model, &compute, NOISE_WINDOWS)?;
    let tasks = if options.no_tasks { Tasks::new() } else { flips(&subject, &compute, baseline, progress)? };
    let prompts = match &options.prompts {
        Some(path) => Some(fresh(&subject, &compute, path, history, options.dense, progress)?),
        None => None,
    };
    let mut deserving = match (by_table, options.dense) {
        (Some(by_table), _) => by_table,
        (None, Some(dense)) => {
            progress.begin(&format!("{}: weights", subject.name));
            deserving(checkpoint, dense, isa, progress)?
        }
        (None, None) => Vec::new(),
    };
    deserving.truncate(MOST_DESERVING);
    let nll = PairedDifference { mean: drift.nll_difference, stderr: drift.nll_difference_stderr };
    let of_prompts = prompts.as_ref().and_then(|prompts| prompts.nll);
    let missed = options.max_drift.is_some_and(|bound| {
        std::iter::once(nll).chain(of_prompts).any(|difference| difference.exceeds(bound))
    });
    Ok(WatchReport {
        schema: WatchSchema,
        version: env!("CARGO_PKG_VERSION").into(),
        created: timestamp(),
        model: subject.name.clone(),
        fingerprint: fingerprint(checkpoint, isa)?,
        bytes: size_on_disk(checkpoint),
        against: baseline.header.model.clone(),
        text: baseline.header.text.clone(),
        targets: drift.targets,
        perplexity: drift.perplexity,
        dense_perplexity: drift.dense_perplexity,
        nll,
        kl_mean: drift.kl_mean,
        kl_stderr: drift.kl_stderr,
        kl_sampling_stderr: drift.kl_sampling_stderr,
        top1_agreement: drift.top1_agreement,
        noise_floor,
        tasks,
        prompts,
        deserving,
        deserving_by: options.sensitivity.map(|table| table.measure.name().into()),
        max_drift: options.max_drift,
        missed,
    })
}

/// The baseline's tasks again, with what flipped.
fn flips(
    subject: &Subject,
    compute: &Compute,
    baseline: &Baseline,
    progress: &dyn Progress,
) -> Result<Tasks, Error> {
    let built_in = embedded::tasks(true)?;
    let mut tasks = Tasks::new();
    for (known, dense) in baseline.header.tasks.iter().zip(&baseline.answers) {
        let other = || Error::OtherTask { task: known.name.clone() };
        let task = match &known.file {
            Some(file) => Task::read(Path::new(file))?,
            None => built_in.iter().find(|task| task.name == known.name).cloned().ok_or_else(other)?,
        };
        if fingerprint_of_items(&task, known.items) != known.fingerprint {
            return Err(other());
        }
        progress.begin(&format!("{}: {}", subject.name, known.name));
        let told = |done: usize, total: usize| progress.at(done as u64, total as u64);
        let tokenizer = &subject.tokenizer;
        let answers =
            bitmill_eval::tasks(&subject.model, compute, tokenizer, &[task], Some(known.items), &told)?;
        for answers in answers {
            tasks.insert(known.name.clone(), answers.score(Some(dense))?);
        }
    }
    Ok(tasks)
}

fn fresh(
    subject: &Subject,
    compute: &Compute,
    path: &Path,
    history: &[WatchReport],
    dense: Option<&Checkpoint>,
    progress: &dyn Progress,
) -> Result<PromptReport, Error> {
    let tokens = read_prompts(path, &subject.tokenizer)?;
    let mut hash = Xxh3::new();
    for prompt in &tokens {
        hash.update(&(prompt.len() as u64).to_le_bytes());
        prompt.iter().for_each(|token| hash.update(&token.to_le_bytes()));
    }
    let fingerprint = format!("{:016x}", hash.digest());
    let run = |subject: &Subject| -> Result<Vec<PromptScore>, Error> {
        progress.begin(&format!("{}: prompts", subject.name));
        let told = |done: usize, total: usize| progress.at(done as u64, total as u64);
        Ok(bitmill_eval::prompts(&subject.model, compute, &tokens, &told)?)
    };
    let scores = run(subject)?;
    let nlls: Vec<f64> = scores.iter().map(|score| score.nll).collect();
    let targets: Vec<usize> = scores.iter().map(|score| score.targets).collect();
    let earlier = || {
        let same =
            |prompts: &&PromptReport| prompts.fingerprint == fingerprint && prompts.nlls.len() == nlls.len();
        history.iter().find_map(|entry| {
            Some((entry.created.clone(), entry.prompts.as_ref().filter(same)?.nlls.clone()))
        })
    };
    let reference = match dense {
        Some(dense) => {
            let dense = Subject::load(dense)?;
            Some((dense.name.clone(), run(&dense)?.iter().map(|score| score.nll).collect()))
        }
        None => earlier(),
    };
    let all: usize = targets.iter().sum();
    let nll =
        reference.as_ref().map(|(_, theirs): &(String, Vec<f64>)| paired_prompts(&nlls, theirs, &targets));
    Ok(PromptReport {
        fingerprint,
        targets: all,
        perplexity: (nlls.iter().sum::<f64>() / all as f64).exp(),
        against: reference.map(|(name, _)| name),
        nll,
        nlls,
    })
}

fn read_prompts(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
    let mut prompts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |problem: String| Error::MalformedLine { path: path.into(), line: index + 1, problem };
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let prompt = ["prompt", "text"].iter().find_map(|key| value.get(key)?.as_str());
        let prompt = prompt.ok_or_else(|| wrong("there is no `prompt` and no `text`".into()))?;
        let tokens = tokenizer.encode_document(prompt)?;
        if tokens.len() < 3 {
            return Err(wrong(format!("the prompt has {} tokens; at least 3 are needed", tokens.len())));
        }
        prompts.push(tokens);
        if prompts.len() > MOST_PROMPTS {
            return Err(wrong(format!("more than {MOST_PROMPTS} prompts")));
        }
    }
    match prompts.is_empty() {
        true => {
            Err(Error::MalformedLine { path: path.into(), line: 1, problem: "there is no prompt".into() })
        }
        false => Ok(prompts),
    }
}

/// The measurements in a history file; none if there is no such file.
///
/// # Errors
/// [`Error::MalformedLine`] naming the line that is none.
pub fn read_history(path: &Path) -> Result<Vec<WatchReport>, Error> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|source| Error::ReadFile { path: path.into(), source })?,
    };
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error: serde_json::Error| Error::MalformedLine {
            path: path.into(),
            line: index + 1,
            problem: error.to_string(),
        })
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// Appends a measurement as one line.
///
/// # Errors
/// [`Error::WriteFile`].
pub fn append_history(path: &Path, report: &WatchReport) -> Result<(), Error> {
    let failed = |source| Error::WriteFile { path: path.into(), source };
    let mut line = serde_json::to_vec(report).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    // In one piece, so that two watchers' lines do not mix.
    file.write_all(&line).map_err(failed)?;
    file.sync_all().map_err(failed)
}
