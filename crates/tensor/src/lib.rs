//! Dtypes, encodings and borrowed views of weights: no I/O, no threads.
//!
//! A weight matrix is always `[out_features, in_features]`, row major, whatever its [`Encoding`]. A
//! [`WeightView`] is such a matrix as bytes that someone else owns (a mapped file, the embedded model);
//! [`Matrix`] is an owned matrix of f32.

mod codebook;
mod dtype;
mod encoding;
pub mod grid;
mod grid_tables;
mod matrix;
mod scaled;
mod view;

pub use codebook::{Codebook, DYNAMIC_MAP, DYNAMIC_MAP_BYTES, Nested};
pub use dtype::{Dtype, FloatType};
pub use encoding::{Bits, BlockType, ColumnPacking, Encoding, Granularity, Grouped, ZeroPoint};
pub use matrix::Matrix;
pub use scaled::{Element, Extent, ScaleType, Scaled, fp4_from_f32, fp6_from_f32, fp8_from_f32, fp8_to_f32};
pub use view::{ViewError, WeightData, WeightView};
