//! What MODEL on the command line stands for.

use std::path::{Path, PathBuf};

use bitmill_checkpoint::Checkpoint;
use bitmill_hub::{ModelName, Retry, Site};
use bitmill_pipeline::{Progress as _, embedded};

use crate::failure::Failure;
use crate::progress::Bar;

/// Opens a folder, a file, a model on a hub (fetched if the cache has it not), or without a name the embedded model
/// (which its own name also means, where no such path is).
pub fn open(model: Option<&str>) -> Result<Checkpoint, Failure> {
    let Some(name) = model.filter(|name| *name != embedded::NAME || Path::new(name).exists()) else {
        return Ok(embedded::checkpoint()?);
    };
    let fetched = on_hub(name)?;
    Ok(Checkpoint::open(fetched.as_deref().unwrap_or(Path::new(name)))?)
}

/// Where a model that is named on a hub lies, fetched if the cache has it not; `None` for any other name.
pub fn on_hub(name: &str) -> Result<Option<PathBuf>, Failure> {
    let Some(model) = ModelName::parse(name) else { return Ok(None) };
    let model = model?;
    let site = Site::from_environment(model.hub)?;
    Ok(Some(fetching(&model, |told| bitmill_hub::locate(&site, &model, Retry::default(), told))?))
}

/// Runs `fetch` with a progress bar, which appears with the first byte.
pub fn fetching<T>(
    model: &ModelName,
    fetch: impl FnOnce(&dyn Fn(bitmill_hub::Progress)) -> Result<T, bitmill_hub::Error>,
) -> Result<T, Failure> {
    let bar = Bar::new();
    let begun = std::cell::Cell::new(false);
    let outcome = fetch(&|progress| match progress {
        bitmill_hub::Progress::Waiting(file) => {
            eprintln!("{model}: another process fetches {file}: waiting for it")
        }
        bitmill_hub::Progress::Bytes { done, total } => {
            if !begun.replace(true) {
                bar.begin(&format!("fetching {model}"));
            }
            bar.at(done, total);
        }
    });
    bar.end();
    Ok(outcome?)
}
