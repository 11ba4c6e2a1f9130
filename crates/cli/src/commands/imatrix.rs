//! `bitmill imatrix`.

use std::time::Instant;

use bitmill_checkpoint::{ImatrixForm, Overwrite, Target};
use bitmill_pipeline::{ImatrixOptions, Progress as _};

use crate::args::{Global, Imatrix, ImatrixFile};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn imatrix(args: &Imatrix, global: &Global) -> Result<Outcome, Failure> {
    let began = Instant::now();
    if args.output.exists() && !args.force {
        return Err(Failure::new(
            format!("{} is there already", args.output.display()),
            "replace it with --force, or write elsewhere",
        ));
    }
    let checkpoint = models::open(args.model.as_deref())?;
    let options = ImatrixOptions {
        text: args.text.clone(),
        window: args.window as usize,
        windows: args.windows.map(|windows| windows as usize),
    };
    let bar = Bar::new();
    let imatrix = bitmill_pipeline::imatrix(&checkpoint, &options, &bar);
    bar.end();
    let imatrix = imatrix?;
    let form = match args.form {
        Some(ImatrixFile::Gguf) => ImatrixForm::Gguf,
        Some(ImatrixFile::Dat) => ImatrixForm::Legacy,
        None => ImatrixForm::of(&args.output),
    };
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let written = imatrix
        .write(&Target { path: args.output.clone(), overwrite }, form)
        .map_err(bitmill_pipeline::Error::from)?;
    let tokens = u64::from(imatrix.chunk_count) * u64::from(imatrix.chunk_size);
    let seconds = began.elapsed().as_secs_f64();
    // Experts that no token went to, whose columns will weigh all alike.
    let unmet: usize =
        imatrix.entries.values().flat_map(|entry| &entry.counts).filter(|count| **count == 0).count();
    if global.json {
        stdout::print_json(&serde_json::json!({
            "schema": "bitmill.imatrix/1",
            "version": env!("CARGO_PKG_VERSION"),
            "model": checkpoint.name(),
            "output": args.output.display().to_string(),
            "form": if form == ImatrixForm::Gguf { "gguf" } else { "dat" },
            "bytes": written.bytes,
            "text": imatrix.datasets.first(),
            "windows": imatrix.chunk_count,
            "window": imatrix.chunk_size,
            "entries": imatrix.entries.len(),
            "matrices_without_tokens": unmet,
            "seconds": seconds,
            "peak_bytes": bitmill_bench::peak_bytes(),
        }))?;
        return Ok(Outcome::Done);
    }
    let mut text = format!(
        "{}: {} entries from {tokens} tokens in windows of {} of the {}, {}, {seconds:.1} s\n",
        args.output.display(),
        imatrix.entries.len(),
        imatrix.chunk_size,
        imatrix.datasets.first().map_or("text", String::as_str),
        bitmill_report::size(written.bytes),
    );
    if unmet > 0 {
        text.push_str(&format!("{unmet} matrices of experts met no token: a longer text may reach them\n"));
    }
    text.push_str(&format!(
        "bitmill compress MODEL --recipe q4_k_m --imatrix {} -o OUT uses it\n",
        args.output.display()
    ));
    stdout::print(&text)?;
    Ok(Outcome::Done)
}
