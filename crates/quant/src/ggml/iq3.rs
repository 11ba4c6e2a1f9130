//! IQ3_XXS and IQ3_S: four magnitudes at a time from a grid of 256 or 512 points, and their signs.

use bitmill_tensor::grid::even_signs;

use super::grid_search::{Again, Search, largest_of, magnitudes, mean_square, scale_code, search, weighed};
use super::iq2::{block_scale, put_scales, read_scales, stored_scale};
use super::points::{self, Points};
use super::refine_grid::{Place, Placed};
use super::{Encode, Weighing, f16_at, f16_scale};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ3_XXS;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ3_S;

/// Below this the sub-blocks of IQ3_XXS are zeros.
const IQ3_XXS_ZERO: f32 = 1e-8;

impl Encode<256, 98> for IQ3_XXS {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 98],
    ) -> Result<(), f32> {
        const SEARCH: Search = Search { tries: 15, step: 0.2, again: Again::BesideGrid };
        *out = [0; 98];
        let points = &*points::IQ3_XXS;
        let variance = mean_square(weights, 2.0)?;
        let mut scales = [0f32; 8];
        let mut all_signs = [0u32; 8];
        let mut low = [[0u8; 8]; 8];
        for (sub, x) in weights.as_chunks::<32>().0.iter().enumerate() {
            let importance = counts(x, weighing, sub, variance);
            let (x, mut signs) = magnitudes::<32, 4>(x, &importance, true);
            let largest = largest_of(&x);
            if largest < IQ3_XXS_ZERO {
                continue;
            }
            let found = search::<32, 8, 4, 3>(points, &SEARCH, largest, largest / 15.0, &x, &importance);
            scales[sub] = stored_scale(found.scale, &mut signs)?;
            low[sub] = found.levels.map(|levels| points.index(levels).unwrap_or(0) as u8);
            for (k, signs) in signs.into_iter().enumerate() {
                all_signs[sub] |= u32::from(signs & 127) << (7 * k);
            }
        }
        let Some((d, inverse)) = block_scale(&scales) else { return Ok(()) };
        out[..2].copy_from_slice(&f16_scale(d * 1.0125)?.to_le_bytes());
        out[2..66].copy_from_slice(low.as_flattened());
        for (sub, out) in out[66..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *out = (all_signs[sub] | u32::from(scale_code(inverse, scales[sub], 15)) << 28).to_le_bytes();
        }
        Ok(())
    }
}

impl Encode<256, 110> for IQ3_S {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 110],
    ) -> Result<(), f32> {
        const SEARCH: Search = Search { tries: 9, step: 0.2, again: Again::AllIfOneBesideGrid };
        *out = [0; 110];
        let points = &*points::IQ3_S;
        let variance = mean_square(weights, 2.0)?;
        let mut scales = [0f32; 8];
        let (header, rest) = out.split_at_mut(2);
        let (low, rest) = rest.split_at_mut(64);
        let (high, rest) = rest.split_at_mut(8);
        let (all_signs, scale_codes) = rest.split_at_mut(32);
        for (sub, x) in weights.as_chunks::<32>().0.iter().enumerate() {
            let importance = counts(x, weighing, sub, variance);
            let (x, mut signs) = magnitudes::<32, 4>(x, &importance, false);
            let largest = largest_of(&x);
            if largest == 0.0 {
                // Its place stays zeros. ggml does not step over it: those behind it take it, and decode as what came before.
                continue;
            }
            let found = search::<32, 8, 4, 3>(points, &SEARCH, largest, largest / 15.0, &x, &importance);
            scales[sub] = stored_scale(found.scale, &mut signs)?;
            for k in 0..8 {
                let index = points.index(found.levels[k]).unwrap_or(0);
                low[8 * sub + k] = index as u8;
                high[sub] |= ((index >> 8) << k) as u8;
            }
            all_signs[4 * sub..][..4].copy_from_slice(&signs);
        }
        let Some((d, inverse)) = block_scale(&scales) else { return Ok(()) };
        header.copy_from_slice(&f16_scale(d * 1.033)?.to_le_bytes());
        put_scales(&scales.map(|scale| scale_code(inverse, scale, 15)), scale_codes);
        Ok(())
    }
}

/// What the errors of a sub-block's weights count.
#[inline(always)]
fn counts(x: &[f32; 32], weighing: Option<Weighing<'_, 256>>, sub: usize, variance: f32) -> [f32; 32] {
    match weighing {
        Some(weighing) => weighed(x, &weighing.importance.as_chunks::<32>().0[sub], variance),
        None => x.map(|x| x * x),
    }
}

impl Place<64, 4, 3, 98> for IQ3_XXS {
    const VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.5];
    const SUB_BLOCK: usize = 32;
    const TOP: u8 = 15;

    fn points() -> &'static Points<4, 3> {
        &points::IQ3_XXS
    }

    #[inline(always)]
    fn read(block: &[u8; 98]) -> Placed<64> {
        let mut placed = Placed { d: f16_at(block, 0), ..Placed::ZERO };
        for (levels, place) in placed.levels.iter_mut().zip(&block[2..66]) {
            *levels = points::IQ3_XXS.levels(u32::from(*place));
        }
        for (sub, rest) in block[66..].as_chunks::<4>().0.iter().enumerate() {
            let rest = u32::from_le_bytes(*rest);
            placed.scales[sub] = (rest >> 28) as u8;
            for k in 0..4 {
                placed.signs[4 * sub + k] = even_signs((rest >> (7 * k)) as u8);
            }
        }
        placed
    }

    #[inline(always)]
    fn write(placed: &Placed<64>, out: &mut [u8; 98]) {
        out[..2].copy_from_slice(&placed.d.to_le_bytes());
        for (levels, place) in placed.levels.iter().zip(&mut out[2..66]) {
            *place = points::IQ3_XXS.index(*levels).unwrap_or(0) as u8;
        }
        for (sub, out) in out[66..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let mut rest = u32::from(placed.scales[sub]) << 28;
            for k in 0..4 {
                rest |= u32::from(placed.signs[4 * sub + k] & 127) << (7 * k);
            }
            *out = rest.to_le_bytes();
        }
    }
}

impl Place<64, 4, 3, 110> for IQ3_S {
    const VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
    const SUB_BLOCK: usize = 32;
    const TOP: u8 = 15;

    fn points() -> &'static Points<4, 3> {
        &points::IQ3_S
    }

    #[inline(always)]
    fn read(block: &[u8; 110]) -> Placed<64> {
        let mut placed = Placed { d: f16_at(block, 0), ..Placed::ZERO };
        for (four, levels) in placed.levels.iter_mut().enumerate() {
            let high = u32::from(block[66 + four / 8] >> (four % 8) & 1);
            *levels = points::IQ3_S.levels(u32::from(block[2 + four]) | high << 8);
        }
        placed.signs.copy_from_slice(&block[74..106]);
        placed.scales[..8].copy_from_slice(&read_scales::<8>(&block[106..]));
        placed
    }

    #[inline(always)]
    fn write(placed: &Placed<64>, out: &mut [u8; 110]) {
        out[..2].copy_from_slice(&placed.d.to_le_bytes());
        out[66..74].fill(0);
        for (four, levels) in placed.levels.iter().enumerate() {
            let index = points::IQ3_S.index(*levels).unwrap_or(0);
            out[2 + four] = index as u8;
            out[66 + four / 8] |= ((index >> 8) << (four % 8)) as u8;
        }
        out[74..106].copy_from_slice(&placed.signs);
        put_scales(&placed.scales[..8], &mut out[106..]);
    }
}
