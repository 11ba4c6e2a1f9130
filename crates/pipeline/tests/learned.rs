//! Runs whose rounding is learned, layer by layer.

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
fn learned(format: &str, source: &Path, more: &str, steps: &str) -> Recipe {
    common::calibrated(&format!("name = \"learned\"\nformat = \"{format}\""), source, more, steps)
}

/// A step of kind `learned`.
fn step(more: &str) -> String {
    format!("[[step]]\nkind = \"learned\"\ngranularity = {{ group = {{ size = 32 }} }}\nbatch = 4\n{more}\n")
}

/// Of each tensor that was calibrated: its name and the record's words about it.
fn methods(record: &CompressRecord) -> Vec<(String, serde_json::Value)> {
    let tensors = record.document["tensors"].as_array().unwrap();
    let method = |tensor: &serde_json::Value| {
        Some((tensor["name"].as_str()?.to_owned(), tensor.get("method")?.clone()))
    };
    tensors.iter().filter_map(method).collect()
}

#[test]
fn learning_loses_less_than_rounding_on_a_trained_model() {
    let millet = embedded::checkpoint().unwrap();
    let out = tempfile::tempdir().unwrap();
    let run = |name: &str, steps: &str| {
        let few = "[calibration]\nsamples = 16\nlength = 128\nheld_out = 16\n";
        let recipe = recipe(&format!("format = \"compressed-tensors\"\n{few}\n{steps}"));
        run(&millet, &recipe, &out.path().join(name)).unwrap()
    };
    let step = |kind: &str, bits: u8, more: &str| {
        format!(
            "[[step]]\nkind = \"{kind}\"\nbits = {bits}\ngranularity = {{ group = {{ size = 128 }} }}\n{more}\n"
        )
    };
    let with = |bits, zero_point: &str| {
        let more = format!("clip = \"mse\"\n{zero_point}");
        let learned = step("learned", bits, &format!("iterations = 20\nbatch = 8\n{more}"));
        let record = run(&format!("learned {bits}"), &learned);
        let methods = methods(&record);
        assert_eq!(methods.len(), 28);
        for (name, method) in methods {
            let loss = |key: &str| method[key].as_f64().unwrap();
            assert_eq!(method["method"], "learned", "{name}");
            assert!(loss("loss_after") < loss("loss_before"), "{name}: {method}");
        }
        record
    };
    with(2, "zero_point = \"asymmetric\"\n");
    let found = held_out(&with(3, "")).kl_mean;
    // All but one matrix rounded to nearest, so that the run measures that.
    let one = "targets = [\"model.layers.3.self_attn.o_proj.weight\"]\nclip = \"mse\"\n";
    let nearest = run("nearest", &(step("rtn", 3, "clip = \"mse\"\n") + &step("gptq", 3, one)));
    let nearest = held_out(&nearest).kl_mean;
    // By 2032 tokens the divergence of either is known to a tenth.
    assert!(found < 0.9 * nearest, "{found} {nearest}");
}

#[test]
fn a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let recipe =
        learned("compressed-tensors", &text, "", &step("bits = 3\niterations = 5\nbegin = \"gptq\""));
    let whole = tempfile::tempdir().unwrap();
    run(&checkpoint, &recipe, &whole.path().join("m")).unwrap();
    let expected = contents(whole.path());
    let plan = Plan::new(&checkpoint, &recipe, &PlanOptions::default()).unwrap();
    for looks in [0, 1, 2, 4] {
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("m");
        let stop = StopAfter(AtomicUsize::new(looks));
        let error = compress(&checkpoint, &plan, &target, Overwrite::Refuse, &stop).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        run(&checkpoint, &recipe, &target).unwrap();
        assert!(contents(out.path()) == expected, "stopped at look {looks}");
        assert!(!names(out.path()).iter().any(|name| name.contains("partial")));
    }
}

#[test]
fn threads_change_no_byte_and_seeds_do() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let steps = step("bits = 3\niterations = 6\nbatch = 2\nzero_point = \"asymmetric\"\nclip = \"mse\"")
        .replace("batch = 4\n", "");
    let with = |threads: usize, more: &str| {
        let out = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let recipe = learned("compressed-tensors", &text, more, &steps);
        pool.install(|| run(&checkpoint, &recipe, &out.path().join("m"))).unwrap();
        contents(out.path())
    };
    let one = with(1, "");
    assert!(one == with(3, ""));
    assert!(one != with(1, "seed = 1"));
    // In batches of windows it is the same: a layer is learned from states, however they came about.
    let batches = with(1, "memory = \"1MB\"");
    assert!(batches.len() == one.len());
}

#[test]
fn every_family_learns_and_its_output_runs() {
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for variant in [Variant::Qwen3, Variant::Mistral, Variant::QwenV1Long, Variant::Qwen2MoeMixed] {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let recipe = learned("compressed-tensors", &text, "", &step("bits = 8\niterations = 4"));
        let record = run(&checkpoint, &recipe, &out.path().join("m")).unwrap();
        assert!(held_out(&record).kl_mean < 2e-3, "{variant:?}: {:?}", held_out(&record));
        for (name, method) in methods(&record) {
            let has_experts = variant == Variant::Qwen2MoeMixed && name.contains("layers.1.");
            let expected = if has_experts { "rtn" } else { "learned" };
            assert_eq!(method["method"], expected, "{variant:?}: {name}");
            let why = method["fallback"].as_str().unwrap_or_default();
            assert_eq!(why.contains("mixture of experts"), has_experts, "{name}: {why}");
        }
        if variant == Variant::Qwen2MoeMixed {
            let options = PlanOptions { strict: true, ..PlanOptions::default() };
            let plan = Plan::new(&checkpoint, &recipe, &options).unwrap();
            let target = out.path().join("n");
            let error = compress(&checkpoint, &plan, &target, Overwrite::Refuse, &Silent).unwrap_err();
            assert!(
                matches!(&error, Error::Fallback { tensor, .. } if tensor.contains("layers.1.")),
                "{error}"
            );
        }
    }
}

#[test]
fn learning_goes_on_from_codes_chosen_by_what_they_multiply() {
    let millet = embedded::checkpoint().unwrap();
    let out = tempfile::tempdir().unwrap();
    let run = |name: &str, kind: &str, more: &str| {
        let text = format!(
            "format = \"compressed-tensors\"\n[calibration]\nsamples = 16\nlength = 128\nasymmetry = 0.5\n[[step]]\nkind = \"{kind}\"\n\
             bits = 2\ngranularity = {{ group = {{ size = 128 }} }}\nclip = \"mse\"\n{more}"
        );
        run(&millet, &recipe(&text), &out.path().join(name)).unwrap()
    };
    let loss = |record: &CompressRecord, key: &str| -> f64 {
        methods(record).iter().map(|(_, method)| method[key].as_f64().unwrap()).sum()
    };
    let nearest = run("nearest", "learned", "iterations = 20\nbatch = 4\n");
    let begun = run("begun", "learned", "iterations = 20\nbatch = 4\nrate = 0.01\nbegin = \"gptq\"\n");
    assert!(loss(&begun, "loss_before") < 0.5 * loss(&nearest, "loss_before"));
    assert!(loss(&begun, "loss_after") < loss(&begun, "loss_before"));
    let (nearest, begun) = (held_out(&nearest).kl_mean, held_out(&begun).kl_mean);
    assert!(begun < nearest, "{begun} {nearest}");
}

#[test]
fn what_learning_begins_with_stays_where_there_is_none() {
    let source = tiny(Variant::Qwen2MoeMixed);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (name, memory) in [("at once", ""), ("in batches", "memory = \"1MB\"")] {
        let run = |kind: &str, more: &str| {
            let step = step(&format!("bits = 4\n{more}")).replace("learned", kind).replace("batch = 4\n", "");
            let recipe = learned("compressed-tensors", &text, memory, &step);
            run(&checkpoint, &recipe, &place.path().join(format!("{name} {kind}"))).unwrap()
        };
        let record = run("learned", "iterations = 4\nbatch = 4\nbegin = \"gptq\"");
        let chosen = run("gptq", "damping = 0.1\nrefine = 2");
        let kinds: Vec<_> = methods(&record)
            .into_iter()
            .map(|(name, method)| {
                let why = method["fallback"].as_str().unwrap_or_default().to_owned();
                (name, method["method"].as_str().unwrap().to_owned(), why)
            })
            .collect();
        assert!(kinds.iter().any(|(_, method, why)| method == "learned" && why.is_empty()));
        for (name, method, why) in kinds.iter().filter(|(name, ..)| name.contains("layers.1.")) {
            // No token meets some experts.
            let is_met = why.contains("mixture of experts");
            assert_eq!(method, if is_met { "gptq" } else { "rtn" }, "{name}: {why}");
            assert!(is_met || why.contains("token"), "{name}: {why}");
        }
        let far = held_out(&record).kl_mean / held_out(&chosen).kl_mean;
        assert!((0.5..2.0).contains(&far), "{far}");
    }
}

#[test]
fn columns_words_and_padded_widths_hold_what_was_learned() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for (name, format, before, steps) in [
        ("gptq", "gptq", "", "bits = 8\niterations = 3"),
        ("awq", "awq", "", "bits = 4\nzero_point = \"asymmetric\"\niterations = 10"),
        ("padded", "compressed-tensors", "[[step]]\nkind = \"pad\"\nffn = 512\n", "bits = 8\niterations = 3"),
        (
            "channel",
            "compressed-tensors",
            "",
            "bits = 8\niterations = 3\nscale = \"f16\"\nminmax = false\nrate = 0.01",
        ),
    ] {
        let mut steps = format!("{before}{}", step(steps));
        if name == "channel" {
            steps = steps.replace("{ group = { size = 32 } }", "\"channel\"");
        }
        let record = run(&checkpoint, &learned(format, &text, "", &steps), &place.path().join(name)).unwrap();
        let found = held_out(&record);
        // Rows or columns in another's place would be far from it.
        assert!(found.kl_mean < if name == "awq" { 0.1 } else { 2e-3 }, "{name}: {found:?}");
        assert!(methods(&record).iter().all(|(_, method)| method["method"] == "learned"), "{name}");
    }
}

#[test]
fn rows_that_gguf_permutes_are_learned_as_they_stand() {
    let source = tiny(Variant::LlamaWide);
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let gguf = place.path().join("m.gguf");
    common::run(source.path(), &preset("f32").unwrap(), &gguf).unwrap();
    let checkpoint = Checkpoint::open(&gguf).unwrap();
    let recipe = learned("compressed-tensors", &text, "", &step("bits = 8\niterations = 4"));
    let record = run(&checkpoint, &recipe, &place.path().join("back")).unwrap();
    assert!(held_out(&record).kl_mean < 1e-3, "{:?}", held_out(&record));
}

#[test]
fn a_layer_is_learned_as_a_whole() {
    let millet = embedded::checkpoint().unwrap();
    let group = "granularity = { group = { size = 128 } }\n";
    let with = |second: &str| {
        let text = format!(
            "format = \"compressed-tensors\"\n[calibration]\nsamples = 4\nlength = 64\n[[step]]\nkind = \"learned\"\nbits = 4\n{group}{second}"
        );
        Plan::new(&millet, &recipe(&text), &PlanOptions::default())
    };
    let down = "[[step]]\ntargets = [\"*.down_proj.weight\"]\nbits = 8\n";
    for other in ["kind = \"gptq\"\n", "kind = \"learned\"\niterations = 50\n"] {
        let error = with(&format!("{down}{other}{group}")).unwrap_err();
        assert!(
            matches!(&error, Error::HalfLearned { tensor, .. } if tensor.contains("layers.0.")),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("rtn"));
    }
    // Other bits, or some that are rounded by their weights alone, go together.
    for other in ["kind = \"rtn\"\n", "kind = \"learned\"\n"] {
        with(&format!("{down}{other}{group}")).unwrap();
    }
}

/// The tiny Llama with `value` in place of the weights of the norm before the first layer's gate and up.
fn with_norm(value: f32) -> tempfile::TempDir {
    let source = tiny(Variant::Llama);
    let path = source.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let names: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let place = &names["model.layers.0.post_attention_layernorm.weight"];
    assert_eq!(place["dtype"], "F32");
    let at =
        |index: usize| 8 + header + usize::try_from(place["data_offsets"][index].as_u64().unwrap()).unwrap();
    for weight in bytes[at(0)..at(1)].chunks_exact_mut(4) {
        weight.copy_from_slice(&value.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    source
}

#[test]
fn activations_that_are_not_finite_are_rounded_by_weights_and_told_of() {
    let source = with_norm(1e30);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let mut recipe = learned("compressed-tensors", &text, "", &step("bits = 4\niterations = 3"));
    recipe.calibration.as_mut().unwrap().held_out = 0;
    let record = run(&checkpoint, &recipe, &place.path().join("m")).unwrap();
    for (name, method) in methods(&record) {
        assert_eq!(method["method"], "rtn", "{name}");
        assert!(method["fallback"].as_str().unwrap().contains("infinite or NaN"), "{name}: {method}");
    }
}

#[test]
fn inputs_beyond_f16_are_told_of_whatever_learning_begins_with() {
    let source = with_norm(1e6);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    for begin in ["nearest", "gptq"] {
        let step = step(&format!("bits = 4\niterations = 3\nbegin = \"{begin}\""));
        let record =
            run(&checkpoint, &learned("compressed-tensors", &text, "", &step), &place.path().join(begin))
                .unwrap();
        let methods = methods(&record);
        assert!(
            methods.iter().all(|(_, method)| method["largest_input"].is_number()),
            "{begin}: {methods:?}"
        );
        let largest = |of: &str| {
            let (_, method) = methods.iter().find(|(name, _)| name.contains(of)).unwrap();
            method["largest_input"].as_f64().unwrap()
        };
        // A norm brings its inputs to a mean square of 1.
        assert!((1e6..1e7).contains(&largest("layers.0.mlp.up_proj")), "{begin}");
        assert!(largest("layers.0.self_attn.q_proj") < 1e3, "{begin}");
        let beyond = record.document["inputs_beyond_f16"].as_array().unwrap();
        assert!(beyond.iter().any(|name| name == "model.layers.0.mlp.gate_proj.weight"), "{beyond:?}");
    }
}

#[test]
fn one_token_and_few_windows_are_enough_to_stay_finite() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let mut recipe = learned("compressed-tensors", &text, "", &step("bits = 2\niterations = 8"));
    let options = recipe.calibration.as_mut().unwrap();
    (options.samples, options.length, options.held_out) = (1, 1, 0);
    let record = run(&checkpoint, &recipe, &place.path().join("m")).unwrap();
    assert!(methods(&record).iter().all(|(_, method)| method["method"] == "learned"));
    assert!(common::logits(&place.path().join("m")).iter().all(|logit| logit.is_finite()));
}

#[test]
fn memory_is_that_of_a_layer_and_its_gradients() {
    let millet = embedded::checkpoint().unwrap();
    let peak = |name: &str| {
        let recipe = preset(name).unwrap();
        Plan::new(&millet, &recipe, &PlanOptions::default()).unwrap().peak_bytes
    };
    assert!(peak("autoround_w4a16_g128") > peak("w4a16_g128"));
    let options = PlanOptions { max_memory: Some(1 << 20), ..PlanOptions::default() };
    let error = Plan::new(&millet, &preset("autoround_w4a16_g128").unwrap(), &options).unwrap_err();
    assert!(matches!(error, Error::TooMuchMemory { calibrates: true, .. }), "{error}");
}
