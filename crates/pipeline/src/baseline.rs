//! Recording a baseline of the dense model, and reading one.

use std::path::Path;

use bitmill_checkpoint::Checkpoint;
use bitmill_eval::{Baseline, BaselineHeader, BaselineTask};
use bitmill_kernels::{Compute, Isa, dequantize_rows};
use bitmill_report::timestamp;
use bitmill_text::Task;
use xxhash_rust::xxh3::Xxh3;

use crate::measure::answer;
use crate::{Error, Material, Progress, Request, Subject, TaskChoice};

/// Runs the dense model over `material`, gathered for `request`, and keeps what a later measurement needs. `source` is
/// the model as the command line named it.
///
/// # Errors
/// If the model cannot run, or its results are not finite.
pub fn record_baseline(
    (checkpoint, source): (&Checkpoint, &str),
    subject: &Subject,
    request: &Request,
    material: &Material,
    isa: Isa,
    progress: &dyn Progress,
) -> Result<Baseline, Error> {
    let compute = Compute::new(isa, bitmill_kernels::Path::Exact);
    let answers = answer(subject, &compute, material, progress)?;
    let files = match &request.tasks {
        TaskChoice::Files(files) => files.as_slice(),
        TaskChoice::BuiltIn | TaskChoice::Nothing => &[],
    };
    let tasks =
        material.tasks.iter().zip(&answers).enumerate().map(|(place, (task, answers))| BaselineTask {
            name: task.name.clone(),
            file: files.get(place).map(|file| {
                let whole = std::path::absolute(file).unwrap_or_else(|_| file.clone());
                whole.to_string_lossy().into_owned()
            }),
            items: answers.answers.len(),
            fingerprint: fingerprint_of_items(task, answers.answers.len()),
        });
    let header = BaselineHeader {
        version: env!("CARGO_PKG_VERSION").into(),
        created: timestamp(),
        model: subject.name.clone(),
        source: source.into(),
        fingerprint: fingerprint(checkpoint, isa)?,
        vocab_size: 0,
        text: material.text.clone(),
        window: 0,
        windows: 0,
        entries: 0,
        kl_floor: 0.0,
        tasks: tasks.collect(),
    };
    progress.begin(&format!("{}: baseline", subject.name));
    let told = |done, total| progress.at(done as u64, total as u64);
    Ok(Baseline::record(header, &subject.model, &compute, &material.windows, answers, &told)?)
}

/// Reads a baseline.
///
/// # Errors
/// [`Error::ReadFile`], or that it is none.
pub fn read_baseline(path: &Path) -> Result<Baseline, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
    Ok(Baseline::from_bytes(&path.display().to_string(), &bytes)?)
}

/// XXH3 of every tensor's name, shape, encoding and first row: cheap, and another for another model.
pub(crate) fn fingerprint(checkpoint: &Checkpoint, isa: Isa) -> Result<String, Error> {
    let mut hash = Xxh3::new();
    let mut row = Vec::new();
    for info in checkpoint.tensors() {
        hash.update(format!("{} {:?} {}\n", info.name, info.shape, info.encoding).as_bytes());
        let tensor = checkpoint.tensor(&info.name)?;
        let view = tensor.view();
        row.clear();
        row.resize(view.in_features(), 0.0_f32);
        dequantize_rows(isa, &view, 0, &mut row);
        row.iter().for_each(|value| hash.update(&value.to_bits().to_le_bytes()));
    }
    Ok(format!("{:016x}", hash.digest()))
}

/// XXH3 of a task's first items.
pub(crate) fn fingerprint_of_items(task: &Task, items: usize) -> String {
    let mut hash = Xxh3::new();
    for item in task.items.iter().take(items) {
        // Lengths first, so that no two lists of texts read the same.
        for text in std::iter::once(&item.context).chain(&item.choices) {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&(item.answer as u64).to_le_bytes());
    }
    format!("{:016x}", hash.digest())
}
