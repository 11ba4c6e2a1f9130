//! Round to nearest against the compressed-tensors library, and what must hold of any rounding.

mod weights;

use std::num::NonZeroUsize;

use bitmill_quant::{
    Clip, Error, GroupedRows, RtnGrid, pack_zero_points, quantize_rows, quantize_rows_clipped,
};
use bitmill_tensor::{Bits, FloatType, Granularity, Grouped, ZeroPoint};
use serde_json::Value;

fn grid(bits: u8, group_size: Option<usize>, zero_point: ZeroPoint, scale: FloatType) -> RtnGrid {
    RtnGrid {
        bits: Bits::new(bits).unwrap(),
        granularity: match group_size {
            None => Granularity::Channel,
            Some(size) => Granularity::Group { size: NonZeroUsize::new(size).unwrap() },
        },
        zero_point,
        scale,
    }
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    (0..bytes.len() / 4).map(|i| FloatType::F32.read(bytes, i)).collect()
}

#[test]
fn rows_equal_those_of_compressed_tensors() {
    let golden: Value = serde_json::from_str(include_str!("golden/rtn.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2 * 46);
    for case in cases {
        let matrix = &golden["weights"][case["weight"].as_str().unwrap()];
        let in_features = matrix["in_features"].as_u64().unwrap() as usize;
        let weight = floats(&hex(&matrix["f32"]));
        let zero_point = if case["symmetric"] == true { ZeroPoint::Symmetric } else { ZeroPoint::Asymmetric };
        let scale = FloatType::parse(case["scale_dtype"].as_str().unwrap()).unwrap();
        let bits = case["bits"].as_u64().unwrap() as u8;
        let group_size = case["group_size"].as_u64().map(|size| size as usize);
        let layout = grid(bits, group_size, zero_point, scale).layout(in_features).unwrap();
        let what = format!("{}, {bits} bits, {group_size:?}, {zero_point:?}, {scale}", case["weight"]);

        let mut decided = vec![f32::NAN; weight.len()];
        let rows = quantize_rows(&layout, &weight, in_features, &mut decided).unwrap();
        assert_eq!(rows.scales, hex(&case["scales"]), "{what}: scales");
        let zero_points = match zero_point {
            ZeroPoint::Symmetric => Vec::new(),
            ZeroPoint::Asymmetric => pack_zero_points(
                &rows.zero_codes,
                weight.len() / in_features,
                layout.groups_per_row(in_features),
                layout.bits,
            ),
        };
        assert_eq!(zero_points, hex(&case["zero_points"]), "{what}: zero points");
        assert_eq!(rows.packed, hex(&case["packed"]), "{what}: codes");
        let hash = format!("{:016x}", weights::fnv1a(&weights::bytes_of(&decided)));
        assert_eq!(hash, case["decoded_fnv1a"], "{what}: decoded values");
    }
}

/// Code `col` of row `row`, from the definition of the packing.
fn code(layout: &Grouped, rows: &GroupedRows, in_features: usize, row: usize, col: usize) -> u8 {
    let width = usize::from(layout.bits.get());
    let bytes = &rows.packed[row * 4 * layout.words_per_row(in_features)..];
    (0..width).fold(0, |code, bit| {
        let at = col * width + bit;
        code | (bytes[at / 8] >> (at % 8) & 1) << bit
    })
}

fn every_grid(test: impl Fn(Grouped, &[f32], &GroupedRows, &[f32])) {
    const IN: usize = 96;
    for name in weights::NAMES {
        let weight = weights::fill(name, 5, 7 * IN);
        for bits in 2..=8 {
            for group_size in [None, Some(1), Some(3), Some(32), Some(48)] {
                for zero_point in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
                    for scale in [FloatType::F32, FloatType::BF16, FloatType::F16] {
                        let layout = grid(bits, group_size, zero_point, scale).layout(IN).unwrap();
                        let mut decided = vec![f32::NAN; weight.len()];
                        let rows = quantize_rows(&layout, &weight, IN, &mut decided).unwrap();
                        test(layout, &weight, &rows, &decided);
                    }
                }
            }
        }
    }
}

#[test]
fn decided_values_are_what_the_stored_bytes_decode_to() {
    every_grid(|layout, weight, rows, decided| {
        let in_features = 96;
        let groups = layout.groups_per_row(in_features);
        for (index, decided) in decided.iter().enumerate() {
            let (row, col) = (index / in_features, index % in_features);
            let group = row * groups + col / layout.group_size.get();
            let zero = match layout.zero_point {
                ZeroPoint::Symmetric => 1 << (layout.bits.get() - 1),
                ZeroPoint::Asymmetric => i32::from(rows.zero_codes[group]),
            };
            let scale = layout.scale.read(&rows.scales, group);
            assert!(scale.is_finite() && scale > 0.0);
            let code = i32::from(code(&layout, rows, in_features, row, col));
            assert_eq!(scale * (code - zero) as f32, *decided);
            if weight[index] == 0.0 {
                assert_eq!(*decided, 0.0, "zero stays zero");
            }
        }
    });
}

#[test]
fn an_unclipped_weight_moves_by_at_most_half_a_scale() {
    every_grid(|layout, weight, rows, decided| {
        let in_features = 96;
        let groups = layout.groups_per_row(in_features);
        let highest = (1i32 << layout.bits.get()) - 1;
        for (index, (weight, decided)) in weight.iter().zip(decided).enumerate() {
            let (row, col) = (index / in_features, index % in_features);
            let scale = layout.scale.read(&rows.scales, row * groups + col / layout.group_size.get());
            let code = i32::from(code(&layout, rows, in_features, row, col));
            let moved = f64::from(*decided) - f64::from(*weight);
            // The division, the zero point's addition and the product round once each: 2^-22 of the largest of them.
            let slack = 2f64.powi(-22) * (f64::from(weight.abs()) + 256.0 * f64::from(scale));
            let clipped = code == 0 && moved > 0.0 || code == highest && moved < 0.0;
            if !clipped {
                assert!(moved.abs() <= f64::from(scale) / 2.0 + slack, "{layout:?} {weight} -> {decided}");
            }
        }
    });
}

#[test]
fn weights_already_on_the_grid_do_not_move() {
    // Eight bits, largest weight 127.5 scales: the scale comes out as it went in.
    let layout = grid(8, None, ZeroPoint::Symmetric, FloatType::BF16).layout(256).unwrap();
    let mut weight: Vec<f32> = (-128..128).map(|code| code as f32 * 0.25).collect();
    weight[0] = -127.5 * 0.25;
    let mut decided = vec![0.0; 256];
    let rows = quantize_rows(&layout, &weight, 256, &mut decided).unwrap();
    assert_eq!(layout.scale.read(&rows.scales, 0), 0.25);
    assert_eq!(decided[1..], weight[1..]);
    assert_eq!(decided[0], -32.0, "127.5 rounds to even");
}

#[test]
fn one_scale_a_row_equals_a_group_as_wide_as_the_row() {
    let weight = weights::fill("heavy_tailed", 2, 4 * 96);
    let (mut a, mut b) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
    for zero_point in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
        let channel = grid(4, None, zero_point, FloatType::F16).layout(96).unwrap();
        let group = grid(4, Some(96), zero_point, FloatType::F16).layout(96).unwrap();
        assert_eq!(
            quantize_rows(&channel, &weight, 96, &mut a).unwrap(),
            quantize_rows(&group, &weight, 96, &mut b).unwrap()
        );
        assert_eq!(a, b);
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let weight = weights::fill("normal", 2, 6 * 64);
    let layout = grid(4, Some(32), ZeroPoint::Asymmetric, FloatType::BF16).layout(64).unwrap();
    let mut decided = vec![0.0; weight.len()];
    let whole = quantize_rows(&layout, &weight, 64, &mut decided).unwrap();
    let mut parts = GroupedRows::default();
    for rows in weight.chunks(2 * 64) {
        let part = quantize_rows(&layout, rows, 64, &mut vec![0.0; rows.len()]).unwrap();
        parts.packed.extend(part.packed);
        parts.scales.extend(part.scales);
        parts.zero_codes.extend(part.zero_codes);
    }
    assert_eq!(whole, parts);
}

#[test]
fn more_bits_leave_less_error() {
    let weight = weights::fill("normal", 2, 64 * 128);
    let mut last = f64::INFINITY;
    for bits in 2..=8 {
        let layout = grid(bits, Some(32), ZeroPoint::Symmetric, FloatType::BF16).layout(128).unwrap();
        let mut decided = vec![0.0; weight.len()];
        quantize_rows(&layout, &weight, 128, &mut decided).unwrap();
        let error: f64 = weight.iter().zip(&decided).map(|(w, d)| f64::from(w - d).powi(2)).sum::<f64>();
        // A bit halves the step, so it quarters the error.
        assert!(error < last / 3.0, "{bits} bits: {error} after {last}");
        last = error;
    }
}

fn squared_error(weight: &[f32], decided: &[f32]) -> f64 {
    weight.iter().zip(decided).map(|(w, d)| f64::from(w - d).powi(2)).sum()
}

#[test]
fn clipping_by_squared_error_is_never_worse_than_the_whole_range() {
    every_grid(|layout, weight, _, whole| {
        let mut clipped = vec![f32::NAN; weight.len()];
        quantize_rows_clipped(&layout, Clip::Mse, weight, 96, &mut clipped).unwrap();
        let size = layout.group_size.get();
        let groups = weight.chunks(size).zip(whole.chunks(size)).zip(clipped.chunks(size));
        for ((weight, whole), clipped) in groups {
            let (before, after) = (squared_error(weight, whole), squared_error(weight, clipped));
            // The search adds the same squares in another order.
            assert!(after <= before * (1.0 + 1e-12), "{layout:?}: {before:e} became {after:e}");
        }
    });
}

/// Symmetric codes reach one further down than up: whichever end needs it gets it.
#[test]
fn clipping_by_squared_error_turns_a_grid_round() {
    let layout = grid(3, None, ZeroPoint::Symmetric, FloatType::F16).layout(4).unwrap();
    for (weight, scale) in [([4.0, -3.0, 1.0, 0.0], -1.0), ([-4.0, 3.0, 1.0, 0.0], 1.0)] {
        let mut decided = [0.0; 4];
        let rows = quantize_rows_clipped(&layout, Clip::Mse, &weight, 4, &mut decided).unwrap();
        assert!(layout.scale.read(&rows.scales, 0) / scale > 0.9, "{weight:?}");
        assert!(squared_error(&weight, &decided) < 0.02, "{weight:?}: {decided:?}");
    }
}

#[test]
fn clipping_by_squared_error_mends_few_bits() {
    let weight = weights::fill("normal", 2, 64 * 128);
    let relative = |bits, zero_point, clip| {
        let layout = grid(bits, Some(64), zero_point, FloatType::BF16).layout(128).unwrap();
        let mut decided = vec![0.0; weight.len()];
        quantize_rows_clipped(&layout, clip, &weight, 128, &mut decided).unwrap();
        squared_error(&weight, &decided) / squared_error(&weight, &vec![0.0; weight.len()])
    };
    for (bits, zero_point, at_most) in [
        (2, ZeroPoint::Symmetric, 0.6),
        (2, ZeroPoint::Asymmetric, 0.75),
        (3, ZeroPoint::Symmetric, 0.75),
        (3, ZeroPoint::Asymmetric, 0.85),
        (4, ZeroPoint::Symmetric, 0.95),
    ] {
        let ratio = relative(bits, zero_point, Clip::Mse) / relative(bits, zero_point, Clip::None);
        assert!(ratio < at_most, "{bits} bits, {zero_point:?}: {ratio}");
    }
}

#[test]
fn refuses_nan_and_infinity_naming_row_and_column() {
    let layout = grid(4, None, ZeroPoint::Symmetric, FloatType::BF16).layout(8).unwrap();
    for value in [f32::INFINITY, f32::NEG_INFINITY] {
        let mut weight = vec![1.0; 24];
        weight[13] = value;
        let error = quantize_rows(&layout, &weight, 8, &mut [0.0; 24]).unwrap_err();
        assert_eq!(error, Error::NonFinite { row: 1, col: 5, value });
        assert_eq!(error.relocate(100), Error::NonFinite { row: 101, col: 5, value });
    }
    let mut weight = vec![1.0; 24];
    weight[23] = f32::NAN;
    let error = quantize_rows(&layout, &weight, 8, &mut [0.0; 24]).unwrap_err();
    assert!(matches!(error, Error::NonFinite { row: 2, col: 7, value } if value.is_nan()));
    assert_eq!(error.to_string(), "row 2, column 7: NaN cannot be quantized");
}

#[test]
fn refuses_scales_that_f16_cannot_hold_and_takes_them_in_bf16() {
    let mut weight = vec![0.5; 64];
    weight[40] = 1e6;
    let f16 = grid(4, Some(16), ZeroPoint::Symmetric, FloatType::F16).layout(32).unwrap();
    let error = quantize_rows(&f16, &weight, 32, &mut [0.0; 64]).unwrap_err();
    assert!(matches!(error, Error::ScaleOverflow { row: 1, col: 0, float: FloatType::F16, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("bf16"));
    let bf16 = grid(4, Some(16), ZeroPoint::Symmetric, FloatType::BF16).layout(32).unwrap();
    quantize_rows(&bf16, &weight, 32, &mut [0.0; 64]).unwrap();

    // The range of a group overflows f32 itself.
    let asymmetric = grid(4, None, ZeroPoint::Asymmetric, FloatType::F32).layout(2).unwrap();
    let error = quantize_rows(&asymmetric, &[-3e38, 3e38], 2, &mut [0.0; 2]).unwrap_err();
    assert!(matches!(error, Error::ScaleOverflow { float: FloatType::F32, .. }), "{error:?}");
}

#[test]
fn refuses_groups_that_do_not_tile_a_row() {
    let error = grid(4, Some(256), ZeroPoint::Symmetric, FloatType::BF16).layout(29568).unwrap_err();
    assert_eq!(error, Error::UnevenGroups { in_features: 29568, group_size: 256 });
    assert!(grid(4, None, ZeroPoint::Symmetric, FloatType::BF16).layout(0).is_err());
    let layout = grid(4, Some(32), ZeroPoint::Symmetric, FloatType::BF16).layout(64).unwrap();
    let error = quantize_rows(&layout, &[0.0; 48], 48, &mut [0.0; 48]).unwrap_err();
    assert_eq!(error, Error::UnevenGroups { in_features: 48, group_size: 32 });
}
