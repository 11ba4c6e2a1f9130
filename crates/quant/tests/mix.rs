//! The choices of each mix against llama-quantize's own, on models of many shapes.

use bitmill_quant::{Mix, MixTensor, choose};
use bitmill_tensor::{BlockType, Encoding, FloatType};
use serde_json::Value;

/// What we choose where llama-quantize says `theirs`, and whether a reason must be given for it.
fn ours(theirs: &str) -> Encoding {
    match theirs {
        "f32" => Encoding::Float(FloatType::F32),
        "f16" => Encoding::Float(FloatType::F16),
        // A matrix of one row is a vector to ggml and stays as it came; we widen it like other vectors.
        "bf16" => Encoding::Float(FloatType::F32),
        // Not encoded here: the next wider type.
        "q5_k" => Encoding::Block(BlockType::Q6_K),
        "q5_1" => Encoding::Block(BlockType::Q8_0),
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
        for (mix, kinds) in model["mixes"].as_object().unwrap() {
            let mix: Mix = mix.parse().unwrap();
            for (kind, runs) in kinds.as_object().unwrap() {
                let layers = runs
                    .as_array()
                    .unwrap()
                    .iter()
                    .flat_map(|run| std::iter::repeat_n(run[0].as_str().unwrap(), number(&run[1])));
                for (index, theirs) in layers.enumerate() {
                    let gguf_name = kind.replace("{}", &index.to_string());
                    let (out_features, in_features) = match kind.trim_start_matches("blk.{}.") {
                        "token_embd.weight" | "output.weight" => (vocab, hidden),
                        "attn_q.weight" | "attn_output.weight" => (hidden, hidden),
                        "attn_k.weight" | "attn_v.weight" => (kv, hidden),
                        "ffn_gate.weight" | "ffn_up.weight" => (ffn, hidden),
                        "ffn_down.weight" => (hidden, ffn),
                        "attn_k.bias" | "attn_v.bias" => (1, kv),
                        _ => (1, hidden),
                    };
                    let vector = kind.ends_with("bias") || kind.contains("norm");
                    let choice = choose(
                        mix,
                        &MixTensor {
                            gguf_name: &gguf_name,
                            layer: kind.starts_with("blk").then_some(index),
                            n_layers: number(&model["n_layers"]),
                            in_features,
                            out_features,
                            n_dims: if vector { 1 } else { 2 },
                            n_heads,
                            n_kv_heads,
                            architecture: model["architecture"].as_str().unwrap(),
                            has_output: model["tied"] == false,
                        },
                    );
                    let what = format!("{name}, {}, {gguf_name}: {theirs}", mix.name());
                    assert_eq!(choice.encoding, ours(theirs), "{what}");
                    if matches!(theirs, "q5_k" | "q5_1" | "f16") {
                        assert!(!choice.reason.is_empty(), "{what}");
                    }
                    if matches!(theirs, "f32" | "bf16" | "q4_k" | "q6_k" | "q4_0") {
                        assert_eq!(choice.reason, "", "{what}");
                    }
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 22_956);
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
    assert_eq!(error.hint().unwrap(), "mixes: q4_0, q8_0, q4_k_m");
}
