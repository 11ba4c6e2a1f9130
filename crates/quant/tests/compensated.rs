//! Compensated blocks: what they say is what they decode to, and their errors make up for each other.

mod weights;

use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_quant::{
    BlockEncoder, BlockSearch, Compensation, CompensationRecord, Error, Importance, can_compensate,
    quantize_blocks, quantize_blocks_compensated,
};
use bitmill_tensor::{BlockType, WeightData, WeightView};
use weights::Random;

const BLOCKS: [BlockType; 12] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_K,
    BlockType::Q5_K,
    BlockType::Q6_K,
    BlockType::IQ4_NL,
    BlockType::IQ4_XS,
];

/// A Hessian and the factor of its damped inverse.
struct Statistics {
    n: usize,
    hessian: Vec<f32>,
    upper: Vec<f32>,
    damping: f32,
}

impl Statistics {
    /// U with H⁻¹ = UᵀU, naively: H = M·Mᵀ from the last column back, U = M⁻¹.
    fn of(hessian: Vec<f32>, n: usize, damping: f64) -> Self {
        let mean = (0..n).map(|i| f64::from(hessian[i * n + i])).sum::<f64>() / n as f64;
        let mut m: Vec<f64> = hessian.iter().map(|&value| f64::from(value)).collect();
        for i in 0..n {
            m[i * n + i] += if mean > 0.0 { damping * mean } else { 1.0 };
        }
        for j in (0..n).rev() {
            let pivot = m[j * n + j].sqrt();
            m[j * n..=j * n + j].iter_mut().for_each(|value| *value /= pivot);
            for i in 0..j {
                let by = m[j * n + i];
                for k in 0..=i {
                    m[i * n + k] -= by * m[j * n + k];
                }
            }
        }
        let mut upper = vec![0.0; n * n];
        for row in 0..n {
            let mut y = vec![0.0; n];
            y[row] = 1.0 / m[row * n + row];
            for k in row + 1..n {
                let sum: f64 = (row..k).map(|i| m[k * n + i] * y[i]).sum();
                y[k] = -sum / m[k * n + k];
            }
            for k in row..n {
                upper[row * n + k] = y[k] as f32;
            }
        }
        Self { n, hessian, upper, damping: damping as f32 }
    }

    /// Of `tokens` inputs of `n` that share some directions and have heavy tails.
    fn correlated(n: usize, tokens: usize) -> Self {
        let mut random = Random::new(7);
        let shared = 24;
        let mixing: Vec<f32> = (0..shared * n).map(|_| random.normal()).collect();
        let scales: Vec<f32> = (0..n).map(|_| (0.8 * random.normal()).exp()).collect();
        let mut hessian = vec![0.0f32; n * n];
        for _ in 0..tokens {
            let loud = (0.5 * random.normal()).exp();
            let directions: Vec<f32> = (0..shared).map(|_| random.normal()).collect();
            let x: Vec<f32> = (0..n)
                .map(|c| {
                    let common: f32 = directions.iter().zip(&mixing[c * shared..]).map(|(d, m)| d * m).sum();
                    loud * scales[c] * (0.3 * common + random.normal())
                })
                .collect();
            for (row, &by) in hessian.chunks_mut(n).zip(&x) {
                row.iter_mut().zip(&x).for_each(|(sum, x)| *sum += 2.0 / tokens as f32 * by * x);
            }
        }
        Self::of(hessian, n, 0.01)
    }

    /// Of inputs that have nothing to do with each other.
    fn diagonal(diagonal: &[f32]) -> Self {
        let n = diagonal.len();
        let mut hessian = vec![0.0; n * n];
        diagonal.iter().enumerate().for_each(|(i, &value)| hessian[i * n + i] = value);
        Self::of(hessian, n, 1e-6)
    }

    fn error(&self, weight: &[f32], decided: &[f32]) -> f64 {
        let n = self.n;
        let mut sum = 0.0;
        for (weight, decided) in weight.chunks(n).zip(decided.chunks(n)) {
            let difference: Vec<f64> =
                weight.iter().zip(decided).map(|(&a, &b)| f64::from(b) - f64::from(a)).collect();
            for (row, by) in self.hessian.chunks(n).zip(&difference) {
                sum += by * row.iter().zip(&difference).map(|(&h, d)| f64::from(h) * d).sum::<f64>();
            }
        }
        sum
    }
}

struct Done {
    bytes: Vec<u8>,
    decided: Vec<f32>,
    record: CompensationRecord,
}

fn compensated(isa: Isa, block: BlockType, weight: &[f32], of: &Statistics, sweeps: usize) -> Done {
    let (mut bytes, mut decided) = (vec![7; 3], vec![f32::NAN; weight.len()]);
    let options = Compensation { damping: of.damping, sweeps };
    let record = quantize_blocks_compensated(
        isa,
        block,
        weight,
        of.n,
        &of.hessian,
        &of.upper,
        &options,
        &mut bytes,
        &mut decided,
    )
    .unwrap();
    Done { bytes, decided, record }
}

fn decoded(block: BlockType, bytes: &[u8], n: usize) -> Vec<f32> {
    let rows = bytes.len() / (n / block.weights() * block.bytes());
    let view = WeightView::new(rows, n, WeightData::Block { block, bytes }).unwrap();
    let mut out = vec![0.0; rows * n];
    dequantize_rows(Isa::scalar(), &view, 0, &mut out);
    out
}

/// What llama-quantize writes with an importance matrix of the same inputs.
fn weighed(block: BlockType, weight: &[f32], of: &Statistics, search: BlockSearch) -> Vec<f32> {
    let importance: Vec<f32> = (0..of.n).map(|i| of.hessian[i * of.n + i]).collect();
    let encoder = BlockEncoder { block, importance: Some(Importance::new(&importance).unwrap()), search };
    let mut bytes = vec![0; weight.len() / block.weights() * block.bytes()];
    quantize_blocks(&encoder, of.n, weight, &mut bytes).unwrap();
    decoded(block, &bytes, of.n)
}

#[test]
fn correlated_inputs_cost_less_than_with_an_importance_matrix() {
    let of = Statistics::correlated(512, 1024);
    let weight = weights::fill("heavy_tailed", 3, 20 * of.n);
    for block in BLOCKS {
        let done = compensated(Isa::best(), block, &weight, &of, 2);
        assert_eq!(done.record.plain_rows, 0);
        let error = of.error(&weight, &done.decided);
        assert!((error - done.record.error).abs() < 1e-2 * error, "{block}: {error}, {}", done.record.error);
        let best = of.error(&weight, &weighed(block, &weight, &of, BlockSearch::Best));
        assert!(error < 0.75 * best, "{block}: {error:e}, without compensation {best:e}");
    }
}

#[test]
fn no_sweep_makes_the_error_larger() {
    let of = Statistics::correlated(288, 600);
    let weight = weights::fill("normal", 4, 5 * of.n);
    for block in BLOCKS.into_iter().filter(|block| block.weights() == 32) {
        let mut last = f64::INFINITY;
        for sweeps in 0..4 {
            let done = compensated(Isa::best(), block, &weight, &of, sweeps);
            // Measured without what was added to the diagonal, which sweeps count too.
            let error = of.error(&weight, &done.decided);
            assert!(error < 1.01 * last, "{block}, {sweeps} sweeps: {error:e} after {last:e}");
            last = error;
        }
    }
}

#[test]
fn inputs_that_do_not_correlate_cost_no_more_than_the_better_search() {
    let diagonal: Vec<f32> = weights::fill_importance("squares", 5, 512);
    let of = Statistics::diagonal(&diagonal);
    for name in ["normal", "heavy_tailed", "uniform"] {
        let weight = weights::fill(name, 5, 6 * of.n);
        for block in BLOCKS {
            let done = compensated(Isa::best(), block, &weight, &of, 1);
            let error = of.error(&weight, &done.decided);
            let best = of.error(&weight, &weighed(block, &weight, &of, BlockSearch::Best));
            assert!(error < 1.02 * best, "{block}, {name}: {error:e}, the search {best:e}");
        }
    }
}

#[test]
fn decided_is_what_the_blocks_decode_to_whatever_the_statistics() {
    let n = 256;
    let one_token: Vec<f32> = {
        let x = weights::fill("normal", 9, n);
        (0..n * n).map(|i| 2.0 * x[i / n] * x[i % n]).collect()
    };
    let all = [
        Statistics::of(vec![0.0; n * n], n, 0.01),
        Statistics::of(one_token.clone(), n, 0.01),
        Statistics::of(one_token.iter().map(|value| 1e30 * value).collect(), n, 0.01),
        Statistics::of(one_token.iter().map(|value| 1e-30 * value).collect(), n, 0.01),
        Statistics::correlated(n, 40),
    ];
    for of in &all {
        for name in ["heavy_tailed", "zeros", "outlier", "denormals", "constants"] {
            let weight = weights::fill(name, 5, 3 * n);
            let largest = weight.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for block in BLOCKS {
                let done = compensated(Isa::best(), block, &weight, of, 2);
                assert_eq!(done.decided, decoded(block, &done.bytes, n), "{block}, {name}");
                let most = done.decided.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                assert!(most <= 4.0 * largest + 1e-6, "{block}, {name}: {most} of weights up to {largest}");
            }
        }
    }
}

#[test]
fn statistics_that_are_no_numbers_give_ggmls_blocks_and_are_counted() {
    let n = 256;
    let weight = weights::fill("normal", 5, 18 * n);
    for nonsense in [f32::NAN, f32::INFINITY] {
        let of =
            Statistics { n, hessian: vec![nonsense; n * n], upper: vec![nonsense; n * n], damping: 0.01 };
        for block in BLOCKS {
            let done = compensated(Isa::best(), block, &weight, &of, 1);
            assert_eq!(done.record, CompensationRecord { error: 0.0, plain_rows: 18 }, "{block}");
            let mut bytes = vec![0; done.bytes.len()];
            quantize_blocks(&BlockEncoder::new(block), n, &weight, &mut bytes).unwrap();
            assert_eq!(done.bytes, bytes, "{block}");
        }
    }
}

#[test]
fn neither_threads_nor_instructions_change_a_byte() {
    let of = Statistics::correlated(288, 300);
    let wide = Statistics::correlated(512, 300);
    for block in [BlockType::Q2_K, BlockType::Q3_K, BlockType::Q4_K, BlockType::IQ4_NL, BlockType::Q5_1] {
        let of = if block.weights() == 256 { &wide } else { &of };
        let weight = weights::fill("normal", 2, 67 * of.n);
        let threads = |count, isa| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
            let rows = if isa == Isa::scalar() { 3 } else { 67 };
            pool.install(|| compensated(isa, block, &weight[..rows * of.n], of, 1).bytes)
        };
        let one = threads(1, Isa::best());
        assert_eq!(one, threads(3, Isa::best()), "{block}");
        for isa in Isa::available() {
            let other = threads(2, isa);
            assert_eq!(one[..other.len()], other, "{block}, {isa}");
        }
    }
}

#[test]
fn refuses_what_it_cannot_do() {
    let of = Statistics::diagonal(&[1.0; 256]);
    let run = |block, weight: &[f32], n: usize| {
        let (hessian, upper) = (&of.hessian[..n * n], &of.upper[..n * n]);
        let (mut bytes, mut decided) = (Vec::new(), vec![0.0; weight.len()]);
        let options = Compensation::default();
        quantize_blocks_compensated(
            Isa::best(),
            block,
            weight,
            n,
            hessian,
            upper,
            &options,
            &mut bytes,
            &mut decided,
        )
        .unwrap_err()
    };
    assert!(!can_compensate(BlockType::IQ3_S));
    assert_eq!(run(BlockType::IQ3_S, &[0.0; 256], 256), Error::NotCompensated { block: BlockType::IQ3_S });
    assert_eq!(
        run(BlockType::Q4_K, &[0.0; 64], 64),
        Error::UnevenGroups { in_features: 64, group_size: 256 }
    );
    let mut weight = vec![0.5; 80 * 256];
    weight[70 * 256 + 3] = f32::NEG_INFINITY;
    assert_eq!(
        run(BlockType::Q4_K, &weight, 256),
        Error::NonFinite { row: 70, col: 3, value: f32::NEG_INFINITY }
    );
    weight[70 * 256 + 3] = 1e30;
    assert!(
        matches!(run(BlockType::Q4_0, &weight, 256), Error::ScaleOverflow { row: 70, col: 0, .. }),
        "the block is named"
    );
}
