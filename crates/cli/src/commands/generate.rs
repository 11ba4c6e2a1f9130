//! `bitmill generate`.

use std::io::{IsTerminal as _, Read as _};
use std::ops::ControlFlow;

use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::Sampling;
use bitmill_pipeline::{Subject, Writer, sampled};
use bitmill_report::{GenerateReport, GenerateSchema, Generation, Machine, timestamp, to_json};

use crate::args::{Choosing, Generate, Global};
use crate::failure::Failure;
use crate::{Outcome, models, stdout};

pub fn generate(args: &Generate, global: &Global) -> Result<Outcome, Failure> {
    let prompt = prompt(args)?;
    let checkpoint = models::open(args.model.as_deref())?;
    let subject = Subject::load(&checkpoint)?;
    let sampling = sampling(&args.choosing, Sampling::default(), global.seed);
    let ends = subject.tokenizer.ends(&checkpoint);
    let mut writer = Writer::new(&subject, compute(&args.choosing), sampling, ends, context(&args.choosing));
    let tokens = subject.tokenizer.encode_document(&prompt)?;
    if tokens.is_empty() {
        return Err(Failure::new(
            "there is nothing to continue",
            "give a --prompt of at least one character",
        ));
    }
    let mut each = |piece: &str| if global.json { ControlFlow::Continue(()) } else { stdout::stream(piece) };
    let generation = writer.write(&tokens, args.tokens as usize, &mut each)?;
    if !global.json {
        stdout::print("\n")?;
        eprintln!("{}", summary(&generation, writer.positions()));
        return Ok(Outcome::Done);
    }
    let report = GenerateReport {
        schema: GenerateSchema,
        version: env!("CARGO_PKG_VERSION").into(),
        created: timestamp(),
        model: subject.name.clone(),
        prompt,
        generation,
        sampling: sampled(&sampling),
        path: path_name(&args.choosing).into(),
        machine: machine(),
    };
    stdout::print(&to_json(&report))?;
    Ok(Outcome::Done)
}

fn prompt(args: &Generate) -> Result<String, Failure> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    if let Some(file) = &args.file {
        return std::fs::read_to_string(file)
            .map_err(|error| Failure::plain(format!("{}: {error}", file.display())));
    }
    if std::io::stdin().is_terminal() {
        return Err(Failure::new(
            "there is nothing to continue",
            "give --prompt, --file, or a text on stdin",
        ));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|error| Failure::plain(format!("stdin: {error}")))?;
    Ok(text)
}

/// The flags' choices where there are any, else those of `own`.
pub fn sampling(choosing: &Choosing, own: Sampling, seed: u64) -> Sampling {
    Sampling {
        temperature: choosing.temperature.unwrap_or(own.temperature),
        top_k: choosing.top_k.map_or(own.top_k, |top_k| top_k as usize),
        top_p: choosing.top_p.unwrap_or(own.top_p),
        min_p: choosing.min_p.unwrap_or(own.min_p),
        repetition_penalty: choosing.repetition_penalty.unwrap_or(own.repetition_penalty),
        seed,
    }
}

pub fn compute(choosing: &Choosing) -> Compute {
    Compute::new(Isa::best(), if choosing.exact { Path::Exact } else { Path::Fast })
}

pub fn context(choosing: &Choosing) -> Option<usize> {
    choosing.context.map(|context| context as usize)
}

pub fn path_name(choosing: &Choosing) -> &'static str {
    if choosing.exact { "exact" } else { "fast" }
}

pub fn machine() -> Machine {
    Machine::read(Isa::best().name(), rayon::current_num_threads())
}

/// How it went, in one line.
pub fn summary(generation: &Generation, positions: usize) -> String {
    let (read, written) =
        (generation.prompt_tokens.len() - generation.reused_tokens, generation.tokens.len());
    let why = match generation.stop.as_str() {
        "end" => "the model ended it".to_owned(),
        "length" => "as many as asked for (-n)".to_owned(),
        "context" => format!("the context of {positions} tokens is full"),
        _ => "nobody reads on".to_owned(),
    };
    let each = generation.decode_ms / written.max(1) as f64;
    format!(
        "{read} tokens read in {:.0} ms, {written} written in {:.0} ms ({each:.1} ms each): {why}",
        generation.prefill_ms, generation.decode_ms
    )
}
