//! Checkpoints in and out: safetensors, GGUF, compressed-tensors, model config, atomic writers.

mod atomic;
mod checkpoint;
mod compressed_tensors;
mod config;
mod config_json;
mod error;
mod family;
mod folder;
mod folder_out;
mod gguf_config;
mod gguf_in;
mod gguf_out;
mod gguf_value;
mod region;
mod role;
mod safetensors_in;
mod shapes;

pub use atomic::{Overwrite, Target, Written};
pub use checkpoint::{
    Checkpoint, Format, Tensor, TensorInfo, TokenizerSource, adjacent_pairs_row, halves_row,
};
pub use compressed_tensors::{PackedScheme, compressed_tensors_config, grouped_specs, packed_config};
pub use config::{ModelConfig, Rope, RopeScaling};
pub use error::Error;
pub use family::{Family, Pairing};
pub use folder_out::{FolderWriter, StTensorSpec, folder_bytes};
pub use gguf_config::{check_gguf, gguf_metadata, rope_freqs};
pub use gguf_out::{GgufTensorSpec, GgufWriter, gguf_bytes};
pub use gguf_value::{GgufArray, GgufTokenizer, GgufValue};
pub use region::Region;
pub use role::{Role, RoleKind};
