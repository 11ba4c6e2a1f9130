//! Prints what GPTQ costs a square layer in seconds of processor time: its Hessian, the factor, and rounding to 4 bits.
//!
//! Usage: `gptq_speed [IN_FEATURES …]`; beside LAPACK: `tools/checks/gptq_speed.py`.

use std::io::Write;
use std::time::Instant;

use bitmill_quant::{Clip, GptqOptions, GroupScales, RtnGrid, gptq};
use bitmill_stats::HessianAccumulator;
use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};

#[path = "../tests/layers/mod.rs"]
mod layers;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|size| size.parse()).collect::<Result<_, _>>()?;
    let sizes = if sizes.is_empty() { vec![2048, 4096] } else { sizes };
    let mut out = std::io::stdout().lock();
    for n in sizes {
        let tokens = 4096;
        let x = layers::activations(tokens, n, 1);
        let weight = layers::weights(n, n, 2);
        let grid = RtnGrid {
            bits: Bits::new(4).ok_or("bits")?,
            granularity: Granularity::Group { size: 128.try_into()? },
            zero_point: ZeroPoint::Symmetric,
            scale: FloatType::BF16,
        };
        let mut sums = HessianAccumulator::new(n);
        let (hessian_time, ()) = spent(|| sums.add(&x))?;
        let hessian = sums.finish();
        let order = hessian.falling_order();
        let (factor_time, factor) = spent(|| hessian.clone().factor(0.01, None))?;
        let (ordered_time, ordered) = spent(|| hessian.clone().factor(0.01, Some(&order)))?;
        writeln!(
            out,
            "{n}: Hessian of {tokens} tokens {hessian_time}, factor {factor_time}, in order {ordered_time}"
        )?;
        let (factor, ordered) = (factor?, ordered?);
        for (what, clip, scales, refine, factor) in [
            ("as columns stand", Clip::None, GroupScales::Updated, 0, &factor),
            ("static groups", Clip::None, GroupScales::Original, 0, &ordered),
            ("static groups, clipped", Clip::Mse, GroupScales::Original, 0, &ordered),
            ("static groups, refined once", Clip::None, GroupScales::Original, 1, &ordered),
        ] {
            let mut rounded = weight.clone();
            let options = GptqOptions { scales, refine };
            let (time, found) =
                spent(|| gptq::quantize(&grid.layout(n)?, clip, &options, &mut rounded, factor))?;
            let error = found?.record.output_error;
            writeln!(out, "  {n} rows, {what}: {time}, output error {error:.4e}")?;
        }
    }
    Ok(())
}

/// Runs, and tells processor and wall-clock seconds.
fn spent<T>(run: impl FnOnce() -> T) -> Result<(String, T), Box<dyn std::error::Error>> {
    let (begin, processor) = (Instant::now(), cpu_seconds()?);
    let out = run();
    let (processor, wall) = (cpu_seconds()? - processor, begin.elapsed().as_secs_f64());
    Ok((format!("{processor:.2} s ({wall:.2} s of wall clock)"), out))
}

/// User time of this process, from Linux' clock of 1/100 s.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let ticks = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(11)).ok_or("stat")?;
    Ok(ticks.parse::<f64>()? / 100.0)
}
