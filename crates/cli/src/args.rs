//! The command line, as clap reads it and `--help` shows it.

use std::path::PathBuf;

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
    /// Seed everything random: the token ids that `bench` times.
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
    /// List the presets, or print one as a recipe file.
    Recipes(Recipes),
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
    /// A preset's name (see `bitmill recipes`) or a TOML file.
    #[arg(long, short, value_name = "R")]
    pub recipe: String,
    /// Write safetensors shards of at most this size.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub shard_size: u64,
    /// Accept a model whose weights are quantized already, at the price of a second loss.
    #[arg(long)]
    pub allow_requantize: bool,
}

#[derive(Debug, Args)]
pub struct Compress {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    #[command(flatten)]
    pub how: How,
    /// The file (GGUF) or folder (compressed-tensors) to write.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace OUT if it is there already, once the new one is complete.
    #[arg(long, short)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Convert {
    /// A Hugging Face folder, a .gguf file, hf:OWNER/NAME or ms:OWNER/NAME; the embedded model if absent.
    pub model: Option<String>,
    /// The format to write: one .gguf file for llama.cpp, or a folder of safetensors for everything else.
    #[arg(long, value_name = "FORMAT")]
    pub to: ConvertTo,
    /// Store weights as these floats. `keep`: as they are; GGUF blocks stay what they are in GGUF, and codes that the
    /// format has no form for are unpacked to the dtype that the model was made in.
    #[arg(long, value_name = "DTYPE", default_value = "keep")]
    pub dtype: ConvertDtype,
    /// Write safetensors shards of at most this size.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub shard_size: u64,
    /// The file (GGUF) or folder (hugging-face) to write.
    #[arg(long, short, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace OUT if it is there already, once the new one is complete.
    #[arg(long, short)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ConvertTo {
    Gguf,
    HuggingFace,
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

/// `5GB`, `500MB`, `4GiB`, or plain bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 =
        text[..digits].parse().map_err(|_| "a size is a number and a unit, such as 5GB".to_owned())?;
    let unit: f64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("`{other}` is no unit: B, KB, MB, GB, KiB, MiB, GiB")),
    };
    let bytes = number * unit;
    if !(1024.0..=1e15).contains(&bytes) {
        return Err("a shard has at least 1 KiB and at most 1 PB".into());
    }
    Ok(bytes as u64)
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
    fn sizes_take_both_kinds_of_units() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(parse_size("2048"), Ok(2048));
        for bad in ["", "GB", "5 parsecs", "-1GB", "0", "1e9GB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
