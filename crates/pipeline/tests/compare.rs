//! The main job on the embedded model, with a small budget.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitmill_bench::BenchSettings;
use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_kernels::Isa;
use bitmill_model::Model;
use bitmill_pipeline::{
    CompareOptions, Error, Format, Made, Plan, PlanOptions, Recipe, Request, Silent, compare, compress,
    default_recipes, embedded, preset, tell_apart,
};
use bitmill_report::{CompareReport, Speed};
use bitmill_testkit::{Variant, tiny};

fn quick(path: Option<&Path>) -> Result<Speed, Error> {
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
        also: Vec::new(),
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
        also: Vec::new(),
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

/// Every file below `folder`, with its bytes and when it last changed.
fn state(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(state(&path));
        } else {
            let changed = path.metadata().unwrap().modified().unwrap();
            files.insert(path.clone(), (std::fs::read(&path).unwrap(), changed));
        }
    }
    files
}

fn made_by(recipe: &Recipe, path: &Path) {
    let checkpoint = embedded::checkpoint().unwrap();
    let plan = Plan::new(&checkpoint, recipe, &PlanOptions::default()).unwrap();
    compress(&checkpoint, &plan, path, Overwrite::Refuse, &Silent).unwrap();
}

fn beside(recipes: &[&str], paths: &[PathBuf], work: &Path) -> Result<CompareReport, Error> {
    let mut also: Vec<Made> = paths.iter().map(|path| Made::at(path).unwrap()).collect();
    tell_apart(&mut also, recipes)?;
    let options = CompareOptions {
        recipes: recipes.iter().map(|name| preset(name).unwrap()).collect(),
        also,
        request: Request { windows: Some(1), items: Some(2), ..Request::default() },
        stopwatch: &quick,
        work: work.into(),
        keep: false,
        plan: PlanOptions::default(),
        seed: 0,
    };
    compare(&embedded::checkpoint().unwrap(), &options, &Silent)
}

#[test]
fn what_an_earlier_run_made_has_the_figures_of_its_recipe_and_stays_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    std::fs::create_dir(at("work")).unwrap();
    let made = [
        ("w4a16_g64", "w4a16_g64", "compressed-tensors"),
        ("q4_0", "mine.gguf", "gguf"),
        ("prune_50", "pruned", "hugging-face"),
        ("nf4", "four-bits", "bitsandbytes"),
    ];
    for (recipe, name, _) in made {
        made_by(&preset(recipe).unwrap(), &at(name));
    }
    let columns = preset("w4a16_g64").unwrap().with_format(Format::Gptq).unwrap();
    made_by(&columns, &at("columns"));
    let mut paths: Vec<PathBuf> = made.iter().map(|(_, name, _)| at(name)).collect();
    paths.push(at("columns"));
    let before = state(place.path());
    let report = beside(&["q4_0", "w4a16_g64", "prune_50", "nf4"], &paths, &at("work")).unwrap();
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert!(state(place.path()) == before, "nothing is written there, and nothing removed");
    assert!(report.rows[0].is_dense() && report.rows.iter().filter(|row| row.is_dense()).count() == 1);

    for (row, (recipe, name, format)) in report.rows[5..].iter().zip(made) {
        let by_recipe = report.rows.iter().find(|row| row.strategy == recipe).unwrap();
        assert_eq!(row.quality, by_recipe.quality, "{name}");
        assert_eq!((row.kl_fast_path, row.recovery), (by_recipe.kl_fast_path, by_recipe.recovery), "{name}");
        assert_eq!((row.bytes, row.ratio), (by_recipe.bytes, by_recipe.ratio), "{name}");
        assert_eq!(row.bits_per_weight, by_recipe.bits_per_weight, "{name}");
        assert_eq!((row.format.as_str(), by_recipe.format.as_str()), (format, format), "{name}");
        // A recipe has that name too.
        assert!(row.strategy == name || row.strategy.ends_with("/w4a16_g64"), "{}", row.strategy);
        assert_eq!((&row.recipe, row.compress_seconds, row.predicted_kl), (&None, None, None));
        assert_eq!(row.path.as_deref(), at(name).to_str());
        assert!(row.notes[0].contains(at(name).to_str().unwrap()), "{:?}", row.notes);
    }
    let columns = report.rows.last().unwrap();
    assert_eq!((columns.strategy.as_str(), columns.format.as_str()), ("columns", "gptq"));
    // Scales of GPTQ folders are f16.
    let [here, there] = [columns, &report.rows[2]].map(|row| row.quality.divergence.unwrap().kl_mean);
    assert!((0.9..1.1).contains(&(here / there)), "{here} {there}");
}

#[test]
fn models_that_are_not_of_this_one_are_listed_with_the_reason() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for name in ["work", "empty"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::write(at("cut.gguf"), b"GGUF\x03\0\0\0").unwrap();
    let other = tiny(Variant::Qwen2);
    made_by(&preset("q8_0").unwrap(), &at("whole.gguf"));
    // As many tokens, and other ones.
    made_by(&preset("w8a16").unwrap(), &at("swapped"));
    let tokenizer = std::fs::read_to_string(at("swapped/tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let vocab = &mut tokenizer["model"]["vocab"];
    let (the, and) = (vocab["Ġthe"].clone(), vocab["Ġand"].clone());
    (vocab["Ġthe"], vocab["Ġand"]) = (and, the);
    std::fs::write(at("swapped/tokenizer.json"), tokenizer.to_string()).unwrap();
    let paths = [at("empty"), at("cut.gguf"), other.path().to_owned(), at("swapped"), at("whole.gguf")];
    let report = beside(&[], &paths, &at("work")).unwrap();
    let rows: Vec<&str> = report.rows.iter().map(|row| row.strategy.as_str()).collect();
    assert_eq!(rows, ["none", "whole.gguf"]);
    let of_other = other.path().file_name().unwrap().to_str().unwrap();
    let expected = [
        ("empty", "config.json"),
        ("cut.gguf", "cut.gguf"),
        (of_other, "the dense model has"),
        ("swapped", "stand for other words than those of millet"),
    ];
    assert_eq!(report.failed.len(), expected.len(), "{:?}", report.failed);
    for (failure, (name, said)) in report.failed.iter().zip(expected) {
        assert_eq!(failure.strategy, name);
        assert!(failure.error.contains(said), "{failure:?}");
        assert!(failure.hint.is_some() || name == "cut.gguf", "{failure:?}");
    }
}

#[test]
fn nothing_is_compressed_to_where_a_model_lies_that_is_to_be_measured() {
    let place = tempfile::tempdir().unwrap();
    let kept = place.path().join("1-q8_0.gguf");
    made_by(&preset("q8_0").unwrap(), &kept);
    let before = state(place.path());
    let error = beside(&["q8_0"], std::slice::from_ref(&kept), place.path()).unwrap_err();
    assert!(matches!(error, Error::MadeWhereWritten { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--output"));
    assert!(state(place.path()) == before);
    // Without recipes nothing is written.
    assert_eq!(beside(&[], &[kept], place.path()).unwrap().rows.len(), 2);
}
