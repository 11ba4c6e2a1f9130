//! The scale of the scales, and of the shifts, of a block with importance: ggml's `make_qp_quants`.

use super::{ZERO, lanes::F8, nearest_int};

/// The scale of non-negative values, and their codes within `0..=top`, that leave a small squared error, of which each
/// value's counts `counts`: nine candidates, a lane for each but the first, then codes moved one at a time while that
/// lowers the error.
#[inline(always)]
pub(super) fn search<const N: usize>(x: &[f32; N], counts: &[f32; N], top: i32) -> (f32, [u8; N]) {
    let max = x.iter().fold(0.0f32, |max, &x| if max > x { max } else { x });
    if max < ZERO {
        return (0.0, [0; N]);
    }
    let mut inverse = top as f32 / max;
    let scale = 1.0 / inverse;
    let mut best = 0.0;
    for (&x, &w) in x.iter().zip(counts) {
        let difference = x - scale * f32::from(nearest_int(inverse * x) as u8);
        best += w * difference * difference;
    }
    let inverses = F8([-4i8, -3, -2, -1, 1, 2, 3, 4].map(|step| (0.1 * f32::from(step) + top as f32) / max));
    let scales = F8::splat(1.0) / inverses;
    let mut errors = F8::ZERO;
    for (&x, &w) in x.iter().zip(counts) {
        let codes = (inverses * F8::splat(x)).nearest_within(i32::MIN, top);
        let difference = F8::splat(x) - scales * codes;
        errors = errors + F8::splat(w) * difference * difference;
    }
    for (lane, error) in errors.0.into_iter().enumerate() {
        if error < best {
            best = error;
            inverse = inverses.0[lane];
        }
    }
    let mut codes = [0u8; N];
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for ((code, &x), &w) in codes.iter_mut().zip(x).zip(counts) {
        let l = nearest_int(inverse * x).min(top);
        *code = l as u8;
        sum_lx += w * x * l as f32;
        sum_l2 += w * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let mut moved = false;
        for ((code, &x), &w) in codes.iter_mut().zip(x).zip(counts) {
            let l = f32::from(*code);
            let others_lx = sum_lx - w * x * l;
            let others_l2 = sum_l2 - w * l * l;
            if others_lx > 0.0 && others_l2 > 0.0 {
                let new = nearest_int(x * others_l2 / others_lx).min(top);
                let (new_lx, new_l2) =
                    (others_lx + w * x * new as f32, others_l2 + w * new as f32 * new as f32);
                if new != i32::from(*code) && new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2 {
                    *code = new as u8;
                    (sum_lx, sum_l2) = (new_lx, new_l2);
                    moved = true;
                }
            }
        }
        if !moved {
            break;
        }
    }
    (if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }, codes)
}
