//! Prints how fast each method quantizes, in MB of f32 weights a second of one core's time; blocks also with importance.
//!
//! Usage: `speed [BLOCK …]`

use std::io::Write;

use bitmill_quant::{BlockEncoder, Importance, RtnGrid, needs_importance, quantize_blocks, quantize_rows};
use bitmill_tensor::{Bits, BlockType, FloatType, Granularity, ZeroPoint};

#[path = "../tests/weights/mod.rs"]
mod weights;

const COUNT: usize = 1 << 20;
const COLS: usize = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let weight = weights::fill("normal", 1, COUNT);
    let mut out = std::io::stdout().lock();
    let columns = weights::fill_importance("squares", 1, COLS);
    let only: Vec<String> = std::env::args().skip(1).collect();
    let chosen = |block: &BlockType| only.is_empty() || only.iter().any(|name| name == block.name());
    for block in BlockType::ALL.into_iter().filter(chosen) {
        let mut bytes = vec![0; COUNT / block.weights() * block.bytes()];
        let plain = BlockEncoder::new(block);
        let weighed = BlockEncoder { importance: Some(Importance::new(&columns)?), ..plain };
        let with_importance = best(|| quantize_blocks(&weighed, COLS, &weight, &mut bytes))?;
        if needs_importance(block) {
            writeln!(out, "{block} with importance {with_importance:.0} MB/s")?;
            continue;
        }
        let speed = best(|| quantize_blocks(&plain, COLS, &weight, &mut bytes))?;
        writeln!(out, "{block} {speed:.0} MB/s, with importance {with_importance:.0} MB/s")?;
    }
    if !only.is_empty() {
        return Ok(());
    }
    for (bits, zero_point) in
        [(4, ZeroPoint::Symmetric), (8, ZeroPoint::Symmetric), (4, ZeroPoint::Asymmetric)]
    {
        let grid = RtnGrid {
            bits: Bits::new(bits).ok_or("bits")?,
            granularity: Granularity::Group { size: 128.try_into()? },
            zero_point,
            scale: FloatType::BF16,
        };
        let mut decided = vec![0.0; COUNT];
        let speed = best(|| quantize_rows(&grid.layout(COLS)?, &weight, COLS, &mut decided).map(drop))?;
        writeln!(out, "{bits}-bit g128 {zero_point:?} {speed:.0} MB/s")?;
    }
    Ok(())
}

/// The best of some repetitions, each long enough for the kernel's clock of CPU time.
fn best<E: Into<Box<dyn std::error::Error>>>(
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut fastest = 0.0f64;
    for _ in 0..8 {
        let begin = cpu_seconds()?;
        let mut runs = 0;
        while cpu_seconds()? - begin < 0.1 {
            run().map_err(Into::into)?;
            runs += 1;
        }
        fastest = fastest.max((4 * COUNT * runs) as f64 / 1e6 / (cpu_seconds()? - begin));
    }
    Ok(fastest)
}

/// This thread's time on a core: other processes do not count.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(schedstat.split(' ').next().ok_or("no CPU time")?.parse::<f64>()? / 1e9)
}
