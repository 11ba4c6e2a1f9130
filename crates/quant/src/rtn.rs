//! Round to nearest: every weight to the closest code of its group's grid, no data needed.
//!
//! The grid is compressed-tensors' (`quantization/utils/helpers.py`, `calculate_qparams`), so its library packs the
//! same words from the same weights. Signed codes run from `−2^(b−1)` to `2^(b−1) − 1`.
//!
//! - Symmetric: `scale = absmax / ((2^b − 1) / 2)`, zero point 0.
//! - Asymmetric: `scale = (max − min) / (2^b − 1)` with 0 counted among the weights, `zero_point = −2^(b−1) − min /
//!   scale` rounded and clamped, from the scale before it is rounded.
//! - The scale is rounded to the type it is stored in **before** codes are chosen, so that a code is the nearest one
//!   to what a reader will compute.
//! - A scale that rounds to zero (a group of zeros, or of weights below what the type can hold) becomes the type's
//!   machine epsilon: no code divides by zero, and the group decodes to exact zeros.
//! - A scale that rounds to infinity is an error: no value of the type keeps the group's largest weight.

use std::num::NonZeroUsize;

use bitmill_tensor::{Bits, FloatType, Granularity, Grouped, ZeroPoint};

use crate::{Clip, Error, HqqOptions, clip, error::check_rows, hqq, pack::pack_row};

/// What to round to, before the width of the rows is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RtnGrid {
    /// Width of a code.
    pub bits: Bits,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Whether codes are centred on zero.
    pub zero_point: ZeroPoint,
    /// The type that scales are stored in.
    pub scale: FloatType,
}

impl RtnGrid {
    /// This grid on rows of `in_features`.
    ///
    /// ```
    /// use bitmill_quant::RtnGrid;
    /// use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};
    /// let grid = RtnGrid {
    ///     bits: Bits::new(4).unwrap(),
    ///     granularity: Granularity::Group { size: 128.try_into().unwrap() },
    ///     zero_point: ZeroPoint::Symmetric,
    ///     scale: FloatType::BF16,
    /// };
    /// assert_eq!(grid.layout(29568)?.groups_per_row(29568), 231);
    /// assert!(grid.layout(576).is_err());
    /// # Ok::<(), bitmill_quant::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`UnevenGroups`](Error::UnevenGroups) if the groups do not tile the row.
    pub fn layout(&self, in_features: usize) -> Result<Grouped, Error> {
        let group_size = match self.granularity {
            Granularity::Group { size } => size.get(),
            Granularity::Channel => in_features,
        };
        match NonZeroUsize::new(group_size) {
            Some(group_size) if in_features.is_multiple_of(group_size.get()) => {
                Ok(Grouped { bits: self.bits, group_size, zero_point: self.zero_point, scale: self.scale })
            }
            _ => Err(Error::UnevenGroups { in_features, group_size }),
        }
    }
}

/// Rows as compressed-tensors stores them, little-endian.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupedRows {
    /// 32-bit words `[rows, words_per_row]`, rows one after another.
    pub packed: Vec<u8>,
    /// Scales `[rows, groups_per_row]`.
    pub scales: Vec<u8>,
    /// Unsigned zero points `[rows, groups_per_row]`, one byte each; empty when symmetric. They are packed along the
    /// rows of the whole matrix, so the caller does it when it has them all:
    /// [`pack_zero_points`](crate::pack_zero_points).
    pub zero_codes: Vec<u8>,
}

/// Rounds rows to nearest and fills `decided` with the values that the codes stand for,
/// `scale * (code − zero_point)` in f32.
///
/// Runs in the calling thread; rows are independent, so callers split them.
///
/// ```
/// use bitmill_quant::{RtnGrid, quantize_rows};
/// use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};
/// let grid = RtnGrid {
///     bits: Bits::new(4).unwrap(),
///     granularity: Granularity::Channel,
///     zero_point: ZeroPoint::Symmetric,
///     scale: FloatType::BF16,
/// };
/// let mut decided = [0.0; 4];
/// // The largest weight is 7.5, so the scale is 1; codes end at 7 and round to even.
/// let rows = quantize_rows(&grid.layout(4)?, &[7.5, -2.5, 0.4, -7.5], 4, &mut decided)?;
/// assert_eq!(decided, [7.0, -2.0, 0.0, -8.0]);
/// assert_eq!(rows.packed, [0x6f, 0x08, 0, 0]); // code + 8: f, 6, 8, 0
/// # Ok::<(), bitmill_quant::Error>(())
/// ```
///
/// # Shapes
/// `weight`, `decided`: `[rows, in_features]`.
///
/// # Errors
/// [`UnevenGroups`](Error::UnevenGroups) if the groups do not tile a row, [`NonFinite`](Error::NonFinite) for NaN and
/// infinity, [`ScaleOverflow`](Error::ScaleOverflow) if a group's scale is beyond its type.
///
/// # Panics
/// If `weight` is not whole rows, or `decided` has another length.
pub fn quantize_rows(
    grid: &Grouped,
    weight: &[f32],
    in_features: usize,
    decided: &mut [f32],
) -> Result<GroupedRows, Error> {
    quantize_rows_clipped(grid, Clip::None, weight, in_features, decided)
}

/// [`quantize_rows`] with the ranges of groups chosen by `clip`.
///
/// # Errors
/// As [`quantize_rows`].
///
/// # Panics
/// As [`quantize_rows`].
pub fn quantize_rows_clipped(
    grid: &Grouped,
    clip: Clip,
    weight: &[f32],
    in_features: usize,
    decided: &mut [f32],
) -> Result<GroupedRows, Error> {
    let choose = |range: &CodeRange, weights: &[f32]| group_scale(grid, clip, range, weights);
    quantize_rows_by(grid, choose, weight, in_features, decided)
}

/// [`quantize_rows`] with scale, as it is stored, and signed zero point of each group as `choose` says from its weights.
pub(crate) fn quantize_rows_by(
    grid: &Grouped,
    mut choose: impl FnMut(&CodeRange, &[f32]) -> Result<(f32, f32), f32>,
    weight: &[f32],
    in_features: usize,
    decided: &mut [f32],
) -> Result<GroupedRows, Error> {
    assert_eq!(weight.len(), decided.len(), "weights and their decided values");
    let group_size = grid.group_size.get();
    if in_features == 0 || !in_features.is_multiple_of(group_size) {
        return Err(Error::UnevenGroups { in_features, group_size });
    }
    check_rows(weight, in_features)?;

    let rows = weight.len() / in_features;
    let groups = grid.groups_per_row(in_features);
    let row_bytes = 4 * grid.words_per_row(in_features);
    let mut out = GroupedRows {
        packed: vec![0; rows * row_bytes],
        scales: Vec::with_capacity(rows * groups * grid.scale.size_bytes()),
        zero_codes: match grid.zero_point {
            ZeroPoint::Symmetric => Vec::new(),
            ZeroPoint::Asymmetric => Vec::with_capacity(rows * groups),
        },
    };
    let range = CodeRange::new(grid.bits);
    let mut codes = vec![0u8; in_features];
    let whole_rows = weight.chunks_exact(in_features).zip(decided.chunks_exact_mut(in_features));
    for (row, (weight_row, decided_row)) in whole_rows.enumerate() {
        let group_rows = weight_row.chunks_exact(group_size).zip(decided_row.chunks_exact_mut(group_size));
        for (group, ((weights, decided), codes)) in
            group_rows.zip(codes.chunks_exact_mut(group_size)).enumerate()
        {
            let (scale, zero) = choose(&range, weights).map_err(|scale| Error::ScaleOverflow {
                row,
                col: group * group_size,
                scale,
                float: grid.scale,
            })?;
            grid.scale.push(scale, &mut out.scales);
            if grid.zero_point == ZeroPoint::Asymmetric {
                out.zero_codes.push((zero - range.lowest) as u8);
            }
            round_group(&range, scale, zero, weights, codes, decided);
        }
        pack_row(&codes, grid.bits, &mut out.packed[row * row_bytes..(row + 1) * row_bytes]);
    }
    Ok(out)
}

/// The signed codes of a width, as floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodeRange {
    pub lowest: f32,
    pub highest: f32,
}

impl CodeRange {
    pub fn new(bits: Bits) -> Self {
        let half = f32::from(1u16 << (bits.get() - 1));
        Self { lowest: -half, highest: half - 1.0 }
    }
}

/// Scale as it is stored, and signed zero point; or the scale that its type cannot hold.
pub(crate) fn group_scale(
    grid: &Grouped,
    clip: Clip,
    range: &CodeRange,
    weights: &[f32],
) -> Result<(f32, f32), f32> {
    // Zero belongs to every range.
    let (min, max) = min_max(weights);
    let (min, max) = (min.min(0.0), max.max(0.0));
    match clip {
        Clip::None => scale_and_zero(grid, range, min, max),
        Clip::Mse => clip::search(grid, range, weights, (min, max)),
        Clip::Hqq => hqq::search(grid, range, &HqqOptions::default(), weights, (min, max)),
    }
}

/// Scale as it is stored, and signed zero point, of codes that span `min..=max`, 0 among it; or the scale that its type
/// cannot hold.
pub(crate) fn scale_and_zero(
    grid: &Grouped,
    range: &CodeRange,
    min: f32,
    max: f32,
) -> Result<(f32, f32), f32> {
    let steps = range.highest - range.lowest;
    let (exact, zero) = match grid.zero_point {
        ZeroPoint::Symmetric => (min.abs().max(max) / (steps / 2.0), 0.0),
        ZeroPoint::Asymmetric => {
            let exact = (max - min) / steps;
            let zero = if exact > 0.0 {
                nearest_even((range.lowest - min / exact).clamp(range.lowest, range.highest))
            } else {
                0.0
            };
            (exact, zero)
        }
    };
    let scale = grid.scale.round(exact);
    if !scale.is_finite() {
        return Err(exact);
    }
    Ok((if scale == 0.0 { epsilon(grid.scale) } else { scale }, zero))
}

fn round_group(
    range: &CodeRange,
    scale: f32,
    zero: f32,
    weights: &[f32],
    codes: &mut [u8],
    decided: &mut [f32],
) {
    for ((weight, code), decided) in weights.iter().zip(codes).zip(decided) {
        // Divided, not multiplied by the inverse: the library does, and ties fall elsewhere otherwise.
        let signed = nearest_even((weight / scale + zero).max(range.lowest).min(range.highest));
        *code = (signed - range.lowest) as i32 as u8;
        *decided = scale * (signed - zero);
    }
}

/// Smallest and largest, eight lanes at a time: a running minimum of floats does not vectorize by itself.
pub(crate) fn min_max(weights: &[f32]) -> (f32, f32) {
    let mut low = [f32::INFINITY; 8];
    let mut high = [f32::NEG_INFINITY; 8];
    let chunks = weights.chunks_exact(8);
    for (lane, value) in chunks.remainder().iter().enumerate() {
        low[lane] = *value;
        high[lane] = *value;
    }
    for chunk in chunks {
        for lane in 0..8 {
            low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
            high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
        }
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// To the nearest integer, ties to even, for magnitudes below 2^22: adding 1.5 · 2^23 leaves no room for a fraction.
pub(crate) fn nearest_even(value: f32) -> f32 {
    (value + 12_582_912.0) - 12_582_912.0
}

/// The distance from 1 to the next value of the type: compressed-tensors' stand-in for a scale of zero.
pub(crate) fn epsilon(float: FloatType) -> f32 {
    match float {
        FloatType::F32 => f32::EPSILON,
        FloatType::F16 => half::f16::EPSILON.to_f32(),
        FloatType::BF16 => half::bf16::EPSILON.to_f32(),
    }
}
