//! Plain floats in every format, and codes that are taken over as they are.

mod common;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{Error, PlanOptions, Silent, Treatment, compress, preset};
use bitmill_tensor::{Encoding, FloatType, WeightData};
use bitmill_testkit::{Tiny, Variant, max_abs, max_abs_diff, millet, tiny};

use common::{logits, names, plan, recipe, run, values};

#[test]
fn floats_are_rounded_to_nearest_and_the_config_says_so() {
    let source = tiny(Variant::Qwen2);
    let dense = Checkpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    for (float, long) in
        [(FloatType::BF16, "bfloat16"), (FloatType::F16, "float16"), (FloatType::F32, "float32")]
    {
        let target = out.path().join(float.name());
        let text = format!(
            "format = \"hugging-face\"\n[[step]]\nkind = \"float\"\ntargets = [\"*\"]\ntype = \"{float}\""
        );
        run(source.path(), &recipe(&text), &target).unwrap();
        let written = Checkpoint::open(&target).unwrap();
        assert_eq!(written.tensors().len(), dense.tensors().len());
        for info in dense.tensors() {
            let found = written.tensor(&info.name).unwrap().info;
            assert_eq!(found.encoding, Encoding::Float(float), "{}", info.name);
            let rounded: Vec<f32> =
                values(&dense, &info.name).iter().map(|&value| float.round(value)).collect();
            assert!(values(&written, &info.name) == rounded, "{} in {float}", info.name);
        }
        assert_eq!(written.config().dtype, float);
        let config = written.config_json().unwrap();
        assert_eq!(config.get("dtype").or(config.get("torch_dtype")).unwrap(), long);
        assert!(config.get("quantization_config").is_none());
        let mut expected = names(source.path());
        expected.extend(["bitmill.json", "bitmill.md"].map(str::to_owned));
        expected.sort();
        assert_eq!(names(&target), expected, "every other file is carried over");
        let moved = max_abs_diff(&logits(&target), &logits(source.path())) / max_abs(&logits(source.path()));
        assert!(moved < 0.02, "{float}: logits moved by {moved}");
    }
}

#[test]
fn without_targets_a_float_step_is_for_the_matrices_of_the_layers() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let plan = plan(
        &checkpoint,
        &recipe(
            "format = \"hugging-face\"\n[[step]]\nkind = \"float\"\ntype = \"bf16\"\nskip = [\"*.down_proj.weight\"]",
        ),
    )
    .unwrap();
    let to = |name: &str| plan.tensors.iter().find(|tensor| tensor.name == name).unwrap().to.to_string();
    assert_eq!(to("model.layers.0.mlp.up_proj.weight"), "bf16");
    assert_eq!(to("model.layers.0.mlp.down_proj.weight"), "f32");
    assert_eq!(to("model.embed_tokens.weight"), "f32");
    assert_eq!(to("model.layers.0.input_layernorm.weight"), "f32");
}

#[test]
fn gguf_keeps_vectors_in_f32_and_floats_override_a_mix() {
    let source = millet().join("model");
    let checkpoint = Checkpoint::open(&source).unwrap();
    let text = "format = \"gguf\"\n[[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n\
                [[step]]\nkind = \"float\"\ntargets = [\"lm_head.weight\", \"*norm*\", \"*.0.*\"]\ntype = \"bf16\"";
    // Norms are in f32 whatever is asked: a pattern of nothing else is a mistake.
    let error = plan(&checkpoint, &recipe(text)).unwrap_err();
    assert!(matches!(error, Error::PatternMatchesNoMatrix { .. }), "{error}");
    let plan = plan(&checkpoint, &recipe(&text.replace("\"*norm*\", ", ""))).unwrap();
    let to = |name: &str| plan.tensors.iter().find(|tensor| tensor.name == name).unwrap().to.to_string();
    assert_eq!(to("lm_head.weight"), "bf16");
    assert_eq!(to("model.layers.0.mlp.up_proj.weight"), "bf16");
    assert_eq!(to("model.layers.0.input_layernorm.weight"), "f32");
    assert_eq!(to("model.layers.1.mlp.up_proj.weight"), "q4_k");
}

#[test]
fn floats_beside_codes_are_listed_as_ignored() {
    let source = tiny(Variant::Qwen2);
    let recipe = recipe(
        "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 8\ngranularity = \"channel\"\n\
         [[step]]\nkind = \"float\"\ntargets = [\"*.1.mlp.down_proj.weight\", \"model.embed_tokens.weight\"]\ntype = \"bf16\"",
    );
    let out = tempfile::tempdir().unwrap();
    run(source.path(), &recipe, &out.path().join("m")).unwrap();
    let written = Checkpoint::open(&out.path().join("m")).unwrap();
    let encoding = |name: &str| written.tensor(name).unwrap().info.encoding.to_string();
    assert_eq!(encoding("model.embed_tokens.weight"), "bf16");
    assert_eq!(encoding("model.layers.1.mlp.down_proj.weight"), "bf16");
    assert_eq!(encoding("model.layers.0.mlp.down_proj.weight"), "8-bit g160");
    let ignore = &written.config_json().unwrap()["quantization_config"]["ignore"];
    assert_eq!(*ignore, serde_json::json!(["model.layers.1.mlp.down_proj", "lm_head"]));
}

#[test]
fn packed_folders_unpack_to_what_their_codes_stand_for() {
    let source = tiny(Variant::Llama);
    let out = tempfile::tempdir().unwrap();
    let packed = out.path().join("packed");
    run(source.path(), &preset("w4a16_g32_asym").unwrap(), &packed).unwrap();
    let keep = recipe("format = \"hugging-face\"\n[[step]]\nkind = \"keep\"\ntargets = [\"*\"]");
    run(&packed, &keep, &out.path().join("plain")).unwrap();
    let (packed, plain) =
        (Checkpoint::open(&packed).unwrap(), Checkpoint::open(&out.path().join("plain")).unwrap());
    assert!(packed.is_quantized() && !plain.is_quantized());
    assert!(plain.config_json().unwrap().get("quantization_config").is_none());
    for info in packed.tensors() {
        assert!(values(&packed, &info.name) == values(&plain, &info.name), "{}", info.name);
    }
    let plan = plan(&packed, &keep).unwrap();
    let unpacked = plan.tensors.iter().find(|tensor| tensor.from.is_quantized()).unwrap();
    assert_eq!(unpacked.reason, "unpacked from 4-bit g32 asymmetric");
}

#[test]
fn kept_blocks_are_the_same_bytes_in_the_same_rows() {
    for variant in [Variant::LlamaWide, Variant::Qwen2] {
        let source = tiny(variant);
        let out = tempfile::tempdir().unwrap();
        let (first, second) = (out.path().join("first.gguf"), out.path().join("second.gguf"));
        let name = if variant == Variant::LlamaWide { "q4_k_m" } else { "q4_0" };
        run(source.path(), &preset(name).unwrap(), &first).unwrap();
        let keep = recipe("format = \"gguf\"\n[[step]]\nkind = \"keep\"\ntargets = [\"*\"]");
        let checkpoint = Checkpoint::open(&first).unwrap();
        let plan = plan(&checkpoint, &keep).unwrap();
        assert!(plan.tensors.iter().any(|tensor| tensor.treatment == Treatment::Copied));
        compress(&checkpoint, &plan, &second, Overwrite::Refuse, &Silent).unwrap();
        let copy = Checkpoint::open(&second).unwrap();
        for info in checkpoint.tensors() {
            let (a, b) = (checkpoint.tensor(&info.name).unwrap(), copy.tensor(&info.name).unwrap());
            assert_eq!(a.info.encoding, b.info.encoding, "{}", info.name);
            match (a.view().data(), b.view().data()) {
                (WeightData::Block { bytes: a, .. }, WeightData::Block { bytes: b, .. })
                | (WeightData::Float { bytes: a, .. }, WeightData::Float { bytes: b, .. }) => {
                    assert!(a == b, "{}", info.name);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn refuses_a_weight_beyond_the_type_and_leaves_nothing() {
    let source = Tiny::new(Variant::Llama).write_with(|name, shape, values| {
        if name == "model.layers.1.self_attn.k_proj.weight" {
            values[5 * shape[1] + 7] = -70_000.0;
        }
    });
    for format in ["hugging-face", "gguf"] {
        let out = tempfile::tempdir().unwrap();
        let text = format!("format = \"{format}\"\n[[step]]\nkind = \"float\"\ntype = \"f16\"");
        let error = run(source.path(), &recipe(&text), &out.path().join("m")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`model.layers.1.self_attn.k_proj.weight`: row 5, column 7: -7e4 is beyond f16"
        );
        assert!(error.hint().unwrap().contains("bf16"));
        assert!(names(out.path()).is_empty(), "{:?}", names(out.path()));
        run(source.path(), &recipe(&text.replace("f16", "bf16")), &out.path().join("m")).unwrap();
    }
}

#[test]
fn only_codes_of_codes_need_permission() {
    let source = tiny(Variant::Qwen2);
    let out = tempfile::tempdir().unwrap();
    let first = out.path().join("first.gguf");
    run(source.path(), &preset("q8_0").unwrap(), &first).unwrap();
    let checkpoint = Checkpoint::open(&first).unwrap();
    let floats = recipe("format = \"gguf\"\n[[step]]\nkind = \"float\"\ntargets = [\"*\"]\ntype = \"f32\"");
    assert!(plan(&checkpoint, &floats).is_ok());
    let again = recipe(
        "format = \"gguf\"\n[[step]]\nkind = \"block\"\ntargets = [\"*.up_proj.weight\"]\ntype = \"q8_0\"",
    );
    let error = plan(&checkpoint, &again).unwrap_err();
    assert!(matches!(error, Error::AlreadyQuantized { .. }), "{error}");
    let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
    assert!(bitmill_pipeline::Plan::new(&checkpoint, &again, &options).is_ok());
}
