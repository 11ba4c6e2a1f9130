//! The search of a scale and a shift for each sub-block, which Q2_K, Q4_K, Q5_K and, with importance, Q4_1 and Q5_1
//! share: ggml's `make_qkx2_quants` and `make_qkx3_quants`.

use std::hint::black_box;

use super::{
    f16_scale,
    lanes::{F8, M8},
    nearest_int,
};

/// What the search tries, and how it counts errors.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The largest code.
    pub top: i32,
    /// Candidates divide the range by `top` plus this, and plus another `step` for each after the first.
    pub first: f32,
    pub step: f32,
    /// Candidates after the first.
    pub steps: u8,
    /// Magnitudes of errors are added, not squares.
    pub magnitudes: bool,
}

/// What the search found for each of eight sub-blocks.
pub(super) struct Found {
    pub scale: F8,
    /// The shift down, positive.
    pub min: F8,
    /// What the errors of all its weights count.
    pub counts: F8,
    /// What the codes of the search were made with: codes in one unit, and the weight of code 0.
    inverse: F8,
    low: F8,
    /// Constant sub-blocks: scale and codes are 0.
    flat: M8,
}

impl Found {
    /// The code that the search chose for a weight of sub-block `lane`.
    #[inline(always)]
    pub(super) fn code(&self, lane: usize, weight: f32, top: i32) -> u8 {
        if self.flat.lane(lane) {
            return 0;
        }
        nearest_int(self.inverse.0[lane] * (weight - self.low.0[lane])).clamp(0, top) as u8
    }

    /// Eight blocks of scale and smallest weight in f16 and 32 codes, which `pack` lays out; the first with one beyond f16, and
    /// that one.
    #[inline(always)]
    pub(super) fn write_eight<const BYTES: usize>(
        &self,
        weights: &[f32; 256],
        top: i32,
        pack: impl Fn(&[u8; 32], &mut [u8]),
        out: &mut [[u8; BYTES]; 8],
    ) -> Result<(), (usize, f32)> {
        for (lane, (weights, out)) in weights.as_chunks::<32>().0.iter().zip(out).enumerate() {
            let (header, rest) = out.split_at_mut(4);
            let in_f16 = |value: f32| f16_scale(value).map_err(|scale| (lane, scale));
            header[..2].copy_from_slice(&in_f16(self.scale.0[lane])?.to_le_bytes());
            header[2..].copy_from_slice(&in_f16(-self.min.0[lane])?.to_le_bytes());
            pack(&weights.map(|x| self.code(lane, x, top)), rest);
        }
        Ok(())
    }
}

impl Search {
    /// What ggml tries where it has importance.
    pub(super) fn weighed(top: i32) -> Self {
        Self { top, first: -0.9, step: 0.05, steps: 36, magnitudes: false }
    }

    /// The scale and the shift of each sub-block that leave the smallest weighted error: for each candidate the codes,
    /// then the least-squares scale and shift of those codes.
    ///
    /// A lane does what ggml does for its sub-block, in the same order, so the sums come out the same to the last bit.
    #[inline(always)]
    pub(super) fn run<const N: usize>(self, x: &[F8; N], weights: &[F8; N]) -> Found {
        // From memory and into memory: where what surrounds the search takes single lanes, the compiler else made vectors of
        // two lanes all through it, three times as slow.
        let (x, weights) = (black_box(x), black_box(weights));
        let (mut min, mut max) = (x[0], x[0]);
        let mut sum_w = weights[0];
        let mut sum_x = sum_w * x[0];
        for (&x, &w) in x[1..].iter().zip(&weights[1..]) {
            min = x.below(min).select(x, min);
            max = max.below(x).select(x, max);
            sum_w = sum_w + w;
            sum_x = sum_x + w * x;
        }
        min = F8::ZERO.below(min).select(F8::ZERO, min);
        let flat = max.equals(min);

        let mut codes = [F8::ZERO; N];
        let mut inverse = F8::splat(self.top as f32) / (max - min);
        let mut scale = F8::splat(1.0) / inverse;
        for (code, &x) in codes.iter_mut().zip(x) {
            *code = self.code_of(x, inverse, min);
        }
        let mut best_error = self.error(x, weights, &codes, scale, min);
        let mut low = min;
        for step in 0..=self.steps {
            // Not a slip: as in ggml, codes count from the best shift so far, not from the smallest weight.
            let this_low = min;
            let units = self.first + self.step * f32::from(step) + self.top as f32;
            let this_inverse = F8::splat(units) / (max - this_low);
            let (mut sum_l, mut sum_l2, mut sum_xl) = (F8::ZERO, F8::ZERO, F8::ZERO);
            for ((code, &x), &w) in codes.iter_mut().zip(x).zip(weights) {
                let l = self.code_of(x, this_inverse, this_low);
                *code = l;
                let wl = w * l;
                sum_l = sum_l + wl;
                sum_l2 = sum_l2 + wl * l;
                sum_xl = sum_xl + wl * x;
            }
            let determinant = sum_w * sum_l2 - sum_l * sum_l;
            let solvable = F8::ZERO.below(determinant).and_not(flat);
            let free_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let free_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            let above = F8::ZERO.below(free_min);
            let this_min = above.select(F8::ZERO, free_min);
            let this_scale = above.select(sum_xl / sum_l2, free_scale);
            let this_error = self.error(x, weights, &codes, this_scale, this_min);
            let better = this_error.below(best_error).and(solvable);
            best_error = better.select(this_error, best_error);
            inverse = better.select(this_inverse, inverse);
            low = better.select(this_low, low);
            scale = better.select(this_scale, scale);
            min = better.select(this_min, min);
        }
        black_box(Found {
            scale: flat.select(F8::ZERO, scale),
            min: min.neg(),
            counts: sum_w,
            inverse,
            low,
            flat,
        })
    }

    #[inline(always)]
    fn code_of(self, x: F8, inverse: F8, low: F8) -> F8 {
        (inverse * (x - low)).nearest_within(0, self.top)
    }

    #[inline(always)]
    fn error<const N: usize>(
        self,
        x: &[F8; N],
        weights: &[F8; N],
        codes: &[F8; N],
        scale: F8,
        min: F8,
    ) -> F8 {
        let mut sum = F8::ZERO;
        for ((&x, &w), &l) in x.iter().zip(weights).zip(codes) {
            let difference = scale * l + min - x;
            let error = if self.magnitudes { difference.abs() } else { difference * difference };
            sum = sum + w * error;
        }
        sum
    }
}

/// The largest of `values` and 0.
#[inline(always)]
pub(super) fn largest_of(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |most, &value| if value > most { value } else { most })
}
