//! Names beside points, placed so that they cover neither each other nor the points.

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Area {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

impl Area {
    /// Pixels that both cover.
    fn overlap(&self, other: &Self) -> f64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        width.max(0.0) * height.max(0.0)
    }

    /// Pixels that `inner` has outside of this one.
    fn excess(&self, inner: &Self) -> f64 {
        let area = (inner.right - inner.left) * (inner.bottom - inner.top);
        area - self.overlap(inner)
    }

    fn around((x, y): (f64, f64), reach: f64) -> Self {
        Self { left: x - reach, top: y - reach, right: x + reach, bottom: y + reach }
    }

    fn distance(&self, (x, y): (f64, f64)) -> f64 {
        (x - x.clamp(self.left, self.right)).hypot(y - y.clamp(self.top, self.bottom))
    }

    /// Where a line from a point to this ends: a little inside, so that it is seen to belong.
    fn entry(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (x.clamp(self.left, self.right), y.clamp(self.top + 2.0, self.bottom - 2.0))
    }

    /// Whether a name here, of the point `own`, would be read as that of `other`.
    fn misleads(&self, own: (f64, f64), other: (f64, f64)) -> bool {
        self.distance(other) < self.distance(own) + 3.0
    }

    fn touches_segment(&self, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> bool {
        // Sampled every four pixels: labels are higher than that, and a missed corner costs nothing.
        let steps = ((x2 - x1).hypot(y2 - y1) / 4.0).ceil().max(1.0);
        (0..=steps as u32).any(|i| {
            let t = f64::from(i) / steps;
            let (x, y) = (x1 + t * (x2 - x1), y1 + t * (y2 - y1));
            (self.left..=self.right).contains(&x) && (self.top..=self.bottom).contains(&y)
        })
    }
}

/// Where a label went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placed {
    /// What the text covers.
    pub area: Area,
    /// Where a line from the point meets it, if it lies too far from its point to be read as its name without.
    pub leader: Option<(f64, f64)>,
}

/// Half the extent of a point with a little air.
const POINT_REACH: f64 = 6.5;

/// From one place to another, in pixels.
pub(crate) type Segment = ((f64, f64), (f64, f64));

/// Places one label a point: `widths` in order, all of one height, inside `bounds` and off `lines` where that can be.
///
/// Each label in turn takes the cheapest of a ring of places around its point, near ones first; three more rounds let
/// early ones make room for later ones. Deterministic, and free of overlaps as long as there is room.
pub(crate) fn place(
    points: &[(f64, f64)],
    widths: &[f64],
    height: f64,
    bounds: Area,
    lines: &[Segment],
) -> Vec<Placed> {
    let mut placed: Vec<Option<Placed>> = vec![None; points.len()];
    for _round in 0..4 {
        for i in 0..points.len() {
            let cost = |candidate: &Placed| {
                let crossed = lines.iter().filter(|(from, to)| candidate.area.touches_segment(*from, *to));
                cost(candidate, i, points, &placed, bounds) + 6.0 * crossed.count() as f64
            };
            let best = candidates(points[i], widths[i], height)
                .map(|(near, candidate)| (near + cost(&candidate), candidate))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            placed[i] = best.map(|(_, candidate)| candidate);
        }
    }
    let mut placed: Vec<Placed> = placed.into_iter().flatten().collect();
    for (own, label) in placed.iter_mut().enumerate() {
        let near = |(i, &point): (usize, &(f64, f64))| i != own && label.area.misleads(points[own], point);
        if points.iter().enumerate().any(near) {
            label.leader = Some(label.area.entry(points[own]));
        }
    }
    placed
}

/// Places for a label around its point, each with what its distance costs.
fn candidates((x, y): (f64, f64), width: f64, height: f64) -> impl Iterator<Item = (f64, Placed)> {
    const DISTANCES: [f64; 6] = [7.0, 16.0, 26.0, 38.0, 52.0, 70.0];
    DISTANCES.into_iter().enumerate().flat_map(move |(ring, distance)| {
        (0..16).map(move |step| {
            let angle = f64::from(step) * std::f64::consts::TAU / 16.0;
            // The label's centre lies so that its nearest edge keeps the distance.
            let (cos, sin) = (angle.cos(), angle.sin());
            let (cx, cy) = (x + cos * (distance + width / 2.0), y + sin * (distance + height / 2.0 - 2.0));
            let area = Area {
                left: cx - width / 2.0,
                right: cx + width / 2.0,
                top: cy - height / 2.0,
                bottom: cy + height / 2.0,
            };
            let leader = (ring > 1)
                .then(|| (x.clamp(area.left, area.right), y.clamp(area.top + 2.0, area.bottom - 2.0)));
            // Right of the point reads best, then left, then above and below.
            let side = match step {
                0 => 0.0,
                8 => 2.0,
                4 | 12 => 3.0,
                _ => 5.0,
            };
            (distance + side, Placed { area, leader })
        })
    })
}

fn cost(
    candidate: &Placed,
    own: usize,
    points: &[(f64, f64)],
    placed: &[Option<Placed>],
    bounds: Area,
) -> f64 {
    let mut cost = 8.0 * bounds.excess(&candidate.area);
    for (i, &point) in points.iter().enumerate() {
        if i == own {
            // A slanted place may reach back over its own point.
            cost += covering(4.0, candidate.area.overlap(&Area::around(point, 5.0)));
            continue;
        }
        cost += covering(4.0, candidate.area.overlap(&Area::around(point, POINT_REACH)));
        // Nearer to another point than to its own, a name is read as the other's.
        if candidate.area.misleads(points[own], point) {
            cost += 14.0;
        }
        if let Some(end) = candidate.leader
            && Area::around(point, POINT_REACH).touches_segment(points[own], end)
        {
            cost += 60.0;
        }
        let Some(other) = &placed[i] else { continue };
        cost += covering(8.0, candidate.area.overlap(&other.area));
        let crossed = candidate.leader.is_some_and(|end| other.area.touches_segment(points[own], end))
            || other.leader.is_some_and(|end| candidate.area.touches_segment(point, end));
        if crossed {
            cost += 80.0;
        }
    }
    cost
}

/// A sliver covered is bad enough to look further; from there it grows with what is covered.
fn covering(weight: f64, pixels: f64) -> f64 {
    if pixels > 0.0 { 30.0 + weight * pixels } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Area = Area { left: 0.0, top: 0.0, right: 420.0, bottom: 260.0 };

    fn assert_free(points: &[(f64, f64)], placed: &[Placed]) {
        for (i, a) in placed.iter().enumerate() {
            assert!(BOUNDS.excess(&a.area) < 1e-9, "label {i} leaves the plot: {a:?}");
            for (j, b) in placed.iter().enumerate().skip(i + 1) {
                assert_eq!(a.area.overlap(&b.area), 0.0, "labels {i} and {j}");
            }
            for (j, &point) in points.iter().enumerate() {
                assert_eq!(a.area.overlap(&Area::around(point, 4.0)), 0.0, "label {i} on point {j}");
            }
        }
    }

    #[test]
    fn a_lone_label_stands_right_of_its_point() {
        let placed = place(&[(100.0, 100.0)], &[50.0], 14.0, BOUNDS, &[]);
        assert_eq!(placed[0].area.left, 107.0);
        assert_eq!(placed[0].leader, None);
    }

    #[test]
    fn a_label_at_the_right_edge_goes_to_the_left() {
        let placed = place(&[(410.0, 100.0)], &[50.0], 14.0, BOUNDS, &[]);
        assert_free(&[(410.0, 100.0)], &placed);
    }

    #[test]
    fn twelve_crowded_points_get_labels_that_do_not_overlap() {
        let points: Vec<(f64, f64)> = (0..12)
            .map(|i| (120.0 + f64::from(i * 7 % 12) * 6.0, 90.0 + f64::from(i * 5 % 12) * 3.0))
            .collect();
        let widths: Vec<f64> = (0..12).map(|i| 30.0 + f64::from(i % 4) * 14.0).collect();
        let placed = place(&points, &widths, 14.0, BOUNDS, &[]);
        assert_free(&points, &placed);
        assert_eq!(placed, place(&points, &widths, 14.0, BOUNDS, &[]));
    }

    #[test]
    fn points_in_one_place_get_labels_apart() {
        let points = [(200.0, 120.0); 5];
        let placed = place(&points, &[60.0; 5], 14.0, BOUNDS, &[]);
        assert_free(&[], &placed);
    }
}
