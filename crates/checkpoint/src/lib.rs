//! Checkpoints in and out: safetensors, GGUF, compressed-tensors, GPTQ, AWQ, model config, atomic writers.
//!
//! A [`Checkpoint`] is an opened model in any format: tensors under their Hugging Face names with their [`Role`]s,
//! checked against a [`ModelConfig`]. Opening reads headers only; weights are mapped, read when touched and let go
//! with [`Tensor::release`], so memory follows the largest tensor in use and not the model.
//!
//! [`GgufWriter`] and [`FolderWriter`] take the list of tensors first and their bytes in any order after it, from
//! any thread; what they write appears whole at its target or not at all, and what an interrupted run leaves can be gone on
//! with.
//!
//! ```no_run
//! use bitmill_checkpoint::{Checkpoint, Role, RoleKind};
//!
//! # fn main() -> Result<(), bitmill_checkpoint::Error> {
//! let checkpoint = Checkpoint::open("models/qwen2.5-72b".as_ref())?;
//! println!("{} layers", checkpoint.config().n_layers);
//! for info in checkpoint.tensors() {
//!     let tensor = checkpoint.tensor(&info.name)?;
//!     println!("{} {:?} {}", info.name, info.shape, tensor.view().encoding());
//!     tensor.release();
//! }
//! assert!(checkpoint.tensor_with_role(Role::in_layer(0, RoleKind::FfnDown)).is_some());
//! # Ok(())
//! # }
//! ```
//!
//! An [`Imatrix`] says which inputs of each matrix a text made large; it is read and written in both of llama.cpp's forms.
//!
//! To read another family, add a row to the table in `family.rs` and, if it has tensors of its own, rows to the one
//! in `role.rs`; another stored encoding begins in `bitmill_tensor::Encoding`.

mod atomic;
mod bitsandbytes;
mod cache_scales;
mod checkpoint;
mod columns;
mod compressed_tensors;
mod config;
mod config_json;
mod config_out;
mod config_rope;
mod declared;
mod error;
mod family;
mod folder;
mod folder_out;
mod foreign;
mod generation1;
mod gguf_config;
mod gguf_in;
mod gguf_layout;
mod gguf_out;
mod gguf_rope;
mod gguf_split;
mod gguf_value;
mod imatrix;
mod input_scales;
mod journal;
mod marlin24;
mod moe;
mod region;
mod role;
mod safetensors_in;
mod scaled;
mod shapes;
mod sparse_bitmask;
mod staging;

pub use atomic::{Overwrite, Target, Written};
pub use bitsandbytes::{bitsandbytes_config, codebook_specs, quant_state};
pub use cache_scales::{CacheScale, cache_scale_spec, fp8_cache_scheme};
pub use checkpoint::{
    Checkpoint, Format, Tensor, TensorInfo, TokenizerSource, adjacent_pairs_row, halves_row,
};
pub use columns::{awq_config, column_specs, gptq_config};
pub use compressed_tensors::{
    ModuleScheme, PackedScheme, compressed_tensors_config, grouped_specs, modules_config, packed_config,
    word_specs,
};
pub use config::{ModelConfig, Rope, RopeScaling, SlidingWindow, Yarn};
pub use error::Error;
pub use family::{Family, Pairing};
pub use folder_out::{FolderWriter, StTensorSpec, folder_bytes};
pub use generation1::folder_notes;
pub use gguf_config::{check_gguf, gguf_metadata};
pub use gguf_out::{GgufOptions, GgufTensorSpec, GgufWriter, gguf_files};
pub use gguf_rope::rope_freqs;
pub use gguf_value::{GgufArray, GgufTokenizer, GgufValue};
pub use imatrix::{Imatrix, ImatrixEntry, ImatrixForm};
pub use input_scales::{InputScale, input_scale_spec};
pub use journal::Identity;
pub use moe::Experts;
pub use region::Region;
pub use role::{Role, RoleKind};
pub use scaled::{Activations, scaled_specs};
pub use sparse_bitmask::{sparse_config, sparse_specs};
pub use staging::{Finished, discard_partial, finish_interrupted};
