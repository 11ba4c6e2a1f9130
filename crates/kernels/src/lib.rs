//! Inner loops: a scalar reference and its SIMD twins.

mod compute;
mod dequant;
mod isa;
mod matmul;
mod ops;
mod row;
mod scalar;

pub use compute::Compute;
pub use dequant::{dequantize_rows, widen};
pub use isa::Isa;
pub use matmul::{Path, matmul};
pub use ops::attention::{AttentionShape, KvCache};
pub use ops::rope::{Pairing, RopeTable, Rotations};
