//! Rows and columns of zeros, as padding makes them: every form gives numbers, and rows of zeros nothing but zeros.

use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_quant::{
    BlockEncoder, BlockSearch, Clip, Importance, RtnGrid, needs_importance, pack_zero_points,
    quantize_blocks, quantize_rows_clipped,
};
use bitmill_tensor::{Bits, BlockType, FloatType, Granularity, WeightData, WeightView, ZeroPoint};

const COLS: usize = 1024;
/// Where zeros begin: within a block of 256, at the end of one of 32; as 29568 of 29696 columns are.
const OWN: [usize; 3] = [0, 3 * 256 + 128, 32];

/// A row for each of [`OWN`], zeros after that many numbers.
fn rows() -> Vec<f32> {
    let value = |i: usize| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.1;
    OWN.iter().flat_map(|&own| (0..COLS).map(move |col| if col < own { value(col) } else { 0.0 })).collect()
}

fn check(decided: &[f32], what: &str, is_seen: bool) {
    assert!(decided.iter().all(|value| value.is_finite()), "{what}");
    for (row, own) in decided.chunks(COLS).zip(OWN) {
        if own == 0 {
            assert!(row.iter().all(|value| *value == 0.0), "{what}: a row of zeros");
        }
        let largest = row.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(own == 0 || !is_seen || (0.01..1.0).contains(&largest), "{what}: {largest}");
    }
}

#[test]
fn blocks_of_every_type_hold_zeros() {
    let weight = rows();
    // Columns of zeros are multiplied with zeros: an importance matrix has 0 for them.
    let importance: Vec<f32> =
        (0..COLS).map(|col| if col < OWN[1] { (col % 5) as f32 } else { 0.0 }).collect();
    let nothing = vec![0.0; COLS];
    for block in BlockType::ALL {
        for importance in [None, Some(&importance), Some(&nothing)] {
            if importance.is_none() && needs_importance(block) {
                continue;
            }
            // What counts for nothing may become anything finite.
            let is_seen = importance != Some(&nothing);
            let what = format!("{block}, {}", importance.map_or("unweighed", |_| "weighed"));
            let importance = importance.map(|columns| Importance::new(columns).unwrap());
            let mut bytes = vec![0; OWN.len() * COLS / block.weights() * block.bytes()];
            let encoder = BlockEncoder { importance, ..BlockEncoder::new(block) };
            quantize_blocks(&encoder, COLS, &weight, &mut bytes).unwrap();
            let view = WeightView::new(OWN.len(), COLS, WeightData::Block { block, bytes: &bytes }).unwrap();
            let mut decided = vec![f32::NAN; weight.len()];
            dequantize_rows(Isa::scalar(), &view, 0, &mut decided);
            check(&decided, &what, is_seen);
        }
    }
}

#[test]
fn zeros_between_others_stay_where_they_are() {
    // Of each 256 columns the second, the fifth and the sixth 32.
    let is_zero = |col: usize| [1, 4, 5].contains(&(col / 32 % 8));
    let value = |col: usize| ((col * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.1;
    let weight: Vec<f32> = (0..COLS).map(|col| if is_zero(col) { 0.0 } else { value(col) }).collect();
    let importance: Vec<f32> = (0..COLS).map(|col| (1 + col % 5) as f32).collect();
    for block in BlockType::ALL {
        for importance in [None, Some(&importance)] {
            if importance.is_none() && needs_importance(block) {
                continue;
            }
            let what = format!("{block}, {}", importance.map_or("unweighed", |_| "weighed"));
            let importance = importance.map(|columns| Importance::new(columns).unwrap());
            for search in [BlockSearch::Ggml, BlockSearch::Best] {
                let mut bytes = vec![0; COLS / block.weights() * block.bytes()];
                let encoder = BlockEncoder { importance, search, ..BlockEncoder::new(block) };
                quantize_blocks(&encoder, COLS, &weight, &mut bytes).unwrap();
                let view = WeightView::new(1, COLS, WeightData::Block { block, bytes: &bytes }).unwrap();
                let mut decided = vec![f32::NAN; COLS];
                dequantize_rows(Isa::scalar(), &view, 0, &mut decided);
                // Grids have no zero: what comes nearest is their least value by the least scale.
                let is_grid = block.name().starts_with("iq1")
                    || block.name().starts_with("iq2")
                    || block.name().starts_with("iq3");
                let allowed = if is_grid { 0.1 / 16.0 } else { 0.0 };
                for (col, decided) in decided.iter().enumerate() {
                    let off = (decided - weight[col]).abs();
                    assert!(!is_zero(col) || off <= allowed, "{what}: {decided} for 0 in column {col}");
                }
                let error: f32 = decided.iter().zip(&weight).map(|(a, b)| (a - b) * (a - b)).sum();
                let all: f32 = weight.iter().map(|weight| weight * weight).sum();
                assert!(error < 0.6 * all, "{what}: {error} of {all}");
            }
        }
    }
}

#[test]
fn groups_of_every_width_hold_zeros() {
    let weight = rows();
    let zero_points = [ZeroPoint::Symmetric, ZeroPoint::Asymmetric];
    for (bits, zero_point) in (2..=8).flat_map(|bits| zero_points.map(|zero_point| (bits, zero_point))) {
        for (scale, clip) in [(FloatType::F16, Clip::None), (FloatType::BF16, Clip::Mse)] {
            for granularity in [Granularity::Group { size: 128.try_into().unwrap() }, Granularity::Channel] {
                let grid = RtnGrid { bits: Bits::new(bits).unwrap(), granularity, zero_point, scale };
                let layout = grid.layout(COLS).unwrap();
                let mut decided = vec![f32::NAN; weight.len()];
                let done = quantize_rows_clipped(&layout, clip, &weight, COLS, &mut decided).unwrap();
                let what = format!("{bits} bits, {zero_point:?}, {granularity:?}, {clip:?}");
                check(&decided, &what, true);
                let groups = layout.groups_per_row(COLS);
                let zero_points = match zero_point {
                    ZeroPoint::Symmetric => Vec::new(),
                    ZeroPoint::Asymmetric => {
                        pack_zero_points(&done.zero_codes, OWN.len(), groups, layout.bits)
                    }
                };
                let data = WeightData::Grouped {
                    layout,
                    packed: &done.packed,
                    scales: &done.scales,
                    zero_points: &zero_points,
                };
                let mut stored = vec![f32::NAN; weight.len()];
                dequantize_rows(
                    Isa::scalar(),
                    &WeightView::new(OWN.len(), COLS, data).unwrap(),
                    0,
                    &mut stored,
                );
                assert_eq!(stored, decided, "{what}");
            }
        }
    }
}
