//! Small numbers against compressed-tensors, and what they must keep by themselves.

use std::num::NonZeroUsize;

use bitmill_quant::{Error, global_scale, quantize_scaled};
use bitmill_tensor::{Element, Extent, FloatType, ScaleType, Scaled};
use bitmill_testkit::Golden;

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn layouts() -> [(&'static str, Scaled); 7] {
    let bf16 = ScaleType::Float(FloatType::BF16);
    let block = Extent::Block { rows: size(128), cols: size(128) };
    let layout = |element, extent, scale| Scaled { element, extent, scale };
    [
        ("int8", layout(Element::Int8, Extent::Row, bf16)),
        ("fp8", layout(Element::Fp8, Extent::Row, bf16)),
        ("fp8_block", layout(Element::Fp8, block, bf16)),
        ("nvfp4", layout(Element::Fp4, Extent::Columns(size(16)), ScaleType::Fp8)),
        ("mxfp4", layout(Element::Fp4, Extent::Columns(size(32)), ScaleType::PowerOfTwo)),
        ("mxfp6", layout(Element::Fp6, Extent::Columns(size(32)), ScaleType::PowerOfTwo)),
        ("mxfp8", layout(Element::Fp8, Extent::Columns(size(32)), ScaleType::PowerOfTwo)),
    ]
}

#[test]
fn numbers_and_scales_are_what_compressed_tensors_stores() {
    let golden = Golden::open("tests/golden/scaled.safetensors");
    let &[_, cols] = golden.shape("weight") else { panic!("a matrix") };
    let weight = golden.f32("weight");
    let global = global_scale(weight.iter().fold(0f32, |most, weight| most.max(weight.abs())));
    assert_eq!(golden.f32("nvfp4/weight_global_scale"), [global]);
    let mut decided = vec![0.0; weight.len()];
    for (name, layout) in layouts() {
        let rows = quantize_scaled(&layout, global, &weight, cols, &mut decided).unwrap();
        let is_packed = matches!(layout.element, Element::Fp4 | Element::Fp6);
        let codes = if is_packed { "weight_packed" } else { "weight" };
        let stored = golden.bytes(&format!("{name}/{codes}"));
        let differ = rows.codes.iter().zip(stored).position(|(a, b)| a != b);
        assert_eq!(differ.map(|at| (at, rows.codes[at], stored[at])), None, "{name}: numbers");
        let scales = golden.bytes(&format!("{name}/weight_scale"));
        match layout.scale {
            // The library keeps f32 here, of bf16's values.
            ScaleType::Float(float) => {
                let own: Vec<f32> = (0..rows.scales.len() / 2).map(|i| float.read(&rows.scales, i)).collect();
                assert_eq!(own, golden.f32(&format!("{name}/weight_scale")), "{name}: scales");
            }
            _ => assert_eq!(rows.scales, scales, "{name}: scales"),
        }
        if name == "nvfp4" {
            assert_eq!(decided, golden.f32("nvfp4/decided"));
        }
    }
}

#[test]
fn zeros_stay_zeros_and_nothing_becomes_nan() {
    for (name, layout) in layouts() {
        for value in [0.0f32, f32::MIN_POSITIVE, 1e-30, 1e-8, 1e4] {
            let mut weight = vec![0.0; 2 * 256];
            weight[300] = value;
            let global = global_scale(value);
            let mut decided = vec![f32::NAN; weight.len()];
            let rows = quantize_scaled(&layout, global, &weight, 256, &mut decided).unwrap();
            assert!(decided.iter().all(|value| value.is_finite()), "{name} of {value}");
            assert!(decided[..256].iter().all(|value| *value == 0.0), "{name}: the other row is zero");
            assert!(decided[300] <= 1.34 * value, "{name}: {} of {value}", decided[300]);
            assert!(!rows.scales.is_empty());
        }
    }
}

#[test]
fn a_weight_moves_by_half_a_step_at_most() {
    let weight: Vec<f32> = (0..1024).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect();
    let mut decided = vec![0.0; weight.len()];
    // The largest step, next to the largest number, over that number.
    for ((name, layout), step) in
        layouts().into_iter().zip([1.0 / 127.5, 32.0 / 448.0, 32.0 / 448.0, 0.4, 0.5, 0.125, 0.125])
    {
        quantize_scaled(&layout, global_scale(1.001), &weight, 256, &mut decided).unwrap();
        for (weight, decided) in weight.iter().zip(&decided) {
            assert!(
                (weight - decided).abs() <= 1.02 * step / 2.0 + 1e-3,
                "{name}: {weight} became {decided}"
            );
        }
    }
}

#[test]
fn what_cannot_be_stored_is_refused_by_its_place() {
    let [(_, int8), .., (_, nvfp4), (_, _), (_, _), (_, _)] = layouts();
    let f16 = Scaled { scale: ScaleType::Float(FloatType::F16), ..int8 };
    let mut decided = [0.0; 4];
    let error = quantize_scaled(&f16, 1.0, &[0.0, 0.0, 1e9, 0.0], 2, &mut decided).unwrap_err();
    assert!(matches!(error, Error::ScaleOverflow { row: 1, col: 0, .. }), "{error}");
    let error = quantize_scaled(&int8, 1.0, &[0.0, 0.0, 0.0, f32::NAN], 2, &mut decided).unwrap_err();
    assert!(matches!(error, Error::NonFinite { row: 1, col: 1, .. }), "{error}");
    let error = quantize_scaled(&nvfp4, 1.0, &[0.0; 4], 4, &mut decided).unwrap_err();
    assert!(matches!(error, Error::UnevenGroups { group_size: 16, .. }), "{error}");
}
