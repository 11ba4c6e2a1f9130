//! Baselines: what they measure against the exact divergence, their files, and files that lie.

use bitmill_checkpoint::Checkpoint;
use bitmill_eval::{
    Answer, Baseline, BaselineHeader, BaselineTask, DenseReference, Error, TaskAnswers, against_dense,
};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::Model;
use bitmill_testkit::{Variant, millet, tiny};
use bitmill_text::{Tokenizer, Windows};

fn compute() -> Compute {
    Compute::new(Isa::best(), Path::Exact)
}

fn header(tasks: Vec<BaselineTask>) -> BaselineHeader {
    BaselineHeader {
        version: "0".into(),
        created: "2026-01-01T00:00:00Z".into(),
        model: "m".into(),
        source: "m".into(),
        fingerprint: "0".into(),
        vocab_size: 0,
        text: "t".into(),
        window: 0,
        windows: 0,
        entries: 0,
        kl_floor: 0.0,
        tasks,
    }
}

/// millet with every weight matrix's values rounded to a few bits.
fn rounded_millet(bits: i32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(millet().join("model")).unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        if file.ends_with("model.safetensors") {
            let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            for value in bytes[begin..].chunks_exact_mut(2) {
                // bf16: some of the seven bits of the mantissa.
                let mask = !((1_u16 << (7 - bits)) - 1);
                let kept = u16::from_le_bytes([value[0], value[1]]) & mask;
                value.copy_from_slice(&kept.to_le_bytes());
            }
        }
        std::fs::write(folder.path().join(file.file_name().unwrap()), bytes).unwrap();
    }
    folder
}

#[test]
fn one_percent_of_the_logits_gives_the_divergence_within_one_percent() {
    let checkpoint = Checkpoint::open(&millet().join("model")).unwrap();
    let dense = Model::load(&checkpoint).unwrap();
    let text = std::fs::read_to_string(millet().join("text/eval.txt")).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let windows = Windows::of_text(&tokenizer, &text, 256, Some(32)).unwrap();
    let baseline =
        Baseline::record(header(Vec::new()), &dense, &compute(), &windows, Vec::new(), &|_, _| ()).unwrap();
    let bytes = baseline.to_bytes().unwrap();
    assert!(baseline.share(bytes.len()) <= 0.01, "{}", baseline.share(bytes.len()));
    assert!(baseline.share(bytes.len()) > 0.009, "{}", baseline.share(bytes.len()));
    assert!(baseline.header.kl_floor < 1e-6, "{}", baseline.header.kl_floor);
    let read = Baseline::from_bytes("b", &bytes).unwrap();
    assert_eq!(read, baseline);

    let itself = read.drift(&dense, &compute(), &|_, _| ()).unwrap();
    assert_eq!((itself.nll_difference, itself.top1_agreement), (0.0, 1.0));
    assert!(itself.kl_mean < 1e-12, "{}", itself.kl_mean);
    assert_eq!(read.noise(&dense, &compute(), 2).unwrap(), 0.0);

    let reference = DenseReference::build(&dense, &compute(), &windows, 1 << 30, &|_, _| ()).unwrap();
    let folder = rounded_millet(4);
    let model = Model::load(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    let drift = read.drift(&model, &compute(), &|_, _| ()).unwrap();
    let (score, exact) = against_dense(&model, &compute(), &reference, &|_, _| ()).unwrap();
    let error = drift.kl_mean / exact.kl_mean - 1.0;
    assert!(error.abs() < 0.01, "{} where {} is exact: {error:.5}", drift.kl_mean, exact.kl_mean);
    assert!((drift.kl_mean - exact.kl_mean).abs() < 4.0 * drift.kl_sampling_stderr);
    assert_eq!(drift.top1_agreement, exact.top1_agreement);
    assert!((drift.perplexity / score.all.perplexity() - 1.0).abs() < 1e-9);
    let difference = drift.perplexity.ln() - drift.dense_perplexity.ln();
    assert!((difference - drift.nll_difference).abs() < 1e-6);
    assert!(drift.kl_stderr > 0.0 && drift.nll_difference_stderr > 0.0);
}

fn small() -> (Baseline, tempfile::TempDir) {
    let folder = tiny(Variant::Qwen2);
    let model = Model::load(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    let windows = Windows::new((0..60).map(|i| i * 37 % 320).collect(), 12, None);
    let answer = |chosen| Answer { scores: Vec::new(), chosen, chosen_norm: 1, right: 1 };
    let answers = vec![TaskAnswers { name: "t".into(), answers: vec![answer(0), answer(1)] }];
    let task = BaselineTask { name: "t".into(), file: None, items: 2, fingerprint: "0".into() };
    let baseline =
        Baseline::record(header(vec![task]), &model, &compute(), &windows, answers, &|_, _| ()).unwrap();
    (baseline, folder)
}

#[test]
fn files_that_were_cut_or_changed_are_refused() {
    let (baseline, _folder) = small();
    let bytes = baseline.to_bytes().unwrap();
    assert_eq!(Baseline::from_bytes("b", &bytes).unwrap(), baseline);
    for length in (0..bytes.len()).step_by(7) {
        let error = Baseline::from_bytes("cut.bl", &bytes[..length]).unwrap_err();
        assert!(matches!(&error, Error::Baseline { file, .. } if file == "cut.bl"), "{length}: {error}");
        assert!(error.hint().is_some());
    }
    for at in (0..bytes.len()).step_by(11) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x40;
        assert!(Baseline::from_bytes("b", &changed).is_err(), "byte {at}");
    }
}

#[test]
fn files_that_lie_are_refused_though_their_checksum_is_right() {
    let (baseline, _folder) = small();
    let lie = |change: &dyn Fn(&mut Baseline)| {
        let mut changed = baseline.clone();
        change(&mut changed);
        let error = Baseline::from_bytes("b", &changed.to_bytes().unwrap()).unwrap_err();
        assert!(matches!(error, Error::Baseline { .. }), "{error}");
    };
    lie(&|b| b.header.windows = usize::MAX / 2);
    lie(&|b| b.header.windows = 400_000);
    lie(&|b| b.header.window = 2);
    lie(&|b| b.header.windows = 0);
    lie(&|b| b.header.vocab_size = 0);
    lie(&|b| b.header.vocab_size = 10);
    lie(&|b| b.header.entries = 1);
    lie(&|b| b.header.tasks[0].items = 1 << 40);
    lie(&|b| b.header.tasks[0].items = 1);
    lie(&|b| b.windows.tokens[3] = 5000);
}

#[test]
fn another_vocabulary_is_refused() {
    let (mut baseline, folder) = small();
    baseline.header.vocab_size = 321;
    let model = Model::load(&Checkpoint::open(folder.path()).unwrap()).unwrap();
    assert!(matches!(
        baseline.drift(&model, &compute(), &|_, _| ()),
        Err(Error::OtherVocabulary { dense: 321, found: 320 })
    ));
}
