//! Mixtures of experts in every format: each expert a tensor of its own, in GGUF part of a merged one.

mod common;

use bitmill_checkpoint::{Checkpoint, Role, RoleKind};
use bitmill_pipeline::{Error, active_weights, n_weights, preset};
use bitmill_tensor::{Encoding, FloatType};
use bitmill_testkit::{Variant, max_abs, max_abs_diff, tiny};

use common::{logits, plan, recipe, run, values};

const MIXTURES: [Variant; 2] = [Variant::Qwen2Moe, Variant::Qwen3Moe];

#[test]
fn plain_floats_come_back_from_every_format_unchanged() {
    for variant in MIXTURES {
        let source = tiny(variant);
        let dense = Checkpoint::open(source.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        for (format, target) in [("gguf", "m.gguf"), ("hugging-face", "folder")] {
            let target = out.path().join(target);
            let text = format!(
                "format = \"{format}\"\n[[step]]\nkind = \"float\"\ntargets = [\"*\"]\ntype = \"f32\""
            );
            run(source.path(), &recipe(&text), &target).unwrap();
            let written = Checkpoint::open(&target).unwrap();
            assert_eq!(written.config().experts, dense.config().experts);
            assert_eq!(written.tensors().len(), dense.tensors().len());
            for info in dense.tensors() {
                let found = written.tensor(&info.name).unwrap().info;
                assert_eq!((&found.shape, found.role), (&info.shape, info.role), "{}", info.name);
                assert!(values(&written, &info.name) == values(&dense, &info.name), "{}", info.name);
            }
            assert_eq!(logits(&target), logits(source.path()), "{} as {format}", variant.name());
        }
    }
}

#[test]
fn experts_are_rounded_one_by_one_and_routers_are_not() {
    for variant in MIXTURES {
        let source = tiny(variant);
        let dense = Checkpoint::open(source.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        for (name, target) in [("q8_0", "m.gguf"), ("w4a16_g32", "folder")] {
            let target = out.path().join(target);
            run(source.path(), &preset(name).unwrap(), &target).unwrap();
            let written = Checkpoint::open(&target).unwrap();
            for info in written.tensors() {
                let is_float = info.encoding == Encoding::Float(FloatType::F32);
                let moved = values(&written, &info.name) != values(&dense, &info.name);
                match info.role.kind {
                    RoleKind::Router | RoleKind::SharedRouter => {
                        assert!(is_float && !moved, "{}", info.name);
                    }
                    _ if info.role.expert.is_some() => assert!(!is_float && moved, "{}", info.name),
                    _ => {}
                }
            }
        }
        let config = Checkpoint::open(&out.path().join("folder")).unwrap();
        let ignored = config.config_json().unwrap()["quantization_config"]["ignore"].clone();
        let ignored: Vec<String> = serde_json::from_value(ignored).unwrap();
        assert!(ignored.contains(&"model.layers.1.mlp.gate".to_owned()), "{ignored:?}");
        let shared = ignored.contains(&"model.layers.0.mlp.shared_expert_gate".to_owned());
        assert_eq!(shared, variant == Variant::Qwen2Moe);
    }
}

#[test]
fn a_gguf_file_holds_the_experts_of_a_layer_in_their_order() {
    let source = tiny(Variant::Qwen3Moe);
    let dense = Checkpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.gguf");
    let text = "format = \"gguf\"\n[[step]]\nkind = \"float\"\ntargets = [\"*\"]\ntype = \"f32\"";
    run(source.path(), &recipe(text), &target).unwrap();
    let file = std::fs::read(&target).unwrap();
    let all: Vec<u8> = (0..8)
        .flat_map(|expert| Role::in_expert(1, expert, RoleKind::FfnDown).canonical_name())
        .flat_map(|name| values(&dense, &name))
        .flat_map(f32::to_le_bytes)
        .collect();
    assert!(file.windows(all.len()).any(|bytes| bytes == all), "one expert after another");
    assert!(file.windows(24).any(|bytes| bytes == b"blk.1.ffn_down_exps.weig"));
}

#[test]
fn one_step_may_be_for_some_experts_in_folders_but_not_in_gguf() {
    let source = tiny(Variant::Qwen3Moe);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let text = "format = \"compressed-tensors\"\n\
        [[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\n\
        [[step]]\nkind = \"rtn\"\ntargets = [\"*.mlp.experts.3.*\"]\nbits = 8\ngranularity = { group = { size = 32 } }\n";
    let planned = plan(&checkpoint, &recipe(text)).unwrap();
    let to = |name: &str| planned.tensors.iter().find(|tensor| tensor.name == name).unwrap().to.to_string();
    assert_eq!(to("model.layers.0.mlp.experts.3.up_proj.weight"), "8-bit g32");
    assert_eq!(to("model.layers.0.mlp.experts.2.up_proj.weight"), "4-bit g32");
    assert_eq!(to("model.layers.0.mlp.gate.weight"), "f32");
    // Layers and experts are folded into one line for each type.
    let lines = planned.to_text();
    let of_experts: Vec<&str> =
        lines.lines().filter(|line| line.starts_with("model.layers.*.mlp.experts.*.up_proj")).collect();
    assert_eq!(of_experts.len(), 2, "{lines}");
    assert!(of_experts[0].contains("14 of 64 x 64") && of_experts[1].contains("2 of 64 x 64"), "{lines}");
    let out = tempfile::tempdir().unwrap();
    run(source.path(), &recipe(text), &out.path().join("mixed")).unwrap();
    let dense = logits(source.path());
    assert!(max_abs_diff(&logits(&out.path().join("mixed")), &dense) / max_abs(&dense) < 0.5);

    let split = text.replace("experts.3.*", "experts.3.up_proj.weight");
    let error = plan(&checkpoint, &recipe(&split)).unwrap_err();
    assert!(error.to_string().contains("layer 0: expert 3's gate/up are quantized differently"), "{error}");

    let text = "format = \"gguf\"\n[[step]]\nkind = \"mix\"\nmix = \"q8_0\"\n\
        [[step]]\nkind = \"block\"\ntargets = [\"*.experts.5.down_proj.weight\"]\ntype = \"q4_0\"\n";
    let error = plan(&checkpoint, &recipe(text)).unwrap_err();
    assert!(matches!(error, Error::ExpertsDiffer { expert: 5, .. }), "{error}");
    assert!(error.hint().unwrap().contains("one step"));
}

#[test]
fn what_gguf_cannot_say_is_refused_and_folders_are_written() {
    let source = tiny(Variant::Qwen2MoeMixed);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let error = plan(&checkpoint, &preset("q8_0").unwrap()).unwrap_err();
    assert!(error.to_string().contains("layers that have no experts"), "{error}");
    let out = tempfile::tempdir().unwrap();
    run(source.path(), &preset("w8a16_g32").unwrap(), &out.path().join("folder")).unwrap();
    let dense = logits(source.path());
    assert!(max_abs_diff(&logits(&out.path().join("folder")), &dense) / max_abs(&dense) < 0.1);
}

#[test]
fn experts_that_a_token_skips_are_not_active() {
    let source = tiny(Variant::Qwen3Moe);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    // 5 of 8 experts of 3 matrices of 64 x 64 in 2 layers.
    assert_eq!(n_weights(&checkpoint) - active_weights(&checkpoint), 2 * 5 * 3 * 64 * 64);
    let plain = tiny(Variant::Qwen3);
    let plain = Checkpoint::open(plain.path()).unwrap();
    assert_eq!(active_weights(&plain), n_weights(&plain));
}

#[test]
fn threads_change_no_byte_of_a_mixture() {
    let source = tiny(Variant::Qwen2Moe);
    let out = tempfile::tempdir().unwrap();
    let made = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let target = out.path().join(format!("{threads}.gguf"));
        pool.install(|| {
            run(source.path(), &preset("q4_0").unwrap(), &target).unwrap();
            (std::fs::read(&target).unwrap(), logits(&target))
        })
    });
    assert!(made[0] == made[1]);
}
