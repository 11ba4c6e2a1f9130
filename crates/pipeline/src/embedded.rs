//! `millet`, the model inside the binary, with its text and tasks: what every command uses when none is named.

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, ModelConfig, Region};
use bitmill_text::{Documents, Task, Tokenizer};

use crate::Error;

/// The name of the embedded model.
pub const NAME: &str = "millet";

macro_rules! millet {
    ($($path:literal),+ $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../assets/millet/", $path)) as &[u8])),+]
    };
}

const MODEL: &[(&str, &[u8])] = millet![
    "model/chat_template.jinja",
    "model/config.json",
    "model/generation_config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
];

const TASKS: &[(&str, &str)] = &[
    ("facts", include_str!("../../../assets/millet/tasks/facts.jsonl")),
    ("sentiment", include_str!("../../../assets/millet/tasks/sentiment.jsonl")),
    ("sentiment_zh", include_str!("../../../assets/millet/tasks/sentiment_zh.jsonl")),
    ("story", include_str!("../../../assets/millet/tasks/story.jsonl")),
    ("sums", include_str!("../../../assets/millet/tasks/sums.jsonl")),
];

/// The built-in evaluation text: short documents in English and Chinese, divided by `<|endoftext|>`.
pub(crate) const TEXT: &str = include_str!("../../../assets/millet/text/eval.txt");

/// The built-in calibration text: of the same kind, and no part of the other.
const CALIBRATION: &str = include_str!("../../../assets/millet/text/calib.txt");

const CALIBRATION_NAME: &str = "built-in calibration text";

/// The token between documents of the built-in texts.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// A built-in text as a model with this tokenizer gets it: documents are divided by a blank line where it knows no
/// other sign.
pub(crate) fn divided(text: &str, tokenizer: &Tokenizer) -> String {
    match tokenizer.id_of(END_OF_TEXT) {
        Some(_) => text.into(),
        None => text.replace(END_OF_TEXT, "\n\n"),
    }
}

/// The name and text of the calibration text at `path`, or of the built-in one.
///
/// # Errors
/// [`Error::ReadFile`].
pub(crate) fn calibration(path: Option<&Path>, tokenizer: &Tokenizer) -> Result<(String, String), Error> {
    let Some(path) = path else {
        return Ok((CALIBRATION_NAME.into(), divided(CALIBRATION, tokenizer)));
    };
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::ReadFile { path: path.into(), source })?;
    Ok((path.display().to_string(), text))
}

/// The documents of the built-in calibration text.
///
/// # Errors
/// None that a reader could cause; the type is [`Documents`]'s.
pub(crate) fn calibration_documents() -> Result<Documents, Error> {
    Ok(Documents::from_text(CALIBRATION_NAME, CALIBRATION.as_bytes())?)
}

/// Opens the embedded model.
///
/// # Errors
/// None that a reader could cause; the type is [`Checkpoint`]'s.
pub fn checkpoint() -> Result<Checkpoint, Error> {
    let files = MODEL
        .iter()
        .map(|(path, bytes)| (path.trim_start_matches("model/").to_owned(), Region::from_static(bytes)));
    Ok(Checkpoint::from_files(NAME, files.collect())?)
}

/// The built-in tasks. `facts` asks about the invented world that only millet was trained on, so other models do not
/// get it.
///
/// # Errors
/// None that a reader could cause; the type is [`Task`]'s.
pub(crate) fn tasks(is_millet: bool) -> Result<Vec<Task>, Error> {
    TASKS
        .iter()
        .filter(|(name, _)| is_millet || *name != "facts")
        .map(|(name, lines)| Ok(Task::from_jsonl(name, lines)?))
        .collect()
}

/// Whether a model with `config` is millet or made from it, whatever it is called: its windows and tasks are millet's then.
pub(crate) fn has_shape(config: &ModelConfig) -> bool {
    (config.vocab_size, config.hidden_size, config.n_heads, config.n_kv_heads) == (2048, 256, 8, 1)
}
