//! The importance of columns, on its way from an importance matrix to the encoder of each tensor.

use std::path::{Path, PathBuf};

use bitmill_checkpoint::{Checkpoint, GgufValue, Imatrix, Region, TensorInfo};
use bitmill_quant::needs_importance;
use bitmill_tensor::Encoding;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Error;
use crate::plan::{PlannedTensor, Treatment, rows_and_columns};
use crate::recipe::Recipe;

/// llama-quantize keeps so many bytes of a text that it copies into the metadata.
const LONGEST_PROVENANCE: usize = 127;

/// The importance matrix that a recipe names, with what is told of it.
#[derive(Debug)]
pub(crate) struct Weighed {
    path: PathBuf,
    imatrix: Imatrix,
    /// xxh3 of the file.
    hash: String,
}

impl Weighed {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let bytes = Region::map(path)?;
        let imatrix = Imatrix::from_bytes(path, &bytes)?;
        Ok(Self { path: path.into(), imatrix, hash: format!("{:016x}", xxh3_64(&bytes)) })
    }

    /// The importance of each column of `planned`, made of the tensor `info` of `checkpoint`; `None` without an entry. An
    /// entry may be of the source or of the padded model; columns that pad weigh nothing in either.
    pub(crate) fn of(
        &self,
        checkpoint: &Checkpoint,
        planned: &PlannedTensor,
        info: &TensorInfo,
    ) -> Result<Option<Vec<f32>>, Error> {
        let padded = planned.in_features();
        if planned.is_padded()
            && let Ok(Some(padded)) = self.imatrix.importance(info.role, padded, n_experts(checkpoint))
        {
            return Ok(Some(padded));
        }
        let mut importance = self.of_source(checkpoint, info)?;
        if let Some(importance) = &mut importance {
            importance.resize(padded, 0.0);
        }
        Ok(importance)
    }

    /// The importance of each column of the tensor `info` of `checkpoint` as it is; `None` without an entry.
    pub(crate) fn of_source(
        &self,
        checkpoint: &Checkpoint,
        info: &TensorInfo,
    ) -> Result<Option<Vec<f32>>, Error> {
        let (_, in_features) = rows_and_columns(&info.shape);
        Ok(self.imatrix.importance(info.role, in_features, n_experts(checkpoint))?)
    }

    /// Refuses entries that are of another model, and tells of tensors that have none: in a sentence, if there are any.
    pub(crate) fn check(
        &self,
        checkpoint: &Checkpoint,
        tensors: &[PlannedTensor],
    ) -> Result<Option<String>, Error> {
        let mut without = Vec::new();
        for planned in tensors.iter().filter(|planned| is_weighed(planned)) {
            if self.of(checkpoint, planned, &checkpoint.tensor(&planned.source)?.info)?.is_none() {
                without.push(&planned.name);
            }
        }
        let path = self.path.display();
        Ok(match without.as_slice() {
            [] => None,
            [one] => {
                Some(format!("{path} has no entry for `{one}`: its errors are weighed by its weights alone"))
            }
            [first, rest @ ..] => Some(format!(
                "{path} has no entry for {} tensors such as `{first}`: their errors are weighed by their weights alone",
                rest.len() + 1
            )),
        })
    }

    /// The keys by which llama-quantize says what it weighed with.
    pub(crate) fn metadata(&self) -> Vec<(String, GgufValue)> {
        let Imatrix { entries, datasets, chunk_count, .. } = &self.imatrix;
        let text = |text: &str| GgufValue::String(provenance(text).to_owned());
        let mut keys = vec![("file", text(&self.path.to_string_lossy()))];
        keys.extend(datasets.first().map(|dataset| ("dataset", text(dataset))));
        keys.push(("entries_count", GgufValue::U32(entries.len() as u32)));
        if *chunk_count > 0 {
            keys.push(("chunks_count", GgufValue::U32(*chunk_count)));
        }
        keys.into_iter().map(|(key, value)| (format!("quantize.imatrix.{key}"), value)).collect()
    }

    /// What it is, in a plan and in the record of a run.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "file": self.path.to_string_lossy(),
            "hash": self.hash,
            "datasets": self.imatrix.datasets,
            "entries": self.imatrix.entries.len(),
            "chunks": self.imatrix.chunk_count,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// xxh3 of the file.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }
}

fn n_experts(checkpoint: &Checkpoint) -> usize {
    checkpoint.config().experts.as_ref().map_or(0, |experts| experts.count)
}

/// As much of `text` as llama-quantize would copy, in whole characters.
fn provenance(text: &str) -> &str {
    let end = (0..=LONGEST_PROVENANCE.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// Whether importance says anything of how a tensor is stored.
pub(crate) fn is_weighed(planned: &PlannedTensor) -> bool {
    matches!(planned.to, Encoding::Block(_)) && planned.treatment == Treatment::Rounded
}

/// Refuses blocks that are not searched without importance where there is none: those of the type itself, and in a
/// recipe with a mix those that llama-quantize refuses.
pub(crate) fn refuse_unweighed(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    weighed: Option<&Weighed>,
    tensors: &[PlannedTensor],
) -> Result<(), Error> {
    // Statistics of its own weigh what a run through the layers decides.
    let unweighed = |planned: &&PlannedTensor| is_weighed(planned) && !planned.method.is_calibrated();
    for planned in tensors.iter().filter(unweighed) {
        let Encoding::Block(block) = planned.to else { continue };
        let name = planned.role.gguf_name().unwrap_or_default();
        let by_mix = recipe.mix().is_some_and(|mix| mix.needs_importance(&name, block));
        if !by_mix && !needs_importance(block) {
            continue;
        }
        let importance = match weighed {
            Some(weighed) => weighed.of(checkpoint, planned, &checkpoint.tensor(&planned.source)?.info)?,
            None => None,
        };
        if importance.is_none() {
            let source = bitmill_quant::Error::NeedsImportance { block };
            return Err(Error::Quantize { tensor: planned.name.clone(), source });
        }
    }
    Ok(())
}
