//! Unpacking weights to f32. Every instruction set gives the same bits.

use bitmill_tensor::{FloatType, WeightView};

use crate::isa::{Isa, Kind};
use crate::row::Row;
use crate::scalar;

/// Writes rows `[first_row, first_row + out.len() / in_features)` of `weight`, unpacked to f32, to `out`.
///
/// # Panics
/// If `out` is not a whole number of rows, or `weight` has not that many.
pub fn dequantize_rows(isa: Isa, weight: &WeightView<'_>, first_row: usize, out: &mut [f32]) {
    let in_features = weight.in_features();
    if in_features == 0 || out.is_empty() {
        return;
    }
    assert_eq!(out.len() % in_features, 0, "whole rows of {in_features}");
    for (i, out) in out.chunks_exact_mut(in_features).enumerate() {
        unpack(isa, &Row::of(weight, first_row + i), 0, out);
    }
}

/// Widens little-endian `bytes` to f32.
///
/// # Panics
/// If the lengths differ.
pub fn widen(isa: Isa, float: FloatType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * float.size_bytes(), "{float} bytes");
    unpack(isa, &Row::Float { float, bytes }, 0, out);
}

/// Columns `[first, first + out.len())` of a row; `first` is a multiple of 256.
pub(crate) fn unpack(isa: Isa, row: &Row<'_>, first: usize, out: &mut [f32]) {
    match isa.0 {
        Kind::Scalar => scalar::unpack(row, first, out),
        // SAFETY: only `Isa::available` makes Avx2, after asking the CPU.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { crate::avx2::unpack(row, first, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { crate::avx512::unpack(row, first, out) },
    }
}
