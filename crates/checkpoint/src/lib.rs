//! Checkpoints in and out: safetensors, GGUF, compressed-tensors, model config, atomic writers.

mod atomic;
mod checkpoint;
mod compressed_tensors;
mod config;
mod error;
mod family;
mod folder_out;
mod gguf_meta;
mod gguf_out;
mod gguf_value;
mod region;
mod role;

pub use atomic::{Overwrite, Target, Written};
pub use checkpoint::{Checkpoint, Format, Tensor, TensorInfo, TokenizerSource, adjacent_pairs_row};
pub use compressed_tensors::{compressed_tensors_config, grouped_specs};
pub use config::{ModelConfig, Rope, RopeScaling};
pub use error::Error;
pub use family::{Family, Pairing};
pub use folder_out::{FolderWriter, StTensorSpec, folder_bytes};
pub use gguf_meta::{gguf_metadata, rope_freqs};
pub use gguf_out::{GgufTensorSpec, GgufWriter, gguf_bytes};
pub use gguf_value::{GgufArray, GgufTokenizer, GgufValue};
pub use region::Region;
pub use role::{Role, RoleKind};
