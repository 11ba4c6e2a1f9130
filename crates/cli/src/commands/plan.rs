//! `bitmill plan`.

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{Format, Plan, PlanOptions, Recipe, SearchName, resolve};

use crate::args::{BlockSearch, Calibration, Global, How, Plan as Args, To};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn plan(args: &Args, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let plans = planned(&checkpoint, &args.how, global)?;
    let together = Plan::joint_peak_bytes(&checkpoint, &plans);
    match (plans.as_slice(), global.json) {
        ([plan], true) => stdout::print_json(&plan.to_json())?,
        ([plan], false) => stdout::print(&plan.to_text())?,
        (several, true) => {
            let several: Vec<serde_json::Value> = several.iter().map(Plan::to_json).collect();
            stdout::print_json(&serde_json::json!({
                "schema": "bitmill.plans/1",
                "version": env!("CARGO_PKG_VERSION"),
                "peak_bytes": together,
                "plans": several,
            }))?;
        }
        (several, false) => {
            let mut text: String = several.iter().map(|plan| format!("{}\n", plan.to_text())).collect();
            text += &format!("in one pass: peak memory about {}\n", bitmill_report::size(together));
            stdout::print(&text)?;
        }
    }
    Ok(Outcome::Done)
}

/// The plans that `plan` prints and `compress` runs, one a recipe.
pub fn planned(checkpoint: &Checkpoint, how: &How, global: &Global) -> Result<Vec<Plan>, Failure> {
    let is_alone = how.recipes.len() == 1;
    let mut recipes: Vec<Recipe> = Vec::with_capacity(how.recipes.len());
    let mut options = PlanOptions {
        allow_requantize: how.allow_requantize,
        shard_bytes: how.shard_size,
        split_bytes: None,
        strict: how.strict,
        max_memory: how.max_memory,
    };
    for name in &how.recipes {
        let recipe = asked(name, how, global, is_alone)?;
        options.split_bytes = split(how.split_max_size, recipe.format)?;
        let recipe = resolve(checkpoint, &recipe, &options, &Bar::new())?.recipe;
        if recipes.iter().any(|earlier| earlier.name == recipe.name) {
            return Err(Failure::new(
                format!("two recipes are called `{}`", recipe.name),
                "outputs bear their recipes' names: give one of them another `name`",
            ));
        }
        recipes.push(recipe);
    }
    match recipes.as_slice() {
        [recipe] => Ok(vec![Plan::new(checkpoint, recipe, &options)?]),
        several => Ok(Plan::several(checkpoint, several, &options)?),
    }
}

/// A recipe with what flags ask for; of several those about calibration are for the ones that are calibrated.
fn asked(name: &str, how: &How, global: &Global, is_alone: bool) -> Result<Recipe, Failure> {
    let mut recipe = Recipe::read(name)?.with_tensor_types(&how.tensor_types)?;
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
    match is_alone || recipe.calibrates() {
        true => with_calibration(recipe, &how.calibration, global),
        false => Ok(recipe),
    }
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
