//! The values of GGUF metadata, and the tokenizer kept in them.

/// A metadata value of a GGUF file.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are the format's own names")]
pub enum GgufValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(GgufArray),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of metadata values, all of one type. Arrays of arrays are not read: no model has them.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the variants are the format's own names")]
pub enum GgufArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl GgufValue {
    /// The type's number in the file.
    pub fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// What it is, for messages: `u32`, `array of 3 string`.
    pub fn describe(&self) -> String {
        match self {
            Self::Array(array) => format!("array of {} {}", array.len(), type_name(array.type_id())),
            _ => type_name(self.type_id()).to_owned(),
        }
    }

    /// The integer, of whatever width, if it is one that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The number as f64, if it is a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    /// The array, if it is one.
    pub fn as_array(&self) -> Option<&GgufArray> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl GgufArray {
    /// The number of the elements' type in the file.
    pub fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The name of a value type, by its number.
pub(crate) fn type_name(id: u32) -> &'static str {
    const NAMES: [&str; 13] =
        ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"];
    usize::try_from(id).ok().and_then(|id| NAMES.get(id)).copied().unwrap_or("unknown")
}

/// A tokenizer as GGUF metadata holds it: the `tokenizer.*` keys.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `gpt2` for byte-level BPE, `llama` for SentencePiece.
    pub model: String,
    /// `tokenizer.ggml.pre`: which split pattern precedes BPE; empty if the key is absent.
    pub pre: String,
    /// Every token's text, by id.
    pub tokens: Vec<String>,
    /// Every token's kind (1 normal, 3 control, 4 user-defined, 5 unused, …), by id; empty if absent.
    pub token_types: Vec<i32>,
    /// Merges, the first strongest: `"Ġ t"`.
    pub merges: Vec<String>,
    /// SentencePiece scores, by id.
    pub scores: Option<Vec<f32>>,
    /// The token before a text.
    pub bos: Option<u32>,
    /// The token that ends a text.
    pub eos: Option<u32>,
    /// The token that ends a turn of a chat, where it is another.
    pub eot: Option<u32>,
    /// The padding token.
    pub padding: Option<u32>,
    /// The token for what has none.
    pub unknown: Option<u32>,
    /// Whether `bos` is put before every text.
    pub add_bos: Option<bool>,
    /// Whether SentencePiece puts a space before a text.
    pub add_space_prefix: Option<bool>,
    /// The chat template, in Jinja.
    pub chat_template: Option<String>,
}

impl GgufTokenizer {
    /// The metadata keys, in the order llama.cpp's converter writes them.
    pub fn to_metadata(&self) -> Vec<(String, GgufValue)> {
        let mut keys: Vec<(String, GgufValue)> = Vec::new();
        let mut put = |key: &str, value: GgufValue| keys.push((format!("tokenizer.{key}"), value));
        put("ggml.model", GgufValue::String(self.model.clone()));
        if !self.pre.is_empty() {
            put("ggml.pre", GgufValue::String(self.pre.clone()));
        }
        put("ggml.tokens", GgufValue::Array(GgufArray::String(self.tokens.clone())));
        if let Some(scores) = &self.scores {
            put("ggml.scores", GgufValue::Array(GgufArray::F32(scores.clone())));
        }
        if !self.token_types.is_empty() {
            put("ggml.token_type", GgufValue::Array(GgufArray::I32(self.token_types.clone())));
        }
        if !self.merges.is_empty() {
            put("ggml.merges", GgufValue::Array(GgufArray::String(self.merges.clone())));
        }
        let ids = [
            ("ggml.bos_token_id", self.bos),
            ("ggml.eos_token_id", self.eos),
            ("ggml.eot_token_id", self.eot),
            ("ggml.unknown_token_id", self.unknown),
            ("ggml.padding_token_id", self.padding),
        ];
        for (key, id) in ids {
            if let Some(id) = id {
                put(key, GgufValue::U32(id));
            }
        }
        if let Some(add_bos) = self.add_bos {
            put("ggml.add_bos_token", GgufValue::Bool(add_bos));
        }
        if let Some(space) = self.add_space_prefix {
            put("ggml.add_space_prefix", GgufValue::Bool(space));
        }
        if let Some(template) = &self.chat_template {
            put("chat_template", GgufValue::String(template.clone()));
        }
        keys
    }

    /// What `metadata` holds of a tokenizer; `None` if it has no tokens.
    ///
    /// A key of an unexpected type counts as absent: whether what is there suffices is for the tokenizer to say.
    pub(crate) fn from_metadata(metadata: &[(String, GgufValue)]) -> Option<Self> {
        let get = |key: &str| {
            metadata
                .iter()
                .find(|(name, _)| name.strip_prefix("tokenizer.") == Some(key))
                .map(|(_, value)| value)
        };
        let text = |key| get(key).and_then(GgufValue::as_str).map(str::to_owned);
        let id = |key| get(key).and_then(GgufValue::as_u64).and_then(|id| id.try_into().ok());
        let strings = |key| match get(key) {
            Some(GgufValue::Array(GgufArray::String(values))) => Some(values.clone()),
            _ => None,
        };
        Some(Self {
            model: text("ggml.model")?,
            pre: text("ggml.pre").unwrap_or_default(),
            tokens: strings("ggml.tokens")?,
            token_types: match get("ggml.token_type") {
                Some(GgufValue::Array(GgufArray::I32(values))) => values.clone(),
                _ => Vec::new(),
            },
            merges: strings("ggml.merges").unwrap_or_default(),
            scores: match get("ggml.scores") {
                Some(GgufValue::Array(GgufArray::F32(values))) => Some(values.clone()),
                _ => None,
            },
            bos: id("ggml.bos_token_id"),
            eos: id("ggml.eos_token_id"),
            eot: id("ggml.eot_token_id"),
            padding: id("ggml.padding_token_id"),
            unknown: id("ggml.unknown_token_id"),
            add_bos: get("ggml.add_bos_token").and_then(GgufValue::as_bool),
            add_space_prefix: get("ggml.add_space_prefix").and_then(GgufValue::as_bool),
            chat_template: text("chat_template"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizer_survives_its_metadata() {
        let tokenizer = GgufTokenizer {
            model: "gpt2".to_owned(),
            pre: "qwen2".to_owned(),
            tokens: vec!["a".to_owned(), "b".to_owned()],
            token_types: vec![1, 3],
            merges: vec!["a b".to_owned()],
            scores: Some(vec![0.5, -1.0]),
            bos: Some(0),
            eos: Some(1),
            eot: Some(0),
            padding: Some(1),
            unknown: None,
            add_bos: Some(false),
            add_space_prefix: Some(true),
            chat_template: Some("{{ x }}".to_owned()),
        };
        assert_eq!(GgufTokenizer::from_metadata(&tokenizer.to_metadata()), Some(tokenizer));
        assert_eq!(GgufTokenizer::from_metadata(&[]), None);
    }
}
