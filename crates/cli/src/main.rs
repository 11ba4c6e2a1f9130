//! The `bitmill` command: reads flags, prints results, sets exit codes. Everything else is in the libraries.

mod args;
mod commands;
mod failure;
mod models;
mod progress;
mod stdout;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Command};
use failure::Failure;

/// What a command ends as when nothing went wrong.
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// It ran, but a bound that the caller set was missed: exit code 1.
    Missed(String),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Missed(what)) => {
            eprintln!("missed: {what}");
            ExitCode::from(1)
        }
        Err(failure) => {
            failure.print();
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<Outcome, Failure> {
    // The one thread pool: libraries run in it and never build their own. The command itself runs inside it, since work
    // handed in from outside waits for a sleeping thread each time: 210 times a decoded token.
    let mut builder = rayon::ThreadPoolBuilder::new();
    if let Some(threads) = cli.global.threads {
        builder = builder.num_threads(usize::from(threads));
    }
    let pool = builder.build().map_err(|error| Failure::plain(format!("no thread pool: {error}")))?;
    pool.install(|| dispatch(cli))
}

fn dispatch(cli: &Cli) -> Result<Outcome, Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Inspect(args) => commands::inspect(args, global),
        Command::Plan(args) => commands::plan(args, global),
        Command::Compress(args) => commands::compress(args, global),
        Command::Convert(args) => commands::convert(args, global),
        Command::Eval(args) => commands::eval(args, global),
        Command::Bench(args) => commands::bench(args, global),
        Command::Compare(args) => commands::compare(args, global),
        Command::Generate(args) => commands::generate(args, global),
        Command::Chat(args) => commands::chat(args, global),
        Command::Imatrix(args) => commands::imatrix(args, global),
        Command::Search(args) => commands::search(args, global),
        Command::Recipes(args) => commands::recipes(args, global),
        Command::Watch(args) => commands::watch(args, global),
        Command::Pull(args) => commands::pull(args, global),
    }
}
