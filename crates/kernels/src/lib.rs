//! Inner loops: a scalar reference and its SIMD twins.

mod dequant;
mod isa;
mod matmul;
mod row;
mod scalar;

pub use dequant::{dequantize_rows, widen};
pub use isa::Isa;
pub use matmul::{Path, matmul};
