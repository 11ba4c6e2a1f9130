//! Quantization methods: one file per method. A method takes matrices and returns codes and what they stand for;
//! it opens no file and runs no model.
//!
//! [`rtn`] rounds to the nearest code of a grid, [`hqq`] searches grids for heavy tails, [`gptq`] pushes each column's error onto
//! the columns still to come, [`learned`] finds by gradients which way each weight is rounded; [`awq`] and [`smooth`] scale features beforehand, [`rotate`] mixes them, and [`fold`] carries that
//! into the rest of the model. [`ggml`] makes the blocks of GGUF files, [`mix`] says which encoding each tensor of a GGUF mix gets.

pub mod awq;
mod clip;
mod codebook;
mod columns;
mod error;
pub mod fold;
pub mod ggml;
pub mod gptq;
pub mod hqq;
pub mod learned;
pub mod mix;
mod mix_rules;
mod pack;
mod repack;
pub mod rotate;
pub mod rtn;
mod scaled;
pub mod smooth;

pub use awq::{AwqOptions, AwqScales, Inputs, ScaleRule};
pub use clip::Clip;
pub use codebook::NestedAbsmax;
pub use columns::{awq_codes, awq_zero_points, gptq_zero_points, transpose};
pub use error::{Error, first_non_finite};
pub use ggml::{
    BlockEncoder, BlockSearch, Compensation, CompensationRecord, Importance, can_compensate,
    needs_importance, quantize_blocks, quantize_blocks_compensated,
};
pub use gptq::{GptqOptions, GptqRecord, GptqRows, GroupScales};
pub use hqq::HqqOptions;
pub use learned::{Learned, Ranges};
pub use mix::{Choice, Mix, MixTensor, choose};
pub use pack::{pack_zero_points, pack_zero_words, words_of_rows};
pub use repack::grouped_rows;
pub use rotate::Rotation;
pub use rtn::{GroupedRows, RtnGrid, quantize_rows, quantize_rows_clipped};
pub use scaled::{ScaledRows, global_scale, layout_of, quantize_scaled};
