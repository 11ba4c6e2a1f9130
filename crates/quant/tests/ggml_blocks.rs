//! Our blocks against ggml's, byte for byte.

mod weights;

use bitmill_quant::{Error, quantize_blocks};
use bitmill_tensor::{BlockType, FloatType};

const GOLDEN: &str = include_str!("golden/ggml_blocks.txt");
const SEED: u64 = 1;
const COUNT: usize = 4096;

#[test]
fn blocks_equal_ggmls_byte_for_byte() {
    let mut compared = 0;
    for line in GOLDEN.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let weight = weights::fill(fields[1], SEED, COUNT);
        if fields[0] == "weights" {
            let hash = format!("{:016x}", weights::fnv1a(&weights::bytes_of(&weight)));
            assert_eq!(hash, fields[2], "the weights `{}` are made differently", fields[1]);
            continue;
        }
        let block = BlockType::parse(fields[0]).unwrap();
        // Old contents must not shine through.
        let mut bytes = vec![0xa5; COUNT / block.weights() * block.bytes()];
        quantize_blocks(block, &weight, &mut bytes).unwrap();
        let first: String = bytes[..block.bytes()].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(first, fields[3], "{block}, {}: first block", fields[1]);
        assert_eq!(format!("{:016x}", weights::fnv1a(&bytes)), fields[2], "{block}, {}", fields[1]);
        compared += 1;
    }
    assert_eq!(compared, BlockType::ALL.len() * weights::NAMES.len());
}
