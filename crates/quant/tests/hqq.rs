//! HQQ against a numpy implementation: tools/golden/hqq.py.

use bitmill_quant::{HqqOptions, RtnGrid, hqq, quantize_rows};
use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn groups_move_as_far_as_numpys() {
    let golden: Value = serde_json::from_str(include_str!("golden/hqq.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 40);
    let size = golden["group_size"].as_u64().unwrap() as usize;
    for case in cases {
        let name = case["weights"].as_str().unwrap();
        let widen = |bits: f64| f32::from_bits((bits as u32) << 16);
        let weight: Vec<f32> = numbers(&golden["weights"][name]).into_iter().map(widen).collect();
        let bits = case["bits"].as_u64().unwrap() as u8;
        let symmetric = case["symmetric"].as_bool().unwrap();
        let grid = RtnGrid {
            bits: Bits::new(bits).unwrap(),
            granularity: Granularity::Channel,
            zero_point: if symmetric { ZeroPoint::Symmetric } else { ZeroPoint::Asymmetric },
            scale: FloatType::BF16,
        };
        let grid = grid.layout(size).unwrap();
        let sums = |decided: &[f32]| -> Vec<f64> {
            let moved = |(d, w): (&f32, &f32)| f64::from((d - w).abs());
            let sum = |(d, w): (&[f32], &[f32])| d.iter().zip(w).map(moved).sum::<f64>();
            decided.chunks(size).zip(weight.chunks(size)).map(sum).collect()
        };
        let (mut searched, mut rounded) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        hqq::quantize_rows(&grid, &HqqOptions::default(), &weight, size, &mut searched).unwrap();
        quantize_rows(&grid, &weight, size, &mut rounded).unwrap();
        for (found, expected, what) in
            [(sums(&searched), &case["hqq"], "hqq"), (sums(&rounded), &case["rtn"], "rtn")]
        {
            for (group, (found, expected)) in found.into_iter().zip(numbers(expected)).enumerate() {
                // The last bit of a sum in f64 decides nothing but ties.
                assert!(
                    (found - expected).abs() <= 1e-6 * expected,
                    "{name}, {bits} bits, {what}, group {group}: {found} where numpy has {expected}"
                );
            }
        }
    }
}
