//! Models that were made before, beside the strategies of a comparison.

use std::path::{Component, Path, PathBuf};

use bitmill_checkpoint::Checkpoint;
use bitmill_text::Windows;

use crate::layout::QUANTIZE_CONFIG;
use crate::measure::Subject;
use crate::{Error, Format};

/// What the dense model's row is called.
pub(crate) const DENSE: &str = "none";

/// A model that an earlier run made, or somebody else. Nothing is written to where it lies, and nothing removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// What its row is called.
    pub name: String,
    /// The folder or file.
    pub path: PathBuf,
}

impl Made {
    /// The model at `path`, called by that path's own name.
    ///
    /// # Errors
    /// If nothing is there.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let opened = |source| bitmill_checkpoint::Error::Io { action: "open", path: path.into(), source };
        std::fs::metadata(path).map_err(opened)?;
        Ok(Self { name: end_of(path, 1), path: path.into() })
    }

    /// Whether `path`, which need not be there, is this model or lies in it.
    pub fn holds(&self, path: &Path) -> bool {
        let there = path.ancestors().find_map(|path| {
            let path = if path == Path::new("") { Path::new(".") } else { path };
            path.canonicalize().ok()
        });
        there.is_some_and(|there| there.starts_with(real(&self.path)))
    }

    /// Whether it lies in `folder`.
    pub fn lies_in(&self, folder: &Path) -> bool {
        real(&self.path).starts_with(real(folder))
    }
}

/// Gives models of the same own name, and those called as one of `taken` or as the dense model's row, longer names: with the
/// folder that each lies in, and so on.
///
/// # Errors
/// [`Error::MadeTwice`] if two are one and the same.
pub fn tell_apart(made: &mut [Made], taken: &[&str]) -> Result<(), Error> {
    for (index, one) in made.iter().enumerate() {
        if let Some(other) = made[..index].iter().find(|other| real(&other.path) == real(&one.path)) {
            return Err(Error::MadeTwice { path: one.path.clone(), other: other.path.clone() });
        }
    }
    for depth in 2.. {
        let names: Vec<String> = made.iter().map(|one| one.name.clone()).collect();
        let is_taken = |name: &String| {
            let of_this_name = names.iter().filter(|other| *other == name).count();
            name == DENSE || taken.contains(&name.as_str()) || of_this_name > 1
        };
        let mut has_changed = false;
        for (one, name) in made.iter_mut().zip(&names).filter(|(_, name)| is_taken(name)) {
            one.name = end_of(&one.path, depth);
            has_changed |= one.name != *name;
        }
        if !has_changed {
            break;
        }
    }
    Ok(())
}

/// The last `depth` names of a path, of which there may be fewer.
fn end_of(path: &Path, depth: usize) -> String {
    // `.` and `..` have no name of their own.
    let whole = match path.file_name() {
        Some(_) => std::path::absolute(path).unwrap_or_else(|_| path.into()),
        None => real(path),
    };
    let names: Vec<String> = whole
        .components()
        .filter(|component| matches!(component, Component::Normal(_)))
        .map(|component| component.as_os_str().to_string_lossy().into_owned())
        .collect();
    match names.len() {
        0 => whole.display().to_string(),
        n => names[n.saturating_sub(depth)..].join("/"),
    }
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

/// What a model is written as: of a recipe's row its format's name, of others' what their config.json calls the method.
pub(crate) fn format_of(checkpoint: &Checkpoint) -> String {
    if checkpoint.format() == bitmill_checkpoint::Format::Gguf {
        return Format::Gguf.name().into();
    }
    let declared = checkpoint.config_json().map(|config| &config["quantization_config"]);
    if let Some(method) = declared.and_then(|declared| declared["quant_method"].as_str()) {
        return method.into();
    }
    // What the first versions of three programs wrote names no method.
    let is_in_bits = |declared: &serde_json::Value| declared["load_in_4bit"].is_boolean();
    let format = match checkpoint.is_quantized() {
        false => Format::HuggingFace,
        true if declared.is_some_and(is_in_bits) => Format::Bitsandbytes,
        true if checkpoint.other_files().iter().any(|(name, _)| name == QUANTIZE_CONFIG) => Format::Gptq,
        true => Format::CompressedTensors,
    };
    format.name().into()
}

/// Refuses a model that gives other tokens than the dense one: of another number, or for other text.
pub(crate) fn refuse_foreign(subject: &Subject, dense: &Subject, windows: &Windows) -> Result<(), Error> {
    let [here, there] = [subject, dense].map(|subject| subject.model.config().vocab_size);
    if here != there {
        return Err(bitmill_eval::Error::OtherVocabulary { dense: there, found: here }.into());
    }
    // Not how text is cut into tokens, which programs that convert tokenizers differ in, but what the tokens stand for.
    let text = |subject: &Subject| subject.tokenizer.decode(&windows.tokens);
    match text(subject)?.trim() == text(dense)?.trim() {
        true => Ok(()),
        false => Err(Error::OtherTokens { model: subject.name.clone(), dense: dense.name.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(made: &[Made]) -> Vec<&str> {
        made.iter().map(|one| one.name.as_str()).collect()
    }

    #[test]
    fn models_of_one_name_are_told_apart_by_where_they_lie() {
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| {
            let path = place.path().join(path);
            std::fs::create_dir_all(path.join("in")).unwrap();
            Made::at(&path).unwrap()
        };
        let mut made = [at("a/x/model"), at("b/x/model"), at("b/other"), at("q8_0"), at("c/none")];
        tell_apart(&mut made, &["q8_0"]).unwrap();
        let folder = place.path().file_name().unwrap().to_str().unwrap();
        let q8_0 = format!("{folder}/q8_0");
        assert_eq!(names(&made), ["a/x/model", "b/x/model", "other", &q8_0, "c/none"]);
        let mut twice = [at("a/x/model"), at("a/x/model/in/..")];
        assert!(matches!(tell_apart(&mut twice, &[]).unwrap_err(), Error::MadeTwice { .. }));
        assert!(Made::at(&place.path().join("absent")).unwrap_err().to_string().contains("absent"));
    }

    #[test]
    fn what_lies_in_a_model_is_known_before_it_is_there() {
        let place = tempfile::tempdir().unwrap();
        let model = place.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let made = Made::at(&model).unwrap();
        assert!(made.holds(&model) && made.holds(&model.join("new/report")));
        assert!(!made.holds(place.path()) && !made.holds(&place.path().join("models")));
        assert!(made.lies_in(place.path()) && made.lies_in(&model) && !made.lies_in(&model.join("new")));
    }
}
