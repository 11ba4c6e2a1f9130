//! NF4 in bitsandbytes folders.

mod common;

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{Error, Format, Recipe, conversion, preset};
use bitmill_quant::NestedAbsmax;
use bitmill_tensor::{Codebook, Encoding, FloatType, ScaleType, WeightData};
use bitmill_testkit::{Variant, max_abs, max_abs_diff, tiny};
use serde_json::{Value, json};

use common::{calibrated, calibration_text, held_out, logits, plan, recipe, run, values};

/// `head`, blocks of feed-forward widths that 64 divides (tiny models have 160), and weights in this form.
fn steps(before: &str, form: &str, more: &str) -> String {
    format!("format = \"bitsandbytes\"\n{before}[[step]]\nkind = \"scaled\"\ntype = \"{form}\"\n{more}\n")
}

const PAD: &str = "[[step]]\nkind = \"pad\"\nffn = 64\n";

fn declared(folder: &std::path::Path) -> Value {
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["quantization_config"].clone()
}

fn layer_matrices(checkpoint: &Checkpoint) -> impl Iterator<Item = &str> {
    let in_layers = checkpoint.tensors().iter().filter(|info| info.role.layer.is_some());
    in_layers.filter(|info| info.role.kind.is_matrix()).map(|info| info.name.as_str())
}

#[test]
fn both_forms_are_written_declared_and_read() {
    let (source, out) = (tiny(Variant::Qwen2), tempfile::tempdir().unwrap());
    let dense = logits(source.path());
    for (name, double) in [("nf4", false), ("nf4_double", true)] {
        let target = out.path().join(name);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let recipe = recipe(&steps(PAD, name, ""));
        let planned = plan(&checkpoint, &recipe).unwrap();
        run(source.path(), &recipe, &target).unwrap();
        let config = declared(&target);
        assert_eq!(
            (&config["quant_method"], &config["load_in_4bit"]),
            (&json!("bitsandbytes"), &json!(true))
        );
        assert_eq!(config["bnb_4bit_use_double_quant"], json!(double));
        assert_eq!(config["llm_int8_skip_modules"], json!(["lm_head"]));
        let moved = max_abs_diff(&logits(&target), &dense) / max_abs(&dense);
        assert!(moved > 0.0 && moved < 0.5, "{name}: logits moved by {moved}");
        let packed = Checkpoint::open(&target).unwrap();
        assert_eq!(planned.output_bytes, packed.stored_bytes() + beside(&target), "{name}: bytes as planned");
        // Unpacked, they are the same numbers.
        let floats = out.path().join(format!("{name}-floats"));
        run(&target, &conversion(Format::HuggingFace, Some(FloatType::F32)), &floats).unwrap();
        let floats = Checkpoint::open(&floats).unwrap();
        for info in packed.tensors() {
            assert_eq!(values(&floats, &info.name), values(&packed, &info.name), "{name}: {}", info.name);
        }
    }
}

/// Bytes of the files beside weights and config, but for record and card.
fn beside(folder: &std::path::Path) -> u64 {
    let names = common::names(folder).into_iter().filter(|name| {
        !name.ends_with(".safetensors") && name != "config.json" && !name.starts_with("bitmill.")
    });
    names.map(|name| std::fs::metadata(folder.join(name)).unwrap().len()).sum()
}

#[test]
fn scales_of_scales_are_those_of_the_whole_matrix() {
    let (source, out) = (tiny(Variant::Llama), tempfile::tempdir().unwrap());
    for name in ["nf4", "nf4_double"] {
        run(source.path(), &recipe(&steps(PAD, name, "")), &out.path().join(name)).unwrap();
    }
    let [plain, double] = ["nf4", "nf4_double"].map(|name| Checkpoint::open(&out.path().join(name)).unwrap());
    for name in layer_matrices(&plain) {
        let (plain, double) = (plain.tensor(name).unwrap(), double.tensor(name).unwrap());
        let WeightData::Scaled { codes, scales, .. } = plain.view().data() else { panic!("numbers") };
        let absmax: Vec<f32> = (0..scales.len() / 4).map(|at| FloatType::F32.read(scales, at)).collect();
        let WeightData::Scaled { codes: same, scales, nested: Some(nested), .. } = double.view().data()
        else {
            panic!("nested scales")
        };
        let expected = NestedAbsmax::new(&absmax);
        assert_eq!((codes, scales), (same, expected.codes.as_slice()), "{name}");
        assert_eq!((nested.absmax, nested.offset), (expected.absmax.as_slice(), expected.offset));
    }
}

#[test]
fn scales_of_scales_compose_with_what_comes_first() {
    let (source, out) = (tiny(Variant::Llama), tempfile::tempdir().unwrap());
    let text = calibration_text(out.path());
    let before = |steps_before: &str| steps(steps_before, "nf4_double", "");
    // Half of the weights gone: blocks are of what is left.
    let pruned = recipe(&before(&format!("[[step]]\nkind = \"magnitude\"\nsparsity = 0.5\n{PAD}")));
    let rotated = recipe(&before(&format!("{PAD}[[step]]\nkind = \"rotate\"\n")));
    for (name, recipe) in [("pruned", pruned), ("rotated", rotated)] {
        let target = out.path().join(name);
        run(source.path(), &recipe, &target).unwrap();
        assert!(max_abs(&logits(&target)).is_finite(), "{name}");
    }
    let pruned = Checkpoint::open(&out.path().join("pruned")).unwrap();
    for name in layer_matrices(&pruned) {
        let values = values(&pruned, name);
        let zeros = values.iter().filter(|value| **value == 0.0).count();
        assert!(2 * zeros >= values.len(), "{name}: {zeros} zeros of {}", values.len());
    }
    let awq = before(&format!("{PAD}[[step]]\nkind = \"awq\"\n"));
    let (head, rest) = awq.split_once('\n').unwrap();
    let recipe = calibrated(head, &text, "", rest);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let record = common::compressed(&checkpoint, &recipe, &out.path().join("awq")).unwrap();
    let tensors = Checkpoint::open(&out.path().join("awq")).unwrap();
    let is_nested = |name: &str| {
        let encoding = tensors.tensor(name).unwrap().info.encoding;
        matches!(encoding, Encoding::Scaled(layout) if layout.scale == ScaleType::Nested)
    };
    assert!(layer_matrices(&tensors).all(is_nested));
    assert!(held_out(&record).kl_mean.is_finite());
}

#[test]
fn what_the_format_does_not_hold_is_refused() {
    let source = tiny(Variant::Llama);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let second = "[[step]]\nkind = \"scaled\"\ntype = \"nf4_double\"\ntargets = [\"*.down_proj.weight\"]";
    let mixed = recipe(&steps(PAD, "nf4", second));
    let error = plan(&checkpoint, &mixed).unwrap_err();
    assert!(matches!(&error, Error::NotHeld { problem, .. } if problem.contains("nf4 double")), "{error}");
    for (format, step, said) in [
        ("bitsandbytes", "kind = \"scaled\"\ntype = \"int8\"", "compressed-tensors's"),
        ("compressed-tensors", "kind = \"scaled\"\ntype = \"nf4\"", "bitsandbytes's"),
        ("gguf", "kind = \"scaled\"\ntype = \"nf4\"", "cannot be written as gguf"),
        (
            "bitsandbytes",
            "kind = \"rtn\"\nbits = 4\ngranularity = \"channel\"",
            "cannot be written as bitsandbytes",
        ),
        ("bitsandbytes", "kind = \"scaled\"\ntype = \"nf4\"\nactivations = \"dynamic\"", "weights alone"),
    ] {
        let text = format!("format = \"{format}\"\n[[step]]\n{step}\n");
        let error = Recipe::parse(&text, std::path::Path::new("m.toml")).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let head = steps(PAD, "nf4", "targets = [\"lm_head.weight\"]");
    assert!(plan(&checkpoint, &recipe(&head)).is_err(), "the head stays as it is");
    let uneven = plan(&checkpoint, &preset("nf4").unwrap()).unwrap_err().to_string();
    assert!(uneven.contains("down_proj") && uneven.contains("groups of 64"), "{uneven}");
}

#[test]
fn modules_that_stay_are_named_as_runtimes_fuse_them() {
    let (source, out) = (tiny(Variant::Llama), tempfile::tempdir().unwrap());
    let target = out.path().join("m");
    let text = steps(PAD, "nf4", "skip = [\"*.layers.1.self_attn.*_proj.weight\"]");
    run(source.path(), &recipe(&text), &target).unwrap();
    let skipped = declared(&target)["llm_int8_skip_modules"].clone();
    let skipped: Vec<&str> = skipped.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for module in ["q_proj", "k_proj", "v_proj", "qkv_proj"] {
        let name = format!("model.layers.1.self_attn.{module}");
        assert!(skipped.contains(&name.as_str()), "{skipped:?}");
    }
    let up = Checkpoint::open(&target).unwrap();
    let encoding = up.tensor("model.layers.1.mlp.up_proj.weight").unwrap().info.encoding;
    assert_eq!(encoding.to_string(), Codebook::Nf4.name());
}
