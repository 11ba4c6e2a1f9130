//! The choices of each mix against llama-quantize's own, on models of many shapes.

use bitmill_quant::{Mix, MixTensor, choose};
use bitmill_tensor::{BlockType, Encoding, FloatType};
use serde_json::Value;

/// What we choose where llama-quantize says `theirs`.
fn ours(theirs: &str) -> Encoding {
    match theirs {
        "f32" => Encoding::Float(FloatType::F32),
        "f16" => Encoding::Float(FloatType::F16),
        // A matrix of one row is a vector to ggml and stays as it came; we widen it like other vectors.
        "bf16" => Encoding::Float(FloatType::F32),
        name => Encoding::Block(BlockType::parse(name).expect(name)),
    }
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

#[test]
fn choices_equal_llama_quantizes() {
    let golden: Value = serde_json::from_str(include_str!("golden/mix.json")).unwrap();
    let mut compared = 0;
    for (name, model) in golden["models"].as_object().unwrap() {
        let [hidden, ffn, vocab] = ["hidden", "ffn", "vocab"].map(|key| number(&model[key]));
        let (n_heads, n_kv_heads) = (number(&model["n_heads"]), number(&model["n_kv_heads"]));
        let kv = hidden / n_heads * n_kv_heads;
        let [experts, width, shared] =
            ["n_experts", "expert_width", "shared_width"].map(|key| model.get(key).map_or(0, number));
        for (mix, kinds) in model["mixes"].as_object().unwrap() {
            let mix: Mix = mix.parse().unwrap();
            let courses = kinds.as_object().unwrap().iter().flat_map(|(course, kinds)| {
                kinds.as_str().unwrap().split(' ').map(move |kind| (course.as_str(), kind))
            });
            for (course, kind) in courses {
                let layers = course.split(' ').flat_map(|run| {
                    let (theirs, count) = run.split_once('*').unwrap();
                    std::iter::repeat_n(theirs, count.parse().unwrap())
                });
                let kind = if kind.ends_with("bias") { kind.to_owned() } else { format!("{kind}.weight") };
                for (index, theirs) in layers.enumerate() {
                    let (gguf_name, layer) = match kind.strip_prefix('.') {
                        Some(kind) => (format!("blk.{index}.{kind}"), Some(index)),
                        None => (kind.clone(), None),
                    };
                    let (out_features, in_features) = match kind.trim_start_matches('.') {
                        "token_embd.weight" | "output.weight" => (vocab, hidden),
                        "attn_q.weight" | "attn_output.weight" => (hidden, hidden),
                        "attn_k.weight" | "attn_v.weight" => (kv, hidden),
                        "ffn_gate.weight" | "ffn_up.weight" => (ffn, hidden),
                        "ffn_down.weight" => (hidden, ffn),
                        "ffn_gate_inp.weight" => (experts, hidden),
                        "ffn_gate_exps.weight" | "ffn_up_exps.weight" => (width, hidden),
                        "ffn_down_exps.weight" => (hidden, width),
                        "ffn_gate_shexp.weight" | "ffn_up_shexp.weight" => (shared, hidden),
                        "ffn_down_shexp.weight" => (hidden, shared),
                        "attn_k.bias" | "attn_v.bias" => (1, kv),
                        _ => (1, hidden),
                    };
                    let vector = ["bias", "norm.weight", "gate_inp_shexp.weight"]
                        .iter()
                        .any(|end| kind.ends_with(end));
                    let choice = choose(
                        mix,
                        &MixTensor {
                            gguf_name: &gguf_name,
                            layer,
                            n_layers: number(&model["n_layers"]),
                            in_features,
                            out_features,
                            n_dims: if vector { 1 } else { 2 },
                            n_heads,
                            n_kv_heads,
                            n_experts: experts,
                            architecture: model["architecture"].as_str().unwrap(),
                            has_output: model["tied"] == false,
                        },
                    );
                    let what = format!("{name}, {}, {gguf_name}: {theirs}", mix.name());
                    assert_eq!(choice.encoding, ours(theirs), "{what}");
                    // A reason is given for what fell back, and for nothing else. Rules name blocks of 256 only.
                    let fell_back = match choice.encoding {
                        Encoding::Block(block) => block.weights() == 32 && block != mix.default_block(),
                        other => other == Encoding::Float(FloatType::F16),
                    };
                    let output = gguf_name == "output.weight" || gguf_name == "token_embd.weight";
                    // Of eight experts, keys and values get q8_0 by a rule.
                    let by_rule = experts == 8 && theirs == "q8_0";
                    if !output && !by_rule {
                        assert_eq!(!choice.reason.is_empty(), fell_back, "{what}");
                    }
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 138_224);
}

#[test]
fn qwen2_72b_falls_back_in_every_ffn_down() {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for layer in 0..80 {
        let choice = choose(
            Mix::Q4_K_M,
            &MixTensor {
                gguf_name: &format!("blk.{layer}.ffn_down.weight"),
                layer: Some(layer),
                n_layers: 80,
                in_features: 29568,
                out_features: 8192,
                n_dims: 2,
                n_heads: 64,
                n_kv_heads: 8,
                n_experts: 0,
                architecture: "qwen2",
                has_output: true,
            },
        );
        assert!(choice.reason.contains("29568"), "{}", choice.reason);
        *counts.entry(choice.encoding.to_string()).or_default() += 1;
    }
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("q5_0".to_owned(), 40), ("q8_0".to_owned(), 40)]);
}

#[test]
fn mixes_parse_by_their_names_in_either_case() {
    for mix in Mix::ALL {
        assert_eq!(mix.name().parse(), Ok(mix));
        assert_eq!(mix.name().to_uppercase().parse(), Ok(mix));
    }
    let error = "q9_k_xl".parse::<Mix>().unwrap_err();
    assert_eq!(error.to_string(), "no GGUF mix is called `q9_k_xl`");
    assert_eq!(
        error.hint().unwrap(),
        "mixes: q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k, iq4_nl, iq4_xs"
    );
}
