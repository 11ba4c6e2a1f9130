//! The nearest neighbours of one group of weights at many scales, faster than one scale after another.
//!
//! At scale s a neighbour's error is `X − s · P + s² · Q` with `X = Σ importance · weight²`, `P = 2 · Σ importance · weight · value` and
//! `Q = Σ importance · value²`: the sums over the weights serve all scales. ggml adds up the errors of the weights instead, which is
//! rounded otherwise. Either is off by less than 30 · 2^-24 of `X + s² · Q`: only where the two least errors are further apart than that
//! is the lesser one ggml's; of the others its own sums decide.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::lanes::F8;
use super::points::{Levels, values_of};

/// Twice what either sum may be off, of two neighbours.
const ROUNDED: f32 = 4.0 * 30.0 / 16_777_216.0;

/// The most neighbours that a place of any magnitude grid has, in eights.
const LONGEST: usize = 37;

/// Lists up to so many eights are gone through whole.
const SHORT: usize = 2;

/// A group of weights, and what each level of a weight adds to P and Q.
pub(super) struct Group<'a, const GROUP: usize> {
    pub weights: &'a [f32; GROUP],
    pub importance: &'a [f32; GROUP],
    products: [F8; GROUP],
    squares: [F8; GROUP],
    /// X
    own: f32,
}

impl<'a, const GROUP: usize> Group<'a, GROUP> {
    #[inline(always)]
    pub(super) fn new<const BITS: u32>(weights: &'a [f32; GROUP], importance: &'a [f32; GROUP]) -> Self {
        let values = values_of::<BITS>(1.0);
        let (mut products, mut squares, mut own) = ([F8::ZERO; GROUP], [F8::ZERO; GROUP], 0.0);
        for i in 0..GROUP {
            let weighed = importance[i] * weights[i];
            products[i] = F8::splat(2.0 * weighed) * values;
            squares[i] = F8::splat(importance[i]) * values * values;
            own += weighed * weights[i];
        }
        Self { weights, importance, products, squares, own }
    }
}

/// Where the neighbours of a long list are kept.
pub(super) struct Room {
    products: [[f32; 8]; LONGEST],
    squares: [[f32; 8]; LONGEST],
    /// What the error is not below, at any of the scales at hand.
    lows: [[f32; 8]; LONGEST],
}

impl Room {
    pub(super) fn new() -> Self {
        Self { products: [[0.0; 8]; LONGEST], squares: [[0.0; 8]; LONGEST], lows: [[0.0; 8]; LONGEST] }
    }
}

/// The nearest of the `count` neighbours in `list` at each of `scales`, which go one way, into `found`; a bit for each scale at which that is
/// for ggml's sums to decide.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn nearest_at<const GROUP: usize, const BITS: u32>(
    list: &[[u32; 8]],
    count: usize,
    group: &Group<GROUP>,
    scales: &[f32],
    room: &mut Room,
    found: &mut [Levels],
) -> u32 {
    if list.len() == 1 {
        let (products, squares) = sums::<GROUP, BITS>(&list[0], group);
        return at_each([(products, squares)], count, list, group.own, scales, found);
    }
    if list.len() <= SHORT {
        let both = [sums::<GROUP, BITS>(&list[0], group), sums::<GROUP, BITS>(&list[1], group)];
        return at_each(both, count, list, group.own, scales, found);
    }
    for (v, eight) in list.iter().enumerate() {
        let (products, squares) = sums::<GROUP, BITS>(eight, group);
        (room.products[v], room.squares[v]) = (to_array(products), to_array(squares));
    }
    let mut near = [[0u32; 8]; SHORT];
    let mut kept = [[[0.0f32; 8]; SHORT]; 2];
    let n = narrow(room, list, count, scales[0], scales[scales.len() - 1], group.own, &mut near, &mut kept);
    match n {
        0 => u32::MAX,
        1..=8 => {
            let one = [(from_array(kept[0][0]), from_array(kept[1][0]))];
            at_each(one, n, &near, group.own, scales, found)
        }
        _ => {
            let both = [0, 1].map(|v| (kept[0][v], kept[1][v]));
            let both = [
                (from_array(both[0].0), from_array(both[0].1)),
                (from_array(both[1].0), from_array(both[1].1)),
            ];
            at_each(both, n, &near, group.own, scales, found)
        }
    }
}

/// P and Q of eight neighbours.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn sums<const GROUP: usize, const BITS: u32>(eight: &[u32; 8], group: &Group<GROUP>) -> (__m256, __m256) {
    let [a, b, c, d, e, f, g, h] = eight.map(u32::cast_signed);
    let mut levels = _mm256_setr_epi32(a, b, c, d, e, f, g, h);
    let (mut products, mut squares) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for i in 0..GROUP {
        // Of eight lanes a lookup takes the three lowest bits: with levels of two bits the table stands there twice.
        products = _mm256_add_ps(products, _mm256_permutevar8x32_ps(from_array(group.products[i].0), levels));
        squares = _mm256_add_ps(squares, _mm256_permutevar8x32_ps(from_array(group.squares[i].0), levels));
        levels = if BITS == 2 { _mm256_srli_epi32::<2>(levels) } else { _mm256_srli_epi32::<3>(levels) };
    }
    (products, squares)
}

/// The neighbours in `room` that may have the least error at a scale between `from` and `to`, with their P and Q; how many they are, 0 if
/// there is no room for them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "half of them are where results go")]
fn narrow(
    room: &mut Room,
    list: &[[u32; 8]],
    count: usize,
    from: f32,
    to: f32,
    own: f32,
    near: &mut [[u32; 8]; SHORT],
    kept: &mut [[[f32; 8]; SHORT]; 2],
) -> usize {
    let (first, second) = (F8::splat(from), F8::splat(to));
    // Between the two a parabola dips below both ends by no more.
    let dip = F8::splat(0.25 * (from - to) * (from - to));
    let (mut limit, mut most) = (F8::splat(f32::INFINITY), F8::ZERO);
    for v in 0..list.len() {
        let (product, square) = (F8(room.products[v]), F8(room.squares[v]));
        let at_first = first * (first * square - product);
        let at_second = second * (second * square - product);
        let less = at_first.below(at_second);
        let high = less.select(at_second, at_first);
        limit = high.below(limit).select(high, limit);
        most = most.below(square).select(square, most);
        room.lows[v] = (less.select(at_first, at_second) - square * dip).0;
    }
    let limit =
        limit.0.into_iter().fold(f32::INFINITY, |limit, high| if high < limit { high } else { limit });
    let most = most.0.into_iter().fold(0.0f32, |most, square| if square > most { square } else { most });
    let largest = from.max(to);
    let limit = F8::splat(limit + ROUNDED * (own + largest * largest * most));
    let mut n = 0;
    for (v, names) in list.iter().enumerate() {
        let beyond = limit.below(F8(room.lows[v]));
        if beyond.all() {
            continue;
        }
        for (lane, &name) in names.iter().enumerate().take(count - 8 * v) {
            if beyond.lane(lane) {
                continue;
            }
            if n == 8 * SHORT {
                return 0;
            }
            near[n / 8][n % 8] = name;
            kept[0][n / 8][n % 8] = room.products[v][lane];
            kept[1][n / 8][n % 8] = room.squares[v][lane];
            n += 1;
        }
    }
    n
}

/// [`nearest_at`] of `count` neighbours, the names of which are in `list`, with their P and Q.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn at_each<const V: usize>(
    sums: [(__m256, __m256); V],
    count: usize,
    list: &[[u32; 8]],
    own: f32,
    scales: &[f32],
    found: &mut [Levels],
) -> u32 {
    let infinity = _mm256_set1_ps(f32::INFINITY);
    let mut sums = sums;
    let mut most = _mm256_setzero_ps();
    for (v, (_, squares)) in sums.iter_mut().enumerate() {
        // Lanes behind the last neighbour are far away.
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let none = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(count as i32 - 8 * v as i32 - 1));
        let none = _mm256_castsi256_ps(none);
        most = _mm256_max_ps(most, _mm256_andnot_ps(none, *squares));
        *squares = _mm256_blendv_ps(*squares, infinity, none);
    }
    let rounded = _mm256_set1_ps(ROUNDED);
    let (most, own) =
        (_mm256_mul_ps(across::<true>(most), rounded), _mm256_mul_ps(_mm256_set1_ps(own), rounded));
    let names = list.as_flattened();
    let mut doubtful = 0;
    for (at, (scale, found)) in scales.iter().zip(found).enumerate() {
        let scale = _mm256_set1_ps(*scale);
        let mut errors = [infinity; V];
        let mut least = infinity;
        for (error, (products, squares)) in errors.iter_mut().zip(&sums) {
            *error = _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_mul_ps(scale, *squares), *products));
            least = _mm256_min_ps(*error, least);
        }
        let near = _mm256_add_ps(own, _mm256_mul_ps(_mm256_mul_ps(scale, scale), most));
        let limit = _mm256_add_ps(across::<false>(least), near);
        let mut which = 0u32;
        for (v, error) in errors.iter().enumerate() {
            // Also where it is no number.
            let below = _mm256_cmp_ps::<_CMP_NGT_UQ>(*error, limit);
            which |= (_mm256_movemask_ps(below) as u32) << (8 * v);
        }
        // What is tiny may have lost its last bits, and what is not finite says nothing.
        let near = _mm256_cvtss_f32(near);
        let is_sure = which.is_power_of_two() && near > 1e-35 && near < f32::INFINITY;
        doubtful |= u32::from(!is_sure) << at;
        *found = names[which.trailing_zeros() as usize % (8 * V)] as Levels;
    }
    doubtful
}

/// The largest or the least of all lanes, in all lanes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn across<const LARGEST: bool>(lanes: __m256) -> __m256 {
    let of = |a, b| if LARGEST { _mm256_max_ps(a, b) } else { _mm256_min_ps(a, b) };
    let lanes = of(lanes, _mm256_permute2f128_ps::<1>(lanes, lanes));
    let lanes = of(lanes, _mm256_permute_ps::<0b01_00_11_10>(lanes));
    of(lanes, _mm256_permute_ps::<0b10_11_00_01>(lanes))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn from_array([a, b, c, d, e, f, g, h]: [f32; 8]) -> __m256 {
    _mm256_setr_ps(a, b, c, d, e, f, g, h)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn to_array(lanes: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: it has room for eight floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), lanes) };
    out
}
