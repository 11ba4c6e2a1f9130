//! Small numbers with scales: 8-bit integers, FP8, NVFP4 and MXFP4, each weight to the nearest, no data needed.
//!
//! Scales are compressed-tensors' (`quantization/utils/helpers.py`, `mxfp_utils.py`), so its library stores the same bytes for
//! the same weights:
//!
//! - int8 and fp8: the largest magnitude that a scale is for over 127.5 or 448, rounded to the type it is stored in.
//! - nvfp4: one f32 for all matrices that a runtime fuses, `448 · 6 / absmax` ([`global_scale`]); the scale of 16 columns is
//!   that times their `absmax / 6`, as fp8. A weight is `number · scale / global`.
//! - mxfp4: `2^(⌊log2 absmax⌋ − 2)`, one more where the mantissa is 1.75 or larger; mxfp6 from 1.9375 on; mxfp8: − 8 for − 2.
//!
//! - places in a list of 16 values: bitsandbytes' NF4 and its own FP4, see `codebook`.
//!
//! A scale that rounds to zero becomes its type's machine epsilon, as for codes in groups: nothing is divided by zero, and
//! zeros stay zeros. One that its float type cannot hold is an error.

use bitmill_tensor::{Element, ScaleType, Scaled, fp4_from_f32, fp6_from_f32, fp8_from_f32, fp8_to_f32};

use crate::error::check_rows;
use crate::rtn::{epsilon, nearest_even};
use crate::{Error, codebook};

/// Rows of numbers and the scales of as many lines as they are for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScaledRows {
    /// Numbers, row after row.
    pub codes: Vec<u8>,
    /// Scales, line after line.
    pub scales: Vec<u8>,
}

/// What the scales of NVFP4 are multiplied by where the largest magnitude is `absmax`; 1 for zeros and whatever else leaves
/// no number.
///
/// ```
/// use bitmill_quant::global_scale;
/// assert_eq!([global_scale(1.5), global_scale(0.0)], [1792.0, 1.0]);
/// ```
pub fn global_scale(absmax: f32) -> f32 {
    let global = 448.0 * 6.0 / absmax.max(f32::MIN_POSITIVE);
    if global.is_finite() { global } else { 1.0 }
}

/// Rounds rows to nearest and fills `decided` with the values that the numbers stand for. `global` is of no matter to scales
/// that are not fp8.
///
/// ```
/// use bitmill_quant::quantize_scaled;
/// use bitmill_tensor::{Element, Extent, FloatType, ScaleType, Scaled};
/// let layout = Scaled { element: Element::Int8, extent: Extent::Row, scale: ScaleType::Float(FloatType::F32) };
/// let mut decided = [0.0; 3];
/// // The largest weight is 127.5, so the scale is 1.
/// let rows = quantize_scaled(&layout, 1.0, &[127.5, -2.5, 0.4], 3, &mut decided)?;
/// assert_eq!(decided, [127.0, -2.0, 0.0]);
/// assert_eq!(rows.codes, [127, 254, 0]);
/// # Ok::<(), bitmill_quant::Error>(())
/// ```
///
/// # Shapes
/// `weight`, `decided`: `[rows, in_features]`; where rows share scales, all that do, from their first on.
///
/// # Errors
/// [`UnevenGroups`](Error::UnevenGroups) if scales of columns do not tile a row, [`NonFinite`](Error::NonFinite) for NaN and
/// infinity, [`ScaleOverflow`](Error::ScaleOverflow) if a scale is beyond its type.
///
/// # Panics
/// If `weight` is not whole rows, or `decided` has another length.
pub fn quantize_scaled(
    layout: &Scaled,
    global: f32,
    weight: &[f32],
    in_features: usize,
    decided: &mut [f32],
) -> Result<ScaledRows, Error> {
    assert_eq!(weight.len(), decided.len(), "weights and their decided values");
    layout_of(layout, in_features)?;
    check_rows(weight, in_features)?;
    let rows = weight.len() / in_features;
    let (height, width) = (layout.extent.rows().min(rows.max(1)), layout.extent.cols().min(in_features));
    let row_bytes = layout.element.row_bytes(in_features);
    let mut out = ScaledRows { codes: vec![0; rows * row_bytes], scales: Vec::new() };
    let lines = weight.chunks(height * in_features).zip(decided.chunks_mut(height * in_features));
    for (line, ((weight, decided), codes)) in lines.zip(out.codes.chunks_mut(height * row_bytes)).enumerate()
    {
        for first in (0..in_features).step_by(width) {
            let columns = first..(first + width).min(in_features);
            let absmax = weight
                .chunks_exact(in_features)
                .flat_map(|row| &row[columns.clone()])
                .fold(0f32, |most, weight| most.max(weight.abs()));
            let scale = store_scale(layout, global, absmax, &mut out.scales).map_err(|(scale, float)| {
                Error::ScaleOverflow { row: line * height, col: first, scale, float }
            })?;
            let rows = weight.chunks_exact(in_features).zip(decided.chunks_exact_mut(in_features));
            for ((weight, decided), codes) in rows.zip(codes.chunks_exact_mut(row_bytes)) {
                for column in columns.clone() {
                    let code = nearest(layout.element, weight[column], scale, absmax);
                    match layout.element {
                        Element::Listed(_) => codes[column / 2] |= code << (4 * (1 - column % 2)),
                        Element::Fp4 => codes[column / 2] |= code << (4 * (column % 2)),
                        Element::Fp6 => {
                            let four = u32::from(code) << (6 * (column % 4));
                            let three = codes[column / 4 * 3..][..3].iter_mut();
                            three.zip(four.to_le_bytes()).for_each(|(byte, part)| *byte |= part);
                        }
                        Element::Int8 | Element::Fp8 => codes[column] = code,
                    }
                    decided[column] = layout.element.read(codes, column) * scale;
                }
            }
        }
    }
    Ok(out)
}

/// Whether rows of `in_features` can be stored so.
///
/// # Errors
/// [`UnevenGroups`](Error::UnevenGroups) if scales of columns do not tile a row.
pub fn layout_of(layout: &Scaled, in_features: usize) -> Result<(), Error> {
    let group_size = match layout.extent {
        bitmill_tensor::Extent::Columns(size) => size.get(),
        // Two to a byte, four to three.
        _ if matches!(layout.element, Element::Fp4 | Element::Listed(_)) => 2,
        _ if layout.element == Element::Fp6 => 4,
        _ => 1,
    };
    match in_features > 0 && in_features.is_multiple_of(group_size) {
        true => Ok(()),
        false => Err(Error::UnevenGroups { in_features, group_size }),
    }
}

/// Appends the scale for weights up to `absmax` and returns what a reader makes of it; or that which its type cannot hold.
fn store_scale(
    layout: &Scaled,
    global: f32,
    absmax: f32,
    scales: &mut Vec<u8>,
) -> Result<f32, (f32, bitmill_tensor::FloatType)> {
    let exact = absmax / layout.element.reach();
    let from = scales.len();
    match layout.scale {
        ScaleType::Float(float) => {
            let scale = float.round(exact);
            if !scale.is_finite() {
                return Err((exact, float));
            }
            // A list's codes are found by the largest magnitude, not by what is stored of it.
            let is_divisor = !matches!(layout.element, Element::Listed(_));
            float.push(if scale == 0.0 && is_divisor { epsilon(float) } else { scale }, scales);
        }
        ScaleType::Fp8 => {
            let code = fp8_from_f32(global * exact);
            // An eighth is what lies between 1 and the next number.
            scales.push(if fp8_to_f32(code) == 0.0 { fp8_from_f32(0.125) } else { code });
        }
        ScaleType::PowerOfTwo => {
            // A part of the mantissa more: from 1.75 on the next power is nearer for what it rounds to, of 6 bits from 1.9375 on.
            let more = if layout.element == Element::Fp6 { 1 << 19 } else { 1 << 21 };
            let exponent = (absmax.to_bits() + more) >> 23;
            let offset = if layout.element == Element::Fp8 { 8 } else { 2 };
            scales.push(exponent.saturating_sub(offset).min(254) as u8);
        }
        ScaleType::Nested => panic!("a scale of scales is for many rows: see `NestedAbsmax`"),
    }
    Ok(layout.scale.read(&scales[from..], 0, global))
}

/// The code of `weight`, by what is stored of its scale or (lists) by what that was made of.
fn nearest(element: Element, weight: f32, scale: f32, absmax: f32) -> u8 {
    match element {
        Element::Int8 => nearest_even((weight / scale).clamp(-128.0, 127.0)) as i8 as u8,
        Element::Fp8 => fp8_from_f32(weight / scale),
        Element::Fp4 => fp4_from_f32(weight / scale),
        Element::Fp6 => fp6_from_f32(weight / scale),
        Element::Listed(list) => codebook::nearest(list, weight, absmax),
    }
}
