//! The main job on the embedded model, with a small budget.

use bitmill_bench::BenchSettings;
use bitmill_checkpoint::Checkpoint;
use bitmill_kernels::Isa;
use bitmill_model::Model;
use bitmill_pipeline::{
    CompareOptions, Error, PlanOptions, Request, Silent, compare, default_recipes, embedded, preset,
};
use bitmill_report::Speed;

fn quick(path: Option<&std::path::Path>) -> Result<Speed, Error> {
    let checkpoint = path.map_or_else(embedded::checkpoint, |path| Ok(Checkpoint::open(path)?))?;
    let settings = BenchSettings {
        prefill_tokens: 8,
        decode_context: 4,
        decode_tokens: 2,
        repeats: 1,
        ..BenchSettings::default()
    };
    Ok(bitmill_bench::measure(&Model::load(&checkpoint)?, Isa::best(), &settings, 0)?)
}

#[test]
fn every_default_strategy_runs_and_rounding_recovers_the_embedded_model() {
    let checkpoint = embedded::checkpoint().unwrap();
    let work = tempfile::tempdir().unwrap();
    let options = CompareOptions {
        recipes: default_recipes(&checkpoint),
        request: Request { windows: Some(2), items: Some(6), ..Request::default() },
        stopwatch: &quick,
        work: work.path().into(),
        keep: false,
        plan: PlanOptions::default(),
        seed: 0,
    };
    let report = compare(&checkpoint, &options, &Silent).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let strategies: Vec<&str> = report.rows.iter().map(|row| row.strategy.as_str()).collect();
    let expected =
        ["none", "prune_50", "prune_50_sparse", "depth_25", "q8_0", "q4_k_m", "q4_0", "w8a16", "w4a16_g128"];
    assert_eq!(strategies[..expected.len()], expected);
    let dense = &report.rows[0];
    assert_eq!((dense.ratio, dense.recovery), (1.0, Some(1.0)));
    let [pruned, sparse, shallow] = [1, 2, 3].map(|row| &report.rows[row]);
    assert!((0.99..1.01).contains(&pruned.ratio), "zeros save nothing: {}", pruned.ratio);
    assert!(sparse.ratio > 1.3, "sparse storage does: {}", sparse.ratio);
    assert!((1.1..1.34).contains(&shallow.ratio), "one of four layers: {}", shallow.ratio);
    assert_eq!(pruned.quality.perplexity, sparse.quality.perplexity, "the same weights");
    assert!(pruned.quality.divergence.unwrap().kl_mean > 1e-3, "half of the weights is missed");
    assert!(pruned.notes[0].contains("28 tensors: 50 % zeros, which take the space"), "{:?}", pruned.notes);
    assert!(sparse.notes[0].contains("50 % zeros, not stored"), "{:?}", sparse.notes);
    assert_eq!(shallow.notes, ["1 of 4 layers removed: 1"]);
    for row in &report.rows[4..expected.len()] {
        let name = &row.strategy;
        let divergence = row.quality.divergence.expect(name);
        // Eight bits on millet diverge by about 1e-5, four by some 1e-3.
        let bound = if name.starts_with("q8") || name.starts_with("w8") { 1e-4 } else { 5e-3 };
        assert!(divergence.kl_mean > 0.0 && divergence.kl_mean < bound, "{name}: {}", divergence.kl_mean);
        assert!(row.recovery.expect(name) >= 0.9, "{name}: {:?}", row.recovery);
        assert!(row.ratio > 1.5 && row.bits_per_weight < dense.bits_per_weight, "{name}: {}", row.ratio);
        assert!(row.kl_fast_path.expect(name) < 1e-3, "{name}: {:?}", row.kl_fast_path);
        assert_eq!(row.quality.tasks.len(), 5);
    }
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0, "compressed models are removed");
}

#[test]
fn a_strategy_that_fails_is_listed_and_the_others_are_measured() {
    let checkpoint = embedded::checkpoint().unwrap();
    let work = tempfile::tempdir().unwrap();
    let options = CompareOptions {
        // 256 does not divide the 896 columns of down_proj.
        recipes: vec![preset("w4a16_g256").unwrap(), preset("q8_0").unwrap()],
        request: Request { windows: Some(1), items: Some(1), ..Request::default() },
        stopwatch: &quick,
        work: work.path().into(),
        keep: true,
        plan: PlanOptions::default(),
        seed: 0,
    };
    let report = compare(&checkpoint, &options, &Silent).unwrap();
    assert_eq!(report.rows.len(), 2);
    assert_eq!(report.failed.len(), 1);
    assert!(report.failed[0].error.contains("896"), "{:?}", report.failed[0]);
    assert!(report.failed[0].hint.is_some());
    assert!(work.path().join("2-q8_0.gguf").is_file(), "kept when told to");
}
