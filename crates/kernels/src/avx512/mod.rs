//! AVX-512 (F, BW, VL, VNNI) twins.

mod dense;
mod exact;
mod fast;
mod tile;
mod unpack;

use crate::activations::Token;
use crate::columns::Columns;
use crate::row::Row;

pub(crate) use dense::multiply_dense;
pub(crate) use tile::multiply_tile;

/// See [`scalar::unpack`](crate::scalar::unpack).
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL and VNNI, and AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn unpack(row: &Row<'_>, first: usize, out: &mut [f32]) {
    // SAFETY: the features are this function's own.
    unsafe { unpack::unpack_row(row, first, out) }
}

/// See [`scalar::exact_dot`](crate::scalar::exact_dot).
///
/// # Safety
/// As [`unpack`]; `x` is as long as the row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn exact_dot(row: &Row<'_>, x: &[f32]) -> f32 {
    // SAFETY: the features are this function's own; lengths by the caller.
    unsafe { exact::dot_row(row, x) }
}

/// See [`scalar::fast_dot`](crate::scalar::fast_dot).
///
/// # Safety
/// As [`unpack`]; `token` is as long as the row; the row's encoding has a fast path.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn fast_dot(row: &Row<'_>, in_features: usize, token: Token<'_>) -> f32 {
    // SAFETY: the features are this function's own; lengths by the caller.
    unsafe { fast::dot_row(row, in_features, token) }
}

/// See [`Columns::fill`].
///
/// # Safety
/// As [`unpack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn fill_columns(of: &Columns<'_>, first: usize, start: usize, out: &mut [f32]) {
    of.fill_here(first, start, out);
}
