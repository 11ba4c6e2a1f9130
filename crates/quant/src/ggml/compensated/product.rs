//! The products that take most of the time: some columns of many rows times a strip of a matrix.

use super::lanes::Rows;

/// Columns of the strip that are gathered at a time, so that rows of a matrix whose width is a power of two do not meet in
/// one place of the cache.
const PANEL: usize = 16;
/// Columns whose sums are in registers.
const TILE: usize = 4;

/// The memory that [`add_product`] needs for `inner` columns.
pub(super) const fn panel_len(inner: usize) -> usize {
    PANEL * inner
}

/// Adds `factor · x · matrix[first_row.., cols]` to `out`.
///
/// # Shapes
/// `x`: `[groups, inner]`. `out`: `[groups, n]`, of which columns `cols` change. `matrix`: row-major, `n` columns.
#[inline(always)]
pub(super) fn add_product(
    x: &[Rows],
    inner: usize,
    factor: f32,
    matrix: &[f32],
    n: usize,
    first_row: usize,
    cols: std::ops::Range<usize>,
    out: &mut [Rows],
    panel: &mut [f32],
) {
    debug_assert!(cols.start.is_multiple_of(PANEL) && cols.end.is_multiple_of(PANEL), "whole panels");
    for first in cols.step_by(PANEL) {
        for (k, panel) in panel.as_chunks_mut::<PANEL>().0.iter_mut().take(inner).enumerate() {
            let row: &[f32; PANEL] =
                matrix[(first_row + k) * n + first..].first_chunk().expect("a whole panel");
            for c in 0..PANEL {
                panel[c] = factor * row[c];
            }
        }
        let mut group = 0;
        let groups = x.len() / inner;
        while group < groups {
            let (x, out) = (&x[group * inner..], &mut out[group * n..]);
            group += match groups - group {
                1 => tiles::<1>(x, inner, n, first, out, panel),
                2 => tiles::<2>(x, inner, n, first, out, panel),
                3 => tiles::<3>(x, inner, n, first, out, panel),
                _ => tiles::<4>(x, inner, n, first, out, panel),
            };
        }
    }
}

#[inline(always)]
fn tiles<const GROUPS: usize>(
    x: &[Rows],
    inner: usize,
    n: usize,
    first: usize,
    out: &mut [Rows],
    panel: &[f32],
) -> usize {
    let x: [&[Rows]; GROUPS] = std::array::from_fn(|group| &x[group * inner..][..inner]);
    for tile in 0..PANEL / TILE {
        let at = first + tile * TILE;
        let mut sums = [[Rows::ZERO; TILE]; GROUPS];
        for (k, row) in panel.as_chunks::<PANEL>().0[..inner].iter().enumerate() {
            for group in 0..GROUPS {
                for c in 0..TILE {
                    sums[group][c] = sums[group][c].plus(x[group][k], Rows::splat(row[tile * TILE + c]));
                }
            }
        }
        for (group, sums) in sums.iter().enumerate() {
            for (out, &sum) in out[group * n + at..][..TILE].iter_mut().zip(sums) {
                *out = *out + sum;
            }
        }
    }
    GROUPS
}
