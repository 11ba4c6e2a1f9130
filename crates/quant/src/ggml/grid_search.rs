//! The search that IQ2 and IQ3 share: a scale and a point of the grid for each group of a sub-block.
//!
//! Every candidate scale rounds all weights to levels, moves groups to the grid, and gives the scale that fits those best.
//! Lanes hold candidates, so that each sum runs from the first weight to the last as ggml's does.

use super::importance::sum_of_squares;
use super::lanes::F8;
use super::nearest_int;
use super::neighbours::{Group, Room};
use super::points::{Levels, Points, values_of};

/// What the sub-blocks of a type are searched with.
pub(super) struct Search {
    /// Candidates to either side of the one whose largest level is that of the largest weight.
    pub tries: i32,
    /// How far each is from the next, in levels' values.
    pub step: f32,
    /// Which groups are rounded again with the scale that was found.
    pub again: Again,
}

/// Groups that are rounded again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// All.
    All,
    /// Those that are beside the grid.
    BesideGrid,
    /// All, if one is beside the grid.
    AllIfOneBesideGrid,
}

/// A sub-block's points and scale.
pub(super) struct Found<const GROUPS: usize> {
    pub scale: f32,
    pub levels: [Levels; GROUPS],
}

/// At most four vectors of candidates.
const VECTORS: usize = 4;

/// Searches `weights`, magnitudes (the signs are stored beside them), whose errors count `importance`.
///
/// `largest` is the magnitude that candidates give the top level to, `scale` what stays if no candidate fits at all.
#[inline(always)]
pub(super) fn search<const N: usize, const GROUPS: usize, const GROUP: usize, const BITS: u32>(
    points: &Points<GROUP, BITS>,
    search: &Search,
    largest: f32,
    scale: f32,
    weights: &[f32; N],
    importance: &[f32; N],
) -> Found<GROUPS> {
    let count = 2 * search.tries as usize + 1;
    let vectors = count.div_ceil(8);
    let top = top_value(BITS);
    let mut inverses = [F8::ZERO; VECTORS];
    let mut scales = [F8::ZERO; VECTORS];
    for v in 0..vectors {
        // Lanes behind the last candidate repeat it.
        let steps =
            F8(std::array::from_fn(|lane| (8 * v + lane).min(count - 1) as f32 - search.tries as f32));
        inverses[v] = (F8::splat(top) + steps * F8::splat(search.step)) / F8::splat(largest);
        scales[v] = F8::splat(1.0) / inverses[v];
    }
    let scales: [[f32; 8]; VECTORS] = scales.map(|scales| scales.0);
    let scales = &scales.as_flattened()[..count];
    let roots: [f32; N] = importance.map(f32::sqrt);
    let (groups, _) = weights.as_chunks::<GROUP>();
    let (group_roots, _) = roots.as_chunks::<GROUP>();

    // [group][vector][lane]
    let mut tried = [[[0 as Levels; 8]; VECTORS]; GROUPS];
    let mut on_grid = [[0u32; 8]; VECTORS];
    let mut room = Room::new();
    for (k, group) in groups.iter().enumerate() {
        for v in 0..vectors {
            tried[k][v] = levels_of_lanes::<GROUP, BITS>(inverses[v], group);
        }
        let tried = &mut tried[k].as_flattened_mut()[..count];
        let on_grid = &mut on_grid.as_flattened_mut()[..count];
        let weighed = Group::new::<BITS>(group, &group_roots[k]);
        // Levels grow with the candidates, so equal ones stand side by side.
        let mut from = 0;
        while from < count {
            let levels = tried[from];
            let to = tried[from..].iter().position(|other| *other != levels).map_or(count, |run| from + run);
            if points.index(levels).is_some() {
                on_grid[from..to].iter_mut().for_each(|on_grid| *on_grid |= 1 << k);
            } else {
                points.nearest_at(levels, &weighed, &scales[from..to], &mut room, &mut tried[from..to]);
            }
            from = to;
        }
    }

    let all_on_grid = (1 << GROUPS) - 1;
    // ggml takes zeros for on the grid, but where it rounds all groups again.
    let mut found_on_grid = if search.again == Again::AllIfOneBesideGrid { 0 } else { all_on_grid };
    let mut found = Found { scale, levels: [0; GROUPS] };
    let mut best = 0.0;
    for v in 0..vectors {
        let (qx, q2) = fits_of_lanes::<N, GROUPS, GROUP, BITS>(&tried, v, weights, importance);
        for lane in 0..8.min(count - 8 * v) {
            let (qx, q2) = (qx.0[lane], q2.0[lane]);
            if q2 > 0.0 && qx * qx > best * q2 {
                found.scale = qx / q2;
                best = found.scale * qx;
                found.levels = std::array::from_fn(|k| tried[k][v][lane]);
                found_on_grid = on_grid[v][lane];
            }
        }
    }
    let rounds_again = search.again == Again::All || found_on_grid != all_on_grid;
    if rounds_again && found.scale > 0.0 {
        let inverse = 1.0 / found.scale;
        let values = values_of::<BITS>(found.scale);
        for k in 0..GROUPS {
            if search.again == Again::BesideGrid && found_on_grid >> k & 1 == 1 {
                continue;
            }
            let mut levels = 0;
            for (i, weight) in groups[k].iter().enumerate() {
                levels |= (level::<BITS>(inverse, *weight) as Levels) << (BITS as usize * i);
            }
            found.levels[k] = points.nearest(levels, values, &groups[k], &group_roots[k]).0;
        }
        let (qx, q2) = fit::<N, GROUPS, GROUP, BITS>(&found.levels, weights, importance);
        if q2 > 0.0 {
            found.scale = qx / q2;
        }
    }
    found
}

/// What the top level stands for: levels are 1, 3, 5, …
const fn top_value(bits: u32) -> f32 {
    if bits == 2 { 5.0 } else { 15.0 }
}

/// The level nearest to a weight.
#[inline(always)]
fn level<const BITS: u32>(inverse: f32, weight: f32) -> i32 {
    let top = if BITS == 2 { 2 } else { 7 };
    nearest_int(0.5 * (inverse * weight - 1.0)).min(top).max(0)
}

/// [`level`] of a group's weights with eight scales.
#[inline(always)]
fn levels_of_lanes<const GROUP: usize, const BITS: u32>(inverse: F8, group: &[f32; GROUP]) -> [Levels; 8] {
    let top = if BITS == 2 { 2 } else { 7 };
    let mut packed = [0i32; 8];
    for (i, weight) in group.iter().enumerate() {
        let value = F8::splat(0.5) * (inverse * F8::splat(*weight) - F8::splat(1.0));
        let mut codes = value.0.map(nearest_int);
        codes = codes.map(|code| code.min(top));
        codes = codes.map(|code| code.max(0));
        for lane in 0..8 {
            packed[lane] |= codes[lane] << (BITS as usize * i);
        }
    }
    packed.map(|levels| levels as Levels)
}

/// `Σ importance · weight · value` and `Σ importance · value²` for the candidates of vector `v`.
#[inline(always)]
fn fits_of_lanes<const N: usize, const GROUPS: usize, const GROUP: usize, const BITS: u32>(
    levels: &[[[Levels; 8]; VECTORS]; GROUPS],
    v: usize,
    weights: &[f32; N],
    importance: &[f32; N],
) -> (F8, F8) {
    let (mut qx, mut q2) = (F8::ZERO, F8::ZERO);
    for k in 0..GROUPS {
        let mut left: [i32; 8] = levels[k][v].map(i32::from);
        for i in GROUP * k..GROUP * (k + 1) {
            let q = F8(left.map(|levels| (2 * (levels & ((1 << BITS) - 1)) + 1) as f32));
            left = left.map(|levels| levels >> BITS);
            qx = qx + F8::splat(importance[i] * weights[i]) * q;
            q2 = q2 + F8::splat(importance[i]) * q * q;
        }
    }
    (qx, q2)
}

/// [`fits_of_lanes`] of one candidate.
#[inline(always)]
fn fit<const N: usize, const GROUPS: usize, const GROUP: usize, const BITS: u32>(
    levels: &[Levels; GROUPS],
    weights: &[f32; N],
    importance: &[f32; N],
) -> (f32, f32) {
    let (mut qx, mut q2) = (0.0, 0.0);
    for i in 0..N {
        let level = levels[i / GROUP] >> (BITS as usize * (i % GROUP)) & ((1 << BITS) - 1);
        let q = f32::from(2 * level + 1);
        qx += importance[i] * weights[i] * q;
        q2 += importance[i] * q * q;
    }
    (qx, q2)
}

/// The mean of a block's squares, `times` over; the sum itself where it is beyond f32. ggml goes on with infinities there, and signs
/// and scales come out as they may.
#[inline(always)]
pub(super) fn mean_square(weights: &[f32; 256], times: f32) -> Result<f32, f32> {
    let sum = sum_of_squares(weights);
    if sum.is_finite() { Ok(times * sum / 256.0) } else { Err(sum) }
}

/// `importance · √(variance + weight²)` of each weight.
#[inline(always)]
pub(super) fn weighed<const N: usize>(weights: &[f32; N], importance: &[f32; N], variance: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (variance + weights[i] * weights[i]).sqrt())
}

/// Magnitudes and a byte of signs for each eight weights. With `even` signs the magnitude that counts least is stored
/// with the wrong sign where there would be an odd number of them, and is negative.
#[inline(always)]
pub(super) fn magnitudes<const N: usize, const EIGHTS: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    even: bool,
) -> ([f32; N], [u8; EIGHTS]) {
    let (mut magnitudes, mut signs) = ([0.0; N], [0; EIGHTS]);
    for k in 0..EIGHTS {
        for i in 0..8 {
            let weight = weights[8 * k + i];
            let negative = weight < 0.0;
            magnitudes[8 * k + i] = if negative { -weight } else { weight };
            signs[k] |= u8::from(negative) << i;
        }
        if even && signs[k].count_ones() % 2 == 1 {
            let counts = |i: usize| importance[8 * k + i] * weights[8 * k + i] * weights[8 * k + i];
            let mut least = 0;
            for i in 1..8 {
                if counts(i) < counts(least) {
                    least = i;
                }
            }
            magnitudes[8 * k + least] = -magnitudes[8 * k + least];
            signs[k] ^= 1 << least;
        }
    }
    (magnitudes, signs)
}

/// The largest of `weights`.
#[inline(always)]
pub(super) fn largest_of<const N: usize>(weights: &[f32; N]) -> f32 {
    weights[1..].iter().fold(weights[0], |max, x| if max > *x { max } else { *x })
}

/// The four bits that `scale` is stored as: odd multiples of the block's, whose inverse is `inverse`.
#[inline(always)]
pub(super) fn scale_code(inverse: f32, scale: f32, top: i32) -> u8 {
    nearest_int(0.5 * (inverse * scale - 1.0)).min(top).max(0) as u8
}
