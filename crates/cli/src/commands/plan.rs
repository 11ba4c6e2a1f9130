//! `bitmill plan`.

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{Plan, PlanOptions, Recipe, resolve};

use crate::args::{Global, How, Plan as Args};
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
    let mut recipe = Recipe::read(&how.recipe)?;
    if let Some(imatrix) = &how.imatrix {
        recipe = recipe.with_imatrix(imatrix)?;
    }
    if how.no_pad {
        recipe = recipe.without_padding()?;
    }
    let options = PlanOptions { allow_requantize: how.allow_requantize, shard_bytes: how.shard_size };
    let resolved = resolve(checkpoint, &recipe, &options, &Bar::new())?;
    Ok(Plan::new(checkpoint, &resolved.recipe, &options)?)
}
