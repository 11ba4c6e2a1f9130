//! What MODEL on the command line stands for.

use std::path::Path;

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::embedded;

use crate::failure::Failure;

/// Opens a folder, a file, or without a name the embedded model (which its own name also means, where no such path is).
pub fn open(model: Option<&str>) -> Result<Checkpoint, Failure> {
    let Some(name) = model.filter(|name| *name != embedded::NAME || Path::new(name).exists()) else {
        return Ok(embedded::checkpoint()?);
    };
    if name.starts_with("hf:") || name.starts_with("ms:") {
        return Err(Failure::new(
            format!("`{name}`: this version does not fetch models"),
            "download the model's folder by other means and name it here",
        ));
    }
    Ok(Checkpoint::open(Path::new(name))?)
}
