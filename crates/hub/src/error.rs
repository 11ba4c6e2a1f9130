//! Why a model could not be fetched.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong between a name and a model on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum Error {
    #[error("`{given}`: {problem}")]
    Name { given: String, problem: &'static str },
    #[error("{variable} is `{value}`: {problem}")]
    Setting { variable: &'static str, value: String, problem: String },
    #[error("{endpoint} is not encrypted, and the access token would be sent to it in the clear")]
    TokenInClear { endpoint: String, variable: &'static str },
    #[error("`{model}` is not in the cache {}, and {variable} forbids fetching it", cache.display())]
    Offline { model: String, cache: PathBuf, variable: &'static str },

    // the connection
    #[error("{url} cannot be reached: {problem} (tried {tries} times)")]
    Unreachable { url: String, problem: String, tries: u32 },
    #[error(
        "`{file}`: the connection broke off at {received} of {expected} bytes ({problem}; tried {tries} times)"
    )]
    BrokenOff { file: String, received: u64, expected: u64, problem: String, tries: u32 },
    #[error("{url} answered {status}{message}")]
    Status { url: String, status: u16, message: String },
    #[error("{url} is busy and asks to come back in {seconds} s")]
    Busy { url: String, seconds: u64 },
    #[error("{from} redirects to {to}, which is not encrypted")]
    Downgraded { from: String, to: String },
    #[error("{from} redirects to `{to}`: {problem}")]
    BadRedirect { from: String, to: String, problem: &'static str },
    #[error("{url} redirects more than {limit} times")]
    TooManyRedirects { url: String, limit: u32 },

    // the repository
    #[error("there is no model `{model}` at {endpoint}, or it is private{message}")]
    NoSuchModel { model: String, endpoint: String, message: String },
    #[error("`{model}` has no revision `{revision}`")]
    NoSuchRevision { model: String, revision: String },
    #[error("`{model}` is gated: its owner must grant access first{message}")]
    Gated { model: String, endpoint: String, message: String },
    #[error("{endpoint} does not accept the access token{message}")]
    TokenRefused { endpoint: String, message: String, variable: &'static str },
    #[error("`{model}` holds weights only as {kinds}, which run code when they are read")]
    OnlyPickles { model: String, kinds: String },
    #[error("`{model}` holds {} GGUF files, and none was named", names.len())]
    SeveralGguf { model: String, names: Vec<String> },
    #[error("`{model}` holds neither safetensors nor GGUF files")]
    NoWeights { model: String },
    #[error("`{model}`: `{pattern}` matches no file")]
    NoMatch { model: String, pattern: String, names: Vec<String> },
    #[error("`{model}`: `{pattern}` takes in `{file}`, which runs code when it is read")]
    PickleAsked { model: String, pattern: String, file: String },

    // what a lying server sends
    #[error("{url}: the answer is longer than {limit} bytes")]
    AnswerTooLong { url: String, limit: u64 },
    #[error("{url}: malformed answer: {problem}")]
    Answer { url: String, problem: String },
    #[error("{url} lists a file named `{name}`: {problem}")]
    FileName { url: String, name: String, problem: &'static str },
    #[error("`{file}` is {expected} bytes long by its listing, and {found} are sent")]
    WrongLength { file: String, expected: u64, found: String },
    #[error("`{file}`: the server was asked for the bytes from {from} and sends `{found}`")]
    WrongRange { file: String, from: u64, found: String },
    #[error("`{file}`: its {kind} is {found} where {expected} was promised")]
    WrongHash { file: String, kind: &'static str, expected: String, found: String },

    // the disk
    #[error("{}: {needed} bytes are needed and {free} are free", path.display())]
    NoSpace { path: PathBuf, needed: u64, free: u64 },
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    /// What the reader can change, where that is known.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name { .. } => {
                "hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE.gguf; ms: for ModelScope".into()
            }
            Self::Setting { .. } => return None,
            Self::TokenInClear { variable, .. } => {
                format!("use an https endpoint, or fetch without a token: {variable}= bitmill …")
            }
            Self::Offline { variable, .. } => {
                format!("unset {variable}, or fetch the model on a connected machine and copy the cache")
            }
            Self::Unreachable { .. } => {
                "check the connection; HF_ENDPOINT and MODELSCOPE_ENDPOINT name mirrors, HTTPS_PROXY a proxy, SSL_CERT_FILE its certificates"
                    .into()
            }
            Self::BrokenOff { .. } => "run it again: it goes on from where it stopped".into(),
            Self::Status { .. } | Self::Busy { .. } => "try again later".into(),
            Self::Downgraded { .. } | Self::BadRedirect { .. } | Self::TooManyRedirects { .. } => {
                "something on the way answers in the server's place: check the endpoint and the proxy".into()
            }
            Self::NoSuchModel { .. } => {
                "check the spelling; for a private model set HF_TOKEN (ms: MODELSCOPE_API_TOKEN)".into()
            }
            Self::NoSuchRevision { .. } => "name a branch, a tag or a commit after `@`".into(),
            Self::Gated { model, endpoint, .. } => {
                let page = model.split_once(':').map_or(model.as_str(), |(_, rest)| rest);
                format!("ask for access at {endpoint}/{page}, then set HF_TOKEN to a token of that account")
            }
            Self::TokenRefused { variable, .. } => format!("renew the token, or unset {variable}"),
            Self::OnlyPickles { .. } | Self::PickleAsked { .. } => {
                "look for a safetensors or GGUF version, or convert the weights with transformers: save_pretrained(…, safe_serialization=True)"
                    .into()
            }
            Self::SeveralGguf { model, names } => {
                format!("name one: {model}/{}", list(names))
            }
            Self::NoWeights { .. } => "name the repository that holds the model itself".into(),
            Self::NoMatch { names, .. } => format!("it holds {}", list(names)),
            Self::AnswerTooLong { .. } | Self::Answer { .. } | Self::FileName { .. } => {
                "this is not how the hub answers: check HF_ENDPOINT or MODELSCOPE_ENDPOINT".into()
            }
            Self::WrongLength { .. } | Self::WrongRange { .. } | Self::WrongHash { .. } => {
                "nothing of it was kept; try again, and if it stays so, another mirror".into()
            }
            Self::NoSpace { .. } => {
                "free space, or choose another disk with HF_HUB_CACHE (ms: MODELSCOPE_CACHE)".into()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "check the permissions of the cache, or choose another with HF_HUB_CACHE (ms: MODELSCOPE_CACHE)".into()
            }
            Self::Io { .. } => return None,
        })
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// The first few names.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
