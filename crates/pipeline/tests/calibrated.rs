//! Runs that look at what matrices multiply: layer by layer, in one file whatever the threads and interruptions.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{
    CompressRecord, Error, Plan, PlanOptions, Recipe, Silent, compress, embedded, preset,
};
use bitmill_testkit::{Variant, tiny};

use common::{StopAfter, calibration_text as text, compressed as run, contents, held_out, names, recipe};

/// `steps` over a few windows of `source`.
fn calibrated(format: &str, source: &Path, more: &str, steps: &str) -> Recipe {
    let search = if format == "gguf" { "search = \"compensated\"" } else { "" };
    common::calibrated(
        &format!("name = \"calibrated\"\nformat = \"{format}\"\n{search}"),
        source,
        more,
        steps,
    )
}

const GPTQ: &str = "[[step]]\nkind = \"gptq\"\nbits = 3\ngranularity = { group = { size = 32 } }\nzero_point = \"asymmetric\"\n";
const MIX: &str = "[[step]]\nkind = \"mix\"\nmix = \"q3_k_m\"\n";

fn methods(record: &CompressRecord) -> Vec<(String, String)> {
    let tensors = record.document["tensors"].as_array().unwrap();
    let method = |tensor: &serde_json::Value| {
        Some((tensor["name"].as_str()?.to_owned(), tensor["method"]["method"].as_str()?.to_owned()))
    };
    tensors.iter().filter_map(method).collect()
}

#[test]
fn statistics_halve_what_rounding_loses_on_a_trained_model() {
    let millet = embedded::checkpoint().unwrap();
    let out = tempfile::tempdir().unwrap();
    let kl = |name: &str, matrices: usize, steps: &str| {
        let few = "[calibration]\nsamples = 60\nlength = 128\n";
        let recipe = recipe(&format!("format = \"compressed-tensors\"\n{few}\n{steps}"));
        let record = run(&millet, &recipe, &out.path().join(name)).unwrap();
        assert_eq!(methods(&record).len(), matrices);
        held_out(&record).kl_mean
    };
    let step = |kind: &str, more: &str| {
        format!(
            "[[step]]\nkind = \"{kind}\"\nbits = 3\ngranularity = {{ group = {{ size = 128 }} }}\n{more}\n"
        )
    };
    // All but one matrix rounded to nearest, so that the run measures that.
    let one = step("gptq", "targets = [\"model.layers.3.self_attn.o_proj.weight\"]");
    let nearest = kl("nearest", 1, &(step("rtn", "") + &one));
    let found = kl("gptq", 28, &step("gptq", "damping = 0.05"));
    let refined = kl("refined", 28, &step("gptq", "damping = 0.05\nrefine = 2"));
    assert!(found < 0.6 * nearest, "{found} {nearest}");
    assert!(refined < 0.6 * nearest, "{refined} {nearest}");
}

#[test]
fn a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes() {
    let source = tiny(Variant::LlamaWide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (name, recipe) in [
        ("m", calibrated("compressed-tensors", &text, "", GPTQ)),
        ("m", calibrated("compressed-tensors", &text, "states = \"f32\"\nasymmetry = 0.5", GPTQ)),
        ("m.gguf", calibrated("gguf", &text, "", MIX)),
    ] {
        let whole = tempfile::tempdir().unwrap();
        let record = run(&checkpoint, &recipe, &whole.path().join(name)).unwrap();
        assert_eq!(record.resumed, 0);
        let expected = contents(whole.path());
        let plan = Plan::new(&checkpoint, &recipe, &PlanOptions::default()).unwrap();
        for looks in [0, 1, 2, 4] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join(name);
            let stop = StopAfter(AtomicUsize::new(looks));
            let error = compress(&checkpoint, &plan, &target, Overwrite::Refuse, &stop).unwrap_err();
            assert!(matches!(error, Error::Stopped { .. }), "{error}");
            run(&checkpoint, &recipe, &target).unwrap();
            assert!(contents(out.path()) == expected, "{name} stopped at look {looks}");
            assert!(!names(out.path()).iter().any(|name| name.contains("partial")));
        }
    }
}

#[test]
fn threads_change_no_byte() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (name, recipe) in [
        ("m", calibrated("compressed-tensors", &text, "asymmetry = 0.5", &format!("{GPTQ}refine = 1\n"))),
        ("m.gguf", calibrated("gguf", &text, "asymmetry = 0.5", MIX)),
    ] {
        let [one, three] = [1, 3].map(|threads| {
            let out = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&checkpoint, &recipe, &out.path().join(name))).unwrap();
            contents(out.path())
        });
        assert!(one == three, "{name}");
    }
}

#[test]
fn layers_that_have_no_room_for_all_tokens_run_batch_after_batch() {
    let millet = embedded::checkpoint().unwrap();
    let steps = "[[step]]\nkind = \"gptq\"\nbits = 4\ngranularity = { group = { size = 128 } }\n";
    let out = tempfile::tempdir().unwrap();
    let kl = |name: &str, more: &str| {
        let text = format!(
            "format = \"compressed-tensors\"\n[calibration]\nsamples = 12\nlength = 128\n{more}\n{steps}"
        );
        held_out(&run(&millet, &recipe(&text), &out.path().join(name)).unwrap()).kl_mean
    };
    let (together, batches) = (kl("together", ""), kl("batches", "memory = \"10MB\"\n"));
    // The same matrices by inputs that differ by what a layer's own rounding changes.
    assert!(together != batches && (0.6..1.6).contains(&(batches / together)), "{together} {batches}");
}

#[test]
fn every_family_is_calibrated_and_its_output_runs() {
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for variant in [Variant::Qwen3, Variant::Mistral, Variant::QwenV1, Variant::Qwen2Moe, Variant::Qwen3Moe] {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let recipe = calibrated("compressed-tensors", &text, "", &GPTQ.replace("bits = 3", "bits = 8"));
        let record = run(&checkpoint, &recipe, &out.path().join("m")).unwrap();
        let held_out = held_out(&record);
        assert!(held_out.kl_mean < 2e-3, "{variant:?}: {held_out:?}");
        let said = held_out.continuation.expect("it fits in memory");
        assert!(!said.prompt.is_empty(), "{said:?}");
        let card = std::fs::read_to_string(out.path().join("m/bitmill.md")).unwrap();
        assert!(card.contains(&format!("{}┃{}", said.prompt, said.text)), "{card}");
        for (name, method) in methods(&record) {
            assert!(method == "gptq" || name.contains(".experts."), "{variant:?}: {name} {method}");
        }
    }
}

#[test]
fn rows_that_gguf_permutes_are_calibrated_as_they_stand() {
    let source = tiny(Variant::LlamaWide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let out = tempfile::tempdir().unwrap();
    let recipe = calibrated("gguf", &text, "", "[[step]]\nkind = \"mix\"\nmix = \"q6_k\"\n");
    let record = run(&checkpoint, &recipe, &out.path().join("m.gguf")).unwrap();
    let found = held_out(&record);
    // Rows in another's place would be far from a hundredth.
    assert!(found.kl_mean < 1e-2 && found.top1_agreement > 0.8, "{found:?}");
    assert!(methods(&record).iter().all(|(_, method)| method == "compensated"));
    // And from there, whose rows are permuted, back.
    let gguf = Checkpoint::open(&out.path().join("m.gguf")).unwrap();
    let recipe = calibrated("compressed-tensors", &text, "", &GPTQ.replace("bits = 3", "bits = 8"));
    let plan =
        Plan::new(&gguf, &recipe, &PlanOptions { allow_requantize: true, ..PlanOptions::default() }).unwrap();
    let record = compress(&gguf, &plan, &out.path().join("back"), Overwrite::Refuse, &Silent).unwrap();
    assert!(held_out(&record).kl_mean < 1e-3, "{:?}", held_out(&record));
}

#[test]
fn an_expert_that_no_token_meets_is_rounded_by_its_weights_and_told_of() {
    let source = tiny(Variant::Qwen2Moe);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let few = calibrated("compressed-tensors", &text, "", GPTQ);
    let few = {
        let mut recipe = few;
        let options = recipe.calibration.as_mut().unwrap();
        (options.samples, options.length, options.held_out) = (1, 2, 0);
        recipe
    };
    let record = run(&checkpoint, &few, &place.path().join("m")).unwrap();
    let fallbacks: Vec<String> =
        methods(&record).into_iter().filter(|(_, method)| method == "rtn").map(|(name, _)| name).collect();
    assert!(
        !fallbacks.is_empty() && fallbacks.iter().all(|name| name.contains(".experts.")),
        "{fallbacks:?}"
    );
    assert!(record.document["held_out"].is_null());
    let plan = Plan::new(&checkpoint, &few, &PlanOptions { strict: true, ..PlanOptions::default() }).unwrap();
    let error =
        compress(&checkpoint, &plan, &place.path().join("n"), Overwrite::Refuse, &Silent).unwrap_err();
    assert!(matches!(&error, Error::Fallback { tensor, .. } if tensor.contains(".experts.")), "{error}");
    assert!(!place.path().join("n").exists());
}

#[test]
fn memory_that_is_not_allowed_is_refused_with_a_way_out() {
    let millet = embedded::checkpoint().unwrap();
    let recipe = preset("gptq_w4a16_g128").unwrap();
    let options = PlanOptions { max_memory: Some(1 << 20), ..PlanOptions::default() };
    let error = Plan::new(&millet, &recipe, &options).unwrap_err();
    assert!(matches!(error, Error::TooMuchMemory { calibrates: true, .. }), "{error}");
    assert!(error.hint().unwrap().contains("--samples"));
}

#[test]
fn padded_widths_are_calibrated_over_the_columns_that_are_there() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (name, format, steps) in [
        (
            "m.gguf",
            "gguf",
            "[[step]]\nkind = \"pad\"\nffn = 256\n[[step]]\nkind = \"mix\"\nmix = \"q5_k_s\"\n".to_owned(),
        ),
        (
            "m",
            "compressed-tensors",
            format!("[[step]]\nkind = \"pad\"\nffn = 512\n{}", GPTQ.replace("bits = 3", "bits = 8")),
        ),
    ] {
        let record =
            run(&checkpoint, &calibrated(format, &text, "", &steps), &place.path().join(name)).unwrap();
        let found = held_out(&record);
        assert!(found.kl_mean < 2e-2, "{format}: {found:?}");
        assert!(methods(&record).iter().all(|(_, method)| method == "gptq" || method == "compensated"));
    }
}

#[test]
fn full_order_is_written_where_readers_are_told_of_it() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let steps =
        "[[step]]\nkind = \"gptq\"\nbits = 8\ngranularity = { group = { size = 32 } }\norder = \"full\"\n";
    let record = run(&checkpoint, &calibrated("gptq", &text, "", steps), &place.path().join("m")).unwrap();
    assert!(held_out(&record).kl_mean < 2e-3, "{:?}", held_out(&record));
    let config = std::fs::read_to_string(place.path().join("m/config.json")).unwrap();
    assert!(config.contains("\"desc_act\": true"), "{config}");
}
