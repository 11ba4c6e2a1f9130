//! Sampling beside transformers' logits processors, and what must hold of it whatever they say.

use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Sampler, Sampling};
use bitmill_tensor::Matrix;
use bitmill_testkit::{Golden, noise};

fn compute() -> Compute {
    Compute::new(Isa::best(), Path::Exact)
}

fn row(scores: &[f32]) -> Matrix {
    Matrix::from_vec(1, scores.len(), scores.to_vec())
}

#[test]
fn probabilities_equal_those_of_transformers() {
    let golden = Golden::open("tests/golden/sample.safetensors");
    let manifest = include_str!("golden/sample.json");
    let (logits, seen) = (row(&golden.f32("logits")), golden.tokens("seen"));
    let mut compared = 0;
    for name in golden.names().filter_map(|name| name.strip_prefix("probabilities.")) {
        // `"name": {"temperature": 0.7, …}`, one field a line.
        let (_, settings) = manifest.split_once(&format!("\"{name}\": {{")).unwrap();
        let settings = settings.split_once('}').unwrap().0;
        let value = |key: &str| {
            let (_, value) = settings.split_once(&format!("\"{key}\": "))?;
            value.split([',', '\n']).next()?.trim().parse::<f32>().ok()
        };
        let mut sampler = Sampler::new(Sampling {
            temperature: value("temperature").unwrap(),
            top_k: value("top_k").unwrap_or(0.0) as usize,
            top_p: value("top_p").unwrap_or(1.0),
            min_p: value("min_p").unwrap_or(0.0),
            repetition_penalty: value("repetition_penalty").unwrap_or(1.0),
            seed: 0,
        });
        let expected = golden.f32(&format!("probabilities.{name}"));
        let found = sampler.probabilities(&compute(), &logits, &seen);
        let kept: Vec<u32> = (0u32..).zip(&expected).filter(|(_, p)| **p > 0.0).map(|(id, _)| id).collect();
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), kept, "{name}");
        for (id, probability) in found {
            // f32 on their side: half a dozen roundings of a sum of 777 terms.
            let error = (probability / f64::from(expected[id as usize]) - 1.0).abs();
            assert!(error < 2e-5, "{name}: token {id}, {error:e}");
        }
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn limits_are_simpler_samplers() {
    let logits = row(&noise("scores", 5000));
    let mut best = Vec::new();
    compute().largest(&logits, &mut best);
    let hot = Sampling { temperature: 1.5, ..Sampling::default() };
    for greedy in [
        Sampling::default(),
        Sampling { top_k: 1, ..hot },
        Sampling { top_p: 0.0, ..hot },
        Sampling { min_p: 1.0, ..hot },
        Sampling { temperature: 1e-6, ..hot },
    ] {
        let mut sampler = Sampler::new(greedy);
        for _ in 0..20 {
            assert_eq!(sampler.choose(&compute(), &logits, &[]), best[0], "{greedy:?}");
        }
    }
    let all = Sampler::new(hot).probabilities(&compute(), &logits, &[]);
    for open in [Sampling { top_k: 5000, ..hot }, Sampling { top_k: 9999, min_p: 1e-30, ..hot }] {
        assert_eq!(Sampler::new(open).probabilities(&compute(), &logits, &[]), all, "{open:?}");
    }
    assert!((all.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-12);
}

#[test]
fn a_nucleus_is_the_fewest_tokens_that_suffice() {
    let logits = row(&noise("nucleus", 20_000));
    let open = Sampling { temperature: 1.0, ..Sampling::default() };
    let mut all = Sampler::new(open).probabilities(&compute(), &logits, &[]);
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    for top_p in [0.01, 0.3, 0.77, 0.999] {
        let kept = Sampler::new(Sampling { top_p, ..open }).probabilities(&compute(), &logits, &[]).len();
        let mass = |n: usize| all[..n].iter().map(|(_, p)| p).sum::<f64>();
        assert!(mass(kept) >= f64::from(top_p) - 1e-9 && mass(kept - 1) < f64::from(top_p), "{top_p}");
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = row(&[1.0, -0.5, 2.0, f32::NEG_INFINITY, 0.3, f32::NAN, 1.5]);
    let sampling = Sampling { temperature: 0.9, seed: 11, ..Sampling::default() };
    let expected = Sampler::new(sampling).probabilities(&compute(), &logits, &[]);
    assert_eq!(expected.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2, 4, 6]);
    let mut sampler = Sampler::new(sampling);
    let draws = 20_000;
    let mut counts = [0u32; 7];
    (0..draws).for_each(|_| counts[sampler.choose(&compute(), &logits, &[]) as usize] += 1);
    let chi_squared: f64 = expected
        .iter()
        .map(|&(id, p)| {
            let mean = p * f64::from(draws);
            (f64::from(counts[id as usize]) - mean).powi(2) / mean
        })
        .sum();
    // Four degrees of freedom: one seed in a hundred thousand exceeds 28.5.
    assert!(chi_squared < 28.5, "{chi_squared}");
    assert_eq!(counts[3] + counts[5], 0);
}

#[test]
fn one_seed_gives_one_sequence() {
    let logits = row(&noise("seeded", 300));
    let sampling = Sampling { temperature: 1.2, top_p: 0.95, seed: 42, ..Sampling::default() };
    let draw = |sampling: Sampling, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut sampler = Sampler::new(sampling);
            (0..12).map(|_| sampler.choose(&compute(), &logits, &[])).collect::<Vec<u32>>()
        })
    };
    assert_eq!(draw(sampling, 1), draw(sampling, 3));
    assert_ne!(draw(sampling, 1), draw(Sampling { seed: 43, ..sampling }, 1));
}

#[test]
fn scores_without_a_number_do_not_stop_it() {
    let sampling = Sampling { temperature: 1.0, top_k: 3, top_p: 0.5, min_p: 0.1, ..Sampling::default() };
    let mut sampler = Sampler::new(sampling);
    assert_eq!(sampler.choose(&compute(), &row(&[f32::NAN; 4]), &[9]), 0);
    assert_eq!(sampler.choose(&compute(), &row(&[f32::NEG_INFINITY; 4]), &[]), 0);
    let infinite = row(&[0.0, f32::INFINITY, 1.0, f32::NAN]);
    assert_eq!(sampler.choose(&compute(), &infinite, &[]), 1);
}
