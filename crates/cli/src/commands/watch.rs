//! `bitmill watch`.

use std::path::{Path, PathBuf};
use std::thread;

use bitmill_pipeline::{
    Progress as _, Sensitivity, WatchOptions, append_history, n_weights, read_baseline, read_history,
    watch as measure, write_file,
};
use bitmill_report::{to_json, watch_html, watch_text};

use crate::args::{Global, Watch};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn watch(args: &Watch, global: &Global) -> Result<Outcome, Failure> {
    let baseline = read_baseline(&args.baseline)?;
    let history_file = args.history.clone().unwrap_or_else(|| beside(&args.baseline, "history.jsonl"));
    let page = args.html.clone().unwrap_or_else(|| beside(&args.baseline, "history.html"));
    let dense = args.against.as_deref().map(|name| models::open(Some(name))).transpose()?;
    let table = args.sensitivity.as_deref().map(Sensitivity::read).transpose()?;
    let options = WatchOptions {
        dense: dense.as_ref(),
        sensitivity: table.as_ref(),
        prompts: args.prompts.clone(),
        no_tasks: args.no_tasks,
        max_drift: args.max_drift,
    };
    loop {
        // Opened anew each time: the file may have been replaced meanwhile.
        let checkpoint = models::open(args.model.as_deref())?;
        let mut history = read_history(&history_file)?;
        let bar = Bar::new();
        let report = measure(&checkpoint, &baseline, &history, &options, &bar);
        bar.end();
        let report = report?;
        append_history(&history_file, &report)?;
        history.push(report.clone());
        write_file(&page, watch_html(&history).as_bytes())?;
        if let (Some(out), Some(dense)) = (&args.adjust, &dense) {
            let Some(budget) = args.budget else {
                return Err(Failure::plain("--adjust needs a --budget"));
            };
            let budget = budget.bytes(n_weights(&checkpoint));
            bar.begin(&format!("{}: more bits", report.model));
            let name = out.file_stem().map_or_else(|| "adjusted".into(), |stem| stem.to_string_lossy());
            let recipe = bitmill_pipeline::adjust(&checkpoint, dense, table.as_ref(), &name, budget, &bar);
            bar.end();
            write_file(out, recipe?.to_toml().as_bytes())?;
        }
        if global.json {
            stdout::print(&to_json(&report))?;
        } else {
            let recipe =
                args.adjust.as_ref().map_or_else(String::new, |out| format!(", recipe in {}", out.display()));
            stdout::print(&format!(
                "{}\nhistory in {}, page in {}{recipe}",
                watch_text(&report),
                history_file.display(),
                page.display()
            ))?;
        }
        if report.missed {
            let bound = report.max_drift.unwrap_or_default();
            return Ok(Outcome::Missed(format!("perplexity rose by more than {} %", 100.0 * bound)));
        }
        match args.every {
            Some(pause) => thread::sleep(pause),
            None => return Ok(Outcome::Done),
        }
    }
}

/// `F.KIND` for a baseline F.
fn beside(baseline: &Path, kind: &str) -> PathBuf {
    let mut path = baseline.as_os_str().to_owned();
    path.push(format!(".{kind}"));
    path.into()
}
