//! `bitmill plan`.

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{Format, Plan, PlanOptions, Recipe, SearchName, resolve};

use crate::args::{BlockSearch, Calibration, Global, How, Plan as Args, To};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn plan(args: &Args, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let plan = planned(&checkpoint, &args.how, global)?;
    if global.json {
        stdout::print_json(&plan.to_json())?;
    } else {
        stdout::print(&plan.to_text())?;
    }
    Ok(Outcome::Done)
}

/// The plan that `plan` prints and `compress` runs.
pub fn planned(checkpoint: &Checkpoint, how: &How, global: &Global) -> Result<Plan, Failure> {
    let mut recipe = Recipe::read(&how.recipe)?.with_tensor_types(&how.tensor_types)?;
    if let Some(to) = how.to {
        recipe = recipe.with_format(match to {
            To::Gguf => Format::Gguf,
            To::CompressedTensors => Format::CompressedTensors,
            To::Gptq => Format::Gptq,
            To::Awq => Format::Awq,
            To::Bitsandbytes => Format::Bitsandbytes,
            To::HuggingFace => Format::HuggingFace,
        })?;
    }
    if let Some(imatrix) = &how.imatrix {
        recipe = recipe.with_imatrix(imatrix)?;
    }
    if let Some(search) = how.search {
        recipe = recipe.with_search(match search {
            BlockSearch::Ggml => SearchName::Ggml,
            BlockSearch::Best => SearchName::Best,
            BlockSearch::Compensated => SearchName::Compensated,
        })?;
    }
    if how.no_pad {
        recipe = recipe.without_padding()?;
    }
    recipe = with_calibration(recipe, &how.calibration, global)?;
    let options = PlanOptions {
        allow_requantize: how.allow_requantize,
        shard_bytes: how.shard_size,
        split_bytes: split(how.split_max_size, recipe.format)?,
        strict: how.strict,
        max_memory: how.max_memory,
    };
    let resolved = resolve(checkpoint, &recipe, &options, &Bar::new())?;
    Ok(Plan::new(checkpoint, &resolved.recipe, &options)?)
}

/// The recipe with the calibration tokens that flags ask for.
fn with_calibration(recipe: Recipe, flags: &Calibration, global: &Global) -> Result<Recipe, Failure> {
    let Calibration { calibration, samples, length, held_out } = flags;
    let asked = calibration.is_some() || samples.or(*length).or(*held_out).is_some();
    if !asked && !recipe.calibrates() {
        return Ok(recipe);
    }
    let mut options = recipe.calibration.clone().unwrap_or_default();
    if let Some(source) = calibration {
        options.source = Some(source.clone());
    }
    let set = |number: &mut usize, flag: &Option<u32>| *number = flag.map_or(*number, |flag| flag as usize);
    set(&mut options.samples, samples);
    set(&mut options.length, length);
    set(&mut options.held_out, held_out);
    if global.seed != 0 {
        options.seed = global.seed;
    }
    Ok(recipe.with_calibration(options)?)
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
