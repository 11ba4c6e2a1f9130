//! How far keys and values reach, beside what llm-compressor's observers see: `tools/golden/kv_cache.py`.

use std::convert::Infallible;

use bitmill_calib::{Cached, Streams, pass_layer};
use bitmill_checkpoint::{Checkpoint, RoleKind, cache_scale_spec, fp8_cache_scheme};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::Model;
use bitmill_tensor::FloatType;
use bitmill_testkit::{Variant, tiny};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read("tests/golden/kv_cache.json").unwrap()).unwrap()
}

#[test]
fn scales_are_stored_and_declared_as_llm_compressor_does() {
    let golden = golden();
    let saved = golden["saved"].as_object().unwrap();
    for layer in 0..2 {
        for (part, of) in [("k", RoleKind::AttnK), ("v", RoleKind::AttnV)] {
            let name = format!("model.layers.{layer}.self_attn.{part}_proj.weight");
            let spec = cache_scale_spec(&name, of, FloatType::BF16).unwrap();
            let theirs = &saved[&spec.name];
            assert_eq!(theirs["dtype"], "torch.bfloat16");
            assert_eq!(theirs["shape"], serde_json::json!(spec.shape));
        }
    }
    assert_eq!(saved.len(), 4);
    let declared = &golden["quantization_config"];
    let theirs = &declared["kv_cache_scheme"];
    for (key, value) in fp8_cache_scheme().as_object().unwrap() {
        assert_eq!(Some(value), theirs.get(key), "{key}");
    }
    // What it declares of a model whose weights are plain is read.
    let folder = tiny(Variant::Llama);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = declared.clone();
    std::fs::write(&path, config.to_string()).unwrap();
    assert!(!Checkpoint::open(folder.path()).unwrap().is_quantized());
}

#[test]
fn keys_and_values_reach_as_far_as_llm_compressor_sees() {
    let golden = golden();
    let texts: Vec<Vec<u32>> = serde_json::from_value(golden["tokens"].clone()).unwrap();
    let rows = texts.iter().map(Vec::len).sum();
    let other = [7; 9];
    for variant in [Variant::Llama, Variant::Qwen2, Variant::Qwen3] {
        let folder = tiny(variant);
        let mut model = Model::load(&Checkpoint::open(folder.path()).unwrap()).unwrap();
        let compute = Compute::new(Isa::best(), Path::Exact);
        // What is not there to calibrate on comes last, and is not looked at.
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).chain([&other[..]]).collect();
        let compressed = model.enter(&compute, &texts).unwrap();
        let mut streams = Streams { compressed, dense: None, calibration_rows: rows, cached: None };
        for layer in 0..2 {
            streams.cached = Some(Cached::default());
            let look = &mut |_: &mut Model, _: &[_], _: bitmill_calib::Inputs<'_>| Ok(Vec::new());
            pass_layer::<Infallible>(&mut model, &compute, &mut streams, look).unwrap();
            let Cached { keys, values } = streams.cached.unwrap();
            for (part, found) in [("k", keys), ("v", values)] {
                let name = format!("model.layers.{layer}.self_attn.{part}_scale");
                let expected = golden["models"][variant.name()][&name].as_f64().unwrap();
                // Both compute in f32, in other orders.
                let close = (f64::from(found) / expected - 1.0).abs() < 1e-5;
                assert!(close, "{variant:?}, {name}: {found} where {expected} is expected");
            }
        }
    }
}
