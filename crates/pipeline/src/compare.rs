//! The main job: each strategy compressed, read back from disk, and measured, in turn; then models that were made before.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_kernels::Isa;
use bitmill_report::{CompareReport, CompareSchema, Failure, Machine, Row, Settings, Speed, timestamp};
use bitmill_text::Windows;

use crate::card::CARD;
use crate::compress::beside;
use crate::layout::RECORD;
use crate::made::{self, DENSE, Made};
use crate::measure::{Dense, Material, Request, Subject, measure_quality};
use crate::notes::notes;
use crate::{
    Error, Format, Plan, PlanOptions, Progress, Recipe, Resolved, compress, own_weights, preset, resolve,
    size_on_disk,
};

/// Windows over which the fast path is compared with the exact one: it costs two forward passes, and its divergence
/// shows in few.
const FAST_PATH_WINDOWS: usize = 8;

/// Times a model: the one at a path, or without one the dense model itself.
///
/// The caller decides where that runs. In a process of its own, peak memory is the model's alone; in this one it would
/// count whatever earlier strategies left behind.
pub type Stopwatch<'a> = &'a (dyn Fn(Option<&Path>) -> Result<Speed, Error> + Sync);

/// What to compare, and on what.
pub struct CompareOptions<'a> {
    /// Strategies, in the order of the rows.
    pub recipes: Vec<Recipe>,
    /// Models that were made before, whose rows come after those; see [`tell_apart`](crate::tell_apart).
    pub also: Vec<Made>,
    /// Text and tasks.
    pub request: Request,
    /// Times each model.
    pub stopwatch: Stopwatch<'a>,
    /// Where compressed models are written; each is removed once measured unless `keep`.
    pub work: PathBuf,
    /// Leave them there.
    pub keep: bool,
    /// Choices of each plan.
    pub plan: PlanOptions,
    /// Of the token ids that are timed.
    pub seed: u64,
}

/// One recipe of each kind that is written, pruning first, with groups that divide every row of the model.
pub fn default_recipes(checkpoint: &Checkpoint) -> Vec<Recipe> {
    let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
    let fits =
        |name: &&str| preset(name).is_some_and(|recipe| Plan::new(checkpoint, &recipe, &options).is_ok());
    let groups = ["w4a16_g128", "w4a16_g64", "w4a16_g32"].into_iter().find(fits);
    let pruned = ["prune_50", "prune_50_sparse", "depth_25"];
    let stored = ["q8_0", "q4_k_m", "q4_0", "w8a16"];
    pruned.into_iter().chain(stored).chain(groups).chain(["mixed_4.5"]).filter_map(preset).collect()
}

/// Measures the dense model, then every recipe of `options` and every model that was made before. What fails is listed with
/// its reason; the others are measured all the same.
///
/// # Errors
/// If the dense model itself cannot be measured, or text and tasks cannot be read; [`Error::MadeWhereWritten`] if a model that
/// was made before lies where compressed ones are to be written.
pub fn compare(
    checkpoint: &Checkpoint,
    options: &CompareOptions<'_>,
    progress: &dyn Progress,
) -> Result<CompareReport, Error> {
    refuse_overwriting(options)?;
    let isa = Isa::best();
    let subject = Subject::load(checkpoint)?;
    let material = Material::gather(&subject, &options.request)?;
    let weights = own_weights(checkpoint);
    let dense_bytes = size_on_disk(checkpoint);
    progress.begin(&format!("{}: latency", subject.name));
    let speed = (options.stopwatch)(None)?;
    let dense = Dense::measure(&subject, &material, isa, progress)?;
    let quality = dense.quality()?;
    let mut rows = vec![Row {
        strategy: DENSE.into(),
        format: dense_format(checkpoint).into(),
        bytes: dense_bytes,
        ratio: 1.0,
        bits_per_weight: bits_per_weight(dense_bytes, weights),
        speed,
        recovery: quality.recovery(&quality),
        quality,
        kl_fast_path: None,
        predicted_kl: None,
        compress_seconds: None,
        recipe: None,
        path: None,
        notes: Vec::new(),
    }];
    let mut failed = Vec::new();
    let run =
        Run { checkpoint, options, material: &material, subject: &subject, dense: &dense, isa, progress };
    let strategies = options.recipes.iter().enumerate().map(Asked::Recipe);
    for asked in strategies.chain(options.also.iter().map(Asked::Made)) {
        let measured = match asked {
            Asked::Recipe((index, recipe)) => run.strategy(index, recipe),
            Asked::Made(made) => run.made(made),
        };
        match measured {
            Ok(mut row) => {
                row.ratio = dense_bytes as f64 / row.bytes.max(1) as f64;
                row.bits_per_weight = bits_per_weight(row.bytes, weights);
                row.recovery = row.quality.recovery(&rows[0].quality);
                rows.push(row);
            }
            Err(error) => failed.push(Failure {
                strategy: asked.name().into(),
                error: error.to_string(),
                hint: error.hint(),
            }),
        }
    }
    progress.end();
    let threads = rayon::current_num_threads();
    Ok(CompareReport {
        schema: CompareSchema,
        version: env!("CARGO_PKG_VERSION").into(),
        created: timestamp(),
        model: checkpoint.name(),
        weights,
        machine: Machine::read(isa.name(), threads),
        settings: Settings {
            text: material.text.clone(),
            window: material.windows.length,
            windows: options.request.windows,
            items: options.request.items,
            full: options.request.windows.is_none() && options.request.items.is_none(),
            seed: options.seed,
            threads,
        },
        rows,
        failed,
    })
}

/// What a row is asked for by.
#[derive(Clone, Copy)]
enum Asked<'a> {
    /// With its place among recipes.
    Recipe((usize, &'a Recipe)),
    Made(&'a Made),
}

impl Asked<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Recipe((_, recipe)) => &recipe.name,
            Self::Made(made) => &made.name,
        }
    }
}

/// Refuses to write compressed models where one lies that was made before.
fn refuse_overwriting(options: &CompareOptions<'_>) -> Result<(), Error> {
    let work = &options.work;
    let in_the_way = |made: &&Made| made.holds(work) || made.lies_in(work);
    match options.also.iter().find(in_the_way) {
        Some(made) if !options.recipes.is_empty() => {
            Err(Error::MadeWhereWritten { path: made.path.clone(), folder: work.clone() })
        }
        _ => Ok(()),
    }
}

/// What every strategy is run with.
struct Run<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a CompareOptions<'a>,
    material: &'a Material,
    subject: &'a Subject,
    dense: &'a Dense<'a>,
    isa: Isa,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    /// Compresses, reads back, measures. What depends on the dense model's size and accuracy is filled in by the caller.
    fn strategy(&self, index: usize, recipe: &Recipe) -> Result<Row, Error> {
        let began = Instant::now();
        let Resolved { recipe, predicted_kl } =
            resolve(self.checkpoint, recipe, &self.options.plan, self.progress)?;
        let plan = Plan::new(self.checkpoint, &recipe, &self.options.plan)?;
        let path = self.options.work.join(file_name(index, &recipe));
        // Of an earlier comparison that was killed, with other weights or another recipe perhaps.
        bitmill_checkpoint::discard_partial(&path)?;
        compress(self.checkpoint, &plan, &path, Overwrite::Force, self.progress)?;
        let compress_seconds = began.elapsed().as_secs_f64();
        let measured = Checkpoint::open(&path)
            .map_err(Error::from)
            .and_then(|written| self.measure(&path, &written, self.load(&written, &recipe.name)?));
        if !self.options.keep {
            remove(&path);
        }
        Ok(Row {
            format: plan.recipe.format.name().into(),
            predicted_kl,
            compress_seconds: Some(compress_seconds),
            recipe: Some(plan.recipe.to_toml()),
            notes: notes(&plan, |_| true),
            ..measured?
        })
    }

    /// Measures a model that was made before, as it lies.
    fn made(&self, made: &Made) -> Result<Row, Error> {
        let found = Checkpoint::open(&made.path)?;
        let subject = self.load(&found, &made.name)?;
        made::refuse_foreign(&subject, self.subject, &self.material.windows)?;
        let path = made.path.display().to_string();
        let notes = vec![format!("made before, measured as it lies at {path}")];
        Ok(Row { path: Some(path), notes, ..self.measure(&made.path, &found, subject)? })
    }

    fn load(&self, checkpoint: &Checkpoint, name: &str) -> Result<Subject, Error> {
        let mut subject = Subject::load(checkpoint)?;
        subject.name = name.into();
        Ok(subject)
    }

    /// What is measured of every model, whoever made it.
    fn measure(&self, path: &Path, checkpoint: &Checkpoint, subject: Subject) -> Result<Row, Error> {
        self.progress.begin(&format!("{}: latency", subject.name));
        let speed = (self.options.stopwatch)(Some(path))?;
        let quality = measure_quality(&subject, self.material, Some(self.dense), self.isa, self.progress)?;
        let windows = &self.material.windows;
        let few = Windows::new(windows.tokens.clone(), windows.length, Some(FAST_PATH_WINDOWS));
        let kl_fast_path = bitmill_eval::fast_path_kl(&subject.model, self.isa, &few)?;
        Ok(Row {
            strategy: subject.name,
            format: made::format_of(checkpoint),
            bytes: size_on_disk(checkpoint),
            ratio: 0.0,
            bits_per_weight: 0.0,
            speed,
            quality,
            kl_fast_path: Some(kl_fast_path),
            recovery: None,
            predicted_kl: None,
            compress_seconds: None,
            recipe: None,
            path: None,
            notes: Vec::new(),
        })
    }
}

/// Removes a model, its record and its card. What cannot be removed is in the caller's temporary folder, which goes as a whole.
fn remove(path: &Path) {
    if path.is_dir() {
        let _ = std::fs::remove_dir_all(path);
    } else {
        let _ = std::fs::remove_file(path);
        for name in [RECORD, CARD] {
            let _ = std::fs::remove_file(beside(path, name));
        }
    }
}

fn dense_format(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint.format() {
        bitmill_checkpoint::Format::HuggingFace => "safetensors",
        bitmill_checkpoint::Format::Gguf => "gguf",
    }
}

fn bits_per_weight(bytes: u64, weights: u64) -> f64 {
    bytes as f64 * 8.0 / weights.max(1) as f64
}

/// A name that any file system takes, told apart by the strategy's place.
fn file_name(index: usize, recipe: &Recipe) -> String {
    let plain: String = recipe
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '-' })
        .take(64)
        .collect();
    let extension = if recipe.format == Format::Gguf { ".gguf" } else { "" };
    format!("{}-{plain}{extension}", index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_written_under_names_that_any_file_system_takes() {
        let mut recipe = preset("q4_k_m").unwrap();
        recipe.name = "../w4 & more/".into();
        assert_eq!(file_name(2, &recipe), "3-..-w4---more-.gguf");
    }
}
