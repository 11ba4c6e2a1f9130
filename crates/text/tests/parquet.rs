//! Parquet files that pyarrow wrote, whole and damaged.

use std::path::Path;

use bitmill_text::{Content, Documents, Message};
use serde_json::Value;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new("tests/golden/parquet").join(name)).unwrap()
}

fn expected() -> serde_json::Map<String, Value> {
    let json: Value = serde_json::from_slice(&file("parquet.json")).unwrap();
    json["rows"].as_object().unwrap().clone()
}

fn said(message: &Message) -> (&str, &str) {
    (message.speaker.name(), &message.content)
}

#[test]
fn every_codec_encoding_and_page_version_gives_what_was_written() {
    let expected = expected();
    assert_eq!(expected.len(), 16);
    for (name, rows) in expected {
        let documents = Documents::from_parquet(&name, &file(&format!("{name}.parquet"))).unwrap();
        let rows = rows.as_array().unwrap();
        assert_eq!(documents.items.len(), rows.len(), "{name}");
        for (document, row) in documents.items.iter().zip(rows) {
            match &document.content {
                Content::Text(text) => assert_eq!(text, row.as_str().unwrap_or_default(), "{name}"),
                Content::Chat(messages) => {
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                    let row = row.as_array().cloned().unwrap_or_default();
                    let row: Vec<_> = row.iter().map(|m| (text(&m["role"]), text(&m["content"]))).collect();
                    let row: Vec<_> = row.iter().map(|(role, said)| (role.as_str(), said.as_str())).collect();
                    assert_eq!(messages.iter().map(said).collect::<Vec<_>>(), row, "{name}");
                }
            }
        }
    }
}

#[test]
fn says_what_it_cannot_read() {
    let problem = |bytes: &[u8]| Documents::from_parquet("a.parquet", bytes).unwrap_err().to_string();
    assert!(problem(&file("brotli.parquet")).contains("it is compressed with Brotli"));
    assert_eq!(problem(b"PAR1"), "a.parquet: it is no Parquet file");
    assert_eq!(problem(b"PAR1\xff\xff\0\0PAR1"), "a.parquet: its footer is longer than the file");
    let renamed = replaced(&file("text_plain.parquet"), b"\x04text", b"\x04tekt");
    assert!(problem(&renamed).contains("it has `id`, `tekt`"), "{}", problem(&renamed));
}

/// `bytes` with every `from` as `to`.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 0..bytes.len().saturating_sub(from.len()) {
        if bytes[at..].starts_with(from) {
            out[at..at + from.len()].copy_from_slice(to);
        }
    }
    out
}

#[test]
fn damage_anywhere_is_an_error_or_other_text() {
    // Each byte set to its ends and flipped: nothing may panic or take memory without end.
    for name in ["text_snappy", "chat_small_pages", "text_delta", "chat_gzip_v2", "text_zstd"] {
        let bytes = file(&format!("{name}.parquet"));
        // What pyarrow adds to the footer for itself would be most of the time.
        for at in 0..bytes.len() {
            for value in [0, 0xff, bytes[at] ^ 1] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                if let Err(error) = Documents::from_parquet(name, &damaged) {
                    assert!(!error.to_string().is_empty());
                }
            }
        }
        for length in 0..bytes.len() {
            assert!(Documents::from_parquet(name, &bytes[..length]).is_err());
        }
    }
}
