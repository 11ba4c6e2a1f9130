//! Q6_K: 256 weights in 16 sub-blocks of 16, six bits each; every sub-block has a scale, rounded to eight bits of
//! the block's f16 scale.

use half::f16;

use super::{
    Encode, Weighing, ZERO, f16_at, f16_scale,
    lanes::{F8, by_sub_block},
    nearest_int,
    refine::{Codes, Levels, Refine, Space},
    scale::{Found, search},
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q6_K;

impl Encode<256, 210> for Q6_K {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 210],
    ) -> Result<(), f32> {
        // Two searches of eight sub-blocks, a lane for each.
        let (halves, _) = weights.as_chunks::<128>();
        let (first, second): ([F8; 16], [F8; 16]) = (by_sub_block(&halves[0]), by_sub_block(&halves[1]));
        // Importance alone, whatever the weights.
        let counts = match weighing {
            Some(Weighing { importance }) => {
                (by_sub_block(&importance[..128]), by_sub_block(&importance[128..]))
            }
            None => (squares(&first), squares(&second)),
        };
        let found = [search(&first, &counts.0, 32), search(&second, &counts.1, 32)];
        for (half, found) in halves.iter().zip(&found) {
            if found.scale.0.iter().any(|scale| scale.is_nan()) {
                // Sums beyond f32: ggml goes on and writes zeros for the sub-block.
                return Err(half.iter().fold(0.0f32, |most, x| most.max(x.abs())) / (32.0 * 128.0));
            }
        }
        pack(weights, &found, out)
    }
}

impl Refine<16, 16, 256, 210> for Q6_K {
    const SPACE: Space =
        Space { codes: Codes::Integers { low: -32, top: 31 }, scales: (-128, 127), shifts: (0, 0) };

    #[inline(always)]
    fn levels(block: &[u8; 210]) -> Levels<16> {
        let scales = std::array::from_fn(|j| i32::from(block[192 + j] as i8));
        Levels { d: f16_at(block, 208), d_min: f16::ZERO, scales, shifts: [0; 16] }
    }

    #[inline(always)]
    fn write(levels: &Levels<16>, codes: &[u8; 256], out: &mut [u8; 210]) {
        write_codes(codes, out);
        for (byte, scale) in out[192..208].iter_mut().zip(levels.scales) {
            *byte = scale as i8 as u8;
        }
        out[208..].copy_from_slice(&levels.d.to_le_bytes());
    }
}

#[inline(always)]
fn squares(x: &[F8; 16]) -> [F8; 16] {
    let mut out = [F8::ZERO; 16];
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x * x;
    }
    out
}

/// Rounds the scales to eight bits, chooses the codes again for those, and writes the block. Sub-blocks whose scale
/// rounds to zero keep the codes of the search.
#[inline(always)]
fn pack(weights: &[f32; 256], found: &[Found; 2], out: &mut [u8; 210]) -> Result<(), f32> {
    let mut absolute = 0.0;
    let mut largest = 0.0;
    for scale in found.iter().flat_map(|half| half.scale.0) {
        if scale.abs() > absolute {
            absolute = scale.abs();
            largest = scale;
        }
    }
    if absolute < ZERO {
        out.fill(0);
        return Ok(());
    }
    let inverse = -128.0 / largest;
    let d = f16_scale(1.0 / inverse)?;
    out[208..].copy_from_slice(&d.to_le_bytes());
    let d = d.to_f32();
    let mut codes = [0u8; 256];
    let sub_blocks = weights.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (j, (sub_block, codes)) in sub_blocks.enumerate() {
        let (half, lane) = (&found[j / 8], j % 8);
        let scale = nearest_int(inverse * half.scale.0[lane]).min(127) as i8;
        out[192 + j] = scale as u8;
        let step = d * f32::from(scale);
        if step != 0.0 {
            for (code, x) in codes.iter_mut().zip(sub_block) {
                *code = (nearest_int(x / step).clamp(-32, 31) + 32) as u8;
            }
        } else {
            for (code, &x) in codes.iter_mut().zip(sub_block) {
                *code = half.code(lane, x);
            }
        }
    }
    write_codes(&codes, out);
    Ok(())
}

/// The first 192 bytes: low nibbles, then high pairs.
#[inline(always)]
fn write_codes(codes: &[u8; 256], out: &mut [u8; 210]) {
    let (halves, _) = codes.as_chunks::<128>();
    for (half, codes) in halves.iter().enumerate() {
        for i in 0..32 {
            let [a, b, c, d] = [codes[i], codes[32 + i], codes[64 + i], codes[96 + i]];
            out[64 * half + i] = a & 15 | c << 4;
            out[64 * half + 32 + i] = b & 15 | d << 4;
            out[128 + 32 * half + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
}
