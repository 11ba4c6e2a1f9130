//! Blocks with importance, as `tools/golden/ggml_blocks.c` makes them.

use bitmill_quant::{BlockEncoder, Importance, quantize_blocks};
use bitmill_tensor::BlockType;

use crate::weights;

/// The hash of the blocks of rows of `columns`, or of two of them where the blocks do not divide one; `-` for an error.
pub fn weighed_hash(block: BlockType, columns: usize, weight: &[f32], importance: &[f32]) -> String {
    let cols = if columns.is_multiple_of(block.weights()) { columns } else { 2 * columns };
    let importance = Importance::new(&importance[..cols]).expect("finite and not negative");
    let encoder = BlockEncoder { importance: Some(importance), ..BlockEncoder::new(block) };
    // Old contents must not shine through.
    let mut bytes = vec![0xa5; weight.len() / block.weights() * block.bytes()];
    match quantize_blocks(&encoder, cols, weight, &mut bytes) {
        Ok(()) => format!("{:016x}", weights::fnv1a(&bytes)),
        Err(_) => "-".to_owned(),
    }
}
