//! A small byte-level BPE tokenizer, made in code.

use serde_json::{Map, Value, json};

/// How text is split before merging: the part of a tokenizer that GGUF names in `tokenizer.ggml.pre`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Qwen2's pattern.
    Qwen2,
    /// SmolLM's: digits apart, then GPT-2's pattern.
    SmolLm,
}

/// Merges, most frequent first; `Ġ` is a space.
const MERGES: [(&str, &str); 24] = [
    ("h", "e"),
    ("Ġ", "t"),
    ("Ġt", "he"),
    ("i", "n"),
    ("e", "r"),
    ("Ġ", "a"),
    ("o", "n"),
    ("r", "e"),
    ("a", "t"),
    ("e", "n"),
    ("Ġ", "s"),
    ("o", "r"),
    ("i", "s"),
    ("Ġa", "n"),
    ("Ġan", "d"),
    ("in", "g"),
    ("Ġ", "o"),
    ("Ġo", "f"),
    ("e", "d"),
    ("l", "l"),
    ("at", "ion"),
    ("i", "on"),
    ("Ġ", "w"),
    ("ä", "½"),
];

/// The special tokens, ids 0, 1 and 2: padding, beginning, end.
pub(crate) const SPECIAL: [&str; 3] = ["<|pad|>", "<|begin|>", "<|end|>"];

/// A `tokenizer.json` of 283 tokens: three special ones (`<|pad|>`, `<|begin|>`, `<|end|>`), the 256 bytes, 24
/// merges.
pub fn tokenizer_json(split: Split) -> String {
    let mut vocab = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    };
    SPECIAL.iter().for_each(|token| add((*token).to_owned()));
    (0..=255u8).for_each(|byte| add(byte_char(byte).to_string()));
    MERGES.iter().for_each(|(left, right)| add(format!("{left}{right}")));
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let first = match split {
        Split::Qwen2 => json!({
            "type": "Split", "behavior": "Isolated", "invert": false,
            "pattern": {"Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"},
        }),
        Split::SmolLm => json!({"type": "Digits", "individual_digits": true}),
    };
    let added = |(id, content): (usize, &&str)| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL.iter().enumerate().map(added).collect::<Vec<Value>>(),
        "normalizer": match split { Split::Qwen2 => json!({"type": "NFC"}), Split::SmolLm => Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [first, byte_level(split == Split::SmolLm)]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab,
            "merges": MERGES.iter().map(|(left, right)| json!([left, right])).collect::<Vec<Value>>(),
        },
    });
    format!("{tokenizer:#}\n")
}

/// The character that byte-level BPE writes a byte as: itself if printable, else one from 256 on.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&byte| !printable(byte)).count() as u32;
    char::from_u32(256 + hidden_before).unwrap_or('\u{100}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_map_to_the_characters_of_gpt_2() {
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        assert_eq!(byte_char(b'a'), 'a');
        assert_eq!(byte_char(0xad), 'Ń');
    }

    #[test]
    fn every_merge_joins_tokens_that_exist() {
        let tokenizer: Value = serde_json::from_str(&tokenizer_json(Split::Qwen2)).unwrap();
        let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
        assert_eq!(vocab.len(), 3 + 256 + MERGES.len());
        for (left, right) in MERGES {
            assert!(vocab.contains_key(left) && vocab.contains_key(right), "{left} {right}");
        }
    }
}
