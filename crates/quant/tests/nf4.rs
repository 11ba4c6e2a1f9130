//! NF4 against bitsandbytes, and what it must keep by itself.

use std::num::NonZeroUsize;

use bitmill_quant::{NestedAbsmax, quantize_scaled};
use bitmill_tensor::{Codebook, DYNAMIC_MAP, Element, Extent, FloatType, ScaleType, Scaled};
use bitmill_testkit::Golden;

fn layout(list: Codebook) -> Scaled {
    let extent = Extent::Columns(NonZeroUsize::new(64).unwrap());
    Scaled { element: Element::Listed(list), extent, scale: ScaleType::Float(FloatType::F32) }
}

#[test]
fn codes_scales_and_values_are_what_bitsandbytes_stores() {
    let golden = Golden::open("tests/golden/nf4.safetensors");
    let &[_, cols] = golden.shape("weight") else { panic!("a matrix") };
    let weight = golden.f32("weight");
    let mut decided = vec![0.0; weight.len()];
    for (name, list) in [("nf4", Codebook::Nf4), ("fp4", Codebook::Fp4)] {
        let rows = quantize_scaled(&layout(list), 1.0, &weight, cols, &mut decided).unwrap();
        assert_eq!(golden.f32(&format!("{name}/quant_map")), list.values());
        assert_eq!(rows.scales, golden.bytes(&format!("{name}/absmax")), "{name}: scales");
        let stored = golden.bytes(&format!("{name}/weight"));
        let differ = rows.codes.iter().zip(stored).position(|(a, b)| a != b);
        assert_eq!(differ.map(|at| (at, rows.codes[at], stored[at])), None, "{name}: codes");
        assert_eq!(decided, golden.f32(&format!("{name}/decided")), "{name}: values");
    }
}

#[test]
fn scales_of_scales_are_what_bitsandbytes_stores() {
    let golden = Golden::open("tests/golden/nf4.safetensors");
    let nested = NestedAbsmax::new(&golden.f32("nf4/absmax"));
    assert_eq!(golden.f32("double/nested_quant_map"), DYNAMIC_MAP);
    assert_eq!([nested.offset], golden.f32("double/nested_offset")[..]);
    assert_eq!(nested.absmax, golden.bytes("double/nested_absmax"));
    assert_eq!(nested.codes, golden.bytes("double/absmax"));
    assert_eq!(golden.bytes("double/weight"), golden.bytes("nf4/weight"));
    for (block, values) in golden.f32("double/decided").chunks_exact(64).enumerate() {
        let scale = nested.as_nested().scale(block, nested.codes[block]);
        let codes = &golden.bytes("double/weight")[32 * block..][..32];
        for (column, &value) in values.iter().enumerate() {
            assert_eq!(Element::Listed(Codebook::Nf4).read(codes, column) * scale, value, "block {block}");
        }
    }
}

#[test]
fn zeros_stay_zeros_and_small_blocks_finite() {
    for most in [0.0f32, f32::from_bits(1), f32::MIN_POSITIVE, 1e-30, 1e30] {
        let mut weight = vec![0.0; 128];
        weight[64] = -most;
        let mut decided = vec![f32::NAN; 128];
        let rows = quantize_scaled(&layout(Codebook::Nf4), 1.0, &weight, 128, &mut decided).unwrap();
        assert!(decided.iter().enumerate().all(|(at, value)| at == 64 || *value == 0.0), "{most}");
        // Below the library's smallest divisor a block's largest weight may be another value of the list.
        assert!((decided[64] + most).abs() <= if most >= 1e-30 { 0.0 } else { most }, "{most}");
        assert_eq!(rows.codes[..32], [0x77; 32]);
    }
}
