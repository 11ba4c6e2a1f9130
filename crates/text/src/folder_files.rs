//! A GGUF file's tokenizer as the files of a Hugging Face folder.

use bitmill_checkpoint::GgufTokenizer;
use serde_json::{Map, Value, json};

use crate::{Error, Tokenizer};

impl Tokenizer {
    /// tokenizer.json and tokenizer_config.json, by name, for the tokenizer that GGUF `keys` describe; `max_positions` is
    /// the model's context in tokens.
    ///
    /// tokenizer_config.json names a class that takes everything from tokenizer.json, and carries the chat template.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn folder_files(keys: &GgufTokenizer, max_positions: usize) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let tokenizer = Self::from_gguf(keys)?;
        let (_, mut json) = crate::gguf::to_json(keys)?;
        let text = |id: Option<u32>| Some(keys.tokens.get(usize::try_from(id?).ok()?)?.as_str());
        if let (Some(id), Some(bos)) = (tokenizer.bos_to_add(), text(tokenizer.bos())) {
            json["post_processor"] = begins_with(bos, id);
        }
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        let special = [("bos", keys.bos), ("eos", keys.eos), ("pad", keys.padding), ("unk", keys.unknown)];
        for (kind, id) in special {
            if let Some(text) = text(id) {
                config.insert(format!("{kind}_token"), json!(text));
            }
        }
        config.insert("add_bos_token".to_owned(), json!(tokenizer.add_bos()));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("model_max_length".to_owned(), json!(max_positions));
        if let Some(template) = &keys.chat_template {
            config.insert("chat_template".to_owned(), json!(template));
        }
        let pretty = |value: &Value| format!("{value:#}\n").into_bytes();
        Ok(vec![
            ("tokenizer.json".to_owned(), pretty(&json)),
            ("tokenizer_config.json".to_owned(), pretty(&Value::Object(config))),
        ])
    }
}

/// The post-processor that puts `token` before a text.
fn begins_with(token: &str, id: u32) -> Value {
    let first = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [first, text("A", 0)],
        "pair": [first, text("A", 0), {"SpecialToken": {"id": token, "type_id": 1}}, text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}
