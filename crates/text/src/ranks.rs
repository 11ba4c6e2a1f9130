//! Byte-level vocabularies kept as byte strings by rank, the way of `tiktoken`: `qwen.tiktoken` and `tekken.json`.
//!
//! ```text
//! qwen.tiktoken   a line a token: BASE64 SPACE RANK, ranks from 0 up; the id is the rank. Special tokens follow:
//!                 <|endoftext|> <|im_start|> <|im_end|> <|extra_0|> … <|extra_204|>
//! tekken.json     {"config": {"pattern": …, "default_vocab_size": V, "default_num_special_tokens": S},
//!                  "vocab": [{"rank": 0, "token_bytes": BASE64}, …], "special_tokens": [{"rank": 0, "token_str": …}]}
//!                 the id is S + rank; only V − S ranks count
//! ```
//!
//! `tiktoken` merges the pair whose whole has the lowest rank. A list of merges says the same: each token's are the
//! two parts that it falls into when only lower ranks may merge, as llama.cpp's converter finds them (`bpe` of
//! `conversion/qwen.py`). A piece that is a token stays whole, merges or not: `ignore_merges`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::byte_level::{byte_level_json, letters};
use crate::{Error, Split};

/// Longest token, in bytes: published vocabularies stay below 256. Merging a token takes time by its square.
const LONGEST: usize = 512;
/// `<|extra_N|>` tokens of Qwen's first generation.
const EXTRAS: usize = 205;

/// The tokenizer.json of a `qwen.tiktoken`, after tokenization_qwen.py of that model.
///
/// The special tokens begin after the last rank, which is where they begin in the published file (151643).
pub(crate) fn qwen_json(file: &str, bytes: &[u8]) -> Result<Value, Error> {
    let tokens = read_lines(file, bytes)?;
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let special = special.into_iter().chain((0..EXTRAS).map(|i| format!("<|extra_{i}|>")));
    let special: Vec<(usize, String)> = (tokens.len()..).zip(special).collect();
    to_json(file, Split::Qwen2, 0, &tokens, &special)
}

/// The tokenizer.json of a `tekken.json`.
pub(crate) fn tekken_json(file: &str, bytes: &[u8]) -> Result<Value, Error> {
    #[derive(Deserialize)]
    struct Tekken {
        config: Config,
        vocab: Vec<Ranked>,
        #[serde(default)]
        special_tokens: Option<Vec<Special>>,
    }
    #[derive(Deserialize)]
    struct Config {
        pattern: String,
        default_vocab_size: usize,
        default_num_special_tokens: usize,
    }
    #[derive(Deserialize)]
    struct Ranked {
        rank: usize,
        token_bytes: String,
    }
    #[derive(Deserialize)]
    struct Special {
        rank: usize,
        token_str: String,
    }
    /// Those of the first files, which do not list them; the rest have no names.
    const NAMED: [&str; 10] = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
    ];
    let malformed = |problem: String| Error::Malformed { file: file.to_owned(), problem };
    let tekken: Tekken = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let Config { pattern, default_vocab_size, default_num_special_tokens: n_special } = tekken.config;
    if !Split::Tekken.has_pattern(&pattern) {
        return Err(malformed(format!("its pattern `{pattern}` is not the one that bitmill knows")));
    }
    let ranks = default_vocab_size.checked_sub(n_special).filter(|&ranks| ranks <= tekken.vocab.len());
    let Some(ranks) = ranks else {
        let (size, found) = (default_vocab_size, tekken.vocab.len());
        return Err(malformed(format!("{size} tokens, {n_special} of them special, and {found} ranks")));
    };
    let mut tokens = Vec::with_capacity(ranks);
    for (index, ranked) in tekken.vocab[..ranks].iter().enumerate() {
        if ranked.rank != index {
            return Err(malformed(format!("rank {} where {index} is expected", ranked.rank)));
        }
        tokens.push(
            base64(ranked.token_bytes.as_bytes())
                .ok_or_else(|| malformed(format!("rank {index} is not base64")))?,
        );
    }
    // Ids are a file's word, but no longer than the file.
    if n_special > 65_536 {
        return Err(malformed(format!("{n_special} special tokens")));
    }
    let mut names: Vec<String> = (0..n_special)
        .map(|id| NAMED.get(id).map_or_else(|| format!("<SPECIAL_{id}>"), |name| (*name).to_owned()))
        .collect();
    for special in tekken.special_tokens.into_iter().flatten() {
        match names.get_mut(special.rank) {
            Some(name) => *name = special.token_str,
            None => return Err(malformed(format!("special token {} of {n_special}", special.rank))),
        }
    }
    let special: Vec<(usize, String)> = names.into_iter().enumerate().collect();
    to_json(file, Split::Tekken, n_special, &tokens, &special)
}

/// Tokens by rank as a tokenizer.json; ranks begin at id `first`.
fn to_json(
    file: &str,
    split: Split,
    first: usize,
    tokens: &[Vec<u8>],
    special: &[(usize, String)],
) -> Result<Value, Error> {
    let mut ranks: HashMap<&[u8], usize> = HashMap::with_capacity(tokens.len());
    let mut vocab = Map::new();
    let duplicate = |token: String, before: usize, after: usize| Error::DuplicateToken {
        file: file.to_owned(),
        token,
        first: before,
        second: after,
    };
    for (id, text) in special {
        if let Some(before) = vocab.insert(text.clone(), json!(id)) {
            return Err(duplicate(text.clone(), before.as_u64().unwrap_or_default() as usize, *id));
        }
    }
    for (rank, token) in tokens.iter().enumerate() {
        if token.is_empty() || token.len() > LONGEST {
            let problem = format!("rank {rank} has {} bytes, and 1 to {LONGEST} are expected", token.len());
            return Err(Error::Malformed { file: file.to_owned(), problem });
        }
        if let Some(before) = ranks.insert(token, rank) {
            return Err(duplicate(letters(token), before, rank));
        }
        if vocab.insert(letters(token), json!(first + rank)).is_some() {
            return Err(duplicate(letters(token), 0, first + rank));
        }
    }
    let single = |byte: u8| ranks.contains_key(&[byte][..]);
    if let Some(byte) = (0..=u8::MAX).find(|&byte| !single(byte)) {
        let problem = format!("the byte 0x{byte:02x} is no token");
        return Err(Error::Malformed { file: file.to_owned(), problem });
    }
    let mut merges = Vec::new();
    for (rank, token) in tokens.iter().enumerate().filter(|(_, token)| token.len() > 1) {
        if let [left, right] = parts(&ranks, token, rank)[..] {
            merges.push(json!([letters(left), letters(right)]));
        }
    }
    let added = special.iter().map(|(id, text)| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let mut json = byte_level_json(split, vocab, merges, added.collect());
    json["model"]["ignore_merges"] = json!(true);
    Ok(json)
}

/// What `token` falls into when only pairs of a lower rank than `limit` merge.
fn parts<'t>(ranks: &HashMap<&[u8], usize>, token: &'t [u8], limit: usize) -> Vec<&'t [u8]> {
    // Where parts begin, and the end.
    let mut bounds: Vec<usize> = (0..=token.len()).collect();
    loop {
        let pairs = bounds.windows(3).enumerate();
        let ranked = pairs.filter_map(|(at, pair)| Some((*ranks.get(&token[pair[0]..pair[2]])?, at)));
        match ranked.min() {
            Some((rank, at)) if rank < limit => bounds.remove(at + 1),
            _ => break,
        };
    }
    bounds.windows(2).map(|pair| &token[pair[0]..pair[1]]).collect()
}

fn read_lines(file: &str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut tokens = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii_end();
        if line.is_empty() {
            continue;
        }
        let malformed = |problem: &str| Error::Malformed {
            file: file.to_owned(),
            problem: format!("line {}: {problem}", index + 1),
        };
        let space = line.iter().position(|&byte| byte == b' ');
        let (token, rank) = line.split_at(space.ok_or_else(|| malformed("no space"))?);
        let rank = std::str::from_utf8(rank.trim_ascii()).ok().and_then(|rank| rank.parse::<usize>().ok());
        if rank != Some(tokens.len()) {
            return Err(malformed(&format!("rank {} is expected", tokens.len())));
        }
        tokens.push(base64(token).ok_or_else(|| malformed("the token is not base64"))?);
    }
    Ok(tokens)
}

/// The bytes of standard base64 (RFC 4648), padded; `None` if it is none.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut held) = (0u32, 0);
    for &digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_and_nothing_else() {
        for (text, bytes) in
            [("", &b""[..]), ("TQ==", b"M"), ("TWE=", b"Ma"), ("TWFu", b"Man"), ("//79", b"\xff\xfe\xfd")]
        {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes), "{text}");
        }
        for bad in ["T", "TQ=", "T===", "====", "T=Q=", "TWF-", "TW F"] {
            assert_eq!(base64(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn merges_are_the_last_pair_below_a_tokens_rank() {
        let tokens: [&[u8]; 6] = [b"a", b"b", b"ab", b"c", b"bc", b"abc"];
        let ranks: HashMap<&[u8], usize> =
            tokens.iter().enumerate().map(|(rank, token)| (*token, rank)).collect();
        assert_eq!(parts(&ranks, b"ab", 2), [b"a", b"b"]);
        assert_eq!(parts(&ranks, b"abc", 5), [&b"ab"[..], b"c"]);
        assert_eq!(parts(&ranks, b"cab", 9), [&b"c"[..], b"ab"]);
    }
}
