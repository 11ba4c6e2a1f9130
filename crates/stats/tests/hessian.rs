//! Hessians, their factors and what asymmetric calibration derives from them, beside plain sums in f64.

mod noise;

use bitmill_stats::{ChannelAccumulator, CrossAccumulator, Error, Factor, Hessian, HessianAccumulator};
use bitmill_tensor::Matrix;
use noise::activations;

fn hessian(batches: &[Matrix]) -> Hessian {
    let mut sums = HessianAccumulator::new(batches[0].cols());
    batches.iter().for_each(|x| sums.add(x));
    sums.finish()
}

/// `2·aᵀ·b / tokens` in f64.
fn plain(a: &Matrix, b: &Matrix) -> Vec<f64> {
    let n = a.cols();
    let mut out = vec![0.0; n * n];
    for token in 0..a.rows() {
        for (i, a) in a.row(token).iter().enumerate() {
            for (j, b) in b.row(token).iter().enumerate() {
                out[i * n + j] += 2.0 * f64::from(*a) * f64::from(*b);
            }
        }
    }
    out.iter().map(|sum| sum / a.rows() as f64).collect()
}

fn in_pool<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

#[test]
fn a_hessian_is_the_mean_of_twice_the_outer_products() {
    for n in [1, 5, 130, 257] {
        let batches = [activations(40, n, 1), activations(1, n, 2), activations(33, n, 3)];
        let hessian = hessian(&batches);
        assert_eq!((hessian.tokens(), hessian.in_features()), (74, n));
        let all: Vec<f32> = batches.iter().flat_map(|x| x.as_slice().to_vec()).collect();
        let all = Matrix::from_vec(74, n, all);
        let expected = plain(&all, &all);
        let largest = expected.iter().fold(0f64, |most, value| most.max(value.abs()));
        let mut mirrored = hessian.clone();
        mirrored.mirror();
        for (at, expected) in expected.iter().enumerate() {
            let found = f64::from(mirrored.as_slice()[at]);
            // 74 products, each rounded to 2⁻²⁴ of the largest sum.
            assert!((found - expected).abs() < 5e-6 * largest, "{n}: {at}: {found} {expected}");
            if at / n >= at % n {
                assert_eq!(hessian.as_slice()[at], mirrored.as_slice()[at]);
            }
        }
    }
}

#[test]
fn threads_change_no_bit_of_a_hessian_its_factor_or_an_aim() {
    let n = 600;
    let make = |threads| {
        in_pool(threads, || {
            let (x, dense) = (activations(700, n, 1), activations(700, n, 2));
            let hessian = hessian(std::slice::from_ref(&x));
            let order = hessian.falling_order();
            let mut cross = CrossAccumulator::new(n);
            cross.add(&dense, &x);
            let sums = hessian.clone();
            let factor = hessian.factor(0.01, Some(&order)).unwrap();
            let mut aim = activations(200, n, 3).into_vec();
            cross.finish().aim_at_dense(&factor, 0.5, &mut aim).unwrap();
            let mut channels = ChannelAccumulator::new(n);
            channels.add(&x);
            (sums.as_slice().to_vec(), factor.as_slice().to_vec(), aim, channels.finish())
        })
    };
    let one = make(1);
    for threads in [2, 3] {
        let several = make(threads);
        assert!(one.0 == several.0, "Hessian, {threads} threads");
        assert!(one.1 == several.1, "factor, {threads} threads");
        assert!(one.2 == several.2, "aim, {threads} threads");
        assert!(one.3 == several.3, "channels, {threads} threads");
    }
}

/// The largest difference between `U·H·Uᵀ` and the identity, `H` damped and in the factor's order.
fn residue(factor: &Factor, hessian: &Hessian) -> f64 {
    let n = factor.in_features();
    let mut whole = hessian.clone();
    whole.mirror();
    let place = |at: usize| factor.order().map_or(at, |order| order[at]);
    let h = |i: usize, j: usize| {
        let damped = if i == j { f64::from(factor.added()) } else { 0.0 };
        f64::from(whole.as_slice()[place(i) * n + place(j)]) + damped
    };
    let u = |i: usize, j: usize| if j < i { 0.0 } else { f64::from(factor.as_slice()[i * n + j]) };
    let mut worst = 0f64;
    for i in 0..n {
        let left: Vec<f64> = (0..n).map(|j| (i..n).map(|p| u(i, p) * h(p, j)).sum()).collect();
        for j in 0..n {
            let sum: f64 = (j..n).map(|p| left[p] * u(j, p)).sum();
            worst = worst.max((sum - if i == j { 1.0 } else { 0.0 }).abs());
        }
    }
    worst
}

#[test]
fn the_factor_is_that_of_the_damped_inverse_in_any_order() {
    for n in [3, 40, 290] {
        let hessian = hessian(&[activations(2 * n, n, 4)]);
        let falling = hessian.falling_order();
        for order in [None, Some(&falling[..])] {
            let factor = hessian.clone().factor(0.01, order).unwrap();
            assert_eq!((factor.damping(), factor.attempts(), factor.order()), (0.01, 1, order));
            let mean = hessian.diagonal().iter().sum::<f32>() / n as f32;
            assert!((factor.added() / (0.01 * mean) - 1.0).abs() < 1e-5);
            // Condition numbers of some 10⁴ times f32's 6·10⁻⁸.
            let residue = residue(&factor, &hessian);
            assert!(residue < 2e-3, "{n}: {residue:e}");
        }
    }
}

#[test]
fn the_hessian_stays_readable_below_the_factor() {
    let n = 70;
    let hessian = hessian(&[activations(90, n, 5)]);
    let order = hessian.falling_order();
    let mut whole = hessian.clone();
    whole.mirror();
    let factor = hessian.factor(0.1, Some(&order)).unwrap();
    for i in 0..n {
        assert_eq!(factor.hessian_diagonal()[i], whole.as_slice()[order[i] * n + order[i]]);
        assert_eq!(factor.row(i).len(), n - i);
        for (j, &value) in factor.hessian_row(i).iter().enumerate() {
            assert_eq!(value, whole.as_slice()[order[i] * n + order[j]]);
        }
    }
}

#[test]
fn fewer_tokens_than_features_take_more_damping_and_say_so() {
    let n = 80;
    for tokens in [1, 7, 40] {
        let hessian = hessian(&[activations(tokens, n, 6)]);
        let factor = hessian.clone().factor(0.0, None).unwrap();
        assert!(factor.attempts() > 1 && factor.damping() >= 1e-6, "{tokens} tokens");
        assert!(factor.as_slice().iter().all(|value| value.is_finite()));
        // With usual damping the first attempt holds.
        let factor = hessian.clone().factor(0.01, None).unwrap();
        assert_eq!(factor.attempts(), 1);
        assert!(residue(&factor, &hessian) < 2e-3);
    }
}

#[test]
fn features_without_activations_are_tied_to_none_and_count_in_no_mean() {
    let n = 50;
    let mut x = activations(200, n, 7);
    for token in 0..200 {
        x.row_mut(token)[3] = 0.0;
        // Too small to square, not to multiply.
        x.row_mut(token)[20] = 1e-30;
    }
    let hessian = hessian(&[x]);
    let factor = hessian.clone().factor(0.01, None).unwrap();
    assert_eq!(factor.dead(), [3, 20]);
    let mean = hessian.diagonal().iter().sum::<f32>() / (n - 2) as f32;
    assert!((factor.added() / (0.01 * mean) - 1.0).abs() < 1e-5);
    for dead in [3, 20] {
        assert!(factor.row(dead)[1..].iter().all(|&value| value == 0.0));
        assert!((0..dead).all(|above| factor.row(above)[dead - above] == 0.0));
        assert!(factor.row(dead)[0] > 0.0);
    }
}

#[test]
fn no_tokens_at_all_give_a_diagonal_factor() {
    let factor = HessianAccumulator::new(40).finish().factor(0.01, None).unwrap();
    assert_eq!((factor.dead().len(), factor.tokens(), factor.attempts()), (40, 0, 1));
    for i in 0..40 {
        assert!(factor.row(i)[0] > 0.0 && factor.row(i)[1..].iter().all(|&value| value == 0.0));
    }
}

#[test]
fn hostile_statistics_give_named_errors_or_finite_factors() {
    let n = 34;
    let with = |value: f32| {
        let mut x = activations(20, n, 8);
        x.row_mut(9)[12] = value;
        hessian(&[x]).factor(0.01, None)
    };
    for value in [f32::NAN, f32::INFINITY, 1e20, f32::MAX] {
        assert_eq!(with(value).unwrap_err(), Error::NotFinite { column: 12 }, "{value}");
    }
    for value in [1e15, 1e-20, f32::MIN_POSITIVE, -0.0] {
        let factor = with(value).unwrap();
        assert!(factor.as_slice().iter().all(|value| value.is_finite()), "{value}");
    }
    let indefinite = Hessian::from_lower(2, 1, vec![1.0, 0.0, 9.0, 1.0]);
    let error = indefinite.factor(0.01, None).unwrap_err();
    assert_eq!(error, Error::NotPositiveDefinite { column: 0, damping: 1.0 });
    assert!(error.hint().is_some());
    for damping in [-0.1, f32::NAN, f32::INFINITY] {
        let found = Hessian::from_lower(1, 1, vec![1.0]).factor(damping, None);
        assert!(matches!(found, Err(Error::BadDamping { .. })), "{damping}");
    }
}

#[test]
fn weights_aim_at_what_solves_the_least_squares_of_dense_outputs() {
    for n in [9, 128, 300] {
        let (x, dense) = (activations(400, n, 9), activations(400, n, 10));
        let hessian = hessian(std::slice::from_ref(&x));
        let mut sums = CrossAccumulator::new(n);
        sums.add(&dense, &x);
        assert_eq!(sums.tokens(), 400);
        let cross = sums.finish();
        let mut moved = dense.clone();
        moved.as_mut_slice().iter_mut().zip(x.as_slice()).for_each(|(moved, x)| *moved -= x);
        let expected_cross = plain(&moved, &x);
        let rows = 3;
        let original = activations(rows, n, 11).into_vec();
        let falling = hessian.falling_order();
        for order in [None, Some(&falling[..])] {
            let factor = hessian.clone().factor(0.05, order).unwrap();
            let mut weight = original.clone();
            cross.aim_at_dense(&factor, 0.5, &mut weight).unwrap();
            // (aim − W) · H, H damped, is half of W · C.
            let mut whole = hessian.clone();
            whole.mirror();
            let (mut worst, mut largest) = (0f64, 0f64);
            for (original, weight) in original.chunks_exact(n).zip(weight.chunks_exact(n)) {
                for col in 0..n {
                    let mut found = 0.0;
                    let mut expected = 0.0;
                    for p in 0..n {
                        let damped = if p == col { f64::from(factor.added()) } else { 0.0 };
                        let h = f64::from(whole.as_slice()[p * n + col]) + damped;
                        found += (f64::from(weight[p]) - f64::from(original[p])) * h;
                        expected += 0.5 * f64::from(original[p]) * expected_cross[p * n + col];
                    }
                    worst = worst.max((found - expected).abs());
                    largest = largest.max(expected.abs());
                }
            }
            // Two triangular products in f32, and weights kept in it.
            assert!(worst < 1e-3 * largest, "{n}: {worst:e} of {largest:e}");
        }
    }
}

#[test]
fn equal_inputs_move_no_weight_and_broken_ones_are_named() {
    let n = 40;
    let x = activations(60, n, 1);
    let factor = hessian(std::slice::from_ref(&x)).factor(0.01, None).unwrap();
    let original = activations(2, n, 2).into_vec();
    let mut weight = original.clone();
    let mut sums = CrossAccumulator::new(n);
    sums.add(&x, &x);
    sums.finish().aim_at_dense(&factor, 1.0, &mut weight).unwrap();
    assert_eq!(weight, original);
    let mut dense = x.clone();
    dense.row_mut(5)[7] = f32::NAN;
    let mut sums = CrossAccumulator::new(n);
    sums.add(&dense, &x);
    let found = sums.finish().aim_at_dense(&factor, 1.0, &mut weight);
    assert_eq!(found, Err(Error::NotFinite { column: 7 }));
    assert_eq!(weight, original);
}

#[test]
fn the_largest_activation_tells_where_f16_overflows() {
    let mut x = activations(30, 300, 11);
    x.row_mut(4)[270] = -70000.0;
    let mut sums = ChannelAccumulator::new(300);
    sums.add(&x);
    assert_eq!(sums.tokens(), 30);
    let stats = sums.clone().finish();
    assert_eq!(stats.largest(), Some((270, 70000.0)));
    let mean =
        x.as_slice().iter().skip(17).step_by(300).map(|value| f64::from(value.abs())).sum::<f64>() / 30.0;
    assert!((f64::from(stats.mean_abs[17]) - mean).abs() < 1e-6);
    x.row_mut(5)[3] = f32::NAN;
    sums.add(&x);
    sums.add(&activations(1, 300, 12));
    let (feature, value) = sums.finish().largest().unwrap();
    assert!(feature == 3 && value.is_nan());
}
