//! Q2_K: 256 weights in 16 sub-blocks of 16, two bits each; every sub-block has a scale and a shift, both rounded to
//! four bits of the block's two f16 scales.

use super::{
    Encode, Weighing, f16_scale,
    lanes::{F8, by_sub_block},
    nearest_int, pairs_of_bits,
    scale_and_shift::{Search, largest_of},
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q2_K;

impl Encode<256, 84> for Q2_K {
    #[inline(always)]
    fn encode(weights: &[f32; 256], _: Option<Weighing<'_, 256>>, out: &mut [u8; 84]) -> Result<(), f32> {
        let search = Search { top: 3, first: -0.5, steps: 15, magnitudes: true };
        // Two searches of eight sub-blocks, a lane for each.
        let (halves, _) = weights.as_chunks::<128>();
        let (first, second): ([F8; 16], [F8; 16]) = (by_sub_block(&halves[0]), by_sub_block(&halves[1]));
        let found = [search.run(&first, &magnitudes(&first)), search.run(&second, &magnitudes(&second))];
        let max_scale = largest_of(&found[0].scale.0).max(largest_of(&found[1].scale.0));
        let max_min = largest_of(&found[0].min.0).max(largest_of(&found[1].min.0));
        let d = f16_scale(if max_scale > 0.0 { max_scale / 15.0 } else { 0.0 })?;
        let d_min = f16_scale(if max_min > 0.0 { max_min / 15.0 } else { 0.0 })?;
        out[80..82].copy_from_slice(&d.to_le_bytes());
        out[82..84].copy_from_slice(&d_min.to_le_bytes());
        let (d, d_min) = (d.to_f32(), d_min.to_f32());

        // ggml lets both run over their nibble: what it writes, it reads back.
        let four_bits = |value: f32, max: f32| if max > 0.0 { nearest_int(15.0 / max * value) } else { 0 };
        let mut codes = [0u8; 256];
        let sub_blocks = weights.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
        for (j, (sub_block, codes)) in sub_blocks.enumerate() {
            let (found, lane) = (&found[j / 8], j % 8);
            let scale = four_bits(found.scale.0[lane], max_scale) as u8;
            let both = scale | (four_bits(found.min.0[lane], max_min) << 4) as u8;
            out[j] = both;
            let step = d * f32::from(both & 15);
            let shift = d_min * f32::from(both >> 4);
            for (code, &x) in codes.iter_mut().zip(sub_block) {
                *code = if step != 0.0 {
                    nearest_int((x + shift) / step).clamp(0, 3) as u8
                } else {
                    found.code(lane, x, 3)
                };
            }
        }
        pairs_of_bits(&codes, &mut out[16..80]);
        Ok(())
    }
}

/// What errors of each weight count: its magnitude.
#[inline(always)]
fn magnitudes(x: &[F8; 16]) -> [F8; 16] {
    let mut out = [F8::ZERO; 16];
    for (out, x) in out.iter_mut().zip(x) {
        *out = x.abs();
    }
    out
}
