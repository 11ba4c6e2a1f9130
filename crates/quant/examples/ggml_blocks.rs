//! Prints hashes of quantized made-up weights, line by line what `tools/golden/ggml_blocks.c` prints with ggml's code.
//!
//! Usage: `ggml_blocks SEED WEIGHTS`

use std::io::Write;

use bitmill_quant::{BlockEncoder, quantize_blocks};
use bitmill_tensor::BlockType;

#[path = "../tests/weights/mod.rs"]
mod weights;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seed: u64 = arguments.next().ok_or("SEED is missing")?.parse()?;
    let count: usize = arguments.next().ok_or("WEIGHTS is missing")?.parse()?;
    let mut out = std::io::stdout().lock();
    for name in weights::NAMES {
        let weight = weights::fill(name, seed, count);
        writeln!(out, "weights {name} {:016x}", weights::fnv1a(&weights::bytes_of(&weight)))?;
        for block in BlockType::ALL {
            let mut bytes = vec![0xa5; count / block.weights() * block.bytes()];
            quantize_blocks(&BlockEncoder::new(block), count, &weight, &mut bytes)?;
            let first: String = bytes[..block.bytes()].iter().map(|byte| format!("{byte:02x}")).collect();
            // ggml writes the K of its K-quants in upper case.
            let theirs = block.name().replace("_k", "_K");
            writeln!(out, "{theirs} {name} {:016x} {first}", weights::fnv1a(&bytes))?;
        }
    }
    Ok(())
}
