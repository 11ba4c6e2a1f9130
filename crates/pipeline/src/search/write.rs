//! An assignment as a recipe that people read and edit.

use crate::pattern::ranges;
use crate::recipe::{Format, Recipe};
use crate::search::candidate::{Candidate, Unit};

/// The recipe of `chosen`: a step for each form, the form with most weights first, tensors of one kind in one pattern.
pub(crate) fn recipe(name: &str, format: Format, units: &[Unit], chosen: &[Candidate]) -> Recipe {
    let steps = forms(units, chosen)
        .into_iter()
        .map(|form| {
            let members =
                units.iter().zip(chosen).filter(|(_, chosen)| **chosen == form).map(|(unit, _)| unit);
            form.step(patterns(units, members))
        })
        .collect();
    Recipe::new(name, format, steps)
}

/// The forms of `chosen`, that of most weights first.
pub(crate) fn forms(units: &[Unit], chosen: &[Candidate]) -> Vec<Candidate> {
    let mut weights: Vec<(Candidate, u64)> = Vec::new();
    for (unit, &form) in units.iter().zip(chosen) {
        match weights.iter_mut().find(|(seen, _)| *seen == form) {
            Some((_, sum)) => *sum += unit.weights(),
            None => weights.push((form, unit.weights())),
        }
    }
    weights.sort_by_key(|&(_, sum)| std::cmp::Reverse(sum));
    weights.into_iter().map(|(form, _)| form).collect()
}

/// Patterns of exactly the tensors of `members`.
fn patterns<'a>(units: &[Unit], members: impl Iterator<Item = &'a Unit>) -> Vec<String> {
    let all_kinds = kinds(units.iter());
    kinds(members)
        .into_iter()
        .map(|(kind, layers)| {
            let all = all_kinds.iter().find(|(other, _)| *other == kind).map(|(_, layers)| layers.len());
            match &layers[..] {
                [] => kind,
                some if Some(some.len()) == all => kind.replacen("{}", "*", 1),
                [one] => kind.replacen("{}", &one.to_string(), 1),
                some => kind.replacen("{}", &format!("{{{}}}", ranges(some)), 1),
            }
        })
        .collect()
}

/// The kinds of tensors, each a name with `{}` for its layer, and the layers that have it; none outside the layers.
fn kinds<'a>(units: impl Iterator<Item = &'a Unit>) -> Vec<(String, Vec<usize>)> {
    let mut kinds: Vec<(String, Vec<usize>)> = Vec::new();
    for info in units.flat_map(|unit| &unit.tensors) {
        let (kind, layer) = match info.role.layer {
            Some(layer) => (info.name.replacen(&format!(".{layer}."), ".{}.", 1), Some(layer)),
            None => (info.name.clone(), None),
        };
        match kinds.iter_mut().find(|(seen, _)| *seen == kind) {
            Some((_, layers)) => layers.extend(layer),
            None => kinds.push((kind, layer.into_iter().collect())),
        }
    }
    kinds.iter_mut().for_each(|(_, layers)| layers.sort_unstable());
    kinds
}

/// `recipe` as TOML, with `heading` above it and a line above each step. A comment each.
pub(crate) fn with_comments(recipe: &Recipe, heading: &[String], steps: &[String]) -> String {
    let mut text: String = heading.iter().map(|line| format!("# {line}\n")).collect();
    let mut comments = steps.iter();
    for line in recipe.to_toml().lines() {
        if line == "[[step]]"
            && let Some(comment) = comments.next()
        {
            text.push_str(&format!("# {comment}\n"));
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_checkpoint::Checkpoint;
    use bitmill_testkit::{Tiny, Variant};

    use crate::search::candidate::units;
    use crate::{Plan, PlanOptions};

    #[test]
    fn a_recipe_gives_every_unit_the_form_that_was_chosen() {
        let folder = Tiny::new(Variant::Qwen2).layers(5).write();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for format in [Format::Gguf, Format::CompressedTensors] {
            let units = units(&checkpoint, format);
            let chosen: Vec<Candidate> = units
                .iter()
                .enumerate()
                .map(|(place, unit)| unit.candidates[place * 7 % 5 % unit.candidates.len()])
                .collect();
            let recipe = recipe("mine", format, &units, &chosen);
            let text =
                with_comments(&recipe, &["by hand".into()], &vec!["a form".into(); recipe.steps.len()]);
            assert_eq!(text.matches("# a form\n[[step]]").count(), recipe.steps.len());
            assert_eq!(Recipe::parse(&text, "mine.toml".as_ref()).unwrap(), recipe);
            let plan = Plan::new(&checkpoint, &recipe, &PlanOptions::default()).unwrap();
            for (unit, form) in units.iter().zip(&chosen) {
                for info in &unit.tensors {
                    let planned = plan.tensors.iter().find(|tensor| tensor.name == info.name).unwrap();
                    assert_eq!(planned.to, form.encoding(info), "{}", info.name);
                }
            }
            // What the search counts is what the plan counts, but for headers.
            let counted: u64 = units.iter().zip(&chosen).map(|(unit, &form)| unit.bytes(format, form)).sum();
            assert!(counted < plan.output_bytes);
        }
    }
}
