//! GGUF architecture metadata.
use crate::{GgufValue, ModelConfig};

/// The architecture keys, as llama.cpp's converter writes them.
pub fn gguf_metadata(config: &ModelConfig, name: &str, file_type: u32) -> Vec<(String, GgufValue)> {
    let _ = (config, name, file_type);
    Vec::new()
}

/// The tensor `rope_freqs.weight`, if the model needs one.
pub fn rope_freqs(config: &ModelConfig) -> Option<Vec<f32>> {
    let _ = config;
    None
}
