//! What was written is read again before it takes its place.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bitmill_checkpoint::Checkpoint;
use bitmill_tensor::{Encoding, Grouped, ScaleType, WeightData};
use rayon::prelude::*;

use crate::calibrated::six_digits;
use crate::compress::TensorRecord;
use crate::error::Error;
use crate::plan::{Plan, PlannedTensor};
use crate::progress::Progress;
use crate::recipe::Format;
use crate::tensor_write::{StoredHash, stored_parts};

/// Bytes that are looked at before their pages are let go.
const CHUNK_BYTES: usize = 1 << 23;

/// Opens the output that lies at `staged` as any reader would and compares shape, encoding and bytes of every tensor with
/// what was decided; `path` is where it will go.
///
/// # Errors
/// [`Error::Verify`], or why it cannot be opened.
pub(crate) fn read_back(
    staged: &Path,
    path: &Path,
    plan: &Plan,
    records: &[TensorRecord],
    progress: &dyn Progress,
) -> Result<(), Error> {
    let written = Checkpoint::open(staged)?;
    let total = plan.tensors.iter().map(|planned| planned.bytes_after).sum();
    let done = AtomicU64::new(0);
    let inputs: HashMap<&str, f32> =
        written.input_scales().iter().map(|scale| (scale.name.as_str(), scale.value)).collect();
    let check = |planned: &PlannedTensor, record: &TensorRecord| {
        let tensor = written.tensor(&planned.name)?;
        let mut hash = StoredHash::default();
        for (part, bytes) in stored_parts(&tensor.view().data()) {
            for bytes in bytes.chunks(CHUNK_BYTES) {
                if progress.is_stopped() {
                    return Err(Error::Stopped { path: path.into() });
                }
                hash.add(part, bytes);
                tensor.release();
                let before = done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                progress.at(before + bytes.len() as u64, total);
            }
        }
        if let WeightData::Scaled { layout, global, nested, .. } = tensor.view().data() {
            match layout.scale {
                ScaleType::Fp8 => hash.add(2, &global.to_le_bytes()),
                _ => nested.iter().for_each(|nested| hash.add(2, &nested.offset.to_le_bytes())),
            }
        }
        let is_decided = tensor.info.shape == planned.shape
            && are_one_grid(tensor.info.encoding, planned.to, plan.recipe.format)
            && hash.finish(planned.to) == record.stored_hash;
        let scales = written.cache_scales();
        let scale = scales
            .iter()
            .find(|scale| (Some(scale.layer), scale.of) == (planned.role.layer, planned.role.kind));
        let found =
            scale.map(|scale| scale.values.iter().map(|&value| six_digits(f64::from(value))).collect());
        let is_decided = is_decided && found == record.cache_scale.map(|scale| vec![scale]);
        let inputs = inputs.get(planned.name.as_str());
        let is_decided =
            is_decided && inputs.map(|&scale| six_digits(f64::from(scale))) == record.input_scale;
        match is_decided {
            true => Ok(()),
            false => Err(Error::Verify { path: path.into(), tensor: planned.name.clone() }),
        }
    };
    let checked: Vec<Result<(), Error>> =
        plan.tensors.par_iter().zip(records).map(|(planned, record)| check(planned, record)).collect();
    checked.into_iter().collect()
}

/// AWQ stores the zero points of symmetric codes too, and nothing there says that they are all the same.
fn are_one_grid(found: Encoding, planned: Encoding, format: Format) -> bool {
    match (found, planned) {
        (Encoding::Grouped(found), Encoding::Grouped(planned)) if format == Format::Awq => {
            Grouped { zero_point: planned.zero_point, ..found } == planned
        }
        _ => found == planned,
    }
}
