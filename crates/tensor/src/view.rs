//! A weight matrix as bytes that someone else owns.

use crate::codebook::Nested;
use crate::scaled::{Element, Extent, ScaleType};
use crate::{ColumnPacking, Encoding, FloatType, Grouped, Scaled, ZeroPoint, encoding::BlockType};

/// A borrowed weight matrix `[out_features, in_features]` in any [`Encoding`].
///
/// Construction checks every length, so that kernels may trust them.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    out_features: usize,
    in_features: usize,
    data: WeightData<'a>,
}

/// The bytes of a [`WeightView`], little-endian, without any promise of alignment.
#[derive(Debug, Clone, Copy)]
pub enum WeightData<'a> {
    /// `[out, in]` floats.
    Float {
        /// Their type.
        float: FloatType,
        /// The elements.
        bytes: &'a [u8],
    },
    /// GGUF blocks, row after row.
    Block {
        /// Their type.
        block: BlockType,
        /// The blocks.
        bytes: &'a [u8],
    },
    /// compressed-tensors `pack-quantized`.
    Grouped {
        /// Widths, group size, zero points, scale dtype.
        layout: Grouped,
        /// i32 words `[out, words_per_row]`: code `i` of a row at bit `i * bits`, least significant first, plus
        /// `2^(bits−1)`.
        packed: &'a [u8],
        /// Scales `[out, groups_per_row]`.
        scales: &'a [u8],
        /// i32 words `[zero_point_words, groups_per_row]`, packed along `out`; empty when symmetric.
        zero_points: &'a [u8],
    },
    /// GPTQ and AWQ: the same codes with rows as the fastest dimension; and what else [`ColumnPacking`] has.
    Columns {
        /// Widths, group size, scale dtype. Zero points are stored and read whatever it says of them.
        layout: Grouped,
        /// How words hold codes and zero points.
        packing: ColumnPacking,
        /// GPTQ: i32 words `[words_per_row, out]`, each row's as `Grouped` has them. AWQ: `[in, out / 8]`. Words:
        /// `[out, ceil(in / codes_per_word)]`. Bytes: `[out, in]`. Marlin-24: `[in / 32, out * bits / 2]`.
        packed: &'a [u8],
        /// Scales `[groups, out]`; of words and bytes `[out, groups]`.
        scales: &'a [u8],
        /// GPTQ: i32 words `[groups, zero_point_words]`, codes along `out`. AWQ: `[groups, out / 8]`. Words:
        /// `[ceil(out / codes_per_word), groups]`, empty when symmetric. Bytes: `[out, groups]`. Marlin-24 has none.
        zero_points: &'a [u8],
        /// i32 `[in]`: the group of each column; empty where that is `column / group_size`.
        group_of: &'a [u8],
        /// Marlin-24: i16 `[in / 32, 2 * out]`, which two of each four weights there are. Others have none.
        places: &'a [u8],
    },
    /// Small numbers with scales.
    Scaled {
        /// Their kind, and which share a scale.
        layout: Scaled,
        /// Numbers, row after row.
        codes: &'a [u8],
        /// Scales, line after line.
        scales: &'a [u8],
        /// What scales of fp8 are divided by.
        global: f32,
        /// What scales that are codes are read with; there for those alone.
        nested: Option<Nested<'a>>,
        /// `[out, ceil(in / 8)]`: where two numbers of each four are stored, bit `i % 8` of byte `i / 8` for each that is; empty where all
        /// are.
        kept: &'a [u8],
    },
    /// compressed-tensors `sparse-bitmask`.
    Sparse {
        /// The type of the values.
        float: FloatType,
        /// `[out, ceil(in / 8)]`: weight `i` of a row was kept if bit `i % 8` of byte `i / 8` is set.
        bitmask: &'a [u8],
        /// The kept weights, row after row.
        values: &'a [u8],
        /// i64 `[out]`: kept weights before each row. What they and the bits say of values that are not there is zero.
        row_offsets: &'a [u8],
    },
}

/// Why bytes are not the matrix they were said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// A part has another length than its shape and encoding ask for.
    #[error("{part}: {found} bytes where [{out_features}, {in_features}] in {encoding} takes {expected}")]
    Length {
        /// `"weights"`, `"codes"`, `"scales"`, `"zero points"`, `"groups of columns"`, `"places"`, `"bits"`, `"values"`, `"row offsets"`,
        /// `"scales of scales"` or `"values of scales"`.
        part: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
        /// Rows of the matrix.
        out_features: usize,
        /// Columns of the matrix.
        in_features: usize,
        /// The encoding, as people write it.
        encoding: String,
    },
    /// The row does not divide into blocks or groups.
    #[error("{in_features} input features do not divide into {encoding} groups of {group_size}")]
    UnevenGroups {
        /// Columns of the matrix.
        in_features: usize,
        /// Weights in a block or group.
        group_size: usize,
        /// The encoding, as people write it.
        encoding: String,
    },
    /// Rows or columns do not fill the words that they are packed into.
    #[error("[{out_features}, {in_features}] in {encoding} does not fill the 32-bit words of its form")]
    UnevenWords {
        /// Rows of the matrix.
        out_features: usize,
        /// Columns of the matrix.
        in_features: usize,
        /// The encoding, as people write it.
        encoding: String,
    },
    /// The shape's byte count does not fit the address space.
    #[error("[{out_features}, {in_features}] is too large to address")]
    TooLarge {
        /// Rows of the matrix.
        out_features: usize,
        /// Columns of the matrix.
        in_features: usize,
    },
}

impl<'a> WeightView<'a> {
    /// Checks `data` against the shape.
    ///
    /// # Errors
    /// [`ViewError`] if a length is wrong or a row does not divide into blocks or groups.
    pub fn new(out_features: usize, in_features: usize, data: WeightData<'a>) -> Result<Self, ViewError> {
        let view = Self { out_features, in_features, data };
        let encoding = view.encoding();
        let group_size = match encoding {
            Encoding::Float(_) | Encoding::Sparse { .. } => 1,
            Encoding::Block(block) => block.weights(),
            Encoding::Grouped(grouped) => grouped.group_size.get(),
            Encoding::Scaled(scaled) => match (scaled.extent, scaled.element) {
                (Extent::Columns(size), _) => size.get(),
                (_, Element::Fp4 | Element::Listed(_)) => 2,
                (_, Element::Fp6) => 4,
                _ => 1,
            },
        };
        // 16 bytes a weight bounds every encoding here, so nothing below can overflow.
        if out_features.checked_mul(in_features).and_then(|weights| weights.checked_mul(16)).is_none() {
            return Err(ViewError::TooLarge { out_features, in_features });
        }
        if !in_features.is_multiple_of(group_size) {
            return Err(ViewError::UnevenGroups { in_features, group_size, encoding: encoding.to_string() });
        }
        let check = |part, found: usize, expected: usize| {
            if found == expected {
                return Ok(());
            }
            Err(ViewError::Length {
                part,
                found,
                expected,
                out_features,
                in_features,
                encoding: encoding.to_string(),
            })
        };
        match data {
            WeightData::Float { bytes, .. } | WeightData::Block { bytes, .. } => {
                check("weights", bytes.len(), encoding.matrix_bytes(out_features, in_features))?;
            }
            WeightData::Grouped { layout, packed, scales, zero_points } => {
                let groups = layout.groups_per_row(in_features);
                check("codes", packed.len(), 4 * out_features * layout.words_per_row(in_features))?;
                check("scales", scales.len(), out_features * groups * layout.scale.size_bytes())?;
                let words = match layout.zero_point {
                    ZeroPoint::Symmetric => 0,
                    ZeroPoint::Asymmetric => layout.zero_point_words(out_features) * groups,
                };
                check("zero points", zero_points.len(), 4 * words)?;
            }
            WeightData::Columns { layout, packing, packed, scales, zero_points, group_of, places } => {
                let bits = usize::from(layout.bits.get());
                let (by_in, by_out) = (in_features * bits, out_features * bits);
                let is_whole = match packing {
                    ColumnPacking::GptqV1 | ColumnPacking::GptqV2 => {
                        by_in.is_multiple_of(32) && by_out.is_multiple_of(32)
                    }
                    ColumnPacking::Awq => bits == 4 && out_features.is_multiple_of(8),
                    ColumnPacking::Words => true,
                    ColumnPacking::Bytes => bits == 8,
                    ColumnPacking::Marlin24 => {
                        matches!(bits, 4 | 8)
                            && out_features.is_multiple_of(64)
                            && in_features.is_multiple_of(32)
                    }
                };
                if !is_whole {
                    let encoding = encoding.to_string();
                    return Err(ViewError::UnevenWords { out_features, in_features, encoding });
                }
                let groups = layout.groups_per_row(in_features);
                let words = |count: usize| 4 * count.div_ceil(layout.codes_per_word());
                let (codes, zeros) = match packing {
                    ColumnPacking::Words if layout.zero_point == ZeroPoint::Symmetric => {
                        (out_features * words(in_features), 0)
                    }
                    ColumnPacking::Words => (out_features * words(in_features), words(out_features) * groups),
                    ColumnPacking::Bytes => (out_features * in_features, out_features * groups),
                    ColumnPacking::Marlin24 => (out_features * by_in / 16, 0),
                    ColumnPacking::GptqV1 | ColumnPacking::GptqV2 | ColumnPacking::Awq => {
                        (out_features * by_in / 8, 4 * layout.zero_point_words(out_features) * groups)
                    }
                };
                check("codes", packed.len(), codes)?;
                check("scales", scales.len(), out_features * groups * layout.scale.size_bytes())?;
                check("zero points", zero_points.len(), zeros)?;
                let columns = if group_of.is_empty() { 0 } else { in_features };
                check("groups of columns", group_of.len(), 4 * columns)?;
                let quads =
                    if packing == ColumnPacking::Marlin24 { out_features * in_features / 4 } else { 0 };
                check("places", places.len(), quads / 2)?;
            }
            WeightData::Scaled { layout, codes, scales, nested, kept, .. } => {
                let (lines, per_line) = layout.extent.scales(out_features, in_features);
                let mut row_bytes = layout.element.row_bytes(in_features);
                if !kept.is_empty() {
                    check("bits", kept.len(), out_features * in_features.div_ceil(8))?;
                    row_bytes = in_features.div_ceil(4) * 2;
                }
                check("codes", codes.len(), out_features * row_bytes)?;
                check("scales", scales.len(), lines * per_line * layout.scale.size_bytes())?;
                let (own, map) = match layout.scale {
                    ScaleType::Nested => (4 * Nested::scales(lines * per_line), 4 * 256),
                    _ => (0, 0),
                };
                check("scales of scales", nested.map_or(0, |nested| nested.absmax.len()), own)?;
                check("values of scales", nested.map_or(0, |nested| nested.map.len()), map)?;
            }
            WeightData::Sparse { float, bitmask, values, row_offsets } => {
                check("bits", bitmask.len(), out_features * in_features.div_ceil(8))?;
                check("row offsets", row_offsets.len(), 8 * out_features)?;
                let kept = (values.len() / float.size_bytes()).min(out_features * in_features);
                check("values", values.len(), kept * float.size_bytes())?;
            }
        }
        Ok(view)
    }

    /// Rows.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The bytes.
    pub fn data(&self) -> WeightData<'a> {
        self.data
    }

    /// How the weights are stored.
    pub fn encoding(&self) -> Encoding {
        match self.data {
            WeightData::Float { float, .. } => Encoding::Float(float),
            WeightData::Block { block, .. } => Encoding::Block(block),
            WeightData::Grouped { layout, .. } | WeightData::Columns { layout, .. } => {
                Encoding::Grouped(layout)
            }
            WeightData::Scaled { layout, .. } => Encoding::Scaled(layout),
            WeightData::Sparse { float, values, .. } => {
                Encoding::Sparse { float, values: values.len() / float.size_bytes() }
            }
        }
    }

    /// Bytes of the whole matrix, scales and zero points included.
    pub fn stored_bytes(&self) -> usize {
        match self.data {
            // Zero points are stored of symmetric codes too, and groups of columns are counted nowhere else.
            WeightData::Columns { packed, scales, zero_points, group_of, places, .. } => {
                packed.len() + scales.len() + zero_points.len() + group_of.len() + places.len()
            }
            // Half of the numbers, and a bit for each.
            WeightData::Scaled { codes, scales, kept, .. } if !kept.is_empty() => {
                codes.len() + scales.len() + kept.len()
            }
            _ => self.encoding().matrix_bytes(self.out_features, self.in_features),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_wrong_lengths_and_uneven_blocks() {
        let bytes = vec![0u8; 144];
        let data = |bytes| WeightData::Block { block: BlockType::Q4_K, bytes };
        assert!(WeightView::new(1, 256, data(&bytes)).is_ok());
        assert!(matches!(
            WeightView::new(2, 256, data(&bytes)),
            Err(ViewError::Length { expected: 288, .. })
        ));
        assert!(matches!(WeightView::new(1, 200, data(&bytes)), Err(ViewError::UnevenGroups { .. })));
        assert!(matches!(WeightView::new(usize::MAX, 256, data(&bytes)), Err(ViewError::TooLarge { .. })));
    }

    #[test]
    fn columns_fill_whole_words_of_rows_and_of_columns() {
        let bytes = [0u8; 4096];
        let view = |bits: u8, out: usize, in_features: usize, packing, groups: usize| {
            let layout = Grouped {
                bits: crate::Bits::new(bits).unwrap(),
                group_size: std::num::NonZeroUsize::new(32).unwrap(),
                zero_point: ZeroPoint::Symmetric,
                scale: FloatType::F16,
            };
            let data = WeightData::Columns {
                layout,
                packing,
                packed: &bytes[..out * in_features * usize::from(bits) / 8],
                scales: &bytes[..2 * out * in_features / 32],
                zero_points: &bytes[..4 * (out * usize::from(bits)).div_ceil(32) * in_features / 32],
                group_of: &bytes[..4 * groups],
                places: &[],
            };
            WeightView::new(out, in_features, data).map(|view| view.stored_bytes())
        };
        assert_eq!(view(4, 8, 64, ColumnPacking::GptqV1, 64), Ok(256 + 32 + 8 + 256));
        assert_eq!(view(3, 32, 32, ColumnPacking::GptqV2, 0), Ok(384 + 64 + 12));
        assert_eq!(view(4, 8, 32, ColumnPacking::Awq, 0), Ok(128 + 16 + 4));
        assert!(matches!(view(3, 8, 32, ColumnPacking::GptqV2, 0), Err(ViewError::UnevenWords { .. })));
        assert!(matches!(view(8, 8, 32, ColumnPacking::Awq, 0), Err(ViewError::UnevenWords { .. })));
        assert!(matches!(view(4, 12, 32, ColumnPacking::Awq, 0), Err(ViewError::UnevenWords { .. })));
        let error = view(4, 8, 64, ColumnPacking::GptqV1, 63).unwrap_err();
        assert!(matches!(error, ViewError::Length { part: "groups of columns", .. }), "{error}");
    }

    #[test]
    fn sparse_parts_have_the_lengths_that_the_shape_asks_for() {
        let view = |bits: usize, values: usize, offsets: usize| {
            let bytes = [0u8; 64];
            let (float, bitmask, row_offsets) = (FloatType::BF16, &bytes[..bits], &bytes[..offsets]);
            let data = WeightData::Sparse { float, bitmask, values: &bytes[..values], row_offsets };
            WeightView::new(2, 9, data).map(|view| view.encoding())
        };
        assert_eq!(view(4, 10, 16), Ok(Encoding::Sparse { float: FloatType::BF16, values: 5 }));
        for (bits, values, offsets, part) in
            [(3, 10, 16, "bits"), (4, 11, 16, "values"), (4, 38, 16, "values"), (4, 10, 8, "row offsets")]
        {
            let error = view(bits, values, offsets).unwrap_err();
            assert!(matches!(error, ViewError::Length { part: found, .. } if found == part), "{error}");
        }
    }
}
