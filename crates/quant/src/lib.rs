//! Quantization methods: one file per method. A method takes matrices and returns codes and what they stand for;
//! it opens no file and runs no model.
//!
//! [`rtn`] rounds to the nearest code of a grid, [`ggml`] makes the blocks of GGUF files, [`mix`] says which
//! encoding each tensor of a GGUF mix gets.

mod clip;
mod columns;
mod error;
pub mod ggml;
pub mod mix;
mod mix_rules;
mod pack;
pub mod rtn;
mod scaled;

pub use clip::Clip;
pub use columns::{awq_codes, awq_zero_points, gptq_zero_points, transpose};
pub use error::{Error, first_non_finite};
pub use ggml::{BlockEncoder, BlockSearch, Importance, needs_importance, quantize_blocks};
pub use mix::{Choice, Mix, MixTensor, choose};
pub use pack::pack_zero_points;
pub use rtn::{GroupedRows, RtnGrid, quantize_rows, quantize_rows_clipped};
pub use scaled::{ScaledRows, global_scale, layout_of, quantize_scaled};
