//! The records that measuring fills. Field names are the JSON's; `docs/json.md` explains them to readers of the JSON.

use serde::{Deserialize, Serialize};

use crate::{BenchSchema, CompareSchema, EvalSchema, Latency, Machine, Tasks};

/// How far a model's predictions lie from the dense model's, over the same targets.
///
/// Kullback-Leibler divergence of the model's next-token distribution from the dense one's, in nats per target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Mean over targets.
    #[serde(with = "crate::finite")]
    pub kl_mean: f64,
    /// Standard error of that mean.
    #[serde(with = "crate::finite")]
    pub kl_stderr: f64,
    /// Median over targets.
    #[serde(with = "crate::finite")]
    pub kl_median: f64,
    /// One target in ten diverges more.
    #[serde(with = "crate::finite")]
    pub kl_p90: f64,
    /// One target in a hundred diverges more.
    #[serde(with = "crate::finite")]
    pub kl_p99: f64,
    /// Fraction of targets at which both models put the same token first.
    #[serde(with = "crate::finite")]
    pub top1_agreement: f64,
}

/// What a model knows: perplexity, divergence from dense, tasks. Always computed on the exact path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// exp of the mean negative log-likelihood over every target but a window's first.
    #[serde(with = "crate::finite")]
    pub perplexity: f64,
    /// Its standard error.
    #[serde(with = "crate::finite")]
    pub perplexity_stderr: f64,
    /// The same over the second half of each window alone, as llama.cpp scores.
    #[serde(with = "crate::finite")]
    pub perplexity_second_half: f64,
    /// Its standard error.
    #[serde(with = "crate::finite")]
    pub perplexity_second_half_stderr: f64,
    /// Targets behind `perplexity`.
    pub targets: usize,
    /// Windows scored.
    pub windows: usize,
    /// Length of a window, in tokens.
    pub window: usize,
    /// Against the dense model; its fields are absent for the dense model itself.
    #[serde(flatten)]
    pub divergence: Option<Divergence>,
    /// Scores by task.
    pub tasks: Tasks,
    /// Mean of the tasks' accuracies; none without tasks.
    pub accuracy: Option<f64>,
}

impl Quality {
    /// Accuracy over the dense model's: none without tasks, or where dense answers nothing right.
    pub fn recovery(&self, dense: &Self) -> Option<f64> {
        let (accuracy, dense) = (self.accuracy?, dense.accuracy?);
        (dense > 0.0).then(|| accuracy / dense)
    }
}

/// What a figure of peak memory covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeakScope {
    /// This measurement alone: the system let its high-water mark be reset before it.
    Measurement,
    /// The process since it began: an upper bound.
    Process,
}

/// How fast a model is and what memory that took. Always computed on the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Time to read a prompt of `prefill_tokens` at once.
    pub prefill_ms: Latency,
    /// Length of that prompt.
    pub prefill_tokens: usize,
    /// Time for one more token.
    pub decode_ms: Latency,
    /// Tokens timed one by one, in all repetitions together.
    pub decode_tokens: usize,
    /// Tokens already in the cache before the first of them.
    pub decode_context: usize,
    /// Prefills timed.
    pub repeats: usize,
    /// Peak resident memory in bytes, mapped weights included (VmHWM); none where the system does not tell.
    pub peak_bytes: Option<u64>,
    /// What `peak_bytes` covers.
    pub peak_scope: PeakScope,
}

/// What `bitmill eval` found: `bitmill.eval/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// The document's name.
    pub schema: EvalSchema,
    /// Version of bitmill.
    pub version: String,
    /// When, in UTC: see [`timestamp`](crate::timestamp).
    pub created: String,
    /// The model measured.
    pub model: String,
    /// The dense model it was compared with, if any.
    pub against: Option<String>,
    /// The text's name.
    pub text: String,
    /// The model's weight files on disk.
    pub bytes: u64,
    /// Dense bytes ÷ `bytes`; none without a dense model.
    pub ratio: Option<f64>,
    /// `bytes` × 8 ÷ weights.
    #[serde(with = "crate::finite")]
    pub bits_per_weight: f64,
    /// What was measured.
    #[serde(flatten)]
    pub quality: Quality,
    /// Mean divergence of the fast path from the exact path of this same model; none if not measured.
    pub kl_fast_path: Option<f64>,
    /// Accuracy ÷ dense accuracy; none without a dense model or tasks.
    pub recovery: Option<f64>,
    /// On which machine.
    pub machine: Machine,
}

/// What `bitmill bench` found: `bitmill.bench/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// The document's name.
    pub schema: BenchSchema,
    /// Version of bitmill.
    pub version: String,
    /// When, in UTC.
    pub created: String,
    /// The model measured.
    pub model: String,
    /// The model's weight files on disk.
    pub bytes: u64,
    /// `bytes` × 8 ÷ weights.
    #[serde(with = "crate::finite")]
    pub bits_per_weight: f64,
    /// What was measured.
    #[serde(flatten)]
    pub speed: Speed,
    /// Of the random token ids.
    pub seed: u64,
    /// On which machine.
    pub machine: Machine,
}

/// One strategy of a comparison, or a model that was made before, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The preset's or recipe's name, or the own name of a model that was made before; `none` for the dense model.
    pub strategy: String,
    /// What was written and read back: "gguf", "compressed-tensors", or the source's own format for dense.
    pub format: String,
    /// Its weight files on disk, metadata included.
    pub bytes: u64,
    /// Dense bytes ÷ `bytes`.
    #[serde(with = "crate::finite")]
    pub ratio: f64,
    /// `bytes` × 8 ÷ weights.
    #[serde(with = "crate::finite")]
    pub bits_per_weight: f64,
    /// Latency and memory.
    #[serde(flatten)]
    pub speed: Speed,
    /// Perplexity, divergence, tasks.
    #[serde(flatten)]
    pub quality: Quality,
    /// Mean divergence of the fast path from the exact path of this same model; none if not measured.
    pub kl_fast_path: Option<f64>,
    /// Accuracy ÷ dense accuracy; 1 for the dense model, none without tasks.
    pub recovery: Option<f64>,
    /// What the search that wrote the recipe said `kl_mean` would be; none for recipes that no search wrote.
    #[serde(default)]
    pub predicted_kl: Option<f64>,
    /// How long compressing and writing took, the search for a recipe included; none for what this comparison did not make.
    pub compress_seconds: Option<f64>,
    /// The recipe with every default filled in, as TOML; none for what this comparison did not make.
    pub recipe: Option<String>,
    /// Where a model lies that was made before; none for the dense model and for what this comparison made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What a reader should know about this row, above all tensors that fell back to another encoding.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Row {
    /// Whether this is the uncompressed model: the one row that neither a recipe nor anybody else made.
    pub fn is_dense(&self) -> bool {
        self.recipe.is_none() && !self.is_made()
    }

    /// Whether this model was made before the comparison.
    pub fn is_made(&self) -> bool {
        self.path.is_some()
    }
}

/// One strategy of a comparison that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The preset's, recipe's or model's name.
    pub strategy: String,
    /// Why.
    pub error: String,
    /// What the reader can change.
    pub hint: Option<String>,
}

/// How a comparison was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The text's name.
    pub text: String,
    /// Length of a window, in tokens.
    pub window: usize,
    /// Most windows a strategy; none: all.
    pub windows: Option<usize>,
    /// Most items a task; none: all.
    pub items: Option<usize>,
    /// Whether all windows and items were measured.
    pub full: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads of the pool.
    pub threads: usize,
}

/// What `bitmill compare` found: `bitmill.compare/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareReport {
    /// The document's name.
    pub schema: CompareSchema,
    /// Version of bitmill.
    pub version: String,
    /// When, in UTC.
    pub created: String,
    /// The model compressed.
    pub model: String,
    /// Its weights, embeddings and all, before compression.
    pub weights: u64,
    /// On which machine.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// One row a strategy, in the order asked for.
    pub rows: Vec<Row>,
    /// Strategies that could not be measured.
    #[serde(default)]
    pub failed: Vec<Failure>,
}

impl CompareReport {
    /// The uncompressed model's row, if it was measured.
    pub fn dense(&self) -> Option<&Row> {
        self.rows.iter().find(|row| row.is_dense())
    }
}
