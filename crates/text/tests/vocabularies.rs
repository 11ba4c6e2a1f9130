//! Vocabularies in their makers' own files, beside `sentencepiece` and `tiktoken`, and as GGUF keys.

use bitmill_checkpoint::{Checkpoint, GgufTokenizer, Region};
use bitmill_testkit::millet;
use bitmill_text::{Error, Tokenizer};
use serde_json::{Value, json};

const SPM: &[u8] = include_bytes!("golden/spm.model");
const TIKTOKEN: &str = include_str!("golden/small.tiktoken");

fn golden(kind: &str) -> Vec<(String, Vec<u32>)> {
    let golden: Value = serde_json::from_str(include_str!("golden/vocabularies.json")).unwrap();
    let ids = |ids: &Value| ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    golden[kind].as_object().unwrap().iter().map(|(text, found)| (text.clone(), ids(found))).collect()
}

/// A checkpoint of millet's weights with this vocabulary file.
fn checkpoint(file: &str, bytes: &[u8]) -> Checkpoint {
    let own = |name: &str| Region::from_vec(std::fs::read(millet().join("model").join(name)).unwrap());
    let mut files: Vec<(String, Region)> =
        ["config.json", "model.safetensors"].map(|name| (name.to_owned(), own(name))).into();
    files.push((file.to_owned(), Region::from_vec(bytes.to_vec())));
    Checkpoint::from_files("test", files).unwrap()
}

fn tekken() -> Value {
    let golden: Value = serde_json::from_str(include_str!("golden/vocabularies.json")).unwrap();
    let vocab = TIKTOKEN
        .lines()
        .enumerate()
        .map(|(rank, line)| json!({"rank": rank, "token_bytes": line.split(' ').next(), "token_str": null}));
    // Ranks beyond the vocabulary's size are in the published file too.
    let vocab: Vec<Value> = vocab.chain([json!({"rank": 600, "token_bytes": "enp6enp6"})]).collect();
    json!({
        "config": {"pattern": golden["tekken_pattern"], "num_vocab_tokens": 601, "default_vocab_size": 610,
            "default_num_special_tokens": 10, "version": "v3"},
        "vocab": vocab,
    })
}

/// Reads `file`, compares its ids with `kind`'s, and with those of its own GGUF keys.
fn check(file: &str, bytes: &[u8], kind: &str) -> (Tokenizer, GgufTokenizer) {
    let checkpoint = checkpoint(file, bytes);
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let keys = tokenizer.to_gguf(2048, &checkpoint).unwrap();
    let back = Tokenizer::from_gguf(&keys).unwrap();
    let texts = golden(kind);
    assert!(texts.len() >= 13);
    for (text, ids) in texts {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
        assert_eq!(back.encode(&text).unwrap(), ids, "{text:?} from GGUF keys");
        assert_eq!(back.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap(), "{text:?}");
    }
    (tokenizer, keys)
}

#[test]
fn sentencepiece_models_give_the_ids_of_their_library() {
    let (tokenizer, keys) = check("tokenizer.model", SPM, "sentencepiece");
    assert_eq!((keys.model.as_str(), keys.pre.as_str(), keys.merges.len()), ("llama", "default", 0));
    assert_eq!(&keys.tokens[..5], ["<unk>", "<s>", "</s>", "<tool>", "<0x00>"]);
    assert_eq!(&keys.token_types[..5], [2, 3, 3, 4, 6]);
    assert_eq!((keys.add_space_prefix, keys.add_bos), (Some(true), Some(true)));
    assert_eq!((keys.tokens[700].as_str(), keys.token_types[700]), ("[PAD700]", 5));
    let scores = keys.scores.unwrap();
    // The file's own: byte pairs in the order they were learnt.
    assert_eq!((scores[260], scores[261], scores[2047]), (0.0, -1.0, -1000.0));
    let text = "评论：🦙 two  spaces";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
}

#[test]
fn qwens_first_vocabulary_gives_the_ids_of_tiktoken() {
    let (tokenizer, keys) = check("qwen.tiktoken", TIKTOKEN.as_bytes(), "qwen");
    assert_eq!((keys.model.as_str(), keys.pre.as_str()), ("gpt2", "qwen2"));
    // 151643 in the published file, which has as many ranks.
    assert_eq!(tokenizer.id_of("<|endoftext|>"), Some(600));
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(602));
    assert_eq!(tokenizer.id_of("<|extra_204|>"), Some(807));
    assert!(tokenizer.is_special(601) && tokenizer.vocab_size() == 808);
    // One merge a token beyond the bytes, the strongest first.
    assert_eq!(keys.merges.len(), 600 - 256);
    assert!(!tokenizer.add_bos());
}

#[test]
fn tekken_gives_the_ids_of_tiktoken() {
    let (tokenizer, keys) = check("tekken.json", tekken().to_string().as_bytes(), "tekken");
    assert_eq!((keys.model.as_str(), keys.pre.as_str(), keys.add_bos), ("gpt2", "tekken", Some(true)));
    assert_eq!(tokenizer.encode("[INST]").unwrap(), [3]);
    assert_eq!(tokenizer.vocab_size(), 610);
    let mut named = tekken();
    named["special_tokens"] = json!([{"rank": 9, "token_str": "[THINK]", "is_control": true}]);
    let checkpoint = checkpoint("tekken.json", named.to_string().as_bytes());
    assert_eq!(Tokenizer::from_checkpoint(&checkpoint).unwrap().id_of("[THINK]"), Some(9));
}

#[test]
fn a_tokenizer_json_goes_before_the_makers_file() {
    let own = std::fs::read(millet().join("model/tokenizer.json")).unwrap();
    let weights = ["config.json", "model.safetensors"].map(|name| {
        (name.to_owned(), Region::from_vec(std::fs::read(millet().join("model").join(name)).unwrap()))
    });
    let mut files: Vec<(String, Region)> = weights.into();
    files.push(("tokenizer.json".to_owned(), Region::from_vec(own)));
    files.push(("tokenizer.model".to_owned(), Region::from_vec(SPM.to_vec())));
    let checkpoint = Checkpoint::from_files("test", files).unwrap();
    assert_eq!(Tokenizer::from_checkpoint(&checkpoint).unwrap().vocab_size(), 1920);
}

#[test]
fn broken_files_are_errors_that_name_them() {
    let refused = |file: &str, bytes: &[u8]| {
        let error = Tokenizer::from_checkpoint(&checkpoint(file, bytes)).unwrap_err();
        assert!(error.to_string().starts_with(file), "{error}");
        error.to_string()
    };
    for (lines, problem) in [
        ("", "the byte 0x00 is no token"),
        ("IQ==", "line 1: no space"),
        ("IQ== 1", "line 1: rank 0 is expected"),
        ("I-== 0", "line 1: the token is not base64"),
        ("IQ== 0\nIQ== 1", "are both `!`"),
        (" 0", "rank 0 has 0 bytes"),
        ("IQ== 99999999999999999999", "rank 0 is expected"),
    ] {
        let found = refused("qwen.tiktoken", lines.as_bytes());
        assert!(found.contains(problem), "{found}");
    }
    assert!(refused("tokenizer.model", b"").contains("no SentencePiece model"));
    assert!(refused("tokenizer.model", b"IQ== 0\n").contains("no SentencePiece model"));
    assert!(
        refused("tokenizer.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").contains("cut short")
    );
    let with = |change: &dyn Fn(&mut Value)| {
        let mut file = tekken();
        change(&mut file);
        refused("tekken.json", file.to_string().as_bytes())
    };
    assert!(with(&|file| file["config"]["pattern"] = json!(r"\d+")).contains(r"`\d+`"));
    assert!(with(&|file| file["config"]["default_vocab_size"] = json!(5000)).contains("601 ranks"));
    assert!(with(&|file| file["config"]["default_num_special_tokens"] = json!(5000)).contains("601 ranks"));
    assert!(with(&|file| file["vocab"][7]["rank"] = json!(8)).contains("rank 8 where 7 is expected"));
    assert!(with(&|file| file["vocab"][7]["token_bytes"] = json!("?")).contains("rank 7 is not base64"));
    assert!(
        with(&|file| file["special_tokens"] = json!([{"rank": 10, "token_str": "x"}])).contains("10 of 10")
    );
}

#[test]
fn no_cut_or_flipped_byte_of_a_sentencepiece_model_panics() {
    let read = |bytes: &[u8]| Tokenizer::from_checkpoint(&checkpoint("tokenizer.model", bytes));
    for length in (0..SPM.len()).step_by(997) {
        // A cut between two fields leaves a smaller vocabulary, which may lack a normalizer's word.
        if let Ok(tokenizer) = read(&SPM[..length]) {
            tokenizer.encode("The capital").unwrap();
        }
    }
    for at in (0..SPM.len()).step_by(509) {
        let mut bytes = SPM.to_vec();
        bytes[at] ^= 0x55;
        if let Ok(tokenizer) = read(&bytes) {
            let _ = tokenizer.encode("The capital 🦙");
        }
    }
}

#[test]
fn another_kind_of_pieces_is_refused_by_name() {
    // model_type of the trainer: field 3 of field 2.
    let at = SPM.windows(3).position(|bytes| bytes == [0x18, 2, 0x20]).unwrap();
    let mut unigram = SPM.to_vec();
    unigram[at + 1] = 1;
    let error = Tokenizer::from_checkpoint(&checkpoint("tokenizer.model", &unigram)).unwrap_err();
    assert!(matches!(error, Error::UnreadPieces { .. }), "{error}");
    assert!(error.to_string().contains("tokenizer.model is a unigram vocabulary"), "{error}");
    assert!(error.hint().unwrap().contains("tokenizer.json"));
}
