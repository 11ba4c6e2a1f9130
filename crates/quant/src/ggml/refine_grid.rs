//! A better search than ggml's for the types whose weights lie on a grid of points: from the block that ggml makes, scales of
//! sub-blocks are moved by steps, each group goes to the nearest point by what the points really stand for, and the
//! block's own scale is fitted again, as long as the weighted squared error of what is stored falls.
//!
//! ggml finds points for scales as they are before they are rounded, and for levels of 1, 3, 5, … where those of IQ2 are
//! 8, 25 and 43. Signs stay as ggml chose them.

use std::marker::PhantomData;

use half::f16;

use super::encoder::Improve;
use super::f16_scale;
use super::lanes::F8;
use super::points::{Levels, Points};

/// A block in its parts.
#[derive(Clone, Copy)]
pub(super) struct Placed<const GROUPS: usize> {
    pub d: f16,
    /// Of each sub-block, as it is stored: `2 · scale + 1` times `d`.
    pub scales: [u8; 16],
    pub levels: [Levels; GROUPS],
    /// A byte for eight weights; 0 for types without signs.
    pub signs: [u8; 32],
    /// Which groups are shifted down, of types that are shifted.
    pub downs: [bool; 32],
}

impl<const GROUPS: usize> Placed<GROUPS> {
    pub const ZERO: Self =
        Self { d: f16::ZERO, scales: [0; 16], levels: [0; GROUPS], signs: [0; 32], downs: [false; 32] };
}

/// A block type on a grid of points of `GROUP` weights, `GROUPS` to a block of 256.
pub(super) trait Place<const GROUPS: usize, const GROUP: usize, const BITS: u32, const BYTES: usize> {
    /// What the levels stand for, in units of a sub-block's scale.
    const VALUES: [f32; 8];
    /// What is added to the value of every level: where this is not 0, groups are shifted down or up by it.
    const SHIFT: f32 = 0.0;
    /// Groups that are shifted together.
    const SHIFTED_TOGETHER: usize = 1;
    /// Weights that have one scale.
    const SUB_BLOCK: usize;
    /// The largest scale.
    const TOP: u8;

    fn points() -> &'static Points<GROUP, BITS>;

    fn read(block: &[u8; BYTES]) -> Placed<GROUPS>;

    /// Writes all of a block.
    fn write(placed: &Placed<GROUPS>, out: &mut [u8; BYTES]);
}

/// The search of one type.
pub(super) struct OnGrid<E, const GROUPS: usize, const GROUP: usize, const BITS: u32, const BYTES: usize>(
    PhantomData<E>,
);

impl<
    E: Place<GROUPS, GROUP, BITS, BYTES>,
    const GROUPS: usize,
    const GROUP: usize,
    const BITS: u32,
    const BYTES: usize,
> Improve<256, BYTES> for OnGrid<E, GROUPS, GROUP, BITS, BYTES>
{
    #[inline(always)]
    fn improve(weights: &[f32; 256], counts: &[f32; 256], out: &mut [u8; BYTES]) {
        let start = E::read(out);
        let mut magnitudes = *weights;
        for (i, weight) in magnitudes.iter_mut().enumerate() {
            if start.signs[i / 8] >> (i % 8) & 1 == 1 {
                *weight = -*weight;
            }
        }
        let block = Block::<E, GROUPS, GROUP, BITS, BYTES> {
            weights: magnitudes.as_chunks::<GROUP>().0,
            counts: counts.as_chunks::<GROUP>().0,
            points: E::points(),
            kind: PhantomData,
        };
        let before = block.error(&start);
        let (mut best, mut least) = (start, before);
        for _ in 0..ROUNDS {
            let mut placed = best;
            for sub in 0..256 / E::SUB_BLOCK {
                block.place(&mut placed, sub);
            }
            let Some(d) = block.fit(&placed) else { break };
            placed.d = d;
            let error = block.error(&placed);
            if error >= least || error.is_nan() {
                break;
            }
            (best, least) = (placed, error);
        }
        if least < before {
            E::write(&best, out);
        }
    }
}

/// How often all sub-blocks are looked at again.
const ROUNDS: usize = 4;

/// How far a scale moves at once.
const REACH: u8 = 2;

/// What is searched: weights as their signs are taken away.
struct Block<'a, E, const GROUPS: usize, const GROUP: usize, const BITS: u32, const BYTES: usize> {
    weights: &'a [[f32; GROUP]],
    counts: &'a [[f32; GROUP]],
    points: &'static Points<GROUP, BITS>,
    kind: PhantomData<E>,
}

impl<
    E: Place<GROUPS, GROUP, BITS, BYTES>,
    const GROUPS: usize,
    const GROUP: usize,
    const BITS: u32,
    const BYTES: usize,
> Block<'_, E, GROUPS, GROUP, BITS, BYTES>
{
    const GROUPS_OF_SUB: usize = E::SUB_BLOCK / GROUP;

    /// What the levels of a group stand for, in units of its scale.
    #[inline(always)]
    fn values(down: bool) -> F8 {
        F8(E::VALUES) + F8::splat(if down { -E::SHIFT } else { E::SHIFT })
    }

    #[inline(always)]
    fn value(values: &F8, levels: Levels, i: usize) -> f32 {
        values.0[usize::from(levels >> (BITS as usize * i)) & ((1 << BITS) - 1)]
    }

    /// Chooses the scale of sub-block `sub` and the points of its groups again.
    #[inline(always)]
    fn place(&self, placed: &mut Placed<GROUPS>, sub: usize) {
        let first = sub * Self::GROUPS_OF_SUB;
        let scale = placed.scales[sub];
        let d = placed.d.to_f32();
        let mut least = f32::INFINITY;
        let start = *placed;
        for scale in scale.saturating_sub(REACH)..=(scale + REACH).min(E::TOP) {
            let step = d * f32::from(2 * scale + 1);
            let mut candidate = start;
            candidate.scales[sub] = scale;
            let mut error = 0.0;
            for together in (first..first + Self::GROUPS_OF_SUB).step_by(E::SHIFTED_TOGETHER) {
                let groups = together..together + E::SHIFTED_TOGETHER;
                let (levels, one_way) = self.points_of(groups.clone(), step, false);
                let mut chosen = (levels, one_way, false);
                if E::SHIFT != 0.0 {
                    let (levels, other) = self.points_of(groups.clone(), step, true);
                    if other < one_way {
                        chosen = (levels, other, true);
                    }
                }
                error += chosen.1;
                for (place, group) in groups.enumerate() {
                    candidate.levels[group] = chosen.0[place];
                    if E::SHIFT != 0.0 {
                        candidate.downs[group] = chosen.2;
                    }
                }
            }
            if error < least {
                least = error;
                *placed = candidate;
            }
        }
    }

    /// The nearest points of up to eight groups, and their error.
    #[inline(always)]
    fn points_of(&self, groups: std::ops::Range<usize>, step: f32, down: bool) -> ([Levels; 8], f32) {
        let values = F8::splat(step) * Self::values(down);
        let top = if BITS == 2 { 2 } else { 7 };
        let mut levels = [0; 8];
        let mut error = 0.0;
        for (place, group) in groups.enumerate() {
            let (weights, counts) = (&self.weights[group], &self.counts[group]);
            let mut rounded = 0;
            for (i, weight) in weights.iter().enumerate() {
                let mut level = 0;
                for next in 1..=top {
                    level += Levels::from(*weight > 0.5 * (values.0[next - 1] + values.0[next]));
                }
                rounded |= level << (BITS as usize * i);
            }
            let (nearest, _) = self.points.nearest(rounded, values, weights, counts);
            levels[place] = nearest;
            for (i, (weight, count)) in weights.iter().zip(counts).enumerate() {
                let difference = Self::value(&values, nearest, i) - weight;
                error += count * difference * difference;
            }
        }
        (levels, error)
    }

    /// The block's scale that fits its points; `None` where there is none within f16.
    #[inline(always)]
    fn fit(&self, placed: &Placed<GROUPS>) -> Option<f16> {
        let (mut vx, mut vv) = (0f64, 0f64);
        for (group, (weights, counts)) in self.weights.iter().zip(self.counts).enumerate() {
            let factor = f32::from(2 * placed.scales[group / Self::GROUPS_OF_SUB] + 1);
            let values = Self::values(placed.downs[group % 32]);
            for (i, (weight, count)) in weights.iter().zip(counts).enumerate() {
                let value = f64::from(factor * Self::value(&values, placed.levels[group], i));
                vx += f64::from(count * weight) * value;
                vv += f64::from(*count) * value * value;
            }
        }
        f16_scale((vx / vv) as f32).ok()
    }

    #[inline(always)]
    fn error(&self, placed: &Placed<GROUPS>) -> f32 {
        let d = placed.d.to_f32();
        let mut sum = 0.0;
        for (group, (weights, counts)) in self.weights.iter().zip(self.counts).enumerate() {
            let step = d * f32::from(2 * placed.scales[group / Self::GROUPS_OF_SUB] + 1);
            let values = F8::splat(step) * Self::values(placed.downs[group % 32]);
            for (i, (weight, count)) in weights.iter().zip(counts).enumerate() {
                let difference = Self::value(&values, placed.levels[group], i) - weight;
                sum += count * difference * difference;
            }
        }
        sum
    }
}
