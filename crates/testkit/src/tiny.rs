//! Tiny models with weights from a fixed generator.

use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tokenizer::{Split, tokenizer_json};

/// A model's shape and family. All have a vocabulary of 320 rows for 283 tokens, 4 query heads over 2 KV heads and 2
/// layers; hidden 64 and FFN 160 unless said otherwise. RoPE's theta is 50000, so that a reader's default shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Qwen2: biases on q, k and v; untied head; config as transformers 5 writes it.
    Qwen2,
    /// Qwen2 with a tied head.
    Qwen2Tied,
    /// The weights of [`Qwen2`](Self::Qwen2), config as published checkpoints have it.
    Qwen2OldConfig,
    /// Llama: no biases; untied head.
    Llama,
    /// Llama 3's scaled RoPE, original context 16.
    LlamaLlama3,
    /// Qwen2 with hidden 256 and FFN 288: some rows divide into blocks of 256, some only into blocks of 32.
    Qwen2Wide,
    /// Llama with hidden 256, FFN 512 and a tied head: every matrix takes blocks of 256.
    LlamaWide,
}

impl Variant {
    /// Every variant.
    pub const ALL: [Self; 7] = [
        Self::Qwen2,
        Self::Qwen2Tied,
        Self::Qwen2OldConfig,
        Self::Llama,
        Self::LlamaLlama3,
        Self::Qwen2Wide,
        Self::LlamaWide,
    ];

    /// A folder's name: `tiny-qwen2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qwen2 => "tiny-qwen2",
            Self::Qwen2Tied => "tiny-qwen2-tied",
            Self::Qwen2OldConfig => "tiny-qwen2-old-config",
            Self::Llama => "tiny-llama",
            Self::LlamaLlama3 => "tiny-llama-llama3",
            Self::Qwen2Wide => "tiny-qwen2-wide",
            Self::LlamaWide => "tiny-llama-wide",
        }
    }

    fn is_llama(self) -> bool {
        matches!(self, Self::Llama | Self::LlamaLlama3 | Self::LlamaWide)
    }

    fn is_tied(self) -> bool {
        matches!(self, Self::Qwen2Tied | Self::LlamaWide)
    }

    /// Hidden and FFN width.
    fn widths(self) -> (usize, usize) {
        match self {
            Self::Qwen2Wide => (256, 288),
            Self::LlamaWide => (256, 512),
            _ => (64, 160),
        }
    }

    /// The name that seeds the weights.
    fn seed(self) -> &'static str {
        match self {
            Self::Qwen2OldConfig => Self::Qwen2.name(),
            other => other.name(),
        }
    }

    /// How its tokenizer splits text.
    pub fn split(self) -> Split {
        if self.is_llama() { Split::SmolLm } else { Split::Qwen2 }
    }
}

const VOCAB: usize = 320;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// What a tiny model's tensors are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the types' own names")]
pub enum Float {
    F32,
    F16,
    BF16,
}

impl Float {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }
}

/// A tiny model to be written: weights from N(0, 0.08), biases from N(0, 0.2), norms about 1.
///
/// ```
/// use bitmill_testkit::{Float, Tiny, Variant};
/// let folder = Tiny::new(Variant::Llama).float(Float::BF16).shards(2).write();
/// assert!(folder.path().join("model-00002-of-00002.safetensors").is_file());
/// ```
#[derive(Debug, Clone)]
pub struct Tiny {
    variant: Variant,
    float: Float,
    shards: usize,
    layers: usize,
}

impl Tiny {
    /// In f32 and one file.
    pub fn new(variant: Variant) -> Self {
        Self { variant, float: Float::F32, shards: 1, layers: LAYERS }
    }

    /// Stores every tensor as `float`.
    pub fn float(self, float: Float) -> Self {
        Self { float, ..self }
    }

    /// Spreads the tensors over so many files, with an index.
    pub fn shards(self, shards: usize) -> Self {
        Self { shards: shards.max(1), ..self }
    }

    /// So many layers instead of two.
    pub fn layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// The tensors, in file order: name, shape, values.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let (hidden, ffn) = self.variant.widths();
        let head_dim = hidden / HEADS;
        let (q, kv) = (HEADS * head_dim, KV_HEADS * head_dim);
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[hidden]);
            for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{name}_proj.weight"), &[rows, hidden]);
                if !self.variant.is_llama() {
                    add(&format!("self_attn.{name}_proj.bias"), &[rows]);
                }
            }
            add("self_attn.o_proj.weight", &[hidden, q]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("mlp.gate_proj.weight", &[ffn, hidden]);
            add("mlp.up_proj.weight", &[ffn, hidden]);
            add("mlp.down_proj.weight", &[hidden, ffn]);
        }
        shapes.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.variant.is_tied() {
            shapes.push(("lm_head.weight".to_owned(), vec![VOCAB, hidden]));
        }
        let fill = |(name, shape): (String, Vec<usize>)| {
            let values = noise(&format!("{}/{name}", self.variant.seed()), shape.iter().product());
            let value = |x: f32| match () {
                () if name.ends_with("norm.weight") => 1.0 + 0.1 * x,
                () if name.ends_with("bias") => 0.2 * x,
                () => 0.08 * x,
            };
            (name.clone(), shape, values.into_iter().map(value).collect())
        };
        shapes.into_iter().map(fill).collect()
    }

    /// `config.json`.
    pub fn config(&self) -> Value {
        let (hidden, ffn) = self.variant.widths();
        let llama = self.variant.is_llama();
        let mut config = json!({
            "architectures": [if llama { "LlamaForCausalLM" } else { "Qwen2ForCausalLM" }],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "dtype": self.float.name(),
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": ffn,
            "max_position_embeddings": 256,
            "model_type": if llama { "llama" } else { "qwen2" },
            "num_attention_heads": HEADS,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": KV_HEADS,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"},
            "tie_word_embeddings": self.variant.is_tied(),
            "use_cache": true,
            "vocab_size": VOCAB,
        });
        if llama {
            config["attention_bias"] = json!(false);
            config["head_dim"] = json!(hidden / HEADS);
            config["mlp_bias"] = json!(false);
        } else {
            config["max_window_layers"] = json!(28);
            config["sliding_window"] = Value::Null;
            config["use_sliding_window"] = json!(false);
        }
        match self.variant {
            Variant::LlamaLlama3 => {
                config["rope_parameters"] = json!({
                    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 16, "rope_theta": 50000.0, "rope_type": "llama3",
                });
            }
            Variant::Qwen2OldConfig => {
                let keys =
                    config.as_object_mut().map(|keys| (keys.remove("rope_parameters"), keys.remove("dtype")));
                if let Some((_, Some(dtype))) = keys {
                    config["torch_dtype"] = dtype;
                }
                config["rope_theta"] = json!(50000.0);
            }
            _ => {}
        }
        config
    }

    /// Every file of the folder, by name.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        self.files_of(self.tensors())
    }

    /// As [`write`](Self::write), each tensor's values changed by `edit`, which is given its name, shape and values.
    #[track_caller]
    pub fn write_with(&self, mut edit: impl FnMut(&str, &[usize], &mut [f32])) -> TempDir {
        let mut tensors = self.tensors();
        tensors.iter_mut().for_each(|(name, shape, values)| edit(name, shape, values));
        let folder = self.folder();
        write_files(folder.path(), self.files_of(tensors));
        folder
    }

    fn files_of(&self, tensors: Vec<(String, Vec<usize>, Vec<f32>)>) -> Vec<(String, Vec<u8>)> {
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| self.float.bytes(values)).collect();
        let mut files = vec![("config.json".to_owned(), format!("{:#}\n", self.config()).into_bytes())];
        let mut map = serde_json::Map::new();
        let per_shard = tensors.len().div_ceil(self.shards);
        for shard in 0..self.shards {
            let file = match self.shards {
                1 => "model.safetensors".to_owned(),
                shards => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
            };
            let range = (shard * per_shard).min(tensors.len())..((shard + 1) * per_shard).min(tensors.len());
            let views: Vec<(&str, TensorView<'_>)> = range
                .map(|i| {
                    let (name, shape, _) = &tensors[i];
                    map.insert(name.clone(), json!(file));
                    let view = TensorView::new(self.float.dtype(), shape.clone(), &bytes[i]);
                    (name.as_str(), view.expect("bytes of that shape"))
                })
                .collect();
            let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
            files.push((file, safetensors::serialize(views, metadata).expect("tensors of distinct names")));
        }
        if self.shards > 1 {
            let total: usize = bytes.iter().map(Vec::len).sum();
            let index = json!({"metadata": {"total_size": total}, "weight_map": map});
            files.push(("model.safetensors.index.json".to_owned(), format!("{index:#}\n").into_bytes()));
        }
        files.push(("tokenizer.json".to_owned(), tokenizer_json(self.variant.split()).into_bytes()));
        let tokenizer_config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>",
            "pad_token": "<|pad|>", "model_max_length": 256,
        });
        files.push(("tokenizer_config.json".to_owned(), format!("{tokenizer_config:#}\n").into_bytes()));
        files
    }

    /// Writes the folder to a temporary place.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn write(&self) -> TempDir {
        let folder = self.folder();
        self.write_to(folder.path());
        folder
    }

    #[track_caller]
    fn folder(&self) -> TempDir {
        tempfile::Builder::new().prefix(self.variant.name()).tempdir().expect("a temporary folder")
    }

    /// Writes the files into `folder`, which exists.
    ///
    /// # Panics
    /// If they cannot be written.
    #[track_caller]
    pub fn write_to(&self, folder: &Path) {
        write_files(folder, self.files());
    }
}

#[track_caller]
fn write_files(folder: &Path, files: Vec<(String, Vec<u8>)>) {
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// `len` numbers of mean 0 and deviation 1 that depend on `seed` alone: sums of four uniform integers, within ±3.47.
///
/// ```
/// assert_eq!(bitmill_testkit::noise("a seed", 3), bitmill_testkit::noise("a seed", 5)[..3]);
/// ```
pub fn noise(seed: &str, len: usize) -> Vec<f32> {
    // FNV-1a of the name starts splitmix64.
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut state = seed.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    // Four uniform integers below 2¹⁶ have a deviation of 2¹⁶·√(4/12).
    const DEVIATION: f32 = 37_837.23;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        let sum: i32 = (0..4).map(|part| (z >> (16 * part)) as u16 as i32).sum();
        (sum - 2 * 65_535) as f32 / DEVIATION
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_mean_zero_and_deviation_one() {
        let values = noise("check", 100_000);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01, "{mean} {variance}");
    }

    #[test]
    fn shards_hold_every_tensor_once() {
        let folder = Tiny::new(Variant::Qwen2).shards(3).write();
        let index = std::fs::read(folder.path().join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(map.len(), Tiny::new(Variant::Qwen2).tensors().len());
        for (name, file) in map {
            let bytes = std::fs::read(folder.path().join(file.as_str().unwrap())).unwrap();
            assert!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(name).is_ok());
        }
    }
}
