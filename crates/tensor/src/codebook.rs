//! Lists of 16 values that bitsandbytes' 4-bit codes are places in, and scales that are codes themselves.
//!
//! The values and the way they are stored are those of QLoRA, arXiv:2305.14314, and its library. A block's scale is the largest
//! magnitude in it. Doubly quantized, the scales less their mean are rounded to one of 256 values, times a scale for 256 of
//! them: blocks are counted through the whole matrix, row after row.

/// A list of 16 values between −1 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// NormalFloat: as many weights of a normal distribution fall to each.
    Nf4,
    /// bitsandbytes' 4-bit floats, which are not E2M1: 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1 and their negatives.
    Fp4,
}

impl Codebook {
    /// Weights in a block where nobody asks for another number.
    pub const BLOCK: usize = 64;

    /// The values, in the order of codes.
    ///
    /// ```
    /// use bitmill_tensor::Codebook;
    /// assert_eq!((Codebook::Nf4.values()[7], Codebook::Fp4.values()[13]), (0.0, -0.5));
    /// ```
    #[inline(always)]
    pub const fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// As bitsandbytes calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

#[rustfmt::skip]
const NF4: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

#[rustfmt::skip]
const FP4: [f32; 16] = [
    0.0, 0.062_5 / 12.0, 8.0 / 12.0, 1.0, 4.0 / 12.0, 6.0 / 12.0, 2.0 / 12.0, 3.0 / 12.0,
    0.0, -0.062_5 / 12.0, -8.0 / 12.0, -1.0, -4.0 / 12.0, -6.0 / 12.0, -2.0 / 12.0, -3.0 / 12.0,
];

/// What scales that are codes are read with.
#[derive(Debug, Clone, Copy)]
pub struct Nested<'a> {
    /// f32 `[256]`: the values of codes.
    pub map: &'a [u8],
    /// f32: what they are multiplied with, one for [`Nested::BLOCK`] blocks of the matrix.
    pub absmax: &'a [u8],
    /// What is added to each.
    pub offset: f32,
}

impl Nested<'_> {
    /// Scales that share a scale.
    pub const BLOCK: usize = 256;

    /// Scales of so many scales.
    pub const fn scales(blocks: usize) -> usize {
        blocks.div_ceil(Self::BLOCK)
    }

    /// What `code`, the scale of block `block` of the matrix, stands for.
    ///
    /// # Panics
    /// If there is no such block.
    #[inline(always)]
    pub fn scale(&self, block: usize, code: u8) -> f32 {
        let float = crate::FloatType::F32;
        float.read(self.map, usize::from(code)) * float.read(self.absmax, block / Self::BLOCK) + self.offset
    }
}

/// The list that bitsandbytes makes for codes of 8 bits (`create_dynamic_map`): an exponent of as many bits as it needs, and a
/// fraction in what is left. Ascending; all but the last value, 1, have their negatives in it.
pub const DYNAMIC_MAP: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut at = 0;
    while at < 127 {
        values[128 + at] = f32::from_bits(MAGNITUDES[at]);
        values[126 - at] = -f32::from_bits(MAGNITUDES[at]);
        at += 1;
    }
    values[255] = 1.0;
    values
};

/// The bytes of [`DYNAMIC_MAP`].
pub static DYNAMIC_MAP_BYTES: [u8; 1024] = {
    let mut bytes = [0; 1024];
    let mut at = 0;
    while at < 1024 {
        bytes[at] = DYNAMIC_MAP[at / 4].to_le_bytes()[at % 4];
        at += 1;
    }
    bytes
};

#[rustfmt::skip]
const MAGNITUDES: [u32; 127] = [
    0x3513_a3b7, 0x365a_1a94, 0x3702_05ff, 0x37b2_4206, 0x3837_8034, 0x388a_efb3, 0x38ba_1f4b, 0x3923_d70b,
    0x398c_e705, 0x39c7_e283, 0x3a01_6f01, 0x3a1e_ecc1, 0x3a3c_6a80, 0x3a59_e83e, 0x3a77_65ff, 0x3aa7_ef9d,
    0x3af1_a9fc, 0x3b1d_b22d, 0x3b42_8f5c, 0x3b67_6c8a, 0x3b86_24dd, 0x3b98_9374, 0x3bab_020d, 0x3bbd_70a4,
    0x3bcf_df3b, 0x3be2_4dd3, 0x3bf4_bc6a, 0x3c03_9581, 0x3c0c_cccd, 0x3c16_0418, 0x3c1f_3b64, 0x3c3a_e148,
    0x3c68_f5c3, 0x3c8b_851f, 0x3ca2_8f5d, 0x3cb9_999a, 0x3cd0_a3d7, 0x3ce7_ae15, 0x3cfe_b852, 0x3d0a_e148,
    0x3d16_6667, 0x3d21_eb85, 0x3d2d_70a3, 0x3d38_f5c3, 0x3d44_7ae1, 0x3d50_0000, 0x3d5b_851f, 0x3d67_0a3d,
    0x3d72_8f5d, 0x3d7e_147b, 0x3d84_cccd, 0x3d8a_8f5d, 0x3d90_51eb, 0x3d96_147b, 0x3d9b_d70a, 0x3da1_999a,
    0x3da7_5c2a, 0x3dad_1eb8, 0x3db2_e148, 0x3db8_a3d7, 0x3dbe_6667, 0x3dc4_28f7, 0x3dc9_eb85, 0x3ddb_3334,
    0x3df8_0000, 0x3e0a_6666, 0x3e18_cccd, 0x3e27_3333, 0x3e35_999a, 0x3e44_0000, 0x3e52_6666, 0x3e60_cccd,
    0x3e6f_3333, 0x3e7d_9999, 0x3e86_0000, 0x3e8d_3334, 0x3e94_6666, 0x3e9b_999a, 0x3ea2_cccc, 0x3eaa_0000,
    0x3eb1_3333, 0x3eb8_6666, 0x3ebf_999a, 0x3ec6_cccc, 0x3ece_0000, 0x3ed5_3333, 0x3edc_6666, 0x3ee3_999a,
    0x3eea_cccc, 0x3ef2_0000, 0x3ef9_3332, 0x3f00_3333, 0x3f03_cccc, 0x3f07_6666, 0x3f0b_0000, 0x3f0e_999a,
    0x3f12_3334, 0x3f15_cccd, 0x3f19_6666, 0x3f1d_0000, 0x3f20_999a, 0x3f24_3334, 0x3f27_cccd, 0x3f2b_6666,
    0x3f2f_0000, 0x3f32_999a, 0x3f36_3334, 0x3f39_cccd, 0x3f3d_6666, 0x3f41_0000, 0x3f44_999a, 0x3f48_3333,
    0x3f4b_cccd, 0x3f4f_6666, 0x3f53_0000, 0x3f56_999a, 0x3f5a_3333, 0x3f5d_cccd, 0x3f61_6666, 0x3f65_0000,
    0x3f68_999a, 0x3f6c_3333, 0x3f6f_cccd, 0x3f73_6666, 0x3f77_0000, 0x3f7a_999a, 0x3f7e_3333,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_span_minus_one_to_one_and_hold_zero() {
        for list in [Codebook::Nf4, Codebook::Fp4] {
            let values = list.values();
            assert!(values.contains(&0.0) && values.contains(&1.0) && values.contains(&-1.0));
            assert!(values.iter().all(|value| value.abs() <= 1.0));
        }
        assert!(NF4.is_sorted() && DYNAMIC_MAP.is_sorted());
        assert_eq!((DYNAMIC_MAP[127], DYNAMIC_MAP[255], DYNAMIC_MAP[0]), (0.0, 1.0, -0.992_968_74));
    }

    #[test]
    fn nested_scales_are_counted_through_the_matrix() {
        let absmax: Vec<u8> = [2.0f32, 4.0].iter().flat_map(|most| most.to_le_bytes()).collect();
        let nested = Nested { map: &DYNAMIC_MAP_BYTES, absmax: &absmax, offset: 0.5 };
        assert_eq!([nested.scale(255, 255), nested.scale(256, 255), nested.scale(0, 127)], [2.5, 4.5, 0.5]);
        assert_eq!([0, 1, 256, 257].map(Nested::scales), [0, 1, 1, 2]);
    }
}
