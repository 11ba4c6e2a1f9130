//! Hugging Face folders: what is read, and what each fault is called.

mod common;

use std::path::Path;

use bitmill_checkpoint::{
    Checkpoint, Error, Family, Format, Pairing, Role, RoleKind, RopeScaling, TokenizerSource,
};
use bitmill_tensor::{Encoding, FloatType, WeightData};
use common::{
    HEAD_DIM, HIDDEN, VOCAB, config, f32s, open, open_config, open_with, safetensors, tensors, write_folder,
};
use serde_json::{Value, json};

#[test]
fn opens_a_folder_and_finds_every_tensor_by_name_and_role() {
    let folder = tempfile::tempdir().unwrap();
    let stored = tensors("qwen2");
    write_folder(
        folder.path(),
        &[
            ("config.json", config("qwen2").to_string().as_bytes()),
            ("model.safetensors", &safetensors(&stored)),
            ("tokenizer.json", b"{}"),
            ("merges.txt", b"a b"),
            ("pytorch_model.bin", b"not copied"),
        ],
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.format(), Format::HuggingFace);
    assert_eq!(checkpoint.name(), folder.path().file_name().unwrap().to_str().unwrap());
    assert_eq!(
        checkpoint.stored_bytes(),
        (safetensors(&stored).len() + config("qwen2").to_string().len()) as u64
    );
    assert!(!checkpoint.is_quantized());
    assert_eq!(checkpoint.tensors().len(), stored.len());
    for (info, (name, _, shape, bytes)) in checkpoint.tensors().iter().zip(&stored) {
        assert_eq!((&info.name, &info.shape), (name, shape));
        assert_eq!(info.role.canonical_name().as_ref(), Some(name));
        let tensor = checkpoint.tensor(name).unwrap();
        let view = tensor.view();
        assert_eq!(view.out_features() * view.in_features(), shape.iter().product::<usize>());
        assert!(matches!(view.data(), WeightData::Float { bytes: found, .. } if found == bytes));
        tensor.release();
        assert!(matches!(tensor.view().data(), WeightData::Float { bytes: found, .. } if found == bytes));
        assert_eq!(tensor.stored_row(5), 5);
    }
    let others: Vec<String> = checkpoint.other_files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(others, ["merges.txt", "tokenizer.json"]);
    assert!(matches!(checkpoint.tokenizer_source(), TokenizerSource::Json(json) if *json == *b"{}"));
    assert!(
        matches!(checkpoint.tensor("nope"), Err(Error::MissingTensor { tensor, .. }) if tensor == "nope")
    );
    assert!(checkpoint.tensor_with_role(Role::in_layer(1, RoleKind::AttnQBias)).is_some());
    assert!(checkpoint.tensor_with_role(Role::in_layer(2, RoleKind::AttnQBias)).is_none());
    assert!(checkpoint.metadata().is_empty());
    assert_eq!(checkpoint.config_json().unwrap()["model_type"], "qwen2");
}

#[test]
fn reads_the_config_in_both_spellings() {
    let new = open_config("qwen2", |_| {}).unwrap();
    let old = open_config("qwen2", |config| {
        let map = config.as_object_mut().unwrap();
        map.remove("rope_parameters");
        map.remove("dtype");
        map.insert("rope_theta".into(), json!(50000.0));
        map.insert("rope_scaling".into(), Value::Null);
        map.insert("torch_dtype".into(), json!("float32"));
        map.insert("sliding_window".into(), json!(64));
        map.insert("use_sliding_window".into(), json!(false));
        map.insert("max_window_layers".into(), json!(1));
    })
    .unwrap();
    assert_eq!(new.config(), old.config());
    let config = new.config();
    assert_eq!(config.family, Family::Qwen2);
    assert_eq!((config.vocab_size, config.hidden_size, config.head_dim), (VOCAB, HIDDEN, HEAD_DIM));
    assert_eq!(config.rope.theta, 50000.0);
    assert_eq!(config.rope.pairing, Pairing::Halves);
    assert_eq!(config.rms_norm_eps, 1e-5);
    assert_eq!((config.bos, config.eos.as_slice(), config.dtype), (Some(1), &[2][..], FloatType::F32));
    assert!(!config.tied && !config.add_bos);
}

#[test]
fn reads_llama_3_scaling_in_both_spellings() {
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    let mut new = scaling.clone();
    new["rope_type"] = json!("llama3");
    new["rope_theta"] = json!(500000.0);
    let new = open_config("llama", |config| config["rope_parameters"] = new).unwrap();
    let mut old = scaling;
    old["type"] = json!("llama3");
    let old = open_config("llama", |config| {
        config.as_object_mut().unwrap().remove("rope_parameters");
        config["rope_theta"] = json!(500000);
        config["rope_scaling"] = old;
    })
    .unwrap();
    assert_eq!(new.config().rope, old.config().rope);
    let expected = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16 };
    assert_eq!(new.config().rope.scaling, expected);
}

#[test]
fn defaults_are_those_of_transformers() {
    let checkpoint = open_config("llama", |config| {
        let map = config.as_object_mut().unwrap();
        for key in [
            "rms_norm_eps",
            "max_position_embeddings",
            "rope_parameters",
            "tie_word_embeddings",
            "hidden_act",
        ] {
            map.remove(key);
        }
        map.insert("dtype".into(), json!("auto"));
    })
    .unwrap();
    let config = checkpoint.config();
    assert_eq!((config.rms_norm_eps, config.max_positions, config.rope.theta), (1e-6, 2048, 10000.0));
    assert_eq!((config.tied, config.dtype), (false, FloatType::F32));
}

#[test]
fn every_end_token_is_found() {
    let files = |generation: &str| {
        let mut config = config("qwen2");
        config["eos_token_id"] = json!([2, 3]);
        vec![
            ("config.json", config.to_string().into_bytes()),
            ("generation_config.json", generation.as_bytes().to_vec()),
            ("model.safetensors", safetensors(&tensors("qwen2"))),
        ]
    };
    let checkpoint = open(files(r#"{"eos_token_id": [5, 2], "bos_token_id": 4}"#)).unwrap();
    assert_eq!(checkpoint.config().eos, [5, 2, 3]);
    assert_eq!(checkpoint.config().bos, Some(1));
    let error = open(files(r#"{"eos_token_id": 40}"#)).unwrap_err();
    assert!(matches!(&error, Error::ConfigValue { key, .. } if key == "eos_token_id"));
    assert!(error.to_string().contains("generation_config.json"));
}

#[test]
fn knows_whether_a_text_begins_with_bos() {
    let template = r#"{"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {}}],
         "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}]}}"#;
    let add_bos = |tokenizer: &str, tokenizer_config: &str| {
        let files = vec![
            ("config.json", config("llama").to_string().into_bytes()),
            ("model.safetensors", safetensors(&tensors("llama"))),
            ("tokenizer.json", tokenizer.as_bytes().to_vec()),
            ("tokenizer_config.json", tokenizer_config.as_bytes().to_vec()),
        ];
        open(files).unwrap().config().add_bos
    };
    assert!(add_bos(template, "{}"));
    assert!(!add_bos(template, r#"{"add_bos_token": false}"#));
    assert!(!add_bos(&template.replace("[1]", "[2]"), "{}"));
    assert!(add_bos("{}", r#"{"add_bos_token": true}"#));
    assert!(!add_bos("not json", "not json"));
}

#[test]
fn finds_the_chat_template_wherever_it_is() {
    let with = |files: &[(&'static str, &str)]| {
        let mut all = vec![
            ("config.json", config("llama").to_string().into_bytes()),
            ("model.safetensors", safetensors(&tensors("llama"))),
        ];
        all.extend(files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())));
        open(all).unwrap().chat_template()
    };
    assert_eq!(with(&[]), None);
    let old = ("tokenizer_config.json", r#"{"chat_template": "old"}"#);
    assert_eq!(with(&[old]).as_deref(), Some("old"));
    assert_eq!(with(&[old, ("chat_template.jinja", "new")]).as_deref(), Some("new"));
    let named =
        r#"{"chat_template": [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]}"#;
    assert_eq!(with(&[("tokenizer_config.json", named)]).as_deref(), Some("b"));
}

#[test]
fn reads_head_dim_where_it_is_given() {
    let mut stored = tensors("llama");
    for (name, _, shape, bytes) in &mut stored {
        // Half the heads, each twice as wide: the same shapes from another config.
        if name.contains("k_proj") || name.contains("v_proj") {
            *shape = vec![16, HIDDEN];
            bytes.truncate(16 * HIDDEN * 4);
        }
    }
    let mut config = config("llama");
    config["num_attention_heads"] = json!(2);
    config["num_key_value_heads"] = json!(1);
    config["head_dim"] = json!(16);
    let checkpoint = open_with(&config, &stored).unwrap();
    assert_eq!(checkpoint.config().head_dim, 16);
    assert_eq!(checkpoint.config().kv_width(), 16);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let tied = |stored: &[common::Stored]| {
        let mut config = config("qwen2");
        config["tie_word_embeddings"] = json!(true);
        open_with(&config, stored)
    };
    let mut stored = tensors("qwen2");
    // Both are there and differ: transformers 5 unties them, and so do we.
    assert!(!tied(&stored).unwrap().config().tied);
    // Both are there and equal: one is enough.
    let last = stored.len() - 1;
    stored[last].3 = stored[0].3.clone();
    let checkpoint = tied(&stored).unwrap();
    assert!(checkpoint.config().tied);
    assert!(checkpoint.tensor("lm_head.weight").is_err());
    stored.pop();
    assert!(tied(&stored).unwrap().config().tied);
    // Not tied and not there.
    let error = open_with(&config("qwen2"), &stored).unwrap_err();
    assert!(matches!(&error, Error::MissingTensor { tensor, .. } if tensor == "lm_head.weight"));
    assert!(error.hint().unwrap().contains("tie_word_embeddings"));
}

#[test]
fn old_buffers_are_left_out() {
    let mut stored = tensors("llama");
    stored.push(f32s("model.layers.0.self_attn.rotary_emb.inv_freq", &[4], 0));
    let checkpoint = open_with(&config("llama"), &stored).unwrap();
    assert_eq!(checkpoint.tensors().len(), stored.len() - 1);
}

#[test]
fn what_lies_beside_the_decoder_is_kept() {
    let mut stored = tensors("llama");
    stored.push(f32s("score.weight", &[3, HIDDEN], 0));
    let checkpoint = open_with(&config("llama"), &stored).unwrap();
    assert_eq!(checkpoint.tensors().last().unwrap().role, Role::outside(RoleKind::Other));
}

#[test]
fn names_tensors_that_do_not_belong() {
    for name in [
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.gate_proj.bias",
        "model.layers.00.input_layernorm.weight",
        "model.norm.bias",
        "lm_head.bias",
    ] {
        let mut stored = tensors("llama");
        stored.push(f32s(name, &[HIDDEN], 0));
        let result = open_with(&config("llama"), &stored);
        assert!(matches!(result, Err(Error::UnexpectedTensor { tensor, .. }) if tensor == name), "{name}");
    }
}

#[test]
fn biases_count_only_where_the_reference_adds_them() {
    let bias = |config: &Value, family: &str| {
        let mut stored = tensors(family);
        for layer in 0..common::LAYERS {
            stored.push(f32s(&format!("model.layers.{layer}.self_attn.o_proj.bias"), &[HIDDEN], 0));
        }
        open_with(config, &stored)
    };
    let mut llama = config("llama");
    assert!(matches!(bias(&llama, "llama"), Err(Error::ConfigValue { key, .. }) if key == "attention_bias"));
    llama["attention_bias"] = json!(true);
    assert!(bias(&llama, "llama").is_ok());
    assert!(matches!(bias(&config("qwen2"), "qwen2"), Err(Error::UnexpectedTensor { .. })));

    // In every layer or in none.
    let mut stored = tensors("qwen2");
    stored.retain(|(name, ..)| name != "model.layers.1.self_attn.k_proj.bias");
    let result = open_with(&config("qwen2"), &stored);
    assert!(
        matches!(result, Err(Error::MissingTensor { tensor, .. }) if tensor.ends_with("1.self_attn.k_proj.bias"))
    );
    stored.retain(|(name, ..)| !name.ends_with(".bias"));
    assert!(open_with(&config("qwen2"), &stored).is_ok());
}

#[test]
fn names_the_tensor_whose_shape_is_not_the_configs() {
    for (key, value, tensor) in [
        ("vocab_size", VOCAB + 1, "model.embed_tokens.weight"),
        ("intermediate_size", 47, "model.layers.0.mlp.gate_proj.weight"),
        ("num_key_value_heads", 4, "model.layers.0.self_attn.k_proj.weight"),
        ("num_hidden_layers", 1, "model.layers.1.input_layernorm.weight"),
        ("num_hidden_layers", 3, "model.layers.2.input_layernorm.weight"),
        ("head_dim", 4, "model.layers.0.self_attn.q_proj.weight"),
    ] {
        let error = open_config("llama", |config| config[key] = json!(value)).unwrap_err();
        assert!(error.to_string().contains(tensor), "{key}: {error}");
    }
    let mut stored = tensors("llama");
    stored[3].2 = vec![HIDDEN, 16];
    let error = open_with(&config("llama"), &stored).unwrap_err();
    assert!(
        matches!(&error, Error::TensorShape { found, expected, .. } if *found == [32, 16] && *expected == [16, 32])
    );
    assert!(error.hint().unwrap().contains("config.json"));
}

#[test]
fn refuses_hostile_config_values() {
    let huge = u64::MAX;
    for (key, value) in [
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(5)),
        ("num_attention_heads", json!(-4)),
        ("num_attention_heads", json!(4.5)),
        ("num_attention_heads", json!("4")),
        ("num_attention_heads", Value::Null),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(huge)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(huge)),
        ("hidden_size", json!([32])),
        ("intermediate_size", json!(huge)),
        ("vocab_size", json!(huge)),
        ("vocab_size", json!(0)),
        ("head_dim", json!(huge)),
        ("head_dim", json!(7)),
        ("head_dim", json!(16_777_216)),
        ("max_position_embeddings", json!(huge)),
        ("rms_norm_eps", json!(-1.0)),
        ("rms_norm_eps", json!(1e300)),
        ("rms_norm_eps", json!("tiny")),
        ("tie_word_embeddings", json!(1)),
        ("bos_token_id", json!(-1)),
        ("bos_token_id", json!(VOCAB)),
        ("eos_token_id", json!([2, "x"])),
        ("architectures", json!("LlamaForCausalLM")),
        ("rope_parameters", json!("default")),
        ("rope_parameters", json!({"rope_theta": 0})),
        ("rope_parameters", json!({"rope_type": "llama3", "factor": 8})),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 0, "low_freq_factor": 1, "high_freq_factor": 4}),
        ),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
        ),
        ("layer_types", json!(["full_attention", 3])),
        ("layer_types", json!(["full_attention"])),
        ("rope_parameters", json!({"rope_type": "linear"})),
        ("rope_parameters", json!({"rope_type": "dynamic", "factor": -1})),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 4, "beta_fast": 0})),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 4, "mscale": -100, "mscale_all_dim": 1})),
        ("rope_parameters", json!({"rope_type": "yarn", "original_max_position_embeddings": 0})),
    ] {
        let result = open_config("llama", |config| config[key] = value.clone());
        assert!(matches!(result, Err(Error::ConfigValue { .. })), "{key} {value}: {result:?}");
    }
}

#[test]
fn names_what_it_does_not_support() {
    for (family, key, value, word) in [
        ("llama", "rope_parameters", json!({"full_attention": {"rope_theta": 1e4}}), "full_attention"),
        ("llama", "rope_parameters", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("qwen2", "rope_parameters", json!({"mrope_section": [1, 2, 3]}), "mrope"),
        ("llama", "hidden_act", json!("gelu"), "gelu"),
        ("llama", "mlp_bias", json!(true), "mlp_bias"),
        ("llama", "layer_types", json!(["full_attention", "sliding_attention"]), "sliding"),
        ("llama", "layer_types", json!(["full_attention", "linear_attention"]), "linear_attention"),
    ] {
        let error = open_config(family, |config| config[key] = value.clone()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{key} {value}: {error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    for kind in ["longrope", "su", "ntk"] {
        let error =
            open_config("llama", |config| config["rope_parameters"] = json!({"type": kind})).unwrap_err();
        assert!(matches!(&error, Error::UnsupportedRope { kind: found, .. } if found == kind), "{error}");
        assert!(error.hint().unwrap().contains("yarn"));
    }
}

#[test]
fn names_families_it_does_not_read() {
    for (model_type, class, found) in [
        (json!("phi3"), json!(["Phi3ForCausalLM"]), "phi3 (Phi3ForCausalLM)"),
        (json!("llama"), json!(["LlamaForSequenceClassification"]), "llama (LlamaForSequenceClassification)"),
        (json!("llama"), json!(["Qwen2ForCausalLM"]), "llama (Qwen2ForCausalLM)"),
        (json!("gemma"), Value::Null, "gemma"),
        (Value::Null, json!(["GemmaForCausalLM"]), "GemmaForCausalLM"),
    ] {
        let error = open_config("llama", |config| {
            config["model_type"] = model_type;
            config["architectures"] = class;
        })
        .unwrap_err();
        assert!(matches!(&error, Error::UnsupportedFamily { found: name, .. } if name == found), "{error}");
        assert!(error.hint().unwrap().contains("qwen2"));
    }
    assert!(open_config("llama", |config| config["architectures"] = Value::Null).is_ok());
    assert!(open_config("llama", |config| config["model_type"] = Value::Null).is_ok());
}

/// The tiny model in two shards, its index changed by `change`.
fn open_sharded(change: impl FnOnce(&mut Value)) -> Result<Checkpoint, Error> {
    let stored = tensors("qwen2");
    let (first, second) = stored.split_at(5);
    let mut weight_map = serde_json::Map::new();
    for (shard, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        weight_map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(shard))));
    }
    let mut index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    change(&mut index);
    open(vec![
        ("config.json", config("qwen2").to_string().into_bytes()),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        ("a.safetensors", safetensors(first)),
        ("b.safetensors", safetensors(second)),
    ])
}

#[test]
fn reads_shards_in_their_order() {
    let checkpoint = open_sharded(|_| {}).unwrap();
    let names: Vec<String> = checkpoint.tensors().iter().map(|info| info.name.clone()).collect();
    let expected: Vec<String> = tensors("qwen2").into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, expected);
    assert!(checkpoint.other_files().is_empty());
}

#[test]
fn refuses_an_index_that_names_a_missing_shard() {
    let error =
        open_sharded(|index| index["weight_map"]["lm_head.weight"] = json!("c.safetensors")).unwrap_err();
    let is_it = |error: &Error| {
        matches!(error, Error::MissingShard { shard, tensor, .. }
            if shard == "c.safetensors" && tensor == "lm_head.weight")
    };
    assert!(is_it(&error), "{error}");
}

#[test]
fn refuses_an_index_that_names_a_path_outside_the_folder() {
    for shard in ["../b.safetensors", "/etc/passwd", "x/../../b.safetensors", "", ".", "..\\b", "a\0b", "./b"]
    {
        let error = open_sharded(|index| index["weight_map"]["lm_head.weight"] = json!(shard)).unwrap_err();
        let named = matches!(&error, Error::ShardOutsideFolder { shard: found, tensor, .. }
            if found == shard && tensor == "lm_head.weight");
        assert!(named, "{shard}: {error}");
    }
}

#[test]
fn refuses_an_index_that_is_wrong_about_its_shards() {
    let error =
        open_sharded(|index| index["weight_map"]["more.weight"] = json!("b.safetensors")).unwrap_err();
    assert!(matches!(&error, Error::MissingFromShard { tensor, .. } if tensor == "more.weight"), "{error}");
    let error =
        open_sharded(|index| index["weight_map"]["lm_head.weight"] = json!("a.safetensors")).unwrap_err();
    assert!(
        matches!(&error, Error::MissingFromShard { tensor, .. } if tensor == "lm_head.weight"),
        "{error}"
    );
    for index in [json!({}), json!({"weight_map": []}), json!({"weight_map": {"a": 1}}), json!([])] {
        assert!(matches!(open_sharded(|old| *old = index), Err(Error::Json { .. })));
    }
}

#[test]
fn refuses_a_tensor_in_two_shards() {
    let stored = tensors("llama");
    let map: serde_json::Map<String, Value> =
        stored.iter().map(|(name, ..)| (name.clone(), json!("a.safetensors"))).collect();
    let mut map = map;
    map.insert("extra".into(), json!("b.safetensors"));
    let error = open(vec![
        ("config.json", config("llama").to_string().into_bytes()),
        ("model.safetensors.index.json", json!({"weight_map": map}).to_string().into_bytes()),
        ("a.safetensors", safetensors(&stored)),
        ("b.safetensors", safetensors(&[f32s("extra", &[1], 0), stored[0].clone()])),
    ])
    .unwrap_err();
    assert!(matches!(&error, Error::TensorInTwoShards { tensor, .. } if *tensor == stored[0].0), "{error}");
}

/// Two shards of one index, of whatever they hold.
fn open_shards(
    config: &Value,
    first: &[common::Stored],
    second: &[common::Stored],
) -> Result<Checkpoint, Error> {
    let mut map = serde_json::Map::new();
    for (shard, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(shard))));
    }
    open(vec![
        ("config.json", config.to_string().into_bytes()),
        ("model.safetensors.index.json", json!({"weight_map": map}).to_string().into_bytes()),
        ("a.safetensors", safetensors(first)),
        ("b.safetensors", safetensors(second)),
    ])
}

#[test]
fn shards_of_different_dtypes_are_one_model_each_tensor_in_its_own() {
    let mut stored = tensors("llama");
    let middle = stored.len() / 2;
    for (_, dtype, shape, bytes) in &mut stored[middle..] {
        *dtype = "BF16";
        bytes.truncate(2 * shape.iter().product::<usize>());
    }
    let (first, second) = stored.split_at(middle);
    let checkpoint = open_shards(&config("llama"), first, second).unwrap();
    let dtype = |at: usize| checkpoint.tensors()[at].encoding;
    assert_eq!(dtype(0), Encoding::Float(FloatType::F32));
    assert_eq!(dtype(stored.len() - 1), Encoding::Float(FloatType::BF16));
    // Not so a dtype that is nobody's weights.
    let mut wrong = second.to_vec();
    wrong[0].1 = "I16";
    let error = open_shards(&config("llama"), first, &wrong).unwrap_err();
    assert!(
        matches!(&error, Error::UnsupportedDtype { file, tensor, .. }
            if file.ends_with("b.safetensors") && *tensor == wrong[0].0),
        "{error}"
    );
}

#[test]
fn names_the_first_tensor_of_a_shard_from_another_model() {
    let stored = tensors("llama");
    let (first, second) = stored.split_at(stored.len() / 2);
    let mut wider = second.to_vec();
    for (_, _, shape, bytes) in &mut wider {
        *shape.last_mut().unwrap() *= 2;
        bytes.extend_from_within(..);
    }
    let error = open_shards(&config("llama"), first, &wider).unwrap_err();
    assert!(matches!(&error, Error::TensorShape { tensor, .. } if *tensor == wider[0].0), "{error}");
    assert!(error.hint().unwrap().contains("different models"));
    // A shard of a deeper model has layers that this one lacks; of a shallower one, this one lacks a layer.
    let renamed = |from: &str, to: &str| -> Vec<common::Stored> {
        let rename = |(name, dtype, shape, bytes): &common::Stored| {
            (name.replace(from, to), *dtype, shape.clone(), bytes.clone())
        };
        second.iter().map(rename).collect()
    };
    let deeper = open_shards(&config("llama"), first, &renamed("layers.1.", "layers.2."));
    assert!(matches!(deeper, Err(Error::UnexpectedTensor { tensor, .. }) if tensor.contains("layers.2.")));
    let (lacking, _) = second.split_at(second.len() - 3);
    let shallower = open_shards(&config("llama"), first, lacking).unwrap_err();
    assert!(
        matches!(&shallower, Error::MissingTensor { tensor, .. } if tensor.contains("layers.1.mlp.down_proj")),
        "{shallower}"
    );
}

#[test]
fn names_weights_in_dtypes_it_does_not_compute_from() {
    let mut stored = tensors("llama");
    stored[0].1 = "I32";
    let result = open_with(&config("llama"), &stored);
    assert!(matches!(result, Err(Error::UnsupportedDtype { tensor, dtype, .. })
        if tensor == "model.embed_tokens.weight" && dtype == "I32"));
}

#[test]
fn says_what_is_missing_from_a_folder() {
    let config = config("llama").to_string().into_bytes();
    let problem = |files: Vec<(&str, Vec<u8>)>| match open(files) {
        Err(error @ (Error::NotACheckpoint { .. } | Error::Foreign { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(problem(vec![]).contains("config.json"));
    assert!(problem(vec![("config.json", config.clone())]).contains("no weights"));
    let pickled = vec![("config.json", config.clone()), ("pytorch_model.bin", vec![])];
    assert!(problem(pickled).contains("pytorch_model.bin"));
    let two = vec![("config.json", config.clone()), ("a.safetensors", vec![]), ("b.safetensors", vec![])];
    assert!(problem(two).contains("2 safetensors files"));
    assert!(matches!(open(vec![("config.json", b"{".to_vec())]), Err(Error::Json { .. })));
    assert!(matches!(open(vec![("config.json", b"[]".to_vec())]), Err(Error::Json { .. })));
    let missing = Checkpoint::open(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/at/all") && missing.hint().is_some());
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    assert!(matches!(Checkpoint::open(file.path()), Err(Error::Foreign { .. })));
}

#[test]
fn a_single_safetensors_file_may_have_any_name() {
    let files = vec![
        ("config.json", config("llama").to_string().into_bytes()),
        ("weights.safetensors", safetensors(&tensors("llama"))),
    ];
    assert!(open(files).is_ok());
}

#[cfg(unix)]
#[test]
fn links_to_elsewhere_are_not_copied_except_in_a_hub_cache() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let snapshot = root.path().join("models--x/snapshots/abc");
    let blobs = root.path().join("models--x/blobs");
    let plain = root.path().join("plain");
    for folder in [&snapshot, &blobs, &plain] {
        std::fs::create_dir_all(folder).unwrap();
    }
    write_folder(
        &blobs,
        &[
            ("1", config("llama").to_string().as_bytes()),
            ("2", &safetensors(&tensors("llama"))),
            ("3", b"vocabulary"),
        ],
    );
    std::fs::write(root.path().join("secret"), "secret").unwrap();
    for folder in [&snapshot, &plain] {
        for (blob, name) in [("1", "config.json"), ("2", "model.safetensors"), ("3", "vocab.txt")] {
            symlink(blobs.join(blob), folder.join(name)).unwrap();
        }
        symlink(root.path().join("secret"), folder.join("notes.txt")).unwrap();
        symlink(root.path().join("nowhere"), folder.join("dangling.txt")).unwrap();
    }
    let others = |folder: &Path| -> Vec<String> {
        Checkpoint::open(folder).unwrap().other_files().into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(others(&snapshot), ["vocab.txt"]);
    assert_eq!(others(&plain), [""; 0]);
    // Told of; what leads nowhere is nothing, and versions of the folder are no part of it.
    for folder in [&snapshot, &plain] {
        std::fs::create_dir_all(folder.join("onnx")).unwrap();
        std::fs::create_dir_all(folder.join(".git")).unwrap();
    }
    assert_eq!(Checkpoint::open(&snapshot).unwrap().left_behind(), ["onnx/", "notes.txt"]);
    assert_eq!(Checkpoint::open(&plain).unwrap().left_behind(), ["onnx/", "notes.txt", "vocab.txt"]);
}

#[test]
fn the_embedded_model_opens_from_memory_and_from_disk_alike() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/millet/model");
    let from_disk = Checkpoint::open(&folder).unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // As `include_bytes!` would give it.
        let bytes: &'static [u8] = Box::leak(std::fs::read(&path).unwrap().into_boxed_slice());
        files.push((name, bitmill_checkpoint::Region::from_static(bytes)));
    }
    let embedded = Checkpoint::from_files("millet", files).unwrap();
    assert_eq!(embedded.name(), "millet");
    assert_eq!(embedded.config(), from_disk.config());
    assert_eq!(embedded.tensors(), from_disk.tensors());
    assert_eq!(embedded.stored_bytes(), from_disk.stored_bytes());
    let config = embedded.config();
    assert_eq!((config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim), (4, 8, 1, 32));
    assert_eq!((config.tied, config.dtype, config.rope.theta), (false, FloatType::BF16, 1e6));
    assert!(embedded.tensors().iter().all(|info| info.encoding == Encoding::Float(FloatType::BF16)));
    assert!(embedded.chat_template().is_some());
    assert!(embedded.tensor_with_role(Role::in_layer(3, RoleKind::AttnVBias)).is_some());
}
