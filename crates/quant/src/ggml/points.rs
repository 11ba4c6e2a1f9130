//! The points of a grid, and for every point that is not one of them, those nearest to it.
//!
//! Weights of a small group are rounded to levels, one by one. Where that is no point of the grid, ggml weighs the errors
//! of the points nearest to it in levels: all those at the least one, two or three distances, whatever the type asks.

use std::sync::LazyLock;

use bitmill_tensor::grid;

use super::lanes::F8;
use super::neighbours::{self, Group, Room};

/// Levels of a group of `GROUP` weights, `BITS` bits each, the first weight's lowest.
pub(super) type Levels = u16;

/// One grid, whose points have `GROUP` weights with levels of `BITS` bits.
pub(super) struct Points<const GROUP: usize, const BITS: u32> {
    /// The points, by index.
    points: Vec<Levels>,
    /// For each combination of levels, whether it is a point, or where its neighbours lie.
    places: Vec<Place>,
    /// Neighbours, eight at a time; behind a list's last its first stands again. Levels, and the point's index above.
    neighbours: Vec<[u32; 8]>,
    /// Whether the CPU has AVX2.
    #[cfg(target_arch = "x86_64")]
    avx2: bool,
}

/// Where a combination of levels is found.
#[derive(Clone, Copy)]
struct Place {
    /// The index of the point, or where the neighbours begin.
    at: u32,
    /// Neighbours; 0 for points.
    count: u32,
}

/// IQ2_XXS.
pub(super) static IQ2_XXS: LazyLock<Points<8, 2>> =
    LazyLock::new(|| Points::new(grid::IQ2_XXS.map(|point| levels_of(point, [8, 25, 43])).as_slice(), 3, 2));
/// IQ2_XS.
pub(super) static IQ2_XS: LazyLock<Points<8, 2>> =
    LazyLock::new(|| Points::new(grid::IQ2_XS.map(|point| levels_of(point, [8, 25, 43])).as_slice(), 3, 2));
/// IQ2_S.
pub(super) static IQ2_S: LazyLock<Points<8, 2>> =
    LazyLock::new(|| Points::new(grid::IQ2_S.map(|point| levels_of(point, [8, 25, 43])).as_slice(), 3, 1));
/// IQ1_S and IQ1_M.
pub(super) static IQ1: LazyLock<Points<8, 2>> =
    LazyLock::new(|| Points::new(grid::IQ1.map(|point| levels_of(point, [0xff, 0, 1])).as_slice(), 3, 3));
/// IQ3_XXS.
pub(super) static IQ3_XXS: LazyLock<Points<4, 3>> = LazyLock::new(|| {
    let levels = grid::IQ3_XXS.map(|point| levels_of(point.into(), [4, 12, 20, 28, 36, 44, 52, 62]));
    Points::new(levels.as_slice(), 8, 2)
});
/// IQ3_S.
pub(super) static IQ3_S: LazyLock<Points<4, 3>> = LazyLock::new(|| {
    let levels = grid::IQ3_S.map(|point| levels_of(point.into(), [1, 3, 5, 7, 9, 11, 13, 15]));
    Points::new(levels.as_slice(), 8, 3)
});

/// The levels of a point's weights: the places of its values in `values`, of which there are 3 or 8.
fn levels_of<const N: usize>(point: u64, values: [u8; N]) -> Levels {
    let (group, bits) = if N == 3 { (8, 2) } else { (4, 3) };
    let weights = point.to_le_bytes();
    let level = |value: u8| values.iter().position(|known| *known == value).unwrap_or(0) as Levels;
    (0..group).fold(0, |levels, i| levels | level(weights[i]) << (bits * i))
}

impl<const GROUP: usize, const BITS: u32> Points<GROUP, BITS> {
    /// The grid of `points`; neighbours are those at the least `distances` distances.
    ///
    /// ggml sorts all points by distance and index (`iq2xs_init_impl`, `iq3xs_init_impl`).
    fn new(points: &[Levels], top: u32, distances: usize) -> Self {
        let split = |levels: Levels| -> [i32; GROUP] {
            std::array::from_fn(|i| i32::from(levels >> (BITS as usize * i)) & ((1 << BITS) - 1))
        };
        let own: Vec<[i32; GROUP]> = points.iter().map(|levels| split(*levels)).collect();
        let mut places = vec![Place { at: u32::MAX, count: 0 }; 1 << (GROUP as u32 * BITS)];
        for (index, levels) in points.iter().enumerate() {
            places[usize::from(*levels)].at = index as u32;
        }
        let mut neighbours = Vec::new();
        let mut from = Vec::with_capacity(points.len());
        let mut list: Vec<u32> = Vec::new();
        for (levels, place) in places.iter_mut().enumerate() {
            let wanted = split(levels as Levels);
            if place.at != u32::MAX || wanted.iter().any(|level| *level as u32 >= top) {
                continue;
            }
            from.clear();
            from.extend(
                own.iter()
                    .map(|point| -> i32 { point.iter().zip(&wanted).map(|(a, b)| (a - b) * (a - b)).sum() }),
            );
            list.clear();
            let mut last = -1;
            for _ in 0..distances {
                let Some(next) = from.iter().copied().filter(|distance| *distance > last).min() else {
                    break;
                };
                let at_next = from.iter().enumerate().filter(|(_, distance)| **distance == next);
                list.extend(at_next.map(|(index, _)| (index as u32) << 16 | u32::from(points[index])));
                last = next;
            }
            *place = Place { at: neighbours.len() as u32, count: list.len() as u32 };
            neighbours.extend(list.chunks(8).map(|eight| -> [u32; 8] {
                std::array::from_fn(|lane| eight.get(lane).copied().unwrap_or(list[0]))
            }));
        }
        Self {
            points: points.to_vec(),
            places,
            neighbours,
            #[cfg(target_arch = "x86_64")]
            avx2: std::arch::is_x86_feature_detected!("avx2"),
        }
    }

    /// The index of the point with these levels; `None` beside the grid.
    #[inline(always)]
    pub(super) fn index(&self, levels: Levels) -> Option<u32> {
        let place = self.places[usize::from(levels) & ((1 << (GROUP as u32 * BITS)) - 1)];
        (place.count == 0).then_some(place.at)
    }

    /// The levels of the point with this index.
    #[inline(always)]
    pub(super) fn levels(&self, index: u32) -> Levels {
        self.points[index as usize]
    }

    #[inline(always)]
    fn list(&self, place: Place) -> &[[u32; 8]] {
        &self.neighbours[place.at as usize..][..place.count.div_ceil(8) as usize]
    }

    /// The levels of the point that these levels are rounded to, and whether they are a point themselves.
    ///
    /// Beside the grid it is the first neighbour of least error, `Σ (importance · (value − weight)) · (value − weight)`,
    /// where `values` holds what each level stands for.
    #[inline(always)]
    pub(super) fn nearest(
        &self,
        levels: Levels,
        values: F8,
        weights: &[f32; GROUP],
        importance: &[f32; GROUP],
    ) -> (Levels, bool) {
        let place = self.places[usize::from(levels) & ((1 << (GROUP as u32 * BITS)) - 1)];
        if place.count == 0 {
            return (levels, true);
        }
        let list = self.list(place);
        let mut errors = [F8::ZERO; GROUP];
        for i in 0..GROUP {
            let error = values - F8::splat(weights[i]);
            errors[i] = F8::splat(importance[i]) * error * error;
        }
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: the CPU was asked for AVX2 as the grid was made; the function needs nothing else.
            return (unsafe { least_error_avx2::<GROUP, BITS>(list, &errors) } as Levels, false);
        }
        (least_error::<GROUP, BITS>(list, &errors) as Levels, false)
    }
}

impl<const GROUP: usize, const BITS: u32> Points<GROUP, BITS> {
    /// [`nearest`](Self::nearest) of levels beside the grid, at each of `scales`, which go one way and in which levels stand for 1, 3,
    /// 5, …; into `found`.
    #[inline(always)]
    pub(super) fn nearest_at(
        &self,
        levels: Levels,
        group: &Group<GROUP>,
        scales: &[f32],
        room: &mut Room,
        found: &mut [Levels],
    ) {
        #[cfg(target_arch = "x86_64")]
        let doubtful = if self.avx2 {
            let place = self.places[usize::from(levels) & ((1 << (GROUP as u32 * BITS)) - 1)];
            // SAFETY: the CPU was asked for AVX2 as the grid was made; the function needs nothing else.
            unsafe {
                neighbours::nearest_at::<GROUP, BITS>(
                    self.list(place),
                    place.count as usize,
                    group,
                    scales,
                    room,
                    found,
                )
            }
        } else {
            u32::MAX
        };
        #[cfg(not(target_arch = "x86_64"))]
        let doubtful = u32::MAX;
        if doubtful != 0 {
            for (at, (scale, found)) in scales.iter().zip(found).enumerate() {
                if doubtful >> at & 1 == 1 {
                    *found =
                        self.nearest(levels, values_of::<BITS>(*scale), group.weights, group.importance).0;
                }
            }
        }
    }
}

/// What the levels stand for at `scale`; where there are four of two bits, twice.
#[inline(always)]
pub(super) fn values_of<const BITS: u32>(scale: f32) -> F8 {
    let values = if BITS == 2 {
        F8([1.0, 3.0, 5.0, 7.0, 1.0, 3.0, 5.0, 7.0])
    } else {
        F8([1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0])
    };
    F8::splat(scale) * values
}

/// The first neighbour whose errors, summed in the order of the weights, are least; the first of all if none is finite.
/// `errors` holds for each weight the error of each level.
#[inline(always)]
fn least_error<const GROUP: usize, const BITS: u32>(list: &[[u32; 8]], errors: &[F8; GROUP]) -> u32 {
    let (mut best, mut least) = (list[0][0], f32::MAX);
    for neighbour in list.as_flattened() {
        let level = |i: usize| (neighbour >> (BITS as usize * i)) as usize & ((1 << BITS) - 1);
        let error = (0..GROUP).fold(0.0, |sum, i| sum + errors[i].0[level(i)]);
        if error < least {
            (best, least) = (*neighbour, error);
        }
    }
    best
}

/// [`least_error`] of eight neighbours at a time, in the same order of additions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn least_error_avx2<const GROUP: usize, const BITS: u32>(list: &[[u32; 8]], errors: &[F8; GROUP]) -> u32 {
    use std::arch::x86_64::*;

    let load = |eight: &[u32; 8]| {
        let [a, b, c, d, e, f, g, h] = eight.map(u32::cast_signed);
        _mm256_setr_epi32(a, b, c, d, e, f, g, h)
    };
    let tables: [__m256; GROUP] = std::array::from_fn(|i| {
        // Of eight lanes a lookup takes the three lowest bits: with levels of two bits the table stands there twice.
        let [a, b, c, d, e, f, g, h] = errors[i].0;
        _mm256_setr_ps(a, b, c, d, e, f, g, h)
    });
    let mut least = _mm256_set1_ps(f32::MAX);
    let mut place = _mm256_setzero_si256();
    for (at, eight) in list.iter().enumerate() {
        let mut levels = load(eight);
        let mut error = _mm256_setzero_ps();
        for table in tables {
            error = _mm256_add_ps(error, _mm256_permutevar8x32_ps(table, levels));
            levels = if BITS == 2 { _mm256_srli_epi32::<2>(levels) } else { _mm256_srli_epi32::<3>(levels) };
        }
        let less = _mm256_cmp_ps::<_CMP_LT_OQ>(error, least);
        least = _mm256_blendv_ps(least, error, less);
        place = _mm256_blendv_epi8(place, _mm256_set1_epi32(at as i32), _mm256_castps_si256(less));
    }
    // The least of all lanes, then the first place of those that have it.
    let swapped = _mm256_min_ps(least, _mm256_permute2f128_ps::<1>(least, least));
    let swapped = _mm256_min_ps(swapped, _mm256_permute_ps::<0b01_00_11_10>(swapped));
    let lowest = _mm256_min_ps(swapped, _mm256_permute_ps::<0b10_11_00_01>(swapped));
    let lowest = _mm256_cmp_ps::<_CMP_EQ_OQ>(least, lowest);
    let mask = _mm256_movemask_ps(lowest) as u32;
    let lane = mask.trailing_zeros() as usize & 7;
    if mask.is_power_of_two() {
        let places: [i32; 8] = [
            _mm256_extract_epi32::<0>(place),
            _mm256_extract_epi32::<1>(place),
            _mm256_extract_epi32::<2>(place),
            _mm256_extract_epi32::<3>(place),
            _mm256_extract_epi32::<4>(place),
            _mm256_extract_epi32::<5>(place),
            _mm256_extract_epi32::<6>(place),
            _mm256_extract_epi32::<7>(place),
        ];
        return list[places[lane] as usize][lane];
    }
    least_error::<GROUP, BITS>(list, errors)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn eight_neighbours_at_once_are_compared_as_one_by_one() {
        if !IQ3_S.avx2 {
            return;
        }
        fn compare<const GROUP: usize, const BITS: u32>(points: &Points<GROUP, BITS>) {
            let mut state = 7u32;
            let mut random = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as f32
            };
            for place in points.places.iter().filter(|place| place.count > 0) {
                let list = points.list(*place);
                // Small integers: equal sums are frequent. Levels of two bits have their errors twice.
                let errors: [F8; GROUP] = std::array::from_fn(|_| {
                    let own: [f32; 8] = std::array::from_fn(|_| random() % 4.0);
                    F8(std::array::from_fn(|lane| own[if BITS == 2 { lane % 4 } else { lane }]))
                });
                // SAFETY: the CPU has AVX2, as was asked above.
                let found = unsafe { least_error_avx2::<GROUP, BITS>(list, &errors) };
                assert_eq!(found, least_error::<GROUP, BITS>(list, &errors));
            }
        }
        compare(&IQ2_XXS);
        compare(&IQ2_XS);
        compare(&IQ2_S);
        compare(&IQ1);
        compare(&IQ3_XXS);
        compare(&IQ3_S);
    }

    #[test]
    fn nearest_at_many_scales_are_those_at_each() {
        fn compare<const GROUP: usize, const BITS: u32>(points: &Points<GROUP, BITS>, top: u32) {
            let mut state = 11u32;
            let mut random = move || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 8
            };
            let is_hard = |place: &Place| place.count > 0;
            let mut room = Room::new();
            for (levels, _) in points.places.iter().enumerate().filter(|(_, place)| is_hard(place)) {
                // Weights as coarse as levels, of which many are equally near, and fine ones; of all sizes.
                let size = 2f32.powi(random() as i32 % 100 - 50);
                let coarse = random() % 2 == 0;
                let weights: [f32; GROUP] = std::array::from_fn(|i| {
                    let level = (levels >> (BITS as usize * i)) as u32 & ((1 << BITS) - 1);
                    let off = if coarse {
                        (random() % 3) as f32 - 1.0
                    } else {
                        (random() % 2001) as f32 / 1000.0 - 1.0
                    };
                    size * ((2 * level.min(top) + 1) as f32 + off)
                });
                let importance: [f32; GROUP] = std::array::from_fn(|_| {
                    [0.0, 1.0, 1.0, (random() % 1000) as f32][(random() % 4) as usize]
                });
                let scales: [f32; 19] = std::array::from_fn(|i| size * (0.9 + 0.01 * i as f32));
                let mut found = [0; 19];
                let group = Group::new::<BITS>(&weights, &importance);
                points.nearest_at(levels as Levels, &group, &scales, &mut room, &mut found);
                for (scale, found) in scales.iter().zip(found) {
                    let (one, _) =
                        points.nearest(levels as Levels, values_of::<BITS>(*scale), &weights, &importance);
                    assert_eq!(found, one, "{levels:x} at {scale:e}");
                }
            }
        }
        compare(&IQ2_XXS, 2);
        compare(&IQ2_XS, 2);
        compare(&IQ2_S, 2);
        compare(&IQ3_XXS, 7);
        compare(&IQ3_S, 7);
    }

    #[test]
    fn zeros_are_a_point_of_every_magnitude_grid() {
        for points in [&*IQ2_XXS, &*IQ2_XS, &*IQ2_S] {
            assert_eq!(points.index(0), Some(0));
        }
        assert_eq!((IQ3_XXS.index(0), IQ3_S.index(0)), (Some(0), Some(0)));
    }
}
