//! The command line, as clap reads it and `--help` shows it.

use std::path::PathBuf;
use std::time::Duration;

use bitmill_pipeline::{Budget, TensorType, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Make large language models small, and prove what that cost.
///
/// MODEL is a Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME (see `bitmill pull`), or nothing at all:
/// then the model inside the program, `millet`.
/// Results go to stdout, all else to stderr. Exit code 0: done; 1: ran, but a bound that you set was missed; 2: could
/// not run.
#[derive(Debug, Parser)]
#[command(name = "bitmill", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Compute with this many threads; the default is one a core. Changes no byte of an output.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Seed everything random: the token ids that `bench` times, the tokens that `generate` and `chat` draw.
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what is in a model: family, tensors, dtypes, bytes; what would fit where.
    Inspect(Inspect),
    /// Show what a recipe would do to each tensor: encoding, bytes, bits per weight, peak memory.
    Plan(Plan),
    /// Compress a model by a recipe and write it in a format that runtimes load.
    Compress(Compress),
    /// Write a model in another format, its numbers as they are or as other floats.
    Convert(Convert),
    /// Measure perplexity, divergence from the dense model, and task accuracy.
    Eval(Eval),
    /// Measure prefill and decode latency and peak memory.
    Bench(Bench),
    /// Compress by several strategies and measure all of them side by side: the main job.
    Compare(Compare),
    /// Continue a text.
    Generate(Generate),
    /// Talk with a model, by the chat template that comes with it.
    Chat(Chat),
    /// Run a model over text and keep how much each column of its matrices counts: for --imatrix, or llama-quantize.
    Imatrix(Imatrix),
    /// Find the form of each tensor that loses least within a size, and write it as a recipe.
    Search(Search),
    /// List the presets, or print one as a recipe file.
    Recipes(Recipes),
    /// Measure a model against a baseline of its dense original, once or again and again, and keep the history.
    Watch(Watch),
    /// Fetch a model from Hugging Face (hf:) or ModelScope (ms:) into the cache that Python uses too.
    Pull(Pull),
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// List every tensor.
    #[arg(long)]
    pub tensors: bool,
}

#[derive(Debug, Args)]
pub struct Plan {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    #[command(flatten)]
    pub how: How,
}

/// What to do, shared by `plan` and `compress`.
#[derive(Debug, Args)]
pub struct How {
    /// A preset's name (see `bitmill recipes`) or a TOML file. Several go through the layers in one pass, over the same calibration
    /// tokens, each to an output of its own.
    #[arg(long = "recipe", short, value_name = "R", required = true)]
    pub recipes: Vec<String>,
    /// Write this format instead of the recipe's own, where it has a form for what the recipe makes.
    #[arg(long, value_name = "FORMAT")]
    pub to: Option<To>,
    /// Weigh the errors of GGUF blocks by this importance matrix, which `bitmill imatrix` or llama-imatrix wrote.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// How scales and codes of GGUF blocks are chosen; the recipe's own way by default, which is ggml's where it names none.
    #[arg(long, value_name = "HOW")]
    pub search: Option<BlockSearch>,
    /// Store the tensors that match PATTERN as TYPE, whatever the recipe gives them: `*.mlp.down_proj.weight=q8_0`. `*` stands for
    /// any characters, `{0-3,7}` for one of these numbers; TYPE is a GGUF block type, f32, f16 or bf16. May be repeated:
    /// the last one that matches a tensor decides.
    #[arg(long = "tensor-type", value_name = "PATTERN=TYPE")]
    pub tensor_types: Vec<TensorType>,
    /// Keep the feed-forward width where blocks of 256 do not divide it: types then fall back as llama-quantize's do.
    #[arg(long)]
    pub no_pad: bool,
    /// Write safetensors shards of at most this size.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub shard_size: u64,
    /// Split a GGUF file into parts with at most this size of tensors each: OUT-00001-of-0000N.gguf and so on.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub split_max_size: Option<u64>,
    /// Accept a model whose weights are quantized already, at the price of a second loss.
    #[arg(long)]
    pub allow_requantize: bool,
    #[command(flatten)]
    pub calibration: Calibration,
    /// Refuse a run that is predicted to take more memory.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_memory: Option<u64>,
    /// Make it an error where a method cannot be used on a tensor, instead of falling back to rounding its weights alone.
    #[arg(long)]
    pub strict: bool,
}

/// What recipes with calibrated steps run the model over; what they say themselves by default.
#[derive(Debug, Args)]
pub struct Calibration {
    /// Calibrate on this file: UTF-8 text, JSON lines of `text` or `messages`, or Parquet; the default is built in.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Calibrate on this many windows [default: the recipe's, else 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub samples: Option<u32>,
    /// Tokens of a window, at most the model's context [default: the recipe's, else 2048]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub length: Option<u32>,
    /// Hold out this many windows beside them, and measure on those what was lost [default: the recipe's, else 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub held_out: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Compress {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    #[command(flatten)]
    pub how: How,
    /// The file (GGUF) or folder (any other format) to write; of several recipes the folder in which each has an output that bears
    /// its name. Those that are there and whole are left as they are, unless --force is given.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    #[command(flatten)]
    pub over: Over,
}

/// What happens to what is there already, shared by `compress` and `convert`.
#[derive(Debug, Args)]
pub struct Over {
    /// Replace OUT if it is there already, once the new one is complete.
    #[arg(long, short)]
    pub force: bool,
    /// Discard what an interrupted run left for OUT and begin anew; without it the same command goes on where that run stopped.
    #[arg(long)]
    pub restart: bool,
}

#[derive(Debug, Args)]
pub struct Convert {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// The format to write: one .gguf file for llama.cpp, a folder of plain floats, or a folder in which codes in groups stay the codes
    /// that they are, packed in another way.
    #[arg(long, value_name = "FORMAT")]
    pub to: ConvertTo,
    /// Store weights as these floats. `keep`: as they are; GGUF blocks stay what they are in GGUF, codes in groups in
    /// compressed-tensors, gptq and awq, and codes that the format has no form for are unpacked to the dtype that the model was made in.
    #[arg(long, value_name = "DTYPE", default_value = "keep")]
    pub dtype: ConvertDtype,
    /// Write safetensors shards of at most this size.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub shard_size: u64,
    /// Split a GGUF file into parts with at most this size of tensors each: OUT-00001-of-0000N.gguf and so on.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub split_max_size: Option<u64>,
    /// The file (GGUF) or folder (all else) to write.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    #[command(flatten)]
    pub over: Over,
}

/// Writes an importance matrix as llama-imatrix does: for each column of each matrix the sum over tokens of the squares of
/// what it is multiplied with.
#[derive(Debug, Args)]
pub struct Imatrix {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// Run this UTF-8 text; the default is a built-in one, for calibration.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Cut the text into windows of this many tokens, or of the model's context where that is shorter.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub window: u32,
    /// Run only the first N windows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
    /// The form to write [default: what OUT is called: dat for .dat, else gguf]
    #[arg(long, value_name = "FORM")]
    pub form: Option<ImatrixFile>,
    /// The file to write.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace OUT if it is there already.
    #[arg(long, short)]
    pub force: bool,
}

/// Formats that a recipe can be written in.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum To {
    /// One file for llama.cpp.
    Gguf,
    /// A folder for transformers, vLLM and SGLang.
    CompressedTensors,
    /// A folder for GPTQModel and those three; 2, 3, 4 and 8 bits.
    Gptq,
    /// A folder for AutoAWQ and those three; 4 bits.
    Awq,
    /// A folder for transformers with bitsandbytes, and vLLM; `nf4` and `nf4_double`.
    Bitsandbytes,
    /// A folder of plain floats.
    HuggingFace,
}

/// How blocks are searched.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum BlockSearch {
    /// As ggml does, byte for byte.
    Ggml,
    /// From there on, while the squared error falls; several times slower.
    Best,
    /// By what the blocks multiply in a run over calibration tokens: what one column loses, those after it make up for.
    Compensated,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ImatrixFile {
    Gguf,
    Dat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ConvertTo {
    Gguf,
    HuggingFace,
    CompressedTensors,
    Gptq,
    Awq,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ConvertDtype {
    Keep,
    F32,
    F16,
    Bf16,
}

/// What to measure quality on.
#[derive(Debug, Args)]
pub struct On {
    /// Measure perplexity on this UTF-8 text; the default is built in.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Cut the text into windows of this many tokens [default: 256 for the embedded model, else 512]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub window: Option<u32>,
    /// Measure accuracy on this multiple-choice task, JSON lines of context (or prompt), choices and answer; may be
    /// repeated. The default tasks are built in.
    #[arg(long = "task", value_name = "FILE")]
    pub tasks: Vec<PathBuf>,
    /// Measure no task.
    #[arg(long, conflicts_with = "tasks")]
    pub no_tasks: bool,
}

#[derive(Debug, Args)]
pub struct Eval {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// Compare with this dense model: divergence, top-1 agreement, answers that flipped.
    #[arg(long, value_name = "DENSE")]
    pub against: Option<String>,
    #[command(flatten)]
    pub on: On,
    /// Score only the first N windows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
    /// Score only the first N items of each task.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub items: Option<u32>,
    /// Also measure how far the fast path (int8 activations) lies from the exact one.
    #[arg(long)]
    pub fast_path: bool,
    /// Exit with 1 if accuracy falls below this fraction of the dense model's (0 to 1); needs --against and a task.
    #[arg(long, value_name = "FRACTION", requires = "against", conflicts_with = "no_tasks", value_parser = parse_fraction)]
    pub min_recovery: Option<f64>,
    /// Take MODEL for the dense one and keep what it said in this file, for `bitmill watch`: about 1 % of its logits.
    #[arg(long, value_name = "FILE", conflicts_with = "against")]
    pub save_baseline: Option<PathBuf>,
}

/// Prints drift from dense with its confidence and appends it to a history. Drift is the relative increase of perplexity
/// over the baseline's tokens, target by target; KL, top-1 agreement, task flips and the noise floor stand beside it.
#[derive(Debug, Args)]
pub struct Watch {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// The file that `bitmill eval DENSE --save-baseline FILE` wrote.
    #[arg(long, value_name = "FILE")]
    pub baseline: PathBuf,
    /// Measure again after this long (30s, 5m, 1h, 1d), until stopped or --max-drift is missed.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub every: Option<Duration>,
    /// Exit with 1 if perplexity rose by more than this fraction (0.01: 1 %): if the whole 95 % interval lies above it.
    #[arg(long, value_name = "FRACTION", value_parser = parse_fraction)]
    pub max_drift: Option<f64>,
    /// Also measure these prompts, JSON lines of `prompt` or `text`: against DENSE, else against the history's first
    /// entry with the same prompts. Counts for --max-drift too.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// The dense model: prompts are compared with it; without --sensitivity its weights say which tensors deserve more
    /// bits first.
    #[arg(long, value_name = "DENSE")]
    pub against: Option<String>,
    /// Name the tensors that deserve more bits first by this table, which `bitmill search` wrote beside its recipe
    /// (NAME.sensitivity.json). Needs no dense model.
    #[arg(long, value_name = "FILE")]
    pub sensitivity: Option<PathBuf>,
    /// Write the recipe for DENSE that stores no tensor smaller than MODEL and loses least within --budget, by
    /// --sensitivity or else by the errors of the weights.
    #[arg(long, value_name = "FILE", requires_all = ["against", "budget"])]
    pub adjust: Option<PathBuf>,
    /// The adjusted file's size: 40GB, 4.5GiB, or 4.5bpw (bits per weight).
    #[arg(long, value_name = "SIZE", requires = "adjust")]
    pub budget: Option<Budget>,
    /// Leave the baseline's tasks out.
    #[arg(long)]
    pub no_tasks: bool,
    /// The history, one JSON document a line [default: the baseline's name with .history.jsonl]
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// The page that shows it [default: the baseline's name with .history.html]
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// Time a prompt of this many tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub prefill: u32,
    /// Time this many further tokens, one by one.
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub decode: u32,
    /// Repeat this often, after one repetition that is not counted.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
}

#[derive(Debug, Args)]
pub struct Compare {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// Compare this strategy, a preset's name or a TOML file; may be repeated. The default is one of each kind.
    #[arg(long = "recipe", short, value_name = "R")]
    pub recipes: Vec<String>,
    /// Compare this model too, which an earlier run or somebody else made of MODEL: a folder, a .gguf file, hf:OWNER/NAME or
    /// ms:OWNER/NAME. It is measured as it lies, and nothing is written there. May be repeated; its row comes after those of the
    /// recipes, the default ones if none is named.
    #[arg(long, value_name = "PATH")]
    pub also: Vec<String>,
    /// Compress by no recipe: compare only the models of --also.
    #[arg(long, conflicts_with = "recipes", requires = "also")]
    pub no_recipes: bool,
    #[command(flatten)]
    pub on: On,
    /// Score at most N windows a strategy.
    #[arg(long, value_name = "N", default_value_t = 48, conflicts_with = "full", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: u32,
    /// Score at most N items of each task a strategy.
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "full", value_parser = clap::value_parser!(u32).range(1..))]
    pub items: u32,
    /// Score every window and every item.
    #[arg(long)]
    pub full: bool,
    /// Write report.json and report.html here.
    #[arg(long, short, value_name = "DIR", default_value = "bitmill-compare")]
    pub output: PathBuf,
    /// Keep the compressed models in DIR too.
    #[arg(long)]
    pub keep: bool,
    /// Accept a model whose weights are quantized already.
    #[arg(long)]
    pub allow_requantize: bool,
}

/// How tokens are chosen, shared by `generate` and `chat`. Filters apply in this order: repetition penalty,
/// temperature, top-k, top-p, min-p.
#[derive(Debug, Args)]
#[command(next_help_heading = "Choosing tokens")]
pub struct Choosing {
    /// Divide scores by this (0 to 100); 0 takes the likeliest token each time [default: 0; in `chat` what the model's
    /// generation_config.json asks for, as with the next four]
    #[arg(long, short, value_name = "T", value_parser = parse_temperature)]
    pub temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all [default: 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep the fewest likeliest tokens that together have this probability (0 to 1) [default: 1]
    #[arg(long, value_name = "P", value_parser = parse_probability)]
    pub top_p: Option<f32>,
    /// Keep tokens at least this fraction (0 to 1) as likely as the likeliest [default: 0]
    #[arg(long, value_name = "P", value_parser = parse_probability)]
    pub min_p: Option<f32>,
    /// Divide the positive scores of tokens that were there already, and multiply the negative ones (above 0 to 100)
    /// [default: 1]
    #[arg(long, value_name = "X", value_parser = parse_penalty)]
    pub repetition_penalty: Option<f32>,
    /// Compute with 32-bit activations instead of 8-bit ones: slower, and what the quality figures are measured with.
    #[arg(long)]
    pub exact: bool,
    /// Use at most this many positions of the model's context.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub context: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Generate {
    /// A Hugging Face folder or a .gguf file; the embedded model if absent.
    pub model: Option<String>,
    /// Continue this text; without it and --file, stdin.
    #[arg(long, short, value_name = "TEXT", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Continue the text of this UTF-8 file.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Write at most this many tokens.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 128)]
    pub tokens: u32,
    #[command(flatten)]
    pub choosing: Choosing,
}

#[derive(Debug, Args)]
pub struct Chat {
    /// A Hugging Face folder or a .gguf file; the embedded model if absent.
    pub model: Option<String>,
    /// Say this, print the answer, and end; without it each line of stdin is a message.
    #[arg(long, short, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Begin with this system message.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Answer in at most this many tokens.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1024)]
    pub tokens: u32,
    /// Use the chat template in this Jinja file instead of the model's own.
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Set a variable of the template, such as enable_thinking=false; VALUE is JSON, or else a string. May be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(String, serde_json::Value)>,
    #[command(flatten)]
    pub choosing: Choosing,
}

#[derive(Debug, Args)]
pub struct Search {
    /// A Hugging Face folder or a .gguf file; the embedded model if absent.
    pub model: Option<String>,
    /// Stay within this size, every file of the output counted: a size such as 40GB, or bits a weight such as 4.5bpw.
    #[arg(long, short, value_name = "BUDGET")]
    pub budget: Budget,
    /// Write the recipe here, and beside it NAME.sensitivity.json; absent: print the recipe.
    #[arg(long, short, value_name = "FILE.toml")]
    pub output: Option<PathBuf>,
    /// Replace what is there already.
    #[arg(long, short, requires = "output")]
    pub force: bool,
    /// Choose among the forms of this format.
    #[arg(long, value_name = "FORMAT", default_value = "gguf")]
    pub to: SearchFormat,
    /// Measure what a tensor loses by this.
    #[arg(long, value_name = "MEASURE", default_value = "kl")]
    pub sensitivity: SearchMeasure,
    /// Measure on this UTF-8 text; the default is built in. Never the text of an evaluation.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Run this many tokens of it [default: 256 to 1024, fewer for larger models]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub tokens: Option<u32>,
    /// Run every form of every tensor, instead of one and following from the error of the others.
    #[arg(long)]
    pub exhaustive: bool,
    /// Measure in this many rounds; those after the first run each tensor in the form that was chosen for it.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub rounds: u8,
    /// Weigh the errors of GGUF blocks by this importance matrix, in the search and in what its recipe writes.
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Take what the tensors lose from this table of an earlier search of the same model.
    #[arg(long, value_name = "FILE.sensitivity.json")]
    pub table: Option<PathBuf>,
    /// Accept a model whose weights are quantized already, at the price of a second loss.
    #[arg(long)]
    pub allow_requantize: bool,
}

/// Formats with forms to choose among.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SearchFormat {
    /// Block types, for llama.cpp.
    Gguf,
    /// Groups of 2 to 8 bits, for transformers, vLLM and SGLang.
    CompressedTensors,
}

/// What the loss of a tensor is measured by.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SearchMeasure {
    /// Divergence from the dense model when it alone is quantized.
    Kl,
    /// Squared error of its output.
    Output,
    /// Squared error of its weights: reads no text, runs no model.
    Weights,
}

#[derive(Debug, Args)]
pub struct Recipes {
    /// Print this preset as a recipe file to start from.
    pub name: Option<String>,
}

/// Prints where the model lies. A broken transfer goes on where it stopped when the command is run again; every file's
/// length and hash are checked before it is put in place. Variables: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE,
/// HF_HUB_OFFLINE; MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN, MODELSCOPE_CACHE; HTTPS_PROXY, SSL_CERT_FILE.
#[derive(Debug, Args)]
pub struct Pull {
    /// hf:OWNER/NAME or ms:OWNER/NAME, with @REVISION for a branch, tag or commit, with /FILE.gguf for one GGUF file.
    pub model: String,
    /// Fetch the files that match this pattern (`*` matches any characters) instead of safetensors, config and
    /// tokenizer; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
}

/// A number of `range`, which `expected` describes.
fn parse_within(text: &str, range: std::ops::RangeInclusive<f32>, expected: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| expected.to_owned())
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    parse_within(text, 0.0..=100.0, "a temperature from 0 to 100, such as 0.7")
}

fn parse_probability(text: &str) -> Result<f32, String> {
    parse_within(text, 0.0..=1.0, "a fraction from 0 to 1, such as 0.9")
}

fn parse_penalty(text: &str) -> Result<f32, String> {
    parse_within(text, 0.001..=100.0, "a factor above 0 and up to 100, such as 1.1")
}

/// `NAME=VALUE`.
fn parse_setting(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("a setting is NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

/// `30s`, `5m`, `1h`, `1d`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || "a time is a number and a unit from s, m, h, d, such as 1h; at least 1s".to_owned();
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds) {
        Some(seconds @ 1..=31_536_000) => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong()),
    }
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(fraction),
        _ => Err("a fraction from 0 to 1, such as 0.99".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_are_json_or_else_strings() {
        for (text, name, value) in [
            ("enable_thinking=false", "enable_thinking", serde_json::json!(false)),
            ("date=1 May", "date", serde_json::json!("1 May")),
            ("n=3", "n", serde_json::json!(3)),
            ("empty=", "empty", serde_json::json!("")),
        ] {
            assert_eq!(parse_setting(text), Ok((name.to_owned(), value)));
        }
        assert!(parse_setting("nothing").is_err());
        assert!(
            parse_temperature("NaN").is_err()
                && parse_penalty("0").is_err()
                && parse_probability("1.1").is_err()
        );
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "h", "0s", "1", "1w", "-1h", "1.5h", "99999999999999999999d", "é"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
