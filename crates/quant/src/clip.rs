//! Ranges of groups that leave out their outliers: the search of a scale by squared error.
//!
//! A grid over the whole range of a group keeps its largest weight and pays with a coarser step for all the others. Few
//! bits gain most from a narrower range whose outermost weights are clipped: of normally distributed weights in groups
//! of 64 the error falls by 52 % at 2 bits, 37 % at 3 and 25 % at 4 (40, 19 and 8 % with zero points).
//!
//! Candidates are the range times 1.00, 0.98, … 0.40; for asymmetric grids then each end alone. Symmetric codes have one more
//! below zero than above it: a negative scale gives that one to the end that needs it, so each candidate is tried both ways
//! round. The error counted is that of the stored scale and the codes that go with it, so the result is never worse than the whole
//! range's.

use bitmill_tensor::{Grouped, ZeroPoint};

use crate::rtn::{CodeRange, nearest_even, scale_and_zero};

/// How the range that a group's codes span is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Clip {
    /// It is that of the group's weights.
    #[default]
    None,
    /// It is the part of it that leaves the smallest squared error.
    Mse,
    /// As [`hqq`](crate::hqq) finds it, with its usual parameters.
    Hqq,
}

/// Candidates after the first: 0.98, 0.96, … 0.40.
const STEPS: u8 = 30;

/// Scale as it is stored, and signed zero point, of the best range within `min..=max`; or the scale that its type
/// cannot hold.
pub(crate) fn search(
    grid: &Grouped,
    codes: &CodeRange,
    weights: &[f32],
    (min, max): (f32, f32),
) -> Result<(f32, f32), f32> {
    let better = |found| better_way_round(grid, codes, found, weights);
    let (mut best, mut least) = better(scale_and_zero(grid, codes, min, max)?);
    let mut range = (min, max);
    let ends: &[(bool, bool)] = match grid.zero_point {
        ZeroPoint::Symmetric => &[(true, true)],
        ZeroPoint::Asymmetric => &[(true, true), (true, false), (false, true)],
    };
    for &(low, high) in ends {
        let from = range;
        for step in 1..=STEPS {
            let factor = 1.0 - 0.02 * f32::from(step);
            let of = |moves: bool, end: f32| if moves { end * factor } else { end };
            let candidate = (of(low, from.0), of(high, from.1));
            let (found, error) = better(scale_and_zero(grid, codes, candidate.0, candidate.1)?);
            if error < least {
                (best, least, range) = (found, error, candidate);
            }
        }
    }
    Ok(best)
}

/// The grid of a scale or, where codes are symmetric, that of the negative scale, whichever leaves less; and what it leaves.
fn better_way_round(
    grid: &Grouped,
    codes: &CodeRange,
    found: (f32, f32),
    weights: &[f32],
) -> ((f32, f32), f64) {
    let error = squared_error(codes, found, weights);
    if grid.zero_point == ZeroPoint::Asymmetric {
        return (found, error);
    }
    let turned = (-found.0, found.1);
    let other = squared_error(codes, turned, weights);
    if other < error { (turned, other) } else { (found, error) }
}

/// Σ (weight − what its code stands for)², in eight chains of f64: nothing a checkpoint holds overflows or vanishes.
fn squared_error(codes: &CodeRange, (scale, zero): (f32, f32), weights: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    for weights in weights.chunks(8) {
        for (sum, weight) in sums.iter_mut().zip(weights) {
            let code = nearest_even((weight / scale + zero).max(codes.lowest).min(codes.highest));
            let moved = f64::from(weight - scale * (code - zero));
            *sum += moved * moved;
        }
    }
    sums.iter().sum()
}
