//! What makes two runs the same, so that one may go on with what the other left.

use std::fmt::{self, Write};
use std::os::unix::fs::MetadataExt;

use bitmill_checkpoint::{Checkpoint, Identity};
use xxhash_rust::xxh3::Xxh3;

use crate::plan::Plan;

/// Version, model (its files by name, size and time of change; its tensors), recipe, and all that the plan and the output's
/// headers follow from. Where the model lies is no part of it.
pub(crate) fn identity(checkpoint: &Checkpoint, plan: &Plan) -> Identity {
    let mut identity = Identity::default();
    identity.add("version", env!("CARGO_PKG_VERSION"));
    identity.add("model", model(checkpoint));
    identity.add("recipe", plan.recipe.to_toml());
    if let Some(weighed) = &plan.weighed {
        identity.add("imatrix", weighed.hash());
    }
    if let Some(material) = &plan.material {
        identity.add("calibration tokens", material.calibration.hash.clone());
    }
    identity.add("plan of tensors", hash(&(&plan.tensors, &plan.depth)));
    identity.add("layout of the output", format!("{} bytes, {}", plan.output_bytes, hash(&plan.layout)));
    identity
}

fn model(checkpoint: &Checkpoint) -> String {
    let mut text = String::new();
    for file in checkpoint.weight_files() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // A file that cannot be looked at is not the one that was.
        let what = std::fs::metadata(&file).map_or_else(
            |error| error.to_string(),
            |there| format!("{} bytes of {}.{:09} s", there.len(), there.mtime(), there.mtime_nsec()),
        );
        // A String takes every write.
        let _ = writeln!(text, "{name}: {what}");
    }
    let _ = write!(text, "tensors {}", hash(&(checkpoint.config(), checkpoint.tensors())));
    text
}

/// xxh3 of what `value` shows of itself.
fn hash(value: &dyn fmt::Debug) -> String {
    struct Hashed(Xxh3);
    impl Write for Hashed {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.update(text.as_bytes());
            Ok(())
        }
    }
    let mut hashed = Hashed(Xxh3::new());
    // The hash takes every write.
    let _ = write!(hashed, "{value:?}");
    format!("{:016x}", hashed.0.digest())
}
