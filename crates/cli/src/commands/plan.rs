//! `bitmill plan`.

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{Format, Plan, PlanOptions, Recipe, SearchName, resolve};

use crate::args::{BlockSearch, Global, How, Plan as Args};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn plan(args: &Args, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let plan = planned(&checkpoint, &args.how)?;
    if global.json {
        stdout::print_json(&plan.to_json())?;
    } else {
        stdout::print(&plan.to_text())?;
    }
    Ok(Outcome::Done)
}

/// The plan that `plan` prints and `compress` runs.
pub fn planned(checkpoint: &Checkpoint, how: &How) -> Result<Plan, Failure> {
    let mut recipe = Recipe::read(&how.recipe)?.with_tensor_types(&how.tensor_types)?;
    if let Some(imatrix) = &how.imatrix {
        recipe = recipe.with_imatrix(imatrix)?;
    }
    if let Some(search) = how.search {
        recipe = recipe.with_search(match search {
            BlockSearch::Ggml => SearchName::Ggml,
            BlockSearch::Best => SearchName::Best,
        })?;
    }
    if how.no_pad {
        recipe = recipe.without_padding()?;
    }
    let options = PlanOptions {
        allow_requantize: how.allow_requantize,
        shard_bytes: how.shard_size,
        split_bytes: split(how.split_max_size, recipe.format)?,
    };
    let resolved = resolve(checkpoint, &recipe, &options, &Bar::new())?;
    Ok(Plan::new(checkpoint, &resolved.recipe, &options)?)
}

/// The size of parts, which GGUF files have.
pub fn split(split_max_size: Option<u64>, format: Format) -> Result<Option<u64>, Failure> {
    match (split_max_size, format) {
        (None, _) | (Some(1..), Format::Gguf) => Ok(split_max_size),
        (Some(0), _) => Err(Failure::plain("--split-max-size: parts hold at least one byte")),
        (Some(_), format) => Err(Failure::new(
            format!("--split-max-size is for GGUF files, and {} is a folder", format.name()),
            "its safetensors shards are limited by --shard-size",
        )),
    }
}
