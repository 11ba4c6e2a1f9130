//! GGUF files: what is read, and what each fault is called.

mod common;

use bitmill_checkpoint::{
    Error, Format, GgufArray, GgufValue, Pairing, Role, RoleKind, RopeScaling, TokenizerSource,
    adjacent_pairs_row, gguf_metadata, rope_freqs,
};
use bitmill_tensor::{BlockType, Encoding, FloatType, WeightData};
use common::{Gguf, HEAD_DIM, HIDDEN, VOCAB, open_config, open_gguf, string, tensors};
use serde_json::json;

fn tiny(change: impl FnOnce(&mut Gguf)) -> Result<bitmill_checkpoint::Checkpoint, Error> {
    let mut gguf = Gguf::tiny("llama");
    change(&mut gguf);
    open_gguf(&gguf.bytes())
}

#[test]
fn opens_under_hugging_face_names() {
    let bytes = Gguf::tiny("qwen2").bytes();
    let checkpoint = open_gguf(&bytes).unwrap();
    assert_eq!((checkpoint.format(), checkpoint.name().as_str()), (Format::Gguf, "tiny.gguf"));
    assert_eq!(checkpoint.stored_bytes(), bytes.len() as u64);
    for (info, (name, _, shape, bytes)) in checkpoint.tensors().iter().zip(tensors("qwen2")) {
        assert_eq!((&info.name, &info.shape), (&name, &shape));
        let tensor = checkpoint.tensor(&name).unwrap();
        assert!(matches!(tensor.view().data(), WeightData::Float { bytes: found, .. } if found == bytes));
        assert_eq!(tensor.stored_row(5), 5);
    }
    let from_folder = open_config("qwen2", |_| {}).unwrap();
    let mut expected = from_folder.config().clone();
    // No tokenizer, so no tokens.
    (expected.bos, expected.eos) = (None, vec![]);
    assert_eq!(*checkpoint.config(), expected);
    assert!(matches!(checkpoint.tokenizer_source(), TokenizerSource::None));
    assert!(checkpoint.other_files().is_empty() && checkpoint.config_json().is_none());
}

#[test]
fn a_llama_file_has_its_query_and_key_rows_permuted() {
    let checkpoint = tiny(|_| {}).unwrap();
    assert_eq!(checkpoint.config().rope.pairing, Pairing::Adjacent);
    for (kind, permuted) in [(RoleKind::AttnQ, true), (RoleKind::AttnK, true), (RoleKind::AttnV, false)] {
        let tensor = checkpoint.tensor_with_role(Role::in_layer(0, kind)).unwrap();
        let stored: Vec<usize> = (0..HEAD_DIM + 2).map(|row| tensor.stored_row(row)).collect();
        let expected: Vec<usize> =
            if permuted { vec![0, 2, 4, 6, 1, 3, 5, 7, 8, 10] } else { (0..HEAD_DIM + 2).collect() };
        assert_eq!(stored, expected, "{kind:?}");
    }
}

#[test]
fn adjacent_pairs_permute_each_head() {
    for head_dim in [2, 8, 64, 96, 128] {
        let mut seen = vec![false; 3 * head_dim];
        for head in 0..3 {
            for pair in 0..head_dim / 2 {
                // What turned together as halves turns together as neighbours, in the same order.
                let first = adjacent_pairs_row(head * head_dim + pair, head_dim);
                let second = adjacent_pairs_row(head * head_dim + head_dim / 2 + pair, head_dim);
                assert_eq!((first, second), (head * head_dim + 2 * pair, first + 1));
                seen[first] = true;
                seen[second] = true;
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}

#[test]
fn reads_every_encoding() {
    let blocks = BlockType::ALL.map(|block| (Encoding::Block(block), block.ggml_id()));
    let floats = [(FloatType::F32, 0), (FloatType::F16, 1), (FloatType::BF16, 30)];
    let floats = floats.map(|(float, id)| (Encoding::Float(float), id));
    for (encoding, id) in blocks.into_iter().chain(floats) {
        let bytes = vec![7; encoding.matrix_bytes(3, 256)];
        let checkpoint = tiny(|gguf| gguf.tensor("extra.weight", vec![256, 3], id, &bytes)).unwrap();
        let tensor = checkpoint.tensor("extra.weight").unwrap();
        assert_eq!((tensor.info.encoding, &tensor.info.shape[..]), (encoding, &[3, 256][..]));
        assert_eq!(tensor.info.stored_bytes, bytes.len() as u64);
        assert_eq!((tensor.view().out_features(), tensor.view().in_features()), (3, 256));
        assert_eq!(checkpoint.is_quantized(), encoding.is_quantized());
    }
}

#[test]
fn a_file_without_an_output_is_tied() {
    let checkpoint = tiny(|gguf| gguf.tensors.retain(|(name, ..)| name != "output.weight")).unwrap();
    assert!(checkpoint.config().tied);
}

#[test]
fn rope_factors_are_read_as_they_were_written() {
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16});
    let source = open_config("llama", |config| config["rope_parameters"] = llama3).unwrap();
    let factors = rope_freqs(source.config()).unwrap();
    assert_eq!(factors.len(), HEAD_DIM / 2);
    // Wavelengths for theta 500000 and 4 pairs: 6.3, 167, 4443, 118145. 16 tokens before stretching: those above 16
    // are divided by 8; 6.3 lies between 4 and 16: smooth = (16 / 2π − 1) / 3 = 0.5155.
    let smooth = (16.0 / (2.0 * std::f64::consts::PI) - 1.0) / 3.0;
    let between = 1.0 / ((1.0 - smooth) / 8.0 + smooth);
    assert!((f64::from(factors[0]) - between).abs() < 1e-6, "{factors:?}");
    assert_eq!(factors[1..], [8.0, 8.0, 8.0]);

    let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
    let written = tiny(|gguf| gguf.tensor("rope_freqs.weight", vec![4], 0, &bytes)).unwrap();
    assert_eq!(written.config().rope.scaling, RopeScaling::Factors(factors.clone()));
    assert_eq!(rope_freqs(written.config()), Some(factors));
    assert!(written.tensors().iter().all(|info| info.name != "rope_freqs.weight"));

    for bytes in [vec![0; 16], f32::NAN.to_le_bytes().repeat(4)] {
        let result = tiny(|gguf| gguf.tensor("rope_freqs.weight", vec![4], 0, &bytes));
        assert!(matches!(result, Err(Error::PackedTensor { .. })));
    }
    let short = tiny(|gguf| gguf.tensor("rope_freqs.weight", vec![2], 0, &[0; 8]));
    assert!(matches!(short, Err(Error::Unsupported { .. })));
}

#[test]
fn metadata_is_what_the_converter_writes() {
    let source = open_config("llama", |_| {}).unwrap();
    let metadata = gguf_metadata(source.config(), "tiny", 32);
    let keys: Vec<(&str, &GgufValue)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let text = |text: &str| GgufValue::String(text.to_owned());
    assert_eq!(
        keys,
        [
            ("general.architecture", &text("llama")),
            ("general.type", &text("model")),
            ("general.name", &text("tiny")),
            ("llama.block_count", &GgufValue::U32(2)),
            ("llama.context_length", &GgufValue::U32(128)),
            ("llama.embedding_length", &GgufValue::U32(32)),
            ("llama.feed_forward_length", &GgufValue::U32(48)),
            ("llama.attention.head_count", &GgufValue::U32(4)),
            ("llama.attention.head_count_kv", &GgufValue::U32(2)),
            ("llama.rope.freq_base", &GgufValue::F32(50000.0)),
            ("llama.attention.layer_norm_rms_epsilon", &GgufValue::F32(1e-5)),
            ("llama.vocab_size", &GgufValue::U32(40)),
            ("llama.rope.dimension_count", &GgufValue::U32(8)),
            ("general.file_type", &GgufValue::U32(32)),
            ("general.quantization_version", &GgufValue::U32(2)),
        ]
    );
    let qwen2 = gguf_metadata(open_config("qwen2", |_| {}).unwrap().config(), "tiny", 1);
    assert!(qwen2.iter().all(|(key, _)| !key.ends_with("vocab_size") && !key.contains("dimension_count")));
}

#[test]
fn reads_the_tokenizer_and_its_tokens() {
    let mut tokens = 8u32.to_le_bytes().to_vec();
    tokens.extend_from_slice(&2u64.to_le_bytes());
    tokens.extend(string("a"));
    tokens.extend(string("b"));
    let with = |pre: &str, add_bos: Option<u8>| {
        tiny(|gguf| {
            gguf.text("tokenizer.ggml.model", "gpt2");
            gguf.text("tokenizer.ggml.pre", pre);
            gguf.set("tokenizer.ggml.tokens", 9, tokens.clone());
            gguf.u32("tokenizer.ggml.bos_token_id", 3);
            gguf.u32("tokenizer.ggml.eos_token_id", 4);
            gguf.u32("tokenizer.ggml.eot_token_id", 5);
            gguf.text("tokenizer.chat_template", "{{ messages }}");
            if let Some(byte) = add_bos {
                gguf.set("tokenizer.ggml.add_bos_token", 7, vec![byte]);
            }
        })
        .unwrap()
    };
    let checkpoint = with("qwen2", None);
    let TokenizerSource::Gguf(tokenizer) = checkpoint.tokenizer_source() else { panic!("a tokenizer") };
    assert_eq!(tokenizer.tokens, ["a", "b"]);
    let config = checkpoint.config();
    assert_eq!((config.bos, config.eos.as_slice(), config.add_bos), (Some(3), &[4, 5][..], false));
    assert_eq!(checkpoint.chat_template().as_deref(), Some("{{ messages }}"));
    let stored = checkpoint.metadata().iter().find(|(key, _)| key == "tokenizer.ggml.tokens");
    let expected = GgufValue::Array(GgufArray::String(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(stored.unwrap().1, expected);
    assert!(with("llama-bpe", None).config().add_bos);
    assert!(!with("llama-bpe", Some(0)).config().add_bos);
    assert!(with("qwen2", Some(1)).config().add_bos);
}

#[test]
fn reads_version_2_alike_and_refuses_others() {
    assert!(matches!(open_gguf(b"GG"), Err(Error::Truncated { .. })));
    assert!(matches!(open_gguf(b"GGML\x03\0\0\0"), Err(Error::GgufMagic { found, .. }) if found == "GGML"));
    assert!(matches!(open_gguf(b""), Err(Error::Foreign { .. })));
    assert_eq!(tiny(|gguf| gguf.version = 2).unwrap().tensors(), tiny(|_| ()).unwrap().tensors());
    for version in [0, 1, 4] {
        assert!(
            matches!(tiny(|gguf| gguf.version = version), Err(Error::GgufVersion { version: v, .. }) if v == version)
        );
    }
    for version in [2u32, 3] {
        let swapped = tiny(|gguf| gguf.version = version.swap_bytes());
        assert!(matches!(swapped, Err(Error::Unsupported { what, .. }) if what.contains("big-endian")));
    }
}

#[test]
fn refuses_every_truncation_of_its_header() {
    let gguf = Gguf::tiny("llama");
    let header = gguf.header().len();
    let bytes = gguf.bytes();
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("x.gguf");
    for length in (1..header).step_by(7).chain([bytes.len() - 1]) {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = bitmill_checkpoint::Checkpoint::open(&path).unwrap_err();
        let cut =
            matches!(error, Error::Truncated { .. } | Error::GgufLimit { .. } | Error::OutOfBounds { .. });
        assert!(cut, "{length}: {error}");
    }
}

#[test]
fn refuses_counts_that_the_file_cannot_hold() {
    for (at, what) in [(8, "number of tensors"), (16, "number of keys")] {
        for count in [u64::MAX, 1 << 63, 1 << 32, 5000] {
            let mut bytes = Gguf::tiny("llama").bytes();
            bytes.truncate(20_000);
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let error = open_gguf(&bytes).unwrap_err();
            let refused = match &error {
                Error::GgufLimit { what: found, .. } => found == what,
                _ => false,
            };
            assert!(refused, "{what} {count}: {error}");
        }
    }
}

#[test]
fn refuses_strings_and_arrays_that_the_file_cannot_hold() {
    for length in [u64::MAX, 1 << 63, 1 << 40] {
        let mut long = length.to_le_bytes().to_vec();
        long.push(b'a');
        assert!(matches!(tiny(|gguf| gguf.set("x", 8, long)), Err(Error::GgufLimit { .. })));
        for id in [0u32, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12] {
            let mut array = id.to_le_bytes().to_vec();
            array.extend_from_slice(&length.to_le_bytes());
            let result = tiny(|gguf| gguf.set("x", 9, array));
            assert!(matches!(result, Err(Error::GgufLimit { .. })), "{id}: {result:?}");
        }
    }
    let long_key = "k".repeat(65_536);
    assert!(matches!(tiny(|gguf| gguf.u32(&long_key, 1)), Err(Error::GgufLimit { .. })));
    let long_name = "n".repeat(65);
    assert!(matches!(
        tiny(|gguf| gguf.tensor(&long_name, vec![1], 0, &[0; 4])),
        Err(Error::GgufLimit { .. })
    ));
}

#[test]
fn refuses_values_it_cannot_read() {
    let array_of_arrays = [9u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat();
    assert!(matches!(tiny(|gguf| gguf.set("x", 9, array_of_arrays)), Err(Error::Unsupported { .. })));
    let array_of_99 = [99u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat();
    assert!(matches!(tiny(|gguf| gguf.set("x", 9, array_of_99)), Err(Error::GgufValueType { id: 99, .. })));
    assert!(matches!(tiny(|gguf| gguf.set("x", 13, vec![0; 8])), Err(Error::GgufValueType { id: 13, .. })));
    let not_utf8 = [1u64.to_le_bytes().to_vec(), vec![0xff]].concat();
    assert!(matches!(tiny(|gguf| gguf.set("x", 8, not_utf8)), Err(Error::GgufNotUtf8 { .. })));
    let twice = tiny(|gguf| {
        gguf.u32("x", 1);
        gguf.u32("x", 2);
    });
    assert!(matches!(twice, Err(Error::GgufDuplicateKey { key, .. }) if key == "x"));
}

#[test]
fn refuses_tensors_that_do_not_fit_the_file() {
    let last = |gguf: &Gguf| gguf.tensors.len() - 1;
    let misaligned = tiny(|gguf| gguf.tensors.last_mut().unwrap().3 += 8);
    assert!(
        matches!(misaligned, Err(Error::GgufMisaligned { tensor, alignment: 32, .. }) if tensor == "output.weight")
    );
    let outside = tiny(|gguf| gguf.tensors.last_mut().unwrap().3 = 1 << 40);
    assert!(matches!(outside, Err(Error::OutOfBounds { tensor, .. }) if tensor == "output.weight"));
    let wrapping = tiny(|gguf| gguf.tensors.last_mut().unwrap().3 = u64::MAX - 31);
    assert!(matches!(wrapping, Err(Error::OutOfBounds { .. })));
    let overlapping = tiny(|gguf| {
        let last = last(gguf);
        gguf.tensors[last].3 = gguf.tensors[0].3 + 32;
    });
    assert!(matches!(overlapping, Err(Error::Overlap { tensor, other, .. })
        if tensor == "output.weight" && other == "token_embd.weight"));
    let twice = tiny(|gguf| gguf.tensors.last_mut().unwrap().0 = "token_embd.weight".to_owned());
    assert!(matches!(twice, Err(Error::DuplicateTensor { tensor, .. }) if tensor == "token_embd.weight"));
    for dims in [vec![u64::MAX], vec![1 << 32, 1 << 32], vec![1 << 40, 1 << 40, 0], vec![0, 1 << 40, 1 << 40]]
    {
        let result = tiny(|gguf| gguf.tensor("x", dims.clone(), 0, &[]));
        assert!(matches!(result, Err(Error::ShapeOverflow { .. })), "{dims:?}: {result:?}");
    }
    let five = tiny(|gguf| gguf.tensor("x", vec![1; 5], 0, &[0; 4]));
    assert!(matches!(five, Err(Error::GgufLimit { found: 5, limit: 4, .. })));
    let uneven = tiny(|gguf| gguf.tensor("x", vec![200, 1], BlockType::Q4_K.ggml_id(), &[0; 144]));
    assert!(matches!(uneven, Err(Error::View { tensor, .. }) if tensor == "x"));
}

#[test]
fn names_tensor_types_it_does_not_read() {
    for (id, name) in [(9, "Q8_1"), (15, "Q8_K"), (24, "I8"), (40, "NVFP4"), (99, "number 99")] {
        let error = tiny(|gguf| gguf.tensors[0].2 = id).unwrap_err();
        assert!(
            matches!(&error, Error::GgufTensorType { tensor, type_name, .. }
            if tensor == "token_embd.weight" && type_name == name),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("IQ4_XS"));
    }
}

#[test]
fn alignment_is_followed_and_checked() {
    let aligned = tiny(|gguf| {
        gguf.u32("general.alignment", 64);
        let old = std::mem::take(&mut gguf.tensors);
        let data = std::mem::take(&mut gguf.data);
        for (name, dims, id, offset) in old {
            let bytes = 4 * dims.iter().product::<u64>() as usize;
            gguf.data.resize(gguf.data.len().next_multiple_of(64), 0);
            gguf.tensor(&name, dims, id, &data[offset as usize..offset as usize + bytes]);
        }
        // The data begins at a multiple of 64 too.
        let pad = gguf.header().len().next_multiple_of(64) - gguf.header().len().next_multiple_of(32);
        assert_eq!(pad % 32, 0);
        gguf.data.splice(0..0, vec![0; pad]);
    })
    .unwrap();
    let norm = aligned.tensor("model.norm.weight").unwrap();
    let expected = &tensors("llama")[19].3;
    assert!(matches!(norm.view().data(), WeightData::Float { bytes, .. } if bytes == expected));
    for alignment in [0, 3, 33, 1 << 21] {
        let result = tiny(|gguf| gguf.u32("general.alignment", alignment));
        assert!(matches!(result, Err(Error::GgufAlignment { .. })), "{alignment}");
    }
    let text = tiny(|gguf| gguf.text("general.alignment", "32"));
    assert!(matches!(text, Err(Error::GgufKeyType { .. })));
}

#[test]
fn refuses_metadata_that_is_no_model_of_a_known_family() {
    let missing = |key: &'static str| tiny(move |gguf| gguf.keys.retain(|(name, ..)| name != key));
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        assert!(
            matches!(missing(key), Err(Error::GgufMissingKey { key: found, .. }) if found == key),
            "{key}"
        );
    }
    let family = tiny(|gguf| gguf.set("general.architecture", 8, string("gemma3")));
    assert!(matches!(family, Err(Error::UnsupportedFamily { found, .. }) if found == "gemma3"));
    let imatrix = tiny(|gguf| gguf.text("general.type", "imatrix"));
    assert!(matches!(imatrix, Err(Error::Unsupported { what, .. }) if what.contains("imatrix")));
    for (key, value) in [
        ("llama.attention.head_count", 0u32),
        ("llama.attention.head_count", 5),
        ("llama.attention.head_count_kv", 3),
        ("llama.block_count", u32::MAX),
        ("llama.embedding_length", u32::MAX),
        ("llama.attention.key_length", 7),
        ("tokenizer.ggml.eos_token_id", VOCAB as u32),
    ] {
        let result = tiny(|gguf| gguf.set(key, 4, value.to_le_bytes().to_vec()));
        assert!(matches!(result, Err(Error::ConfigValue { .. })), "{key} {value}: {result:?}");
    }
    for (key, id, bytes) in [
        ("llama.block_count", 6, vec![0; 4]),
        ("llama.block_count", 5, (-1i32).to_le_bytes().to_vec()),
        ("llama.rope.freq_base", 4, vec![0; 4]),
        ("general.architecture", 4, vec![0; 4]),
        ("tokenizer.ggml.add_bos_token", 4, vec![0; 4]),
    ] {
        let result = tiny(|gguf| gguf.set(key, id, bytes));
        assert!(matches!(result, Err(Error::GgufKeyType { key: found, .. }) if found == key), "{key}");
    }
    for (key, value) in [
        ("llama.rope.dimension_count", 4u32),
        ("llama.attention.value_length", 16),
        ("llama.expert_count", 8),
    ] {
        let result = tiny(|gguf| gguf.set(key, 4, value.to_le_bytes().to_vec()));
        assert!(matches!(result, Err(Error::Unsupported { .. })), "{key} {value}: {result:?}");
    }
}

#[test]
fn holds_tensors_against_the_metadata() {
    let layers = tiny(|gguf| gguf.set("llama.block_count", 4, 3u32.to_le_bytes().to_vec()));
    assert!(matches!(layers, Err(Error::MissingTensor { .. })));
    let width = tiny(|gguf| gguf.set("llama.feed_forward_length", 4, 64u32.to_le_bytes().to_vec()));
    assert!(matches!(width, Err(Error::TensorShape { tensor, .. }) if tensor.ends_with("gate_proj.weight")));
    let unknown = tiny(|gguf| gguf.tensor("blk.0.attn_q_norm.weight", vec![8], 0, &[0; 32]));
    assert!(matches!(unknown, Err(Error::UnexpectedTensor { .. })));
    let norm = tiny(|gguf| {
        let norm = gguf.tensors.iter_mut().find(|(name, ..)| name == "output_norm.weight").unwrap();
        norm.2 = BlockType::Q8_0.ggml_id();
    });
    assert!(matches!(norm, Err(Error::QuantizedVector { .. })));
    let no_embedding = tiny(|gguf| drop(gguf.tensors.remove(0)));
    assert!(matches!(no_embedding, Err(Error::MissingTensor { .. })));
    assert_eq!(HIDDEN % 32, 0);
}
