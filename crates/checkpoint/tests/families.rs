//! What each family adds: norms of heads, windows, stretched positions, other names; in both formats.

mod common;

use bitmill_checkpoint::{
    Error, Family, GgufArray, GgufValue, ModelConfig, Pairing, Role, RoleKind, RopeScaling, SlidingWindow,
    Yarn, check_gguf, folder_notes, gguf_metadata,
};
use common::{
    FFN, Gguf, HEAD_DIM, HEADS, HIDDEN, LAYERS, Stored, VOCAB, config, f32s, open_config, open_gguf,
    open_with, tensors,
};
use serde_json::{Value, json};

/// The config of a GGUF file with the metadata that is written for `config`, and the tensors of `family`.
fn through_gguf(config: &ModelConfig, family: &str) -> Result<ModelConfig, Error> {
    let mut gguf = Gguf::tiny(family);
    gguf.keys.clear();
    for (key, value) in gguf_metadata(config, "tiny", 0) {
        let (id, bytes) = match value {
            GgufValue::U32(number) => (4, number.to_le_bytes().to_vec()),
            GgufValue::F32(number) => (6, number.to_le_bytes().to_vec()),
            GgufValue::String(text) => (8, common::string(&text)),
            GgufValue::Array(GgufArray::Bool(layers)) => {
                let mut bytes = 7u32.to_le_bytes().to_vec();
                bytes.extend_from_slice(&(layers.len() as u64).to_le_bytes());
                bytes.extend(layers.iter().map(|slides| u8::from(*slides)));
                (9, bytes)
            }
            other => panic!("{key}: {other:?}"),
        };
        gguf.keys.push((key, id, bytes));
    }
    let checkpoint = open_gguf(&gguf.bytes())?;
    // A folder made of it says the same: what is written is read back and compared.
    checkpoint.to_config_json()?;
    Ok(checkpoint.config().clone())
}

#[test]
fn qwen3_has_a_norm_for_the_heads_of_q_and_of_k() {
    let checkpoint = open_config("qwen3", |_| {}).unwrap();
    assert_eq!(checkpoint.config().family, Family::Qwen3);
    for kind in [RoleKind::AttnQNorm, RoleKind::AttnKNorm] {
        let norm = checkpoint.tensor_with_role(Role::in_layer(1, kind)).unwrap();
        assert_eq!(norm.info.shape, [HEAD_DIM]);
    }
    let mut stored = tensors("qwen3");
    stored.retain(|(name, ..)| name != "model.layers.1.self_attn.k_norm.weight");
    let error = open_with(&config("qwen3"), &stored).unwrap_err();
    assert!(
        matches!(error, Error::MissingTensor { tensor, .. } if tensor.ends_with("1.self_attn.k_norm.weight"))
    );
    // Other families never look at one.
    let error = open_with(&config("llama"), &tensors("qwen3")).unwrap_err();
    assert!(
        matches!(error, Error::UnexpectedTensor { tensor, .. } if tensor.ends_with("0.self_attn.q_norm.weight"))
    );

    let gguf = open_gguf(&Gguf::tiny("qwen3").bytes()).unwrap();
    assert_eq!((gguf.config().family, gguf.config().rope.pairing), (Family::Qwen3, Pairing::Halves));
    assert!(gguf.tensor("model.layers.0.self_attn.q_norm.weight").is_ok());
}

#[test]
fn biases_of_qwen3_and_mistral_count_only_where_the_reference_adds_them() {
    let with_biases = |family: &str, attention_bias: bool| {
        let (mut stored, mut config) = (tensors(family), config(family));
        for layer in 0..LAYERS {
            for (part, rows) in [("q", 32), ("k", 16), ("v", 16), ("o", HIDDEN)] {
                stored.push(f32s(&format!("model.layers.{layer}.self_attn.{part}_proj.bias"), &[rows], 0));
            }
        }
        config["attention_bias"] = json!(attention_bias);
        open_with(&config, &stored)
    };
    assert!(with_biases("qwen3", true).is_ok());
    assert!(
        matches!(with_biases("qwen3", false), Err(Error::ConfigValue { key, .. }) if key == "attention_bias")
    );
    assert!(matches!(with_biases("mistral", true), Err(Error::UnexpectedTensor { .. })));
}

#[test]
fn a_window_is_where_transformers_has_one() {
    let window = |family: &str, keys: Value| {
        open_config(family, |config| {
            config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        })
        .map(|checkpoint| checkpoint.config().window.clone())
    };
    let of = |tokens, layers: [bool; 2]| Some(SlidingWindow { tokens, layers: layers.into() });
    let on = |more: Value| {
        let mut keys = json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 1});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    };
    for (family, keys, expected) in [
        ("mistral", json!({"sliding_window": 64}), of(64, [true, true])),
        ("mistral", json!({"sliding_window": null}), None),
        // The default, 4096 tokens, is longer than the context here.
        ("mistral", json!({}), None),
        ("mistral", json!({"max_position_embeddings": 8192}), of(4096, [true, true])),
        ("mistral", json!({"sliding_window": 128}), None),
        ("qwen2", json!({"sliding_window": 64, "max_window_layers": 0}), None),
        ("qwen2", json!({"use_sliding_window": false, "sliding_window": 64, "max_window_layers": 0}), None),
        ("qwen2", on(json!({})), of(64, [false, true])),
        ("qwen3", on(json!({})), of(64, [false, true])),
        ("qwen2", on(json!({"max_window_layers": 2})), None),
        ("qwen2", on(json!({"sliding_window": null})), None),
        ("qwen2", on(json!({"layer_types": ["sliding_attention", "full_attention"]})), of(64, [true, false])),
        ("qwen2", on(json!({"layer_types": ["full_attention", "full_attention"]})), None),
        ("llama", json!({"sliding_window": 64, "use_sliding_window": true}), None),
    ] {
        assert_eq!(window(family, keys.clone()).unwrap(), expected, "{family} {keys}");
    }
    // transformers fails here, too: a layer slides, and nothing says how far.
    let error = window("qwen2", json!({"layer_types": ["sliding_attention", "full_attention"]})).unwrap_err();
    assert!(matches!(error, Error::Unsupported { what, .. } if what.contains("layer_types")));
}

#[test]
fn a_window_survives_gguf_and_is_said_to_be_ours_alone() {
    for (family, layers) in [("mistral", [true, true]), ("qwen2", [false, true])] {
        let source = open_config(family, |config| {
            config["use_sliding_window"] = json!(true);
            config["sliding_window"] = json!(12);
            config["max_window_layers"] = json!(1);
        })
        .unwrap();
        let config = source.config();
        // Mistral's file is a llama's.
        let tensors_of = if family == "mistral" { "llama" } else { family };
        let back = through_gguf(config, tensors_of).unwrap();
        assert_eq!(back.family, config.family);
        assert_eq!(back.window, Some(SlidingWindow { tokens: 12, layers: layers.into() }));
        assert_eq!([back.window_of(0), back.window_of(1)], layers.map(|slides| slides.then_some(12)));
        let notes = check_gguf("tiny", config).unwrap();
        assert!(notes.len() == 1 && notes[0].contains("12 tokens"), "{notes:?}");
        let pattern = gguf_metadata(config, "tiny", 0).iter().any(|(key, _)| key.ends_with("window_pattern"));
        assert_eq!(pattern, family == "qwen2");
    }
    let mut gguf = Gguf::tiny("qwen2");
    gguf.u32("qwen2.attention.sliding_window", 12);
    gguf.u32("qwen2.attention.sliding_window_pattern", 2);
    assert!(matches!(open_gguf(&gguf.bytes()), Err(Error::GgufKeyType { .. })));
}

#[test]
fn a_mistral_without_a_window_is_a_llama_in_gguf() {
    let source = open_config("mistral", |config| config["sliding_window"] = Value::Null).unwrap();
    assert_eq!(source.config().family, Family::Mistral);
    let back = through_gguf(source.config(), "llama").unwrap();
    assert_eq!((back.family, back.rope.pairing), (Family::Llama, Pairing::Adjacent));
    assert!(check_gguf("tiny", source.config()).unwrap().is_empty());
}

fn yarn(factor: f64, original: usize) -> Yarn {
    let attention = 0.1 * factor.ln() + 1.0;
    Yarn { factor, original, beta_fast: 32.0, beta_slow: 1.0, attention, truncate: true }
}

#[test]
fn stretched_positions_are_read_in_both_spellings() {
    let usual = yarn(4.0, 32);
    let reduced = |mscale: f64, all: f64| (0.1 * mscale * 4f64.ln() + 1.0) / (0.1 * all * 4f64.ln() + 1.0);
    for (keys, scaling, positions) in [
        (json!({"type": "linear", "factor": 2.0}), RopeScaling::Linear { factor: 2.0 }, 128),
        (
            json!({"rope_type": "dynamic", "factor": 2}),
            RopeScaling::Dynamic { factor: 2.0, original: 128 },
            256,
        ),
        // As Qwen 2.5's model cards have it, with and without what goes without saying.
        (
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
            RopeScaling::Yarn(usual),
            128,
        ),
        (json!({"type": "yarn", "factor": 4.0}), RopeScaling::Yarn(yarn(4.0, 128)), 512),
        (
            json!({"type": "yarn", "factor": null, "original_max_position_embeddings": 32}),
            RopeScaling::Yarn(usual),
            128,
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16,
                "beta_slow": 0.5, "attention_factor": 1.5, "truncate": false, "mscale": 3.0, "mscale_all_dim": 1.0}),
            RopeScaling::Yarn(Yarn {
                beta_fast: 16.0,
                beta_slow: 0.5,
                attention: 1.5,
                truncate: false,
                ..usual
            }),
            128,
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 2.0,
                "mscale_all_dim": 0.5}),
            RopeScaling::Yarn(Yarn { attention: reduced(2.0, 0.5), ..usual }),
            128,
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 2.0}),
            RopeScaling::Yarn(usual),
            128,
        ),
    ] {
        let mut new = keys.clone();
        new["rope_theta"] = json!(50000.0);
        let new = open_config("qwen2", |config| config["rope_parameters"] = new).unwrap();
        let old = open_config("qwen2", |config| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config["rope_theta"] = json!(50000.0);
            config["rope_scaling"] = keys.clone();
        })
        .unwrap();
        assert_eq!(new.config().rope.scaling, scaling, "{keys}");
        assert_eq!(new.config().max_positions, positions, "{keys}");
        assert_eq!(new.config(), old.config());
    }
}

#[test]
fn stretched_positions_survive_gguf_where_it_has_a_form_for_them() {
    let with = |family: &str, scaling: Value| {
        let mut scaling = scaling;
        scaling["rope_theta"] = json!(50000.0);
        open_config(family, |config| config["rope_parameters"] = scaling).unwrap().config().clone()
    };
    let f32s_equal = |a: f64, b: f64| (a - b).abs() < 1e-6 * b;
    for family in ["llama", "qwen2", "qwen3"] {
        let linear = with(family, json!({"rope_type": "linear", "factor": 2.5}));
        let back = through_gguf(&linear, family).unwrap();
        assert_eq!((&back.rope.scaling, back.max_positions), (&linear.rope.scaling, 128));
        assert!(check_gguf("tiny", &linear).unwrap().is_empty());

        let keys = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
            "beta_fast": 16, "beta_slow": 0.5, "attention_factor": 1.5});
        let yarn = with(family, keys.clone());
        let back = through_gguf(&yarn, family).unwrap();
        let RopeScaling::Yarn(found) = back.rope.scaling else { panic!("{:?}", back.rope) };
        assert_eq!((found.factor, found.original, found.beta_fast, found.beta_slow), (4.0, 32, 16.0, 0.5));
        assert!(f32s_equal(found.attention, 1.5) && found.truncate);
        assert_eq!(back.max_positions, 128);
        assert!(check_gguf("tiny", &yarn).unwrap()[0].contains("16 and 0.5"));

        let mut keys = keys;
        keys["truncate"] = json!(false);
        let error = check_gguf("tiny", &with(family, keys)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { what, .. } if what.contains("truncate")));

        let dynamic = with(family, json!({"rope_type": "dynamic", "factor": 2.0}));
        let back = through_gguf(&dynamic, family).unwrap();
        assert_eq!((back.rope.scaling, back.max_positions), (RopeScaling::None, 128));
        assert!(check_gguf("tiny", &dynamic).unwrap()[0].contains("up to 128 tokens"));
    }
    // The keys that llama.cpp's converter writes, and no others, for what Qwen 2.5's model cards say.
    let card = with("qwen2", json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}));
    let keys: Vec<(String, GgufValue)> =
        gguf_metadata(&card, "tiny", 0).into_iter().filter(|(key, _)| key.contains("scaling")).collect();
    let text = GgufValue::String("yarn".to_owned());
    let expected = [
        ("qwen2.rope.scaling.type", text),
        ("qwen2.rope.scaling.factor", GgufValue::F32(4.0)),
        ("qwen2.rope.scaling.original_context_length", GgufValue::U32(32)),
    ];
    assert_eq!(keys, expected.map(|(key, value)| (key.to_owned(), value)));
    assert!(check_gguf("tiny", &card).unwrap().is_empty());
}

#[test]
fn gguf_scaling_keys_mean_what_llama_cpp_makes_of_them() {
    let scaling = |kind: Option<&str>, factors: &[(&str, f32)]| {
        let mut gguf = Gguf::tiny("llama");
        if let Some(kind) = kind {
            gguf.text("llama.rope.scaling.type", kind);
        }
        for (key, value) in factors {
            gguf.f32(&format!("llama.rope.{key}"), *value);
        }
        open_gguf(&gguf.bytes()).map(|checkpoint| checkpoint.config().rope.scaling.clone())
    };
    let linear = RopeScaling::Linear { factor: 4.0 };
    // Without a type it is linear; `scale_linear` is the old key.
    assert_eq!(scaling(None, &[("scaling.factor", 4.0)]).unwrap(), linear);
    assert_eq!(scaling(None, &[("scale_linear", 4.0)]).unwrap(), linear);
    assert_eq!(scaling(Some("linear"), &[("scaling.factor", 4.0)]).unwrap(), linear);
    for (kind, factor) in [(Some("none"), 4.0), (Some("linear"), 1.0), (Some("linear"), 0.0), (None, 0.0)] {
        assert_eq!(scaling(kind, &[("scaling.factor", factor)]).unwrap(), RopeScaling::None);
    }
    assert_eq!(scaling(Some("yarn"), &[("scaling.factor", 4.0)]).unwrap(), RopeScaling::Yarn(yarn(4.0, 128)));
    let error = scaling(Some("longrope"), &[]).unwrap_err();
    assert!(matches!(error, Error::UnsupportedRope { kind, .. } if kind == "longrope"));
    for value in [-4.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(scaling(None, &[("scaling.factor", value)]), Err(Error::ConfigValue { .. })));
    }
    let odd = scaling(Some("yarn"), &[("scaling.factor", 4.0), ("scaling.yarn_ext_factor", 0.5)]);
    assert!(matches!(odd, Err(Error::Unsupported { what, .. }) if what.contains("yarn_ext_factor")));
}

/// Qwen's first generation: config and tensors, all heads with keys of their own.
fn generation_1() -> (Value, Vec<Stored>) {
    let config = json!({
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": 2 * FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "kv_channels": HEAD_DIM, "layer_norm_epsilon": 1e-5, "rotary_emb_base": 50000.0, "rotary_pct": 1.0,
        "seq_length": 128, "max_position_embeddings": 512, "no_bias": true, "use_dynamic_ntk": false,
        "use_logn_attn": false, "tie_word_embeddings": false, "torch_dtype": "float32"
    });
    let mut stored = vec![f32s("transformer.wte.weight", &[VOCAB, HIDDEN], 0)];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("ln_1.weight", vec![HIDDEN]),
            ("attn.c_attn.weight", vec![3 * HIDDEN, HIDDEN]),
            ("attn.c_attn.bias", vec![3 * HIDDEN]),
            ("attn.c_proj.weight", vec![HIDDEN, HIDDEN]),
            ("ln_2.weight", vec![HIDDEN]),
            ("mlp.w1.weight", vec![FFN, HIDDEN]),
            ("mlp.w2.weight", vec![FFN, HIDDEN]),
            ("mlp.c_proj.weight", vec![HIDDEN, FFN]),
        ] {
            stored.push(f32s(&format!("transformer.h.{layer}.{name}"), &shape, stored.len()));
        }
        stored.push(f32s(&format!("transformer.h.{layer}.attn.masked_bias"), &[1], 0));
    }
    stored.push(f32s("transformer.rotary_emb.inv_freq", &[HEAD_DIM / 2], 0));
    stored.push(f32s("transformer.ln_f.weight", &[HIDDEN], 7));
    stored.push(f32s("lm_head.weight", &[VOCAB, HIDDEN], 9));
    (config, stored)
}

#[test]
fn the_first_generation_is_read_under_todays_names() {
    let (json, stored) = generation_1();
    let checkpoint = open_with(&json, &stored).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.family, config.head_dim, config.n_kv_heads), (Family::Qwen, HEAD_DIM, HEADS));
    assert_eq!((config.intermediate_size, config.max_positions, config.log_n), (FFN, 128, None));
    assert_eq!((config.rope.theta, config.rms_norm_eps), (50000.0, 1e-5));
    assert_eq!(checkpoint.tensors().len(), 3 + LAYERS * 12);
    // c_attn of layer 1 is 32 rows of q, of k and of v; its elements count up from its place in the file.
    let value = |name: &str, at: usize| {
        let tensor = checkpoint.tensor(name).unwrap();
        match tensor.view().data() {
            bitmill_tensor::WeightData::Float { float, bytes } => float.read(bytes, at) as usize,
            other => panic!("{other:?}"),
        }
    };
    let seed = stored.iter().position(|(name, ..)| name == "transformer.h.1.attn.c_attn.weight").unwrap();
    for (part, name) in ["q", "k", "v"].into_iter().enumerate() {
        let name = format!("model.layers.1.self_attn.{name}_proj");
        assert_eq!(value(&format!("{name}.weight"), 5), seed + part * HIDDEN * HIDDEN + 5);
        assert_eq!(value(&format!("{name}.bias"), 5), seed + 1 + part * HIDDEN + 5);
        assert_eq!(checkpoint.tensor(&format!("{name}.weight")).unwrap().info.shape, [HIDDEN, HIDDEN]);
    }
    assert_eq!(value("model.layers.1.mlp.up_proj.weight", 0), seed + 4);
    assert_eq!(value("model.layers.1.mlp.gate_proj.weight", 0), seed + 5);

    // What is written of it is a Qwen2: its config opens with the tensors under their new names.
    let json = checkpoint.config_json().unwrap().clone();
    assert_eq!((&json["model_type"], &json["rope_theta"]), (&json!("qwen2"), &json!(50000.0)));
    let renamed: Vec<Stored> = checkpoint
        .tensors()
        .iter()
        .map(|info| {
            let tensor = checkpoint.tensor(&info.name).unwrap();
            match tensor.view().data() {
                bitmill_tensor::WeightData::Float { bytes, .. } => {
                    (info.name.clone(), "F32", info.shape.clone(), bytes.to_vec())
                }
                other => panic!("{other:?}"),
            }
        })
        .collect();
    let qwen2 = open_with(&json, &renamed).unwrap();
    assert_eq!(*qwen2.config(), ModelConfig { family: Family::Qwen2, ..config.clone() });
    assert!(folder_notes(config)[0].contains("Qwen2ForCausalLM"));
    assert_eq!(config.family.gguf_name(), "qwen2");
}

#[test]
fn the_first_generation_stretches_as_its_config_says_and_by_default() {
    let (json, stored) = generation_1();
    let open = |change: &dyn Fn(&mut Value)| {
        let mut json = json.clone();
        change(&mut json);
        open_with(&json, &stored)
    };
    let by_default = open(&|json| {
        json.as_object_mut().unwrap().retain(|key, _| !key.starts_with("use_"));
    })
    .unwrap();
    let config = by_default.config();
    assert_eq!(config.rope.scaling, RopeScaling::PromptNtk { original: 128 });
    assert_eq!((config.log_n, config.max_positions, config.plain_positions()), (Some(128), 512, 128));
    assert_eq!(by_default.config_json().unwrap()["max_position_embeddings"], 128);
    let notes = check_gguf("tiny", config).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("log-n") && notes[0].contains("128 tokens"), "{notes:?}");
    assert!(folder_notes(config).contains(&notes[0]));
    let metadata = gguf_metadata(config, "tiny", 0);
    assert!(metadata.contains(&("qwen2.context_length".to_owned(), GgufValue::U32(128))));

    for (key, value, word) in [
        ("no_bias", json!(false), "no_bias"),
        ("rotary_pct", json!(0.5), "rotary_pct"),
        ("seq_length_expansion", json!(4), "seq_length_expansion"),
    ] {
        let error = open(&|json| json[key] = value.clone()).unwrap_err();
        assert!(matches!(&error, Error::Unsupported { what, .. } if what.contains(word)), "{error}");
    }
    for (key, value) in [
        ("intermediate_size", json!(2 * FFN + 1)),
        ("kv_channels", json!(HEAD_DIM + 2)),
        ("rotary_emb_base", json!(0)),
        ("seq_length", json!(1)),
    ] {
        let error = open(&|json| json[key] = value.clone()).unwrap_err();
        assert!(matches!(&error, Error::ConfigValue { key: found, .. } if found == key), "{error}");
    }
}

#[test]
fn the_first_generation_must_have_its_tensors() {
    let (json, stored) = generation_1();
    let without = |gone: &str| {
        let mut stored = stored.clone();
        stored.retain(|(name, ..)| name != gone);
        open_with(&json, &stored)
    };
    let error = without("transformer.h.1.mlp.w2.weight").unwrap_err();
    assert!(
        matches!(&error, Error::MissingTensor { tensor, .. } if tensor == "model.layers.1.mlp.gate_proj.weight")
    );
    let mut short = stored.clone();
    let fused = short.iter_mut().find(|(name, ..)| name.ends_with("c_attn.weight")).unwrap();
    fused.2[0] -= 1;
    fused.3.truncate(fused.2[0] * HIDDEN * 4);
    let error = open_with(&json, &short).unwrap_err();
    assert!(
        matches!(&error, Error::TensorShape { tensor, expected, .. }
            if tensor == "transformer.h.0.attn.c_attn.weight" && *expected == [96, 32]),
        "{error}"
    );
    let mut visual = stored.clone();
    visual.push(f32s("transformer.visual.proj", &[4], 0));
    assert!(matches!(open_with(&json, &visual), Err(Error::UnexpectedTensor { .. })));
}

#[test]
fn a_gguf_of_the_first_generation_splits_its_fused_tensors() {
    let mut gguf = Gguf::empty();
    gguf.text("general.architecture", "qwen");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 128),
        ("embedding_length", 32),
        ("feed_forward_length", 2 * FFN),
        ("attention.head_count", HEADS),
        ("rope.dimension_count", HEAD_DIM),
    ] {
        gguf.u32(&format!("qwen.{key}"), value as u32);
    }
    gguf.f32("qwen.rope.freq_base", 50000.0);
    gguf.f32("qwen.attention.layer_norm_rms_epsilon", 1e-5);
    for (name, rows, cols) in [
        ("token_embd.weight", VOCAB, HIDDEN),
        ("blk.0.attn_norm.weight", 0, HIDDEN),
        ("blk.0.attn_qkv.bias", 0, 3 * HIDDEN),
        ("blk.0.attn_output.weight", HIDDEN, HIDDEN),
        ("blk.0.ffn_norm.weight", 0, HIDDEN),
        ("blk.0.ffn_gate.weight", FFN, HIDDEN),
        ("blk.0.ffn_up.weight", FFN, HIDDEN),
        ("blk.0.ffn_down.weight", HIDDEN, FFN),
        ("output_norm.weight", 0, HIDDEN),
        ("output.weight", VOCAB, HIDDEN),
    ] {
        let dims = if rows == 0 { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
        gguf.tensor(name, dims, 0, &f32s(name, &[rows.max(1), cols], 0).3);
    }
    // Q8_0: 34 bytes for each row of 32.
    let packed: Vec<u8> = (0..3 * HIDDEN).flat_map(|row| [row as u8; 34]).collect();
    gguf.tensor("blk.0.attn_qkv.weight", vec![HIDDEN as u64, 3 * HIDDEN as u64], 8, &packed);
    let checkpoint = open_gguf(&gguf.bytes()).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.family, config.intermediate_size, config.n_kv_heads), (Family::Qwen, FFN, HEADS));
    assert_eq!(config.rope.pairing, Pairing::Halves);
    for (part, kind) in [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV].into_iter().enumerate() {
        let tensor = checkpoint.tensor_with_role(Role::in_layer(0, kind)).unwrap();
        assert_eq!((tensor.info.stored_bytes, tensor.stored_row(3)), (32 * 34, 3));
        match tensor.view().data() {
            bitmill_tensor::WeightData::Block { bytes, .. } => {
                assert_eq!(
                    (bytes[0], bytes[33], bytes[34]),
                    ((part * 32) as u8, (part * 32) as u8, (part * 32 + 1) as u8)
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(checkpoint.tensor("model.layers.0.self_attn.v_proj.bias").is_ok());
    assert_eq!(checkpoint.to_config_json().unwrap()["model_type"], "qwen2");
    gguf.set("qwen.feed_forward_length", 4, 97u32.to_le_bytes().to_vec());
    assert!(matches!(open_gguf(&gguf.bytes()), Err(Error::ConfigValue { .. })));
}
