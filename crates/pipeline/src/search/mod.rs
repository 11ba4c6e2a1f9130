//! Mixed precision: how sensitive each tensor is, and the assignment of forms that loses least within a budget.
//!
//! ```text
//! units ──▶ errors of every candidate, divergence of some ──▶ table ──▶ knapsack ──▶ assignment ──▶ recipe
//!           (probe, rounding)                              (sensitivity)    ▲              │
//!                                        divergence of the forms chosen ────┴──────────────┘
//! ```
//!
//! Losses of single units are added up: a prediction, which holds as long as errors are small and independent. The
//! divergence of an assignment as a whole is therefore measured too, and of several rounds the best one is kept.

mod adjust;
mod budget;
mod candidate;
mod knapsack;
mod probe;
mod rounding;
mod sensitivity;
mod write;

use std::path::PathBuf;
use std::time::Instant;

use bitmill_checkpoint::Checkpoint;
use bitmill_kernels::{Compute, Isa};
use bitmill_text::{Tokenizer, Windows};
use serde::Serialize;

pub use adjust::{adjust, most_sensitive};
pub use budget::{Budget, parse_size};
pub use sensitivity::{Measure, OptionSensitivity, Sensitivity, UnitSensitivity};

use crate::importance::Weighed;
use crate::recipe::{Format, Recipe, SearchName, Step};
use crate::{Error, Plan, PlanOptions, Progress, embedded, n_weights};
use candidate::{Candidate, Unit, units};
use knapsack::{Solution, solve};
use probe::{Found, Probe};
use sensitivity::interpolate;

/// Tokens of a calibration window: long enough for attention to matter, short enough for many texts.
const WINDOW: usize = 128;
/// Tokens that are run at least and at most unless told.
const TOKENS: (usize, usize) = (256, 1024);
/// Multiplications that measuring may take before fewer tokens are run: some minutes on a desktop.
const WORK: f64 = 1.2e13;
/// Candidates of embedding and head that are run, by bits a weight: few units with many weights each.
const OUTER_BITS: [f64; 2] = [2.7, 6.5];

/// What to search for, and how.
#[derive(Debug, Clone)]
pub struct SearchOptions {
    /// The recipe's name.
    pub name: String,
    /// What will be written.
    pub format: Format,
    /// How large it may be.
    pub budget: Budget,
    /// What the loss of a unit is measured by.
    pub measure: Measure,
    /// A UTF-8 text to measure on; the built-in calibration text if absent. Never the text of an evaluation.
    pub calibration: Option<PathBuf>,
    /// Tokens of it to run; fewer for larger models unless told.
    pub tokens: Option<usize>,
    /// Run every candidate of every unit instead of following from the error.
    pub exhaustive: bool,
    /// Rounds of measuring, at least 1; those after the first run each unit in the form that was chosen for it.
    pub rounds: usize,
    /// A table of this model, measured before.
    pub table: Option<Sensitivity>,
    /// An importance matrix that weighs the errors of GGUF blocks, here and in what the recipe writes.
    pub imatrix: Option<PathBuf>,
    /// Choices of the plan.
    pub plan: PlanOptions,
}

impl SearchOptions {
    /// The defaults for a budget, in GGUF.
    pub fn new(budget: Budget) -> Self {
        Self {
            name: "mixed".into(),
            format: Format::Gguf,
            budget,
            measure: Measure::default(),
            calibration: None,
            tokens: None,
            exhaustive: false,
            rounds: 2,
            table: None,
            imatrix: None,
            plan: PlanOptions::default(),
        }
    }
}

/// The best assignment that a search found, as `bitmill.search/1`.
#[derive(Debug, Clone, Serialize)]
pub struct SearchReport {
    /// `bitmill.search/1`.
    pub schema: &'static str,
    /// Of bitmill.
    pub version: &'static str,
    /// The model.
    pub model: String,
    /// Its weights.
    pub weights: u64,
    /// The recipe's name.
    pub strategy: String,
    /// What the recipe writes.
    pub format: &'static str,
    /// What the loss of a unit was measured by.
    pub measure: Measure,
    /// The calibration text's name; empty where none was read.
    pub calibration: String,
    /// Tokens of it that were run.
    pub tokens: usize,
    /// Most bytes allowed, every file counted.
    pub budget_bytes: u64,
    /// Bytes of the output, every file counted but its record and its card; exact.
    pub bytes: u64,
    /// `bytes` · 8 / `weights`.
    pub bits_per_weight: f64,
    /// Sum of the losses of the units, each measured alone: nats a token where that is what was measured.
    pub predicted_loss: f64,
    /// That sum as a divergence; none where the loss is an error.
    pub predicted_kl: Option<f64>,
    /// Mean KL of the whole assignment from the dense model on the calibration tokens; none where no model was run.
    pub measured_kl: Option<f64>,
    /// How far another assignment of the same bytes could be below `predicted_loss` at most; 0 where none can.
    pub gap: f64,
    /// What each round gave: its predicted and its measured KL.
    pub rounds: Vec<Round>,
    /// What each unit becomes.
    pub assignment: Vec<Assigned>,
    /// The recipe, as TOML without comments.
    pub recipe: String,
    /// Seconds of wall time.
    pub seconds: f64,
}

/// One round of a search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Round {
    /// Bytes of its assignment.
    pub bytes: u64,
    /// Sum of the units' losses as this round knew them.
    pub predicted_kl: f64,
    /// Mean KL of the whole on the calibration tokens.
    pub measured_kl: f64,
    /// Whether it is the best so far.
    pub kept: bool,
}

/// What one unit becomes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Assigned {
    /// Canonical names of its tensors.
    pub tensors: Vec<String>,
    /// `q4_k`, `w4_g128`, `bf16`.
    pub form: String,
    /// Bytes, headers apart.
    pub bytes: u64,
    /// What it loses alone.
    pub loss: f64,
}

/// What a search gives.
#[derive(Debug, Clone)]
pub struct SearchResult {
    /// The recipe.
    pub recipe: Recipe,
    /// The recipe as TOML with comments.
    pub text: String,
    /// What every unit loses in every form.
    pub table: Sensitivity,
    /// How it came about.
    pub report: SearchReport,
}

/// A recipe that can be planned, and what is predicted of it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Without a step of kind `search`.
    pub recipe: Recipe,
    /// Sum of the units' divergences, in nats a token; none for recipes that no search made.
    pub predicted_kl: Option<f64>,
}

/// `recipe`, with a step of kind `search` replaced by what it finds for `checkpoint`.
///
/// # Errors
/// As [`search`].
pub fn resolve(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    plan: &PlanOptions,
    progress: &dyn Progress,
) -> Result<Resolved, Error> {
    let [Step::Search { budget, sensitivity, tokens }] = recipe.steps[..] else {
        return Ok(Resolved { recipe: recipe.clone(), predicted_kl: None });
    };
    let options = SearchOptions {
        name: recipe.name.clone(),
        format: recipe.format,
        measure: sensitivity,
        tokens: tokens.map(|tokens| tokens as usize),
        imatrix: recipe.imatrix.clone(),
        plan: plan.clone(),
        ..SearchOptions::new(budget)
    };
    let found = search(checkpoint, &options, progress)?;
    Ok(Resolved { recipe: found.recipe, predicted_kl: found.report.predicted_kl })
}

/// Finds the assignment of forms to tensors that loses least within a budget.
///
/// Sums run in a fixed order: the result does not depend on threads.
///
/// # Errors
/// [`Error::BudgetTooSmall`] with the smallest size that can be reached; whatever keeps the model from being read or
/// run; [`Error::ForeignTable`] if `options.table` is another model's.
pub fn search(
    checkpoint: &Checkpoint,
    options: &SearchOptions,
    progress: &dyn Progress,
) -> Result<SearchResult, Error> {
    let began = Instant::now();
    let weights = n_weights(checkpoint);
    let budget = options.budget.bytes(weights);
    let weighed = options.imatrix.as_deref().map(Weighed::open).transpose()?;
    let mut units = units(checkpoint, options.format);
    for unit in &mut units {
        if let Some(weighed) = &weighed {
            unit.weigh(checkpoint, weighed)?;
        }
    }
    let imatrix = weighed.map(|weighed| weighed.hash().to_owned());
    let fit = Fit { checkpoint, options, units, imatrix, budget };
    // Before anything is measured: is there an assignment at all?
    fit.beside_smallest(fit.units.iter().map(|unit| unit.candidates.as_slice()))?;
    let windows = match options.measure {
        Measure::Weights => None,
        Measure::Kl | Measure::Output => Some(calibration(checkpoint, options, &fit.units)?),
    };
    let mut probe = match &windows {
        Some((_, windows)) => {
            progress.begin(&format!("{}: dense model", checkpoint.name()));
            Some(Probe::new(checkpoint, windows)?)
        }
        None => None,
    };
    let about = windows.as_ref().map(|(text, windows)| (text.as_str(), windows.tokens.len()));
    let mut found = match &options.table {
        Some(table) => fit.found_in(table, about)?,
        None => {
            progress.begin(&format!("{}: sensitivity", checkpoint.name()));
            fit.measure(probe.as_mut(), progress)?
        }
    };
    let mut table = fit.table(&found, about)?;
    let mut best = fit.assign(&table)?;
    let mut rounds = Vec::new();
    if let Some(probe) = &mut probe {
        progress.begin(&format!("{}: all together", checkpoint.name()));
        let measured = probe.all(&fit.units, &best.forms)?;
        rounds.push(best.round(measured, true));
        let mut newest = best.forms.clone();
        for round in 2..=options.rounds {
            if options.measure != Measure::Kl || !fit.lacks(&found, &newest) {
                break;
            }
            // What was chosen by its error alone is run as well, and the choice made again.
            progress.begin(&format!("{}: round {round}", checkpoint.name()));
            let chosen = |unit: usize, found: &Found| fit.unmeasured(unit, found, newest[unit]);
            probe.each_alone(&fit.units, &mut found, &chosen, progress)?;
            table = fit.table(&found, about)?;
            let next = fit.assign(&table)?;
            newest.clone_from(&next.forms);
            let kl = probe.all(&fit.units, &next.forms)?;
            let kept =
                kl < rounds.iter().map(|round: &Round| round.measured_kl).fold(f64::INFINITY, f64::min);
            rounds.push(next.round(kl, kept));
            if kept {
                best = next;
            }
        }
    }
    progress.end();
    Ok(fit.result(table, best, rounds, weights, began))
}

/// An assignment that fits.
struct Assignment {
    forms: Vec<Candidate>,
    solution: Solution,
    recipe: Recipe,
    /// Of the whole output.
    bytes: u64,
}

impl Assignment {
    fn round(&self, measured_kl: f64, kept: bool) -> Round {
        Round { bytes: self.bytes, predicted_kl: self.solution.loss, measured_kl, kept }
    }
}

/// A model, its units, and the bytes that they may take.
struct Fit<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a SearchOptions,
    units: Vec<Unit>,
    /// xxh3 of the importance matrix, where there is one.
    imatrix: Option<String>,
    budget: u64,
}

impl Fit<'_> {
    /// Exact bytes of the whole output when the units become `forms`, and the recipe.
    fn plan(&self, forms: &[Candidate]) -> Result<(Recipe, u64), Error> {
        let mut recipe = write::recipe(&self.options.name, self.options.format, &self.units, forms);
        if recipe.makes_blocks() {
            recipe.imatrix.clone_from(&self.options.imatrix);
            // As the candidates were measured.
            recipe.search = SearchName::Best;
        }
        let plan = Plan::new(self.checkpoint, &recipe, &self.options.plan)?;
        Ok((recipe, plan.output_bytes))
    }

    /// Bytes of headers, vectors and files beside the tensors where each unit has the smallest of its `forms`.
    fn beside_smallest<'c>(&self, forms: impl Iterator<Item = &'c [Candidate]>) -> Result<u64, Error> {
        let smallest = |(unit, forms): (&Unit, &[Candidate])| {
            forms.iter().copied().min_by_key(|&form| unit.bytes(self.options.format, form))
        };
        let forms: Vec<Candidate> = self.units.iter().zip(forms).filter_map(smallest).collect();
        let (_, bytes) = self.plan(&forms)?;
        if bytes > self.budget {
            return Err(self.too_small(bytes));
        }
        Ok(bytes - self.bytes_of(&forms))
    }

    fn bytes_of(&self, forms: &[Candidate]) -> u64 {
        self.units.iter().zip(forms).map(|(unit, &form)| unit.bytes(self.options.format, form)).sum()
    }

    fn too_small(&self, smallest: u64) -> Error {
        let bits = |bytes: u64| bytes as f64 * 8.0 / n_weights(self.checkpoint).max(1) as f64;
        Error::BudgetTooSmall {
            model: self.checkpoint.name(),
            format: self.options.format.name(),
            budget: self.budget,
            budget_bits: bits(self.budget),
            smallest,
            smallest_bits: bits(smallest),
        }
    }

    /// Every candidate's error, and by `measure` the divergence of some.
    fn measure(&self, probe: Option<&mut Probe<'_>>, progress: &dyn Progress) -> Result<Vec<Found>, Error> {
        let Some(probe) = probe else { return self.weight_errors(progress) };
        let target = self.budget as f64 * 8.0 / n_weights(self.checkpoint).max(1) as f64;
        let run = |unit: usize, found: &Found| match self.options.measure {
            Measure::Kl => self.anchors(&self.units[unit], &found.errors, target),
            Measure::Output | Measure::Weights => Vec::new(),
        };
        let mut found = vec![Found::default(); self.units.len()];
        probe.each_alone(&self.units, &mut found, &run, progress)?;
        Ok(found)
    }

    /// The place of `form` among a unit's candidates, if its divergence was not measured though it has an error.
    fn unmeasured(&self, unit: usize, found: &Found, form: Candidate) -> Vec<usize> {
        let place = self.units[unit].candidates.iter().position(|&candidate| candidate == form);
        let lacks = |place: &usize| {
            found.kls[*place].is_none() && found.errors[*place].is_some_and(|error| error > 0.0)
        };
        place.into_iter().filter(lacks).collect()
    }

    /// Whether the divergence of any unit in its form of `forms` is not measured.
    fn lacks(&self, found: &[Found], forms: &[Candidate]) -> bool {
        let units = found.iter().zip(forms).enumerate();
        units.into_iter().any(|(unit, (found, &form))| !self.unmeasured(unit, found, form).is_empty())
    }

    /// The table of what was found on a text of so many tokens.
    fn table(&self, found: &[Found], about: Option<(&str, usize)>) -> Result<Sensitivity, Error> {
        let (model, weights) = (self.checkpoint.name(), n_weights(self.checkpoint));
        let mut table = Sensitivity::new(model, weights, self.options.format.name(), self.options.measure);
        table.imatrix.clone_from(&self.imatrix);
        if let Some((text, tokens)) = about {
            table.calibration = text.into();
            table.tokens = tokens;
        }
        table.units = self
            .units
            .iter()
            .zip(found)
            .map(|(unit, found)| self.row(unit, found))
            .collect::<Result<_, _>>()?;
        Ok(table)
    }

    /// The candidates that are run: the one nearest to the budget, more of them for embedding and head, or all.
    fn anchors(&self, unit: &Unit, errors: &[Option<f64>], target: f64) -> Vec<usize> {
        let possible: Vec<usize> =
            (0..errors.len()).filter(|&place| errors[place].is_some_and(|error| error > 0.0)).collect();
        if self.options.exhaustive {
            return possible;
        }
        let bits = |place: usize| {
            let bytes = unit.bytes(self.options.format, unit.candidates[place]);
            bytes as f64 * 8.0 / unit.weights().max(1) as f64
        };
        let nearest = |target: f64| {
            let distance = |place: usize| (bits(place) - target).abs();
            possible.iter().copied().min_by(|&a, &b| distance(a).total_cmp(&distance(b)))
        };
        let outer = unit.layer().is_none().then_some(OUTER_BITS).into_iter().flatten();
        let mut anchors: Vec<usize> = std::iter::once(target).chain(outer).filter_map(nearest).collect();
        anchors.sort_unstable();
        anchors.dedup();
        anchors
    }

    /// Errors of the weights themselves, tensor by tensor.
    fn weight_errors(&self, progress: &dyn Progress) -> Result<Vec<Found>, Error> {
        let compute = Compute::new(Isa::best(), bitmill_kernels::Path::Exact);
        let mut all = Vec::with_capacity(self.units.len());
        for unit in &self.units {
            let errors = rounding::errors(&compute, unit, &unit.read(self.checkpoint)?, None)?;
            all.push(Found { kls: vec![None; errors.len()], errors });
            progress.at(all.len() as u64, self.units.len() as u64);
        }
        Ok(all)
    }

    /// A unit's row of the table.
    fn row(&self, unit: &Unit, found: &Found) -> Result<UnitSensitivity, Error> {
        let pairs = found.errors.iter().zip(&found.kls);
        let measured: Vec<(f64, f64)> = pairs.filter_map(|(&error, &kl)| Some((error?, kl?))).collect();
        let by_kl = self.options.measure == Measure::Kl;
        let mut options: Vec<OptionSensitivity> = Vec::new();
        for ((&form, &error), &kl) in unit.candidates.iter().zip(&found.errors).zip(&found.kls) {
            let Some(error) = error else { continue };
            options.push(OptionSensitivity {
                form: form.name(),
                bytes: unit.bytes(self.options.format, form),
                error,
                kl: by_kl.then(|| kl.unwrap_or_else(|| interpolate(&measured, error))),
                measured: kl.is_some(),
            });
        }
        options.sort_by_key(|option| option.bytes);
        let names = unit.names();
        if options.is_empty() {
            return Err(Error::NoForm { tensor: names[0].clone(), format: self.options.format.name() });
        }
        Ok(UnitSensitivity { tensors: names, weights: unit.weights(), options })
    }

    /// What `table` says of this search's units and their candidates.
    fn found_in(&self, table: &Sensitivity, about: Option<(&str, usize)>) -> Result<Vec<Found>, Error> {
        let foreign = |what: String| Error::ForeignTable {
            table: table.model.clone(),
            model: self.checkpoint.name(),
            what,
        };
        if table.format != self.options.format.name() {
            return Err(foreign(format!("it is about {}", table.format)));
        }
        if table.measure != self.options.measure {
            return Err(foreign(format!("it measured `{}`", table.measure.name())));
        }
        if about.is_some_and(|(text, tokens)| (text, tokens) != (&table.calibration, table.tokens)) {
            return Err(foreign(format!(
                "it was measured on {} tokens of the {}",
                table.tokens, table.calibration
            )));
        }
        if table.imatrix != self.imatrix {
            return Err(foreign("its errors were weighed by another importance matrix, or by none".into()));
        }
        let theirs: Vec<&[String]> = table.units.iter().map(|unit| unit.tensors.as_slice()).collect();
        let ours: Vec<Vec<String>> = self.units.iter().map(Unit::names).collect();
        if theirs != ours {
            return Err(foreign("its tensors are others".into()));
        }
        let mut all = Vec::with_capacity(self.units.len());
        for (unit, row) in self.units.iter().zip(&table.units) {
            let none = vec![None; unit.candidates.len()];
            let mut found = Found { errors: none.clone(), kls: none };
            for option in &row.options {
                let form = Candidate::parse(&option.form);
                let place = unit.candidates.iter().position(|&candidate| {
                    Some(candidate) == form && unit.bytes(self.options.format, candidate) == option.bytes
                });
                let place = place.ok_or_else(|| {
                    foreign(format!("`{}` as {} is not what it was", row.tensors[0], option.form))
                })?;
                found.errors[place] = Some(option.error);
                found.kls[place] = option.kl.filter(|_| option.measured);
            }
            all.push(found);
        }
        Ok(all)
    }

    /// The best assignment by `table` whose whole output is within the budget.
    ///
    /// What lies beside the tensors depends on the assignment, for the recipe's text is part of the output: the bytes
    /// left for tensors are found by trying.
    fn assign(&self, table: &Sensitivity) -> Result<Assignment, Error> {
        const TRIES: usize = 8;
        let items = table.items();
        let forms: Vec<Vec<Candidate>> = table
            .units
            .iter()
            .map(|unit| unit.options.iter().filter_map(|option| Candidate::parse(&option.form)).collect())
            .collect();
        let mut beside = self.beside_smallest(forms.iter().map(Vec::as_slice))?;
        let mut least = u64::MAX;
        for _ in 0..TRIES {
            let Some(solution) = solve(&items, self.budget.saturating_sub(beside)) else { break };
            let forms: Vec<Candidate> =
                solution.chosen.iter().zip(&forms).map(|(&option, forms)| forms[option]).collect();
            let (recipe, bytes) = self.plan(&forms)?;
            least = least.min(bytes);
            let found_beside = bytes - self.bytes_of(&forms);
            // Room that this assignment leaves is a few bytes of text; one that is too large has to give way.
            if bytes <= self.budget {
                return Ok(Assignment { forms, solution, recipe, bytes });
            }
            beside = found_beside.max(beside + 1);
        }
        Err(self.too_small(least))
    }

    fn result(
        &self,
        table: Sensitivity,
        best: Assignment,
        rounds: Vec<Round>,
        weights: u64,
        began: Instant,
    ) -> SearchResult {
        let options = self.options;
        let assignment: Vec<Assigned> = best
            .forms
            .iter()
            .zip(&table.units)
            .map(|(form, unit)| {
                let form = form.name();
                let option = unit.options.iter().find(|option| option.form == form);
                let (bytes, loss) =
                    option.map_or((0, 0.0), |option| (option.bytes, option.loss(table.measure)));
                Assigned { tensors: unit.tensors.clone(), form, bytes, loss }
            })
            .collect();
        let predicted_loss: f64 = assignment.iter().map(|unit| unit.loss).sum();
        let report = SearchReport {
            schema: "bitmill.search/1",
            version: env!("CARGO_PKG_VERSION"),
            model: self.checkpoint.name(),
            weights,
            strategy: options.name.clone(),
            format: options.format.name(),
            measure: table.measure,
            calibration: table.calibration.clone(),
            tokens: table.tokens,
            budget_bytes: self.budget,
            bytes: best.bytes,
            bits_per_weight: best.bytes as f64 * 8.0 / weights.max(1) as f64,
            predicted_loss,
            predicted_kl: (table.measure == Measure::Kl).then_some(predicted_loss),
            measured_kl: rounds.iter().rev().find(|round| round.kept).map(|round| round.measured_kl),
            gap: best.solution.loss - best.solution.bound,
            rounds,
            assignment,
            recipe: best.recipe.to_toml(),
            seconds: began.elapsed().as_secs_f64(),
        };
        let forms = write::forms(&self.units, &best.forms);
        let text = write::with_comments(&best.recipe, &heading(&report), &step_comments(&forms, &report));
        SearchResult { recipe: best.recipe, text, table, report }
    }
}

/// The calibration text's name and its windows, evenly spread over it.
fn calibration(
    checkpoint: &Checkpoint,
    options: &SearchOptions,
    units: &[Unit],
) -> Result<(String, Windows), Error> {
    let tokenizer = Tokenizer::from_checkpoint(checkpoint)?;
    let (name, text) = embedded::calibration(options.calibration.as_deref(), &tokenizer)?;
    let tokens = options.tokens.or(options.table.as_ref().map(|table| table.tokens)).unwrap_or_else(|| {
        let runs = (units.len() * options.rounds) as f64;
        let work = WORK / (runs * n_weights(checkpoint).max(1) as f64);
        (work as usize).clamp(TOKENS.0, TOKENS.1)
    });
    let window = WINDOW.min(checkpoint.config().max_positions).min(tokens).max(1);
    let all = Windows::of_text(&tokenizer, &text, window, None)?;
    let count = tokens / window;
    if all.len() < count {
        return Err(Error::ShortCalibration {
            text: name,
            found: all.len() * window,
            tokens: count * window,
        });
    }
    let picked = (0..count).flat_map(|place| all.get(place * all.len() / count)).copied().collect();
    Ok((name, Windows::new(picked, window, None)))
}

/// What stands above a recipe.
fn heading(report: &SearchReport) -> Vec<String> {
    let size = bitmill_report::size;
    let mut lines = vec![format!(
        "bitmill search {}: {}, {:.3} bits/weight of {} allowed",
        report.model,
        size(report.bytes),
        report.bits_per_weight,
        size(report.budget_bytes)
    )];
    match report.measure {
        Measure::Kl => lines.push(format!(
            "KL to dense on {} tokens of the {}: {:.5} predicted, {:.5} measured",
            report.tokens,
            report.calibration,
            report.predicted_loss,
            report.measured_kl.unwrap_or(f64::NAN),
        )),
        Measure::Output | Measure::Weights => {
            lines.push(format!(
                "sum of relative squared errors ({}): {:.5}",
                report.measure.name(),
                report.predicted_loss
            ));
        }
    }
    lines.push("edit it as you like: a later step overrides an earlier one".into());
    lines
}

/// What stands above each step.
fn step_comments(forms: &[Candidate], report: &SearchReport) -> Vec<String> {
    let what = if report.measure == Measure::Kl { "predicted KL" } else { "error" };
    forms
        .iter()
        .map(|form| {
            let name = form.name();
            let members = || report.assignment.iter().filter(|unit| unit.form == name);
            let tensors: usize = members().map(|unit| unit.tensors.len()).sum();
            let bytes: u64 = members().map(|unit| unit.bytes).sum();
            let loss: f64 = members().map(|unit| unit.loss).sum();
            format!("{tensors} tensors, {}, {what} {loss:.5}", bitmill_report::size(bytes))
        })
        .collect()
}
