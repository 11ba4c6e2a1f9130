//! What can be wrong with a tokenizer or a task file.

use std::io;
use std::path::PathBuf;

use crate::Place;

/// Why a tokenizer, a text or a task could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{file}: {problem}")]
    Malformed { file: String, problem: String },
    #[error("{file}: the merge `{left} {right}` needs the token `{missing}`, which the vocabulary lacks")]
    MergeOutsideVocabulary { file: String, left: String, right: String, missing: String },
    #[error("{file}: the added token `{token}` has id {declared} in the file and would get {assigned}")]
    AddedTokenId { file: String, token: String, declared: u32, assigned: u32 },
    #[error("{file}: the tokens {first} and {second} are both `{token}`")]
    DuplicateToken { file: String, token: String, first: usize, second: usize },
    #[error("{file} is {found}; bitmill reads BPE pieces without a normalizer")]
    UnreadPieces { file: String, found: String },
    #[error("`{checkpoint}` has no tokenizer")]
    NoTokenizer { checkpoint: String },
    #[error("tokenizer.ggml.model is `{model}`; bitmill reads `gpt2` and `llama`")]
    UnknownGgufModel { model: String },
    #[error("tokenizer.ggml.pre is `{pre}`; bitmill reads {known}")]
    UnknownGgufPre { pre: String, known: String },
    #[error("tokenizer.json: the {part} {found} has no counterpart in a GGUF file that bitmill writes")]
    NoGgufForm { part: &'static str, found: String },
    #[error("the tokenizer has tokens up to id {last_id}, the model {vocab_rows} rows")]
    TokensBeyondRows { last_id: u32, vocab_rows: usize },
    #[error("cannot encode a text of {chars} characters: {problem}")]
    Encode { chars: usize, problem: String },
    #[error("cannot decode {tokens} tokens: {problem}")]
    Decode { tokens: usize, problem: String },
    #[error("`{checkpoint}` has no chat template")]
    NoTemplate { checkpoint: String },
    #[error("the chat template: {problem}")]
    Template { problem: String },
    #[error("the chat template writes `{token}`, which the vocabulary lacks")]
    TemplateToken { token: String },
    #[error("`{checkpoint}` names no token that ends a text")]
    NoEnd { checkpoint: String },
    #[error("{file}, line {line}: {problem}")]
    TaskLine { file: String, line: usize, problem: String },
    #[error("{file}: no items")]
    EmptyTask { file: String },
    #[error("{file}, {place}: {problem}")]
    DocumentLine { file: String, place: Place, problem: String },
    #[error("{file}, line {line}: byte {at} of the file is no UTF-8")]
    NotUtf8 { file: String, line: usize, at: usize },
    #[error("{file}: {problem}")]
    Parquet { file: String, problem: String },
}

impl Error {
    /// What the reader can change, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoTokenizer { .. } => "put the model's tokenizer.json into its folder",
            Self::UnreadPieces { .. } => {
                "let transformers write a tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            }
            Self::UnknownGgufModel { .. } => {
                "give the Hugging Face folder instead: its tokenizer.json says how to read it"
            }
            Self::UnknownGgufPre { .. } => {
                "give the Hugging Face folder instead: its tokenizer.json says how to split"
            }
            Self::NoGgufForm { .. } => {
                "write a Hugging Face folder instead, which ships the original tokenizer.json: choose a compressed-tensors preset"
            }
            Self::TokensBeyondRows { .. } => "this tokenizer.json belongs to another model",
            Self::NoTemplate { .. } => {
                "it may not be made for chat: continue a text with `bitmill generate`, or put a chat_template.jinja into its folder (`chat` takes one with --template)"
            }
            Self::TemplateToken { .. } => {
                "template and tokenizer are of different models: put the right chat_template.jinja into its folder (`chat` takes one with --template)"
            }
            Self::NoEnd { .. } => {
                "give `eos_token_id` in generation_config.json: without it no answer would end"
            }
            Self::TaskLine { .. } => {
                r#"each line is {"context": "…", "choices": ["…", "…"], "answer": 0}; `prompt` may stand for `context`"#
            }
            Self::DocumentLine { .. } => {
                r#"each line is {"text": "…"} or {"messages": [{"role": "user", "content": "…"}, …]}; so are the rows of a Parquet file"#
            }
            Self::NotUtf8 { .. } => "convert it: iconv -f ENCODING -t UTF-8",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
