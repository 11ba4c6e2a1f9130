//! Why a model could not be measured.

use std::io;

/// Why a model could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum Error {
    #[error(transparent)]
    Model(#[from] bitmill_model::Error),
    #[error(transparent)]
    Text(#[from] bitmill_text::Error),
    #[error("the text has no whole window of {length} tokens")]
    NoWindows { length: usize },
    #[error("a window of {length} tokens has no second half to score")]
    WindowTooShort { length: usize },
    #[error("window {window}: the model's logits are not finite")]
    NotFiniteInWindow { window: usize },
    #[error("task `{task}`, item {item}: the model's logits are not finite")]
    NotFiniteInItem { task: String, item: usize },
    #[error("the dense model has {dense} logits, this one {found}")]
    OtherVocabulary { dense: usize, found: usize },
    #[error("cannot read the dense model's spooled logits back: {source}")]
    Spool { source: io::Error },
    #[error("prompt {prompt} has {tokens} tokens; at least {least} are needed")]
    ShortPrompt { prompt: usize, tokens: usize, least: usize },
    #[error("{file}: {problem}")]
    Baseline { file: String, problem: String },
    #[error("task `{task}`, item {item}: {part} has no tokens")]
    NoTokens { task: String, item: usize, part: String },
    #[error("task `{task}`, item {item}: {source}")]
    Item { task: String, item: usize, source: Box<bitmill_model::Error> },
    #[error("the dense model's answers are to {dense} items of task `{task}`, these to {found}")]
    OtherItems { task: String, dense: usize, found: usize },
}

impl Error {
    /// What the reader can change, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Model(error) => error.hint(),
            Self::Item { source, .. } => source.hint(),
            Self::Text(error) => error.hint(),
            Self::NoWindows { .. } => Some("give a longer text or a smaller window".to_owned()),
            Self::WindowTooShort { .. } => Some("use windows of 3 tokens or more".to_owned()),
            Self::NotFiniteInWindow { .. } | Self::NotFiniteInItem { .. } => {
                Some("a weight or scale of the model is NaN or infinite, or overflows".to_owned())
            }
            Self::OtherVocabulary { .. } => Some("compare a model with the one it was made from".to_owned()),
            Self::Baseline { .. } => {
                Some("record it again: bitmill eval DENSE --save-baseline FILE".to_owned())
            }
            Self::NoTokens { .. } => {
                Some("the tokenizer names no BOS or EOS that could stand for an empty context".to_owned())
            }
            _ => None,
        }
    }
}
