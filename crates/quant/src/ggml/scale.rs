//! The search of a scale for each sub-block, which Q6_K and, with importance, Q3_K, Q4_0 and Q5_0 share: ggml's
//! `make_qx_quants`.

use std::hint::black_box;

use super::{
    ZERO, f16_scale,
    lanes::{F8, M8},
    nearest_int,
};

/// What the search found for each of eight sub-blocks.
pub(super) struct Found {
    pub scale: F8,
    /// What the codes of the search were made with: codes in one unit.
    pub inverse: F8,
    /// Sub-blocks that count as zeros: scale and stored codes are 0.
    pub zeros: M8,
    /// Codes are within `-top..top`, stored with `top` added.
    top: i32,
}

impl Found {
    /// The code that the search chose for a weight of sub-block `lane`, as it is stored.
    #[inline(always)]
    pub(super) fn code(&self, lane: usize, weight: f32) -> u8 {
        if self.zeros.lane(lane) {
            return 0;
        }
        (nearest_int(self.inverse.0[lane] * weight).clamp(-self.top, self.top - 1) + self.top) as u8
    }

    /// Eight blocks of an f16 scale and 32 codes, which `pack` lays out; the first whose scale is beyond f16, and that scale.
    #[inline(always)]
    pub(super) fn write_eight<const BYTES: usize>(
        &self,
        weights: &[f32; 256],
        pack: impl Fn(&[u8; 32], &mut [u8]),
        out: &mut [[u8; BYTES]; 8],
    ) -> Result<(), (usize, f32)> {
        for (lane, (weights, out)) in weights.as_chunks::<32>().0.iter().zip(out).enumerate() {
            let (scale, rest) = out.split_at_mut(2);
            let d = f16_scale(self.scale.0[lane]).map_err(|scale| (lane, scale))?;
            scale.copy_from_slice(&d.to_le_bytes());
            pack(&weights.map(|x| self.code(lane, x)), rest);
        }
        Ok(())
    }
}

/// The scale of each sub-block that leaves the smallest squared error, of which each weight's counts `counts`: 19
/// candidates, for each the codes, then the least-squares scale of those.
#[inline(always)]
pub(super) fn search<const N: usize>(x: &[F8; N], counts: &[F8; N], top: i32) -> Found {
    // From memory and into memory, so that all lanes stay together: see `scale_and_shift.rs`.
    let (x, counts) = (black_box(x), black_box(counts));
    let (mut absolute, mut largest) = (F8::ZERO, F8::ZERO);
    let mut products = [F8::ZERO; N];
    for i in 0..N {
        let above = absolute.below(x[i].abs());
        absolute = above.select(x[i].abs(), absolute);
        largest = above.select(x[i], largest);
        products[i] = counts[i] * x[i];
    }
    let zeros = absolute.below(F8::splat(ZERO));
    let mut inverse = F8::splat(-top as f32) / largest;
    let (sum_lx, sum_l2) = sums(x, counts, &products, inverse, top);
    let mut scale = sum_l2.equals(F8::ZERO).select(F8::ZERO, sum_lx / sum_l2);
    let mut best = scale * sum_lx;
    for step in STEPS {
        let this_inverse = F8::splat(units(top, step)) / largest;
        let (sum_lx, sum_l2) = sums(x, counts, &products, this_inverse, top);
        let better = F8::ZERO.below(sum_l2).and((best * sum_l2).below(sum_lx * sum_lx));
        inverse = better.select(this_inverse, inverse);
        scale = better.select(sum_lx / sum_l2, scale);
        best = better.select(scale * sum_lx, best);
    }
    black_box(Found { scale: zeros.select(F8::ZERO, scale), inverse, zeros, top })
}

/// Candidates beside the one that maps the largest weight to the longer end of the range, in ggml's order.
const STEPS: [i8; 18] = [-9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/// What candidate `step` maps the largest weight to.
#[inline(always)]
fn units(top: i32, step: i8) -> f32 {
    -(top as f32 + 0.1 * f32::from(step))
}

/// Of the codes that `inverse` makes: Σ w·x·code and Σ w·code², w being what a weight's error counts. A function and not
/// a closure, which would be compiled without the caller's AVX2.
#[inline(always)]
fn sums<const N: usize>(
    x: &[F8; N],
    counts: &[F8; N],
    products: &[F8; N],
    inverse: F8,
    top: i32,
) -> (F8, F8) {
    let (mut sum_lx, mut sum_l2) = (F8::ZERO, F8::ZERO);
    for i in 0..N {
        let l = (inverse * x[i]).nearest_within(-top, top - 1);
        sum_lx = sum_lx + products[i] * l;
        sum_l2 = sum_l2 + counts[i] * l * l;
    }
    (sum_lx, sum_l2)
}

/// The same search of a scale for one set of values, with their codes as they are stored; a lane for each candidate.
#[inline(always)]
pub(super) fn search_one<const N: usize>(x: &[f32; N], counts: &[f32; N], top: i32) -> (f32, [u8; N]) {
    let (mut absolute, mut largest) = (0.0, 0.0);
    for &x in x {
        if x.abs() > absolute {
            absolute = x.abs();
            largest = x;
        }
    }
    if absolute < ZERO {
        return (0.0, [0; N]);
    }
    // Lanes left over have no codes but 0, which are never better.
    let mut inverses = [0.0; 24];
    inverses[0] = -top as f32 / largest;
    for (inverse, step) in inverses[1..].iter_mut().zip(STEPS) {
        *inverse = units(top, step) / largest;
    }
    let (mut inverse, mut scale, mut best) = (inverses[0], 0.0, 0.0);
    for (eight, lanes) in inverses.as_chunks::<8>().0.iter().enumerate() {
        let (mut sum_lx, mut sum_l2) = (F8::ZERO, F8::ZERO);
        for (&x, &w) in x.iter().zip(counts) {
            let l = (F8(*lanes) * F8::splat(x)).nearest_within(-top, top - 1);
            sum_lx = sum_lx + F8::splat(w * x) * l;
            sum_l2 = sum_l2 + F8::splat(w) * l * l;
        }
        for (lane, (sum_lx, sum_l2)) in sum_lx.0.into_iter().zip(sum_l2.0).enumerate() {
            if eight == 0 && lane == 0 {
                scale = if sum_l2 == 0.0 { 0.0 } else { sum_lx / sum_l2 };
                best = scale * sum_lx;
            } else if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
                inverse = lanes[lane];
                scale = sum_lx / sum_l2;
                best = scale * sum_lx;
            }
        }
    }
    (scale, x.map(|x| (nearest_int(inverse * x).clamp(-top, top - 1) + top) as u8))
}
