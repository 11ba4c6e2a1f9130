//! `bitmill compare`: the main job.

use std::path::Path;
use std::process::{Command, Stdio};

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{
    CompareOptions, Error, Made, Plan, PlanOptions, Progress as _, Recipe, default_recipes, embedded,
    tell_apart, write_file,
};
use bitmill_report::{BenchReport, CompareReport, Speed, compare_html, compare_table, from_json, to_json};

use super::eval::request;
use crate::args::{Compare, Global};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::{Outcome, models, stdout};

pub fn compare(args: &Compare, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let recipes = match args.recipes.as_slice() {
        _ if args.no_recipes => Vec::new(),
        [] => default_recipes(&checkpoint),
        named => named.iter().map(|name| Ok(Recipe::read(name)?)).collect::<Result<_, Failure>>()?,
    };
    let also = made(&recipes, args)?;
    refuse_early(&checkpoint, &recipes, args)?;
    create(&args.output)?;
    // Compressed models lie in the output's file system, where the caller has room for them.
    let temporary = tempfile::Builder::new()
        .prefix(".work-")
        .tempdir_in(&args.output)
        .map_err(|error| cannot_write(&args.output, &error))?;
    let work = if args.keep { args.output.join("models") } else { temporary.path().to_owned() };
    create(&work)?;
    let budget = |most: u32| if args.full { None } else { Some(most) };
    let options = CompareOptions {
        recipes,
        also: also.clone(),
        request: request(&args.on, budget(args.windows), budget(args.items)),
        stopwatch: &|path| time(path.or(args.model.as_deref().map(Path::new)), global),
        work,
        keep: args.keep,
        plan: PlanOptions { allow_requantize: args.allow_requantize, ..PlanOptions::default() },
        seed: global.seed,
    };
    let bar = Bar::new();
    let report = bitmill_pipeline::compare(&checkpoint, &options, &bar);
    bar.end();
    let report = report?;
    let json = to_json(&report);
    let (json_path, html_path) = (args.output.join("report.json"), args.output.join("report.html"));
    write_file(&json_path, json.as_bytes())?;
    write_file(&html_path, compare_html(&report).as_bytes())?;
    if global.json {
        stdout::print(&json)?;
    } else {
        stdout::print(&compare_table(&report, terminal_width()))?;
    }
    eprintln!("\nwritten: {} and {}", json_path.display(), html_path.display());
    outcome(args, &also, &report)
}

/// The models of --also, each by a name that no other row has.
fn made(recipes: &[Recipe], args: &Compare) -> Result<Vec<Made>, Failure> {
    let at = |named: &String| match models::on_hub(named)? {
        Some(path) => Ok(Made { name: named.clone(), path }),
        None => Ok(Made::at(Path::new(named))?),
    };
    let mut made = args.also.iter().map(at).collect::<Result<Vec<_>, Failure>>()?;
    let taken: Vec<&str> = recipes.iter().map(|recipe| recipe.name.as_str()).collect();
    tell_apart(&mut made, &taken)?;
    match made.iter().find(|made| made.holds(&args.output)) {
        Some(holds) => Err(Failure::new(
            format!("{} is to be measured, and --output lies in it", holds.path.display()),
            "name another folder with --output",
        )),
        None => Ok(made),
    }
}

/// What can be known before anything is measured: that a recipe asked for by name cannot be run, or none can.
fn refuse_early(checkpoint: &Checkpoint, recipes: &[Recipe], args: &Compare) -> Result<(), Failure> {
    for (index, recipe) in recipes.iter().enumerate() {
        if recipes[..index].iter().any(|earlier| earlier.name == recipe.name) {
            return Err(Failure::new(
                format!("two recipes are called `{}`", recipe.name),
                "give one another `name`: rows are told apart by it",
            ));
        }
    }
    let options = PlanOptions { allow_requantize: args.allow_requantize, ..PlanOptions::default() };
    // What a search would find is known only once it has run.
    let known = recipes.iter().filter(|recipe| !recipe.is_search());
    let plans = known.map(|recipe| Plan::new(checkpoint, recipe, &options));
    let mut failed: Vec<Error> = plans.filter_map(Result::err).collect();
    if !failed.is_empty() && (!args.recipes.is_empty() || failed.len() == recipes.len()) {
        return Err(failed.swap_remove(0).into());
    }
    Ok(())
}

/// A strategy or model that was asked for by name and failed is a failed run; the table above has shown it with its reason.
fn outcome(args: &Compare, also: &[Made], report: &CompareReport) -> Result<Outcome, Failure> {
    let names: Vec<&str> = report.failed.iter().map(|failure| failure.strategy.as_str()).collect();
    let is_asked = |name: &&str| !args.recipes.is_empty() || also.iter().any(|made| made.name == *name);
    // The dense model always has a row.
    let have_all_failed = report.rows.len() <= 1;
    match names.len() {
        0 => Ok(Outcome::Done),
        n if have_all_failed || names.iter().any(is_asked) => {
            let what = if also.is_empty() { "strategies" } else { "strategies and models" };
            Err(Failure::plain(format!("{n} of the {what} failed: {}", names.join(", "))))
        }
        _ => Ok(Outcome::Done),
    }
}

/// `bitmill bench` in a process of its own: its peak memory is that model's alone.
fn time(model: Option<&Path>, global: &Global) -> Result<Speed, Error> {
    let failed = |message: String| Error::Timing {
        model: model.map_or_else(|| embedded::NAME.into(), |path| path.display().to_string()),
        message,
    };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(program);
    command.arg("bench").args(model).arg("--json");
    command.args([
        "--seed",
        &global.seed.to_string(),
        "--threads",
        &rayon::current_num_threads().to_string(),
    ]);
    command.stdin(Stdio::null());
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(said.trim().trim_start_matches("error: ").to_owned()));
    }
    let report: BenchReport =
        from_json(&String::from_utf8_lossy(&output.stdout)).map_err(|error| failed(error.to_string()))?;
    Ok(report.speed)
}

/// Creates a folder and those above it.
fn create(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()), "name another folder with --output")
}

/// The terminal's columns; `None` where stdout is none, which keeps every column.
fn terminal_width() -> Option<usize> {
    let terminal = console::Term::stdout();
    terminal.is_term().then(|| usize::from(terminal.size().1))
}
