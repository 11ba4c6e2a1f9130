//! `bitmill inspect`.

use std::fmt::Write as _;

use bitmill_checkpoint::{Checkpoint, Format, ModelConfig, TensorInfo};
use bitmill_pipeline::{Plan, PlanOptions, active_weights, n_weights, own_weights, preset, size_on_disk};
use bitmill_report::{size, weights};

use crate::args::{Global, Inspect};
use crate::failure::Failure;
use crate::{Outcome, models, stdout};

/// Presets whose sizes show what would fit where.
const SHOWN: [&str; 5] = ["q8_0", "q4_k_m", "q4_0", "w8a16", "w4a16_g128"];

/// Memory sizes that machines and accelerators come with, in GiB.
const MEMORY_GIB: [u64; 12] = [4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192];

pub fn inspect(args: &Inspect, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    if global.json {
        stdout::print_json(&document(&checkpoint))?;
    } else {
        stdout::print(&text(&checkpoint, args.tensors))?;
    }
    Ok(Outcome::Done)
}

fn weights_of(info: &TensorInfo) -> u64 {
    info.shape.iter().map(|&n| n as u64).product()
}

/// Encoding, tensors, weights, bytes: in order of first appearance.
fn by_encoding(checkpoint: &Checkpoint) -> Vec<(String, usize, u64, u64)> {
    let mut kinds: Vec<(String, usize, u64, u64)> = Vec::new();
    for info in checkpoint.tensors() {
        let name = info.encoding.to_string();
        match kinds.iter_mut().find(|(seen, ..)| *seen == name) {
            Some((_, count, weights, bytes)) => {
                *count += 1;
                *weights += weights_of(info);
                *bytes += info.stored_bytes;
            }
            None => kinds.push((name, 1, weights_of(info), info.stored_bytes)),
        }
    }
    kinds
}

/// Bytes of keys and values that one token leaves in the cache, at 16 bits each.
fn cache_bytes_per_token(checkpoint: &Checkpoint) -> u64 {
    let config = checkpoint.config();
    (2 * config.n_layers * config.n_kv_heads * config.head_dim * 2) as u64
}

/// The smallest usual memory that holds `bytes`, a cache of 4096 tokens and a tenth more for the runtime.
fn fits_in_gib(checkpoint: &Checkpoint, bytes: u64) -> Option<u64> {
    let needed = (bytes + 4096 * cache_bytes_per_token(checkpoint)) as f64 * 1.1;
    MEMORY_GIB.into_iter().find(|gib| (gib << 30) as f64 >= needed)
}

/// Strategy, bytes or why not.
fn sizes(checkpoint: &Checkpoint) -> Vec<(String, Result<u64, String>)> {
    let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
    let mut sizes = vec![("as it is".to_owned(), Ok(size_on_disk(checkpoint)))];
    for name in SHOWN {
        let Some(recipe) = preset(name) else { continue };
        let planned = Plan::new(checkpoint, &recipe, &options);
        sizes.push((
            name.to_owned(),
            planned.map(|plan| plan.output_bytes).map_err(|error| error.to_string()),
        ));
    }
    sizes
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::HuggingFace => "Hugging Face folder",
        Format::Gguf => "GGUF",
    }
}

/// What positions mean to the model, and which it sees.
fn positions(config: &ModelConfig) -> String {
    let mut text = format!("RoPE: theta {}, {}", config.rope.theta, config.rope.scaling);
    if let Some(window) = &config.window {
        let sliding = window.layers.iter().filter(|slides| **slides).count();
        // A String takes every write.
        let _ =
            write!(text, "; a window of {} tokens in {sliding} of {} layers", window.tokens, config.n_layers);
    }
    if let Some(original) = config.log_n {
        let _ = write!(text, "; log-n attention past {original} tokens");
    }
    text
}

fn text(checkpoint: &Checkpoint, tensors: bool) -> String {
    let config = checkpoint.config();
    let total = n_weights(checkpoint);
    let bytes = size_on_disk(checkpoint);
    let mut text = String::new();
    // A String takes every write, here and below.
    let _ = writeln!(
        text,
        "{}: {} ({}), {} weights, {}, {:.2} bits/weight",
        checkpoint.name(),
        config.family.class(),
        format_name(checkpoint.format()),
        weights(total),
        size(bytes),
        bytes as f64 * 8.0 / own_weights(checkpoint).max(1) as f64,
    );
    let _ = writeln!(
        text,
        "{} layers, hidden {}, {} heads of {} ({} for keys and values), feed-forward {}, vocabulary {}, {} head, context {}",
        config.n_layers,
        config.hidden_size,
        config.n_heads,
        config.head_dim,
        config.n_kv_heads,
        config.intermediate_size,
        config.vocab_size,
        if config.tied { "tied" } else { "untied" },
        config.max_positions,
    );
    let _ = writeln!(text, "{}", positions(config));
    if let Some(experts) = &config.experts {
        let shared = match experts.shared_width {
            Some(width) => format!(" and a shared one of {width}"),
            None => String::new(),
        };
        let _ = writeln!(
            text,
            "{} experts of width {} in {} layers, {} for a token{shared}: {} of the weights are active",
            experts.count,
            experts.width,
            config.n_layers - experts.dense_layers.len(),
            experts.used,
            weights(active_weights(checkpoint)),
        );
    }
    let _ =
        writeln!(text, "one token in the cache: {} at 16 bits\n", size(cache_bytes_per_token(checkpoint)));
    for (name, count, n, bytes) in by_encoding(checkpoint) {
        let _ =
            writeln!(text, "{name:<24} {count:>5} tensors  {:>9} weights  {:>9}", weights(n), size(bytes));
    }
    let _ = writeln!(text, "\n{:<12}  {:>9}  fits (with 4096 tokens of context) in", "strategy", "size");
    for (name, bytes) in sizes(checkpoint) {
        match bytes {
            Ok(bytes) => {
                let fits = fits_in_gib(checkpoint, bytes).map_or_else(
                    || format!("more than {} GiB", MEMORY_GIB[MEMORY_GIB.len() - 1]),
                    |gib| format!("{gib} GiB"),
                );
                let _ = writeln!(text, "{name:<12}  {:>9}  {fits}", size(bytes));
            }
            Err(error) => {
                let _ = writeln!(text, "{name:<12}  {:>9}  {error}", "-");
            }
        }
    }
    if tensors {
        text.push('\n');
        for info in checkpoint.tensors() {
            let shape = info.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            let _ = writeln!(
                text,
                "{:<48} {shape:>15}  {:<20} {:>9}",
                info.name,
                info.encoding,
                size(info.stored_bytes)
            );
        }
    }
    text
}

fn document(checkpoint: &Checkpoint) -> serde_json::Value {
    let config = checkpoint.config();
    let total = n_weights(checkpoint);
    let bytes = size_on_disk(checkpoint);
    let tensors: Vec<_> = checkpoint
        .tensors()
        .iter()
        .map(|info| {
            serde_json::json!({
                "name": info.name, "shape": info.shape, "encoding": info.encoding.to_string(), "bytes": info.stored_bytes,
            })
        })
        .collect();
    let strategies: Vec<_> = sizes(checkpoint)
        .into_iter()
        .skip(1)
        .map(|(strategy, bytes)| match bytes {
            Ok(bytes) => serde_json::json!({
                "strategy": strategy, "bytes": bytes, "fits_gib": fits_in_gib(checkpoint, bytes),
            }),
            Err(error) => serde_json::json!({"strategy": strategy, "error": error}),
        })
        .collect();
    serde_json::json!({
        "schema": "bitmill.inspect/1",
        "version": env!("CARGO_PKG_VERSION"),
        "model": checkpoint.name(),
        "format": match checkpoint.format() { Format::HuggingFace => "huggingface", Format::Gguf => "gguf" },
        "family": config.family.name(),
        "architecture": config.family.class(),
        "layers": config.n_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "experts": config.experts.as_ref().map(|experts| serde_json::json!({
            "count": experts.count,
            "used": experts.used,
            "width": experts.width,
            "shared_width": experts.shared_width,
            "layers": config.n_layers - experts.dense_layers.len(),
        })),
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "tied": config.tied,
        "max_positions": config.max_positions,
        "rope_theta": config.rope.theta,
        "rope_scaling": config.rope.scaling.to_string(),
        "window": config.window.as_ref().map(|window| window.tokens),
        "window_layers": config.window.as_ref().map(|window| &window.layers),
        "weights": total,
        "active_weights": active_weights(checkpoint),
        "bytes": bytes,
        "bits_per_weight": bytes as f64 * 8.0 / own_weights(checkpoint).max(1) as f64,
        "cache_bytes_per_token": cache_bytes_per_token(checkpoint),
        "strategies": strategies,
        "tensors": tensors,
    })
}
