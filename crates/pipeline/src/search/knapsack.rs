//! One option for each unit, the least loss in all, within a number of bytes: the multiple-choice knapsack.
//!
//! Options that cost more without losing less go first. What is left is solved exactly, by dynamic programming over
//! bytes: sizes of tensors are multiples of large numbers, so that bytes counted in their greatest common divisor are
//! few. Where they are too many all the same, sizes are rounded up to coarser steps, and what rounding wasted is spent
//! again, option by option. The relaxation in which a unit may take parts of options bounds the loss of any
//! assignment from below; the distance to it is the gap.

/// One way to store a unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Item {
    /// What it takes of the budget.
    pub bytes: u64,
    /// What it loses; finite, not negative.
    pub loss: f64,
}

/// An assignment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Solution {
    /// The option of each unit.
    pub chosen: Vec<usize>,
    /// Bytes of all.
    pub bytes: u64,
    /// Loss of all.
    pub loss: f64,
    /// No assignment within the budget loses less than this.
    pub bound: f64,
}

/// Steps of the budget at most: with a byte for each of 600 units that is 79 MB.
const STEPS: u64 = 1 << 17;

/// The assignment of least loss within `budget`; `None` if even the smallest options take more.
pub(crate) fn solve(units: &[Vec<Item>], budget: u64) -> Option<Solution> {
    solve_by(units, budget, STEPS)
}

fn solve_by(units: &[Vec<Item>], budget: u64, most_steps: u64) -> Option<Solution> {
    let useful: Vec<Vec<usize>> = units.iter().map(|items| undominated(items)).collect();
    let smallest = |unit: usize| units[unit][useful[unit][0]].bytes;
    let least: u64 = (0..units.len()).map(smallest).sum();
    let room = budget.checked_sub(least)?;
    let most: u64 =
        useful.iter().zip(units).map(|(useful, items)| items[useful[useful.len() - 1]].bytes).sum();
    // Beyond the largest options there is nothing to buy.
    let room = room.min(most - least);
    let extras = || {
        (0..units.len())
            .flat_map(|unit| useful[unit].iter().map(move |&item| units[unit][item].bytes - smallest(unit)))
    };
    let divisor = extras().fold(0, gcd).max(1);
    let step = divisor.max(room.div_ceil(most_steps));
    let mut chosen = by_steps(units, &useful, room, step);
    let is_exact = step == divisor;
    if !is_exact {
        spend_the_rest(units, &useful, &mut chosen, least + room);
    }
    let bytes = total(units, &chosen, |item| item.bytes);
    let loss = chosen.iter().zip(units).map(|(&item, items)| items[item].loss).sum();
    let bound = if is_exact { loss } else { relaxed(units, &useful, room).min(loss) };
    Some(Solution { chosen, bytes, loss, bound })
}

/// The options that no cheaper one equals, in order of size; the first of equals.
fn undominated(items: &[Item]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|&a, &b| items[a].bytes.cmp(&items[b].bytes).then(items[a].loss.total_cmp(&items[b].loss)));
    let mut kept: Vec<usize> = Vec::new();
    for item in order {
        if kept.last().is_none_or(|&last| items[item].loss < items[last].loss) {
            kept.push(item);
        }
    }
    kept
}

/// Dynamic programming over `room` in steps of `step`, sizes rounded up.
fn by_steps(units: &[Vec<Item>], useful: &[Vec<usize>], room: u64, step: u64) -> Vec<usize> {
    let steps = (room / step) as usize;
    // The least loss of the units so far within each number of steps.
    let mut best = vec![0.0f64; steps + 1];
    let mut next = vec![0.0f64; steps + 1];
    let mut taken = vec![0u8; units.len() * (steps + 1)];
    for (unit, (items, useful)) in units.iter().zip(useful).enumerate() {
        let taken = &mut taken[unit * (steps + 1)..(unit + 1) * (steps + 1)];
        for (place, &item) in useful.iter().enumerate() {
            let (cost, loss) = (cost(items, useful, item, step), items[item].loss);
            if place == 0 {
                next.iter_mut().zip(&best).for_each(|(next, before)| *next = before + loss);
                continue;
            }
            if cost > steps {
                break;
            }
            let reached = next[cost..].iter_mut().zip(&mut taken[cost..]).zip(&best);
            for ((next, taken), before) in reached {
                let with = before + loss;
                if with < *next {
                    *next = with;
                    *taken = place as u8;
                }
            }
        }
        std::mem::swap(&mut best, &mut next);
    }
    let mut left = steps;
    let mut chosen = vec![0; units.len()];
    for unit in (0..units.len()).rev() {
        let item = useful[unit][usize::from(taken[unit * (steps + 1) + left])];
        left -= cost(&units[unit], &useful[unit], item, step);
        chosen[unit] = item;
    }
    chosen
}

/// Steps that an option takes beyond the unit's smallest.
fn cost(items: &[Item], useful: &[usize], item: usize, step: u64) -> usize {
    (items[item].bytes - items[useful[0]].bytes).div_ceil(step) as usize
}

/// Takes larger options as long as one fits, the one that gains most for its bytes first.
fn spend_the_rest(units: &[Vec<Item>], useful: &[Vec<usize>], chosen: &mut [usize], budget: u64) {
    let mut left = budget - total(units, chosen, |item| item.bytes);
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (unit, items) in units.iter().enumerate() {
            let now = items[chosen[unit]];
            for &item in &useful[unit] {
                let (more, gain) = (items[item].bytes.saturating_sub(now.bytes), now.loss - items[item].loss);
                if more > 0 && more <= left && best.is_none_or(|(rate, ..)| gain / more as f64 > rate) {
                    best = Some((gain / more as f64, unit, item));
                }
            }
        }
        let Some((_, unit, item)) = best else { return };
        left -= units[unit][item].bytes - units[unit][chosen[unit]].bytes;
        chosen[unit] = item;
    }
}

/// The least loss where units may take parts of options: along each unit's lower convex hull, best rate first.
fn relaxed(units: &[Vec<Item>], useful: &[Vec<usize>], room: u64) -> f64 {
    let mut loss = 0.0;
    let mut edges: Vec<(f64, u64)> = Vec::new();
    for (items, useful) in units.iter().zip(useful) {
        let mut hull: Vec<Item> = Vec::new();
        for &item in useful {
            let point = items[item];
            while let [.., before, last] = hull[..]
                && rate(before, point) >= rate(before, last)
            {
                hull.pop();
            }
            hull.push(point);
        }
        loss += hull[0].loss;
        edges.extend(hull.windows(2).map(|edge| (rate(edge[0], edge[1]), edge[1].bytes - edge[0].bytes)));
    }
    edges.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut left = room;
    for (rate, bytes) in edges {
        let bought = bytes.min(left);
        loss -= rate * bought as f64;
        left -= bought;
    }
    loss
}

/// Loss that a byte takes away between two options.
fn rate(from: Item, to: Item) -> f64 {
    (from.loss - to.loss) / (to.bytes - from.bytes) as f64
}

fn total(units: &[Vec<Item>], chosen: &[usize], of: impl Fn(&Item) -> u64) -> u64 {
    chosen.iter().zip(units).map(|(&item, items)| of(&items[item])).sum()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that only look random.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    fn random(seed: u64, units: usize, multiple: u64) -> Vec<Vec<Item>> {
        let mut numbers = Numbers(seed);
        (0..units)
            .map(|_| {
                let items = 1 + numbers.below(5);
                (0..items)
                    .map(|_| Item {
                        bytes: multiple * (1 + numbers.below(40)),
                        loss: numbers.below(1000) as f64 / 64.0,
                    })
                    .collect()
            })
            .collect()
    }

    /// The least loss of every assignment there is.
    fn brute_force(units: &[Vec<Item>], budget: u64) -> Option<f64> {
        let Some((items, rest)) = units.split_first() else { return Some(0.0) };
        items
            .iter()
            .filter(|item| item.bytes <= budget)
            .filter_map(|item| Some(item.loss + brute_force(rest, budget - item.bytes)?))
            .min_by(f64::total_cmp)
    }

    #[test]
    fn no_assignment_within_the_budget_loses_less() {
        for seed in 0..300 {
            let units = random(seed, 1 + seed as usize % 6, if seed % 3 == 0 { 1 } else { 6912 });
            let most: u64 =
                units.iter().map(|items| items.iter().map(|item| item.bytes).max().unwrap()).sum();
            for part in [0.2, 0.5, 0.8, 1.1] {
                let budget = (most as f64 * part) as u64;
                match (solve(&units, budget), brute_force(&units, budget)) {
                    (Some(found), Some(least)) => {
                        assert_eq!(found.loss, least, "seed {seed}, budget {budget}");
                        assert_eq!(found.bound, least);
                        assert!(found.bytes <= budget);
                        assert_eq!(found.bytes, total(&units, &found.chosen, |item| item.bytes));
                    }
                    (None, None) => {}
                    (found, least) => panic!("seed {seed}, budget {budget}: {found:?}, {least:?}"),
                }
            }
        }
    }

    #[test]
    fn coarse_steps_stay_within_the_budget_and_between_bound_and_gap() {
        for seed in 0..200 {
            let units = random(seed, 6, 7);
            let budget = 7 * 110;
            let Some(least) = brute_force(&units, budget) else { continue };
            let found = solve_by(&units, budget, 40).unwrap();
            assert!(found.bytes <= budget);
            assert!(found.bound <= least + 1e-9 && least <= found.loss, "seed {seed}: {least}, {found:?}");
        }
    }

    #[test]
    fn a_larger_budget_never_loses_more() {
        for seed in 0..50 {
            let units = random(seed, 12, 1);
            let losses: Vec<f64> =
                (0..480).step_by(3).filter_map(|budget| Some(solve(&units, budget)?.loss)).collect();
            assert!(losses.windows(2).all(|pair| pair[1] <= pair[0]), "seed {seed}: {losses:?}");
        }
    }

    #[test]
    fn the_relaxation_of_equal_rates_is_the_budget_itself() {
        // Two units that lose 1 a byte saved: within 3 bytes beyond the smallest, 7 of 10 are lost.
        let unit = vec![Item { bytes: 1, loss: 5.0 }, Item { bytes: 6, loss: 0.0 }];
        let useful = vec![vec![0, 1]; 2];
        assert_eq!(relaxed(&[unit.clone(), unit], &useful, 3), 7.0);
    }

    #[test]
    fn no_units_and_no_room_are_assignments_too() {
        assert_eq!(solve(&[], 0).unwrap().chosen, Vec::<usize>::new());
        let unit = vec![vec![Item { bytes: 3, loss: 1.0 }, Item { bytes: 4, loss: 0.0 }]];
        assert_eq!(solve(&unit, 3).unwrap().chosen, [0]);
        assert_eq!(solve(&unit, 2), None);
        assert_eq!(solve(&unit, u64::MAX).unwrap().chosen, [1]);
    }
}
