//! `bitmill eval`.

use bitmill_kernels::Isa;
use bitmill_pipeline::{
    Dense, Material, Progress as _, Request, Subject, TaskChoice, measure_quality, own_weights,
    record_baseline, size_on_disk,
};
use bitmill_report::{EvalReport, EvalSchema, Machine, eval_text, timestamp, to_json};

use crate::args::{Eval, Global, On};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn eval(args: &Eval, global: &Global) -> Result<Outcome, Failure> {
    let isa = Isa::best();
    let checkpoint = models::open(args.model.as_deref())?;
    let subject = Subject::load(&checkpoint)?;
    let request = request(&args.on, args.windows, args.items);
    let bar = Bar::new();
    let dense = args.against.as_deref().map(|name| models::open(Some(name))).transpose()?;
    let dense_subject = dense.as_ref().map(Subject::load).transpose()?;
    let material = Material::gather(dense_subject.as_ref().unwrap_or(&subject), &request)?;
    let dense_side =
        dense_subject.as_ref().map(|dense| Dense::measure(dense, &material, isa, &bar)).transpose()?;
    let quality = measure_quality(&subject, &material, dense_side.as_ref(), isa, &bar)?;
    let kl_fast_path = match args.fast_path {
        true => {
            bar.begin(&format!("{}: fast path", subject.name));
            Some(bitmill_eval::fast_path_kl(&subject.model, isa, &material.windows)?)
        }
        false => None,
    };
    let saved = match &args.save_baseline {
        Some(path) => {
            let source = args.model.as_deref().unwrap_or(bitmill_pipeline::embedded::NAME);
            let baseline = record_baseline((&checkpoint, source), &subject, &request, &material, isa, &bar)?;
            let bytes = baseline.to_bytes()?;
            bitmill_pipeline::write_file(path, &bytes)?;
            Some((path, bytes.len(), baseline.share(bytes.len())))
        }
        None => None,
    };
    bar.end();
    if let Some((path, bytes, share)) = saved {
        let size = bitmill_report::size(bytes as u64);
        eprintln!("baseline in {}: {size}, {:.2} % of the full logits", path.display(), 100.0 * share);
    }
    let bytes = size_on_disk(&checkpoint);
    let dense_quality = dense_side.as_ref().map(Dense::quality).transpose()?;
    let report = EvalReport {
        schema: EvalSchema,
        version: env!("CARGO_PKG_VERSION").into(),
        created: timestamp(),
        model: subject.name.clone(),
        against: dense_subject.as_ref().map(|dense| dense.name.clone()),
        text: material.text.clone(),
        bytes,
        ratio: dense.as_ref().map(|dense| size_on_disk(dense) as f64 / bytes.max(1) as f64),
        bits_per_weight: bytes as f64 * 8.0 / own_weights(&checkpoint).max(1) as f64,
        recovery: dense_quality.and_then(|dense| quality.recovery(&dense)),
        quality,
        kl_fast_path,
        machine: Machine::read(isa.name(), rayon::current_num_threads()),
    };
    stdout::print(&if global.json { to_json(&report) } else { eval_text(&report) })?;
    gate(args.min_recovery, report.recovery)
}

/// The flags about text and tasks as a request.
pub fn request(on: &On, windows: Option<u32>, items: Option<u32>) -> Request {
    let tasks = if on.no_tasks {
        TaskChoice::Nothing
    } else if on.tasks.is_empty() {
        TaskChoice::BuiltIn
    } else {
        TaskChoice::Files(on.tasks.clone())
    };
    Request {
        text: on.text.clone(),
        window: on.window.map(|window| window as usize),
        windows: windows.map(|windows| windows as usize),
        tasks,
        items: items.map(|items| items as usize),
    }
}

fn gate(min_recovery: Option<f64>, recovery: Option<f64>) -> Result<Outcome, Failure> {
    match (min_recovery, recovery) {
        (Some(_), None) => Err(Failure::plain(
            "--min-recovery: the dense model got no answer right, so there is nothing to recover",
        )),
        (Some(least), Some(found)) if found < least => {
            Ok(Outcome::Missed(format!("recovery {found:.4}, and at least {least} was asked for")))
        }
        _ => Ok(Outcome::Done),
    }
}
