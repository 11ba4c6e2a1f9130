//! Steps that give weights other values before they are rounded: the model computes what it did, and rounding loses less.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{
    CompressRecord, Error, Plan, PlanOptions, Recipe, Silent, compress, embedded, preset,
};
use bitmill_testkit::{Variant, tiny};
use serde_json::Value;

use common::{
    StopAfter, calibration_text as text, compressed as run, contents, first_logits, held_out, names, recipe,
    values,
};

fn calibrated(format: &str, text: &Path, more: &str, steps: &str) -> Recipe {
    common::calibrated(&format!("name = \"reshaped\"\nformat = \"{format}\""), text, more, steps)
}

const ROTATE: &str = "[[step]]\nkind = \"rotate\"\n";
const ROTATE_VALUES: &str = "[[step]]\nkind = \"rotate\"\nvalues = true\nseed = 7\n";
const AWQ: &str = "[[step]]\nkind = \"awq\"\n";
const SMOOTH: &str = "[[step]]\nkind = \"smooth\"\nalpha = 0.6\n";
const F32: &str = "[[step]]\nkind = \"float\"\ntype = \"f32\"\ntargets = [\"*\"]\n";
const MIX: &str = "[[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n";

fn groups(kind: &str, bits: u8, size: usize) -> String {
    format!("[[step]]\nkind = \"{kind}\"\nbits = {bits}\ngranularity = {{ group = {{ size = {size} }} }}\n")
}

fn method<'r>(record: &'r CompressRecord, name: &str) -> &'r Value {
    let tensors = record.document["tensors"].as_array().unwrap();
    &tensors.iter().find(|tensor| tensor["name"] == name).unwrap()["method"]
}

/// As many as the shortest context holds.
fn logits(path: &Path) -> Vec<f32> {
    first_logits(path, 16)
}

/// The largest difference, relative to the largest of `expected`.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    largest(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()))
        / largest(&mut expected.iter().map(|value| value.abs()))
}

#[test]
fn a_rotated_model_computes_the_same_in_every_family_without_a_token() {
    for variant in Variant::ALL {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let expected = logits(source.path());
        for step in [ROTATE, ROTATE_VALUES] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join("m");
            let recipe = recipe(&format!("format = \"hugging-face\"\n{step}{F32}"));
            let record = run(&checkpoint, &recipe, &target).unwrap();
            assert!(record.document["calibration"].is_null() && record.document["held_out"].is_null());
            let found = difference(&logits(&target), &expected);
            // f32, rounded in another order.
            assert!(found < 1e-4, "{}: {found}", variant.name());
            let written = Checkpoint::open(&target).unwrap();
            assert!(!written.config().tied);
            assert!(values(&written, "model.norm.weight").iter().all(|weight| *weight == 1.0));
            let name = "model.layers.1.self_attn.o_proj.weight";
            assert!(difference(&values(&written, name), &values(&checkpoint, name)) > 0.1);
        }
    }
}

#[test]
fn a_tied_head_becomes_a_tensor_of_its_own() {
    let source = tiny(Variant::LlamaWide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    assert!(checkpoint.config().tied);
    let expected = logits(source.path());
    let out = tempfile::tempdir().unwrap();
    // Rows of q and k are permuted there.
    let gguf = out.path().join("m.gguf");
    let steps = format!("format = \"gguf\"\n{ROTATE_VALUES}{F32}");
    let record = run(&checkpoint, &recipe(&steps), &gguf).unwrap();
    assert!(difference(&logits(&gguf), &expected) < 1e-4);
    let head = record.document["tensors"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&head["name"], &head["source"]),
        (&"lm_head.weight".into(), &"model.embed_tokens.weight".into())
    );
    assert!(record.document["notes"].to_string().contains("a tensor of its own"));
    // From there back, and once more.
    let again = Checkpoint::open(&gguf).unwrap();
    assert!(!again.config().tied);
    let folder = out.path().join("m");
    run(&again, &recipe(&format!("format = \"hugging-face\"\n{ROTATE}{F32}")), &folder).unwrap();
    assert!(difference(&logits(&folder), &expected) < 1e-4);
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    assert!(config.contains("\"tie_word_embeddings\": false"), "{config}");
}

#[test]
fn smoothed_norms_and_what_reads_them_compute_the_same_in_every_family() {
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for variant in [
        Variant::Qwen2,
        Variant::Qwen2Tied,
        Variant::Qwen3,
        Variant::Mistral,
        Variant::QwenV1,
        Variant::LlamaWide,
        Variant::Qwen2Moe,
        Variant::Qwen2MoeMixed,
        Variant::Qwen3Moe,
    ] {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let expected = logits(source.path());
        for (name, format, steps) in [
            ("m", "hugging-face", format!("{SMOOTH}{F32}")),
            ("n", "hugging-face", format!("{ROTATE}{SMOOTH}{F32}")),
        ] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join(name);
            let record = run(&checkpoint, &calibrated(format, &text, "", &steps), &target).unwrap();
            let found = difference(&logits(&target), &expected);
            assert!(found < 1e-3, "{} {name}: {found}", variant.name());
            let quality = held_out(&record);
            assert!(quality.kl_mean < 1e-6, "{}: {quality:?}", variant.name());
            let written = Checkpoint::open(&target).unwrap();
            let norm = "model.layers.0.input_layernorm.weight";
            assert_ne!(values(&written, norm), values(&checkpoint, norm));
            let scaled = &method(&record, "model.layers.0.self_attn.k_proj.weight")["scaled"];
            assert_eq!((&scaled["by"], &scaled["alpha"]), (&"smooth".into(), &0.6.into()));
        }
    }
}

#[test]
fn awq_scales_are_folded_in_every_family_and_stores() {
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for variant in [
        Variant::Qwen2,
        Variant::Qwen2Tied,
        Variant::Qwen3,
        Variant::MistralNull,
        Variant::QwenV1,
        Variant::Qwen2Moe,
        Variant::Qwen2MoeMixed,
        Variant::Qwen3Moe,
    ] {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        for (name, format, steps, bound) in [
            ("a", "compressed-tensors", format!("{AWQ}{}", groups("rtn", 8, 32)), 2e-3),
            ("b", "compressed-tensors", format!("{ROTATE}{AWQ}{}", groups("gptq", 8, 32)), 2e-3),
            ("c", "compressed-tensors", format!("{AWQ}[[step]]\nkind = \"scaled\"\ntype = \"int8\"\n"), 2e-3),
            ("d", "hugging-face", format!("{AWQ}{F32}"), 1e-9),
        ] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join(name);
            let record = run(&checkpoint, &calibrated(format, &text, "", &steps), &target).unwrap();
            let quality = held_out(&record);
            assert!(quality.kl_mean < bound, "{} {name}: {quality:?}", variant.name());
            // What was measured layer by layer is what was written.
            let dense = logits(source.path());
            let found = difference(&logits(&target), &dense);
            // A router may pick another expert.
            assert!(found < 0.2, "{} {name}: {found}", variant.name());
        }
    }
}

/// What a layer ran with is what a reader of the output gets, changed biases and routers included.
#[test]
fn held_out_figures_are_those_of_the_output() {
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let source = tiny(Variant::Qwen2Moe);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let recipe = calibrated(
        "compressed-tensors",
        &text,
        "states = \"f32\"",
        &format!("{ROTATE}{AWQ}{}", groups("rtn", 4, 32)),
    );
    let record = run(&checkpoint, &recipe, &out.path().join("m")).unwrap();
    let found = held_out(&record);
    let again = calibrated(
        "hugging-face",
        &text,
        "states = \"f32\"",
        &format!("[[step]]\nkind = \"smooth\"\nalpha = 0.0\n{F32}"),
    );
    let written = Checkpoint::open(&out.path().join("m")).unwrap();
    let of_output = held_out(&run(&written, &again, &out.path().join("n")).unwrap());
    assert!((found.perplexity / of_output.dense_perplexity - 1.0).abs() < 1e-4, "{found:?} {of_output:?}");
    let of_source = held_out(&run(&checkpoint, &again, &out.path().join("o")).unwrap());
    assert!(
        (found.dense_perplexity / of_source.dense_perplexity - 1.0).abs() < 1e-5,
        "{found:?} {of_source:?}"
    );
}

#[test]
fn scales_ranges_and_rotations_lose_less_than_rounding_to_nearest_on_a_trained_model() {
    let millet = embedded::checkpoint().unwrap();
    let out = tempfile::tempdir().unwrap();
    let kl = |name: &str, steps: &str| {
        let some = "[calibration]\nsamples = 60\nlength = 128\nheld_out = 30\n";
        let recipe = recipe(&format!("format = \"compressed-tensors\"\n{some}\n{steps}"));
        let record = run(&millet, &recipe, &out.path().join(name)).unwrap();
        (held_out(&record).kl_mean, record)
    };
    let grid = |kind: &str, bits: u8, size: usize, more: &str| {
        format!("{}zero_point = \"asymmetric\"\n{more}", groups(kind, bits, size))
    };
    // All but one matrix rounded to nearest, so that the run measures that.
    let one = "targets = [\"model.layers.3.self_attn.o_proj.weight\"]\n";
    let scales_alone = "[[step]]\nkind = \"awq\"\nclip = false\n";

    let (nearest, _) = kl("a", &(grid("rtn", 3, 128, "") + &grid("gptq", 3, 128, one)));
    let (scaled, record) = kl("b", &(scales_alone.to_owned() + &grid("rtn", 3, 128, "")));
    let (found, _) = kl("c", &grid("gptq", 3, 128, ""));
    let (turned, _) = kl("d", &(ROTATE.to_owned() + &grid("gptq", 3, 128, "")));
    assert!(scaled < nearest, "{scaled} {nearest}");
    assert!(turned < scaled && found < scaled, "{turned} {found} {scaled}");
    let up = method(&record, "model.layers.1.mlp.up_proj.weight");
    assert_eq!(
        (&up["method"], &up["scaled"]["by"], &up["clipped"]),
        (&"rtn".into(), &"awq".into(), &Value::Null)
    );
    assert!(up["scaled"]["error"].as_f64().unwrap() <= 1.0 && up["output_error"].as_f64().unwrap() > 0.0);
    assert!(up["largest_input"].as_f64().unwrap() > 1.0);

    let (nearest, _) = kl("e", &(grid("rtn", 2, 64, "") + &grid("gptq", 2, 64, one)));
    let (clipped, record) = kl("f", &(AWQ.to_owned() + &grid("rtn", 2, 64, "")));
    assert!(clipped < 0.97 * nearest, "{clipped} {nearest}");
    assert_eq!(method(&record, "model.layers.1.mlp.up_proj.weight")["clipped"], true);
    assert_eq!(method(&record, "model.layers.1.self_attn.q_proj.weight")["clipped"], Value::Null);
}

#[test]
fn a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (variant, name, recipe) in [
        (
            Variant::Qwen2Tied,
            "m",
            calibrated("compressed-tensors", &text, "", &format!("{ROTATE}{AWQ}{}", groups("gptq", 3, 32))),
        ),
        (Variant::Qwen2, "m", calibrated("awq", &text, "", &format!("{AWQ}{}", groups("rtn", 4, 32)))),
        (Variant::LlamaWide, "m.gguf", calibrated("gguf", &text, "", &format!("{AWQ}{MIX}"))),
        (Variant::LlamaWide, "m.gguf", recipe(&format!("format = \"gguf\"\n{ROTATE_VALUES}{MIX}"))),
    ] {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let whole = tempfile::tempdir().unwrap();
        run(&checkpoint, &recipe, &whole.path().join(name)).unwrap();
        let expected = contents(whole.path());
        let plan = Plan::new(&checkpoint, &recipe, &PlanOptions::default()).unwrap();
        for looks in [0, 1, 2, 4] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join(name);
            let stop = StopAfter(AtomicUsize::new(looks));
            let error = compress(&checkpoint, &plan, &target, Overwrite::Refuse, &stop).unwrap_err();
            assert!(matches!(error, Error::Stopped { .. }), "{error}");
            run(&checkpoint, &recipe, &target).unwrap();
            assert!(contents(out.path()) == expected, "{} {name} stopped at look {looks}", variant.name());
            assert!(!names(out.path()).iter().any(|name| name.contains("partial")));
        }
    }
}

#[test]
fn threads_change_no_byte() {
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (variant, name, recipe) in [
        (
            Variant::Qwen2Wide,
            "m",
            calibrated(
                "compressed-tensors",
                &text,
                "",
                &format!("{ROTATE_VALUES}{AWQ}{}", groups("rtn", 3, 32)),
            ),
        ),
        (
            Variant::Qwen3Moe,
            "m",
            calibrated(
                "compressed-tensors",
                &text,
                "asymmetry = 0.5",
                &format!("{AWQ}{}", groups("gptq", 4, 32)),
            ),
        ),
        (Variant::LlamaWide, "m.gguf", calibrated("gguf", &text, "", &format!("{SMOOTH}{MIX}"))),
    ] {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let [one, three] = [1, 3].map(|threads| {
            let out = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&checkpoint, &recipe, &out.path().join(name))).unwrap();
            contents(out.path())
        });
        assert!(one == three, "{} {name}", variant.name());
    }
}

#[test]
fn batches_of_windows_find_scales_too() {
    let millet = embedded::checkpoint().unwrap();
    let out = tempfile::tempdir().unwrap();
    let kl = |name: &str, more: &str| {
        let steps = groups("rtn", 4, 128);
        let text = format!(
            "format = \"compressed-tensors\"\n[calibration]\nsamples = 12\nlength = 128\n{more}\n{AWQ}{steps}"
        );
        held_out(&run(&millet, &recipe(&text), &out.path().join(name)).unwrap()).kl_mean
    };
    let (together, batches) = (kl("together", ""), kl("batches", "memory = \"10MB\"\n"));
    assert!((0.6..1.6).contains(&(batches / together)), "{together} {batches}");
}

#[test]
fn an_expert_that_no_token_meets_keeps_its_scale_and_is_told_of() {
    let source = tiny(Variant::Qwen2Moe);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let mut few =
        calibrated("compressed-tensors", &text(place.path()), "", &format!("{AWQ}{}", groups("rtn", 4, 32)));
    let options = few.calibration.as_mut().unwrap();
    (options.samples, options.length, options.held_out) = (1, 2, 0);
    let record = run(&checkpoint, &few, &place.path().join("m")).unwrap();
    let tensors = record.document["tensors"].as_array().unwrap();
    let unmet: Vec<&str> = tensors
        .iter()
        .filter(|tensor| tensor["method"]["scaled"]["fallback"].is_string())
        .map(|tensor| tensor["name"].as_str().unwrap())
        .collect();
    assert!(!unmet.is_empty() && unmet.iter().all(|name| name.contains("down_proj")), "{unmet:?}");
    let plan = Plan::new(&checkpoint, &few, &PlanOptions { strict: true, ..PlanOptions::default() }).unwrap();
    let error =
        compress(&checkpoint, &plan, &place.path().join("n"), Overwrite::Refuse, &Silent).unwrap_err();
    assert!(matches!(&error, Error::Fallback { tensor, .. } if tensor.contains("down_proj")), "{error}");
}

#[test]
fn padded_widths_are_scaled_over_the_columns_that_are_there() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (name, format, steps) in [
        (
            "m.gguf",
            "gguf",
            format!(
                "[[step]]\nkind = \"pad\"\nffn = 256\n{ROTATE}{AWQ}[[step]]\nkind = \"mix\"\nmix = \"q5_k_s\"\n"
            ),
        ),
        (
            "m",
            "compressed-tensors",
            format!("[[step]]\nkind = \"pad\"\nffn = 512\n{AWQ}{}", groups("rtn", 8, 32)),
        ),
    ] {
        let record =
            run(&checkpoint, &calibrated(format, &text, "", &steps), &place.path().join(name)).unwrap();
        let found = held_out(&record);
        assert!(found.kl_mean < 3e-2, "{format}: {found:?}");
    }
}

#[test]
fn layers_that_stay_are_turned_and_scaled_by_their_own_norms() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let depth = "[[step]]\nkind = \"depth\"\nlayers = [0]\n";
    let plain = place.path().join("plain");
    run(&checkpoint, &recipe(&format!("format = \"hugging-face\"\n{depth}{F32}")), &plain).unwrap();
    for (name, steps) in
        [("a", format!("{depth}{ROTATE_VALUES}{F32}")), ("b", format!("{depth}{ROTATE}{SMOOTH}{F32}"))]
    {
        let recipe = match name {
            "a" => recipe(&format!("format = \"hugging-face\"\n{steps}")),
            _ => calibrated("hugging-face", &text, "", &steps),
        };
        let target = place.path().join(name);
        run(&checkpoint, &recipe, &target).unwrap();
        let found = difference(&logits(&target), &logits(&plain));
        assert!(found < 1e-3, "{name}: {found}");
    }
}

#[test]
fn plans_say_what_is_turned_and_scaled() {
    let source = tiny(Variant::Qwen2Tied);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let plan = |recipe: &Recipe| Plan::new(&checkpoint, recipe, &PlanOptions::default()).unwrap();
    let rotated = plan(&preset("rotated_w4a16_g32").unwrap());
    let text = rotated.to_text();
    assert!(text.contains("`rotate` turns the residual stream in blocks of 64 features"), "{text}");
    let is_kept = |name: &str| text.lines().find(|line| line.contains(name)).unwrap().contains("kept");
    assert!(!is_kept("lm_head") && !is_kept("model.norm") && is_kept("q_proj.bias"), "{text}");
    let plain = plan(&preset("w4a16_g32").unwrap());
    assert!(rotated.output_bytes > plain.output_bytes);
    let place = tempfile::tempdir().unwrap();
    let steps = format!("{AWQ}{}", groups("rtn", 4, 32));
    let scaled = plan(&calibrated("compressed-tensors", &self::text(place.path()), "", &steps)).to_text();
    assert!(scaled.contains("`awq` folds scales"), "{scaled}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let refused = |text: &str| {
        let error = Recipe::parse(text, Path::new("r.toml")).unwrap_err();
        assert!(error.hint().is_some());
        error.to_string()
    };
    let rtn = groups("rtn", 4, 32);
    let keep = "[[step]]\nkind = \"keep\"\n";
    let magnitude = "[[step]]\nkind = \"magnitude\"\nsparsity = 0.5\n";
    for (format, steps, why) in [
        ("compressed-tensors", format!("{rtn}{AWQ}"), "`awq` comes after `rtn`"),
        ("compressed-tensors", format!("{AWQ}{SMOOTH}{rtn}"), "features have one scale"),
        ("compressed-tensors", format!("{AWQ}{AWQ}{rtn}"), "two steps of kind `awq`"),
        ("compressed-tensors", format!("{AWQ}{ROTATE}{rtn}"), "`rotate` comes after `awq`"),
        ("gguf", format!("{ROTATE}{keep}"), "`keep` beside `rotate`"),
        ("compressed-tensors", format!("{magnitude}{ROTATE}{rtn}"), "`magnitude` beside `rotate`"),
        ("compressed-tensors", format!("{magnitude}{SMOOTH}{rtn}"), "`magnitude` beside `smooth`"),
        ("compressed-tensors", format!("[[step]]\nkind = \"smooth\"\nalpha = 1.5\n{rtn}"), "no fraction"),
        ("compressed-tensors", format!("[[step]]\nkind = \"rotate\"\nangle = 1\n{rtn}"), "angle"),
    ] {
        let error = refused(&format!("format = \"{format}\"\n{steps}"));
        assert!(error.contains(why), "{error}");
    }
    let error = refused(&format!("format = \"gguf\"\nimatrix = \"i.gguf\"\n{ROTATE}{MIX}"));
    assert!(error.contains("`imatrix` beside `rotate`"), "{error}");
    let error = preset("rotated_q4_k_m").unwrap().with_imatrix(Path::new("i.gguf")).unwrap_err();
    assert!(error.to_string().contains("no use for an importance matrix"), "{error}");
    // A rotated model's codes are other codes.
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("m.gguf");
    run(&Checkpoint::open(source.path()).unwrap(), &preset("q8_0").unwrap(), &gguf).unwrap();
    let error =
        run(&Checkpoint::open(&gguf).unwrap(), &preset("rotated_q8_0").unwrap(), &out.path().join("n.gguf"))
            .unwrap_err();
    assert!(matches!(error, Error::AlreadyQuantized { .. }), "{error}");
}
