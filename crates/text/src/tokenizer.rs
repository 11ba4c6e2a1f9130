//! Text to tokens and back.

use bitmill_checkpoint::{Checkpoint, GgufTokenizer, TokenizerSource};
use serde_json::Value;

use crate::Error;
use crate::special::{SpecialSources, SpecialTokens};

/// A tokenizer, whatever file it came from.
///
/// ```
/// use bitmill_text::Tokenizer;
/// let json = r#"{
///     "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
///     "post_processor": null, "decoder": {"type": "Fuse"},
///     "added_tokens": [{"id": 3, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
///                       "normalized": false, "special": true}],
///     "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
/// }"#;
/// let tokenizer = Tokenizer::from_json(json.as_bytes())?;
/// assert_eq!(tokenizer.encode("aba<end>")?, [2, 0, 3]);
/// assert_eq!(tokenizer.decode(&[2, 0, 3])?, "aba<end>");
/// # Ok::<(), bitmill_text::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`. Without the folder's other files it may not know its BOS and EOS.
    ///
    /// # Errors
    /// What is malformed, and where.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        let json = SpecialSources::parse(TOKENIZER_JSON, bytes)?;
        let inner = load(TOKENIZER_JSON, &json, bytes)?;
        Ok(Self { inner, special: SpecialSources { tokenizer: json, ..SpecialSources::default() }.resolve() })
    }

    /// Reads a vocabulary by its file's name: `tokenizer.json`, `qwen.tiktoken`, `tokenizer.model` or `tekken.json`. Without
    /// the folder's other files it may not know its BOS and EOS.
    ///
    /// # Errors
    /// [`Error::Malformed`] for another name too.
    pub fn from_file(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let Some((file, read)) = VOCABULARIES.into_iter().find(|(name, _)| *name == file) else {
            let problem = "no vocabulary has this name".to_owned();
            return Err(Error::Malformed { file: file.to_owned(), problem });
        };
        let sources = SpecialSources {
            tokenizer: read(file, bytes)?,
            bos_by_default: bos_by_default(file),
            ..SpecialSources::default()
        };
        let inner = load(file, &sources.tokenizer, sources.tokenizer.to_string().as_bytes())?;
        Ok(Self { inner, special: sources.resolve() })
    }

    /// Rebuilds the tokenizer that a GGUF file's keys describe.
    ///
    /// # Errors
    /// Another model than byte-level BPE, an unknown split, or keys that contradict each other.
    pub fn from_gguf(keys: &GgufTokenizer) -> Result<Self, Error> {
        let (adds_bos, json) = crate::gguf::to_json(keys)?;
        let bytes = json.to_string();
        let special = SpecialTokens {
            bos: keys.bos,
            eos: keys.eos,
            padding: keys.padding,
            unknown: keys.unknown,
            add_bos: Some(keys.add_bos.unwrap_or(adds_bos)),
        };
        Ok(Self { inner: load("tokenizer.ggml", &json, bytes.as_bytes())?, special })
    }

    /// The tokenizer that comes with a model.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] if none does; otherwise as [`from_json`](Self::from_json) and
    /// [`from_gguf`](Self::from_gguf).
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, Error> {
        match checkpoint.tokenizer_source() {
            TokenizerSource::Gguf(keys) => Self::from_gguf(&keys),
            TokenizerSource::Json(_) | TokenizerSource::None => {
                let (file, sources) = folder_sources(checkpoint)?;
                let bytes = sources.tokenizer.to_string();
                let inner = load(file, &sources.tokenizer, bytes.as_bytes())?;
                Ok(Self { inner, special: sources.resolve() })
            }
        }
    }

    /// The tokens of `text`. None is added; a special token's text inside `text` becomes that token.
    ///
    /// # Errors
    /// [`Error::Encode`] if the text has a character that the vocabulary cannot express.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(Error::Encode { chars: text.chars().count(), problem: error.to_string() }),
        }
    }

    /// The tokens of a whole text as a model is to read it: after BOS where the model [asks for it](Self::add_bos).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut tokens: Vec<u32> = self.bos_to_add().into_iter().collect();
        tokens.append(&mut self.encode(text)?);
        Ok(tokens)
    }

    /// The text of `tokens`, special ones included. Ids without a token, such as padded rows, are passed over.
    ///
    /// # Errors
    /// [`Error::Decode`] if the decoder refuses.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Error> {
        self.decode_with(tokens, false)
    }

    /// The text of `tokens` less special ones.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub(crate) fn decode_plain(&self, tokens: &[u32]) -> Result<String, Error> {
        self.decode_with(tokens, true)
    }

    fn decode_with(&self, tokens: &[u32], skip_special: bool) -> Result<String, Error> {
        let failed =
            |error: tokenizers::Error| Error::Decode { tokens: tokens.len(), problem: error.to_string() };
        self.inner.decode(tokens, skip_special).map_err(failed)
    }

    /// One more than the largest id; rows of the model beyond it are padding.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The id of a token by its text as the vocabulary writes it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token's text as the vocabulary writes it: bytes of a byte-level vocabulary stay in their letters.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token before a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The token that fills up a batch.
    pub fn padding(&self) -> Option<u32> {
        self.special.padding
    }

    /// The token for what has none.
    pub fn unknown(&self) -> Option<u32> {
        self.special.unknown
    }

    /// Whether `id` is a special token: one that stands for no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .get(&id)
            .is_some_and(|token| token.special)
    }

    /// Whether the model was trained with BOS before every text.
    pub fn add_bos(&self) -> bool {
        self.special.add_bos.unwrap_or(false)
    }

    /// BOS, where it is to be put before every text.
    pub fn bos_to_add(&self) -> Option<u32> {
        self.special.bos.filter(|_| self.add_bos())
    }

    /// The `tokenizer.*` keys of a GGUF file of this model, as llama.cpp's converter writes them.
    ///
    /// Ids from the last token to `vocab_rows`, and any hole before, become `[PAD{id}]` of type UNUSED.
    ///
    /// # Errors
    /// [`Error::NoGgufForm`] naming the part that such a file cannot say; [`Error::TokensBeyondRows`].
    pub fn to_gguf(&self, vocab_rows: usize, checkpoint: &Checkpoint) -> Result<GgufTokenizer, Error> {
        let keys = match checkpoint.tokenizer_source() {
            TokenizerSource::Gguf(keys) => keys,
            TokenizerSource::Json(_) | TokenizerSource::None => {
                let (_, sources) = folder_sources(checkpoint)?;
                let pieces = checkpoint.other_files().into_iter().find(|(name, _)| name == TOKENIZER_MODEL);
                // Scores that bitmill cannot read do not matter where the tokenizer.json is whole.
                let pieces = pieces.and_then(|(name, bytes)| crate::sentencepiece::read(&name, &bytes).ok());
                let mut keys = crate::gguf::from_json(&sources.tokenizer, self.special, pieces.as_ref())?;
                keys.chat_template = checkpoint.chat_template();
                keys
            }
        };
        crate::gguf::pad(keys, vocab_rows)
    }
}

const TOKENIZER_JSON: &str = "tokenizer.json";

/// Turns a named file's bytes into a tokenizer.json.
type ToJson = fn(&str, &[u8]) -> Result<Value, Error>;

/// The file of SentencePiece.
const TOKENIZER_MODEL: &str = "tokenizer.model";

/// Mistral's.
const TEKKEN_JSON: &str = "tekken.json";

/// What vocabularies are called, and who reads them; the first that is there is taken.
const VOCABULARIES: [(&str, ToJson); 4] = [
    (TOKENIZER_JSON, SpecialSources::parse),
    ("qwen.tiktoken", crate::ranks::qwen_json),
    (TOKENIZER_MODEL, |file, bytes| crate::sentencepiece::read(file, bytes)?.to_json(file)),
    (TEKKEN_JSON, crate::ranks::tekken_json),
];

/// Whether texts begin with BOS unless another file says otherwise.
fn bos_by_default(file: &str) -> bool {
    file == TOKENIZER_MODEL || file == TEKKEN_JSON
}

/// What a folder says of its tokenizer, and the file that the vocabulary is in: tokenizer.json, or what was there
/// before such files were.
fn folder_sources(checkpoint: &Checkpoint) -> Result<(&'static str, SpecialSources), Error> {
    let files = checkpoint.other_files();
    let found = VOCABULARIES.into_iter().find_map(|(file, read)| {
        let (_, bytes) = files.iter().find(|(name, _)| name == file)?;
        Some((file, read, bytes))
    });
    let Some((file, read, bytes)) = found else {
        return Err(Error::NoTokenizer { checkpoint: checkpoint.name() });
    };
    let mut sources = SpecialSources {
        tokenizer: read(file, bytes)?,
        config: checkpoint.config_json().cloned().unwrap_or_default(),
        bos_by_default: bos_by_default(file),
        ..SpecialSources::default()
    };
    for (name, bytes) in checkpoint.other_files() {
        let slot = match name.as_str() {
            "tokenizer_config.json" => &mut sources.tokenizer_config,
            "special_tokens_map.json" => &mut sources.special_tokens_map,
            "generation_config.json" => &mut sources.generation_config,
            _ => continue,
        };
        *slot = SpecialSources::parse(&name, &bytes)?;
    }
    Ok((file, sources))
}

/// Builds the tokenizer after checking what the library takes on trust.
fn load(file: &str, json: &Value, bytes: &[u8]) -> Result<tokenizers::Tokenizer, Error> {
    check_merges(file, json)?;
    let malformed = |problem: String| Error::Malformed { file: file.to_owned(), problem };
    let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| malformed(error.to_string()))?;
    // Folders come with the truncation of whatever script last saved them.
    inner.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
    inner.with_padding(None);
    // An added token that the model's vocabulary lacks gets the next id, whatever the file says.
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let Some((text, declared)) = added_token(token) else { continue };
        let assigned = inner.token_to_id(text).unwrap_or(declared);
        if assigned != declared {
            return Err(Error::AddedTokenId {
                file: file.to_owned(),
                token: text.to_owned(),
                declared,
                assigned,
            });
        }
    }
    Ok(inner)
}

/// Text and id of an entry of `added_tokens`.
pub(crate) fn added_token(token: &Value) -> Option<(&str, u32)> {
    let id = token.get("id")?.as_u64()?.try_into().ok()?;
    Some((token.get("content")?.as_str()?, id))
}

/// Both parts and the whole of every merge must be tokens: the library indexes past its buffer otherwise.
fn check_merges(file: &str, json: &Value) -> Result<(), Error> {
    let Some(model) = json.get("model") else { return Ok(()) };
    let (Some(vocab), Some(merges)) =
        (model.get("vocab").and_then(Value::as_object), model.get("merges").and_then(Value::as_array))
    else {
        return Ok(());
    };
    // A continuing prefix is cut from the right part as bytes.
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    for (index, merge) in merges.iter().enumerate() {
        let Some((left, right)) = merge_parts(merge) else {
            let problem = format!("merge {index} is no pair of tokens");
            return Err(Error::Malformed { file: file.to_owned(), problem });
        };
        let Some(tail) = right.strip_prefix(prefix) else {
            let problem = format!("merge {index}: `{right}` lacks the continuing prefix `{prefix}`");
            return Err(Error::Malformed { file: file.to_owned(), problem });
        };
        let whole = format!("{left}{tail}");
        let missing = [left, right, &whole].into_iter().find(|token| !vocab.contains_key(*token));
        if let Some(missing) = missing {
            return Err(Error::MergeOutsideVocabulary {
                file: file.to_owned(),
                left: left.to_owned(),
                right: right.to_owned(),
                missing: missing.to_owned(),
            });
        }
    }
    Ok(())
}

/// The two tokens of a merge in either spelling, `"a b"` or `["a", "b"]`.
pub(crate) fn merge_parts(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(merge) => merge.split_once(' '),
        Value::Array(parts) => match parts.as_slice() {
            [left, right] => Some((left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}
