//! How much each unit of a model loses in each form: the table that a search makes and `bitmill.sensitivity/1` holds.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::knapsack::Item;
use crate::{Error, write_file};

/// What the loss of a unit is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Mean KL divergence from the dense model, in nats a token, when this unit alone is quantized.
    #[default]
    Kl,
    /// Squared error of the unit's output on calibration tokens, relative to the output's own square.
    Output,
    /// Squared error of the weights, relative to their own square: needs no text and runs no model.
    Weights,
}

impl Measure {
    /// Every measure.
    pub const ALL: [Self; 3] = [Self::Kl, Self::Output, Self::Weights];

    /// As flags and recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kl => "kl",
            Self::Output => "output",
            Self::Weights => "weights",
        }
    }
}

/// The name and version of the document.
const SCHEMA: &str = "bitmill.sensitivity/1";

/// What each unit of a model loses in each form.
///
/// ```no_run
/// use bitmill_pipeline::Sensitivity;
/// let table = Sensitivity::read("recipe.sensitivity.json".as_ref())?;
/// // The ten tensors that lose most at four bits.
/// let mut losses: Vec<(f64, &str)> = table.units.iter().filter_map(|unit| {
///     let option = unit.options.iter().find(|option| option.form == "q4_k")?;
///     Some((option.loss(table.measure), unit.tensors[0].as_str()))
/// }).collect();
/// losses.sort_by(|a, b| b.0.total_cmp(&a.0));
/// losses.truncate(10);
/// # Ok::<(), bitmill_pipeline::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// `bitmill.sensitivity/1`.
    pub schema: String,
    /// Of bitmill.
    pub version: String,
    /// The model that was measured.
    pub model: String,
    /// Its weights.
    pub weights: u64,
    /// The format whose forms were tried: `gguf` or `compressed-tensors`.
    pub format: String,
    /// What was measured.
    pub measure: Measure,
    /// The calibration text's name; empty where none was read.
    pub calibration: String,
    /// Tokens of it that were run.
    pub tokens: usize,
    /// xxh3 of the importance matrix that weighed the errors of blocks; absent where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<String>,
    /// Every unit, in the order of the model.
    pub units: Vec<UnitSensitivity>,
}

/// One unit of a [`Sensitivity`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitSensitivity {
    /// Canonical names of its tensors, which get one form.
    pub tensors: Vec<String>,
    /// Their weights.
    pub weights: u64,
    /// What may become of them, in the order of `bytes`.
    pub options: Vec<OptionSensitivity>,
}

/// One form of a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptionSensitivity {
    /// `q4_k`, `w4_g128`, `bf16`.
    pub form: String,
    /// Bytes of the unit in the file, headers apart.
    pub bytes: u64,
    /// Squared error relative to the square of what is rounded: the unit's output on calibration tokens where a model
    /// was run, the weights otherwise.
    pub error: f64,
    /// Mean KL divergence in nats a token; absent unless that is what was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Whether `kl` was measured in this form, or follows from `error` and the forms that were.
    #[serde(default)]
    pub measured: bool,
}

impl OptionSensitivity {
    /// What a search adds up.
    pub fn loss(&self, measure: Measure) -> f64 {
        match measure {
            Measure::Kl => self.kl.unwrap_or(self.error),
            Measure::Output | Measure::Weights => self.error,
        }
    }
}

impl Sensitivity {
    pub(crate) fn new(model: String, weights: u64, format: &str, measure: Measure) -> Self {
        Self {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            model,
            weights,
            format: format.into(),
            measure,
            calibration: String::new(),
            tokens: 0,
            imatrix: None,
            units: Vec::new(),
        }
    }

    /// Where the table of the recipe at `recipe` lies: `mine.toml` → `mine.sensitivity.json`.
    pub fn beside(recipe: &Path) -> PathBuf {
        recipe.with_extension("sensitivity.json")
    }

    /// Reads a table.
    ///
    /// # Errors
    /// [`Error::ReadFile`], or [`Error::MalformedTable`] for what is no such document or holds impossible figures.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a table; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::MalformedTable`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let malformed = |message: String| Error::MalformedTable { path: path.into(), message };
        let table: Self = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if table.schema != SCHEMA {
            return Err(malformed(format!("schema `{}`, expected `{SCHEMA}`", table.schema)));
        }
        for unit in &table.units {
            let name = unit.tensors.first().ok_or_else(|| malformed("a unit without tensors".into()))?;
            if unit.options.is_empty() {
                return Err(malformed(format!("`{name}` has no options")));
            }
            let odd = |loss: f64| !loss.is_finite() || loss < 0.0;
            if let Some(option) =
                unit.options.iter().find(|option| odd(option.error) || odd(option.kl.unwrap_or(0.0)))
            {
                let form = &option.form;
                return Err(malformed(format!("`{name}` as {form}: an error is finite and not negative")));
            }
        }
        Ok(table)
    }

    /// Writes the table, whole or not at all.
    ///
    /// # Errors
    /// [`Error::WriteFile`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        // Strings, numbers and lists of them always have a JSON form.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        write_file(path, text.as_bytes())
    }

    /// The options of each unit as a search weighs them.
    pub(crate) fn items(&self) -> Vec<Vec<Item>> {
        let item = |option: &OptionSensitivity| Item { bytes: option.bytes, loss: option.loss(self.measure) };
        self.units.iter().map(|unit| unit.options.iter().map(item).collect()).collect()
    }
}

/// Fills in the losses that were not measured: on the line between the measured neighbours in the logarithms of error
/// and loss, and in proportion to the error beyond them, for divergence grows with the square of a small disturbance.
///
/// `measured` holds errors and losses; with none of them positive nothing is lost anywhere.
pub(crate) fn interpolate(measured: &[(f64, f64)], error: f64) -> f64 {
    let mut points: Vec<(f64, f64)> =
        measured.iter().copied().filter(|(error, loss)| *error > 0.0 && *loss > 0.0).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return 0.0 };
    if error <= 0.0 {
        return 0.0;
    }
    if error <= first.0 {
        return first.1 * error / first.0;
    }
    if error >= last.0 {
        return last.1 * error / last.0;
    }
    let above = points.partition_point(|point| point.0 < error);
    let ((low, low_loss), (high, high_loss)) = (points[above - 1], points[above]);
    let part = (error / low).ln() / (high / low).ln();
    low_loss * (high_loss / low_loss).powf(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_follow_the_error_beyond_what_was_measured_and_a_power_law_between() {
        let measured = [(0.1, 2.0), (0.4, 32.0)];
        assert_eq!(interpolate(&measured, 0.05), 1.0);
        assert_eq!(interpolate(&measured, 0.8), 64.0);
        // Twice the error is four times the loss there.
        assert!((interpolate(&measured, 0.2) - 8.0).abs() < 1e-12);
        assert_eq!(interpolate(&measured, 0.1), 2.0);
        assert_eq!(interpolate(&measured, 0.0), 0.0);
        assert_eq!(interpolate(&[(0.0, 0.0)], 0.3), 0.0);
    }

    #[test]
    fn a_written_table_reads_back_equal_and_a_broken_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = Sensitivity::beside(&folder.path().join("mine.toml"));
        assert!(path.ends_with("mine.sensitivity.json"));
        let mut table = Sensitivity::new("tiny".into(), 64, "gguf", Measure::Kl);
        table.units.push(UnitSensitivity {
            tensors: vec!["model.layers.0.mlp.up_proj.weight".into()],
            weights: 64,
            options: vec![OptionSensitivity {
                form: "q8_0".into(),
                bytes: 68,
                error: 1e-5,
                kl: Some(2.5e-7),
                measured: true,
            }],
        });
        table.write(&path).unwrap();
        assert_eq!(Sensitivity::read(&path).unwrap(), table);
        for (broken, said) in [
            (Sensitivity { schema: "bitmill.plan/1".into(), ..table.clone() }, "bitmill.plan/1"),
            (
                Sensitivity {
                    units: vec![UnitSensitivity { options: Vec::new(), ..table.units[0].clone() }],
                    ..table.clone()
                },
                "no options",
            ),
        ] {
            broken.write(&path).unwrap();
            let error = Sensitivity::read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("mine.sensitivity.json"), "{error}");
        }
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(Sensitivity::read(&path), Err(Error::MalformedTable { .. })));
    }
}
