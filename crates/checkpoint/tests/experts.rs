//! Mixtures of experts: every form in which files hold them, and what each fault is called.

mod common;

use bitmill_checkpoint::{Checkpoint, Error, Family, Role, RoleKind, check_gguf, gguf_metadata};
use bitmill_tensor::WeightData;
use common::{FFN, Gguf, HIDDEN, LAYERS, Stored, config, f32s, open_gguf, open_with, tensors};
use serde_json::{Value, json};

const EXPERTS: usize = 4;
const WIDTH: usize = 16;
const SHARED: usize = 24;

fn moe_config(change: impl FnOnce(&mut Value)) -> Value {
    let mut config = config("qwen2");
    config["model_type"] = json!("qwen2_moe");
    config["architectures"] = json!(["Qwen2MoeForCausalLM"]);
    config["num_experts"] = json!(EXPERTS);
    config["num_experts_per_tok"] = json!(2);
    config["moe_intermediate_size"] = json!(WIDTH);
    config["shared_expert_intermediate_size"] = json!(SHARED);
    change(&mut config);
    config
}

fn block(name: &str, width: usize, seed: usize) -> [Stored; 3] {
    [("gate", [width, HIDDEN]), ("up", [width, HIDDEN]), ("down", [HIDDEN, width])]
        .map(|(matrix, shape)| f32s(&format!("{name}.{matrix}_proj.weight"), &shape, seed + matrix.len()))
}

fn moe_tensors() -> Vec<Stored> {
    let mut all = tensors("qwen2");
    all.retain(|(name, ..)| !name.contains(".mlp."));
    for layer in 0..LAYERS {
        let mlp = format!("model.layers.{layer}.mlp");
        for expert in 0..EXPERTS {
            all.extend(block(&format!("{mlp}.experts.{expert}"), WIDTH, 100 * layer + 10 * expert));
        }
        all.extend(block(&format!("{mlp}.shared_expert"), SHARED, layer));
        all.push(f32s(&format!("{mlp}.shared_expert_gate.weight"), &[1, HIDDEN], layer));
        all.push(f32s(&format!("{mlp}.gate.weight"), &[EXPERTS, HIDDEN], layer));
    }
    all
}

/// The same with the experts of a layer in two tensors, as transformers 5 holds them.
fn fused_tensors(suffix: &str) -> Vec<Stored> {
    let mut fused = Vec::new();
    let all = moe_tensors();
    for layer in 0..LAYERS {
        let bytes = |kinds: &[&str]| -> Vec<u8> {
            (0..EXPERTS)
                .flat_map(|expert| kinds.iter().map(move |kind| format!("experts.{expert}.{kind}_proj")))
                .flat_map(|part| {
                    let name = format!("model.layers.{layer}.mlp.{part}.weight");
                    all.iter().find(|(known, ..)| *known == name).unwrap().3.clone()
                })
                .collect()
        };
        let name = |matrix: &str| format!("model.layers.{layer}.mlp.experts.{matrix}_proj{suffix}");
        fused.push((name("gate_up"), "F32", vec![EXPERTS, 2 * WIDTH, HIDDEN], bytes(&["gate", "up"])));
        fused.push((name("down"), "F32", vec![EXPERTS, HIDDEN, WIDTH], bytes(&["down"])));
    }
    fused.extend(all.into_iter().filter(|(name, ..)| !name.contains(".experts.")));
    fused
}

/// The same as GGUF, where each matrix of all experts of a layer is one tensor.
fn gguf() -> Gguf {
    let mut gguf = Gguf::empty();
    let checkpoint = open_with(&moe_config(|_| {}), &moe_tensors()).unwrap();
    for (key, value) in gguf_metadata(checkpoint.config(), "tiny", 0) {
        match (value.as_u64(), value.as_f64(), value.as_str()) {
            (Some(number), ..) => gguf.u32(&key, number as u32),
            (_, Some(number), _) => gguf.f32(&key, number as f32),
            (.., Some(text)) => gguf.text(&key, text),
            _ => panic!("{key}"),
        }
    }
    for (name, _, shape, bytes) in moe_tensors() {
        let role = Role::from_canonical_name(&name);
        let name = role.gguf_name().unwrap();
        let mut dims: Vec<u64> = shape.iter().rev().map(|&size| size as u64).collect();
        match (role.expert, role.kind) {
            (None, RoleKind::SharedRouter) => dims.truncate(1),
            (None, _) => {}
            (Some(0), kind) => {
                let layer = role.layer.unwrap();
                let all: Vec<u8> = (0..EXPERTS)
                    .flat_map(|expert| {
                        let name = Role::in_expert(layer, expert, kind).canonical_name().unwrap();
                        moe_tensors().into_iter().find(|(known, ..)| *known == name).unwrap().3
                    })
                    .collect();
                dims.push(EXPERTS as u64);
                gguf.tensor(&name, dims, 0, &all);
                continue;
            }
            (Some(_), _) => continue,
        }
        gguf.tensor(&name, dims, 0, &bytes);
    }
    gguf
}

fn assert_same_tensors(found: &Checkpoint) {
    let expected = moe_tensors();
    assert_eq!(found.tensors().len(), expected.len());
    for (name, _, shape, bytes) in expected {
        let tensor = found.tensor(&name).unwrap();
        assert_eq!(tensor.info.shape, shape, "{name}");
        assert_eq!(tensor.info.stored_bytes, bytes.len() as u64, "{name}");
        assert_eq!(tensor.info.role, Role::from_canonical_name(&name));
        assert!(
            matches!(tensor.view().data(), WeightData::Float { bytes: found, .. } if found == bytes),
            "{name}"
        );
    }
}

#[test]
fn every_form_gives_one_tensor_an_expert() {
    let split = open_with(&moe_config(|_| {}), &moe_tensors()).unwrap();
    assert_same_tensors(&split);
    for suffix in ["", ".weight"] {
        assert_same_tensors(&open_with(&moe_config(|_| {}), &fused_tensors(suffix)).unwrap());
    }
    let merged = open_gguf(&gguf().bytes()).unwrap();
    assert_same_tensors(&merged);
    let mut expected = split.config().clone();
    (expected.bos, expected.eos) = (None, vec![]);
    assert_eq!(*merged.config(), expected);
    let experts = expected.experts.unwrap();
    assert_eq!(expected.family, Family::Qwen2Moe);
    assert_eq!((experts.count, experts.used, experts.width), (EXPERTS, 2, WIDTH));
    assert_eq!((experts.shared_width, experts.normalised), (Some(SHARED), false));
}

#[test]
fn layers_without_experts_follow_from_the_step_and_the_list() {
    let all = open_with(&moe_config(|_| {}), &moe_tensors()).unwrap();
    assert!(all.config().experts.as_ref().unwrap().dense_layers.is_empty());
    let mixed = moe_config(|config| config["decoder_sparse_step"] = json!(2));
    let mut stored = moe_tensors();
    stored.retain(|(name, ..)| !name.starts_with("model.layers.0.mlp."));
    stored.extend(block("model.layers.0.mlp", FFN, 3));
    let checkpoint = open_with(&mixed, &stored).unwrap();
    assert_eq!(checkpoint.config().experts.as_ref().unwrap().dense_layers, [0]);
    assert!(checkpoint.config().experts_in(0).is_none() && checkpoint.config().experts_in(1).is_some());
    assert_eq!(
        checkpoint.tensor("model.layers.0.mlp.up_proj.weight").unwrap().info.role,
        Role::in_layer(0, RoleKind::FfnUp)
    );
    let listed = moe_config(|config| config["mlp_only_layers"] = json!([0]));
    assert_eq!(open_with(&listed, &stored).unwrap().config().experts, checkpoint.config().experts);
    // The other way round, its tensors have no place.
    let error = open_with(&moe_config(|_| {}), &stored).unwrap_err();
    assert!(
        matches!(&error, Error::UnexpectedTensor { tensor, .. } if tensor == "model.layers.0.mlp.gate_proj.weight"),
        "{error}"
    );
}

#[test]
fn faults_in_configs_and_tensors_are_named() {
    let fault = |change: &dyn Fn(&mut Value), edit: &dyn Fn(&mut Vec<Stored>)| {
        let mut stored = moe_tensors();
        edit(&mut stored);
        open_with(&moe_config(|config| change(config)), &stored).unwrap_err().to_string()
    };
    let rename = |from: &'static str, to: &'static str| {
        move |stored: &mut Vec<Stored>| {
            stored.iter_mut().filter(|(name, ..)| name == from).for_each(|(name, ..)| *name = to.to_owned());
        }
    };
    let said = fault(&|config| config["num_experts_per_tok"] = json!(5), &|_| {});
    assert!(said.contains("5 experts a token in a model of 4"), "{said}");
    for key in
        ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"]
    {
        let said = fault(&|config| drop(config.as_object_mut().unwrap().remove(key)), &|_| {});
        assert!(said.contains(key) && said.contains("missing"), "{said}");
        let said = fault(&|config| config[key] = json!(0), &|_| {});
        assert!(said.contains(key), "{said}");
    }
    let said = fault(&|config| config["mlp_only_layers"] = json!([0, "x"]), &|_| {});
    assert!(said.contains("mlp_only_layers") && said.contains("\"x\""), "{said}");
    let third = "model.layers.1.mlp.experts.3.up_proj.weight";
    let said = fault(&|_| {}, &rename(third, "model.layers.1.mlp.experts.4.up_proj.weight"));
    assert!(said.contains("`model.layers.1.mlp.experts.4.up_proj.weight` has no place"), "{said}");
    let said = fault(&|_| {}, &|stored| stored.retain(|(name, ..)| name != third));
    assert!(said.contains(third), "{said}");
    let said = fault(&|_| {}, &rename("model.layers.1.mlp.gate.weight", "model.layers.1.mlp.router.weight"));
    assert!(said.contains("router"), "{said}");
    let said = fault(&|config| config["moe_intermediate_size"] = json!(8), &|_| {});
    assert!(said.contains("experts.0.gate_proj") && said.contains("[8, 32]"), "{said}");
    // Without the bias key other readers add the biases; with it false they skip them.
    let said = fault(&|config| config["qkv_bias"] = json!(false), &|_| {});
    assert!(said.contains("qkv_bias"), "{said}");
    let fused = |edit: &dyn Fn(&mut Stored)| {
        let mut stored = fused_tensors("");
        edit(&mut stored[0]);
        open_with(&moe_config(|_| {}), &stored).unwrap_err()
    };
    let error = fused(&|tensor| tensor.2 = vec![EXPERTS, HIDDEN, 2 * WIDTH + 1]);
    assert!(matches!(error, Error::TensorBytes { .. }), "{error}");
    let error = fused(&|tensor| tensor.2 = vec![2 * EXPERTS, WIDTH, HIDDEN]);
    assert!(
        matches!(&error, Error::TensorShape { tensor, .. } if tensor.ends_with("gate_up_proj")),
        "{error}"
    );
    // A dense model has no such tensors.
    let mut stored = tensors("qwen2");
    stored.push(fused_tensors("")[0].clone());
    assert!(matches!(open_with(&config("qwen2"), &stored), Err(Error::UnexpectedTensor { .. })));
}

#[test]
fn faults_in_gguf_files_are_named() {
    let fault = |edit: &dyn Fn(&mut Gguf)| {
        let mut gguf = gguf();
        edit(&mut gguf);
        open_gguf(&gguf.bytes()).unwrap_err().to_string()
    };
    let merged = "blk.0.ffn_up_exps.weight";
    let dims = |dims: [u64; 3]| {
        move |gguf: &mut Gguf| {
            gguf.tensors
                .iter_mut()
                .filter(|(name, ..)| name == merged)
                .for_each(|tensor| tensor.1 = dims.into());
        }
    };
    let (hidden, width, count) = (HIDDEN as u64, WIDTH as u64, EXPERTS as u64);
    for wrong in
        [[hidden, width, count - 1], [width, hidden, count], [hidden, width * count, 1], [hidden, width, 0]]
    {
        let said = fault(&dims(wrong));
        assert!(said.contains(merged), "{wrong:?}: {said}");
    }
    let said = fault(&|gguf| gguf.keys.retain(|(key, ..)| !key.ends_with("expert_used_count")));
    assert!(said.contains("qwen2moe.expert_used_count"), "{said}");
    let said = fault(&|gguf| gguf.set("qwen2moe.expert_used_count", 4, 9u32.to_le_bytes().into()));
    assert!(said.contains("9 experts a token in a model of 4"), "{said}");
    let said = fault(&|gguf| gguf.set("qwen2moe.expert_count", 4, 5u32.to_le_bytes().into()));
    assert!(said.contains("has no place"), "{said}");
    // A dense file with merged tensors, even empty ones.
    for shape in [vec![hidden, width, count], vec![hidden, 0, 0]] {
        let bytes = vec![0; 4 * shape.iter().product::<u64>() as usize];
        let mut dense = Gguf::tiny("qwen2");
        dense.tensor(merged, shape, 0, &bytes);
        assert!(matches!(open_gguf(&dense.bytes()), Err(Error::UnexpectedTensor { .. })));
    }
    let mut dense = Gguf::tiny("qwen2");
    dense.u32("qwen2.expert_count", 4);
    assert!(matches!(open_gguf(&dense.bytes()), Err(Error::Unsupported { .. })));
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_not_written() {
    let open = |change: &dyn Fn(&mut Value)| {
        open_with(&moe_config(|config| change(config)), &moe_tensors()).unwrap()
    };
    assert!(check_gguf("tiny", open(&|_| {}).config()).is_ok());
    let mut config = open(&|_| {}).config().clone();
    let refused =
        |config: &bitmill_checkpoint::ModelConfig| check_gguf("tiny", config).unwrap_err().to_string();
    config.tied = true;
    assert!(refused(&config).contains("tied head"));
    let normalised = open(&|config| config["norm_topk_prob"] = json!(true));
    assert!(refused(normalised.config()).contains("norm_topk_prob"));
    let mut config = open(&|_| {}).config().clone();
    config.experts.as_mut().unwrap().dense_layers = vec![1];
    assert!(refused(&config).contains("no experts"));
}
