//! Matrices that one scale a row ruins fall back, and no others.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{
    CalibrationOptions, Error, Plan, PlanOptions, Recipe, Silent, compress, embedded, preset,
};
use bitmill_testkit::{Tiny, Variant};
use tempfile::TempDir;

use common::{StopAfter, calibration_text as text, compressed as run, contents, held_out, plan};

const GPTQ: &str = "[[step]]\nkind = \"gptq\"\nbits = 4\ngranularity = \"channel\"\n";
const INT8: &str = "[[step]]\nkind = \"smooth\"\nalpha = 0.0\n[[step]]\nkind = \"scaled\"\ntype = \"int8\"\nactivations = \"dynamic\"\n";
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";

fn calibrated(source: &Path, more: &str, steps: &str) -> Recipe {
    common::calibrated("name = \"outliers\"\nformat = \"compressed-tensors\"", source, more, steps)
}

/// A model in whose second layer one feature of the feed-forward block is a thousandth, and what multiplies it a thousand times as
/// large: it computes the same, and every row of down has an outlier.
fn with_outliers() -> TempDir {
    const FACTOR: f32 = 1024.0;
    Tiny::new(Variant::LlamaWide).write_with(|name, shape, values| match name {
        DOWN => values.chunks_exact_mut(shape[1]).for_each(|row| row[5] *= FACTOR),
        "model.layers.1.mlp.up_proj.weight" => {
            values[5 * shape[1]..6 * shape[1]].iter_mut().for_each(|value| *value /= FACTOR);
        }
        _ => {}
    })
}

/// What fell back, as what.
fn fallen(plan: &Plan) -> Vec<(&str, String)> {
    let fallen = plan.tensors.iter().filter(|planned| planned.outliers.is_some());
    fallen.map(|planned| (planned.name.as_str(), planned.to.to_string())).collect()
}

#[test]
fn the_one_matrix_that_collapses_is_stored_in_groups_and_the_model_is_saved() {
    let source = with_outliers();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let recipe = calibrated(&text, "", GPTQ);
    let found = plan(&checkpoint, &recipe).unwrap();
    // An outlier in one of four groups would leave more than a seventh.
    assert_eq!(fallen(&found), [(DOWN, "4-bit g64".to_owned())]);
    assert!(found.to_text().contains("outliers: "), "{}", found.to_text());
    let record = run(&checkpoint, &recipe, &place.path().join("m")).unwrap();
    let tensors = record.document["tensors"].as_array().unwrap();
    let down = tensors.iter().find(|tensor| tensor["name"] == DOWN).unwrap();
    let [error, left] = ["error", "left"].map(|key| down["outliers"][key].as_f64().unwrap());
    assert!(error > 0.1 && left < error / 4.0, "{down}");
    assert_eq!(down["method"]["method"], "gptq");
    assert!(std::fs::read_to_string(place.path().join("m/bitmill.md")).unwrap().contains("instead of"));

    let reported = calibrated(&text, "outliers = \"report\"", GPTQ);
    assert!(fallen(&plan(&checkpoint, &reported).unwrap()).is_empty());
    let collapsed = run(&checkpoint, &reported, &place.path().join("n")).unwrap();
    let [saved, lost] = [&record, &collapsed].map(|record| held_out(record).kl_mean);
    assert!(saved < 0.5 * lost, "{saved} {lost}");
}

#[test]
fn what_knows_no_groups_is_left_as_floats() {
    let source = with_outliers();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let recipe = calibrated(&text(place.path()), "", INT8);
    assert_eq!(fallen(&plan(&checkpoint, &recipe).unwrap()), [(DOWN, "f32".to_owned())]);
    run(&checkpoint, &recipe, &place.path().join("m")).unwrap();
    let config = std::fs::read_to_string(place.path().join("m/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let ignored = config["quantization_config"]["ignore"].as_array().unwrap();
    assert!(ignored.iter().any(|module| module == "model.layers.1.mlp.down_proj"), "{config}");
}

#[test]
fn a_run_with_fallbacks_goes_on_to_the_same_bytes_with_any_number_of_threads() {
    let source = with_outliers();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let recipe = calibrated(&text(place.path()), "", GPTQ);
    let whole = tempfile::tempdir().unwrap();
    run(&checkpoint, &recipe, &whole.path().join("m")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m");
    let stop = StopAfter(AtomicUsize::new(1));
    let found = plan(&checkpoint, &recipe).unwrap();
    let error = compress(&checkpoint, &found, &target, Overwrite::Refuse, &stop).unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| run(&checkpoint, &recipe, &target)).unwrap();
    assert!(contents(out.path()) == contents(whole.path()));
}

#[test]
fn strict_plans_refuse_to_fall_back() {
    let source = with_outliers();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let place = tempfile::tempdir().unwrap();
    let text = text(place.path());
    let strict = PlanOptions { strict: true, ..PlanOptions::default() };
    let error = Plan::new(&checkpoint, &calibrated(&text, "", GPTQ), &strict).err().unwrap();
    assert!(matches!(&error, Error::Outliers { tensor, others: 0, .. } if tensor == DOWN), "{error}");
    assert!(error.hint().unwrap().contains("g64"), "{:?}", error.hint());
    let reported = calibrated(&text, "outliers = \"report\"", GPTQ);
    let plan = Plan::new(&checkpoint, &reported, &strict).unwrap();
    compress(&checkpoint, &plan, &place.path().join("m"), Overwrite::Refuse, &Silent).unwrap();
}

#[test]
fn an_ordinary_model_has_no_outliers_at_any_width() {
    let millet = embedded::checkpoint().unwrap();
    for name in [
        "gptq_w8a16",
        "gptq_w4a16",
        "gptq_w3a16",
        "gptq_w2a16_asym",
        "awq_w4a16",
        "smoothquant_w8a8_int8",
        "smoothquant_w8a8_fp8",
    ] {
        let few = CalibrationOptions { samples: 8, length: 128, ..CalibrationOptions::default() };
        let recipe = preset(name).unwrap().with_calibration(few).unwrap();
        assert!(fallen(&plan(&millet, &recipe).unwrap()).is_empty(), "{name}");
    }
}
