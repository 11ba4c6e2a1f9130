//! Element types as checkpoints name them.

use std::fmt;

/// An element type that a safetensors file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are the format's own names")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    F8E8M0,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The name in a safetensors header: `"BF16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E8M0 => "F8_E8M0",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::F32 => "F32",
            Self::U64 => "U64",
            Self::I64 => "I64",
            Self::F64 => "F64",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An element type that weights, norms, biases and scales are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the variants are the types' own names")]
pub enum FloatType {
    F32,
    F16,
    BF16,
}

impl FloatType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name people use: `"bf16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// The name in a config.json: `"bfloat16"`.
    pub const fn long_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// Element `index` of little-endian `bytes`, widened.
    ///
    /// ```
    /// use bitmill_tensor::FloatType;
    /// assert_eq!(FloatType::BF16.read(&[0x80, 0x3f, 0x00, 0x40], 1), 2.0);
    /// ```
    ///
    /// # Panics
    /// If `bytes` ends before that element.
    #[inline]
    pub fn read(self, bytes: &[u8], index: usize) -> f32 {
        match self {
            Self::F32 => {
                let at = 4 * index;
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
            Self::F16 => half::f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
            Self::BF16 => half::bf16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
        }
    }

    /// `value` rounded to this type (to nearest, ties to even) and widened again: what a reader will see.
    ///
    /// ```
    /// use bitmill_tensor::FloatType;
    /// assert_eq!(FloatType::BF16.round(1.001), 1.0);
    /// ```
    #[inline]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::BF16 => half::bf16::from_f32(value).to_f32(),
        }
    }

    /// Writes `value`, rounded to this type, little-endian, over all of `out`.
    ///
    /// # Panics
    /// If `out` is not one element long.
    #[inline]
    pub fn write(self, value: f32, out: &mut [u8]) {
        match self {
            Self::F32 => out.copy_from_slice(&value.to_le_bytes()),
            Self::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            Self::BF16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        }
    }

    /// Appends `value` to `out`, rounded to this type, little-endian.
    #[inline]
    pub fn push(self, value: f32, out: &mut Vec<u8>) {
        let at = out.len();
        out.resize(at + self.size_bytes(), 0);
        self.write(value, &mut out[at..]);
    }

    /// The float type with this name, in either spelling (`bf16`, `bfloat16`, `BF16`).
    pub fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "f32" | "float32" => Some(Self::F32),
            "f16" | "float16" => Some(Self::F16),
            "bf16" | "bfloat16" => Some(Self::BF16),
            _ => None,
        }
    }
}

impl Dtype {
    /// The float that it is, if it is one that weights and scales are kept in.
    pub const fn float(self) -> Option<FloatType> {
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::BF16 => Some(FloatType::BF16),
            _ => None,
        }
    }
}

impl From<FloatType> for Dtype {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushed_values_read_back_as_rounded() {
        for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
            for value in [0.0, -0.0, 1.0, -2.71, 6.1e-5, 65504.0] {
                let mut bytes = Vec::new();
                float.push(7.0, &mut bytes);
                float.push(value, &mut bytes);
                assert_eq!(bytes.len(), 2 * float.size_bytes());
                assert_eq!(float.read(&bytes, 1).to_bits(), float.round(value).to_bits(), "{float} {value}");
            }
        }
    }
}
