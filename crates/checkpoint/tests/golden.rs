//! Files written by Python's safetensors and gguf, by llama.cpp's converter's own permutation, and by
//! compressed-tensors.

mod common;

use std::path::PathBuf;

use bitmill_checkpoint::{Checkpoint, Pairing, TokenizerSource};
use bitmill_tensor::{Encoding, FloatType, WeightData, WeightView, ZeroPoint};
use common::crc32;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn manifest() -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(&std::fs::read(golden("manifest.json")).unwrap()).unwrap();
    manifest["tensors"].as_array().unwrap().clone()
}

fn bytes<'a>(view: &WeightView<'a>) -> &'a [u8] {
    match view.data() {
        WeightData::Float { bytes, .. } | WeightData::Block { bytes, .. } => bytes,
        WeightData::Grouped { packed, .. } => packed,
        WeightData::Columns { packed, .. } => packed,
        WeightData::Sparse { values, .. } => values,
        WeightData::Scaled { codes, .. } => codes,
    }
}

/// Element `i` of tensor number `t`, as the script makes it.
fn value(t: usize, i: usize) -> f32 {
    (((7 * i + 13 * t) % 256) as f32 - 128.0) / 16.0
}

#[test]
fn reads_a_sharded_folder_of_pythons_safetensors() {
    let checkpoint = Checkpoint::open(&golden("folder")).unwrap();
    let manifest = manifest();
    assert_eq!(checkpoint.tensors().len(), manifest.len());
    assert!(checkpoint.config().tied);
    for (t, entry) in manifest.iter().enumerate() {
        let tensor = checkpoint.tensor(entry["name"].as_str().unwrap()).unwrap();
        let Encoding::Float(float) = tensor.info.encoding else { panic!("plain floats") };
        assert_eq!(float.name().to_uppercase(), entry["dtype"].as_str().unwrap());
        assert_eq!(serde_json::json!(tensor.info.shape), entry["shape"]);
        let stored = bytes(&tensor.view()).to_vec();
        assert_eq!(crc32(&stored), entry["crc32"].as_u64().unwrap() as u32, "{}", tensor.info.name);
        for i in 0..stored.len() / float.size_bytes() {
            assert_eq!(float.read(&stored, i), value(t, i));
        }
    }
    let on_disk: u64 = std::fs::read_dir(golden("folder"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert_eq!(checkpoint.stored_bytes(), on_disk);
}

#[test]
fn reads_a_file_of_pythons_gguf() {
    let checkpoint = Checkpoint::open(&golden("tiny.gguf")).unwrap();
    let from_folder = Checkpoint::open(&golden("folder")).unwrap();
    let mut expected = from_folder.config().clone();
    expected.rope.pairing = Pairing::Adjacent;
    expected.add_bos = true;
    assert_eq!(*checkpoint.config(), expected);
    for (t, entry) in manifest().iter().enumerate() {
        let tensor = checkpoint.tensor(entry["name"].as_str().unwrap()).unwrap();
        let view = tensor.view();
        assert_eq!(tensor.info.encoding.to_string().to_uppercase(), entry["gguf_type"].as_str().unwrap());
        assert_eq!(serde_json::json!(tensor.info.shape), entry["shape"]);
        assert_eq!(crc32(bytes(&view)), entry["gguf_crc32"].as_u64().unwrap() as u32, "{}", tensor.info.name);
        // Row for row, wherever the converter put it.
        if let (Encoding::Float(float), [rows, cols]) = (tensor.info.encoding, &tensor.info.shape[..]) {
            for row in 0..*rows {
                for col in 0..*cols {
                    let found = float.read(bytes(&view), tensor.stored_row(row) * cols + col);
                    assert_eq!(found, value(t, row * cols + col), "{} [{row}, {col}]", tensor.info.name);
                }
            }
        }
    }
    let TokenizerSource::Gguf(tokenizer) = checkpoint.tokenizer_source() else { panic!("a tokenizer") };
    assert_eq!((tokenizer.model.as_str(), tokenizer.pre.as_str()), ("gpt2", "smollm"));
    assert_eq!((tokenizer.tokens.len(), tokenizer.tokens[39].as_str()), (40, "t39"));
    assert_eq!(tokenizer.token_types, [1; 40]);
    assert_eq!(tokenizer.merges, ["t 0", "t 1"]);
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.add_bos), (Some(1), Some(2), Some(true)));
    // What we would write of it is what the library wrote, key for key.
    let theirs: Vec<_> =
        checkpoint.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned().collect();
    assert_eq!(tokenizer.to_metadata(), theirs);
}

/// Code `i` of a stream of `bits`-wide codes, unsigned.
fn code(words: &[u8], bits: usize, i: usize) -> i32 {
    let at = i * bits;
    i32::from((words[at / 8] >> (at % 8)) & ((1 << bits) - 1) as u8)
}

#[test]
fn reads_a_folder_of_compressed_tensors() {
    let checkpoint = Checkpoint::open(&golden("packed")).unwrap();
    let mut seen = 0;
    for entry in manifest() {
        let tensor = checkpoint.tensor(entry["name"].as_str().unwrap()).unwrap();
        let Some(crc) = entry["packed_crc32"].as_u64() else {
            assert_eq!(tensor.info.encoding, Encoding::Float(FloatType::BF16));
            continue;
        };
        let view = tensor.view();
        let WeightData::Grouped { layout, packed, scales, zero_points } = view.data() else {
            panic!("packed")
        };
        let attention = tensor.info.name.contains("self_attn");
        let expected = if attention {
            "4-bit g16 asymmetric".to_owned()
        } else {
            format!("8-bit g{}", view.in_features())
        };
        assert_eq!(tensor.info.encoding.to_string(), expected);
        // Unpacked here, by the format's description.
        let (bits, size) = (usize::from(layout.bits.get()), layout.group_size.get());
        let (words, groups) =
            (layout.words_per_row(view.in_features()), layout.groups_per_row(view.in_features()));
        let mut unpacked = Vec::new();
        for row in 0..view.out_features() {
            for col in 0..view.in_features() {
                let group = col / size;
                let zero = match layout.zero_point {
                    ZeroPoint::Symmetric => 1 << (bits - 1),
                    ZeroPoint::Asymmetric => {
                        let bit = row * bits;
                        let word = 4 * ((bit / 32) * groups + group);
                        code(&zero_points[word..word + 4], bits, (bit % 32) / bits)
                    }
                };
                let code = code(&packed[4 * words * row..4 * words * (row + 1)], bits, col);
                let scale = layout.scale.read(scales, row * groups + group);
                FloatType::BF16.push((code - zero) as f32 * scale, &mut unpacked);
            }
        }
        assert_eq!(crc32(&unpacked), crc as u32, "{}", tensor.info.name);
        seen += 1;
    }
    assert_eq!(seen, 7);
}
