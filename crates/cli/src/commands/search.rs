//! `bitmill search`.

use std::path::Path;

use bitmill_pipeline::{
    Format, Measure, PlanOptions, Progress as _, SearchOptions, SearchReport, Sensitivity, write_file,
};

use crate::args::{Global, Search, SearchFormat, SearchMeasure};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn search(args: &Search, global: &Global) -> Result<Outcome, Failure> {
    if let Some(output) = &args.output {
        refuse_collisions(output, args.force)?;
    }
    if args.imatrix.is_some() && matches!(args.to, SearchFormat::CompressedTensors) {
        return Err(Failure::new(
            "an importance matrix weighs GGUF blocks, and compressed-tensors has none",
            "search with --to gguf, or without --imatrix",
        ));
    }
    let checkpoint = models::open(args.model.as_deref())?;
    let options = SearchOptions {
        name: name(args),
        format: match args.to {
            SearchFormat::Gguf => Format::Gguf,
            SearchFormat::CompressedTensors => Format::CompressedTensors,
        },
        measure: match args.sensitivity {
            SearchMeasure::Kl => Measure::Kl,
            SearchMeasure::Output => Measure::Output,
            SearchMeasure::Weights => Measure::Weights,
        },
        calibration: args.calibration.clone(),
        tokens: args.tokens.map(|tokens| tokens as usize),
        exhaustive: args.exhaustive,
        rounds: args.rounds.into(),
        imatrix: args.imatrix.clone(),
        table: args.table.as_deref().map(Sensitivity::read).transpose()?,
        plan: PlanOptions { allow_requantize: args.allow_requantize, ..PlanOptions::default() },
        ..SearchOptions::new(args.budget)
    };
    let bar = Bar::new();
    let found = bitmill_pipeline::search(&checkpoint, &options, &bar);
    bar.end();
    let found = found?;
    if let Some(output) = &args.output {
        write_file(output, found.text.as_bytes())?;
        found.table.write(&Sensitivity::beside(output))?;
    }
    if global.json {
        // Strings, numbers and lists of them always have a JSON form.
        stdout::print_json(&serde_json::to_value(&found.report).unwrap_or_default())?;
    } else if let Some(output) = &args.output {
        stdout::print(&summary(&found.report, output))?;
    } else {
        stdout::print(&found.text)?;
    }
    Ok(Outcome::Done)
}

/// The recipe's name: its file's, or what was asked for.
fn name(args: &Search) -> String {
    let stem = args.output.as_deref().and_then(Path::file_stem);
    stem.map_or_else(|| format!("mixed {}", args.budget), |stem| stem.to_string_lossy().into())
}

fn refuse_collisions(output: &Path, force: bool) -> Result<(), Failure> {
    let table = Sensitivity::beside(output);
    for path in [output, &table] {
        if path.is_dir() || (path.exists() && !force) {
            return Err(Failure::new(
                format!("{} is there already", path.display()),
                "replace it with --force, or write elsewhere",
            ));
        }
    }
    Ok(())
}

fn summary(report: &SearchReport, output: &Path) -> String {
    let size = bitmill_report::size;
    let mut text = format!(
        "{}: {} of {} allowed, {:.3} bits/weight, {:.1} s\n",
        output.display(),
        size(report.bytes),
        size(report.budget_bytes),
        report.bits_per_weight,
        report.seconds,
    );
    match (report.predicted_kl, report.measured_kl) {
        (Some(predicted), Some(measured)) => text.push_str(&format!(
            "KL to dense on {} tokens of the {}: {predicted:.5} predicted, {measured:.5} measured\n",
            report.tokens, report.calibration,
        )),
        (None, Some(measured)) => text.push_str(&format!(
            "KL to dense on {} tokens of the {}: {measured:.5} measured\n",
            report.tokens, report.calibration,
        )),
        _ => {}
    }
    for (number, round) in report.rounds.iter().enumerate().skip(1) {
        text.push_str(&format!(
            "round {}: {:.5} measured, {}\n",
            number + 1,
            round.measured_kl,
            if round.kept { "kept" } else { "not better, dropped" },
        ));
    }
    if report.gap > 0.0 {
        text.push_str(&format!(
            "another assignment could be predicted to lose {:.2} % less at most\n",
            100.0 * report.gap / report.predicted_loss
        ));
    } else {
        text.push_str("no other assignment within the budget is predicted to lose less\n");
    }
    text.push_str(&format!("bitmill compress MODEL --recipe {} -o OUT writes it\n", output.display()));
    text
}
