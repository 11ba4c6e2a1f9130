//! Q2_K: 256 weights in 16 sub-blocks of 16, two bits each; every sub-block has a scale and a shift, both rounded to
//! four bits of the block's two f16 scales.

use super::{
    Encode, Weighing, f16_at, f16_scale,
    importance::{counts, sum_of_squares},
    lanes::{F8, both, by_sub_block},
    nearest_int, pairs_of_bits,
    refine::{Codes, Levels, Refine, Space},
    scale_and_shift::{Found, Search, largest_of},
    unsigned_scale,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q2_K;

impl Encode<256, 84> for Q2_K {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 84],
    ) -> Result<(), f32> {
        // Two searches of eight sub-blocks, a lane for each.
        let (halves, _) = weights.as_chunks::<128>();
        let (first, second): ([F8; 16], [F8; 16]) = (by_sub_block(&halves[0]), by_sub_block(&halves[1]));
        let (found, rounded) = match weighing {
            None => {
                let search = Search { top: 3, first: -0.5, step: 0.1, steps: 15, magnitudes: true };
                let found =
                    [search.run(&first, &magnitudes(&first)), search.run(&second, &magnitudes(&second))];
                let rounded = round(&found);
                (found, rounded)
            }
            Some(weighing) => {
                let mean_square = sum_of_squares(weights) / 256.0;
                let (importance, _) = weighing.importance.as_chunks::<128>();
                let found = [
                    Search::weighed(3).run(&first, &counts(&first, &importance[0], mean_square)),
                    Search::weighed(3).run(&second, &counts(&second, &importance[1], mean_square)),
                ];
                let rounded = round_weighed(&found);
                (found, rounded)
            }
        };
        let (d, d_min) = (f16_scale(rounded.d)?, f16_scale(rounded.d_min)?);
        out[..16].copy_from_slice(&rounded.scales_and_mins);
        out[80..82].copy_from_slice(&d.to_le_bytes());
        out[82..84].copy_from_slice(&d_min.to_le_bytes());
        let (d, d_min) = (d.to_f32(), d_min.to_f32());
        let mut codes = [0u8; 256];
        let sub_blocks = weights.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
        for (j, (sub_block, codes)) in sub_blocks.enumerate() {
            let pair = rounded.scales_and_mins[j];
            let step = d * f32::from(pair & 15);
            let shift = d_min * f32::from(pair >> 4);
            for (code, &x) in codes.iter_mut().zip(sub_block) {
                *code = if step != 0.0 {
                    nearest_int((x + shift) / step).clamp(0, 3) as u8
                } else {
                    found[j / 8].code(j % 8, x, 3)
                };
            }
        }
        pairs_of_bits(&codes, &mut out[16..80]);
        Ok(())
    }
}

impl Refine<16, 16, 256, 84> for Q2_K {
    const SPACE: Space =
        Space { codes: Codes::Integers { low: 0, top: 3 }, scales: (0, 15), shifts: (0, 15) };

    #[inline(always)]
    fn levels(block: &[u8; 84]) -> Levels<16> {
        Levels {
            d: f16_at(block, 80),
            d_min: f16_at(block, 82),
            scales: std::array::from_fn(|j| i32::from(block[j] & 15)),
            shifts: std::array::from_fn(|j| i32::from(block[j] >> 4)),
        }
    }

    #[inline(always)]
    fn write(levels: &Levels<16>, codes: &[u8; 256], out: &mut [u8; 84]) {
        for (byte, (scale, shift)) in out.iter_mut().zip(levels.scales.into_iter().zip(levels.shifts)) {
            *byte = scale as u8 | (shift as u8) << 4;
        }
        pairs_of_bits(codes, &mut out[16..80]);
        out[80..82].copy_from_slice(&levels.d.to_le_bytes());
        out[82..84].copy_from_slice(&levels.d_min.to_le_bytes());
    }
}

/// Scales and shifts of the sub-blocks as four bits each, a scale in the low ones, and what those bits count.
struct Rounded {
    d: f32,
    d_min: f32,
    scales_and_mins: [u8; 16],
}

#[inline(always)]
fn round(found: &[Found; 2]) -> Rounded {
    let max_scale = largest_of(&found[0].scale.0).max(largest_of(&found[1].scale.0));
    let max_min = largest_of(&found[0].min.0).max(largest_of(&found[1].min.0));
    // ggml lets both run over their nibble: what it writes, it reads back.
    let four_bits = |value: f32, max: f32| if max > 0.0 { nearest_int(15.0 / max * value) } else { 0 };
    let scales_and_mins = std::array::from_fn(|j| {
        let (found, lane) = (&found[j / 8], j % 8);
        four_bits(found.scale.0[lane], max_scale) as u8 | (four_bits(found.min.0[lane], max_min) << 4) as u8
    });
    Rounded {
        d: if max_scale > 0.0 { max_scale / 15.0 } else { 0.0 },
        d_min: if max_min > 0.0 { max_min / 15.0 } else { 0.0 },
        scales_and_mins,
    }
}

#[inline(always)]
fn round_weighed(found: &[Found; 2]) -> Rounded {
    let [first, second] = found;
    let counts = both(first.counts, second.counts);
    let (d, scales) = unsigned_scale::search(&both(first.scale, second.scale), &counts, 15);
    let (d_min, mins) = unsigned_scale::search(&both(first.min, second.min), &counts, 15);
    Rounded { d, d_min, scales_and_mins: std::array::from_fn(|j| scales[j] | mins[j] << 4) }
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
