//! The better search: never more error than ggml's blocks, less in sum, on every distribution.

mod weights;

use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_quant::{BlockEncoder, BlockSearch, Importance, quantize_blocks};
use bitmill_tensor::{BlockType, WeightData, WeightView};

const COLS: usize = 1024;
const BLOCKS: [BlockType; 21] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_K,
    BlockType::Q5_K,
    BlockType::Q6_K,
    BlockType::IQ4_NL,
    BlockType::IQ4_XS,
    BlockType::IQ1_S,
    BlockType::IQ1_M,
    BlockType::IQ2_XXS,
    BlockType::IQ2_XS,
    BlockType::IQ2_S,
    BlockType::IQ3_XXS,
    BlockType::IQ3_S,
    BlockType::TQ1_0,
    BlockType::TQ2_0,
    BlockType::MXFP4,
];

/// The weighted squared error of each block; `None` where a scale is beyond f16.
fn errors(encoder: &BlockEncoder<'_>, weight: &[f32], counts: &[f32]) -> Option<Vec<f64>> {
    let block = encoder.block;
    let mut bytes = vec![0xa5; weight.len() / block.weights() * block.bytes()];
    quantize_blocks(encoder, COLS, weight, &mut bytes).ok()?;
    let view =
        WeightView::new(weight.len() / COLS, COLS, WeightData::Block { block, bytes: &bytes }).unwrap();
    let mut decided = vec![0.0; weight.len()];
    dequantize_rows(Isa::best(), &view, 0, &mut decided);
    let each = weight
        .iter()
        .zip(&decided)
        .enumerate()
        .map(|(i, (&x, &y))| f64::from(counts[i % COLS]) * (f64::from(x) - f64::from(y)).powi(2));
    let each: Vec<f64> = each.collect();
    Some(each.chunks(block.weights()).map(|block| block.iter().sum()).collect())
}

#[test]
fn the_better_search_is_never_worse_and_better_in_sum() {
    let ones = vec![1.0; COLS];
    for name in weights::NAMES {
        let weight = weights::fill(name, 5, 2 * COLS);
        for how in [None, Some("squares"), Some("dead_blocks")] {
            let importance = how.map(|how| weights::fill_importance(how, 5, COLS));
            let counts = importance.as_ref().unwrap_or(&ones);
            for block in BLOCKS {
                let plain = BlockEncoder {
                    importance: importance.as_deref().map(|columns| Importance::new(columns).unwrap()),
                    ..BlockEncoder::new(block)
                };
                let best = BlockEncoder { search: BlockSearch::Best, ..plain };
                let Some(ggml) = errors(&plain, &weight, counts) else {
                    assert!(errors(&best, &weight, counts).is_none(), "{block}, {name}");
                    continue;
                };
                let ours = errors(&best, &weight, counts).unwrap();
                for (ours, ggml) in ours.iter().zip(&ggml) {
                    // The search adds up in f32.
                    assert!(
                        *ours <= ggml * (1.0 + 1e-5),
                        "{block}, {name}, {how:?}: {ours:e} above {ggml:e}"
                    );
                }
                if ["normal", "heavy_tailed", "bf16", "f16", "uniform"].contains(&name) {
                    let (ours, ggml): (f64, f64) = (ours.iter().sum(), ggml.iter().sum());
                    assert!(ours < 0.999 * ggml, "{block}, {name}, {how:?}: {ours:e}, ggml {ggml:e}");
                }
            }
        }
    }
}

#[test]
fn blocks_of_eight_bits_stay_ggmls() {
    let weight = weights::fill("normal", 5, COLS);
    let plain = BlockEncoder::new(BlockType::Q8_0);
    let best = BlockEncoder { search: BlockSearch::Best, ..plain };
    let (mut theirs, mut ours) = (vec![0; COLS / 32 * 34], vec![1; COLS / 32 * 34]);
    quantize_blocks(&plain, COLS, &weight, &mut theirs).unwrap();
    quantize_blocks(&best, COLS, &weight, &mut ours).unwrap();
    assert_eq!(theirs, ours);
}
