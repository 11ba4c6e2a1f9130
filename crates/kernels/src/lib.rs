//! Inner loops: a scalar reference and its SIMD twins.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod columns;
mod compute;
mod dense_panel;
mod dequant;
mod gradients;
mod grids;
mod isa;
mod marlin24;
mod matmul;
mod ops;
mod panel;
mod product;
mod row;
mod scalar;
mod work;

pub use columns::Columns;
pub use compute::Compute;
pub use dequant::{dequantize_rows, widen};
pub use isa::Isa;
pub use matmul::{Path, matmul, matmul_each};
pub use ops::attention::{AttentionShape, KvCache};
pub use ops::rope::{Pairing, RopeTable, Rotations, YarnStretch};
pub use ops::route::Routes;
pub use product::{Strided, add_product, set_product};
pub use work::Work;

#[cfg(test)]
mod tests;
