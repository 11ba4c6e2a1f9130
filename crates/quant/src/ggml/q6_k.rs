//! Q6_K: 256 weights in 16 sub-blocks of 16, six bits each; every sub-block has a scale, rounded to eight bits of
//! the block's f16 scale.

use super::{Encode, f16_scale, nearest_int};

/// Below this a sub-block counts as zeros.
const ZERO: f32 = 1e-15;

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q6_K;

impl Encode<256, 210> for Q6_K {
    #[inline(always)]
    fn encode(weights: &[f32; 256], out: &mut [u8; 210]) -> Result<(), f32> {
        let mut codes = [0u8; 256];
        let mut scales = [0.0f32; 16];
        let (sub_blocks, _) = weights.as_chunks::<16>();
        let (sub_codes, _) = codes.as_chunks_mut::<16>();
        for j in 0..16 {
            scales[j] = search(&sub_blocks[j], &mut sub_codes[j]);
            // Cubes beyond f32: ggml goes on and writes zeros for the sub-block.
            if scales[j].is_nan() {
                return Err(sub_blocks[j].iter().fold(0.0f32, |most, x| most.max(x.abs())) / (32.0 * 128.0));
            }
        }
        pack(weights, &scales, &mut codes, out)
    }
}

/// The scale of one sub-block that leaves the smallest squared error weighted by the squared weights, and the codes
/// of that search. ggml's `make_qx_quants`: 19 candidates, for each the codes, then the least-squares scale of those.
#[inline(always)]
fn search(x: &[f32; 16], codes: &mut [u8; 16]) -> f32 {
    let mut absolute = 0.0;
    let mut largest = 0.0;
    for &x in x {
        if x.abs() > absolute {
            absolute = x.abs();
            largest = x;
        }
    }
    if absolute < ZERO {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, x: f32| nearest_int(inverse * x).clamp(-32, 31);
    let sums = |inverse: f32| {
        let (mut sum_lx, mut sum_l2) = (0.0f32, 0.0f32);
        for &x in x {
            let l = code(inverse, x) as f32;
            let w = x * x;
            sum_lx += w * x * l;
            sum_l2 += w * l * l;
        }
        (sum_lx, sum_l2)
    };
    let mut best_inverse = -32.0 / largest;
    let (sum_lx, sum_l2) = sums(best_inverse);
    let mut scale = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = scale * sum_lx;
    for step in (-9i8..=9).filter(|&step| step != 0) {
        let inverse = -(32.0 + 0.1 * f32::from(step)) / largest;
        let (sum_lx, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            best_inverse = inverse;
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
    }
    for (slot, &x) in codes.iter_mut().zip(x) {
        *slot = (code(best_inverse, x) + 32) as u8;
    }
    scale
}

/// Rounds the scales to eight bits, chooses the codes again for those, and writes the block. Sub-blocks whose scale
/// rounds to zero keep the codes of the search.
#[inline(always)]
fn pack(
    weights: &[f32; 256],
    scales: &[f32; 16],
    codes: &mut [u8; 256],
    out: &mut [u8; 210],
) -> Result<(), f32> {
    let mut absolute = 0.0;
    let mut largest = 0.0;
    for &scale in scales {
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
    let (sub_blocks, _) = weights.as_chunks::<16>();
    let (sub_codes, _) = codes.as_chunks_mut::<16>();
    for j in 0..16 {
        let scale = nearest_int(inverse * scales[j]).min(127) as i8;
        out[192 + j] = scale as u8;
        let step = d * f32::from(scale);
        if step == 0.0 {
            continue;
        }
        for (code, x) in sub_codes[j].iter_mut().zip(&sub_blocks[j]) {
            *code = (nearest_int(x / step).clamp(-32, 31) + 32) as u8;
        }
    }
    let (halves, _) = codes.as_chunks::<128>();
    for (half, codes) in halves.iter().enumerate() {
        for i in 0..32 {
            let [a, b, c, d] = [codes[i], codes[32 + i], codes[64 + i], codes[96 + i]];
            out[64 * half + i] = a & 15 | c << 4;
            out[64 * half + 32 + i] = b & 15 | d << 4;
            out[128 + 32 * half + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    Ok(())
}
