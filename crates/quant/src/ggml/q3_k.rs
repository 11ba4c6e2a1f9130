//! Q3_K: 256 weights in 16 sub-blocks of 16, three bits each; every sub-block has a scale, rounded to six bits of the
//! block's f16 scale.

use half::f16;

use super::{
    Encode, Weighing, ZERO, f16_at, f16_scale,
    importance::{counts, sum_of_squares},
    lanes::{F8, M8, both, by_sub_block},
    nearest_int, pairs_of_bits,
    refine::{Codes, Levels, Refine, Space},
    scale,
};

#[allow(non_camel_case_types, reason = "ggml's own name")]
pub(super) struct Q3_K;

impl Encode<256, 110> for Q3_K {
    #[inline(always)]
    fn encode(
        weights: &[f32; 256],
        weighing: Option<Weighing<'_, 256>>,
        out: &mut [u8; 110],
    ) -> Result<(), f32> {
        // Two searches of eight sub-blocks, a lane for each.
        let (halves, _) = weights.as_chunks::<128>();
        let x: [[F8; 16]; 2] = [by_sub_block(&halves[0]), by_sub_block(&halves[1])];
        let Some(weighing) = weighing else {
            let found = search(&x);
            for (half, found) in halves.iter().zip(&found) {
                if found.scale.0.iter().any(|scale| scale.is_nan()) {
                    // Cubes beyond f32: ggml goes on and writes zeros for the sub-block.
                    return Err(half.iter().fold(0.0f32, |most, x| most.max(x.abs())) / (4.0 * 32.0));
                }
            }
            return pack(weights, &found, round(&found), out);
        };
        let mean_square = 2.0 * sum_of_squares(weights) / 256.0;
        let (importance, _) = weighing.importance.as_chunks::<128>();
        let counts = [counts(&x[0], &importance[0], mean_square), counts(&x[1], &importance[1], mean_square)];
        let found = [search_weighed(&x[0], &counts[0]), search_weighed(&x[1], &counts[1])];
        pack(weights, &found, round_weighed(&found, &counts), out)
    }
}

impl Refine<16, 16, 256, 110> for Q3_K {
    const SPACE: Space =
        Space { codes: Codes::Integers { low: -4, top: 3 }, scales: (-32, 31), shifts: (0, 0) };

    #[inline(always)]
    fn levels(block: &[u8; 110]) -> Levels<16> {
        let scales = std::array::from_fn(|j| {
            let stored =
                block[96 + j % 8] >> (4 * (j / 8)) & 15 | (block[104 + j % 4] >> (2 * (j / 4)) & 3) << 4;
            i32::from(stored) - 32
        });
        Levels { d: f16_at(block, 108), d_min: f16::ZERO, scales, shifts: [0; 16] }
    }

    #[inline(always)]
    fn write(levels: &Levels<16>, codes: &[u8; 256], out: &mut [u8; 110]) {
        write_block(levels.d, &levels.scales.map(|scale| (scale + 32) as u8), codes, out);
    }
}

/// What the search found for each of eight sub-blocks.
struct Found {
    scale: F8,
    /// Codes in −4..=3.
    codes: [F8; 16],
    /// Sub-blocks that count as zeros: scale 0, and codes of 0 as they are stored.
    zeros: M8,
}

impl Found {
    const NONE: Self = Self { scale: F8::ZERO, codes: [F8::ZERO; 16], zeros: M8::NONE };
}

/// Codes from the largest weight, then moved one at a time while that lowers the error, at most five times each: ggml's
/// `make_q3_quants`. It stops when a round moved none; here other lanes may go on, and another round moves none again.
///
/// Each step waits for the one before it, a division among them, so both halves go side by side.
#[inline(always)]
fn search(x: &[[F8; 16]; 2]) -> [Found; 2] {
    let mut found = [Found::NONE; 2];
    let (mut sum_lx, mut sum_l2) = ([F8::ZERO; 2], [F8::ZERO; 2]);
    for half in 0..2 {
        let (mut absolute, mut largest) = (F8::ZERO, F8::ZERO);
        for x in x[half] {
            let above = absolute.below(x.abs());
            absolute = above.select(x.abs(), absolute);
            largest = above.select(x, largest);
        }
        found[half].zeros = absolute.below(F8::splat(ZERO));
        let inverse = F8::splat(-4.0) / largest;
        for i in 0..16 {
            let x = x[half][i];
            let l = (inverse * x).nearest_within(-4, 3);
            found[half].codes[i] = l;
            let w = x * x;
            sum_lx[half] = sum_lx[half] + w * x * l;
            sum_l2[half] = sum_l2[half] + w * l * l;
        }
    }
    for _ in 0..5 {
        let mut moved = false;
        for i in 0..16 {
            for half in 0..2 {
                let x = x[half][i];
                let w = x * x;
                let l = found[half].codes[i];
                let (lx, l2) = (sum_lx[half], sum_l2[half]);
                let others_lx = lx - w * x * l;
                let others_l2 = l2 - w * l * l;
                let new = (x * others_l2 / others_lx).nearest_within(-4, 3);
                let (new_lx, new_l2) = (others_lx + w * x * new, others_l2 + w * new * new);
                let better = F8::ZERO
                    .below(others_lx)
                    .and_not(new.equals(l))
                    .and(F8::ZERO.below(new_l2))
                    .and((lx * lx * new_l2).below(new_lx * new_lx * l2));
                found[half].codes[i] = better.select(new, l);
                sum_lx[half] = better.select(new_lx, lx);
                sum_l2[half] = better.select(new_l2, l2);
                moved |= better.any();
            }
        }
        if !moved {
            break;
        }
    }
    for half in 0..2 {
        // Not above 0 beside NaN, which is kept so that it is seen.
        let scale = sum_l2[half].equals(F8::ZERO).select(F8::ZERO, sum_lx[half] / sum_l2[half]);
        found[half].scale = found[half].zeros.select(F8::ZERO, scale);
    }
    found
}

/// With importance ggml searches no code by itself, only the scale.
#[inline(always)]
fn search_weighed(x: &[F8; 16], counts: &[F8; 16]) -> Found {
    let found = scale::search(x, counts, 4);
    let mut codes = [F8::ZERO; 16];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = (found.inverse * x).nearest_within(-4, 3);
    }
    Found { scale: found.scale, codes, zeros: found.zeros }
}

/// The scales of the sub-blocks as six bits each, 32 above what they count, and what those bits count.
struct Rounded {
    d: f32,
    scales: [u8; 16],
}

#[inline(always)]
fn round(found: &[Found; 2]) -> Rounded {
    let (mut absolute, mut largest) = (0.0, 0.0);
    for scale in found.iter().flat_map(|half| half.scale.0) {
        if scale.abs() > absolute {
            absolute = scale.abs();
            largest = scale;
        }
    }
    if largest == 0.0 {
        // Without any scale the six bits stay 0, which stands for −32.
        return Rounded { d: 0.0, scales: [0; 16] };
    }
    let inverse = -32.0 / largest;
    let six_bits = |scale: f32| ((nearest_int(inverse * scale) as i8).clamp(-32, 31) + 32) as u8;
    Rounded { d: 1.0 / inverse, scales: std::array::from_fn(|j| six_bits(found[j / 8].scale.0[j % 8])) }
}

#[inline(always)]
fn round_weighed(found: &[Found; 2], counts: &[[F8; 16]; 2]) -> Rounded {
    let scales = both(found[0].scale, found[1].scale);
    let (d, scales) = scale::search_one(&scales, &both(sum(&counts[0]), sum(&counts[1])), 32);
    Rounded { d, scales }
}

#[inline(always)]
fn sum(counts: &[F8; 16]) -> F8 {
    let mut sum = F8::ZERO;
    for &count in counts {
        sum = sum + count;
    }
    sum
}

/// Chooses the codes again for the rounded scales, and writes the block. Sub-blocks whose scale rounds to zero keep the
/// codes of the search.
#[inline(always)]
fn pack(weights: &[f32; 256], found: &[Found; 2], rounded: Rounded, out: &mut [u8; 110]) -> Result<(), f32> {
    let stored_d = f16_scale(rounded.d)?;
    let d = stored_d.to_f32();
    let mut codes = [0u8; 256];
    let sub_blocks = weights.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for (j, (sub_block, codes)) in sub_blocks.enumerate() {
        let (half, lane) = (&found[j / 8], j % 8);
        let step = d * f32::from(rounded.scales[j] as i8 - 32);
        for (i, (code, x)) in codes.iter_mut().zip(sub_block).enumerate() {
            *code = if step != 0.0 {
                (nearest_int(x / step).clamp(-4, 3) + 4) as u8
            } else if half.zeros.lane(lane) {
                0
            } else {
                (half.codes[i].0[lane] + 4.0) as u8
            };
        }
    }
    write_block(stored_d, &rounded.scales, &codes, out);
    Ok(())
}

/// A block of scales and codes as they are stored.
#[inline(always)]
fn write_block(d: f16, scales: &[u8; 16], codes: &[u8; 256], out: &mut [u8; 110]) {
    out.fill(0);
    for (j, stored) in scales.iter().enumerate() {
        out[96 + j % 8] |= (stored & 15) << (4 * (j / 8));
        out[104 + j % 4] |= stored >> 4 << (2 * (j / 4));
    }
    for (i, code) in codes.iter().enumerate() {
        out[i % 32] |= code >> 2 << (i / 32);
    }
    pairs_of_bits(&codes.map(|code| code & 3), &mut out[32..96]);
    out[108..110].copy_from_slice(&d.to_le_bytes());
}
