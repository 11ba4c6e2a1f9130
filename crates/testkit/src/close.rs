//! Tolerances.

/// The largest magnitude; 0 of none.
pub fn max_abs(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// The largest difference between two slices of one length; infinite if one of them holds a NaN the other does not.
///
/// # Panics
/// If the lengths differ.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "two slices of one length");
    let difference = |(a, b): (&f32, &f32)| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0.0,
        (true, false) | (false, true) => f32::INFINITY,
        // Equal infinities differ by nothing, not by NaN.
        (false, false) => {
            if a == b {
                0.0
            } else {
                (a - b).abs()
            }
        }
    };
    a.iter().zip(b).map(difference).fold(0.0, f32::max)
}

/// Asserts that no element of `actual` lies further than `tolerance` times the largest magnitude of `expected` from
/// its own; `reason` says where the tolerance comes from.
///
/// ```
/// bitmill_testkit::assert_close(&[1.0, 100.0], &[1.00005, 100.0], 1e-6, "one rounding of the largest element");
/// ```
///
/// # Panics
/// If one does, naming the place and both values.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32, reason: &str) {
    let bound = tolerance * max_abs(expected);
    let worst = max_abs_diff(actual, expected);
    if worst <= bound {
        return;
    }
    let at = (0..actual.len()).find(|&i| max_abs_diff(&actual[i..=i], &expected[i..=i]) > bound);
    let at = at.unwrap_or(0);
    panic!(
        "largest difference {worst:e} is over {bound:e} ({tolerance:e} of the largest magnitude: {reason}); first at \
         {at}: {} where {} is expected",
        actual[at], expected[at],
    );
}
