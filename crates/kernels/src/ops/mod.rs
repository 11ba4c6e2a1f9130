//! What a forward pass computes besides matrix products.
//!
//! Each body is written once, over fixed lanes and without fused multiply-add, and compiled for the baseline and
//! for AVX2: both give the same bits, so the instruction set never changes a number here. Work is split over rows,
//! or over heads and blocks of queries, in pieces that do not depend on the number of threads.

pub(crate) mod attention;
pub(crate) mod attention_backward;
pub(crate) mod backward;
pub(crate) mod exp;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod route;
pub(crate) mod rows;
pub(crate) mod softmax;

/// Defines a door for each body, which runs the body compiled for the widest set that `isa` allows.
///
/// The body has to be `#[inline(always)]`, otherwise its twin is the baseline code behind one more call.
macro_rules! twins {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:path;)*) => {$(
        $(#[$meta])*
        #[inline]
        pub(crate) fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            if isa != $crate::Isa::scalar() {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                // SAFETY: every x86 `Isa` but the scalar one has AVX2, and is only made after asking the CPU.
                return unsafe { avx2($($arg),*) };
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            $body($($arg),*)
        }
    )*};
}
pub(crate) use twins;

/// Lanes of every sum: two AVX2 registers, enough to hide the latency of an addition.
pub(crate) const LANES: usize = 16;

/// Adds lanes up as a tree.
#[inline(always)]
pub(crate) fn tree_sum(lanes: [f32; LANES]) -> f32 {
    // Through memory: seen together, the compiler shuffles the loop's lanes for the tree's sake, at half the speed.
    let mut lanes = std::hint::black_box(lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ a[i]·b[i]` over [`LANES`] lanes, the rest into the first ones.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * b;
    }
    tree_sum(lanes)
}

/// The largest element; −∞ of none. A NaN is passed over.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    let mut best = f32::NEG_INFINITY;
    for &value in lanes.iter().chain(rest) {
        best = if value > best { value } else { best };
    }
    best
}

/// Elements from which a pass over rows is worth splitting: below, waking a thread costs more than it saves.
const SPLIT_FROM: usize = 1 << 15;

/// Rows to give one task, or `None` if the whole is not worth splitting.
pub(crate) fn rows_per_task(rows: usize, cols: usize) -> Option<usize> {
    (rows > 1 && rows * cols >= SPLIT_FROM).then(|| (SPLIT_FROM / 2).div_ceil(cols.max(1)))
}
