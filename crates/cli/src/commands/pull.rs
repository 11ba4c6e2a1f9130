//! `bitmill pull`.

use std::time::Instant;

use bitmill_hub::{ModelName, Retry, Site};
use serde_json::{Value, json};

use crate::args::{Global, Pull};
use crate::failure::Failure;
use crate::{Outcome, models, stdout};

pub fn pull(args: &Pull, global: &Global) -> Result<Outcome, Failure> {
    let Some(model) = ModelName::parse(&args.model) else {
        return Err(Failure::new(
            format!("`{}` is on no hub", args.model),
            "hf:OWNER/NAME is a model on Hugging Face, ms:OWNER/NAME one on ModelScope",
        ));
    };
    let model = model?;
    let site = Site::from_environment(model.hub)?;
    let begun = Instant::now();
    let pulled = models::fetching(&model, |told| {
        bitmill_hub::pull(&site, &model, &args.include, Retry::default(), told)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let bytes: u64 = pulled.files.iter().map(|file| file.size).sum();
    let fetched: u64 = pulled.files.iter().filter(|file| file.fetched).map(|file| file.size).sum();
    if global.json {
        let files: Vec<Value> = pulled
            .files
            .iter()
            .map(|file| json!({"path": file.path, "bytes": file.size, "hash": file.hash, "fetched": file.fetched}))
            .collect();
        stdout::print_json(&json!({
            "schema": "bitmill.pull/1",
            "version": env!("CARGO_PKG_VERSION"),
            "model": model.to_string(),
            "revision": model.revision,
            "commit": pulled.commit,
            "path": pulled.path.display().to_string(),
            "bytes": bytes,
            "fetched_bytes": fetched,
            "seconds": seconds,
            "files": files,
        }))?;
    } else {
        let size = bitmill_report::size;
        let unhashed = pulled.files.iter().filter(|file| file.hash.is_none()).count();
        let checked = match unhashed {
            0 => "every length and hash checked".to_owned(),
            n => format!("every length checked; for {n} of them the hub gives no hash"),
        };
        stdout::print(&format!(
            "{}\n{} files, {}, of which {} were fetched in {seconds:.1} s; {checked}",
            pulled.path.display(),
            pulled.files.len(),
            size(bytes),
            size(fetched),
        ))?;
    }
    Ok(Outcome::Done)
}
