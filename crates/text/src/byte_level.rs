//! The tokenizer.json of byte-level BPE.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::Split;

/// The tokenizer.json of a byte-level vocabulary.
pub(crate) fn byte_level_json(
    split: Split,
    vocab: Map<String, Value>,
    merges: Vec<Value>,
    added: Vec<Value>,
) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": split.normalizer(),
        "pre_tokenizer": split.pre_tokenizer(),
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.ignores_merges(),
            "vocab": vocab,
            "merges": merges,
        },
    })
}

/// Bytes as byte-level BPE writes them: printable ones as the character of their number, the others as characters
/// from 256 on, in order (GPT-2's `bytes_to_unicode`).
pub(crate) fn letters(bytes: &[u8]) -> String {
    static LETTERS: LazyLock<[char; 256]> = LazyLock::new(|| {
        let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let mut hidden = '\u{100}'..;
        std::array::from_fn(|byte| match byte as u8 {
            byte if printable(byte) => char::from(byte),
            // There are 68 of these.
            _ => hidden.next().unwrap_or(char::REPLACEMENT_CHARACTER),
        })
    });
    bytes.iter().map(|&byte| LETTERS[usize::from(byte)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_map_to_the_characters_of_gpt_2() {
        assert_eq!(letters(b" a\n\xad\xff\0"), "ĠaĊŃÿĀ");
        let all: Vec<u8> = (0..=255).collect();
        let mut seen: Vec<char> = letters(&all).chars().collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 256);
    }
}
