//! Tokenizers, chat templates, token windows and multiple-choice task files.
//!
//! [`Tokenizer`] reads a Hugging Face `tokenizer.json` or a GGUF file's tokenizer keys and turns the one into
//! the other; [`ChatTemplate`] turns messages into text and [`TextStream`] tokens into text as they arrive; [`Windows`] cuts a token stream for perplexity; [`Task`] reads multiple-choice items;
//! [`Documents`] are what models are calibrated on.

mod byte_level;
mod documents;
mod ends;
mod error;
mod folder_files;
mod gguf;
mod parquet;
mod pieces;
mod ranks;
mod sentencepiece;
mod special;
mod split;
mod stream;
mod strftime;
mod task;
mod template;
mod to_json;
mod tokenizer;
mod windows;

pub use documents::{Content, Document, Documents, Place};
pub use error::Error;
pub use split::Split;
pub use stream::TextStream;
pub use task::{Item, Task};
pub use template::{ChatTemplate, Message, Speaker, TemplateTokens};
pub use tokenizer::Tokenizer;
pub use windows::Windows;
