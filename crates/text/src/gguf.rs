//! A tokenizer as GGUF keys, and back: byte-level BPE here, SentencePiece in `pieces`.

use std::collections::HashMap;

use bitmill_checkpoint::GgufTokenizer;
use serde_json::{Map, Value, json};

use crate::byte_level::byte_level_json;
use crate::pieces::{Pieces, SPACE, keys_of_json};
use crate::special::SpecialTokens;
use crate::tokenizer::{added_token, merge_parts};
use crate::{Error, Split};

/// `tokenizer.ggml.token_type`: llama.cpp's numbers.
pub(crate) const NORMAL: i32 = 1;
pub(crate) const UNKNOWN: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER_DEFINED: i32 = 4;
pub(crate) const UNUSED: i32 = 5;
pub(crate) const BYTE: i32 = 6;

const FILE: &str = "tokenizer.ggml";

/// The tokenizer.json that GGUF keys stand for, and whether llama.cpp puts BOS first where they do not say.
pub(crate) fn to_json(keys: &GgufTokenizer) -> Result<(bool, Value), Error> {
    match keys.model.as_str() {
        "gpt2" => {}
        "llama" => return Ok((true, Pieces::from_gguf(FILE, keys)?.to_json(FILE)?)),
        _ => return Err(Error::UnknownGgufModel { model: keys.model.clone() }),
    }
    let split = Split::parse(&keys.pre).ok_or_else(|| Error::UnknownGgufPre {
        pre: keys.pre.clone(),
        known: Split::ALL.map(|split| format!("`{}`", split.gguf_name())).join(", "),
    })?;
    let malformed = |problem: String| Error::Malformed { file: FILE.to_owned(), problem };
    if !keys.token_types.is_empty() && keys.token_types.len() != keys.tokens.len() {
        let (types, tokens) = (keys.token_types.len(), keys.tokens.len());
        return Err(malformed(format!("{types} token types for {tokens} tokens")));
    }
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, token) in keys.tokens.iter().enumerate() {
        let kind = keys.token_types.get(id).copied().unwrap_or(NORMAL);
        // Rows past the tokenizer's last token are no tokens: a text may contain `[PAD7]`.
        if kind == UNUSED && *token == padding_token(id) {
            continue;
        }
        if let Some(first) = vocab.insert(token.clone(), id.into()) {
            let first = first.as_u64().unwrap_or_default() as usize;
            return Err(Error::DuplicateToken {
                file: FILE.to_owned(),
                token: token.clone(),
                first,
                second: id,
            });
        }
        if (kind == CONTROL || kind == USER_DEFINED) && !token.is_empty() {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            }));
        }
    }
    let merges = keys.merges.iter().enumerate().map(|(index, merge)| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(malformed(format!("merge {index}, `{merge}`, is no pair of tokens"))),
    });
    let merges = merges.collect::<Result<Vec<_>, _>>()?;
    Ok((split.adds_bos(), byte_level_json(split, vocab, merges, added)))
}

/// The GGUF keys of a tokenizer.json, less padding and chat template; `known` are the folder's SentencePiece scores.
pub(crate) fn from_json(
    json: &Value,
    special: SpecialTokens,
    known: Option<&Pieces>,
) -> Result<GgufTokenizer, Error> {
    if let Some(keys) = keys_of_json(json, special, known)? {
        return Ok(keys);
    }
    let model = &json["model"];
    let split = supported(json)?;
    let malformed =
        |problem: &str| Error::Malformed { file: "tokenizer.json".to_owned(), problem: problem.to_owned() };
    let (tokens, token_types) = rows_of_json(json, |_| NORMAL, None)?.into_iter().unzip();
    let merges = model["merges"].as_array().into_iter().flatten().map(|merge| {
        let (left, right) =
            merge_parts(merge).ok_or_else(|| malformed("`model.merges` has an entry that is no pair"))?;
        // Since transformers 4.45 a merge may contain spaces; in one string they become the byte letter of a space.
        let plain = |part: &str| part.replace(' ', "\u{120}");
        Ok(format!("{} {}", plain(left), plain(right)))
    });
    Ok(GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: split.gguf_name().to_owned(),
        tokens,
        token_types,
        merges: merges.collect::<Result<_, Error>>()?,
        scores: None,
        bos: special.bos,
        eos: special.eos,
        eot: None,
        padding: special.padding,
        unknown: special.unknown,
        // Written even when false: Llama 3's split defaults to true.
        add_bos: Some(special.add_bos.unwrap_or(false)),
        add_space_prefix: None,
        chat_template: None,
    })
}

/// Token and type of each id of a tokenizer.json, holes filled. `kind` tells the type of a token of the model's own
/// vocabulary; an added token is `unknown` itself, control or user-defined.
pub(crate) fn rows_of_json(
    json: &Value,
    kind: impl Fn(&str) -> i32,
    unknown: Option<&str>,
) -> Result<Vec<(String, i32)>, Error> {
    let malformed =
        |problem: &str| Error::Malformed { file: "tokenizer.json".to_owned(), problem: problem.to_owned() };
    let vocab = json["model"]["vocab"].as_object().ok_or_else(|| malformed("`model.vocab` is no object"))?;
    let mut by_id: HashMap<usize, (&str, i32)> = HashMap::new();
    for (token, id) in vocab {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
        let id = id.ok_or_else(|| malformed("`model.vocab` has an id that is no number"))?;
        by_id.insert(id, (token, kind(token)));
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (text, id) =
            added_token(token).ok_or_else(|| malformed("`added_tokens` has an entry without text or id"))?;
        let kind = if Some(text) == unknown {
            UNKNOWN
        } else if token["special"].as_bool().unwrap_or(false) || looks_special(text) {
            CONTROL
        } else {
            USER_DEFINED
        };
        by_id.insert(id as usize, (text, kind));
    }
    let rows = by_id.keys().max().map_or(0, |last| last + 1);
    // Ids are a file's word: a single one near 2^32 must not become as many padding tokens.
    if rows > by_id.len().saturating_mul(2) + 65_536 {
        return Err(malformed("ids are too sparse for a vocabulary"));
    }
    let row = |id| match by_id.get(&id) {
        // As SentencePiece writes a space, which llama.cpp expects undone in what it matches as a whole.
        Some((token, USER_DEFINED)) => (token.replace(SPACE, " "), USER_DEFINED),
        Some((token, kind)) => ((*token).to_owned(), *kind),
        None => (padding_token(id), UNUSED),
    };
    Ok((0..rows).map(row).collect())
}

/// Fills the vocabulary up to the model's rows.
pub(crate) fn pad(mut keys: GgufTokenizer, vocab_rows: usize) -> Result<GgufTokenizer, Error> {
    if keys.tokens.len() > vocab_rows {
        let last_id = u32::try_from(keys.tokens.len() - 1).unwrap_or(u32::MAX);
        return Err(Error::TokensBeyondRows { last_id, vocab_rows });
    }
    if keys.token_types.len() < keys.tokens.len() {
        keys.token_types.resize(keys.tokens.len(), NORMAL);
    }
    for id in keys.tokens.len()..vocab_rows {
        keys.tokens.push(padding_token(id));
        keys.token_types.push(UNUSED);
    }
    // SentencePiece files score every token; padding is never preferred.
    if let Some(scores) = &mut keys.scores {
        scores.resize(vocab_rows, -1000.0);
    }
    Ok(keys)
}

pub(crate) fn padding_token(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Tokens that some checkpoints add without marking them special: the list of llama.cpp's converter.
fn looks_special(token: &str) -> bool {
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || (token.starts_with("<|") && token.ends_with("|>"))
        || (token.starts_with("<\u{ff5c}") && token.ends_with("\u{ff5c}>"))
        || (token.starts_with("<unused") && token.ends_with('>'))
}

/// The split of a tokenizer.json that GGUF keys can stand for.
fn supported(json: &Value) -> Result<Split, Error> {
    let no_form = |part, found: &Value| Error::NoGgufForm { part, found: brief(found) };
    let model = &json["model"];
    // Files of tokenizers before 0.9 leave the type out.
    let kind = &model["type"];
    if !(kind == "BPE" || (kind.is_null() && model["merges"].is_array())) {
        return Err(no_form("model type", kind));
    }
    let split = Split::of_pre_tokenizer(&json["pre_tokenizer"])
        .ok_or_else(|| no_form("pre-tokenizer", &json["pre_tokenizer"]))?;
    let normalizer = &json["normalizer"];
    if !(normalizer.is_null() || (split == Split::Qwen2 && normalizer["type"] == "NFC")) {
        return Err(no_form("normalizer", normalizer));
    }
    Ok(split)
}

/// The value in backticks; of a pre-tokenizer its pattern, which is what tells one from another.
fn brief(found: &Value) -> String {
    let pattern = found["pretokenizers"].as_array().into_iter().flatten().chain([found]).find_map(|step| {
        let pattern = &step["pattern"];
        pattern["Regex"].as_str().or_else(|| pattern["String"].as_str())
    });
    let text = pattern.map_or_else(|| found.to_string(), str::to_owned);
    format!("`{text}`")
}
