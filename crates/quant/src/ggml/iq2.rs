//! IQ2_XXS, IQ2_XS and IQ2_S: eight magnitudes at a time from a grid of 256, 512 or 1024 points, and their signs.

use bitmill_tensor::grid::even_signs;

use super::grid_search::{Again, Search, largest_of, magnitudes, mean_square, scale_code, search, weighed};
use super::points::{self, Points};
use super::refine_grid::{Place, Placed};
use super::{Encode, Weighing, ZERO, f16_at, f16_scale, unsigned_scale};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ2_XXS;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ2_XS;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct IQ2_S;

/// Below this the sub-blocks of IQ2_S are zeros.
const IQ2_S_ZERO: f32 = 1e-8;

impl Encode<256, 66> for IQ2_XXS {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 66],
    ) -> Result<(), f32> {
        const SEARCH: Search = Search { tries: 6, step: 0.1, again: Again::All };
        *out = [0; 66];
        let Some(weighing) = weighing else { return Ok(()) };
        let points = &*points::IQ2_XXS;
        let variance = mean_square(weights, 1.0)?;
        let (sub_blocks, _) = weights.as_chunks::<32>();
        let (importance, _) = weighing.importance.as_chunks::<32>();
        let mut scales = [0f32; 8];
        let mut parts = [[0u32; 2]; 8];
        for (sub, x) in sub_blocks.iter().enumerate() {
            let importance = weighed(x, &importance[sub], variance);
            let (x, mut signs) = magnitudes::<32, 4>(x, &importance, true);
            if largest_of(&x) < ZERO {
                continue;
            }
            let (scale, _) = unsigned_scale::search(&x, &importance, 4);
            let largest = scale * 3.0;
            if largest <= 0.0 {
                continue;
            }
            let found = search::<32, 4, 8, 2>(points, &SEARCH, largest, scale, &x, &importance);
            scales[sub] = stored_scale(found.scale, &mut signs)?;
            for (k, (levels, signs)) in found.levels.into_iter().zip(signs).enumerate() {
                parts[sub][0] |= points.index(levels).unwrap_or(0) << (8 * k);
                parts[sub][1] |= u32::from(signs & 127) << (7 * k);
            }
        }
        let Some((d, inverse)) = block_scale(&scales) else { return Ok(()) };
        out[..2].copy_from_slice(&f16_scale(d)?.to_le_bytes());
        for (sub, out) in out[2..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            parts[sub][1] |= u32::from(scale_code(inverse, scales[sub], 15)) << 28;
            out[..4].copy_from_slice(&parts[sub][0].to_le_bytes());
            out[4..].copy_from_slice(&parts[sub][1].to_le_bytes());
        }
        Ok(())
    }
}

impl Encode<256, 74> for IQ2_XS {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 74],
    ) -> Result<(), f32> {
        *out = [0; 74];
        let Some(weighing) = weighing else { return Ok(()) };
        let points = &*points::IQ2_XS;
        let variance = mean_square(weights, 1.0)?;
        let (importance, _) = weighing.importance.as_chunks::<16>();
        let mut scales = [0f32; 16];
        let mut codes = [[0u16; 2]; 16];
        for (sub, x) in weights.as_chunks::<16>().0.iter().enumerate() {
            let importance = weighed(x, &importance[sub], variance);
            let (x, mut signs) = magnitudes::<16, 2>(x, &importance, true);
            let Some((scale, levels)) = search_16(points, ZERO, &x, &importance) else { continue };
            scales[sub] = stored_scale(scale, &mut signs)?;
            for k in 0..2 {
                let index = points.index(levels[k]).unwrap_or(0) as u16;
                codes[sub][k] = index | u16::from(signs[k] & 127) << 9;
            }
        }
        let Some((d, inverse)) = block_scale(&scales) else { return Ok(()) };
        let (header, rest) = out.split_at_mut(2);
        let (places, scale_codes) = rest.split_at_mut(64);
        header.copy_from_slice(&f16_scale(d)?.to_le_bytes());
        for (place, code) in places.as_chunks_mut::<2>().0.iter_mut().zip(codes.as_flattened()) {
            *place = code.to_le_bytes();
        }
        write_scales(&scales, inverse, scale_codes);
        Ok(())
    }
}

impl Encode<256, 82> for IQ2_S {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 82],
    ) -> Result<(), f32> {
        *out = [0; 82];
        let points = &*points::IQ2_S;
        let variance = mean_square(weights, 2.0)?;
        let mut scales = [0f32; 16];
        let (header, rest) = out.split_at_mut(2);
        let (low, rest) = rest.split_at_mut(32);
        let (all_signs, rest) = rest.split_at_mut(32);
        let (high, scale_codes) = rest.split_at_mut(8);
        for (sub, x) in weights.as_chunks::<16>().0.iter().enumerate() {
            let importance = match weighing {
                Some(weighing) => weighed(x, &weighing.importance.as_chunks::<16>().0[sub], variance),
                None => x.map(|x| 0.25 * variance + x * x),
            };
            let (x, mut signs) = magnitudes::<16, 2>(x, &importance, false);
            let Some((scale, levels)) = search_16(points, IQ2_S_ZERO, &x, &importance) else { continue };
            scales[sub] = stored_scale(scale, &mut signs)?;
            for k in 0..2 {
                let (index, eight) = (points.index(levels[k]).unwrap_or(0), 2 * sub + k);
                low[eight] = index as u8;
                high[eight / 4] |= (index >> 8 << (2 * (eight % 4))) as u8;
                all_signs[eight] = signs[k];
            }
        }
        let Some((d, inverse)) = block_scale(&scales) else { return Ok(()) };
        header.copy_from_slice(&f16_scale(d * 0.9875)?.to_le_bytes());
        write_scales(&scales, inverse, scale_codes);
        Ok(())
    }
}

/// The scale and the levels of a sub-block of 16; `None` if it is zeros.
#[inline(always)]
fn search_16(
    points: &Points<8, 2>,
    zero: f32,
    weights: &[f32; 16],
    importance: &[f32; 16],
) -> Option<(f32, [u16; 2])> {
    const SEARCH: Search = Search { tries: 9, step: 0.1, again: Again::BesideGrid };
    let largest = largest_of(weights);
    if largest < zero {
        return None;
    }
    let found = search::<16, 2, 8, 2>(points, &SEARCH, largest, largest / 5.0, weights, importance);
    Some((found.scale, found.levels))
}

/// A scale of at least 0, the signs turned over for one below; the scale itself if it is infinite or NaN, which ggml
/// stops at.
#[inline(always)]
pub(super) fn stored_scale(scale: f32, signs: &mut [u8]) -> Result<f32, f32> {
    if !scale.is_finite() {
        return Err(scale);
    }
    if scale < 0.0 {
        signs.iter_mut().for_each(|signs| *signs = !*signs);
        return Ok(-scale);
    }
    Ok(scale)
}

/// A block's scale, and the inverse that its sub-blocks' are rounded with; `None` for zeros.
#[inline(always)]
pub(super) fn block_scale(scales: &[f32]) -> Option<(f32, f32)> {
    let most = scales.iter().fold(0.0f32, |most, scale| most.max(*scale));
    let d = most / 31.0;
    (most != 0.0).then_some((d, 1.0 / d))
}

/// Sixteen scales of four bits, the first of two lowest.
#[inline(always)]
fn write_scales(scales: &[f32; 16], inverse: f32, out: &mut [u8]) {
    put_scales(&scales.map(|scale| scale_code(inverse, scale, 15)), out);
}

/// What the levels of IQ2 stand for, in units of `d · (2 · scale + 1)`; the last stands for no point.
const VALUES: [f32; 8] = [1.0, 3.125, 5.375, 5.375, 1.0, 3.125, 5.375, 5.375];

impl Place<32, 8, 2, 66> for IQ2_XXS {
    const VALUES: [f32; 8] = VALUES;
    const SUB_BLOCK: usize = 32;
    const TOP: u8 = 15;

    fn points() -> &'static Points<8, 2> {
        &points::IQ2_XXS
    }

    #[inline(always)]
    fn read(block: &[u8; 66]) -> Placed<32> {
        let mut placed = Placed { d: f16_at(block, 0), ..Placed::ZERO };
        for (sub, part) in block[2..].as_chunks::<8>().0.iter().enumerate() {
            let (places, rest) = part.split_at(4);
            let rest = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
            placed.scales[sub] = (rest >> 28) as u8;
            for (k, place) in places.iter().enumerate() {
                placed.levels[4 * sub + k] = points::IQ2_XXS.levels(u32::from(*place));
                placed.signs[4 * sub + k] = even_signs((rest >> (7 * k)) as u8);
            }
        }
        placed
    }

    #[inline(always)]
    fn write(placed: &Placed<32>, out: &mut [u8; 66]) {
        out[..2].copy_from_slice(&placed.d.to_le_bytes());
        for (sub, part) in out[2..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut rest = u32::from(placed.scales[sub]) << 28;
            let (places, signs) = part.split_at_mut(4);
            for (k, place) in places.iter_mut().enumerate() {
                *place = points::IQ2_XXS.index(placed.levels[4 * sub + k]).unwrap_or(0) as u8;
                rest |= u32::from(placed.signs[4 * sub + k] & 127) << (7 * k);
            }
            signs.copy_from_slice(&rest.to_le_bytes());
        }
    }
}

impl Place<32, 8, 2, 74> for IQ2_XS {
    const VALUES: [f32; 8] = VALUES;
    const SUB_BLOCK: usize = 16;
    const TOP: u8 = 15;

    fn points() -> &'static Points<8, 2> {
        &points::IQ2_XS
    }

    #[inline(always)]
    fn read(block: &[u8; 74]) -> Placed<32> {
        let mut placed = Placed { d: f16_at(block, 0), scales: read_scales(&block[66..]), ..Placed::ZERO };
        for (eight, code) in block[2..66].as_chunks::<2>().0.iter().enumerate() {
            let code = u16::from_le_bytes(*code);
            placed.levels[eight] = points::IQ2_XS.levels(u32::from(code & 511));
            placed.signs[eight] = even_signs((code >> 9) as u8);
        }
        placed
    }

    #[inline(always)]
    fn write(placed: &Placed<32>, out: &mut [u8; 74]) {
        out[..2].copy_from_slice(&placed.d.to_le_bytes());
        for (eight, code) in out[2..66].as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let index = points::IQ2_XS.index(placed.levels[eight]).unwrap_or(0) as u16;
            *code = (index | u16::from(placed.signs[eight] & 127) << 9).to_le_bytes();
        }
        put_scales(&placed.scales, &mut out[66..]);
    }
}

impl Place<32, 8, 2, 82> for IQ2_S {
    const VALUES: [f32; 8] = VALUES;
    const SUB_BLOCK: usize = 16;
    const TOP: u8 = 15;

    fn points() -> &'static Points<8, 2> {
        &points::IQ2_S
    }

    #[inline(always)]
    fn read(block: &[u8; 82]) -> Placed<32> {
        let mut placed = Placed { d: f16_at(block, 0), scales: read_scales(&block[74..]), ..Placed::ZERO };
        for eight in 0..32 {
            let high = u32::from(block[66 + eight / 4]) >> (2 * (eight % 4)) & 3;
            placed.levels[eight] = points::IQ2_S.levels(u32::from(block[2 + eight]) | high << 8);
            placed.signs[eight] = block[34 + eight];
        }
        placed
    }

    #[inline(always)]
    fn write(placed: &Placed<32>, out: &mut [u8; 82]) {
        out[..2].copy_from_slice(&placed.d.to_le_bytes());
        out[66..74].fill(0);
        for eight in 0..32 {
            let index = points::IQ2_S.index(placed.levels[eight]).unwrap_or(0);
            out[2 + eight] = index as u8;
            out[34 + eight] = placed.signs[eight];
            out[66 + eight / 4] |= (index >> 8 << (2 * (eight % 4))) as u8;
        }
        put_scales(&placed.scales, &mut out[74..]);
    }
}

/// Scales of four bits, the first of two lowest.
#[inline(always)]
pub(super) fn read_scales<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| bytes[at / 2] >> (4 * (at % 2)) & 15)
}

#[inline(always)]
pub(super) fn put_scales(scales: &[u8], out: &mut [u8]) {
    for (pair, byte) in scales.as_chunks::<2>().0.iter().zip(out) {
        *byte = pair[0] | pair[1] << 4;
    }
}
