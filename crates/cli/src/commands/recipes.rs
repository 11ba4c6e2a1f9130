//! `bitmill recipes`.

use std::fmt::Write as _;

use bitmill_pipeline::{PRESETS, preset};

use crate::args::{Global, Recipes};
use crate::failure::Failure;
use crate::{Outcome, stdout};

pub fn recipes(args: &Recipes, global: &Global) -> Result<Outcome, Failure> {
    match &args.name {
        Some(name) => one(name, global)?,
        None => all(global)?,
    }
    Ok(Outcome::Done)
}

fn one(name: &str, global: &Global) -> Result<(), Failure> {
    let recipe = preset(name)
        .ok_or_else(|| Failure::new(format!("`{name}` is no preset"), "`bitmill recipes` lists them"))?;
    if global.json {
        let text = recipe.to_toml();
        return stdout::print_json(&serde_json::json!({
            "schema": "bitmill.recipe/1", "strategy": recipe.name, "format": recipe.format.name(), "recipe": text,
        }));
    }
    stdout::print(&recipe.to_toml())
}

fn all(global: &Global) -> Result<(), Failure> {
    if global.json {
        let presets: Vec<_> = PRESETS
            .iter()
            .filter_map(|listed| Some((listed, preset(listed.name)?)))
            .map(|(listed, recipe)| {
                serde_json::json!({"strategy": listed.name, "format": recipe.format.name(), "about": listed.about})
            })
            .collect();
        return stdout::print_json(&serde_json::json!({"schema": "bitmill.recipes/1", "recipes": presets}));
    }
    let mut text = String::new();
    for listed in PRESETS {
        // A String takes every write.
        let _ = writeln!(text, "{:<12}  {}", listed.name, listed.about);
    }
    text.push_str("\n`bitmill recipes NAME` prints one as a file to start from; --recipe takes either.\n");
    stdout::print(&text)
}
