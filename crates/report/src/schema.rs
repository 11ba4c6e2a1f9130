//! The names of the documents, and reading and writing them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! schema {
    ($(#[$doc:meta])* $name:ident = $text:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name;

        impl $name {
            /// The name as the document carries it.
            pub const NAME: &'static str = $text;
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(Self::NAME)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let found = String::deserialize(deserializer)?;
                if found == Self::NAME {
                    Ok(Self)
                } else {
                    let message = format!("schema `{found}`, expected `{}`", Self::NAME);
                    Err(serde::de::Error::custom(message))
                }
            }
        }
    };
}

schema! {
    /// Marks an [`EvalReport`](crate::EvalReport): `bitmill.eval/1`. Reading any other name is an error.
    EvalSchema = "bitmill.eval/1"
}
schema! {
    /// Marks a [`BenchReport`](crate::BenchReport): `bitmill.bench/1`. Reading any other name is an error.
    BenchSchema = "bitmill.bench/1"
}
schema! {
    /// Marks a [`CompareReport`](crate::CompareReport): `bitmill.compare/1`. Reading any other name is an error.
    CompareSchema = "bitmill.compare/1"
}
schema! {
    /// Marks a [`GenerateReport`](crate::GenerateReport): `bitmill.generate/1`. Reading any other name is an error.
    GenerateSchema = "bitmill.generate/1"
}
schema! {
    /// Marks a [`ChatReport`](crate::ChatReport): `bitmill.chat/1`. Reading any other name is an error.
    ChatSchema = "bitmill.chat/1"
}

schema! {
    /// Marks a [`WatchReport`](crate::WatchReport): `bitmill.watch/1`. Reading any other name is an error.
    WatchSchema = "bitmill.watch/1"
}

/// What can go wrong with a document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is no JSON, is another document, or misses a field.
    #[error("this is no `{expected}` document: {source}")]
    Malformed {
        /// The document that was asked for.
        expected: &'static str,
        /// What the parser says, with line and column.
        source: serde_json::Error,
    },
}

impl Error {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Malformed { expected, .. } => {
                let command = expected.trim_start_matches("bitmill.").split('/').next().unwrap_or_default();
                Some(format!("write the document anew with `bitmill {command} --json`"))
            }
        }
    }
}

/// The documents; implemented here only.
pub trait Document: Serialize + DeserializeOwned {
    /// The `schema` they carry.
    const SCHEMA: &'static str;
}

impl Document for crate::EvalReport {
    const SCHEMA: &'static str = EvalSchema::NAME;
}
impl Document for crate::BenchReport {
    const SCHEMA: &'static str = BenchSchema::NAME;
}
impl Document for crate::CompareReport {
    const SCHEMA: &'static str = CompareSchema::NAME;
}
impl Document for crate::GenerateReport {
    const SCHEMA: &'static str = GenerateSchema::NAME;
}
impl Document for crate::ChatReport {
    const SCHEMA: &'static str = ChatSchema::NAME;
}

impl Document for crate::WatchReport {
    const SCHEMA: &'static str = WatchSchema::NAME;
}

/// The document as indented JSON, ending in a newline.
pub fn to_json<D: Document>(document: &D) -> String {
    // Writing to memory fails only for maps whose keys are no strings, and the records have none.
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

/// Reads a document back.
///
/// # Errors
/// [`Malformed`](Error::Malformed) if the text is no JSON, carries another `schema`, or misses a field. Fields nobody
/// knows are passed over, so that a later version may add some under the same schema.
pub fn from_json<D: Document>(text: &str) -> Result<D, Error> {
    serde_json::from_str(text).map_err(|source| Error::Malformed { expected: D::SCHEMA, source })
}
