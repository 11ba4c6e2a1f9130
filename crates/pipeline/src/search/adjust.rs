//! A model that is there already: which of its tensors deserve more bits first, and the recipe that gives them.

use bitmill_checkpoint::Checkpoint;
use bitmill_report::Deserving;
use bitmill_tensor::{Encoding, ZeroPoint};

use super::candidate::{Candidate, units};
use super::{Budget, Fit, Measure, OptionSensitivity, SearchOptions, Sensitivity};
use crate::recipe::{Format, Recipe};
use crate::{Error, PlanOptions, Progress};

/// The units of `table` whose next larger form in it loses less than the one they have in `model`, those first that gain
/// most per byte. Reads no weights.
///
/// # Errors
/// [`Error::ForeignTable`] if `table` is not about the tensors of `model` or the forms that they have; an error of the
/// checkpoint for a tensor that is not there.
pub fn most_sensitive(model: &Checkpoint, table: &Sensitivity) -> Result<Vec<Deserving>, Error> {
    let foreign =
        |what: String| Error::ForeignTable { table: table.model.clone(), model: model.name(), what };
    let mut out = Vec::new();
    for row in &table.units {
        let (form, stored) = present(model, &row.tensors, &foreign)?;
        let Some(now) = row.options.iter().find(|option| option.form == form.name()) else {
            match form {
                // Floats of another kind than the table's lose nothing that a form could give back.
                Candidate::Float(_) => continue,
                _ => {
                    return Err(foreign(format!(
                        "`{}` is {stored}, a form that it does not hold",
                        row.tensors[0]
                    )));
                }
            }
        };
        let loss = now.loss(table.measure);
        let larger =
            row.options.iter().filter(|next| next.bytes > now.bytes && next.loss(table.measure) < loss);
        let Some(next) = larger.min_by_key(|next| next.bytes) else { continue };
        let more = next.bytes as f64 - now.bytes as f64;
        out.push(Deserving {
            tensor: row.tensors[0].clone(),
            tied: row.tensors.len() - 1,
            form: stored.to_string(),
            next: Some(next.form.clone()),
            error: loss,
            gain_per_mb: (loss - next.loss(table.measure)) / (more / 1e6),
        });
    }
    out.sort_by(|a, b| b.gain_per_mb.total_cmp(&a.gain_per_mb).then_with(|| a.tensor.cmp(&b.tensor)));
    Ok(out)
}

/// A recipe for `dense` of which no tensor gets fewer bytes than in `model`, all together at most `budget`, and the loss is
/// the least by `table`; without one by the errors of the dense weights. `name` is the recipe's, for it counts too.
///
/// # Errors
/// [`Error::NotAdjustable`] if `model` has no quantized matrix, one in a form that no search offers, or takes more than
/// the budget as it is; [`Error::ForeignTable`] if `table` is not about `dense` or that format.
pub fn adjust(
    model: &Checkpoint,
    dense: &Checkpoint,
    table: Option<&Sensitivity>,
    name: &str,
    budget: u64,
    progress: &dyn Progress,
) -> Result<Recipe, Error> {
    let not = |problem: String| Error::NotAdjustable { model: model.name(), problem };
    let encodings = || model.tensors().iter().map(|info| info.encoding);
    let format = if encodings().any(|encoding| matches!(encoding, Encoding::Block(_))) {
        Format::Gguf
    } else if encodings().any(|encoding| matches!(encoding, Encoding::Grouped(_))) {
        Format::CompressedTensors
    } else {
        return Err(not("none of its matrices is quantized".into()));
    };
    let options = SearchOptions {
        name: name.into(),
        format,
        measure: table.map_or(Measure::Weights, |table| table.measure),
        // What counts as dense may be a file of 8 bits.
        plan: PlanOptions { allow_requantize: true, ..PlanOptions::default() },
        ..SearchOptions::new(Budget::Bytes(budget))
    };
    let fit = Fit {
        checkpoint: dense,
        options: &options,
        units: units(dense, format),
        imatrix: table.and_then(|table| table.imatrix.clone()),
        budget,
    };
    let found = match table {
        Some(table) => fit.found_in(table, None)?,
        None => fit.weight_errors(progress)?,
    };
    let mut narrowed = fit.table(&found, None)?;
    for place in 0..narrowed.units.len() {
        let (form, stored) = present(model, &narrowed.units[place].tensors, &not)?;
        let row = &mut narrowed.units[place];
        match (row.options.iter().find(|option| option.form == form.name()), form) {
            (Some(now), _) => {
                let bytes = now.bytes;
                row.options.retain(|option| option.bytes >= bytes);
            }
            (None, Candidate::Float(_)) => {
                let bytes = fit.units[place].bytes(format, form);
                let (error, kl) = (0.0, (narrowed.measure == Measure::Kl).then_some(0.0));
                row.options = vec![OptionSensitivity { form: form.name(), bytes, error, kl, measured: true }];
            }
            (None, _) => return Err(not(not_offered(&row.tensors[0], stored))),
        }
    }
    match fit.assign(&narrowed) {
        Ok(best) => Ok(best.recipe),
        Err(Error::BudgetTooSmall { smallest, .. }) => Err(not(format!(
            "with every tensor as it is it takes {smallest} bytes, more than the budget of {budget}"
        ))),
        Err(Error::NothingToDo { .. }) => Err(not(format!("{} as it is fits the budget", dense.name()))),
        Err(error) => Err(error),
    }
}

/// The one form of `tensors` in `model`, and how the first is stored; `refuse` makes an error of what is wrong with them.
fn present(
    model: &Checkpoint,
    tensors: &[String],
    refuse: &dyn Fn(String) -> Error,
) -> Result<(Candidate, Encoding), Error> {
    let mut first: Option<(Candidate, Encoding)> = None;
    for name in tensors {
        let stored = model.tensor(name)?.info.encoding;
        let form = form_of(stored).ok_or_else(|| refuse(not_offered(name, stored)))?;
        match first {
            None => first = Some((form, stored)),
            Some((same, _)) if same == form => {}
            Some((_, other)) => {
                return Err(refuse(format!(
                    "`{}` is {other} and `{name}` {stored}, where a search gives them one form",
                    tensors[0]
                )));
            }
        }
    }
    first.ok_or_else(|| refuse("a unit has no tensors".into()))
}

/// The candidate that is stored like that.
fn form_of(stored: Encoding) -> Option<Candidate> {
    match stored {
        Encoding::Float(float) => Some(Candidate::Float(float)),
        Encoding::Block(block) => Some(Candidate::Block(block)),
        Encoding::Grouped(grouped) => {
            let (bits, size) = (grouped.bits, grouped.group_size);
            (grouped.zero_point == ZeroPoint::Symmetric).then_some(Candidate::Groups { bits, size })
        }
        Encoding::Scaled(_) | Encoding::Sparse { .. } => None,
    }
}

fn not_offered(tensor: &str, stored: Encoding) -> String {
    format!("`{tensor}` is {stored}, a form that no search offers for it")
}
