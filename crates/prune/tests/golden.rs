//! Masks against numpy and torch, influence against transformers.

use std::path::Path;

use bitmill_checkpoint::Checkpoint;
use bitmill_kernels::{Compute, Isa};
use bitmill_model::{Model, Sequence, Want};
use bitmill_prune::{BlockInfluence, NOfM, RowRule, Sparsity, Threshold, mask_bytes};
use bitmill_testkit::Golden;

const GOLDEN: &str = "tests/golden/prune.safetensors";
const COLS: usize = 40;

fn by_rows(weights: &[f32], rule: RowRule) -> Vec<u8> {
    let mut kept = Vec::new();
    for row in weights.chunks(COLS) {
        let mut mask = [0; mask_bytes(COLS)];
        rule.mask_row(row, &mut mask).unwrap();
        kept.extend((0..COLS).map(|i| mask[i / 8] >> (i % 8) & 1));
    }
    kept
}

fn by_tensor(weights: &[f32], fraction: f64) -> Vec<u8> {
    let removed = Sparsity::new(fraction).unwrap().removed(weights.len() as u64);
    let passes = |take: &mut dyn FnMut(&[f32])| {
        weights.chunks(7 * COLS).for_each(take);
        Ok::<(), std::convert::Infallible>(())
    };
    let Ok(threshold) = Threshold::select(removed, passes);
    let mut kept = Vec::new();
    for (r, row) in weights.chunks(COLS).enumerate() {
        let mut mask = [0; mask_bytes(COLS)];
        threshold.mask_row((r * COLS) as u64, row, &mut mask);
        kept.extend((0..COLS).map(|i| mask[i / 8] >> (i % 8) & 1));
    }
    kept
}

#[test]
fn masks_are_those_of_a_stable_sort() {
    let golden = Golden::open(GOLDEN);
    let weights = golden.f32("tied");
    for percent in [25, 50, 90] {
        let fraction = f64::from(percent) / 100.0;
        let rule = RowRule::Sparsity(Sparsity::new(fraction).unwrap());
        assert_eq!(by_rows(&weights, rule), golden.bytes(&format!("tied/row/{percent}")), "row {percent}");
        assert_eq!(
            by_tensor(&weights, fraction),
            golden.bytes(&format!("tied/tensor/{percent}")),
            "tensor {percent}"
        );
    }
    let rule = RowRule::NOfM(NOfM::new(2, 4).unwrap());
    assert_eq!(by_rows(&weights, rule), golden.bytes("tied/2of4"));
}

#[test]
fn a_tensor_loses_what_torch_prunes() {
    let golden = Golden::open(GOLDEN);
    assert_eq!(by_tensor(&golden.f32("plain"), 0.3), golden.bytes("plain/tensor/30"));
}

#[test]
fn layers_have_the_influence_that_transformers_states_have() {
    let golden = Golden::open(GOLDEN);
    let tokens = golden.tokens("millet/ids");
    let expected = golden.f32("millet/influence");
    let model = Model::load(&Checkpoint::open(Path::new("../../assets/millet/model")).unwrap()).unwrap();
    let compute = Compute::new(Isa::best(), bitmill_kernels::Path::Exact);
    let mut influence = BlockInfluence::new(expected.len());
    let mut cache = model.new_cache();
    let mut batch = [Sequence { tokens: &tokens, cache: &mut cache, want: Want::All }];
    model
        .observe_layers(&compute, &mut batch, |layer, entering, leaving| {
            assert_eq!((entering.rows(), entering.cols()), (tokens.len(), model.config().hidden_size));
            influence.add(layer, entering, leaving);
        })
        .unwrap();
    // States agree to about 1e-5 of their length, and a cosine is twice as sure.
    for (layer, (found, expected)) in influence.finish().into_iter().zip(expected).enumerate() {
        assert!((found - f64::from(expected)).abs() < 2e-5, "layer {layer}: {found} where {expected}");
    }
}
