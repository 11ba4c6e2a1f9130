//! AVX2, FMA and F16C twins.
//!
//! Helpers are `#[inline(always)]` without `target_feature`: they are generic, end up inside the functions here
//! that do carry the features, and are unsafe to call from anywhere else. No intrinsic stands in a closure that is
//! handed to a function of the standard library (`map` and the like): that function does not carry the features, so
//! each intrinsic in it becomes a call, fifty times slower. `nm -C` on a release binary shows none of
//! `core_arch::x86::avx`.

pub(crate) mod blocks;
mod dense;
pub(crate) mod exact;
pub(crate) mod fast;
pub(crate) mod grids;
pub(crate) mod groups;
pub(crate) mod numbers;
mod round;
pub(crate) mod sparse;
pub(crate) mod super_blocks;
mod tile;
pub(crate) mod unpack;

use crate::activations::Token;
use crate::columns::Columns;
use crate::row::Row;

pub(crate) use dense::{multiply_dense, transpose};
pub(crate) use fast::{Codes, with_codes};
pub(crate) use round::round32;
pub(crate) use tile::{fill_row, multiply_tile};

/// See [`scalar::unpack`](crate::scalar::unpack).
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn unpack(row: &Row<'_>, first: usize, out: &mut [f32]) {
    // SAFETY: the features are this function's own.
    unsafe { unpack::unpack_row(row, first, out) }
}

/// See [`scalar::exact_dot`](crate::scalar::exact_dot).
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; `x` is as long as the row.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn exact_dot(row: &Row<'_>, x: &[f32]) -> f32 {
    // SAFETY: the features are this function's own; lengths by the caller.
    unsafe { exact::dot_row(row, x) }
}

/// See [`scalar::fast_dot`](crate::scalar::fast_dot).
///
/// # Safety
/// The CPU has AVX2, FMA and F16C; `token` is as long as the row; the row's encoding has a fast path.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn fast_dot(row: &Row<'_>, in_features: usize, token: Token<'_>) -> f32 {
    // SAFETY: the features are this function's own; lengths by the caller.
    unsafe { fast::dot_row(row, in_features, token) }
}

/// See [`Columns::fill`].
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn fill_columns(of: &Columns<'_>, first: usize, start: usize, out: &mut [f32]) {
    of.fill_here(first, start, out);
}
