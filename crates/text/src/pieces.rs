//! SentencePiece vocabularies: pieces with scores, as a GGUF file's keys and as a tokenizer.json.
//!
//! SentencePiece merges the neighbours whose whole has the highest score. A tokenizer.json lists merges instead; they
//! follow from the scores as transformers derives them (`generate_merges` of convert_slow_tokenizer.py), and where
//! only merges are known, scores follow from their ranks.

use std::collections::HashMap;

use bitmill_checkpoint::GgufTokenizer;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::gguf::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, padding_token, rows_of_json};
use crate::special::SpecialTokens;
use crate::tokenizer::merge_parts;

/// How SentencePiece writes a space.
pub(crate) const SPACE: &str = "\u{2581}";
/// Longest piece that merges are derived for, in bytes: training stops at 16 characters unless told otherwise.
const LONGEST: usize = 1024;

/// A vocabulary, by id.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Pieces {
    pub texts: Vec<String>,
    pub scores: Vec<f32>,
    /// The numbers of `tokenizer.ggml.token_type`, which are SentencePiece's own.
    pub types: Vec<i32>,
    /// Whether a space goes before a text.
    pub space_prefix: bool,
}

impl Pieces {
    /// Those of GGUF keys.
    pub fn from_gguf(file: &str, keys: &GgufTokenizer) -> Result<Self, Error> {
        let malformed = |problem: String| Error::Malformed { file: file.to_owned(), problem };
        let texts = keys.tokens.clone();
        let scores = keys.scores.clone().ok_or_else(|| malformed("there are no scores".to_owned()))?;
        if scores.len() != texts.len() {
            return Err(malformed(format!("{} scores for {} tokens", scores.len(), texts.len())));
        }
        let mut types = keys.token_types.clone();
        if types.is_empty() {
            types.resize(texts.len(), NORMAL);
        }
        if types.len() != texts.len() {
            return Err(malformed(format!("{} token types for {} tokens", types.len(), texts.len())));
        }
        Ok(Self { texts, scores, types, space_prefix: keys.add_space_prefix.unwrap_or(true) })
    }

    /// The tokenizer.json that encodes as SentencePiece does.
    pub fn to_json(&self, file: &str) -> Result<Value, Error> {
        let (mut vocab, mut added, mut unknown) = (Map::new(), Vec::new(), None);
        let mut scored: Vec<(&str, f32)> = Vec::new();
        let mut byte_fallback = false;
        for (id, text) in self.texts.iter().enumerate() {
            let kind = self.types[id];
            if kind == UNUSED && *text == padding_token(id) {
                continue;
            }
            // Matched in the text as it is, before spaces are replaced.
            let whole = matches!(kind, CONTROL | USER_DEFINED | UNKNOWN);
            let text = if whole { text.replace(SPACE, " ") } else { text.clone() };
            if let Some(first) = vocab.insert(text.clone(), json!(id)) {
                let first = first.as_u64().unwrap_or_default() as usize;
                let (file, token) = (file.to_owned(), text);
                return Err(Error::DuplicateToken { file, token, first, second: id });
            }
            if whole && !text.is_empty() {
                added.push(json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": kind != USER_DEFINED,
                }));
            }
            match kind {
                UNKNOWN => unknown = unknown.or(Some(text)),
                BYTE => byte_fallback = true,
                NORMAL => scored.push((&self.texts[id], self.scores[id])),
                _ => {}
            }
        }
        let merges = merges(file, &scored, &vocab)?;
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let normalizer = match self.space_prefix {
            true => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace]})
            }
            false => replace,
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.space_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": byte_fallback,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": merges,
            },
        }))
    }
}

/// Every way to make a piece of two, those of the highest score first.
fn merges(file: &str, scored: &[(&str, f32)], vocab: &Map<String, Value>) -> Result<Vec<Value>, Error> {
    let ids: HashMap<&str, u64> =
        scored.iter().filter_map(|(text, _)| Some((*text, vocab.get(*text)?.as_u64()?))).collect();
    let mut found: Vec<(f32, &str, &str)> = Vec::new();
    for &(text, score) in scored {
        if text.len() > LONGEST {
            let problem = format!("a piece of {} bytes, and {LONGEST} are the most", text.len());
            return Err(Error::Malformed { file: file.to_owned(), problem });
        }
        let begin = found.len();
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                found.push((score, left, right));
            }
        }
        found[begin..].sort_by_key(|(_, left, right)| (ids[left], ids[right]));
    }
    // Reversed as a whole there, with the order of equals kept.
    found.sort_by(|a, b| {
        let by_length = |merge: &(f32, &str, &str)| (merge.1.chars().count(), merge.2.chars().count());
        b.0.total_cmp(&a.0).then_with(|| by_length(b).cmp(&by_length(a)))
    });
    Ok(found.into_iter().map(|(_, left, right)| json!([left, right])).collect())
}

/// The GGUF keys of a SentencePiece tokenizer.json, less padding and chat template; `None` if it is none.
///
/// # Errors
/// [`Error::NoGgufForm`] for one that such keys cannot say.
pub(crate) fn keys_of_json(
    json: &Value,
    special: SpecialTokens,
    known: Option<&Pieces>,
) -> Result<Option<GgufTokenizer>, Error> {
    let model = &json["model"];
    if !(model["type"] == "BPE" && model["byte_fallback"] == true) {
        return Ok(None);
    }
    let no_form = |part, found: &Value| Error::NoGgufForm { part, found: format!("`{found}`") };
    let space_prefix = space_prefix(json).map_err(|part| no_form(part, &json[part]))?;
    let unknown = model["unk_token"].as_str();
    let kind = |token: &str| match token {
        _ if Some(token) == unknown => UNKNOWN,
        _ if is_byte(token) => BYTE,
        _ => NORMAL,
    };
    let rows = rows_of_json(json, kind, unknown)?;
    let scores = scores_of_merges(model)?;
    let mut keys = GgufTokenizer {
        model: "llama".to_owned(),
        pre: "default".to_owned(),
        tokens: Vec::with_capacity(rows.len()),
        token_types: Vec::with_capacity(rows.len()),
        merges: Vec::new(),
        scores: None,
        bos: special.bos,
        eos: special.eos,
        eot: None,
        padding: special.padding,
        unknown: special.unknown,
        add_bos: Some(special.add_bos.unwrap_or(false)),
        add_space_prefix: Some(space_prefix),
        chat_template: None,
    };
    let mut row_scores = Vec::with_capacity(rows.len());
    for (id, (token, kind)) in rows.into_iter().enumerate() {
        let from_model = known.filter(|pieces| pieces.texts.get(id) == Some(&token)).map(|p| p.scores[id]);
        row_scores.push(from_model.unwrap_or_else(|| match kind {
            // What no merge makes is never chosen over what one does.
            NORMAL => scores.get(token.as_str()).copied().unwrap_or(-(scores.len() as f32) - id as f32),
            BYTE | UNKNOWN | CONTROL => 0.0,
            _ => -1000.0,
        }));
        keys.tokens.push(token);
        keys.token_types.push(kind);
    }
    keys.scores = Some(row_scores);
    Ok(Some(keys))
}

/// A score for every piece that merges make: minus the rank of the first of them.
fn scores_of_merges(model: &Value) -> Result<HashMap<String, f32>, Error> {
    let mut scores = HashMap::new();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let (left, right) = merge_parts(merge).ok_or_else(|| Error::Malformed {
            file: "tokenizer.json".to_owned(),
            problem: "`model.merges` has an entry that is no pair".to_owned(),
        })?;
        let rank = scores.len() as f32;
        scores.entry(format!("{left}{right}")).or_insert(-rank);
    }
    Ok(scores)
}

/// Whether such a tokenizer puts a space before a text; the part that says something else as the error.
fn space_prefix(json: &Value) -> Result<bool, &'static str> {
    let (normalizer, pre_tokenizer) = (&json["normalizer"], &json["pre_tokenizer"]);
    let replaces = |step: &Value| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE
    };
    let prepends = |step: &Value| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let steps = normalizer["normalizers"].as_array().map_or_else(
        || if normalizer.is_null() { Vec::new() } else { vec![normalizer] },
        |steps| steps.iter().collect(),
    );
    match steps.as_slice() {
        [prepend, replace] if prepends(prepend) && replaces(replace) && pre_tokenizer.is_null() => Ok(true),
        [replace] if replaces(replace) && pre_tokenizer.is_null() => Ok(false),
        [] if pre_tokenizer["type"] == "Metaspace"
            && pre_tokenizer["replacement"] == SPACE
            && pre_tokenizer["split"] == false =>
        {
            // llama.cpp knows no "first": it puts the space after every special token too.
            Ok(pre_tokenizer["prepend_scheme"] != "never")
        }
        [] => Err("pre_tokenizer"),
        _ => Err("normalizer"),
    }
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    fn pieces() -> Pieces {
        crate::sentencepiece::read("spm.model", include_bytes!("../tests/golden/spm.model")).unwrap()
    }

    /// Ids of some texts by the tokenizer.json of `json`.
    fn ids(json: &Value) -> Vec<Vec<u32>> {
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        ["The capital of Barcorland is lume.", "评论：昨天的服务", "  a  b 🦙 <tool>x", "aaaaaaaa"]
            .map(|text| tokenizer.encode(text).unwrap())
            .into()
    }

    #[test]
    fn scores_made_of_merges_give_the_same_ids() {
        let json = pieces().to_json("test").unwrap();
        let keys = keys_of_json(&json, SpecialTokens::default(), None).unwrap().unwrap();
        let again = Pieces::from_gguf("test", &keys).unwrap();
        assert_ne!(again.scores, pieces().scores);
        assert_eq!(ids(&again.to_json("test").unwrap()), ids(&json));
        let known = keys_of_json(&json, SpecialTokens::default(), Some(&pieces())).unwrap().unwrap();
        let (scores, types) = (known.scores.unwrap(), known.token_types);
        let normal = |id: &usize| types[*id] == NORMAL;
        assert!((0..types.len()).filter(normal).all(|id| scores[id] == pieces().scores[id]));
    }

    #[test]
    fn each_way_to_write_the_first_space_is_understood() {
        let mut json = pieces().to_json("test").unwrap();
        assert_eq!(space_prefix(&json), Ok(true));
        let bare = Pieces { space_prefix: false, ..pieces() }.to_json("test").unwrap();
        assert_eq!(space_prefix(&bare), Ok(false));
        assert_ne!(ids(&bare)[0], ids(&json)[0]);
        json["normalizer"] = Value::Null;
        for (scheme, prefix) in [("always", true), ("first", true), ("never", false)] {
            json["pre_tokenizer"] =
                json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false});
            assert_eq!(space_prefix(&json), Ok(prefix));
        }
        json["pre_tokenizer"]["split"] = json!(true);
        assert_eq!(space_prefix(&json), Err("pre_tokenizer"));
        json["normalizer"] = json!({"type": "NFKC"});
        assert_eq!(space_prefix(&json), Err("normalizer"));
        assert!(is_byte("<0x0A>") && !is_byte("<0x0G>") && !is_byte("<0x0AA>"));
    }
}
