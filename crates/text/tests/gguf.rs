//! From tokenizer.json to GGUF keys and back: the same ids for every text.

use bitmill_checkpoint::{Checkpoint, GgufTokenizer, GgufValue, Region};
use bitmill_testkit::{Split, millet, tokenizer_json};
use bitmill_text::{Error, Task, Tokenizer};
use serde_json::{Value, json};

/// Texts that tell one split from another, or a byte from a letter.
const TRICKY: [&str; 14] = [
    "",
    " ",
    "\n",
    "I'll SHE'S we'Ve 'tis o'clock",
    "1234567890 12,345.678 ½ ² ٣ Ⅷ",
    "  two\tthree   \n\n\n  lines \r\n\r\n end   ",
    "<|im_start|>user\nHi<|im_end|><|endoftext|> <|im_start| <|begin|>x<|end|>",
    "🦙🙂\u{200d}🌫️ 👩‍👩‍👧 🇩🇪",
    "评论：昨天的服务真的舒服。「你好」１２３",
    "é e\u{301} ﬁ Å \u{212b} \u{a0}nbsp\u{3000}wide",
    "[PAD1925] [PAD300] <|not_a_token|>",
    "नमस्ते العربية ქართული ไทย",
    "a_b-c/d\\e\"f'g`h~i^j|k{l}m[n]",
    "\u{0} \u{7f} \u{feff}bom",
];

fn read(path: &str) -> String {
    std::fs::read_to_string(millet().join(path)).unwrap()
}

fn millet_json() -> Value {
    serde_json::from_str(&read("model/tokenizer.json")).unwrap()
}

/// A checkpoint in memory: millet's weights and config with another tokenizer.
fn checkpoint(tokenizer: &Value, more: &[(&str, Value)]) -> Checkpoint {
    let own = |name: &str| Region::from_vec(std::fs::read(millet().join("model").join(name)).unwrap());
    let text = |value: &Value| Region::from_vec(value.to_string().into_bytes());
    let mut files = vec![("tokenizer.json".to_owned(), text(tokenizer))];
    files.extend(["config.json", "model.safetensors"].map(|name| (name.to_owned(), own(name))));
    files.extend(more.iter().map(|(name, value)| ((*name).to_owned(), text(value))));
    Checkpoint::from_files("test", files).unwrap()
}

fn both(tokenizer: &Value) -> (Tokenizer, Tokenizer, GgufTokenizer) {
    let checkpoint = checkpoint(tokenizer, &[]);
    let source = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let keys = source.to_gguf(2048, &checkpoint).unwrap();
    (source, Tokenizer::from_gguf(&keys).unwrap(), keys)
}

#[track_caller]
fn same(source: &Tokenizer, back: &Tokenizer, text: &str) {
    let ids = source.encode(text).unwrap();
    assert_eq!(back.encode(text).unwrap(), ids, "{text:?}");
    assert_eq!(back.decode(&ids).unwrap(), source.decode(&ids).unwrap(), "{text:?}");
}

#[test]
fn ids_equal_those_of_the_python_library() {
    let golden: Value = serde_json::from_str(include_str!("golden/text.json")).unwrap();
    let tokenizer = Tokenizer::from_json(read("model/tokenizer.json").as_bytes()).unwrap();
    for (text, ids) in golden["ids"].as_object().unwrap() {
        let expected: Vec<u32> = ids.as_str().unwrap().split(' ').filter_map(|id| id.parse().ok()).collect();
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
    }
    assert_eq!(tokenizer.vocab_size(), 1920);
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(1919));
    assert_eq!(tokenizer.token_of(1917).as_deref(), Some("<|endoftext|>"));
}

#[test]
fn keys_equal_those_of_the_converter() {
    let golden: Value = serde_json::from_str(include_str!("golden/text.json")).unwrap();
    let checkpoint = Checkpoint::open(&millet().join("model")).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let keys = tokenizer.to_gguf(2048, &checkpoint).unwrap();
    let digest = |items: Vec<String>| {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash =
            items.iter().flat_map(|item| item.bytes().chain([b'\n'])).fold(0xcbf2_9ce4_8422_2325, step);
        json!({"len": items.len(), "fnv": format!("{hash:016x}")})
    };
    let mut found = json!({
        "tokenizer.ggml.tokens": digest(keys.tokens.clone()),
        "tokenizer.ggml.token_type": digest(keys.token_types.iter().map(i32::to_string).collect()),
        "tokenizer.ggml.merges": digest(keys.merges.clone()),
    });
    for (key, value) in keys.to_metadata() {
        let value = match value {
            GgufValue::String(text) => json!(text),
            GgufValue::U32(id) => json!(id),
            // Written always here, and only where a file speaks of it there.
            GgufValue::Bool(add_bos) => {
                assert!(!add_bos && key == "tokenizer.ggml.add_bos_token");
                continue;
            }
            _ => continue,
        };
        found[key] = value;
    }
    assert_eq!(found, golden["keys"]);
}

#[test]
fn millet_reads_back_from_gguf_as_it_was() {
    let checkpoint = Checkpoint::open(&millet().join("model")).unwrap();
    let source = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let back = Tokenizer::from_gguf(&source.to_gguf(2048, &checkpoint).unwrap()).unwrap();
    TRICKY.iter().for_each(|text| same(&source, &back, text));
    same(&source, &back, &read("text/eval.txt"));
    for name in ["facts", "sentiment", "sentiment_zh", "story", "sums"] {
        for item in Task::from_jsonl(name, &read(&format!("tasks/{name}.jsonl"))).unwrap().items {
            item.choices.iter().chain([&item.context]).for_each(|text| same(&source, &back, text));
        }
    }
    assert_eq!(back.vocab_size(), source.vocab_size());
    assert_eq!((back.bos(), back.eos(), back.add_bos()), (Some(1917), Some(1919), false));
    assert_eq!((source.bos(), source.eos(), source.add_bos()), (Some(1917), Some(1919), false));
}

#[test]
fn every_split_reads_back_as_it_was() {
    let mut smollm = millet_json();
    smollm["normalizer"] = Value::Null;
    let tiny: Value = serde_json::from_str(&tokenizer_json(Split::SmolLm)).unwrap();
    smollm["pre_tokenizer"] = tiny["pre_tokenizer"].clone();
    let mut llama = millet_json();
    llama["normalizer"] = Value::Null;
    let pattern = llama["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap();
    let pattern = pattern.replace(r"|\p{N}|", r"|\p{N}{1,3}|");
    llama["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(pattern);
    llama["model"]["ignore_merges"] = json!(true);
    let mut found = Vec::new();
    for (tokenizer, pre, add_bos) in [
        (&millet_json(), "qwen2", false),
        (&smollm, "smollm", false),
        (&llama, "llama-bpe", false),
        (&tiny, "smollm", false),
    ] {
        let (source, back, keys) = both(tokenizer);
        assert_eq!((keys.pre.as_str(), keys.add_bos), (pre, Some(add_bos)));
        TRICKY.iter().for_each(|text| same(&source, &back, text));
        same(&source, &back, &read("text/eval.txt")[..20_000]);
        found.push(TRICKY.map(|text| source.encode(text).unwrap()));
    }
    assert!(
        found[0] != found[1] && found[0] != found[2] && found[1] != found[2],
        "the texts tell splits apart"
    );
}

#[test]
fn added_tokens_keep_their_kind_and_merges_their_spaces() {
    let mut tokenizer = millet_json();
    let mut add = |id: u32, content: &str| {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false,
        }));
    };
    add(1920, "<tool_call>");
    add(1921, "<|fim_prefix|>");
    add(1922, "two\u{2581}words");
    let (source, back, keys) = both(&tokenizer);
    // Not special, special by its looks, not special; SentencePiece's space undone, as the converter does.
    assert_eq!(
        &keys.tokens[1919..1924],
        ["<|im_end|>", "<tool_call>", "<|fim_prefix|>", "two words", "[PAD1923]"]
    );
    assert_eq!(&keys.token_types[1919..1924], [3, 4, 3, 4, 5]);
    for text in ["<tool_call>x", "a<|fim_prefix|> b"] {
        same(&source, &back, text);
    }

    let mut tokenizer = millet_json();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    // Two tokens more would move the added ones, were these not in the vocabulary themselves.
    vocab.insert("<|endoftext|>".to_owned(), json!(1917));
    vocab.insert("<|im_start|>".to_owned(), json!(1918));
    vocab.insert("<|im_end|>".to_owned(), json!(1919));
    vocab.insert("a b".to_owned(), json!(1930));
    vocab.insert(" b".to_owned(), json!(1931));
    tokenizer["model"]["merges"].as_array_mut().unwrap().push(json!(["a", " b"]));
    let keys = Tokenizer::from_json(tokenizer.to_string().as_bytes())
        .unwrap()
        .to_gguf(2048, &checkpoint(&tokenizer, &[]))
        .unwrap();
    assert_eq!(keys.merges.last().unwrap(), "a Ġb");
}

#[test]
fn special_ids_and_add_bos_come_from_the_folder() {
    let config = json!({"bos_token": "<|im_start|>", "eos_token": {"content": "<|endoftext|>"}, "add_bos_token": true});
    let checkpoint = checkpoint(&millet_json(), &[("tokenizer_config.json", config)]);
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.bos_to_add()),
        (Some(1918), Some(1917), Some(1918))
    );
    assert_eq!(tokenizer.encode("9").unwrap(), [24]);
    assert_eq!(tokenizer.encode_document("9").unwrap(), [1918, 24]);
    let keys = tokenizer.to_gguf(2048, &checkpoint).unwrap();
    assert_eq!(
        (keys.bos, keys.eos, keys.padding, keys.add_bos),
        (Some(1918), Some(1917), Some(1917), Some(true))
    );
    assert_eq!(Tokenizer::from_gguf(&keys).unwrap().bos_to_add(), Some(1918));
}

#[test]
fn llama_3_files_that_say_nothing_of_bos_ask_for_it() {
    let (_, _, mut keys) = both(&millet_json());
    keys.add_bos = None;
    assert!(!Tokenizer::from_gguf(&keys).unwrap().add_bos());
    keys.pre = "llama-bpe".to_owned();
    assert!(Tokenizer::from_gguf(&keys).unwrap().add_bos());
}

#[test]
fn gguf_files_that_cannot_be_read_say_why() {
    let (_, _, good) = both(&millet_json());
    let refused = |change: &dyn Fn(&mut GgufTokenizer)| {
        let mut keys = good.clone();
        change(&mut keys);
        Tokenizer::from_gguf(&keys).unwrap_err()
    };
    let error = refused(&|keys| keys.pre = "gpt-4o".to_owned());
    assert_eq!(
        error.to_string(),
        "tokenizer.ggml.pre is `gpt-4o`; bitmill reads `qwen2`, `smollm`, `llama-bpe`, `tekken`"
    );
    assert!(error.hint().is_some());
    assert!(matches!(refused(&|keys| keys.model = "t5".to_owned()), Error::UnknownGgufModel { .. }));
    assert!(refused(&|keys| keys.model = "llama".to_owned()).to_string().contains("there are no scores"));
    let error = refused(&|keys| {
        keys.model = "llama".to_owned();
        keys.scores = Some(vec![0.0; 5]);
    });
    assert!(error.to_string().contains("5 scores for 2048 tokens"), "{error}");
    let error = refused(&|keys| keys.merges.push("nonsense".to_owned()));
    assert!(error.to_string().contains("`nonsense`, is no pair"), "{error}");
    let error = refused(&|keys| keys.merges.push("he the".to_owned()));
    assert!(error.to_string().contains("which the vocabulary lacks"), "{error}");
    let error = refused(&|keys| keys.tokens[7] = keys.tokens[5].clone());
    assert!(matches!(error, Error::DuplicateToken { first: 5, second: 7, .. }), "{error}");
    assert!(
        refused(&|keys| keys.token_types.truncate(9)).to_string().contains("9 token types for 2048 tokens")
    );
}

#[test]
fn tokenizers_that_gguf_cannot_say_are_refused_by_their_pattern() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut json = millet_json();
        change(&mut json);
        let checkpoint = checkpoint(&json, &[]);
        Tokenizer::from_checkpoint(&checkpoint).unwrap().to_gguf(2048, &checkpoint).unwrap_err()
    };
    let error =
        refused(&|json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\d{5}|."));
    assert_eq!(
        error.to_string(),
        r"tokenizer.json: the pre-tokenizer `\d{5}|.` has no counterpart in a GGUF file that bitmill writes"
    );
    assert!(error.hint().is_some());
    let error = refused(&|json| json["normalizer"] = json!({"type": "Lowercase"}));
    assert!(error.to_string().contains("Lowercase"), "{error}");
    let error = refused(&|json| json["model"]["byte_fallback"] = json!(true));
    assert!(error.to_string().contains("the normalizer `{\"type\":\"NFC\"}`"), "{error}");
    let json = millet_json();
    let checkpoint = checkpoint(&json, &[]);
    let error = Tokenizer::from_checkpoint(&checkpoint).unwrap().to_gguf(1919, &checkpoint).unwrap_err();
    assert!(matches!(error, Error::TokensBeyondRows { last_id: 1919, vocab_rows: 1919 }), "{error}");
}

#[test]
fn malformed_files_are_errors_not_panics() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut json = millet_json();
        change(&mut json);
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap_err().to_string()
    };
    let error = Tokenizer::from_json(b"{\"version\": ").unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.json: EOF"), "{error}");
    assert!(Tokenizer::from_json(b"{}").is_err());
    assert!(Tokenizer::from_json(b"[1]").is_err());
    assert!(Tokenizer::from_json(b"\xff\xfe").is_err());
    // Two long tokens whose whole is none: the library would index past its buffer.
    let longest =
        millet_json()["model"]["vocab"].as_object().unwrap().keys().max_by_key(|t| t.len()).unwrap().clone();
    let error =
        refused(&|json| json["model"]["merges"].as_array_mut().unwrap().push(json!([longest, longest])));
    assert!(error.contains("which the vocabulary lacks"), "{error}");
    let error = refused(&|json| json["model"]["merges"][3] = json!(["a", "b", "c"]));
    assert!(error.contains("merge 3 is no pair"), "{error}");
    let error = refused(&|json| json["model"]["continuing_subword_prefix"] = json!("##"));
    assert!(error.contains("lacks the continuing prefix"), "{error}");
    let error = refused(&|json| json["added_tokens"][2]["id"] = json!(1950));
    assert!(error.contains("`<|im_end|>` has id 1950 in the file and would get 1919"), "{error}");
    assert!(refused(&|json| json["model"]["vocab"]["a"] = json!("x")).starts_with("tokenizer.json: "));
    assert!(
        refused(&|json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("("))
            .starts_with("tok")
    );
}

#[test]
fn truncation_and_padding_left_in_the_file_do_not_apply() {
    let mut json = millet_json();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1917, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("9 9 9 9 9 9").unwrap().len(), 11);
}

#[test]
fn long_runs_do_not_exhaust_the_pattern() {
    let tokenizer = Tokenizer::from_json(read("model/tokenizer.json").as_bytes()).unwrap();
    for piece in [" ", "\n", "a", "9", "!", "好"] {
        let text = piece.repeat(100_000);
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
    }
}
