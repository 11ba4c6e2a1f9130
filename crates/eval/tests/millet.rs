//! Against transformers, on the embedded model: `tools/golden/eval.py` made the golden values.

use bitmill_checkpoint::{Checkpoint, Region};
use bitmill_eval::{Budget, DenseReference, against_dense, fast_path_kl, perplexity, quality, tasks};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::Model;
use bitmill_testkit::millet;
use bitmill_text::{Task, Tokenizer, Windows};
use serde_json::Value;

const WINDOW: usize = 256;
const TASKS: [&str; 5] = ["facts", "sentiment", "sentiment_zh", "story", "sums"];

struct Millet {
    model: Model,
    tokenizer: Tokenizer,
    compute: Compute,
}

impl Millet {
    fn open() -> Self {
        Self::of(&Checkpoint::open(&millet().join("model")).unwrap())
    }

    fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            model: Model::load(checkpoint).unwrap(),
            tokenizer: Tokenizer::from_checkpoint(checkpoint).unwrap(),
            compute: Compute::new(Isa::best(), Path::Exact),
        }
    }

    /// The model whose layers' matrices lost the low 4 of bf16's 7 mantissa bits.
    fn rounded() -> Self {
        let mut bytes = std::fs::read(millet().join("model/model.safetensors")).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        for (name, tensor) in header.as_object().unwrap() {
            if !(name.contains(".layers.")
                && tensor["shape"].as_array().is_some_and(|shape| shape.len() == 2))
            {
                continue;
            }
            assert_eq!(tensor["dtype"], "BF16");
            let offset = |end: usize| tensor["data_offsets"][end].as_u64().unwrap() as usize;
            let data = &mut bytes[8 + header_len..][offset(0)..offset(1)];
            data.chunks_exact_mut(2).for_each(|weight| weight[0] &= 0xf0);
        }
        let read = |name: &str| Region::from_vec(std::fs::read(millet().join("model").join(name)).unwrap());
        let files = ["config.json", "tokenizer.json", "tokenizer_config.json"]
            .map(|name| (name.to_owned(), read(name)));
        let weights = ("model.safetensors".to_owned(), Region::from_vec(bytes));
        Self::of(&Checkpoint::from_files("rounded", files.into_iter().chain([weights]).collect()).unwrap())
    }

    fn windows(&self, limit: Option<usize>) -> Windows {
        let text = std::fs::read_to_string(millet().join("text/eval.txt")).unwrap();
        Windows::of_text(&self.tokenizer, &text, WINDOW, limit).unwrap()
    }
}

fn task_files() -> Vec<Task> {
    TASKS.map(|name| Task::read(&millet().join(format!("tasks/{name}.jsonl"))).unwrap()).into()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/eval.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[track_caller]
fn close(found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{found:e} where {expected:e} ± {tolerance:e} is expected"
    );
}

#[test]
fn the_first_windows_likelihoods_equal_transformers() {
    let millet = Millet::open();
    let golden = golden();
    let (all, halves) = (numbers(&golden["window_nll"]), numbers(&golden["window_nll_second_half"]));
    let windows = millet.windows(Some(all.len()));
    for window in 0..all.len() {
        let alone = Windows::new(windows.get(window).to_vec(), WINDOW, None);
        let score = perplexity(&millet.model, &millet.compute, &alone, &|_, _| ()).unwrap();
        // f32 forward passes with sums in different orders: about 1e-6 a token, 255 tokens.
        close(score.all.mean * 255.0, all[window], 1e-3);
        close(score.second_half.mean * 127.0, halves[window], 1e-3);
        assert_eq!((score.all.targets, score.second_half.targets), (255, 127));
    }
    let score = perplexity(&millet.model, &millet.compute, &windows, &|_, _| ()).unwrap();
    close(score.all.mean * 4.0 * 255.0, all.iter().sum(), 4e-3);
    let means: Vec<f64> = all.iter().map(|nll| nll / 255.0).collect();
    close(score.all.stderr, bitmill_eval::standard_error(&means), 1e-5);
    close(score.all.perplexity_stderr(), score.all.stderr * score.all.mean.exp(), 1e-12);
}

#[test]
fn every_choices_score_equals_transformers() {
    let millet = Millet::open();
    let golden = golden();
    let found = tasks(&millet.model, &millet.compute, &millet.tokenizer, &task_files(), Some(20), &|_, _| ())
        .unwrap();
    for task in found {
        let expected = golden["tasks"][&task.name].as_array().unwrap();
        assert_eq!(task.answers.len(), expected.len());
        for (answer, expected) in task.answers.iter().zip(expected) {
            for (score, expected) in answer.scores.iter().zip(numbers(expected)) {
                // As above; unlikely choices have scores of −30 with proportionally larger logits.
                close(*score, expected, 1e-4 + 1e-5 * expected.abs());
            }
        }
    }
}

#[test]
fn divergence_from_dense_equals_transformers_spooled_or_not() {
    let (dense, rounded) = (Millet::open(), Millet::rounded());
    let golden = golden();
    let windows = dense.windows(Some(4));
    let compare = |spool_bytes| {
        let reference =
            DenseReference::build(&dense.model, &dense.compute, &windows, spool_bytes, &|_, _| ()).unwrap();
        assert_eq!(reference.is_spooled(), spool_bytes > 0);
        against_dense(&rounded.model, &rounded.compute, &reference, &|_, _| ()).unwrap()
    };
    let (score, divergence) = compare(1 << 30);
    close(score.all.mean * 4.0 * 255.0, numbers(&golden["rounded_window_nll"]).iter().sum(), 4e-3);
    // Divergence is quadratic in the logits' differences, here about 1e-2 with an error of 1e-5.
    let kl = |name: &str| golden["kl"][name].as_f64().unwrap();
    close(divergence.kl_mean, kl("mean"), 0.01 * kl("mean"));
    close(divergence.kl_median, kl("p50"), 0.03 * kl("p50") + 1e-9);
    close(divergence.kl_p90, kl("p90"), 0.01 * kl("p90"));
    close(divergence.kl_p99, kl("p99"), 0.01 * kl("p99"));
    assert!(divergence.kl_stderr > 0.0 && divergence.kl_stderr < divergence.kl_mean);
    // A tie may fall the other way once in these 1020 targets.
    close(divergence.top1_agreement, golden["top1_agreement"].as_f64().unwrap(), 1.5 / 1020.0);

    assert_eq!(compare(0), (score, divergence), "the same bits from the spool and from running dense again");
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let millet = Millet::open();
    let windows = millet.windows(Some(2));
    let reference =
        DenseReference::build(&millet.model, &millet.compute, &windows, 1 << 30, &|_, _| ()).unwrap();
    let (score, divergence) = against_dense(&millet.model, &millet.compute, &reference, &|_, _| ()).unwrap();
    assert_eq!(&score, reference.perplexity());
    assert_eq!((divergence.kl_mean, divergence.kl_p99, divergence.top1_agreement), (0.0, 0.0, 1.0));
    // Plain floats are computed alike on both paths.
    assert_eq!(fast_path_kl(&millet.model, Isa::best(), &windows).unwrap(), 0.0);
}

#[test]
fn threads_change_no_bit() {
    let millet = Millet::open();
    let windows = millet.windows(Some(2));
    let measure = || {
        let reference =
            DenseReference::build(&millet.model, &millet.compute, &windows, 0, &|_, _| ()).unwrap();
        let rounded = Millet::rounded();
        let against = against_dense(&rounded.model, &rounded.compute, &reference, &|_, _| ()).unwrap();
        let sums = &task_files()[4..];
        let answers =
            tasks(&millet.model, &millet.compute, &millet.tokenizer, sums, Some(20), &|_, _| ()).unwrap();
        (against, answers)
    };
    let with =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(measure);
    assert_eq!(with(1), with(3));
}

#[test]
#[ignore = "slow: 2 min in a debug build; the reference figures of the embedded model"]
fn the_whole_text_and_all_tasks_equal_the_reference() {
    let millet = Millet::open();
    let budget = Budget::default();
    let start = std::time::Instant::now();
    let score =
        perplexity(&millet.model, &millet.compute, &millet.windows(budget.windows), &|_, _| ()).unwrap();
    let text = start.elapsed();
    let answers =
        tasks(&millet.model, &millet.compute, &millet.tokenizer, &task_files(), budget.items, &|_, _| ())
            .unwrap();
    eprintln!("perplexity in {text:.1?}, tasks in {:.1?}", start.elapsed() - text);
    let quality = quality(&score, None, &answers, None).unwrap();
    assert_eq!((quality.targets, quality.windows, quality.window), (44115, 173, 256));
    close(quality.perplexity, 2.2695, 0.001 * 2.2695);
    eprintln!("{quality:#?}");
    for (name, items, accuracy) in [
        ("facts", 600, 1.0),
        ("sentiment", 600, 1.0),
        ("sentiment_zh", 300, 0.9967),
        ("story", 500, 0.61),
        ("sums", 400, 0.925),
    ] {
        let score = quality.tasks.get(name).unwrap();
        assert_eq!(score.n, items);
        close(score.accuracy, accuracy, 1.01 / items as f64);
    }
}
