//! Several recipes in one pass: what they share changes no byte of what each makes alone.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{
    CalibrationOptions, CompressRecord, Error, Plan, PlanOptions, Progress, Recipe, Silent, compress_all,
    preset,
};
use bitmill_testkit::{Variant, tiny};

use common::{StopAfter, calibration_text, compressed, contents, held_out, recipe};

const GPTQ: &str = "[[step]]\nkind = \"gptq\"\nbits = 3\ngranularity = { group = { size = 32 } }\nzero_point = \"asymmetric\"\n";
const LAST_LAYER: &str = "[[step]]\nkind = \"gptq\"\nbits = 8\ngranularity = { group = { size = 32 } }\ntargets = [\"model.layers.1.*_proj.weight\"]\n";
const MIX: &str = "[[step]]\nkind = \"mix\"\nmix = \"q3_k_m\"\n";

fn named(name: &str, format: &str, source: &Path, more: &str, steps: &str) -> Recipe {
    let search = if format == "gguf" { "search = \"compensated\"" } else { "" };
    common::calibrated(&format!("name = {name:?}\nformat = \"{format}\"\n{search}"), source, more, steps)
}

/// Two that are equal in the first layer, three that want the dense model's inputs or not, and one that needs no data.
fn recipes(source: &Path) -> Vec<Recipe> {
    let folder = "compressed-tensors";
    vec![
        named("all", folder, source, "", GPTQ),
        named("mixed", folder, source, "", &format!("{GPTQ}{LAST_LAYER}")),
        named("blocks", "gguf", source, "", MIX),
        named("dense", folder, source, "asymmetry = 0.5", GPTQ),
        named("dense-blocks", "gguf", source, "asymmetry = 0.25", MIX),
        Recipe { name: "plain".into(), ..preset("q8_0").unwrap() },
    ]
}

fn targets(plans: &[Plan], folder: &Path) -> Vec<PathBuf> {
    let end = |plan: &Plan| if plan.recipe.format == bitmill_pipeline::Format::Gguf { ".gguf" } else { "" };
    plans.iter().map(|plan| folder.join(format!("{}{}", plan.recipe.name, end(plan)))).collect()
}

fn together(
    checkpoint: &Checkpoint,
    plans: &[Plan],
    folder: &Path,
    progress: &dyn Progress,
) -> Result<Vec<CompressRecord>, Error> {
    let targets = targets(plans, folder);
    let outputs: Vec<(&Plan, &Path)> = plans.iter().zip(targets.iter().map(PathBuf::as_path)).collect();
    compress_all(checkpoint, &outputs, Overwrite::Refuse, progress)
}

#[test]
fn each_output_is_that_of_its_recipe_alone_wherever_the_pass_was_stopped() {
    let source = tiny(Variant::LlamaWide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let recipes = recipes(&calibration_text(place.path()));
    let alone = tempfile::tempdir().unwrap();
    let plans = Plan::several(&checkpoint, &recipes, &PlanOptions::default()).unwrap();
    for (recipe, target) in recipes.iter().zip(targets(&plans, alone.path())) {
        let record = compressed(&checkpoint, recipe, &target).unwrap();
        assert_eq!(record.taken_over, 0);
    }
    let expected = contents(alone.path());

    let out = tempfile::tempdir().unwrap();
    let records = together(&checkpoint, &plans, out.path(), &Silent).unwrap();
    assert!(contents(out.path()) == expected);
    let taken: Vec<usize> = records.iter().map(|record| record.taken_over).collect();
    // Two layers of the dense model; `mixed` finds the four statistics of the first layer too, and those of q, k and v in the
    // second, which it enters as the same model. GGUF's embedding is another, so `blocks` finds only the dense model's layers.
    assert_eq!(taken[..3], [0, 2 + 4 + 1, 2], "{taken:?}");
    // These run the dense model over the calibration windows too; their first q, k and v are those of `all` and of `blocks`.
    assert!(taken[3] >= 1 && taken[4] > 2, "{taken:?}");
    assert_eq!(taken[5], 0);
    // All are there: nothing is done again.
    let again = together(&checkpoint, &plans, out.path(), &Silent).unwrap();
    assert!(again.iter().zip(&plans).all(|(record, plan)| record.resumed == plan.tensors.len()));
    assert!(contents(out.path()) == expected);

    // Weights that changed since are another model, whatever their names and sizes.
    let weights = std::fs::File::options().write(true).open(source.path().join("model.safetensors")).unwrap();
    let then = weights.metadata().unwrap().modified().unwrap();
    weights.set_modified(then + std::time::Duration::from_secs(3600)).unwrap();
    let error = together(&checkpoint, &plans, out.path(), &Silent).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
    weights.set_modified(then).unwrap();

    for looks in [0, 2, 5, 9, 14] {
        let out = tempfile::tempdir().unwrap();
        let stop = StopAfter(AtomicUsize::new(looks));
        let error = together(&checkpoint, &plans, out.path(), &stop).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        together(&checkpoint, &plans, out.path(), &Silent).unwrap();
        assert!(contents(out.path()) == expected, "stopped at look {looks}");
    }
}

#[test]
fn recipes_of_other_tokens_share_no_pass() {
    let source = tiny(Variant::LlamaWide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = calibration_text(place.path());
    let mut others = recipes(&text);
    others[3].calibration.as_mut().unwrap().seed = 1;
    let error = Plan::several(&checkpoint, &others, &PlanOptions::default()).unwrap_err();
    assert!(
        matches!(&error, Error::UnlikeCalibration { recipe, other, key: "seed" } if recipe == "all" && other == "dense"),
        "{error}"
    );
    assert!(error.hint().is_some());
    let plain = recipe("format = \"gguf\"\n[[step]]\nkind = \"mix\"\nmix = \"q4_0\"\n");
    assert!(Plan::several(&checkpoint, &[plain, others.remove(0)], &PlanOptions::default()).is_ok());
}

#[test]
fn memory_is_that_of_all_together() {
    let source = tiny(Variant::LlamaWide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let recipes = recipes(&calibration_text(place.path()));
    let plans = Plan::several(&checkpoint, &recipes, &PlanOptions::default()).unwrap();
    let joint = Plan::joint_peak_bytes(&checkpoint, &plans);
    assert!(plans.iter().all(|plan| plan.peak_bytes < joint));
    let tight = PlanOptions { max_memory: Some(1 << 20), ..PlanOptions::default() };
    let error = Plan::several(&checkpoint, &recipes, &tight).unwrap_err();
    assert!(matches!(error, Error::TooMuchMemory { .. }), "{error}");
}

#[test]
fn blocks_are_weighed_by_what_they_multiply_in_the_same_pass() {
    let millet = bitmill_pipeline::embedded::checkpoint().unwrap();
    let few = CalibrationOptions { samples: 24, length: 128, ..CalibrationOptions::default() };
    let steps = "[[step]]\nkind = \"mix\"\nmix = \"q2_k\"\n";
    let weighed =
        recipe(&format!("name = \"weighed\"\nformat = \"gguf\"\nimportance = \"calibration\"\n{steps}"));
    let recipes = [weighed, preset("imatrix_iq2_s").unwrap(), preset("gptq_w4a16_g128").unwrap()];
    let recipes = recipes.map(|recipe| recipe.with_calibration(few.clone()).unwrap());
    let plans = Plan::several(&millet, &recipes, &PlanOptions::default()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let records = together(&millet, &plans, out.path(), &Silent).unwrap();
    let tensors = |record: &CompressRecord| record.document["tensors"].as_array().unwrap().clone();
    for record in &records[..2] {
        let weighed = |tensor: &&serde_json::Value| tensor["method"]["method"] == "weighed";
        assert_eq!(tensors(record).iter().filter(weighed).count(), 28);
        assert!(held_out(record).kl_mean < 0.2, "{:?}", held_out(record));
    }
    // Matrices that the run meets are others than those of the mix by itself; embedding and vectors are the same.
    let alone = recipe(&format!("format = \"gguf\"\n{steps}"));
    let alone = compressed(&millet, &alone, &out.path().join("alone.gguf")).unwrap();
    for tensor in tensors(&alone) {
        let find = |other: &serde_json::Value| other["name"] == tensor["name"];
        let other = tensors(&records[0]).into_iter().find(find).unwrap();
        if tensor["to"] == other["to"] {
            let is_met = other["method"].is_object();
            assert_eq!(tensor["stored_hash"] != other["stored_hash"], is_met, "{}", tensor["name"]);
        }
    }
}
