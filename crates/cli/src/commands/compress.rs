//! `bitmill compress`.

use std::path::{Path, PathBuf};

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{Continuation, Format, HeldOut, LayerSeconds, Plan, Progress as _};

use super::plan::planned;
use crate::args::{Compress, Global, Over};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn compress(args: &Compress, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let plans = planned(&checkpoint, &args.how, global)?;
    match plans.as_slice() {
        [plan] => write(&checkpoint, plan, &args.output, &args.over, "", global),
        several => write_all(&checkpoint, several, args, global),
    }
}

/// Runs several plans in one pass, each to an output in the folder that bears its recipe's name, and prints what came of them.
fn write_all(
    checkpoint: &Checkpoint,
    plans: &[Plan],
    args: &Compress,
    global: &Global,
) -> Result<Outcome, Failure> {
    let overwrite = if args.over.force { Overwrite::Force } else { Overwrite::Refuse };
    std::fs::create_dir_all(&args.output).map_err(|error| {
        Failure::new(
            format!("{}: {error}", args.output.display()),
            "with several recipes --output is the folder that their outputs go to",
        )
    })?;
    let mut outputs: Vec<PathBuf> = Vec::with_capacity(plans.len());
    for plan in plans {
        let name = &plan.recipe.name;
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(Failure::new(
                format!("`{name}` is no name for an output"),
                "give the recipe a `name` without slashes that does not begin with a dot",
            ));
        }
        let end = if plan.recipe.format == Format::Gguf { ".gguf" } else { "" };
        outputs.push(args.output.join(format!("{name}{end}")));
        if args.over.restart {
            bitmill_checkpoint::discard_partial(&outputs[outputs.len() - 1])?;
        }
    }
    let all: Vec<(&Plan, &Path)> =
        plans.iter().zip(&outputs).map(|(plan, path)| (plan, path.as_path())).collect();
    let bar = Bar::stoppable()?;
    let records = bitmill_pipeline::compress_all(checkpoint, &all, overwrite, &bar);
    bar.end();
    let records = records?;
    let peak = bitmill_bench::peak_bytes();
    if global.json {
        let documents = records.into_iter().zip(&all).map(|(record, (_, output))| {
            let mut document = record.document;
            document["output"] = output.display().to_string().into();
            document["resumed_tensors"] = record.resumed.into();
            document["taken_over"] = record.taken_over.into();
            document["layer_seconds"] = serde_json::json!(record.layer_seconds);
            document
        });
        stdout::print_json(&serde_json::json!({
            "schema": "bitmill.compress_all/1",
            "version": env!("CARGO_PKG_VERSION"),
            "planned_peak_bytes": Plan::joint_peak_bytes(checkpoint, plans),
            "peak_bytes": peak,
            "outputs": documents.collect::<Vec<_>>(),
        }))?;
        return Ok(Outcome::Done);
    }
    let size = bitmill_report::size;
    let mut text = String::new();
    for (record, (plan, output)) in records.iter().zip(&all) {
        text += &format!(
            "{}: {} -> {} ({}), {:.2} bits/weight\n{}",
            output.display(),
            size(plan.source_bytes),
            size(plan.output_bytes),
            plan.recipe.name,
            plan.bits_per_weight,
            quality(&record.document),
        );
    }
    let taken: usize = records.iter().map(|record| record.taken_over).sum();
    if taken > 0 {
        text += &format!(
            "{taken} statistics and layers of the dense model were taken over from one recipe by another\n"
        );
    }
    if let Some(peak) = peak {
        text += &format!("peak memory {}; ", size(peak));
    }
    stdout::print(&format!("{text}every tensor was read back and is what was decided"))?;
    Ok(Outcome::Done)
}

/// Runs `plan` and prints what came of it, with `notes` (whole lines) about the plan.
pub fn write(
    checkpoint: &Checkpoint,
    plan: &Plan,
    output: &Path,
    over: &Over,
    notes: &str,
    global: &Global,
) -> Result<Outcome, Failure> {
    let overwrite = if over.force { Overwrite::Force } else { Overwrite::Refuse };
    if over.restart {
        bitmill_checkpoint::discard_partial(output)?;
    }
    let bar = Bar::stoppable()?;
    let record = bitmill_pipeline::compress(checkpoint, plan, output, overwrite, &bar);
    bar.end();
    let record = record?;
    if global.json {
        let mut document = record.document;
        document["output"] = output.display().to_string().into();
        document["resumed_tensors"] = record.resumed.into();
        document["seconds"] = record.seconds.into();
        document["planned_peak_bytes"] = plan.peak_bytes.into();
        document["peak_bytes"] = bitmill_bench::peak_bytes().into();
        document["layer_seconds"] = serde_json::json!(record.layer_seconds);
        stdout::print_json(&document)?;
    } else {
        let size = bitmill_report::size;
        let peak = bitmill_bench::peak_bytes()
            .map_or_else(String::new, |bytes| format!(", peak memory {}", size(bytes)));
        let resumed = match record.resumed {
            0 => String::new(),
            resumed => {
                format!("went on after {resumed} of {} tensors of an interrupted run\n", plan.tensors.len())
            }
        };
        let parts = match record.written.files.as_slice() {
            [(first, _), .., (last, _)] if plan.recipe.format == Format::Gguf => {
                format!("parts {} to {}\n", first.display(), last.display())
            }
            _ => String::new(),
        };
        let quality = quality(&record.document);
        let layers = record.layer_seconds.as_ref().map_or_else(String::new, layers);
        stdout::print(&format!(
            "{}: {} -> {} ({}), {:.2} bits/weight, {:.1} s{peak}\n{layers}{parts}{resumed}{notes}{quality}every tensor was read back and is what was decided",
            output.display(),
            size(plan.source_bytes),
            size(plan.output_bytes),
            plan.recipe.name,
            plan.bits_per_weight,
            record.seconds,
        ))?;
    }
    Ok(Outcome::Done)
}

/// What a layer took, and what of it went where.
fn layers(seconds: &LayerSeconds) -> String {
    let LayerSeconds { layers, whole, forward, statistics, factor, codes, reshaping } = seconds;
    let reshaping = if *reshaping > 0.0 { format!(", reshaping {reshaping:.2}") } else { String::new() };
    format!(
        "a layer took {whole:.2} s on average of {layers}: forward {forward:.2}, statistics {statistics:.2}, factors {factor:.2}, codes {codes:.2}{reshaping}\n"
    )
}

/// How many of `tensors` `more` is said of, and that of the first; nothing if there are none.
fn such_as(
    tensors: &[serde_json::Value],
    what: &str,
    more: impl Fn(&serde_json::Value) -> Option<String>,
) -> String {
    let mut told = tensors.iter().filter_map(|tensor| Some((tensor, more(tensor)?)));
    let Some((first, more)) = told.next() else { return String::new() };
    let name = first["name"].as_str().unwrap_or_default();
    format!("{} tensors {what}, such as {name}{more}\n", 1 + told.count())
}

/// What the record says of windows that were held out, and of tensors whose method could not be used.
fn quality(document: &serde_json::Value) -> String {
    let held_out: Option<HeldOut> = serde_json::from_value(document["held_out"].clone()).ok();
    let unknown = match document["held_out"].is_object() {
        true => "held out: what the models put out is not finite, so nothing is known of the quality\n",
        false => "",
    };
    let mut text = held_out.map_or_else(|| unknown.to_owned(), |held_out| {
        let continuation = held_out.continuation.map_or_else(String::new, |Continuation { prompt, text }| {
            format!("it goes on by itself after the bar: {prompt:?} | {text:?}\n")
        });
        format!(
            "held out, {} tokens: KL to dense {:.3e}, perplexity {:.4} (dense {:.4}), same likeliest token {:.1} %\n{continuation}",
            held_out.targets,
            held_out.kl_mean,
            held_out.perplexity,
            held_out.dense_perplexity,
            100.0 * held_out.top1_agreement,
        )
    });
    let tensors = document["tensors"].as_array().map_or(&[][..], Vec::as_slice);
    let why = |why: &serde_json::Value| Some(format!(": {}", why.as_str()?));
    text +=
        &such_as(tensors, "were rounded by their weights alone", |tensor| why(&tensor["method"]["fallback"]));
    text += &such_as(tensors, "keep their features' own scales", |tensor| {
        why(&tensor["method"]["scaled"]["fallback"])
    });
    text += &such_as(tensors, "fell back for outliers", |tensor| {
        let said = |key: &str| tensor[key].as_str().unwrap_or_default();
        tensor["outliers"].is_object().then(|| format!(" to {}: {}", said("to"), said("reason")))
    });
    let beyond = document["inputs_beyond_f16"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(first) = beyond.first() {
        text += &format!(
            "note: inputs of {} tensors reach beyond what f16 holds, such as {}: run the model in bf16\n",
            beyond.len(),
            first.as_str().unwrap_or_default(),
        );
    }
    text
}
