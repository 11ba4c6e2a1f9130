//! What MODEL on the command line stands for.

use std::path::Path;

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::embedded;

use crate::failure::Failure;

/// A model that was opened, and whether it is the embedded one.
pub struct Named {
    pub checkpoint: Checkpoint,
    pub is_millet: bool,
}

/// Opens a folder, a file, or without a name the embedded model (which its own name also means, where no such path is).
pub fn open(model: Option<&str>) -> Result<Named, Failure> {
    let Some(name) = model.filter(|name| *name != embedded::NAME || Path::new(name).exists()) else {
        return Ok(Named { checkpoint: embedded::checkpoint()?, is_millet: true });
    };
    if name.starts_with("hf:") || name.starts_with("ms:") {
        return Err(Failure::new(
            format!("`{name}`: this version does not fetch models"),
            "download the model's folder by other means and name it here",
        ));
    }
    let checkpoint = Checkpoint::open(Path::new(name))?;
    Ok(Named { checkpoint, is_millet: false })
}
