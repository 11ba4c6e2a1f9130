//! Q5_K: Q4_K with five bits a weight; the fifth bits of weight i of all sub-blocks share byte i.

use super::{
    Encode, Weighing,
    q4_k::{codes_of, levels_of, pairs_of_nibbles, write_levels},
    refine::{Codes, Levels, Refine, Space},
    scale_and_shift::Search,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q5_K;

impl Encode<256, 176> for Q5_K {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 176],
    ) -> Result<(), f32> {
        let search = Search { top: 31, first: -0.5, step: 0.1, steps: 15, magnitudes: false };
        let (header, rest) = out.split_at_mut(16);
        let (fifth_bits, nibbles) = rest.split_at_mut(32);
        let codes = codes_of(search, weights, weighing, header)?;
        pack(&codes, fifth_bits, nibbles);
        Ok(())
    }
}

impl Refine<8, 32, 256, 176> for Q5_K {
    const SPACE: Space =
        Space { codes: Codes::Integers { low: 0, top: 31 }, scales: (0, 63), shifts: (0, 63) };

    #[inline(always)]
    fn levels(block: &[u8; 176]) -> Levels<8> {
        levels_of(block)
    }

    #[inline(always)]
    fn write(levels: &Levels<8>, codes: &[u8; 256], out: &mut [u8; 176]) {
        let (header, rest) = out.split_at_mut(16);
        let (fifth_bits, nibbles) = rest.split_at_mut(32);
        write_levels(levels, header);
        pack(codes.as_chunks::<32>().0, fifth_bits, nibbles);
    }
}

#[inline(always)]
fn pack(codes: &[[u8; 32]], fifth_bits: &mut [u8], nibbles: &mut [u8]) {
    for (i, byte) in fifth_bits.iter_mut().enumerate() {
        *byte = codes.iter().rev().fold(0, |bits, codes| bits << 1 | codes[i] >> 4);
    }
    pairs_of_nibbles(codes, nibbles);
}
