//! Prints the tokenizer keys that a GGUF file of a model carries, as JSON: `cargo run -p bitmill-text --example gguf_keys -- MODEL`.
//! Without MODEL: of the embedded model. `tools/checks/tokenizer_keys.py` holds them against llama.cpp's converter.

use std::path::PathBuf;

use bitmill_checkpoint::{Checkpoint, GgufArray, GgufValue};
use bitmill_text::Tokenizer;
use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let millet = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/millet/model"));
    let path = std::env::args_os().nth(1).map_or_else(millet, PathBuf::from);
    let checkpoint = Checkpoint::open(&path)?;
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
    let keys = tokenizer.to_gguf(checkpoint.config().vocab_size, &checkpoint)?;
    let plain = |value: GgufValue| match value {
        GgufValue::String(text) => json!(text),
        GgufValue::U32(number) => json!(number),
        GgufValue::Bool(truth) => json!(truth),
        GgufValue::Array(GgufArray::String(texts)) => json!(texts),
        GgufValue::Array(GgufArray::I32(numbers)) => json!(numbers),
        other => json!(other.describe()),
    };
    let json: Map<String, Value> =
        keys.to_metadata().into_iter().map(|(key, value)| (key, plain(value))).collect();
    #[allow(clippy::print_stdout, reason = "printing is all this example does")]
    {
        println!("{}", Value::Object(json));
    }
    Ok(())
}
