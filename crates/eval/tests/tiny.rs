//! Edges, on models of random weights.

use std::path::Path as FilePath;

use bitmill_checkpoint::Checkpoint;
use bitmill_eval::{DenseReference, Error, against_dense, perplexity, tasks};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Model, Sequence, Want};
use bitmill_tensor::Matrix;
use bitmill_testkit::{Float, Tiny, Variant, tiny};
use bitmill_text::{Task, Tokenizer, Windows};

fn open(folder: &FilePath) -> (Model, Tokenizer, Compute) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    (Model::load(&checkpoint).unwrap(), tokenizer, Compute::new(Isa::best(), Path::Exact))
}

fn some_windows(length: usize, windows: u32) -> Windows {
    Windows::new((0..length as u32 * windows).map(|i| 3 + i * 37 % 280).collect(), length, None)
}

fn task(lines: &str) -> [Task; 1] {
    [Task::from_jsonl("t", lines).unwrap()]
}

#[test]
fn second_halves_are_scored_after_bos_where_the_model_asks_for_it() {
    let folder = tiny(Variant::Llama);
    let windows = some_windows(16, 3);
    let (model, _, compute) = open(folder.path());
    assert!(!model.config().add_bos);
    let plain = perplexity(&model, &compute, &windows, &|_, _| ()).unwrap();
    let bos = model.config().bos.unwrap();
    let mut after_bos = windows.clone();
    after_bos.tokens.chunks_mut(16).for_each(|window| window[0] = bos);
    let expected = perplexity(&model, &compute, &after_bos, &|_, _| ()).unwrap();
    assert_ne!(plain.second_half.mean, expected.second_half.mean);

    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        r#"{"add_bos_token": true, "bos_token": "<|begin|>"}"#,
    )
    .unwrap();
    let (model, tokenizer, _) = open(folder.path());
    assert!(model.config().add_bos);
    let steps = std::cell::RefCell::new(Vec::new());
    let found =
        perplexity(&model, &compute, &windows, &|done, of| steps.borrow_mut().push((done, of))).unwrap();
    assert_eq!((found.all, found.second_half.targets), (plain.all, 3 * 7));
    let error = (found.second_half.mean - expected.second_half.mean).abs();
    assert!(error < 1e-6, "{error:e}: other rows in the last products, so other sums");
    assert_eq!(*steps.borrow(), [(3, 6), (6, 6)]);
    assert_eq!(tokenizer.encode_document("").unwrap(), [bos]);

    let reference = DenseReference::build(&model, &compute, &windows, 1 << 20, &|_, _| ()).unwrap();
    assert_eq!(reference.perplexity(), &found);
    assert_eq!(against_dense(&model, &compute, &reference, &|_, _| ()).unwrap().0, found);
}

#[test]
fn choices_score_as_if_each_were_run_alone() {
    let folder = tiny(Variant::Qwen2);
    let (model, tokenizer, compute) = open(folder.path());
    let lines = r#"{"context": "the station", "choices": [" and the thing", " of", " on a red hat"], "answer": 0}
                   {"prompt": "", "choices": ["in there", "那里"], "answer": 1}"#;
    let answers = tasks(&model, &compute, &tokenizer, &task(lines), None, &|_, _| ()).unwrap();
    for (answer, (context, choices)) in answers[0].answers.iter().zip([
        ("the station", vec![" and the thing", " of", " on a red hat"]),
        ("", vec!["in there", "那里"]),
    ]) {
        let mut context = tokenizer.encode(context).unwrap();
        if context.is_empty() {
            context.push(tokenizer.bos().unwrap());
        }
        let mut by_bytes = Vec::new();
        for (score, choice) in answer.scores.iter().zip(choices) {
            let choice_tokens = tokenizer.encode(choice).unwrap();
            let tokens = [context.as_slice(), &choice_tokens].concat();
            let (mut cache, mut logits, mut nlls) = (model.new_cache(), Matrix::default(), Vec::new());
            let mut batch = [Sequence { tokens: &tokens, cache: &mut cache, want: Want::All }];
            model.forward(&compute, &mut batch, &mut logits).unwrap();
            let targets = [&tokens[1..], &[0]].concat();
            compute.cross_entropy(&logits, &targets, &mut nlls);
            let alone = -nlls[context.len() - 1..tokens.len() - 1].iter().sum::<f64>();
            assert!((score - alone).abs() < 1e-4, "{choice}: {score} where {alone} is expected");
            by_bytes.push(score / choice.len() as f64);
        }
        assert!(by_bytes.iter().all(|score| *score <= by_bytes[answer.chosen_norm]));
        assert!(answer.scores.iter().all(|score| *score <= answer.scores[answer.chosen]));
    }
}

#[test]
fn windows_that_cannot_be_scored_are_errors() {
    let folder = tiny(Variant::Qwen2);
    let (model, _, compute) = open(folder.path());
    let run = |windows: &Windows| perplexity(&model, &compute, windows, &|_, _| ()).unwrap_err();
    assert!(matches!(run(&some_windows(16, 0)), Error::NoWindows { length: 16 }));
    assert!(matches!(run(&some_windows(2, 4)), Error::WindowTooShort { length: 2 }));
    let error = run(&some_windows(100_000, 1));
    assert!(error.hint().is_some_and(|hint| hint.contains("windows of at most")), "{error}");
    // The last token of a window is a target only.
    let mut windows = some_windows(16, 2);
    windows.tokens[31] = 320;
    assert!(run(&windows).to_string().contains("token 320 in a model of 320 tokens"));
    let error = DenseReference::build(&model, &compute, &some_windows(16, 0), 0, &|_, _| ()).unwrap_err();
    assert!(matches!(error, Error::NoWindows { .. }));
}

#[test]
fn logits_that_are_no_numbers_are_an_error_naming_the_window() {
    let folder = Tiny::new(Variant::Qwen2).float(Float::F32).write();
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    // The last tensor of the file is the head or the final norm: every logit sees it.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let (model, tokenizer, compute) = open(folder.path());
    let error = perplexity(&model, &compute, &some_windows(16, 2), &|_, _| ()).unwrap_err();
    assert!(matches!(error, Error::NotFiniteInWindow { window: 0 }), "{error}");
    let item = task(r#"{"context": "a", "choices": ["b", "c"], "answer": 0}"#);
    let error = tasks(&model, &compute, &tokenizer, &item, None, &|_, _| ()).unwrap_err();
    assert!(matches!(error, Error::NotFiniteInItem { item: 0, .. }), "{error}");
}

#[test]
fn an_item_too_long_for_the_model_is_named() {
    let folder = tiny(Variant::Qwen2);
    let (model, tokenizer, compute) = open(folder.path());
    let long = "x ".repeat(model.config().max_positions);
    let lines = format!(
        "{{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}}\n\
         {{\"context\": \"{long}\", \"choices\": [\"b\", \"c\"], \"answer\": 0}}"
    );
    let error = tasks(&model, &compute, &tokenizer, &task(&lines), None, &|_, _| ()).unwrap_err();
    assert!(error.to_string().starts_with("task `t`, item 1: "), "{error}");
}

#[test]
fn models_of_different_vocabularies_are_not_compared() {
    let (folder, millet) = (tiny(Variant::Qwen2), bitmill_testkit::millet().join("model"));
    let (dense, _, compute) = open(folder.path());
    let (other, ..) = open(&millet);
    let reference = DenseReference::build(&dense, &compute, &some_windows(16, 1), 0, &|_, _| ()).unwrap();
    let error = against_dense(&other, &compute, &reference, &|_, _| ()).unwrap_err();
    assert!(matches!(error, Error::OtherVocabulary { dense: 320, found: 2048 }));
}
