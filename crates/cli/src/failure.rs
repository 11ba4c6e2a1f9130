//! Why a command could not run, as it is printed: a message, and apart from it what the reader can change.

/// A message and a hint.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Without a hint.
    pub fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// With one.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: Some(hint.into()) }
    }

    /// To stderr.
    pub fn print(&self) {
        eprintln!("error: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("\nhint: {hint}");
        }
    }
}

impl From<bitmill_pipeline::Error> for Failure {
    fn from(error: bitmill_pipeline::Error) -> Self {
        Self { message: error.to_string(), hint: error.hint() }
    }
}

impl From<bitmill_hub::Error> for Failure {
    fn from(error: bitmill_hub::Error) -> Self {
        Self { message: error.to_string(), hint: error.hint() }
    }
}

macro_rules! through_pipeline {
    ($($error:ty),+) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                bitmill_pipeline::Error::from(error).into()
            }
        })+
    };
}

through_pipeline!(
    bitmill_checkpoint::Error,
    bitmill_text::Error,
    bitmill_model::Error,
    bitmill_eval::Error,
    bitmill_bench::Error
);
