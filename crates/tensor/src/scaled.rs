//! Small numbers with a scale for many of them: 8-bit integers, floats of 8, 6 and 4 bits, places in a list of 16 values.

use std::fmt;
use std::num::NonZeroUsize;

use crate::codebook::{Codebook, Nested};
use crate::{Dtype, FloatType};

/// A number of few bits that a scale makes a weight of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// −128 to 127.
    Int8,
    /// 8-bit float with 4 bits of exponent and 3 of mantissa (E4M3, no infinities): up to 448.
    Fp8,
    /// 4-bit float (E2M1): 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, two to a byte, the even column low.
    Fp4,
    /// 6-bit float (E2M3): up to 7.5 in eighths at first, four in three bytes, the first lowest.
    Fp6,
    /// A place in a list of 16 values, two to a byte, the even column high.
    Listed(Codebook),
}

/// Twice the magnitudes that [`Element::Fp4`] has.
pub const FP4_DOUBLES: [u8; 8] = [0, 1, 2, 3, 4, 6, 8, 12];

/// The weights that one scale is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// All of a matrix.
    Matrix,
    /// A row.
    Row,
    /// So many columns of a row.
    Columns(NonZeroUsize),
    /// A rectangle; those at the end of a matrix may be cut short.
    Block {
        /// Its height.
        rows: NonZeroUsize,
        /// Its width.
        cols: NonZeroUsize,
    },
}

/// What a scale is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// A float.
    Float(FloatType),
    /// An 8-bit float (E4M3), to be divided by one f32 for the whole matrix.
    Fp8,
    /// A power of two: an exponent of 8 bits, 127 more than it is (E8M0).
    PowerOfTwo,
    /// A place in a list of 256 values: see [`Nested`].
    Nested,
}

/// Small numbers with scales, as compressed-tensors' `int-`, `float-`, `nvfp4-pack-` and `mxfp*-quantized` and bitsandbytes store them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scaled {
    /// The numbers.
    pub element: Element,
    /// Which of them share a scale.
    pub extent: Extent,
    /// What scales are stored as.
    pub scale: ScaleType,
}

impl Element {
    /// Bytes of a row; an odd number of 4-bit floats has no form.
    pub const fn row_bytes(self, in_features: usize) -> usize {
        match self {
            Self::Int8 | Self::Fp8 => in_features,
            Self::Fp4 | Self::Listed(_) => in_features.div_ceil(2),
            Self::Fp6 => in_features.div_ceil(4) * 3,
        }
    }

    /// The largest magnitude that scales are made for: the middle of the steps for integers, of which there is one more below
    /// zero.
    pub const fn reach(self) -> f32 {
        match self {
            Self::Int8 => 127.5,
            Self::Fp8 => 448.0,
            Self::Fp4 => 6.0,
            Self::Fp6 => 7.5,
            Self::Listed(_) => 1.0,
        }
    }

    /// The dtype of the tensor that holds them.
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::Int8 => Dtype::I8,
            Self::Fp8 => Dtype::F8E4M3,
            Self::Fp4 | Self::Fp6 | Self::Listed(_) => Dtype::U8,
        }
    }

    /// Number `index` of a row.
    ///
    /// # Panics
    /// If `row` ends before it.
    #[inline(always)]
    pub fn read(self, row: &[u8], index: usize) -> f32 {
        match self {
            Self::Int8 => f32::from(row[index] as i8),
            Self::Fp8 => fp8_to_f32(row[index]),
            Self::Fp4 => {
                let code = row[index / 2] >> (4 * (index % 2));
                let magnitude = f32::from(FP4_DOUBLES[usize::from(code & 7)]) * 0.5;
                if code & 8 == 0 { magnitude } else { -magnitude }
            }
            Self::Fp6 => {
                let three = &row[index / 4 * 3..][..3];
                let four = u32::from_le_bytes([three[0], three[1], three[2], 0]);
                fp6_to_f32((four >> (6 * (index % 4))) as u8 & 63)
            }
            Self::Listed(list) => list.values()[usize::from(row[index / 2] >> (4 * (1 - index % 2)) & 15)],
        }
    }
}

impl Extent {
    /// `[lines, scales a line]` of a matrix.
    pub const fn scales(self, out_features: usize, in_features: usize) -> (usize, usize) {
        match self {
            Self::Matrix => (1, 1),
            Self::Row => (out_features, 1),
            Self::Columns(cols) => (out_features, in_features.div_ceil(cols.get())),
            Self::Block { rows, cols } => {
                (out_features.div_ceil(rows.get()), in_features.div_ceil(cols.get()))
            }
        }
    }

    /// Rows that may share a scale; `usize::MAX` where all do.
    pub const fn rows(self) -> usize {
        match self {
            Self::Matrix => usize::MAX,
            Self::Row | Self::Columns(_) => 1,
            Self::Block { rows, .. } => rows.get(),
        }
    }

    /// Columns of a row that share a scale; `usize::MAX` where all do.
    pub const fn cols(self) -> usize {
        match self {
            Self::Matrix | Self::Row => usize::MAX,
            Self::Columns(cols) | Self::Block { cols, .. } => cols.get(),
        }
    }
}

impl ScaleType {
    /// Bytes of one.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Float(float) => float.size_bytes(),
            Self::Fp8 | Self::PowerOfTwo | Self::Nested => 1,
        }
    }

    /// The dtype of the tensor that holds them.
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::Float(FloatType::F32) => Dtype::F32,
            Self::Float(FloatType::F16) => Dtype::F16,
            Self::Float(FloatType::BF16) => Dtype::BF16,
            Self::Fp8 => Dtype::F8E4M3,
            Self::PowerOfTwo | Self::Nested => Dtype::U8,
        }
    }

    /// Scale `index` of `bytes`; `global` is what [`Fp8`](Self::Fp8) scales are divided by.
    ///
    /// # Panics
    /// If `bytes` end before it, and for [`Nested`](Self::Nested) ones, which [`Nested::scale`] reads.
    #[inline(always)]
    pub fn read(self, bytes: &[u8], index: usize, global: f32) -> f32 {
        match self {
            Self::Float(float) => float.read(bytes, index),
            Self::Fp8 => fp8_to_f32(bytes[index]) / global,
            Self::PowerOfTwo => match bytes[index] {
                // 2^−127 is no normal number, and 255 is none at all.
                0 => f32::from_bits(0x0040_0000),
                255 => f32::NAN,
                exponent => f32::from_bits(u32::from(exponent) << 23),
            },
            Self::Nested => panic!("nested scales have scales of their own"),
        }
    }
}

impl Scaled {
    /// Bytes of a matrix with its scales.
    pub const fn matrix_bytes(&self, out_features: usize, in_features: usize) -> usize {
        let (lines, per_line) = self.extent.scales(out_features, in_features);
        let global = match self.scale {
            ScaleType::Fp8 => 4,
            ScaleType::Nested => 4 + 4 * Nested::scales(lines * per_line),
            ScaleType::Float(_) | ScaleType::PowerOfTwo => 0,
        };
        out_features * self.element.row_bytes(in_features)
            + lines * per_line * self.scale.size_bytes()
            + global
    }

    /// Whether bitsandbytes makes blocks of that size where nobody asks for another.
    fn is_usual(&self, cols: NonZeroUsize) -> bool {
        matches!(self.element, Element::Listed(_)) && cols.get() == Codebook::BLOCK
    }
}

impl fmt::Display for Scaled {
    /// As people write it: `int8`, `fp8`, `fp8 128x128`, `nvfp4`, `mxfp4`, `mxfp6`, `mxfp8`, `nf4`, `nf4 double`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.element, self.scale) {
            (Element::Int8, _) => "int8",
            (Element::Fp8, ScaleType::PowerOfTwo) => "mxfp8",
            (Element::Fp8, _) => "fp8",
            (Element::Fp6, _) => "mxfp6",
            (Element::Fp4, ScaleType::Fp8) => "nvfp4",
            (Element::Fp4, ScaleType::PowerOfTwo) => "mxfp4",
            (Element::Fp4, ScaleType::Float(_) | ScaleType::Nested) => "fp4",
            (Element::Listed(list), ScaleType::Nested) => match list {
                Codebook::Nf4 => "nf4 double",
                Codebook::Fp4 => "bitsandbytes fp4 double",
            },
            (Element::Listed(Codebook::Nf4), _) => "nf4",
            (Element::Listed(Codebook::Fp4), _) => "bitsandbytes fp4",
        })?;
        match (self.extent, self.scale) {
            (Extent::Matrix, _) => f.write_str(" per tensor"),
            (Extent::Row, _) => Ok(()),
            // 16 and 32 belong to their names.
            (Extent::Columns(_), ScaleType::Fp8 | ScaleType::PowerOfTwo) => Ok(()),
            (Extent::Columns(cols), _) if self.is_usual(cols) => Ok(()),
            (Extent::Columns(cols), _) => write!(f, " g{cols}"),
            (Extent::Block { rows, cols }, _) => write!(f, " {rows}x{cols}"),
        }
    }
}

/// The value of an E4M3 number: bias 7, no infinities, all ones is NaN.
///
/// ```
/// use bitmill_tensor::fp8_to_f32;
/// assert_eq!([fp8_to_f32(0x38), fp8_to_f32(0x7e), fp8_to_f32(0x81)], [1.0, 448.0, -0.001953125]);
/// ```
#[inline(always)]
pub fn fp8_to_f32(code: u8) -> f32 {
    FP8_VALUES[usize::from(code)]
}

/// The value of an E2M3 number of 6 bits: bias 1, no infinities, no NaN.
#[inline(always)]
fn fp6_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 3, f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0,
        exponent => (8.0 + mantissa) * (f32::from(1u8 << exponent) / 16.0),
    };
    if code & 32 == 0 { magnitude } else { -magnitude }
}

static FP8_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (exponent, mantissa) = (code >> 3 & 15, code & 7);
        let magnitude = if code & 127 == 127 {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            f32::from_bits(((exponent + 120) << 23 | mantissa << 20) as u32)
        };
        values[code] = if code >= 128 { -magnitude } else { magnitude };
        code += 1;
    }
    values
};

/// `value` as an E4M3 number: to nearest, ties to even, magnitudes beyond 448 to 448.
///
/// ```
/// use bitmill_tensor::{fp8_from_f32, fp8_to_f32};
/// // Numbers near 1 are an eighth apart.
/// assert_eq!(fp8_to_f32(fp8_from_f32(1.0625)), 1.0);
/// assert_eq!(fp8_to_f32(fp8_from_f32(-1e9)), -448.0);
/// ```
pub fn fp8_from_f32(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24 & 0x80) as u8;
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(448.0);
    // Below 2^−6 numbers are 2^−9 apart; adding a number whose last bit is that rounds to them, ties to even.
    if magnitude < 0.015_625 {
        return sign | (magnitude * 512.0 + 12_582_912.0 - 12_582_912.0) as u8;
    }
    let bits = magnitude.to_bits();
    // Three bits of mantissa stay; carries go on into the exponent.
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// `value` as an E2M1 number of 4 bits: to nearest, ties to even, magnitudes beyond 6 to 6.
///
/// ```
/// use bitmill_tensor::fp4_from_f32;
/// assert_eq!([0.25, 0.26, 2.5, 5.0, -7.0].map(fp4_from_f32), [0, 1, 4, 6, 15]);
/// ```
#[inline]
pub fn fp4_from_f32(value: f32) -> u8 {
    let magnitude = value.abs();
    // Where each number ends: the halfway point belongs to the neighbour whose last bit is 0.
    let ends = u8::from(magnitude > 0.25)
        + u8::from(magnitude >= 0.75)
        + u8::from(magnitude > 1.25)
        + u8::from(magnitude >= 1.75)
        + u8::from(magnitude > 2.5)
        + u8::from(magnitude >= 3.5)
        + u8::from(magnitude > 5.0);
    if value < 0.0 { ends | 8 } else { ends }
}

/// `value` as an E2M3 number of 6 bits: to nearest, ties to even, magnitudes beyond 7.5 to 7.5.
///
/// ```
/// use bitmill_tensor::fp6_from_f32;
/// assert_eq!([0.0625, 0.07, 2.125, 5.0, -9.0].map(fp6_from_f32), [0, 1, 16, 26, 63]);
/// ```
#[inline]
pub fn fp6_from_f32(value: f32) -> u8 {
    let magnitude = value.abs().min(7.5);
    // Numbers are an eighth apart below 2, a quarter below 4, then a half; adding a number whose last bit is that rounds to them.
    let step = if magnitude < 2.0 {
        0.125
    } else if magnitude < 4.0 {
        0.25
    } else {
        0.5
    };
    let rounded = (magnitude / step + 8_388_608.0 - 8_388_608.0) * step;
    let code = match rounded {
        _ if rounded < 2.0 => rounded * 8.0,
        _ if rounded < 4.0 => 8.0 + rounded * 4.0,
        _ => 16.0 + rounded * 2.0,
    } as u8;
    if value < 0.0 { code | 32 } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fp8_number_is_itself_again() {
        for code in 0..=255u8 {
            let value = fp8_to_f32(code);
            assert_eq!(fp8_from_f32(value), code, "{value}");
        }
    }

    #[test]
    fn fp8_rounds_to_the_nearest_number_and_ties_to_even() {
        for code in 0..0x7e_u8 {
            let (low, high) = (fp8_to_f32(code), fp8_to_f32(code + 1));
            let middle = (low + high) / 2.0;
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(fp8_from_f32(middle), even, "{middle}");
            assert_eq!(fp8_from_f32(middle.next_down()), code);
            assert_eq!(fp8_from_f32(-middle.next_up()), 0x80 | (code + 1));
        }
        assert_eq!(fp8_from_f32(f32::INFINITY), 0x7e);
        assert!(fp8_to_f32(fp8_from_f32(f32::NAN)).is_nan());
    }

    #[test]
    fn fp4_rounds_to_the_nearest_number_and_ties_to_even() {
        let value = |code: u8| Element::Fp4.read(&[code], 0);
        for code in 0..8u8 {
            assert_eq!(fp4_from_f32(value(code)), code);
            if code < 7 {
                let middle = (value(code) + value(code + 1)) / 2.0;
                let even = if code % 2 == 0 { code } else { code + 1 };
                assert_eq!(fp4_from_f32(middle), even);
                assert_eq!(fp4_from_f32(middle.next_down()), code);
                assert_eq!(fp4_from_f32(middle.next_up()), code + 1);
            }
        }
        assert_eq!(fp4_from_f32(1e9), 7);
    }

    #[test]
    fn fp6_goes_up_by_eighths_then_quarters_then_halves() {
        // Codes 1, 8, 9, 16, 31 and 33, four in three bytes.
        let words = [1u32 | 8 << 6 | 9 << 12 | 16 << 18, 31 | 33 << 6];
        let row: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()[..3].to_vec()).collect();
        let values: Vec<f32> = (0..6).map(|index| Element::Fp6.read(&row, index)).collect();
        assert_eq!(values, [0.125, 1.0, 1.125, 2.0, 7.5, -0.125]);
        for code in 0..31 {
            let (low, high) = (fp6_to_f32(code), fp6_to_f32(code + 1));
            assert!(low < high);
            let middle = (low + high) / 2.0;
            assert_eq!([low, middle.next_down(), middle.next_up()].map(fp6_from_f32), [code, code, code + 1]);
            assert_eq!(fp6_from_f32(middle), code + code % 2);
        }
        assert_eq!([1e9, -1e9].map(fp6_from_f32), [31, 63]);
    }

    #[test]
    fn powers_of_two_span_f32() {
        let read = |exponent| ScaleType::PowerOfTwo.read(&[exponent], 0, 1.0);
        assert_eq!([read(127), read(130), read(0)], [1.0, 8.0, (-127f32).exp2()]);
        assert!(read(255).is_nan());
    }

    #[test]
    fn bytes_count_numbers_and_scales() {
        let scaled = |element, extent, scale| Scaled { element, extent, scale };
        let size = |n| NonZeroUsize::new(n).unwrap();
        let nvfp4 = scaled(Element::Fp4, Extent::Columns(size(16)), ScaleType::Fp8);
        assert_eq!((nvfp4.matrix_bytes(3, 64), nvfp4.to_string().as_str()), (3 * (32 + 4) + 4, "nvfp4"));
        let block = Extent::Block { rows: size(128), cols: size(128) };
        let block = scaled(Element::Fp8, block, ScaleType::Float(FloatType::BF16));
        assert_eq!((block.matrix_bytes(130, 130), block.to_string().as_str()), (16900 + 8, "fp8 128x128"));
        // 768 blocks, three scales of scales and what is added to all.
        let nested = scaled(Element::Listed(Codebook::Nf4), Extent::Columns(size(64)), ScaleType::Nested);
        assert_eq!(
            (nested.matrix_bytes(3, 1 << 14), nested.to_string().as_str()),
            (3 * 8448 + 16, "nf4 double")
        );
        let int8 = scaled(Element::Int8, Extent::Row, ScaleType::Float(FloatType::F32));
        assert_eq!((int8.matrix_bytes(3, 5), int8.to_string().as_str()), (15 + 12, "int8"));
    }
}
