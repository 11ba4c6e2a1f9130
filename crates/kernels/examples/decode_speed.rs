//! How fast one 72B-shaped matrix multiplies one token and many, for each encoding and instruction set.
//!
//! ```console
//! cargo run --release -p bitmill-kernels --example decode_speed -- [ROWS COLUMNS [NAME]]
//! ```
//!
//! Prints GB/s of weights for one token, beside a plain read of as many bytes, and GFLOP/s for 512 tokens, with one
//! thread and with all: medians, and behind a slash the best run, which is what an idle machine does. `NAME` picks
//! encodings whose name contains it.
#![allow(clippy::print_stdout, reason = "a report is what this is for")]

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use bitmill_kernels::{Isa, Path, matmul};
use bitmill_tensor::{
    Bits, BlockType, Encoding, FloatType, Grouped, Matrix, WeightData, WeightView, ZeroPoint,
};

/// Seconds of the median run and of the best one, after one that warms up.
fn seconds(runs: usize, mut run: impl FnMut()) -> (f64, f64) {
    run();
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    (seconds[runs / 2], seconds[0])
}

/// Reads all of `bytes` on every thread of the current pool, each its own part.
fn read_stream(bytes: &[u8]) -> (f64, f64) {
    let parts = rayon::current_num_threads();
    let part = bytes.len() / parts;
    seconds(15, || {
        rayon::broadcast(|context| {
            let bytes = &black_box(bytes)[context.index() * part..][..part];
            let mut sums = [0u64; 16];
            for chunk in bytes.chunks_exact(128) {
                for (sum, word) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(word.try_into().unwrap()));
                }
            }
            black_box(sums);
        });
    })
}

fn encodings() -> Vec<Encoding> {
    let groups = |bits, size, zero_point| {
        Encoding::Grouped(Grouped {
            bits: Bits::new(bits).unwrap(),
            group_size: NonZeroUsize::new(size).unwrap(),
            zero_point,
            scale: FloatType::BF16,
        })
    };
    let mut all = vec![
        Encoding::Float(FloatType::F32),
        Encoding::Float(FloatType::BF16),
        Encoding::Float(FloatType::F16),
    ];
    all.extend(
        [BlockType::Q8_0, BlockType::Q6_K, BlockType::Q5_0, BlockType::Q4_K, BlockType::Q4_0]
            .map(Encoding::Block),
    );
    all.extend([
        groups(8, 128, ZeroPoint::Symmetric),
        groups(8, 128, ZeroPoint::Asymmetric),
        groups(4, 128, ZeroPoint::Symmetric),
        groups(4, 128, ZeroPoint::Asymmetric),
        groups(4, 32, ZeroPoint::Symmetric),
        groups(4, 24, ZeroPoint::Symmetric),
    ]);
    all
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| arguments.get(i).and_then(|n| n.parse::<usize>().ok()).unwrap_or(8192);
    let (rows, columns) = (number(0), number(1));
    let name = arguments.get(2).map_or("", String::as_str);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown CPU");
    println!("[{rows}, {columns}] on{cpu}");

    // Bytes that are finite as f16, bf16 and f32 alike, and different enough that nothing can be guessed.
    let mut state = 1u64;
    let bytes: Vec<u8> = (0..rows * columns * 4)
        .map(|i| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if i % 2 == 1 { 0x24 } else { (state >> 56) as u8 }
        })
        .collect();
    let kept = Kept::half(rows, columns);
    // The definition is not made to be fast.
    let mut isas = Isa::available();
    if isas.len() > 1 {
        isas.remove(0);
    }
    let all = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut counts = vec![1, all];
    counts.dedup();
    for threads in counts {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let both = |amount: f64, (median, best): (f64, f64)| {
            format!("{:.1} /{:5.1}", amount / median / 1e9, amount / best / 1e9)
        };
        let stream = pool.install(|| read_stream(&bytes));
        println!("\n{threads} threads, read stream {} GB/s", both(bytes.len() as f64, stream));
        println!(
            "{:24} {:12} {:>15} {:>15} {:>15} {:>15}",
            "encoding", "isa", "exact GB/s", "fast GB/s", "exact GFLOP/s", "fast GFLOP/s"
        );
        for encoding in encodings().into_iter().chain(kept.encodings()) {
            let in_features = columns / group(encoding) * group(encoding);
            let view = view(encoding, rows, in_features, &bytes, &kept);
            if !encoding.to_string().contains(name) {
                continue;
            }
            for &isa in &isas {
                let time = |path, tokens: usize, runs| {
                    let x = (0..tokens * in_features)
                        .map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5)
                        .collect();
                    let x = Matrix::from_vec(tokens, in_features, x);
                    let mut y = Matrix::default();
                    pool.install(|| seconds(runs, || matmul(isa, path, &view, &x, &mut y)))
                };
                let stored = view.stored_bytes() as f64;
                let flops = 2.0 * 512.0 * (rows * in_features) as f64;
                println!(
                    "{:24} {:12} {:>15} {:>15} {:>15} {:>15}",
                    encoding.to_string(),
                    isa.name(),
                    both(stored, time(Path::Exact, 1, 15)),
                    both(stored, time(Path::Fast, 1, 15)),
                    both(flops, time(Path::Exact, 512, 3)),
                    both(flops, time(Path::Fast, 512, 3)),
                );
            }
        }
    }
}

fn group(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Float(_) | Encoding::Sparse { .. } | Encoding::Scaled(_) => 1,
        Encoding::Block(block) => block.weights(),
        Encoding::Grouped(layout) => layout.group_size.get(),
    }
}

/// Which weights of a sparse matrix were kept: about half, at random.
struct Kept {
    bitmask: Vec<u8>,
    row_offsets: Vec<u8>,
    values: usize,
}

impl Kept {
    fn half(rows: usize, columns: usize) -> Self {
        let (mut bitmask, mut row_offsets, mut values, mut state) = (Vec::new(), Vec::new(), 0, 1u64);
        for _ in 0..rows {
            row_offsets.extend((values as i64).to_le_bytes());
            for first in (0..columns).step_by(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let bits = (state >> 56) as u8 & u8::MAX >> (8 - (columns - first).min(8));
                values += bits.count_ones() as usize;
                bitmask.push(bits);
            }
        }
        Self { bitmask, row_offsets, values }
    }

    fn encodings(&self) -> [Encoding; 2] {
        let values = self.values;
        [FloatType::F32, FloatType::BF16].map(|float| Encoding::Sparse { float, values })
    }
}

fn view<'a>(
    encoding: Encoding,
    rows: usize,
    columns: usize,
    bytes: &'a [u8],
    kept: &'a Kept,
) -> WeightView<'a> {
    if let Encoding::Sparse { float, values } = encoding {
        let Kept { bitmask, row_offsets, .. } = kept;
        let values = &bytes[..values * float.size_bytes()];
        let data = WeightData::Sparse { float, bitmask, values, row_offsets };
        return WeightView::new(rows, columns, data).unwrap();
    }
    let whole = &bytes[..encoding.matrix_bytes(rows, columns)];
    let data = match encoding {
        Encoding::Float(float) => WeightData::Float { float, bytes: whole },
        Encoding::Block(block) => WeightData::Block { block, bytes: whole },
        Encoding::Grouped(layout) => {
            let (packed, rest) = whole.split_at(4 * rows * layout.words_per_row(columns));
            let (scales, zero_points) =
                rest.split_at(rows * layout.groups_per_row(columns) * layout.scale.size_bytes());
            WeightData::Grouped { layout, packed, scales, zero_points }
        }
        Encoding::Sparse { .. } | Encoding::Scaled(_) => unreachable!("seen above"),
    };
    WeightView::new(rows, columns, data).unwrap()
}
