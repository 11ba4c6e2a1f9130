//! Outputs with scales for a runtime's cache of keys and values in 8 bits. That the scales are of what the output caches is tested beside
//! `calibrated/cache.rs`, that they are llm-compressor's in `bitmill-calib`.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use bitmill_checkpoint::{Checkpoint, Overwrite, RoleKind};
use bitmill_pipeline::{Error, Format, Plan, PlanOptions, Recipe, compress, preset};
use bitmill_testkit::{Float, Tiny, Variant};
use serde_json::Value;

use common::{StopAfter, calibrated, calibration_text, compressed, contents, plan};

const HEAD: &str = "name = \"cached\"\nformat = \"compressed-tensors\"\n[kv_cache]\ntype = \"fp8\"";
const GPTQ: &str = "[[step]]\nkind = \"gptq\"\nbits = 4\ngranularity = { group = { size = 32 } }\n";

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_run_that_was_stopped_anywhere_ends_in_the_same_scales() {
    let source = Tiny::new(Variant::LlamaWide).float(Float::BF16).write();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = calibration_text(place.path());
    for more in ["", "memory = \"400KB\""] {
        let recipe = calibrated(HEAD, &text, more, GPTQ);
        let whole = place.path().join(format!("whole{}", more.len()));
        std::fs::create_dir(&whole).unwrap();
        let record = compressed(&checkpoint, &recipe, &whole.join("m")).unwrap();
        let expected = contents(&whole);
        let tensors = record.document["tensors"].as_array().unwrap();
        let with_scales: Vec<&str> = tensors
            .iter()
            .filter(|tensor| tensor["cache_scale"].is_f64())
            .map(|tensor| {
                tensor["name"].as_str().unwrap().rsplit_once('.').unwrap().0.rsplit_once('.').unwrap().1
            })
            .collect();
        assert_eq!(with_scales, ["k_proj", "v_proj", "k_proj", "v_proj"]);
        let config = json(&whole.join("m/config.json"));
        assert_eq!(config["quantization_config"]["kv_cache_scheme"]["num_bits"], 8);
        let plan = plan(&checkpoint, &recipe).unwrap();
        for looks in [0, 1, 2, 3, 5] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join("m");
            let stop = StopAfter(AtomicUsize::new(looks));
            let error = compress(&checkpoint, &plan, &target, Overwrite::Refuse, &stop).unwrap_err();
            assert!(matches!(error, Error::Stopped { .. }), "{error}");
            compressed(&checkpoint, &recipe, &target).unwrap();
            assert!(contents(out.path()) == expected, "{more} stopped at look {looks}");
        }
    }
}

#[test]
fn scales_are_read_and_not_carried_over_in_silence() {
    let source = Tiny::new(Variant::Qwen2).float(Float::BF16).write();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = calibration_text(place.path());
    let first = place.path().join("first");
    compressed(&checkpoint, &calibrated(HEAD, &text, "", GPTQ), &first).unwrap();
    let first = Checkpoint::open(&first).unwrap();
    let of: Vec<(usize, RoleKind)> =
        first.cache_scales().iter().map(|scale| (scale.layer, scale.of)).collect();
    let keys_and_values = |layer| [(layer, RoleKind::AttnK), (layer, RoleKind::AttnV)];
    assert_eq!(of, [keys_and_values(0), keys_and_values(1)].concat());
    for name in ["bf16", "w8a16"] {
        let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
        let plan = Plan::new(&first, &preset(name).unwrap(), &options).unwrap();
        assert!(plan.to_text().contains("source's 4 scales of an 8-bit cache"), "{}", plan.to_text());
        let target = place.path().join(name);
        compress(&first, &plan, &target, Overwrite::Refuse, &bitmill_pipeline::Silent).unwrap();
        assert!(Checkpoint::open(&target).unwrap().cache_scales().is_empty(), "{name}");
    }
}

#[test]
fn what_cannot_hold_scales_or_find_them_is_refused_with_a_way_out() {
    let parse = |text: &str| Recipe::parse(text, Path::new("mine.toml"));
    let rtn = GPTQ.replace("gptq", "rtn");
    for (text, said) in [
        (format!("{HEAD}\n{rtn}"), "needs a run over calibration tokens: a step of kind `gptq`"),
        (format!("{HEAD}\n{GPTQ}").replace("compressed-tensors", "gptq"), "cannot be written as gptq"),
        (format!("{HEAD}\n{GPTQ}").replace("compressed-tensors", "awq"), "cannot be written as awq"),
        (format!("{HEAD}\n{GPTQ}").replace("fp8", "int8"), "int8"),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = parse(&format!("{HEAD}\n{GPTQ}")).unwrap().with_format(Format::Gptq).unwrap_err();
    assert!(matches!(error, Error::NoPlace { .. }), "{error}");
    assert!(error.to_string().contains("[kv_cache]"), "{error}");
}

#[test]
fn scales_of_another_shape_or_layer_are_named() {
    let source = Tiny::new(Variant::Qwen2).float(Float::BF16).write();
    let path = source.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let with = |name: &str, elements: usize| {
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
        let end = whole.len() - 8 - length;
        header[name] = serde_json::json!({
            "dtype": "F32", "shape": [elements], "data_offsets": [end, end + 4 * elements]
        });
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&whole[8 + length..]);
        (0..elements).for_each(|_| bytes.extend(0.25f32.to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
        Checkpoint::open(source.path())
    };
    let opened = with("model.layers.1.self_attn.v_scale", 1).unwrap();
    assert_eq!(opened.cache_scales()[0].values, [0.25]);
    assert_eq!(with("model.layers.1.self_attn.k_scale", 2).unwrap().cache_scales()[0].values, [0.25; 2]);
    for (name, elements) in [("model.layers.1.self_attn.k_scale", 3), ("model.layers.2.self_attn.k_scale", 1)]
    {
        let error = with(name, elements).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
