//! GPTQ beside an implementation in Python, where it must become round-to-nearest, and what must hold of any result.

mod layers;

use std::num::NonZeroUsize;

use bitmill_quant::{
    Clip, Error, GptqOptions, GptqRows, GroupScales, RtnGrid, gptq, pack_zero_points, quantize_rows_clipped,
};
use bitmill_stats::{CrossAccumulator, Hessian, HessianAccumulator};
use bitmill_tensor::{Bits, FloatType, Granularity, Grouped, Matrix, ZeroPoint};
use layers::{activations, hessian, output_error, weights, with_dead};
use serde_json::Value;

fn grid(bits: u8, group_size: usize, zero_point: ZeroPoint, scale: FloatType) -> Grouped {
    let group_size = NonZeroUsize::new(group_size).unwrap();
    Grouped { bits: Bits::new(bits).unwrap(), group_size, zero_point, scale }
}

/// Bits 2 to 8, groups of 16 to all, both kinds of codes, all types of scales.
fn grids(in_features: usize) -> Vec<Grouped> {
    let mut all = Vec::new();
    for bits in 2..=8 {
        for group_size in [16, 48, in_features] {
            for zero_point in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
                let scale = [FloatType::BF16, FloatType::F16, FloatType::F32][usize::from(bits) % 3];
                all.push(grid(bits, group_size, zero_point, scale));
            }
        }
    }
    all
}

/// Codes `[rows, in_features]`, from the definition of the packing.
fn codes(grid: &Grouped, found: &GptqRows, in_features: usize) -> Vec<u8> {
    let width = usize::from(grid.bits.get());
    let row_bytes = 4 * grid.words_per_row(in_features);
    let rows = found.rows.packed.chunks_exact(row_bytes);
    rows.flat_map(|row| {
        (0..in_features).map(move |col| {
            (0..width).fold(0, |code, bit| {
                let at = col * width + bit;
                code | (row[at / 8] >> (at % 8) & 1) << bit
            })
        })
    })
    .collect()
}

/// What a reader makes of codes, scales, zero points and groups.
fn decoded(grid: &Grouped, found: &GptqRows, in_features: usize) -> Vec<f32> {
    let groups = grid.groups_per_row(in_features);
    let middle = f32::from(1u16 << (grid.bits.get() - 1));
    let codes = codes(grid, found, in_features);
    let value = |(at, code): (usize, &u8)| {
        let (row, col) = (at / in_features, at % in_features);
        let group = match &found.group_of_column {
            Some(group_of_column) => group_of_column[col] as usize,
            None => col / grid.group_size.get(),
        };
        let scale = grid.scale.read(&found.rows.scales, row * groups + group);
        let zero = match grid.zero_point {
            ZeroPoint::Symmetric => middle,
            ZeroPoint::Asymmetric => f32::from(found.rows.zero_codes[row * groups + group]),
        };
        scale * (f32::from(*code) - zero)
    };
    codes.iter().enumerate().map(value).collect()
}

fn bytes(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn codes_and_scales_are_those_of_the_plain_implementation() {
    let golden: Value = serde_json::from_str(include_str!("golden/gptq.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for (index, case) in cases.iter().enumerate() {
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let (n, rows, tokens) = (number("in_features"), number("rows"), number("tokens"));
        let inputs = |seed| {
            let x = activations(tokens, n, seed);
            if case["dead"] == true { with_dead(x, 3) } else { x }
        };
        let x = inputs(1);
        let hessian = hessian(&x);
        let order = (case["act_order"] == true).then(|| hessian.falling_order());
        let factor = hessian.factor(case["damping"].as_f64().unwrap() as f32, order.as_deref()).unwrap();
        assert_eq!(factor.attempts(), 1);
        let scales = match case["scales_are"].as_str() {
            Some("original") => GroupScales::Original,
            _ => GroupScales::Updated,
        };
        let zero_point = if case["symmetric"] == true { ZeroPoint::Symmetric } else { ZeroPoint::Asymmetric };
        let scale = FloatType::parse(case["scale_dtype"].as_str().unwrap()).unwrap();
        let grid = grid(number("bits") as u8, number("group_size"), zero_point, scale);
        let options = GptqOptions { scales, refine: 0 };
        let mut weight = weights(rows, n, 2);
        if let Some(strength) = case["strength"].as_f64() {
            let mut sums = CrossAccumulator::new(n);
            sums.add(&inputs(3), &x);
            sums.finish().aim_at_dense(&factor, strength as f32, &mut weight).unwrap();
        }
        let found = gptq::quantize(&grid, Clip::None, &options, &mut weight, &factor).unwrap();

        // f32 beside f64: a weight within 10⁻⁶ of a tie may fall to the other side, and those behind it in its row.
        let expected = bytes(&case["codes"]);
        let codes = codes(&grid, &found, n);
        let other = codes.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
        assert!(other * 1000 <= codes.len(), "case {index}: {other} of {} codes differ", codes.len());
        let expected = bytes(&case["scales"]);
        let groups = n / grid.group_size.get();
        for at in 0..rows * groups {
            let (found, expected) = (scale.read(&found.rows.scales, at), FloatType::F32.read(&expected, at));
            // A step of bf16.
            assert!((found - expected).abs() <= expected / 128.0, "case {index}: scale {at}");
        }
        if zero_point == ZeroPoint::Asymmetric {
            assert_eq!(found.rows.zero_codes, bytes(&case["zeros"]), "case {index}");
            let words = pack_zero_points(&found.rows.zero_codes, rows, groups, grid.bits);
            assert_eq!(words.len(), 4 * grid.zero_point_words(rows) * groups);
        }
        let expected: Option<Vec<u32>> = case["group_of_column"]
            .as_array()
            .map(|groups| groups.iter().map(|group| group.as_u64().unwrap() as u32).collect());
        assert_eq!(found.group_of_column, expected, "case {index}");
        assert_eq!(decoded(&grid, &found, n), weight, "case {index}");
        let close = |found: f64, key: &str| {
            let expected = case[key].as_f64().unwrap();
            assert!((found / expected - 1.0).abs() < 2e-3, "case {index}: {key} {found} {expected}");
        };
        close(found.record.weight_error, "weight_error");
        close(found.record.output_error, "output_error");
    }
}

/// Every clip and way to find scales.
fn every_choice(mut test: impl FnMut(Clip, GroupScales)) {
    for clip in [Clip::None, Clip::Mse] {
        for scales in [GroupScales::Updated, GroupScales::Original] {
            test(clip, scales);
        }
    }
}

#[test]
fn a_diagonal_hessian_gives_the_codes_of_round_to_nearest() {
    let n = 96;
    let original = weights(131, n, 1);
    let mut square = vec![0.0; n * n];
    for at in 0..n {
        // Some dead, some large.
        square[at * n + at] = if at % 7 == 2 { 0.0 } else { (at * at) as f32 + 0.1 };
    }
    let hessian = Hessian::from_lower(n, 10, square);
    let order = hessian.falling_order();
    for grid in grids(n) {
        every_choice(|clip, scales| {
            let mut decided = vec![0.0; original.len()];
            let expected = quantize_rows_clipped(&grid, clip, &original, n, &mut decided).unwrap();
            for order in [None, Some(&order[..])] {
                if order.is_some() && scales == GroupScales::Updated {
                    continue; // other columns make a group
                }
                let factor = hessian.clone().factor(0.01, order).unwrap();
                let mut weight = original.clone();
                let options = GptqOptions { scales, ..GptqOptions::default() };
                let found = gptq::quantize(&grid, clip, &options, &mut weight, &factor).unwrap();
                assert_eq!(found.rows, expected, "{grid:?} {clip:?} {scales:?}");
                assert_eq!(weight, decided);
                assert_eq!(found.group_of_column, None);
            }
        });
    }
}

#[test]
fn endless_damping_gives_the_codes_of_round_to_nearest() {
    let n = 96;
    let original = weights(9, n, 1);
    let factor = hessian(&activations(50, n, 1)).factor(1e12, None).unwrap();
    for grid in grids(n) {
        every_choice(|clip, scales| {
            let mut decided = vec![0.0; original.len()];
            let expected = quantize_rows_clipped(&grid, clip, &original, n, &mut decided).unwrap();
            let mut weight = original.clone();
            let options = GptqOptions { scales, ..GptqOptions::default() };
            let found = gptq::quantize(&grid, clip, &options, &mut weight, &factor).unwrap();
            assert_eq!((found.rows, weight), (expected, decided), "{grid:?} {clip:?} {scales:?}");
        });
    }
}

#[test]
fn an_aim_at_dense_outputs_brings_the_rounded_ones_closer() {
    let (n, tokens) = (128, 500);
    let dense = activations(tokens, n, 1);
    let mut x = dense.clone();
    let moved = activations(tokens, n, 2);
    x.as_mut_slice().iter_mut().zip(moved.as_slice()).for_each(|(x, moved)| *x = 0.9 * *x + 0.1 * moved);
    let original = weights(20, n, 3);
    let factor = hessian(&x).factor(0.01, None).unwrap();
    let mut sums = CrossAccumulator::new(n);
    sums.add(&dense, &x);
    let cross = sums.finish();
    let grid = grid(4, 32, ZeroPoint::Symmetric, FloatType::BF16);
    let error = |strength| {
        let mut weight = original.clone();
        cross.aim_at_dense(&factor, strength, &mut weight).unwrap();
        gptq::quantize(&grid, Clip::None, &GptqOptions::default(), &mut weight, &factor).unwrap();
        let mut sum = 0.0;
        for token in 0..tokens {
            for (original, weight) in original.chunks_exact(n).zip(weight.chunks_exact(n)) {
                let wanted: f32 = original.iter().zip(dense.row(token)).map(|(w, x)| w * x).sum();
                let found: f32 = weight.iter().zip(x.row(token)).map(|(w, x)| w * x).sum();
                sum += f64::from(wanted - found).powi(2);
            }
        }
        sum
    };
    let (without, with) = (error(0.0), error(1.0));
    assert!(with < 0.8 * without, "{with} {without}");
}

#[test]
fn outputs_are_closer_than_those_of_round_to_nearest() {
    let n = 144;
    let original = weights(20, n, 1);
    let x = activations(400, n, 1);
    let hessian = hessian(&x);
    let order = hessian.falling_order();
    for grid in grids(n) {
        every_choice(|clip, scales| {
            let mut decided = vec![0.0; original.len()];
            quantize_rows_clipped(&grid, clip, &original, n, &mut decided).unwrap();
            let nearest = output_error(&hessian, &original, &decided);
            for order in [None, Some(&order[..])] {
                let factor = hessian.clone().factor(0.01, order).unwrap();
                let mut weight = original.clone();
                let options = GptqOptions { scales, ..GptqOptions::default() };
                let found = gptq::quantize(&grid, clip, &options, &mut weight, &factor).unwrap();
                let error = output_error(&hessian, &original, &weight);
                let what = format!("{grid:?} {clip:?} {scales:?} {}", order.is_some());
                assert!(error < 0.9 * nearest, "{what}: {error} {nearest}");
                let told = found.record.output_error;
                // Told from errors pushed in f32, less what damping adds.
                assert!((told / error - 1.0).abs() < 1e-2, "{what}: {told} {error}");
                assert_eq!(decoded(&grid, &found, n), weight, "{what}");
            }
        });
    }
}

#[test]
fn every_pass_of_refinement_lowers_the_error_of_the_outputs() {
    let n = 144;
    let original = weights(20, n, 1);
    let hessian = hessian(&with_dead(activations(400, n, 1), 40));
    let order = hessian.falling_order();
    for grid in grids(n) {
        every_choice(|clip, scales| {
            for order in [None, Some(&order[..])] {
                let factor = hessian.clone().factor(0.01, order).unwrap();
                let what = format!("{grid:?} {clip:?} {scales:?} {}", order.is_some());
                let mut before = f64::INFINITY;
                for refine in [0, 1, 4] {
                    let mut weight = original.clone();
                    let options = GptqOptions { scales, refine };
                    let found = gptq::quantize(&grid, clip, &options, &mut weight, &factor).unwrap();
                    assert_eq!(decoded(&grid, &found, n), weight, "{what}");
                    // The error that falls is that of the damped Hessian.
                    let moved = original.iter().zip(&weight).enumerate().filter(|(at, _)| at % n != 40);
                    let moved: f64 = moved.map(|(_, (a, b))| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
                    let outputs = output_error(&hessian, &original, &weight);
                    let error = outputs + f64::from(factor.added()) / 2.0 * moved;
                    let bound = if refine == 1 && grid.bits.get() <= 4 { 0.99 } else { 1.0 };
                    assert!(error < bound * before, "{what}: {error} after {before}");
                    let told = found.record.output_error;
                    assert!((told / outputs - 1.0).abs() < 1e-2, "{what}: {told} {outputs}");
                    before = error;
                }
            }
        });
    }
}

#[test]
fn threads_change_no_byte() {
    let n = 320;
    let original = weights(300, n, 1);
    let x = activations(400, n, 1);
    let make = |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let hessian = hessian(&x);
            let order = hessian.falling_order();
            let factor = hessian.factor(0.01, Some(&order)).unwrap();
            let grid = grid(4, 64, ZeroPoint::Asymmetric, FloatType::F16);
            let mut weight = original.clone();
            let options = GptqOptions { refine: 2, ..GptqOptions::default() };
            let found = gptq::quantize(&grid, Clip::None, &options, &mut weight, &factor);
            (found.unwrap(), weight)
        })
    };
    let one = make(1);
    for threads in [2, 3] {
        assert!(make(threads) == one, "{threads} threads");
    }
}

#[test]
fn hostile_statistics_give_finite_weights() {
    let n = 64;
    let original = weights(6, n, 1);
    let ones = Matrix::from_vec(40, n, vec![1.0; 40 * n]);
    let with = |value: f32| {
        let mut x = activations(40, n, 1);
        x.row_mut(7)[9] = value;
        x
    };
    let inputs =
        [Matrix::zeros(0, n), Matrix::zeros(9, n), activations(1, n, 1), ones, with(1e15), with(1e-30)];
    for (case, x) in inputs.iter().enumerate() {
        let hessian = hessian(x);
        let order = hessian.falling_order();
        for damping in [0.0, 0.01] {
            for order in [None, Some(&order[..])] {
                let factor = hessian.clone().factor(damping, order).unwrap();
                for grid in grids(n).iter().filter(|grid| n.is_multiple_of(grid.group_size.get())) {
                    every_choice(|clip, scales| {
                        let mut weight = original.clone();
                        let options = GptqOptions { scales, refine: 2 };
                        let found = gptq::quantize(grid, clip, &options, &mut weight, &factor).unwrap();
                        assert!(weight.iter().all(|value| value.is_finite()), "{case} {damping} {grid:?}");
                        assert!(found.record.output_error >= 0.0);
                        assert_eq!(decoded(grid, &found, n), weight);
                    });
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_rounded_is_named_and_left_as_it_was() {
    let n = 64;
    let factor = hessian(&activations(90, n, 1)).factor(0.01, None).unwrap();
    let options = GptqOptions::default();
    let symmetric = |size, scale| grid(4, size, ZeroPoint::Symmetric, scale);
    let attempt = |grid: &Grouped, weight: &mut Vec<f32>| {
        let before = weight.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let error = gptq::quantize(grid, Clip::None, &options, weight, &factor).unwrap_err();
        assert_eq!(before, weight.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        error
    };
    let mut weight = weights(200, n, 1);
    let uneven = attempt(&symmetric(48, FloatType::BF16), &mut weight);
    assert_eq!(uneven, Error::UnevenGroups { in_features: n, group_size: 48 });
    weight[150 * n + 33] = f32::INFINITY;
    let infinite = attempt(&symmetric(32, FloatType::BF16), &mut weight);
    assert_eq!(infinite, Error::NonFinite { row: 150, col: 33, value: f32::INFINITY });
    weight[150 * n + 33] = 1e30;
    weight[20 * n + 1] = 1e30;
    let error = attempt(&symmetric(32, FloatType::F16), &mut weight);
    assert!(matches!(error, Error::ScaleOverflow { row: 20, col: 0, float: FloatType::F16, .. }), "{error}");
}

#[test]
fn errors_that_grow_without_bound_are_named() {
    // H = VVᵀ of a V with 1 on its diagonal and −100 right of it: an error is pushed on a hundredfold by every column.
    let n = 18;
    let mut square = vec![0.0; n * n];
    for at in 0..n {
        square[at * n + at] = if at == n - 1 { 1.0 } else { 10001.0 };
        if at > 0 {
            square[at * n + at - 1] = -100.0;
        }
    }
    let factor = Hessian::from_lower(n, 1, square).factor(0.0, None).unwrap();
    assert_eq!(factor.attempts(), 1);
    let original: Vec<f32> = weights(3, n, 1).iter().map(|weight| weight * 1e6).collect();
    let mut weight = original.clone();
    let grid = grid(4, n, ZeroPoint::Symmetric, FloatType::F32);
    let found = gptq::quantize(&grid, Clip::None, &GptqOptions::default(), &mut weight, &factor);
    let error = found.unwrap_err();
    assert_eq!(error, Error::Diverged { row: 0 });
    assert!(error.hint().is_some());
    assert_eq!(weight, original);
}

#[test]
fn no_rows_give_no_bytes() {
    let factor = HessianAccumulator::new(32).finish().factor(0.01, None).unwrap();
    let grid = grid(4, 16, ZeroPoint::Asymmetric, FloatType::F16);
    let found = gptq::quantize(&grid, Clip::None, &GptqOptions::default(), &mut [], &factor).unwrap();
    assert!(found.rows.packed.is_empty() && found.rows.scales.is_empty());
}

#[test]
fn a_grid_of_a_whole_row_is_that_of_channels() {
    let channel = RtnGrid {
        bits: Bits::new(4).unwrap(),
        granularity: Granularity::Channel,
        zero_point: ZeroPoint::Symmetric,
        scale: FloatType::F32,
    };
    let n = 100;
    let factor = hessian(&activations(300, n, 1)).factor(0.01, None).unwrap();
    let layout = channel.layout(n).unwrap();
    let mut weight = weights(2, n, 1);
    let found = gptq::quantize(&layout, Clip::None, &GptqOptions::default(), &mut weight, &factor).unwrap();
    assert_eq!(found.rows.scales.len(), 2 * 4);
    assert_eq!(decoded(&layout, &found, n), weight);
}
