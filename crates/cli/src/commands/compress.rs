//! `bitmill compress`.

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{Plan, Progress as _};

use super::plan::planned;
use crate::args::{Compress, Global};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn compress(args: &Compress, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let plan = planned(&checkpoint, &args.how)?;
    write(&checkpoint, &plan, &args.output, args.force, "", global)
}

/// Runs `plan` and prints what came of it, with `notes` (whole lines) about the plan.
pub fn write(
    checkpoint: &Checkpoint,
    plan: &Plan,
    output: &Path,
    force: bool,
    notes: &str,
    global: &Global,
) -> Result<Outcome, Failure> {
    let overwrite = if force { Overwrite::Force } else { Overwrite::Refuse };
    let bar = Bar::new();
    let record = bitmill_pipeline::compress(checkpoint, plan, output, overwrite, &bar);
    bar.end();
    let record = record?;
    if global.json {
        let mut document = record.document;
        document["output"] = output.display().to_string().into();
        document["seconds"] = record.seconds.into();
        document["planned_peak_bytes"] = plan.peak_bytes.into();
        document["peak_bytes"] = bitmill_bench::peak_bytes().into();
        stdout::print_json(&document)?;
    } else {
        let size = bitmill_report::size;
        let peak = bitmill_bench::peak_bytes()
            .map_or_else(String::new, |bytes| format!(", peak memory {}", size(bytes)));
        stdout::print(&format!(
            "{}: {} -> {} ({}), {:.2} bits/weight, {:.1} s{peak}\n{notes}every tensor was read back and is what was decided",
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
