//! Runs that were stopped: the same run goes on to the same bytes, another is refused, a run that would fail again leaves
//! nothing.

mod common;

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use bitmill_checkpoint::{Checkpoint, Overwrite, discard_partial};
use bitmill_pipeline::{CompressRecord, Error, Plan, PlanOptions, Recipe, Silent, compress, preset};
use bitmill_testkit::{Tiny, Variant, tiny};

use common::{StopAfter, contents, logits, names, recipe};

fn run(
    source: &Path,
    recipe: &Recipe,
    options: &PlanOptions,
    target: &Path,
    looks: Option<usize>,
) -> Result<CompressRecord, Error> {
    let checkpoint = Checkpoint::open(source).unwrap();
    let plan = Plan::new(&checkpoint, recipe, options).unwrap();
    match looks {
        Some(looks) => {
            compress(&checkpoint, &plan, target, Overwrite::Refuse, &StopAfter(AtomicUsize::new(looks)))
        }
        None => compress(&checkpoint, &plan, target, Overwrite::Refuse, &Silent),
    }
}

#[test]
fn a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes() {
    let source = tiny(Variant::LlamaWide);
    let depth = "format = \"gguf\"\n[[step]]\nkind = \"depth\"\nlayers = [0]\n\
                 [[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n";
    let split = PlanOptions { split_bytes: Some(200_000), ..PlanOptions::default() };
    let sharded = PlanOptions { shard_bytes: 200_000, ..PlanOptions::default() };
    let cases = [
        ("m.gguf", preset("q4_k_m").unwrap(), PlanOptions::default()),
        ("m.gguf", preset("q8_0").unwrap(), split),
        ("m.gguf", recipe(depth), PlanOptions::default()),
        ("m", preset("w4a16_g64_asym").unwrap(), sharded),
        ("m", preset("prune_50_sparse").unwrap(), PlanOptions::default()),
    ];
    for (name, recipe, options) in &cases {
        let whole = tempfile::tempdir().unwrap();
        let record = run(source.path(), recipe, options, &whole.path().join(name), None).unwrap();
        assert_eq!(record.resumed, 0);
        let expected = contents(whole.path());
        let tensors = record.document["tensors"].as_array().unwrap().len();
        // In the first tensor, among the others, and while reading back.
        for looks in [0, 1, 5, tensors - 1, tensors + 2] {
            let out = tempfile::tempdir().unwrap();
            let target = out.path().join(name);
            let error = run(source.path(), recipe, options, &target, Some(looks)).unwrap_err();
            assert!(matches!(error, Error::Stopped { .. }), "{error}");
            assert!(error.hint().unwrap().contains("--restart"));
            assert_eq!(names(out.path()), [format!(".{name}.bitmill-partial")]);
            let record = run(source.path(), recipe, options, &target, None).unwrap();
            assert_eq!(record.resumed, looks.min(tensors), "{}: stopped at look {looks}", recipe.name);
            assert!(contents(out.path()) == expected, "{}: stopped at look {looks}", recipe.name);
        }
        // Again and again, seven tensors a time.
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join(name);
        for _ in 0..tensors.div_ceil(7) {
            run(source.path(), recipe, options, &target, Some(7)).unwrap_err();
        }
        assert_eq!(run(source.path(), recipe, options, &target, None).unwrap().resumed, tensors);
        assert!(contents(out.path()) == expected, "{}", recipe.name);
    }
}

#[test]
fn a_journal_that_was_torn_loses_its_last_tensor_and_nothing_else() {
    let source = tiny(Variant::Qwen2);
    let recipe = preset("q8_0").unwrap();
    let options = PlanOptions::default();
    let whole = tempfile::tempdir().unwrap();
    run(source.path(), &recipe, &options, &whole.path().join("m.gguf"), None).unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.gguf");
    run(source.path(), &recipe, &options, &target, Some(9)).unwrap_err();
    let journal = out.path().join(".m.gguf.bitmill-partial/journal");
    let bytes = std::fs::read(&journal).unwrap();
    std::fs::write(&journal, &bytes[..bytes.len() - 5]).unwrap();
    let record = run(source.path(), &recipe, &options, &target, None).unwrap();
    assert_eq!(record.resumed, 8);
    assert!(contents(out.path()) == contents(whole.path()));
}

#[test]
fn bytes_that_changed_in_what_was_left_are_found_when_it_is_read_back() {
    let source = tiny(Variant::Qwen2);
    let recipe = preset("q8_0").unwrap();
    let options = PlanOptions::default();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.gguf");
    run(source.path(), &recipe, &options, &target, Some(9)).unwrap_err();
    let staged = out.path().join(".m.gguf.bitmill-partial/output/m.gguf");
    let checkpoint = Checkpoint::open(&staged).unwrap();
    let tensor = checkpoint.tensor("model.layers.0.mlp.down_proj.weight").unwrap();
    let bitmill_tensor::WeightData::Block { bytes, .. } = tensor.view().data() else { panic!("blocks") };
    let mut file = std::fs::read(&staged).unwrap();
    let at = file.windows(bytes.len()).position(|window| window == bytes).unwrap();
    file[at] ^= 1;
    drop((tensor, checkpoint));
    std::fs::write(&staged, file).unwrap();
    let error = run(source.path(), &recipe, &options, &target, None).unwrap_err();
    assert!(error.to_string().contains("down_proj"), "{error}");
    // It would be found again: nothing of it is kept.
    assert!(names(out.path()).is_empty());
}

#[test]
fn another_recipe_or_model_does_not_go_on_with_what_was_left() {
    let source = Tiny::new(Variant::Qwen2).write();
    let options = PlanOptions::default();
    let q8 = preset("q8_0").unwrap();
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.gguf");
    run(source.path(), &q8, &options, &target, Some(5)).unwrap_err();

    let said = run(source.path(), &preset("q4_0").unwrap(), &options, &target, None).unwrap_err().to_string();
    assert!(said.contains("another recipe") && said.contains("q8_0") && said.contains("q4_0"), "{said}");
    let split = PlanOptions { split_bytes: Some(100_000), ..options.clone() };
    let said = run(source.path(), &q8, &split, &target, None).unwrap_err().to_string();
    assert!(said.contains("another layout of the output"), "{said}");

    let weights = source.path().join("model.safetensors");
    let file = std::fs::File::options().write(true).open(&weights).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
    let said = run(source.path(), &q8, &options, &target, None).unwrap_err().to_string();
    assert!(said.contains("another model (`model.safetensors: "), "{said}");

    // As it was, it goes on; discarded, it begins anew.
    file.set_modified(before).unwrap();
    assert_eq!(
        run(source.path(), &q8, &options, &target, Some(1)).unwrap_err().to_string().find("stopped"),
        Some(0)
    );
    assert!(discard_partial(&target).unwrap());
    assert_eq!(run(source.path(), &q8, &options, &target, None).unwrap().resumed, 0);
}

#[test]
fn a_split_model_is_the_whole_one_and_may_not_be_written_over_itself() {
    let source = tiny(Variant::Qwen2);
    let q8 = preset("q8_0").unwrap();
    let split = PlanOptions { split_bytes: Some(60_000), ..PlanOptions::default() };
    let out = tempfile::tempdir().unwrap();
    let (whole, parts) = (out.path().join("whole.gguf"), out.path().join("parts.gguf"));
    run(source.path(), &q8, &PlanOptions::default(), &whole, None).unwrap();
    let record = run(source.path(), &q8, &split, &parts, None).unwrap();
    let files = &record.written.files;
    assert!(files.len() > 2, "{files:?}");
    let plan = Plan::new(&Checkpoint::open(source.path()).unwrap(), &q8, &split).unwrap();
    assert_eq!(
        files.iter().map(|(path, _)| std::fs::metadata(path).unwrap().len()).sum::<u64>(),
        plan.output_bytes
    );
    for (part, _) in files {
        assert_eq!(logits(part), logits(&whole), "{}", part.display());
    }
    // Any part is the source, under whichever name the output would replace it.
    let checkpoint = Checkpoint::open(&files[0].0).unwrap();
    let copy = bitmill_pipeline::conversion(bitmill_pipeline::Format::Gguf, None);
    for (target, options) in [(&parts, &split), (&files[1].0, &PlanOptions::default())] {
        let plan = Plan::new(&checkpoint, &copy, options).unwrap();
        let error = compress(&checkpoint, &plan, target, Overwrite::Force, &Silent).unwrap_err();
        assert!(matches!(error, Error::OutputIsSource { .. }), "{}: {error}", target.display());
    }
}

#[test]
fn a_folder_that_holds_the_source_is_not_replaced() {
    let source = tiny(Variant::Qwen2);
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("models");
    std::fs::create_dir(&folder).unwrap();
    // What makes it look like a checkpoint.
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let file = folder.join("m.gguf");
    run(source.path(), &preset("q8_0").unwrap(), &PlanOptions::default(), &file, None).unwrap();
    let checkpoint = Checkpoint::open(&file).unwrap();
    let copy = bitmill_pipeline::conversion(bitmill_pipeline::Format::HuggingFace, None);
    let plan = Plan::new(&checkpoint, &copy, &PlanOptions::default()).unwrap();
    let error = compress(&checkpoint, &plan, &folder, Overwrite::Force, &Silent).unwrap_err();
    assert!(matches!(error, Error::OutputIsSource { .. }), "{error}");
    assert!(file.exists());
}
