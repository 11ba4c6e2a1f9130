//! A better search than ggml's: from the block that ggml makes, scales and shifts of sub-blocks are moved by steps and the
//! block's own fitted again, as long as the weighted squared error of what is stored falls.
//!
//! What is stored is what is measured: scales rounded to f16 and to their bits, every weight at its nearest code. A block
//! is only replaced by one of less error, so none is worse than ggml's.

use std::marker::PhantomData;

use half::f16;

use super::encoder::Improve;
use super::{
    f16_scale,
    iq4::{index_of, values_of},
    lanes::F8,
    nearest_int,
};

/// What codes stand for.
#[derive(Clone, Copy)]
pub(super) enum Codes {
    /// The integers from `low` to `top`, stored with `low` taken away.
    Integers { low: i32, top: i32 },
    /// The values of IQ4, stored as their indexes.
    Values,
}

/// What a block type can say: `weight ≈ d · scale · code − d_min · shift`.
pub(super) struct Space {
    pub codes: Codes,
    /// The smallest and the largest scale of a sub-block, and shift; equal where they are not stored.
    pub scales: (i32, i32),
    pub shifts: (i32, i32),
}

/// The scales and shifts of a block in [`Space`].
#[derive(Clone, Copy)]
pub(super) struct Levels<const SUB_BLOCKS: usize> {
    pub d: f16,
    pub d_min: f16,
    pub scales: [i32; SUB_BLOCKS],
    pub shifts: [i32; SUB_BLOCKS],
}

/// A block type whose blocks of `SUB_BLOCKS` times `LEN` weights can be read and written by their levels.
pub(super) trait Refine<const SUB_BLOCKS: usize, const LEN: usize, const WEIGHTS: usize, const BYTES: usize> {
    const SPACE: Space;

    fn levels(block: &[u8; BYTES]) -> Levels<SUB_BLOCKS>;

    /// Writes all of a block; `codes` as they are stored.
    fn write(levels: &Levels<SUB_BLOCKS>, codes: &[u8; WEIGHTS], out: &mut [u8; BYTES]);
}

/// The search of one type.
pub(super) struct Refined<
    E,
    const SUB_BLOCKS: usize,
    const LEN: usize,
    const WEIGHTS: usize,
    const BYTES: usize,
>(PhantomData<E>);

impl<
    E: Refine<SUB_BLOCKS, LEN, WEIGHTS, BYTES>,
    const SUB_BLOCKS: usize,
    const LEN: usize,
    const WEIGHTS: usize,
    const BYTES: usize,
> Improve<WEIGHTS, BYTES> for Refined<E, SUB_BLOCKS, LEN, WEIGHTS, BYTES>
{
    #[inline(always)]
    fn improve(weights: &[f32; WEIGHTS], counts: &[f32; WEIGHTS], out: &mut [u8; BYTES]) {
        let block = Block::<SUB_BLOCKS, LEN> {
            space: E::SPACE,
            weights: weights.as_chunks::<LEN>().0,
            counts: counts.as_chunks::<LEN>().0,
        };
        let start = E::levels(out);
        let before = block.error(&start);
        let (best, least) = block.search(start, before);
        if least < before {
            let mut codes = [0; WEIGHTS];
            for (j, codes) in codes.as_chunks_mut::<LEN>().0.iter_mut().enumerate() {
                block.store(&best, j, codes);
            }
            E::write(&best, &codes, out);
        }
    }
}

/// How often all sub-blocks are looked at again.
const ROUNDS: usize = 6;

/// How far a scale or a shift moves at once.
const REACH: i32 = 2;

/// Steps of 1.5 % that the scale of a block without scales of sub-blocks is tried at, to both sides.
const WIDE: i8 = 10;

/// What is searched.
struct Block<'a, const SUB_BLOCKS: usize, const LEN: usize> {
    space: Space,
    weights: &'a [[f32; LEN]],
    /// What the squared error of each weight counts.
    counts: &'a [[f32; LEN]],
}

impl<const SUB_BLOCKS: usize, const LEN: usize> Block<'_, SUB_BLOCKS, LEN> {
    #[inline(always)]
    fn search(&self, start: Levels<SUB_BLOCKS>, error: f32) -> (Levels<SUB_BLOCKS>, f32) {
        let (mut best, mut least) = (start, error);
        if self.space.scales.0 == self.space.scales.1 {
            for step in -WIDE..=WIDE {
                let Ok(d) = f16_scale(start.d.to_f32() * (1.0 + 0.015 * f32::from(step))) else { continue };
                let (levels, error) = self.fit_while_better(Levels { d, ..start });
                if error < least {
                    (best, least) = (levels, error);
                }
            }
            return (best, least);
        }
        for _ in 0..ROUNDS {
            let mut levels = best;
            for j in 0..SUB_BLOCKS {
                self.move_levels(&mut levels, j);
            }
            let (levels, error) = self.fit_while_better(levels);
            if error >= least || error.is_nan() {
                break;
            }
            (best, least) = (levels, error);
        }
        (best, least)
    }

    /// Scale and shift of sub-block `j` within reach that leave it the least error.
    #[inline(always)]
    fn move_levels(&self, levels: &mut Levels<SUB_BLOCKS>, j: usize) {
        let reach = |level: i32, (low, top): (i32, i32)| (level - REACH).max(low)..=(level + REACH).min(top);
        let (d, d_min) = (levels.d.to_f32(), levels.d_min.to_f32());
        let mut least = self.sub_error(j, d * levels.scales[j] as f32, d_min * levels.shifts[j] as f32);
        let (scale, shift) = (levels.scales[j], levels.shifts[j]);
        for scale in reach(scale, self.space.scales) {
            for shift in reach(shift, self.space.shifts) {
                let error = self.sub_error(j, d * scale as f32, d_min * shift as f32);
                if error < least {
                    least = error;
                    (levels.scales[j], levels.shifts[j]) = (scale, shift);
                }
            }
        }
    }

    /// The block's scales fitted to the codes, and codes chosen again, as long as the error falls.
    #[inline(always)]
    fn fit_while_better(&self, levels: Levels<SUB_BLOCKS>) -> (Levels<SUB_BLOCKS>, f32) {
        let (mut best, mut least) = (levels, self.error(&levels));
        for _ in 0..4 {
            let Some(fitted) = self.fit(&best) else { break };
            let error = self.error(&fitted);
            if error >= least || error.is_nan() {
                break;
            }
            (best, least) = (fitted, error);
        }
        (best, least)
    }

    /// The least-squares scales of the block for the codes that its levels give; `None` where they have none within f16.
    #[inline(always)]
    fn fit(&self, levels: &Levels<SUB_BLOCKS>) -> Option<Levels<SUB_BLOCKS>> {
        let (d, d_min) = (levels.d.to_f32(), levels.d_min.to_f32());
        // Of a = scale · code and b = shift: Σ w·a², Σ w·a·b, Σ w·b², Σ w·a·x, Σ w·b·x.
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0f64, 0.0, 0.0, 0.0, 0.0);
        for j in 0..SUB_BLOCKS {
            let (step, shift) = (d * levels.scales[j] as f32, d_min * levels.shifts[j] as f32);
            let [mut qq, mut q, mut w, mut qx, mut wx] = [F8::ZERO; 5];
            for (x, count) in self.eights(j) {
                let code = self.nearest(x, step, shift);
                let weighed = count * code;
                qq = qq + weighed * code;
                q = q + weighed;
                w = w + count;
                qx = qx + weighed * x;
                wx = wx + count * x;
            }
            let (s, m) = (f64::from(levels.scales[j]), f64::from(levels.shifts[j]));
            aa += s * s * f64::from(total(qq));
            ab += s * m * f64::from(total(q));
            bb += m * m * f64::from(total(w));
            ax += s * f64::from(total(qx));
            bx += m * f64::from(total(wx));
        }
        let alone = || (ax / aa, 0.0);
        let determinant = aa * bb - ab * ab;
        let fixed = self.space.shifts.0 == self.space.shifts.1;
        let (d, d_min) = if determinant > 1e-9 * aa * bb {
            let both = ((bb * ax - ab * bx) / determinant, (ab * ax - aa * bx) / determinant);
            // Stored shifts go down only; the one that stands for a smallest weight goes either way.
            if both.1 < 0.0 && !fixed { alone() } else { both }
        } else {
            alone()
        };
        Some(Levels { d: f16_scale(d as f32).ok()?, d_min: f16_scale(d_min as f32).ok()?, ..*levels })
    }

    #[inline(always)]
    fn error(&self, levels: &Levels<SUB_BLOCKS>) -> f32 {
        let (d, d_min) = (levels.d.to_f32(), levels.d_min.to_f32());
        let mut sum = 0.0;
        for j in 0..SUB_BLOCKS {
            sum += self.sub_error(j, d * levels.scales[j] as f32, d_min * levels.shifts[j] as f32);
        }
        sum
    }

    #[inline(always)]
    fn sub_error(&self, j: usize, step: f32, shift: f32) -> f32 {
        let mut sum = F8::ZERO;
        for (x, count) in self.eights(j) {
            let difference = F8::splat(step) * self.nearest(x, step, shift) - F8::splat(shift) - x;
            sum = sum + count * difference * difference;
        }
        total(sum)
    }

    #[inline(always)]
    fn eights(&self, j: usize) -> impl Iterator<Item = (F8, F8)> {
        let counts = self.counts[j].as_chunks::<8>().0;
        self.weights[j].as_chunks::<8>().0.iter().zip(counts).map(|(x, count)| (F8(*x), F8(*count)))
    }

    /// What the nearest code of each stands for.
    #[inline(always)]
    fn nearest(&self, x: F8, step: f32, shift: f32) -> F8 {
        match self.space.codes {
            Codes::Integers { .. } if step == 0.0 => F8::ZERO,
            Codes::Integers { low, top } => {
                ((x + F8::splat(shift)) / F8::splat(step)).nearest_within(low, top)
            }
            Codes::Values => values_of(x * F8::splat(if step == 0.0 { 0.0 } else { 1.0 / step })),
        }
    }

    /// The codes of sub-block `j` as they are stored.
    #[inline(always)]
    fn store(&self, levels: &Levels<SUB_BLOCKS>, j: usize, codes: &mut [u8; LEN]) {
        let step = levels.d.to_f32() * levels.scales[j] as f32;
        let shift = levels.d_min.to_f32() * levels.shifts[j] as f32;
        for (codes, (x, _)) in codes.as_chunks_mut::<8>().0.iter_mut().zip(self.eights(j)) {
            let values = self.nearest(x, step, shift);
            *codes = match self.space.codes {
                Codes::Integers { low, .. } => values.0.map(|code| (nearest_int(code) - low) as u8),
                Codes::Values => values.0.map(index_of),
            };
        }
    }
}

/// The sum of all lanes, in one order.
#[inline(always)]
fn total(lanes: F8) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes.0;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}
