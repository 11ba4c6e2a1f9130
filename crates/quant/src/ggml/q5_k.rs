//! Q5_K: Q4_K with five bits a weight; the fifth bits of weight i of all sub-blocks share byte i.

use super::{Encode, Weighing, q4_k::codes_of, scale_and_shift::Search};

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
        for (i, byte) in fifth_bits.iter_mut().enumerate() {
            *byte = codes.iter().rev().fold(0, |bits, codes| bits << 1 | codes[i] >> 4);
        }
        for (bytes, pair) in nibbles.chunks_exact_mut(32).zip(codes.as_chunks::<2>().0) {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = pair[0][i] & 15 | pair[1][i] << 4;
            }
        }
        Ok(())
    }
}
