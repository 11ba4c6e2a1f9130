//! Which tokens end a text.

use bitmill_checkpoint::{Checkpoint, Format};

use crate::Tokenizer;

/// Tokens that llama.cpp takes for an end of generation by their text, whatever a GGUF file's keys say
/// (`llama_vocab::impl::load`, `special_eog_ids`), of the families that bitmill runs.
const BY_TEXT: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<EOT>",
    "</s>",
];

/// A GGUF file's keys for them; `eos_token_id` is in the config.
const KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

impl Tokenizer {
    /// Every token that ends a text of `checkpoint`, by id: those of generation_config.json or config.json, the
    /// tokenizer's own, and of a GGUF file also `eot`, `eom` and the special tokens that llama.cpp stops at.
    pub fn ends(&self, checkpoint: &Checkpoint) -> Vec<u32> {
        let mut ends = checkpoint.config().eos.clone();
        ends.extend(self.eos());
        if checkpoint.format() == Format::Gguf {
            let id = |name: &str| -> Option<u32> {
                let (_, value) = checkpoint.metadata().iter().find(|(key, _)| key == name)?;
                value.as_u64()?.try_into().ok()
            };
            ends.extend(KEYS.into_iter().filter_map(id));
            let special = |text| self.id_of(text).filter(|&id| self.is_special(id));
            ends.extend(BY_TEXT.into_iter().filter_map(special));
        }
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}
