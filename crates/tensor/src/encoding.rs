//! How the weights of one matrix are stored: plain floats, GGUF blocks, groups of codes or small numbers with a scale, or
//! some floats and where they lie.

use std::fmt;
use std::num::NonZeroUsize;

use crate::{FloatType, Scaled};

/// The width of one code, 1 to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits(u8);

impl Bits {
    /// `None` outside 1..=8.
    pub const fn new(bits: u8) -> Option<Self> {
        if bits >= 1 && bits <= 8 { Some(Self(bits)) } else { None }
    }

    /// The number itself.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which weights share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale for each row.
    Channel,
    /// One scale for each `size` weights along `in_features`.
    Group {
        /// Weights that share a scale.
        size: NonZeroUsize,
    },
}

/// Whether codes are centred on zero or on a stored zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZeroPoint {
    /// `weight ≈ scale * code`.
    Symmetric,
    /// `weight ≈ scale * (code − zero_point)`.
    Asymmetric,
}

/// A GGUF block type: a fixed number of consecutive weights of a row in a fixed number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are ggml's own names")]
#[allow(non_camel_case_types, reason = "the variants are ggml's own names")]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    IQ1_M,
    TQ1_0,
    TQ2_0,
    MXFP4,
}

impl BlockType {
    /// Every block type, in the order of ggml's numbers.
    pub const ALL: [Self; 22] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ3_XXS,
        Self::IQ1_S,
        Self::IQ4_NL,
        Self::IQ3_S,
        Self::IQ2_S,
        Self::IQ4_XS,
        Self::IQ1_M,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::MXFP4,
    ];

    /// Weights in one block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL | Self::MXFP4 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            Self::IQ1_S | Self::IQ1_M | Self::IQ2_XXS | Self::IQ2_XS | Self::IQ2_S => 256,
            Self::IQ3_XXS | Self::IQ3_S | Self::IQ4_XS | Self::TQ1_0 | Self::TQ2_0 => 256,
        }
    }

    /// Bytes of one block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::MXFP4 => 17,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::IQ1_S => 50,
            Self::TQ1_0 => 54,
            Self::IQ1_M => 56,
            Self::IQ2_XXS | Self::TQ2_0 => 66,
            Self::IQ2_XS => 74,
            Self::IQ2_S => 82,
            Self::Q2_K => 84,
            Self::IQ3_XXS => 98,
            Self::Q3_K | Self::IQ3_S => 110,
            Self::IQ4_XS => 136,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// ggml's number of the type.
    pub const fn ggml_id(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::IQ2_XXS => 16,
            Self::IQ2_XS => 17,
            Self::IQ3_XXS => 18,
            Self::IQ1_S => 19,
            Self::IQ4_NL => 20,
            Self::IQ3_S => 21,
            Self::IQ2_S => 22,
            Self::IQ4_XS => 23,
            Self::IQ1_M => 29,
            Self::TQ1_0 => 34,
            Self::TQ2_0 => 35,
            Self::MXFP4 => 39,
        }
    }

    /// The name in lower case: `"q4_k"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2_K => "q2_k",
            Self::Q3_K => "q3_k",
            Self::Q4_K => "q4_k",
            Self::Q5_K => "q5_k",
            Self::Q6_K => "q6_k",
            Self::IQ2_XXS => "iq2_xxs",
            Self::IQ2_XS => "iq2_xs",
            Self::IQ3_XXS => "iq3_xxs",
            Self::IQ1_S => "iq1_s",
            Self::IQ4_NL => "iq4_nl",
            Self::IQ3_S => "iq3_s",
            Self::IQ2_S => "iq2_s",
            Self::IQ4_XS => "iq4_xs",
            Self::IQ1_M => "iq1_m",
            Self::TQ1_0 => "tq1_0",
            Self::TQ2_0 => "tq2_0",
            Self::MXFP4 => "mxfp4",
        }
    }

    /// The block type with this name, in either case.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|block| block.name() == name)
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Codes of equal width with one scale a group, as compressed-tensors' `pack-quantized`, GPTQ and AWQ store them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grouped {
    /// Width of a code. Stored unsigned: `2^(bits−1)` is added to the signed code.
    pub bits: Bits,
    /// Weights that share a scale; `in_features` where there is one scale a row.
    pub group_size: NonZeroUsize,
    /// Whether zero points are stored.
    pub zero_point: ZeroPoint,
    /// The dtype of the scales.
    pub scale: FloatType,
}

impl Grouped {
    /// 32-bit words of codes in a row of `in_features`.
    pub const fn words_per_row(&self, in_features: usize) -> usize {
        (in_features * self.bits.0 as usize).div_ceil(32)
    }

    /// Whole codes of a 32-bit word, whose end stays empty where the width does not divide 32: [`ColumnPacking::Words`].
    pub const fn codes_per_word(&self) -> usize {
        32 / self.bits.0 as usize
    }

    /// Groups in a row of `in_features`.
    pub const fn groups_per_row(&self, in_features: usize) -> usize {
        in_features.div_ceil(self.group_size.get())
    }

    /// 32-bit words of zero points along `out_features` for one column of groups.
    pub const fn zero_point_words(&self, out_features: usize) -> usize {
        (out_features * self.bits.0 as usize).div_ceil(32)
    }
}

/// How the codes of a matrix in groups lie where they are no streams row by row. GPTQ's and AWQ's are column by column, with rows as the
/// fastest dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnPacking {
    /// GPTQ as AutoGPTQ writes it: every zero point is stored less one, 0 as the largest code.
    GptqV1,
    /// GPTQ's `gptq_v2`: zero points as they are.
    GptqV2,
    /// AutoAWQ's GEMM form.
    Awq,
    /// compressed-tensors before 0.18: row by row, and a word holds as many whole codes as fit, for widths that do not divide 32.
    Words,
    /// compressed-tensors `int-quantized` with zero points: row by row, a signed byte for each code and zero point.
    Bytes,
    /// compressed-tensors `marlin-24`: two codes of each four, in the order in which a kernel for GPUs reads them.
    Marlin24,
}

impl ColumnPacking {
    /// Whether it is one of GPTQ's: lines of words, each a stream along `in_features`.
    pub const fn is_gptq(self) -> bool {
        matches!(self, Self::GptqV1 | Self::GptqV2)
    }

    /// Whether codes and scales of a row lie side by side.
    pub const fn is_by_row(self) -> bool {
        matches!(self, Self::Words | Self::Bytes)
    }

    /// Of each of the eight rows of an AWQ word, the place of its four bits.
    pub const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
}

/// How one weight matrix is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Every weight a float of its own.
    Float(FloatType),
    /// GGUF blocks along each row.
    Block(BlockType),
    /// Groups of codes with a scale.
    Grouped(Grouped),
    /// Small numbers, a scale for many of them.
    Scaled(Scaled),
    /// The weights that were kept, and a bit for each weight that says whether it was; the others are zero.
    Sparse {
        /// The type of a kept weight.
        float: FloatType,
        /// Weights kept of the whole matrix.
        values: usize,
    },
}

impl Encoding {
    /// Bytes of a `[out_features, in_features]` matrix, scales and zero points included.
    ///
    /// ```
    /// use bitmill_tensor::{BlockType, Encoding};
    /// assert_eq!(Encoding::Block(BlockType::Q4_K).matrix_bytes(2, 512), 2 * 2 * 144);
    /// ```
    pub const fn matrix_bytes(&self, out_features: usize, in_features: usize) -> usize {
        match self {
            Self::Float(float) => out_features * in_features * float.size_bytes(),
            Self::Block(block) => out_features * in_features.div_ceil(block.weights()) * block.bytes(),
            Self::Grouped(grouped) => {
                let groups = grouped.groups_per_row(in_features);
                let zero_points = match grouped.zero_point {
                    ZeroPoint::Symmetric => 0,
                    ZeroPoint::Asymmetric => 4 * grouped.zero_point_words(out_features) * groups,
                };
                out_features * (4 * grouped.words_per_row(in_features) + groups * grouped.scale.size_bytes())
                    + zero_points
            }
            Self::Scaled(scaled) => scaled.matrix_bytes(out_features, in_features),
            // A row begins a byte of bits, and an offset of 8 bytes says where its values begin.
            Self::Sparse { float, values } => {
                *values * float.size_bytes() + out_features * (in_features.div_ceil(8) + 8)
            }
        }
    }

    /// Whether the weights were rounded to codes.
    pub const fn is_quantized(&self) -> bool {
        !matches!(self, Self::Float(_) | Self::Sparse { .. })
    }
}

impl fmt::Display for Encoding {
    /// As people write it: `bf16`, `q4_k`, `4-bit g128`, `8-bit g128 asymmetric`, `fp8`, `sparse bf16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(float) => float.fmt(f),
            Self::Block(block) => block.fmt(f),
            Self::Grouped(grouped) => {
                write!(f, "{}-bit g{}", grouped.bits, grouped.group_size)?;
                if grouped.zero_point == ZeroPoint::Asymmetric {
                    f.write_str(" asymmetric")?;
                }
                Ok(())
            }
            Self::Scaled(scaled) => scaled.fmt(f),
            Self::Sparse { float, .. } => write!(f, "sparse {float}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_refuses_widths_outside_one_to_eight() {
        assert_eq!(Bits::new(0), None);
        assert_eq!(Bits::new(9), None);
        assert_eq!(Bits::new(8).map(Bits::get), Some(8));
    }

    #[test]
    fn grouped_bytes_count_codes_scales_and_zero_points() {
        let mut grouped = Grouped {
            bits: Bits(4),
            group_size: NonZeroUsize::new(32).unwrap(),
            zero_point: ZeroPoint::Symmetric,
            scale: FloatType::BF16,
        };
        // 3 rows of 64: 8 words and 2 scales each.
        assert_eq!(Encoding::Grouped(grouped).matrix_bytes(3, 64), 3 * (32 + 4));
        grouped.zero_point = ZeroPoint::Asymmetric;
        // 3 rows x 4 bits fit one word for each of the 2 groups.
        assert_eq!(Encoding::Grouped(grouped).matrix_bytes(3, 64), 3 * (32 + 4) + 8);
    }

    #[test]
    fn sparse_bytes_count_values_bits_and_row_offsets() {
        // 3 rows of 20: 3 bytes of bits and an offset each.
        let sparse = Encoding::Sparse { float: FloatType::BF16, values: 30 };
        assert_eq!(sparse.matrix_bytes(3, 20), 2 * 30 + 3 * (3 + 8));
        assert!(!sparse.is_quantized());
    }

    #[test]
    fn block_types_parse_by_their_own_names() {
        for block in BlockType::ALL {
            assert_eq!(BlockType::parse(&block.name().to_uppercase()), Some(block));
        }
        assert_eq!(BlockType::parse("q9_9"), None);
    }
}
