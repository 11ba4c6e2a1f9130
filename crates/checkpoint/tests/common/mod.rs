//! Tiny checkpoints as bytes, put together without the crate's own writers.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, Error, Region};
use serde_json::{Value, json};

pub const LAYERS: usize = 2;
pub const HIDDEN: usize = 32;
pub const FFN: usize = 48;
pub const VOCAB: usize = 40;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 8;

/// Name, dtype, shape, bytes.
pub type Stored = (String, &'static str, Vec<usize>, Vec<u8>);

pub fn config(family: &str) -> Value {
    let class = match family {
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "mistral" => "MistralForCausalLM",
        _ => "LlamaForCausalLM",
    };
    json!({
        "architectures": [class], "model_type": family, "hidden_act": "silu", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32"
    })
}

/// An f32 tensor whose element `i` is `i + seed`.
pub fn f32s(name: &str, shape: &[usize], seed: usize) -> Stored {
    let n: usize = shape.iter().product();
    let bytes = (0..n).flat_map(|i| ((i + seed) as f32).to_le_bytes()).collect();
    (name.to_owned(), "F32", shape.to_vec(), bytes)
}

pub fn tensors(family: &str) -> Vec<Stored> {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let mut all = vec![f32s("model.embed_tokens.weight", &[VOCAB, HIDDEN], 0)];
    for layer in 0..LAYERS {
        let mut put = |name: &str, shape: &[usize]| {
            let seed = all.len();
            all.push(f32s(&format!("model.layers.{layer}.{name}"), shape, seed));
        };
        put("input_layernorm.weight", &[HIDDEN]);
        put("self_attn.q_proj.weight", &[q, HIDDEN]);
        put("self_attn.k_proj.weight", &[kv, HIDDEN]);
        put("self_attn.v_proj.weight", &[kv, HIDDEN]);
        if family == "qwen2" {
            put("self_attn.q_proj.bias", &[q]);
            put("self_attn.k_proj.bias", &[kv]);
            put("self_attn.v_proj.bias", &[kv]);
        }
        if family == "qwen3" {
            put("self_attn.q_norm.weight", &[HEAD_DIM]);
            put("self_attn.k_norm.weight", &[HEAD_DIM]);
        }
        put("self_attn.o_proj.weight", &[HIDDEN, q]);
        put("post_attention_layernorm.weight", &[HIDDEN]);
        put("mlp.gate_proj.weight", &[FFN, HIDDEN]);
        put("mlp.up_proj.weight", &[FFN, HIDDEN]);
        put("mlp.down_proj.weight", &[HIDDEN, FFN]);
    }
    all.push(f32s("model.norm.weight", &[HIDDEN], 7));
    all.push(f32s("lm_head.weight", &[VOCAB, HIDDEN], 9));
    all
}

pub fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// Opens files in memory as the folder `tiny`.
pub fn open(files: Vec<(&str, Vec<u8>)>) -> Result<Checkpoint, Error> {
    let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), Region::from_vec(bytes))).collect();
    Checkpoint::from_files("tiny", files)
}

/// Opens a folder of one config and one safetensors file.
pub fn open_with(config: &Value, tensors: &[Stored]) -> Result<Checkpoint, Error> {
    open(vec![("config.json", config.to_string().into_bytes()), ("model.safetensors", safetensors(tensors))])
}

/// Opens the tiny model with its config changed.
pub fn open_config(family: &str, change: impl FnOnce(&mut Value)) -> Result<Checkpoint, Error> {
    let mut config = config(family);
    change(&mut config);
    open_with(&config, &tensors(family))
}

pub fn write_folder(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

/// A GGUF file, piece by piece.
pub struct Gguf {
    pub version: u32,
    pub keys: Vec<(String, u32, Vec<u8>)>,
    /// Name, dims as stored (fastest first), type, offset; and the data.
    pub tensors: Vec<(String, Vec<u64>, u32, u64)>,
    pub data: Vec<u8>,
}

pub fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

impl Gguf {
    pub fn empty() -> Self {
        Self { version: 3, keys: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    /// The tiny model, f32.
    pub fn tiny(family: &str) -> Self {
        let mut gguf = Self::empty();
        gguf.text("general.architecture", family);
        for (key, value) in [
            ("block_count", LAYERS),
            ("context_length", 128),
            ("embedding_length", HIDDEN),
            ("feed_forward_length", FFN),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
        ] {
            gguf.u32(&format!("{family}.{key}"), value as u32);
        }
        gguf.f32(&format!("{family}.rope.freq_base"), 50000.0);
        gguf.f32(&format!("{family}.attention.layer_norm_rms_epsilon"), 1e-5);
        for (name, _, shape, bytes) in tensors(family) {
            let role = bitmill_checkpoint::Role::from_canonical_name(&name);
            let dims = shape.iter().rev().map(|&size| size as u64).collect();
            gguf.tensor(&role.gguf_name().unwrap(), dims, 0, &bytes);
        }
        gguf
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.keys.push((key.to_owned(), 8, string(value)));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.keys.push((key.to_owned(), 4, value.to_le_bytes().to_vec()));
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.keys.push((key.to_owned(), 6, value.to_le_bytes().to_vec()));
    }

    /// Replaces the value of a key.
    pub fn set(&mut self, key: &str, id: u32, bytes: Vec<u8>) {
        self.keys.retain(|(name, ..)| name != key);
        self.keys.push((key.to_owned(), id, bytes));
    }

    pub fn tensor(&mut self, name: &str, dims: Vec<u64>, id: u32, bytes: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors.push((name.to_owned(), dims, id, self.data.len() as u64));
        self.data.extend_from_slice(bytes);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = self.header();
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend_from_slice(&self.data);
        file
    }

    pub fn header(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend_from_slice(&self.version.to_le_bytes());
        file.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        file.extend_from_slice(&(self.keys.len() as u64).to_le_bytes());
        for (key, id, bytes) in &self.keys {
            file.extend(string(key));
            file.extend_from_slice(&id.to_le_bytes());
            file.extend_from_slice(bytes);
        }
        for (name, dims, id, offset) in &self.tensors {
            file.extend(string(name));
            file.extend_from_slice(&(dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|size| file.extend_from_slice(&size.to_le_bytes()));
            file.extend_from_slice(&id.to_le_bytes());
            file.extend_from_slice(&offset.to_le_bytes());
        }
        file
    }
}

/// Opens bytes as a .gguf file.
pub fn open_gguf(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

/// The tiny llama with tensor `name` stored as `parts`, and their config; both changed.
pub fn open_stored(
    name: &str,
    mut parts: Vec<Stored>,
    quantization_config: Value,
    change_parts: impl FnOnce(&mut Vec<Stored>),
    change_config: impl FnOnce(&mut Value),
) -> Result<Checkpoint, Error> {
    let mut all = tensors("llama");
    all.retain(|(other, ..)| other != name);
    change_parts(&mut parts);
    all.extend(parts);
    let mut config = config("llama");
    config["quantization_config"] = quantization_config;
    change_config(&mut config["quantization_config"]);
    open_with(&config, &all)
}

/// The checksum that Python's zlib has.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}
