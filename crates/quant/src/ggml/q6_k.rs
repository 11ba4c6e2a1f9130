//! Q6_K: 256 weights in 16 sub-blocks of 16, six bits each; every sub-block has a scale, rounded to eight bits of
//! the block's f16 scale.

use super::{
    Encode, Weighing, ZERO, f16_scale,
    lanes::{F8, M8, by_sub_block},
    nearest_int,
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
        let counts = |half: usize, x: &[F8; 16]| match weighing {
            Some(weighing) => by_sub_block(&weighing.importance[128 * half..][..128]),
            None => x.map(|x| x * x),
        };
        let x = [by_sub_block(&halves[0]), by_sub_block(&halves[1])];
        let found = [search(&x[0], &counts(0, &x[0])), search(&x[1], &counts(1, &x[1]))];
        for (half, found) in halves.iter().zip(&found) {
            if found.scale.0.iter().any(|scale| scale.is_nan()) {
                // Sums beyond f32: ggml goes on and writes zeros for the sub-block.
                return Err(half.iter().fold(0.0f32, |most, x| most.max(x.abs())) / (32.0 * 128.0));
            }
        }
        pack(weights, &found, out)
    }
}

/// What the search found for each of eight sub-blocks.
struct Found {
    scale: F8,
    /// What the codes of the search were made with: codes in one unit.
    inverse: F8,
    /// Sub-blocks that count as zeros: scale and codes are 0.
    zeros: M8,
}

/// The scale of each sub-block that leaves the smallest squared error, of which each weight's counts `counts`. ggml's
/// `make_qx_quants`: 19 candidates, for each the codes, then the least-squares scale of those.
#[inline(always)]
fn search(x: &[F8; 16], counts: &[F8; 16]) -> Found {
    let (mut absolute, mut largest) = (F8::ZERO, F8::ZERO);
    let mut products = [F8::ZERO; 16];
    for i in 0..16 {
        let above = absolute.below(x[i].abs());
        absolute = above.select(x[i].abs(), absolute);
        largest = above.select(x[i], largest);
        products[i] = counts[i] * x[i];
    }
    let zeros = absolute.below(F8::splat(ZERO));
    let mut inverse = F8::splat(-32.0) / largest;
    let (sum_lx, sum_l2) = sums(x, counts, &products, inverse);
    let mut scale = sum_l2.equals(F8::ZERO).select(F8::ZERO, sum_lx / sum_l2);
    let mut best = scale * sum_lx;
    for step in (-9i8..=9).filter(|&step| step != 0) {
        let this_inverse = F8::splat(-(32.0 + 0.1 * f32::from(step))) / largest;
        let (sum_lx, sum_l2) = sums(x, counts, &products, this_inverse);
        let better = F8::ZERO.below(sum_l2).and((best * sum_l2).below(sum_lx * sum_lx));
        inverse = better.select(this_inverse, inverse);
        scale = better.select(sum_lx / sum_l2, scale);
        best = better.select(scale * sum_lx, best);
    }
    Found { scale: zeros.select(F8::ZERO, scale), inverse, zeros }
}

/// Of the codes that `inverse` makes: Σ w·x·code and Σ w·code², w being what a weight's error counts. A function and not a closure, which would
/// be compiled without the caller's AVX2.
#[inline(always)]
fn sums(x: &[F8; 16], counts: &[F8; 16], products: &[F8; 16], inverse: F8) -> (F8, F8) {
    let (mut sum_lx, mut sum_l2) = (F8::ZERO, F8::ZERO);
    for i in 0..16 {
        let l = (inverse * x[i]).nearest_within(-32, 31);
        sum_lx = sum_lx + products[i] * l;
        sum_l2 = sum_l2 + counts[i] * l * l;
    }
    (sum_lx, sum_l2)
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
        } else if !half.zeros.lane(lane) {
            for (code, x) in codes.iter_mut().zip(sub_block) {
                *code = (nearest_int(half.inverse.0[lane] * x).clamp(-32, 31) + 32) as u8;
            }
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
