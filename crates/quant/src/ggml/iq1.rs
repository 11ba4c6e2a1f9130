//! IQ1_S and IQ1_M: eight weights of −1, 0 or 1 at a time from a grid of 2048 points, shifted by an eighth up or down.
//!
//! With three values the best split of sorted weights is found by trying all: IQ1_S shifts 32 weights one way, IQ1_M each
//! eight of 16.

use super::grid_search::{mean_square, scale_code, weighed};
use super::lanes::F8;
use super::points::{self, Levels, Points};
use super::refine_grid::{Place, Placed};
use super::{Encode, Weighing, f16_at, f16_scale};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ1_S;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ1_M;

/// What the levels stand for, shifted up and down.
const UP: [f32; 3] = [-0.875, 0.125, 1.125];
const DOWN: [f32; 3] = [-1.125, -0.125, 0.875];

/// Below these, sub-blocks are zeros.
const IQ1_S_ZERO: f32 = 1e-12;
const IQ1_M_ZERO: f32 = 1e-7;

impl Encode<256, 50> for IQ1_S {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 50],
    ) -> Result<(), f32> {
        *out = [0; 50];
        let Some(weighing) = weighing else { return Ok(()) };
        let variance = mean_square(weights, 2.0)?;
        let (header, rest) = out.split_at_mut(2);
        let (low, high) = rest.split_at_mut(32);
        let (importance, _) = weighing.importance.as_chunks::<32>();
        let mut scales = [0f32; 8];
        let mut parts = [0u16; 8];
        let mut downs = [false; 8];
        for (sub, x) in weights.as_chunks::<32>().0.iter().enumerate() {
            let importance = weighed(x, &importance[sub], variance);
            if largest_magnitude(x) < IQ1_S_ZERO {
                continue;
            }
            let order = sorted(x);
            let Some(split) = best_split(x, &importance, &order) else { continue };
            let mut down = split.down;
            let mut levels = levels_of_split::<32, 4>(&order, split.first, split.second);
            let mut scale = split.scale;
            if scale < 0.0 {
                levels = levels.map(turned);
                (scale, down) = (-scale, !down);
            }
            let values = if down { DOWN } else { UP };
            let indexes = to_grid::<32, 4>(x, &importance, &mut scale, &mut levels, |_| values);
            if !scale.is_finite() {
                return Err(scale);
            }
            for (k, index) in indexes.into_iter().enumerate() {
                low[4 * sub + k] = index as u8;
                parts[sub] |= (index >> 8 << (3 * k)) as u16;
            }
            (scales[sub], downs[sub]) = (scale, down);
        }
        let most = scales.iter().fold(0.0f32, |most, scale| most.max(*scale));
        if most == 0.0 {
            // The points stay, times zero.
            for (part, out) in parts.iter().zip(high.as_chunks_mut::<2>().0) {
                *out = part.to_le_bytes();
            }
            return Ok(());
        }
        let d = most / 15.0;
        header.copy_from_slice(&f16_scale(d * 1.125)?.to_le_bytes());
        for (sub, out) in high.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let code = scale_code(1.0 / d, scales[sub], 7) | u8::from(downs[sub]) << 3;
            *out = (parts[sub] | u16::from(code) << 12).to_le_bytes();
        }
        Ok(())
    }
}

impl Encode<256, 56> for IQ1_M {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 56],
    ) -> Result<(), f32> {
        *out = [0; 56];
        let variance = mean_square(weights, 2.0)?;
        let (low, rest) = out.split_at_mut(32);
        let (high, scale_words) = rest.split_at_mut(16);
        let (sub_blocks, _) = weights.as_chunks::<16>();
        let importance = |sub: usize| match weighing {
            Some(weighing) => {
                weighed(&sub_blocks[sub], &weighing.importance.as_chunks::<16>().0[sub], variance)
            }
            None => sub_blocks[sub].map(|x| x * x),
        };
        let mut scales = [0f32; 16];
        // Bit 0 says that the first eight are shifted down, bit 1 the second.
        let mut downs = [0u8; 16];
        let mut points = [[0u32; 2]; 16];
        let values = |downs: u8, k: usize| if downs >> k & 1 == 1 { DOWN } else { UP };
        for (sub, x) in sub_blocks.iter().enumerate() {
            let importance = importance(sub);
            if largest_magnitude(x) < IQ1_M_ZERO {
                continue;
            }
            let order = sorted(x);
            let Some(split) = best_split_of_halves(x, &importance, &order) else { continue };
            let mut down = split.downs;
            let mut levels = levels_of_split::<16, 2>(&order, split.first, split.second);
            let mut scale = split.scale;
            if scale < 0.0 {
                levels = levels.map(turned);
                (scale, down) = (-scale, !down & 3);
            }
            points[sub] = to_grid::<16, 2>(x, &importance, &mut scale, &mut levels, |k| values(down, k));
            if !scale.is_finite() {
                return Err(scale);
            }
            (scales[sub], downs[sub]) = (scale, down);
        }
        for (sub, [first, second]) in points.iter().enumerate() {
            low[2 * sub] = *first as u8;
            low[2 * sub + 1] = *second as u8;
            high[sub] = (first >> 8 | second >> 8 << 4) as u8;
        }
        let most = scales.iter().fold(0.0f32, |most, scale| most.max(*scale));
        if most == 0.0 {
            return Ok(());
        }
        let mut d = most / 15.0;
        let inverse = 1.0 / d;
        let mut words = [0u16; 4];
        let (mut qx, mut q2) = (0.0, 0.0);
        for (sub, x) in sub_blocks.iter().enumerate() {
            let code = scale_code(inverse, scales[sub], 7);
            words[sub / 4] |= u16::from(code) << (3 * (sub % 4));
            high[sub] |= (downs[sub] & 1) << 3 | (downs[sub] >> 1) << 7;
            let importance = importance(sub);
            for (i, x) in x.iter().enumerate() {
                let level = bitmill_tensor::grid::IQ1[points[sub][i / 8] as usize].to_le_bytes()[i % 8];
                let value = values(downs[sub], i / 8)[usize::from(level.wrapping_add(1))];
                let q = value * f32::from(2 * code + 1);
                qx += importance[i] * q * x;
                q2 += importance[i] * q * q;
            }
        }
        if q2 > 0.0 {
            d = qx / q2;
        }
        let bits = f16_scale(d * 1.1125)?.to_bits();
        for (word, out) in scale_words.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *out = (words[word] | (bits >> (4 * word) & 15) << 12).to_le_bytes();
        }
        Ok(())
    }
}

/// What the levels stand for before they are shifted; the last stands for no point.
const VALUES: [f32; 8] = [-1.0, 0.0, 1.0, 1.0, -1.0, 0.0, 1.0, 1.0];

impl Place<32, 8, 2, 50> for IQ1_S {
    const VALUES: [f32; 8] = VALUES;
    const SHIFT: f32 = 0.125;
    const SHIFTED_TOGETHER: usize = 4;
    const SUB_BLOCK: usize = 32;
    const TOP: u8 = 7;

    fn points() -> &'static Points<8, 2> {
        &points::IQ1
    }

    #[inline(always)]
    fn read(block: &[u8; 50]) -> Placed<32> {
        let mut placed = Placed { d: f16_at(block, 0), ..Placed::ZERO };
        for (sub, part) in block[34..].as_chunks::<2>().0.iter().enumerate() {
            let part = u16::from_le_bytes(*part);
            placed.scales[sub] = (part >> 12 & 7) as u8;
            for k in 0..4 {
                let high = u32::from(part >> (3 * k) & 7);
                placed.levels[4 * sub + k] =
                    points::IQ1.levels(u32::from(block[2 + 4 * sub + k]) | high << 8);
                placed.downs[4 * sub + k] = part >> 15 == 1;
            }
        }
        placed
    }

    #[inline(always)]
    fn write(placed: &Placed<32>, out: &mut [u8; 50]) {
        out[..2].copy_from_slice(&placed.d.to_le_bytes());
        for sub in 0..8 {
            let mut part = u16::from(placed.scales[sub]) << 12 | u16::from(placed.downs[4 * sub]) << 15;
            for k in 0..4 {
                let index = points::IQ1.index(placed.levels[4 * sub + k]).unwrap_or(0);
                out[2 + 4 * sub + k] = index as u8;
                part |= (index >> 8 << (3 * k)) as u16;
            }
            out[34 + 2 * sub..][..2].copy_from_slice(&part.to_le_bytes());
        }
    }
}

impl Place<32, 8, 2, 56> for IQ1_M {
    const VALUES: [f32; 8] = VALUES;
    const SHIFT: f32 = 0.125;
    const SUB_BLOCK: usize = 16;
    const TOP: u8 = 7;

    fn points() -> &'static Points<8, 2> {
        &points::IQ1
    }

    #[inline(always)]
    fn read(block: &[u8; 56]) -> Placed<32> {
        let word = |at: usize| u16::from_le_bytes([block[48 + 2 * at], block[49 + 2 * at]]);
        let d = (0..4).fold(0, |d, at| d | word(at) >> 12 << (4 * at));
        let mut placed = Placed { d: half::f16::from_bits(d), ..Placed::ZERO };
        for sub in 0..16 {
            placed.scales[sub] = (word(sub / 4) >> (3 * (sub % 4)) & 7) as u8;
            for k in 0..2 {
                let high = u32::from(block[32 + sub] >> (4 * k));
                let index = u32::from(block[2 * sub + k]) | (high & 7) << 8;
                placed.levels[2 * sub + k] = points::IQ1.levels(index);
                placed.downs[2 * sub + k] = high >> 3 & 1 == 1;
            }
        }
        placed
    }

    #[inline(always)]
    fn write(placed: &Placed<32>, out: &mut [u8; 56]) {
        out[32..48].fill(0);
        let bits = placed.d.to_bits();
        let mut words: [u16; 4] = std::array::from_fn(|at| (bits >> (4 * at) & 15) << 12);
        for sub in 0..16 {
            words[sub / 4] |= u16::from(placed.scales[sub]) << (3 * (sub % 4));
            for k in 0..2 {
                let index = points::IQ1.index(placed.levels[2 * sub + k]).unwrap_or(0);
                out[2 * sub + k] = index as u8;
                let down = u8::from(placed.downs[2 * sub + k]) << 3;
                out[32 + sub] |= ((index >> 8) as u8 | down) << (4 * k);
            }
        }
        for (word, out) in words.into_iter().zip(out[48..].as_chunks_mut::<2>().0) {
            *out = word.to_le_bytes();
        }
    }
}

#[inline(always)]
fn largest_magnitude<const N: usize>(weights: &[f32; N]) -> f32 {
    weights.iter().fold(0.0, |most, x| if most > x.abs() { most } else { x.abs() })
}

/// Where the weights lie in ascending order; equals stay in their own.
#[inline(always)]
fn sorted<const N: usize>(weights: &[f32; N]) -> [u8; N] {
    let mut keys: [u64; N] = std::array::from_fn(|i| {
        // −0 equals 0. The bits of the others are in order once those of negative numbers are turned over.
        let bits = (weights[i] + 0.0).to_bits();
        let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        u64::from(ordered) << 8 | i as u64
    });
    keys.sort_unstable();
    keys.map(|key| key as u8)
}

/// The levels of sorted weights: 0 for the `first`, 1 up to `second`, 2 for the others.
#[inline(always)]
fn levels_of_split<const N: usize, const EIGHTS: usize>(
    order: &[u8; N],
    first: usize,
    second: usize,
) -> [Levels; EIGHTS] {
    let mut levels = [0; EIGHTS];
    for (place, at) in order.iter().enumerate() {
        let level = Levels::from(place >= first) + Levels::from(place >= second);
        levels[usize::from(at / 8)] |= level << (2 * (at % 8));
    }
    levels
}

/// Levels of the weights' negatives.
#[inline(always)]
fn turned(levels: Levels) -> Levels {
    // 2 − level in each pair of bits: none borrows.
    0xaaaa - levels
}

/// Moves each eight to the grid, with the scale that fits what was moved; the indexes of the points.
#[inline(always)]
fn to_grid<const N: usize, const EIGHTS: usize>(
    weights: &[f32; N],
    importance: &[f32; N],
    scale: &mut f32,
    levels: &mut [Levels; EIGHTS],
    values: impl Fn(usize) -> [f32; 3],
) -> [u32; EIGHTS] {
    let points = &*points::IQ1;
    let mut all_on_grid = true;
    let (eights, _) = weights.as_chunks::<8>();
    let (counts, _) = importance.as_chunks::<8>();
    for k in 0..EIGHTS {
        let [a, b, c] = values(k);
        let scaled = F8::splat(*scale) * F8([a, b, c, c, a, b, c, c]);
        let (nearest, is_point) = points.nearest(levels[k], scaled, &eights[k], &counts[k]);
        levels[k] = nearest;
        all_on_grid &= is_point;
    }
    if !all_on_grid {
        let (mut qx, mut q2) = (0.0, 0.0);
        for i in 0..N {
            let q = values(i / 8)[usize::from(levels[i / 8] >> (2 * (i % 8)) & 3)];
            qx += importance[i] * q * weights[i];
            q2 += importance[i] * q * q;
        }
        if qx > 0.0 && q2 > 0.0 {
            *scale = qx / q2;
        }
    }
    levels.map(|levels| points.index(levels).unwrap_or(0))
}

/// Two places that split sorted weights into levels, and the scale and the shift that fit them.
struct Split {
    first: usize,
    second: usize,
    scale: f32,
    down: bool,
}

/// The split of 32 weights whose squared error is least; the first of equals. `None` if nothing counts.
#[inline(always)]
fn best_split(weights: &[f32; 32], importance: &[f32; 32], order: &[u8; 32]) -> Option<Split> {
    let (mut sum_x, mut sum_w) = ([0f32; 33], [0f32; 33]);
    for (j, at) in order.iter().enumerate() {
        let i = usize::from(*at);
        sum_x[j + 1] = sum_x[j] + importance[i] * weights[i];
        sum_w[j + 1] = sum_w[j] + importance[i];
    }
    let mut found = None;
    let mut best = f32::MIN;
    for first in 0..=32 {
        for second in first..=32 {
            for (down, v) in [(false, UP), (true, DOWN)] {
                let qx = (sum_x[first] - sum_x[0]) * v[0]
                    + (sum_x[second] - sum_x[first]) * v[1]
                    + (sum_x[32] - sum_x[second]) * v[2];
                let q2 = (sum_w[first] - sum_w[0]) * v[0] * v[0]
                    + (sum_w[second] - sum_w[first]) * v[1] * v[1]
                    + (sum_w[32] - sum_w[second]) * v[2] * v[2];
                if q2 > 0.0 && qx * qx > best * q2 {
                    let scale = qx / q2;
                    best = scale * qx;
                    found = Some(Split { first, second, scale, down });
                }
            }
        }
    }
    found
}

/// As [`Split`], each half shifted its own way.
struct SplitOfHalves {
    first: usize,
    second: usize,
    scale: f32,
    downs: u8,
}

/// The split of 16 weights whose squared error is least, and which way each half of them is shifted.
#[inline(always)]
fn best_split_of_halves(
    weights: &[f32; 16],
    importance: &[f32; 16],
    order: &[u8; 16],
) -> Option<SplitOfHalves> {
    let (mut sum_x, mut sum_w) = ([[0f32; 17]; 2], [[0f32; 17]; 2]);
    for (j, at) in order.iter().enumerate() {
        let i = usize::from(*at);
        let own = i / 8;
        sum_x[own][j + 1] = sum_x[own][j] + importance[i] * weights[i];
        sum_w[own][j + 1] = sum_w[own][j] + importance[i];
        sum_x[1 - own][j + 1] = sum_x[1 - own][j];
        sum_w[1 - own][j + 1] = sum_w[1 - own][j];
    }
    // Values differ by one from level to level, so the sum over three levels is that of all at the top less two sums.
    let steps = |v: [f32; 3]| (v[0] * v[0] - v[1] * v[1], v[1] * v[1] - v[2] * v[2]);
    let mut found = None;
    let mut best = f32::MIN;
    for first in 0..=16 {
        for second in first..=16 {
            // [shift][half]
            let fit = [UP, DOWN].map(|v| {
                let (one, two) = steps(v);
                [0, 1].map(|half| {
                    let (x, w) = (&sum_x[half], &sum_w[half]);
                    let qx = x[16] * v[2] - (x[first] + x[second]);
                    let q2 = w[16] * v[2] * v[2] + w[first] * one + w[second] * two;
                    (qx, q2)
                })
            });
            for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let (qx, q2) = (fit[a][0].0 + fit[b][1].0, fit[a][0].1 + fit[b][1].1);
                if q2 > 0.0 && qx * qx > best * q2 {
                    let scale = qx / q2;
                    best = scale * qx;
                    found = Some(SplitOfHalves { first, second, scale, downs: (a | b << 1) as u8 });
                }
            }
        }
    }
    found
}
