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
        let mixes = model["mixes"].as_object().unwrap();
        for mix in Mix::ALL {
            // What an importance matrix changes stands beside what there is without.
            let plain = &mixes[mix.name()];
            let weighed = mixes.get(&format!("{}+imatrix", mix.name())).unwrap_or(plain);
            for (has_importance, kinds) in [(false, plain), (true, weighed)] {
                let courses = kinds.as_object().unwrap().iter().flat_map(|(course, kinds)| {
                    kinds.as_str().unwrap().split(' ').map(move |kind| (course.as_str(), kind))
                });
                for (course, kind) in courses {
                    let layers = course.split(' ').flat_map(|run| {
                        let (theirs, count) = run.split_once('*').unwrap();
                        std::iter::repeat_n(theirs, count.parse().unwrap())
                    });
                    let kind = format!("{kind}.weight");
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
                            other => panic!("{other}"),
                        };
                        let choice = choose(
                            mix,
                            &MixTensor {
                                gguf_name: &gguf_name,
                                layer,
                                n_layers: number(&model["n_layers"]),
                                in_features,
                                out_features,
                                n_dims: 2,
                                n_heads,
                                n_kv_heads,
                                n_experts: experts,
                                architecture: model["architecture"].as_str().unwrap(),
                                has_output: model["tied"] == false,
                                has_importance,
                            },
                        );
                        let what = format!("{name}, {}, {has_importance}, {gguf_name}: {theirs}", mix.name());
                        assert_eq!(choice.encoding, ours(theirs), "{what}");
                        // A reason is given for what fell back, and for nothing else. Rules name blocks of 256, but for these.
                        let by_rule = matches!(
                            (mix, choice.encoding),
                            (Mix::Q4_0, Encoding::Block(BlockType::Q4_1))
                                | (Mix::Q5_0, Encoding::Block(BlockType::Q5_1))
                                | (Mix::MXFP4_MOE, Encoding::Block(BlockType::MXFP4))
                        ) || experts == 8 && theirs == "q8_0";
                        let fell_back = match choice.encoding {
                            Encoding::Block(block) => block.weights() == 32 && block != mix.default_block(),
                            other => other == Encoding::Float(FloatType::F16),
                        };
                        let output = gguf_name == "output.weight" || gguf_name == "token_embd.weight";
                        if !output && !by_rule {
                            assert_eq!(!choice.reason.is_empty(), fell_back, "{what}");
                        }
                        compared += 1;
                    }
                }
            }
        }
    }
    assert_eq!(compared, 347_520);
}

#[test]
fn vectors_stay_f32_in_every_mix() {
    for mix in Mix::ALL {
        for gguf_name in ["blk.3.attn_norm.weight", "blk.3.attn_q.bias", "blk.3.ffn_gate_inp_shexp.weight"] {
            let tensor = MixTensor {
                gguf_name,
                layer: Some(3),
                n_layers: 8,
                in_features: 256,
                out_features: 1,
                n_dims: 1,
                n_heads: 4,
                n_kv_heads: 2,
                n_experts: 4,
                architecture: "qwen2moe",
                has_output: true,
                has_importance: false,
            };
            assert_eq!(choose(mix, &tensor).encoding, Encoding::Float(FloatType::F32), "{gguf_name}");
        }
    }
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
                has_importance: false,
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
        "mixes: q4_0, q4_1, q5_0, q5_1, q8_0, q2_k_s, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k, iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq2_m, iq3_xxs, iq3_xs, iq3_s, iq3_m, iq4_nl, iq4_xs, tq1_0, tq2_0, mxfp4_moe"
    );
}
