//! What a model wrote, how long it took and why it stopped.

use serde::{Deserialize, Serialize};

use crate::{ChatSchema, GenerateSchema, Machine};

/// How tokens were chosen; the fields are the command line's flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    /// 0 means the likeliest token each time.
    pub temperature: f32,
    /// Tokens kept; 0 means all.
    pub top_k: usize,
    /// Probability kept, 1 means all.
    pub top_p: f32,
    /// Least probability kept, as a fraction of the likeliest token's.
    pub min_p: f32,
    /// What positive scores of tokens that were there already are divided by; 1 means nothing.
    pub repetition_penalty: f32,
    /// Of the random numbers.
    pub seed: u64,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// Ids read before the first new token, those kept from before included.
    pub prompt_tokens: Vec<u32>,
    /// Of those, how many the cache still held.
    pub reused_tokens: usize,
    /// New ids, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// The new text, less special tokens.
    pub text: String,
    /// `"end"`: a token ended the text; `"length"`: as many as asked for; `"context"`: no position is left.
    pub stop: String,
    /// Reading the prompt, in ms.
    pub prefill_ms: f64,
    /// All the new tokens together, choosing and printing included, in ms.
    pub decode_ms: f64,
}

/// The document of `bitmill generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateReport {
    /// `bitmill.generate/1`.
    pub schema: GenerateSchema,
    /// Of bitmill.
    pub version: String,
    /// When, in UTC.
    pub created: String,
    /// The model's name.
    pub model: String,
    /// The text continued.
    pub prompt: String,
    /// What came of it.
    #[serde(flatten)]
    pub generation: Generation,
    /// How tokens were chosen.
    pub sampling: Sampled,
    /// `"fast"` or `"exact"`.
    pub path: String,
    /// Where.
    pub machine: Machine,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// What was said.
    pub user: String,
    /// Earlier turns left out so that this one fits into the context.
    pub dropped_turns: usize,
    /// The answer.
    #[serde(flatten)]
    pub generation: Generation,
}

/// The document of `bitmill chat`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatReport {
    /// `bitmill.chat/1`.
    pub schema: ChatSchema,
    /// Of bitmill.
    pub version: String,
    /// When, in UTC.
    pub created: String,
    /// The model's name.
    pub model: String,
    /// The system message, if one was given.
    pub system: Option<String>,
    /// In order.
    pub turns: Vec<Turn>,
    /// How tokens were chosen.
    pub sampling: Sampled,
    /// `"fast"` or `"exact"`.
    pub path: String,
    /// Where.
    pub machine: Machine,
}
