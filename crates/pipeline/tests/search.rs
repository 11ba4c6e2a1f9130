//! Searching for mixed precision: what is promised of sizes, and that measuring pays.

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{
    Budget, Error, Format, Material, Measure, Plan, PlanOptions, Recipe, Request, SearchOptions,
    SearchResult, Sensitivity, Silent, TaskChoice, compress, embedded, preset, resolve, search,
};
use bitmill_testkit::{Tiny, Variant};

fn options(bits: f64, measure: Measure) -> SearchOptions {
    SearchOptions { measure, tokens: Some(128), rounds: 1, ..SearchOptions::new(Budget::BitsPerWeight(bits)) }
}

fn found(checkpoint: &Checkpoint, options: &SearchOptions) -> SearchResult {
    search(checkpoint, options, &Silent).unwrap()
}

fn tiny(variant: Variant) -> (tempfile::TempDir, Checkpoint) {
    let folder = Tiny::new(variant).layers(3).write();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

#[test]
fn a_result_is_never_over_its_budget_and_as_close_below_as_forms_allow() {
    let checkpoint = embedded::checkpoint().unwrap();
    let table = found(&checkpoint, &options(6.0, Measure::Weights)).table;
    let mut losses = Vec::new();
    for tenths in (33..=60).step_by(3) {
        let options = SearchOptions {
            table: Some(table.clone()),
            ..options(f64::from(tenths) / 10.0, Measure::Weights)
        };
        let report = found(&checkpoint, &options).report;
        assert!(report.bytes <= report.budget_bytes);
        // A thousandth, or else too little for a better form of any tensor; the recipe's text takes part of it.
        let left = report.budget_bytes - report.bytes;
        let fits = report.assignment.iter().zip(&table.units).any(|(now, unit)| {
            let mut better = unit.options.iter().filter(|option| option.error < now.loss);
            better.any(|option| option.bytes > now.bytes && option.bytes - now.bytes + 400 <= left)
        });
        assert!(left <= report.budget_bytes / 1000 || !fits, "{tenths}: {left} of {}", report.budget_bytes);
        assert!(left <= report.budget_bytes / 200, "{tenths}: {left} of {}", report.budget_bytes);
        assert_eq!(report.gap, 0.0);
        losses.push(report.predicted_loss);
    }
    // Headers hold the recipe and vary by some bytes: the last digits of a loss may go either way.
    assert!(losses.windows(2).all(|pair| pair[1] <= pair[0] * 1.001), "{losses:?}");
}

#[test]
fn the_file_has_the_bytes_that_the_search_counted() {
    let work = tempfile::tempdir().unwrap();
    let (_folder, checkpoint) = tiny(Variant::Llama);
    for (format, name) in [(Format::Gguf, "out.gguf"), (Format::CompressedTensors, "out")] {
        let options = SearchOptions { format, ..options(14.0, Measure::Output) };
        let SearchResult { recipe, report, .. } = found(&checkpoint, &options);
        let plan = Plan::new(&checkpoint, &recipe, &PlanOptions::default()).unwrap();
        let path = work.path().join(name);
        compress(&checkpoint, &plan, &path, Overwrite::Refuse, &Silent).unwrap();
        let written = bitmill_pipeline::size_on_disk(&Checkpoint::open(&path).unwrap());
        assert_eq!(written, report.bytes);
        assert!(written <= report.budget_bytes);
    }
}

#[test]
fn a_budget_below_the_smallest_size_is_told_that_size_and_that_size_can_be_had() {
    let (_folder, checkpoint) = tiny(Variant::Qwen2);
    let tight = |bytes| SearchOptions {
        budget: Budget::Bytes(bytes),
        measure: Measure::Weights,
        ..SearchOptions::new(Budget::Bytes(0))
    };
    let error = search(&checkpoint, &tight(2000), &Silent).unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("bpw")), "{error}");
    let Error::BudgetTooSmall { smallest, .. } = error else { panic!("{error}") };
    let report = found(&checkpoint, &tight(smallest)).report;
    assert_eq!(report.bytes, smallest);
    assert!(search(&checkpoint, &tight(smallest - 1), &Silent).is_err());
}

#[test]
fn threads_change_nothing_and_a_table_gives_the_same_recipe_again() {
    let (_folder, checkpoint) = tiny(Variant::Qwen2Tied);
    let options = SearchOptions { rounds: 3, ..options(20.0, Measure::Kl) };
    let [one, three] = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| found(&checkpoint, &options))
    });
    assert_eq!(one.table, three.table);
    assert_eq!(one.text, three.text);
    let again = found(&checkpoint, &SearchOptions { table: Some(one.table.clone()), ..options.clone() });
    assert_eq!(again.table, one.table);
    assert_eq!(again.report.predicted_kl, one.report.predicted_kl);

    let (_folder, other) = tiny(Variant::Qwen2);
    let foreign = SearchOptions { table: Some(one.table), ..options };
    let error = search(&other, &foreign, &Silent).unwrap_err();
    assert!(matches!(error, Error::ForeignTable { .. }), "{error}");
}

#[test]
fn exhaustive_measuring_leaves_nothing_to_follow_from_errors() {
    let (_folder, checkpoint) = tiny(Variant::Llama);
    let some = found(&checkpoint, &options(20.0, Measure::Kl)).table;
    let all = found(&checkpoint, &SearchOptions { exhaustive: true, ..options(20.0, Measure::Kl) }).table;
    let options = |table: &Sensitivity| -> Vec<(f64, Option<f64>, bool)> {
        let each = table.units.iter().flat_map(|unit| &unit.options);
        each.map(|option| (option.error, option.kl, option.measured)).collect()
    };
    assert!(options(&all).iter().all(|&(error, _, measured)| measured || error == 0.0));
    assert!(options(&some).iter().any(|&(.., measured)| !measured));
    for ((error, kl, measured), (_, exact, _)) in options(&some).into_iter().zip(options(&all)) {
        if measured {
            assert_eq!(kl, exact);
        } else if error > 0.0 {
            // One form's divergence says that of another by the ratio of their errors, roughly.
            let ratio = kl.unwrap() / exact.unwrap();
            assert!((0.1..10.0).contains(&ratio), "{kl:?} {exact:?}");
        }
    }
}

#[test]
fn measuring_beats_a_uniform_type_of_more_bytes_on_text_that_was_not_measured() {
    let checkpoint = embedded::checkpoint().unwrap();
    let work = tempfile::tempdir().unwrap();
    let subject = bitmill_pipeline::Subject::load(&checkpoint).unwrap();
    let request = Request { windows: Some(24), tasks: TaskChoice::Nothing, ..Request::default() };
    let material = Material::gather(&subject, &request).unwrap();
    let isa = bitmill_kernels::Isa::best();
    let dense = bitmill_pipeline::Dense::measure(&subject, &material, isa, &Silent).unwrap();
    let measured = |recipe: &Recipe| {
        let plan = Plan::new(&checkpoint, recipe, &PlanOptions::default()).unwrap();
        let path = work.path().join(&recipe.name);
        compress(&checkpoint, &plan, &path, Overwrite::Refuse, &Silent).unwrap();
        let written = Checkpoint::open(&path).unwrap();
        let subject = bitmill_pipeline::Subject::load(&written).unwrap();
        let quality =
            bitmill_pipeline::measure_quality(&subject, &material, Some(&dense), isa, &Silent).unwrap();
        (plan.output_bytes, quality.divergence.unwrap().kl_mean)
    };
    let mixed = found(&checkpoint, &SearchOptions { name: "mixed".into(), ..options(4.5, Measure::Kl) });
    let (mixed_bytes, mixed_kl) = measured(&mixed.recipe);
    let (uniform_bytes, uniform_kl) = measured(&preset("q4_0").unwrap());
    assert!(mixed_bytes < uniform_bytes && mixed_kl < uniform_kl, "{mixed_kl} {uniform_kl}");
    let predicted = mixed.report.predicted_kl.unwrap();
    assert!((0.2..5.0).contains(&(predicted / mixed_kl)), "{predicted} predicted, {mixed_kl} measured");
}

#[test]
fn a_preset_is_searched_before_it_is_planned() {
    let (_folder, checkpoint) = tiny(Variant::Llama);
    let recipe = preset("mixed_20").unwrap();
    let options = PlanOptions::default();
    assert!(matches!(Plan::new(&checkpoint, &recipe, &options), Err(Error::NotSearched { .. })));
    let resolved = resolve(&checkpoint, &recipe, &options, &Silent).unwrap();
    assert_eq!(resolved.recipe.name, "mixed_20");
    assert!(resolved.predicted_kl.is_some_and(|kl| kl >= 0.0));
    let plan = Plan::new(&checkpoint, &resolved.recipe, &options).unwrap();
    assert!(plan.bits_per_weight <= 20.0);
    let plain = preset("q8_0").unwrap();
    assert_eq!(resolve(&checkpoint, &plain, &options, &Silent).unwrap().recipe, plain);
}

#[test]
fn a_quantized_source_is_refused_unless_a_second_loss_is_accepted() {
    let (_folder, checkpoint) = tiny(Variant::Llama);
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("q8_0.gguf");
    let plan = Plan::new(&checkpoint, &preset("q8_0").unwrap(), &PlanOptions::default()).unwrap();
    compress(&checkpoint, &plan, &path, Overwrite::Refuse, &Silent).unwrap();
    let quantized = Checkpoint::open(&path).unwrap();
    let refused = search(&quantized, &options(20.0, Measure::Weights), &Silent).unwrap_err();
    assert!(matches!(refused, Error::AlreadyQuantized { .. }), "{refused}");
    let allowed = SearchOptions {
        plan: PlanOptions { allow_requantize: true, ..PlanOptions::default() },
        ..options(20.0, Measure::Kl)
    };
    assert!(search(&quantized, &allowed, &Silent).is_ok());
}

#[test]
fn a_calibration_text_that_is_too_short_is_named() {
    let (folder, checkpoint) = tiny(Variant::Llama);
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "too short").unwrap();
    let options = SearchOptions { calibration: Some(short), ..options(20.0, Measure::Kl) };
    let error = search(&checkpoint, &options, &Silent).unwrap_err();
    assert!(
        matches!(error, Error::ShortCalibration { .. }) && error.to_string().contains("short.txt"),
        "{error}"
    );
}

#[test]
fn the_experts_of_a_layer_get_one_form_in_gguf_and_may_differ_in_a_folder() {
    for variant in [Variant::Qwen2Moe, Variant::Qwen3Moe] {
        let (_folder, checkpoint) = tiny(variant);
        let work = tempfile::tempdir().unwrap();
        for (format, name) in [(Format::Gguf, "m.gguf"), (Format::CompressedTensors, "m")] {
            let options = SearchOptions { format, ..options(14.0, Measure::Kl) };
            let SearchResult { recipe, report, .. } = found(&checkpoint, &options);
            let is_expert = |tensor: &str| tensor.contains(".mlp.experts.");
            let of_experts: Vec<usize> = report
                .assignment
                .iter()
                .map(|unit| unit.tensors.iter().filter(|tensor| is_expert(tensor)).count())
                .filter(|&count| count > 0)
                .collect();
            let n_experts = checkpoint.config().experts.as_ref().unwrap().count;
            let mixtures = of_experts.iter().sum::<usize>() / (3 * n_experts);
            match format {
                // Three merged tensors a layer.
                Format::Gguf => assert_eq!(of_experts, vec![n_experts; 3 * mixtures]),
                // Gate and up of an expert together, its down alone.
                _ => assert_eq!(of_experts.len(), 2 * mixtures * n_experts),
            }
            assert!(report.measured_kl.is_some_and(|kl| kl > 0.0) && report.bytes <= report.budget_bytes);
            let routers = report.assignment.iter().flat_map(|unit| &unit.tensors);
            assert!(
                routers.into_iter().all(|tensor| !tensor.ends_with("gate.weight")),
                "routers are no units"
            );
            let plan = Plan::new(&checkpoint, &recipe, &PlanOptions::default()).unwrap();
            let path = work.path().join(name);
            compress(&checkpoint, &plan, &path, Overwrite::Refuse, &Silent).unwrap();
            let written = Checkpoint::open(&path).unwrap();
            assert_eq!(bitmill_pipeline::size_on_disk(&written), report.bytes);
            assert!(bitmill_pipeline::Subject::load(&written).is_ok());
        }
    }
}
