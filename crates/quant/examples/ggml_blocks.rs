//! Prints hashes of quantized made-up weights, line by line what `tools/golden/ggml_blocks.c` prints with ggml's code.
//!
//! Usage: `ggml_blocks SEED WEIGHTS [COLUMNS]`

use std::io::Write;

use bitmill_quant::{BlockEncoder, needs_importance, quantize_blocks};
use bitmill_tensor::BlockType;

#[path = "../tests/weighed/mod.rs"]
mod weighed;
#[path = "../tests/weights/mod.rs"]
mod weights;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seed: u64 = arguments.next().ok_or("SEED is missing")?.parse()?;
    let count: usize = arguments.next().ok_or("WEIGHTS is missing")?.parse()?;
    let mut out = std::io::stdout().lock();
    if let Some(columns) = arguments.next() {
        let columns: usize = columns.parse()?;
        for name in weights::NAMES {
            let weight = weights::fill(name, seed, count);
            for how in weights::IMPORTANCE {
                let importance = weights::fill_importance(how, seed, 2 * columns);
                let hashes = BlockType::ALL
                    .map(|block| weighed::weighed_hash(block, columns, &weight, &importance))
                    .join(" ");
                writeln!(out, "{name} {how} {hashes}")?;
            }
        }
        return Ok(());
    }
    for name in weights::NAMES {
        let weight = weights::fill(name, seed, count);
        writeln!(out, "weights {name} {:016x}", weights::fnv1a(&weights::bytes_of(&weight)))?;
        for block in BlockType::ALL.into_iter().filter(|block| !needs_importance(*block)) {
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
