//! 8-bit integers, 8-bit and 4-bit floats in compressed-tensors folders.

mod common;

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{Format, conversion, preset};
use bitmill_tensor::{Element, Encoding, Extent, WeightData};
use bitmill_testkit::{Variant, max_abs, max_abs_diff, tiny};
use serde_json::{Value, json};

use common::{logits, plan, recipe, run, values};

fn declared(folder: &std::path::Path) -> Value {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["quantization_config"].clone()
}

#[test]
fn every_kind_of_number_is_written_declared_and_read() {
    let (source, out) = (tiny(Variant::Qwen2), tempfile::tempdir().unwrap());
    let dense = logits(source.path());
    for (name, format, strategy, inputs, most) in [
        ("w8a8_int8", "int-quantized", "channel", Some("token"), 0.05),
        ("w8a8_fp8", "float-quantized", "channel", Some("token"), 0.2),
        ("w8a8_fp8_block", "float-quantized", "block", Some("group"), 0.2),
        ("w8a8_fp8_static", "float-quantized", "channel", Some("tensor"), 0.2),
        ("w8a16_fp8", "naive-quantized", "channel", None, 0.2),
        ("nvfp4", "nvfp4-pack-quantized", "tensor_group", None, 0.8),
        ("mxfp4", "mxfp4-pack-quantized", "group", None, 0.8),
        ("mxfp6", "mxfp6-pack-quantized", "group", None, 0.2),
        ("mxfp8", "mxfp8-quantized", "group", None, 0.2),
    ] {
        let target = out.path().join(name);
        run(source.path(), &preset(name).unwrap(), &target).unwrap();
        let config = declared(&target);
        let group = &config["config_groups"]["group_0"];
        assert_eq!((&config["format"], &group["format"]), (&json!(format), &json!(format)));
        assert_eq!(group["weights"]["strategy"], strategy, "{name}");
        assert_eq!(group["input_activations"]["strategy"].as_str(), inputs, "{name}");
        assert_eq!(config["ignore"], json!(["lm_head"]));
        let moved = max_abs_diff(&logits(&target), &dense) / max_abs(&dense);
        assert!(moved > 0.0 && moved < most, "{name}: logits moved by {moved}");
        // Unpacked, they are the same numbers but for the rounding to the model's own floats.
        let floats = out.path().join(format!("{name}-floats"));
        run(&target, &conversion(Format::HuggingFace, Some(bitmill_tensor::FloatType::F32)), &floats)
            .unwrap();
        let (packed, floats) = (Checkpoint::open(&target).unwrap(), Checkpoint::open(&floats).unwrap());
        for info in packed.tensors() {
            assert_eq!(values(&floats, &info.name), values(&packed, &info.name), "{name}: {}", info.name);
        }
    }
}

#[test]
fn fused_matrices_share_what_their_scales_are_divided_by() {
    let (source, out) = (tiny(Variant::Llama), tempfile::tempdir().unwrap());
    let target = out.path().join("m");
    run(source.path(), &preset("nvfp4").unwrap(), &target).unwrap();
    let checkpoint = Checkpoint::open(&target).unwrap();
    let global = |module: &str| {
        let tensor = checkpoint.tensor(&format!("model.layers.1.{module}.weight")).unwrap();
        match tensor.view().data() {
            WeightData::Scaled { global, .. } => global,
            _ => panic!("{:?}", tensor.info.encoding),
        }
    };
    let dense = Checkpoint::open(source.path()).unwrap();
    let absmax = |modules: &[&str]| {
        let values = modules.iter().map(|module| values(&dense, &format!("model.layers.1.{module}.weight")));
        values.map(|values| max_abs(&values)).fold(0f32, f32::max)
    };
    for modules in [
        &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..],
        &["mlp.gate_proj", "mlp.up_proj"],
        &["mlp.down_proj"],
        &["self_attn.o_proj"],
    ] {
        for module in modules {
            assert_eq!(global(module), 448.0 * 6.0 / absmax(modules), "{module}");
        }
    }
}

#[test]
fn several_forms_make_a_mixture_with_a_form_for_each_group() {
    let (source, out) = (tiny(Variant::Qwen2), tempfile::tempdir().unwrap());
    let mixed = recipe(
        "format = \"compressed-tensors\"\n[[step]]\nkind = \"scaled\"\ntype = \"fp8\"\nactivations = \"dynamic\"\n\
         [[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\ntargets = [\"*.mlp.*.weight\"]\n",
    );
    let target = out.path().join("m");
    run(source.path(), &mixed, &target).unwrap();
    let config = declared(&target);
    assert_eq!(config["format"], "mixed-precision");
    let mut formats: Vec<&Value> =
        config["config_groups"].as_object().unwrap().values().map(|g| &g["format"]).collect();
    formats.sort_by_key(|format| format.to_string());
    assert_eq!(formats, [&json!("float-quantized"), &json!("pack-quantized")]);
    let checkpoint = Checkpoint::open(&target).unwrap();
    let of =
        |module: &str| checkpoint.tensor(&format!("model.layers.0.{module}.weight")).unwrap().info.encoding;
    assert_eq!(of("mlp.up_proj").to_string(), "4-bit g32");
    assert!(matches!(of("self_attn.q_proj"), Encoding::Scaled(layout) if layout.extent == Extent::Row));
    assert!(max_abs(&logits(&target)).is_finite());
}

#[test]
fn blocks_are_rectangles_of_the_whole_matrix() {
    // 160 rows of 64: a block of 128 rows and one of 32.
    let (source, out) = (tiny(Variant::Qwen2), tempfile::tempdir().unwrap());
    let target = out.path().join("m");
    run(source.path(), &preset("w8a16_fp8_block").unwrap(), &target).unwrap();
    let (dense, written) = (Checkpoint::open(source.path()).unwrap(), Checkpoint::open(&target).unwrap());
    let name = "model.layers.0.mlp.up_proj.weight";
    let tensor = written.tensor(name).unwrap();
    let WeightData::Scaled { layout, scales, .. } = tensor.view().data() else { panic!("numbers") };
    assert_eq!((layout.element, tensor.info.shape.as_slice()), (Element::Fp8, &[160, 64][..]));
    let weight = values(&dense, name);
    for (block, rows) in [(0, 0..128), (1, 128..160)] {
        let absmax = max_abs(&weight[rows.start * 64..rows.end * 64]);
        let expected = bitmill_tensor::FloatType::BF16.round(absmax / 448.0);
        assert_eq!(layout.scale.read(scales, block, 1.0), expected);
    }
}

#[test]
fn rows_that_scales_do_not_tile_are_refused() {
    let source = tiny(Variant::Qwen2Moe);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    // Experts are 64 wide, the shared one 96: both are whole groups of 32.
    assert!(plan(&checkpoint, &preset("mxfp4").unwrap()).is_ok());
    for (text, said) in [
        ("activations = \"dynamic\"\ntype = \"nvfp4\"", "weights alone"),
        ("activations = \"dynamic\"\ntype = \"mxfp8\"", "weights alone"),
        ("activations = \"static\"\ntype = \"int8\"", "`type = \"fp8\"`"),
        ("type = \"fp6\"", "fp6"),
    ] {
        let text = format!("format = \"compressed-tensors\"\n[[step]]\nkind = \"scaled\"\n{text}\n");
        let error = bitmill_pipeline::Recipe::parse(&text, std::path::Path::new("m.toml")).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let gguf = "format = \"gguf\"\n[[step]]\nkind = \"scaled\"\ntype = \"int8\"\n";
    assert!(bitmill_pipeline::Recipe::parse(gguf, std::path::Path::new("m.toml")).is_err());
}
