//! `bitmill compress`.

use bitmill_checkpoint::Overwrite;
use bitmill_pipeline::Progress as _;

use super::plan::planned;
use crate::args::{Compress, Global};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn compress(args: &Compress, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let plan = planned(&checkpoint, &args.how)?;
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let bar = Bar::new();
    let record = bitmill_pipeline::compress(&checkpoint, &plan, &args.output, overwrite, &bar);
    bar.end();
    let record = record?;
    if global.json {
        let mut document = record.document;
        document["output"] = args.output.display().to_string().into();
        document["seconds"] = record.seconds.into();
        document["peak_bytes"] = bitmill_bench::peak_bytes().into();
        stdout::print_json(&document)?;
    } else {
        let size = bitmill_report::size;
        let peak = bitmill_bench::peak_bytes()
            .map_or_else(String::new, |bytes| format!(", peak memory {}", size(bytes)));
        stdout::print(&format!(
            "{}: {} -> {} as {}, {:.2} bits/weight, {:.1} s{peak}\nevery packed tensor was read back and is what was decided",
            args.output.display(),
            size(plan.source_bytes),
            size(plan.output_bytes),
            plan.recipe.name,
            plan.bits_per_weight,
            record.seconds,
        ))?;
    }
    Ok(Outcome::Done)
}
