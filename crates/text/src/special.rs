//! Which tokens begin, end and pad a text, gathered from the files that may say so.

use serde_json::Value;

use crate::Error;

/// The special tokens of a Hugging Face folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SpecialTokens {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub padding: Option<u32>,
    pub unknown: Option<u32>,
    pub add_bos: Option<bool>,
}

/// The files of a Hugging Face folder that speak of special tokens; null where one is absent.
#[derive(Debug, Default)]
pub(crate) struct SpecialSources {
    pub tokenizer: Value,
    pub tokenizer_config: Value,
    pub special_tokens_map: Value,
    pub config: Value,
    pub generation_config: Value,
    /// Whether such a vocabulary asks for BOS where no file says otherwise: SentencePiece's and tekken's do.
    pub bos_by_default: bool,
}

impl SpecialSources {
    /// Parses `bytes`, naming `file` if they are no JSON.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Value, Error> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::Malformed { file: file.to_owned(), problem: error.to_string() })
    }

    /// The ids, as llama.cpp's converter finds them (`gguf.SpecialVocab`): by the token's text in tokenizer_config.json,
    /// else by `config.json`. Departs from it: where both are silent, special_tokens_map.json and
    /// generation_config.json are asked, and of a list of ids the first counts.
    pub fn resolve(&self) -> SpecialTokens {
        let of = |kind: &str| {
            self.by_text(&self.tokenizer_config, kind)
                .or_else(|| by_id(&self.config, kind, false))
                .or_else(|| self.by_text(&self.special_tokens_map, kind))
                .or_else(|| by_id(&self.config, kind, true))
                .or_else(|| by_id(&self.generation_config, kind, true))
        };
        SpecialTokens {
            bos: of("bos"),
            eos: of("eos"),
            padding: of("pad"),
            unknown: of("unk"),
            add_bos: self
                .tokenizer_config
                .get("add_bos_token")
                .and_then(Value::as_bool)
                .or_else(|| self.template_adds_bos())
                .or(self.bos_by_default.then_some(true)),
        }
    }

    fn by_text(&self, file: &Value, kind: &str) -> Option<u32> {
        let entry = file.get(format!("{kind}_token"))?;
        let text = entry.as_str().or_else(|| entry.get("content")?.as_str())?;
        let added = self.tokenizer.get("added_tokens")?.as_array()?;
        added
            .iter()
            .find(|token| token.get("content").and_then(Value::as_str) == Some(text))?
            .get("id")
            .and_then(id)
    }

    /// Whether the post-processor's template puts BOS before a text; `None` if it says nothing of the kind.
    fn template_adds_bos(&self) -> Option<bool> {
        let processor = self.tokenizer.get("post_processor")?;
        let alone = std::slice::from_ref(processor);
        let steps = processor.get("processors").and_then(Value::as_array).map_or(alone, Vec::as_slice);
        let template = steps
            .iter()
            .find(|step| step.get("type").and_then(Value::as_str) == Some("TemplateProcessing"))?;
        let first = template.get("single")?.as_array()?.first()?.get("SpecialToken")?.get("id")?.as_str()?;
        let bos = self.tokenizer_config.get("bos_token");
        let bos = bos.and_then(|entry| entry.as_str().or_else(|| entry.get("content")?.as_str()));
        // Without a tokenizer_config.json the leading token is BOS by position.
        Some(bos.is_none_or(|bos| bos == first))
    }
}

fn by_id(file: &Value, kind: &str, from_list: bool) -> Option<u32> {
    match file.get(format!("{kind}_token_id"))? {
        Value::Array(ids) if from_list => ids.first().and_then(id),
        value => id(value),
    }
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| id.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sources() -> SpecialSources {
        SpecialSources {
            tokenizer: json!({"added_tokens": [
                {"id": 7, "content": "<s>"}, {"id": 8, "content": "</s>"}, {"id": 9, "content": "<|eot|>"},
            ]}),
            ..SpecialSources::default()
        }
    }

    #[test]
    fn the_tokens_text_goes_before_the_configs_id() {
        let mut sources = sources();
        sources.config = json!({"eos_token_id": [8, 9], "bos_token_id": 7});
        assert_eq!(
            sources.resolve(),
            SpecialTokens { bos: Some(7), eos: Some(8), ..SpecialTokens::default() }
        );
        sources.tokenizer_config = json!({"eos_token": {"content": "<|eot|>"}, "pad_token": "unheard of"});
        assert_eq!(
            sources.resolve(),
            SpecialTokens { bos: Some(7), eos: Some(9), ..SpecialTokens::default() }
        );
    }

    #[test]
    fn a_leading_template_token_or_the_config_asks_for_bos() {
        let mut sources = sources();
        assert_eq!(sources.resolve().add_bos, None);
        let template = json!({"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ]});
        sources.tokenizer["post_processor"] =
            json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template.clone()]});
        assert_eq!(sources.resolve().add_bos, Some(true));
        sources.tokenizer["post_processor"] = template;
        assert_eq!(sources.resolve().add_bos, Some(true));
        sources.tokenizer_config = json!({"bos_token": "</s>"});
        assert_eq!(sources.resolve().add_bos, Some(false));
        sources.tokenizer_config = json!({"add_bos_token": false, "bos_token": "<s>"});
        assert_eq!(sources.resolve().add_bos, Some(false));
    }
}
