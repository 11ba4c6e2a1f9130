//! How a text is cut before byte-pair merges apply: the ways that GGUF files name.

use serde_json::{Value, json};

/// A pre-tokenizer that a GGUF file names by `tokenizer.ggml.pre`.
///
/// llama.cpp's converter finds the name by hashing what a probe text encodes to, which a new vocabulary cannot
/// match; here it is found by the pattern itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Qwen 1.5 to 3: digits one by one, words with one leading character. NFC is applied first.
    Qwen2,
    /// SmolLM: digits one by one, then GPT-2's pattern.
    SmolLm,
    /// Llama 3: digits up to three at a time; a piece that is a token already is not merged.
    LlamaBpe,
    /// Mistral Nemo: words divided where small letters turn large, digits one by one; as Llama 3 leaves tokens whole.
    Tekken,
}

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Split {
    /// Every split.
    pub const ALL: [Self; 4] = [Self::Qwen2, Self::SmolLm, Self::LlamaBpe, Self::Tekken];

    /// The value of `tokenizer.ggml.pre`.
    pub const fn gguf_name(self) -> &'static str {
        match self {
            Self::Qwen2 => "qwen2",
            Self::SmolLm => "smollm",
            Self::LlamaBpe => "llama-bpe",
            Self::Tekken => "tekken",
        }
    }

    /// The split that GGUF files call `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|split| split.gguf_name() == name)
    }

    /// Whether llama.cpp puts a BOS token first where the file does not say.
    pub const fn adds_bos(self) -> bool {
        matches!(self, Self::LlamaBpe | Self::Tekken)
    }

    /// Whether a piece that is a token already stays whole, whatever the merges would make of it.
    pub(crate) const fn ignores_merges(self) -> bool {
        matches!(self, Self::LlamaBpe | Self::Tekken)
    }

    /// The `normalizer` of such a tokenizer.json.
    pub(crate) fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 => json!({"type": "NFC"}),
            Self::SmolLm | Self::LlamaBpe | Self::Tekken => Value::Null,
        }
    }

    /// The `pre_tokenizer` of such a tokenizer.json.
    pub(crate) fn pre_tokenizer(self) -> Value {
        let pattern = match self {
            Self::Qwen2 => QWEN2,
            Self::LlamaBpe => LLAMA_BPE,
            Self::Tekken => TEKKEN,
            Self::SmolLm => {
                return json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Digits", "individual_digits": true},
                    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
                ]});
            }
        };
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    }

    /// Whether this is the split of `pattern`.
    pub(crate) fn has_pattern(self, pattern: &str) -> bool {
        self.pre_tokenizer()["pretokenizers"][0]["pattern"]["Regex"] == pattern
    }

    /// The split that a tokenizer.json's `pre_tokenizer` asks for, if it is one of these.
    pub(crate) fn of_pre_tokenizer(found: &Value) -> Option<Self> {
        let found = without_offsets(found);
        Self::ALL.into_iter().find(|split| without_offsets(&split.pre_tokenizer()) == found)
    }
}

/// The pre-tokenizer less `trim_offsets`, which changes no token.
fn without_offsets(pre_tokenizer: &Value) -> Value {
    let mut plain = pre_tokenizer.clone();
    if let Some(steps) = plain.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        for step in steps.iter_mut().filter_map(Value::as_object_mut) {
            step.remove("trim_offsets");
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_split_is_found_by_its_own_pre_tokenizer_and_name() {
        for split in Split::ALL {
            assert_eq!(Split::of_pre_tokenizer(&split.pre_tokenizer()), Some(split));
            assert_eq!(Split::parse(split.gguf_name()), Some(split));
        }
        assert_eq!(Split::parse("gpt-4o"), None);
    }

    #[test]
    fn offsets_do_not_matter_and_patterns_do() {
        let mut found = Split::Qwen2.pre_tokenizer();
        found["pretokenizers"][1]["trim_offsets"] = json!(false);
        assert_eq!(Split::of_pre_tokenizer(&found), Some(Split::Qwen2));
        found["pretokenizers"][0]["pattern"] = json!({"Regex": r"\p{N}{1,2}"});
        assert_eq!(Split::of_pre_tokenizer(&found), None);
        assert_eq!(Split::of_pre_tokenizer(&json!({"type": "Metaspace"})), None);
    }
}
