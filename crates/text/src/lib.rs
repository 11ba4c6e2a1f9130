//! Tokenizers, token windows and multiple-choice task files.
//!
//! [`Tokenizer`] reads a Hugging Face `tokenizer.json` or a GGUF file's tokenizer keys and turns the one into
//! the other; [`Windows`] cuts a token stream for perplexity; [`Task`] reads multiple-choice items.

mod error;
mod folder_files;
mod gguf;
mod special;
mod split;
mod task;
mod tokenizer;
mod windows;

pub use error::Error;
pub use split::Split;
pub use task::{Item, Task};
pub use tokenizer::Tokenizer;
pub use windows::Windows;
