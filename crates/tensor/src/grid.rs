//! The grids of GGUF's IQ types: points of four or eight weights from which each small group of a row is taken.
//!
//! A point is an integer with a byte for each weight, the first weight's lowest, so that storing it gives the values in
//! order. IQ1's values are signed.

use crate::grid_tables as tables;

/// Points of IQ2_XXS, eight magnitudes of 8, 25 or 43.
pub static IQ2_XXS: [u64; 256] = points_of_eight(&tables::IQ2_XXS, [8, 25, 43]);
/// Points of IQ2_XS, as those of [`IQ2_XXS`].
pub static IQ2_XS: [u64; 512] = points_of_eight(&tables::IQ2_XS, [8, 25, 43]);
/// Points of IQ2_S, as those of [`IQ2_XXS`].
pub static IQ2_S: [u64; 1024] = points_of_eight(&tables::IQ2_S, [8, 25, 43]);
/// Points of IQ3_XXS, four magnitudes from 4 to 62.
pub static IQ3_XXS: [u32; 256] = points_of_four(&tables::IQ3_XXS, [4, 12, 20, 28, 36, 44, 52, 62]);
/// Points of IQ3_S, four odd magnitudes from 1 to 15.
pub static IQ3_S: [u32; 512] = points_of_four(&tables::IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);
/// Points of IQ1_S and IQ1_M, eight weights of −1, 0 or 1.
pub static IQ1: [u64; 2048] = points_of_eight(&tables::IQ1, [0xff, 0, 1]);

/// The signs of eight weights from seven bits: bit `i` is set where weight `i` is negative, and the eighth makes their
/// number even.
///
/// ```
/// assert_eq!(bitmill_tensor::grid::even_signs(0b0000_0111), 0b1000_0111);
/// ```
#[inline(always)]
pub const fn even_signs(seven: u8) -> u8 {
    let seven = seven & 127;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

const fn points_of_eight<const N: usize>(levels: &[u16; N], values: [u8; 3]) -> [u64; N] {
    let mut points = [0; N];
    let mut at = 0;
    while at < N {
        let mut weight = 0;
        while weight < 8 {
            let level = (levels[at] >> (2 * weight)) & 3;
            points[at] |= (values[level as usize] as u64) << (8 * weight);
            weight += 1;
        }
        at += 1;
    }
    points
}

const fn points_of_four<const N: usize>(levels: &[u16; N], values: [u8; 8]) -> [u32; N] {
    let mut points = [0; N];
    let mut at = 0;
    while at < N {
        let mut weight = 0;
        while weight < 4 {
            let level = (levels[at] >> (3 * weight)) & 7;
            points[at] |= (values[level as usize] as u32) << (8 * weight);
            weight += 1;
        }
        at += 1;
    }
    points
}
