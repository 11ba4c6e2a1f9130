//! Tiny models with weights from a fixed generator.

use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tokenizer::tokenizer_json;
use crate::variant::{EXPERTS, HEADS, Kind, SHARED, Variant};

const VOCAB: usize = 320;
const LAYERS: usize = 2;

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
        let (hidden, _) = self.variant.widths();
        let first = self.variant.kind() == Kind::QwenV1;
        let name = |today: &str, then: &str| (if first { then } else { today }).to_owned();
        let mut shapes =
            vec![(name("model.embed_tokens.weight", "transformer.wte.weight"), vec![VOCAB, hidden])];
        for layer in 0..self.layers {
            shapes.extend(if first { self.first_generation_layer(layer) } else { self.layer(layer) });
        }
        shapes.push((name("model.norm.weight", "transformer.ln_f.weight"), vec![hidden]));
        if !self.variant.is_tied() {
            shapes.push(("lm_head.weight".to_owned(), vec![VOCAB, hidden]));
        }
        let is_norm = |name: &str| {
            ["norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"].iter().any(|end| name.ends_with(end))
        };
        let fill = |(name, shape): (String, Vec<usize>)| {
            let values = noise(&format!("{}/{name}", self.variant.seed()), shape.iter().product());
            let value = |x: f32| match () {
                () if is_norm(&name) => 1.0 + 0.1 * x,
                () if name.ends_with("bias") => 0.2 * x,
                () => 0.08 * x,
            };
            (name.clone(), shape, values.into_iter().map(value).collect())
        };
        shapes.into_iter().map(fill).collect()
    }

    fn layer(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, ffn) = self.variant.widths();
        let head_dim = self.variant.head_dim();
        let (q, kv) = (HEADS * head_dim, self.variant.kv_heads() * head_dim);
        let mut shapes = Vec::new();
        let mut add = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[hidden]);
        for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, hidden]);
            if matches!(self.variant.kind(), Kind::Qwen2 | Kind::Qwen2Moe) {
                add(&format!("self_attn.{name}_proj.bias"), &[rows]);
            }
        }
        if matches!(self.variant.kind(), Kind::Qwen3 | Kind::Qwen3Moe) {
            add("self_attn.q_norm.weight", &[head_dim]);
            add("self_attn.k_norm.weight", &[head_dim]);
        }
        add("self_attn.o_proj.weight", &[hidden, q]);
        add("post_attention_layernorm.weight", &[hidden]);
        let mut add_block = |name: &str, width: usize| {
            for (matrix, shape) in
                [("gate", [width, hidden]), ("up", [width, hidden]), ("down", [hidden, width])]
            {
                add(&format!("{name}.{matrix}_proj.weight"), &shape);
            }
        };
        if !self.variant.has_experts(layer) {
            add_block("mlp", ffn);
            return shapes;
        }
        let (count, width) = EXPERTS;
        for expert in 0..count {
            add_block(&format!("mlp.experts.{expert}"), width);
        }
        let is_shared = self.variant.kind() == Kind::Qwen2Moe;
        if is_shared {
            add_block("mlp.shared_expert", SHARED);
            add("mlp.shared_expert_gate.weight", &[1, hidden]);
        }
        add("mlp.gate.weight", &[count, hidden]);
        shapes
    }

    fn first_generation_layer(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, ffn) = self.variant.widths();
        let named = |(name, shape): (&str, Vec<usize>)| (format!("transformer.h.{layer}.{name}"), shape);
        [
            ("ln_1.weight", vec![hidden]),
            ("attn.c_attn.weight", vec![3 * hidden, hidden]),
            ("attn.c_attn.bias", vec![3 * hidden]),
            ("attn.c_proj.weight", vec![hidden, hidden]),
            ("ln_2.weight", vec![hidden]),
            ("mlp.w1.weight", vec![ffn, hidden]),
            ("mlp.w2.weight", vec![ffn, hidden]),
            ("mlp.c_proj.weight", vec![hidden, ffn]),
        ]
        .map(named)
        .into()
    }

    /// `config.json`.
    pub fn config(&self) -> Value {
        let variant = self.variant;
        let (hidden, ffn) = variant.widths();
        let (model_type, class) = match variant.kind() {
            Kind::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Kind::Llama => ("llama", "LlamaForCausalLM"),
            Kind::Mistral => ("mistral", "MistralForCausalLM"),
            Kind::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Kind::Qwen2Moe => ("qwen2_moe", "Qwen2MoeForCausalLM"),
            Kind::Qwen3Moe => ("qwen3_moe", "Qwen3MoeForCausalLM"),
            Kind::QwenV1 => return self.first_generation_config(),
        };
        let mut config = json!({
            "architectures": [class],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "dtype": self.float.name(),
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": ffn,
            "max_position_embeddings": 256,
            "model_type": model_type,
            "num_attention_heads": HEADS,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": variant.kv_heads(),
            "pad_token_id": 0,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"},
            "tie_word_embeddings": variant.is_tied(),
            "use_cache": true,
            "vocab_size": VOCAB,
        });
        match variant.kind() {
            Kind::Llama => {
                set(
                    &mut config,
                    json!({"attention_bias": false, "head_dim": variant.head_dim(), "mlp_bias": false}),
                );
            }
            Kind::Mistral => set(&mut config, json!({"head_dim": variant.head_dim(), "sliding_window": 12})),
            Kind::Qwen3 => set(&mut config, json!({"attention_bias": false, "head_dim": variant.head_dim()})),
            Kind::Qwen2Moe => {
                set(&mut config, json!({"qkv_bias": true, "shared_expert_intermediate_size": SHARED}))
            }
            Kind::Qwen3Moe => {
                set(&mut config, json!({"attention_bias": false, "head_dim": variant.head_dim()}))
            }
            Kind::Qwen2 | Kind::QwenV1 => {}
        }
        if matches!(variant.kind(), Kind::Qwen2 | Kind::Qwen3) {
            set(
                &mut config,
                json!({"max_window_layers": 28, "sliding_window": null, "use_sliding_window": false}),
            );
        }
        if matches!(variant.kind(), Kind::Qwen2Moe | Kind::Qwen3Moe) {
            let (count, width) = EXPERTS;
            // transformers 5 writes the one key of Qwen3-MoE, and published ones have the other.
            let count_key = if variant == Variant::Qwen3Moe { "num_local_experts" } else { "num_experts" };
            set(
                &mut config,
                json!({
                    count_key: count, "moe_intermediate_size": width,
                    "num_experts_per_tok": if variant == Variant::Qwen3Moe { 3 } else { 2 },
                    "norm_topk_prob": variant != Variant::Qwen2Moe,
                    "decoder_sparse_step": if variant == Variant::Qwen2MoeMixed { 2 } else { 1 },
                    "mlp_only_layers": [], "use_sliding_window": false,
                }),
            );
        }
        self.set_options(&mut config);
        config
    }

    /// What sets a variant's config apart from its kind's.
    fn set_options(&self, config: &mut Value) {
        match self.variant {
            Variant::LlamaLlama3 => set(
                config,
                json!({"rope_parameters": {
                    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 16, "rope_theta": 50000.0, "rope_type": "llama3",
                }}),
            ),
            Variant::LlamaLinear => set(
                config,
                json!({"rope_parameters": {"factor": 2.0, "rope_theta": 50000.0, "rope_type": "linear"}}),
            ),
            Variant::LlamaDynamic => set(
                config,
                json!({
                    "max_position_embeddings": 16,
                    "rope_parameters": {"factor": 2.0, "rope_theta": 50000.0, "rope_type": "dynamic"},
                }),
            ),
            Variant::Qwen2OldConfig => to_old_spelling(config),
            Variant::Llama2 => {
                to_old_spelling(config);
                remove(
                    config,
                    &["rope_theta", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"],
                );
                set(config, json!({"rope_scaling": null, "pretraining_tp": 1}));
            }
            Variant::MistralNull => set(config, json!({"sliding_window": null})),
            Variant::Qwen2Window => {
                set(config, json!({"max_window_layers": 1, "sliding_window": 8, "use_sliding_window": true}));
            }
            Variant::Qwen2Yarn => {
                to_old_spelling(config);
                set(
                    config,
                    json!({
                        "max_position_embeddings": 32,
                        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32, "type": "yarn"},
                    }),
                );
            }
            Variant::Qwen3Yarn => set(
                config,
                json!({"max_position_embeddings": 128, "rope_parameters": {
                    "attention_factor": 1.3, "beta_fast": 2.0, "beta_slow": 0.5, "factor": 4.0,
                    "original_max_position_embeddings": 32, "rope_theta": 50000.0, "rope_type": "yarn",
                }}),
            ),
            _ => {}
        }
    }

    fn first_generation_config(&self) -> Value {
        let (hidden, ffn) = self.variant.widths();
        let long = self.variant == Variant::QwenV1Long;
        json!({
            "architectures": ["QWenLMHeadModel"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": hidden,
            "intermediate_size": 2 * ffn,
            "kv_channels": self.variant.head_dim(),
            "layer_norm_epsilon": 1e-6,
            "max_position_embeddings": 256,
            "model_type": "qwen",
            "no_bias": true,
            "num_attention_heads": HEADS,
            "num_hidden_layers": self.layers,
            "rotary_emb_base": 50000.0,
            "rotary_pct": 1.0,
            "seq_length": if long { 16 } else { 256 },
            "tie_word_embeddings": false,
            "torch_dtype": self.float.name(),
            "use_dynamic_ntk": long,
            "use_logn_attn": long,
            "vocab_size": VOCAB,
        })
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

/// Puts the keys of `new` into `config`.
fn set(config: &mut Value, new: Value) {
    if let (Some(config), Value::Object(new)) = (config.as_object_mut(), new) {
        config.extend(new);
    }
}

fn remove(config: &mut Value, keys: &[&str]) {
    if let Some(config) = config.as_object_mut() {
        config.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

/// `rope_theta` and `torch_dtype` at the top level, as published checkpoints have them.
fn to_old_spelling(config: &mut Value) {
    let (theta, dtype) = (config["rope_parameters"]["rope_theta"].clone(), config["dtype"].clone());
    remove(config, &["rope_parameters", "dtype"]);
    set(config, json!({"rope_theta": theta, "torch_dtype": dtype}));
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
