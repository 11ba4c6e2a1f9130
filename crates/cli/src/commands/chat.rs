//! `bitmill chat`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::ops::ControlFlow;

use bitmill_checkpoint::Checkpoint;
use bitmill_pipeline::{Chat, Subject, Writer, model_sampling, sampled};
use bitmill_report::{ChatReport, ChatSchema, Turn, timestamp, to_json};
use bitmill_text::ChatTemplate;

use super::generate::{compute, context, machine, path_name, sampling, summary};
use crate::args::{Chat as Args, Global};
use crate::failure::Failure;
use crate::{Outcome, models, stdout};

const HELP: &str = "/reset forgets the conversation, /help shows this, /exit (or Ctrl-D) ends";

pub fn chat(args: &Args, global: &Global) -> Result<Outcome, Failure> {
    let checkpoint = models::open(args.model.as_deref())?;
    let subject = Subject::load(&checkpoint)?;
    let template = template(args, &checkpoint, &subject)?;
    let mut ends = subject.tokenizer.ends(&checkpoint);
    ends.extend(template.turn_end(&subject.tokenizer));
    if ends.is_empty() {
        return Err(bitmill_text::Error::NoEnd { checkpoint: checkpoint.name() }.into());
    }
    let sampling = sampling(&args.choosing, model_sampling(&checkpoint), global.seed);
    let writer = Writer::new(&subject, compute(&args.choosing), sampling, ends, context(&args.choosing));
    let positions = writer.positions();
    let system = args.system.clone();
    let mut chat = Chat::new(writer, &subject.tokenizer, template, system, args.tokens as usize);
    let mut talk = Talk { chat: &mut chat, positions, json: global.json, turns: Vec::new() };
    match &args.prompt {
        Some(prompt) => drop(talk.say(prompt)?),
        None => talk.read_lines(&subject.name)?,
    }
    if global.json {
        let report = ChatReport {
            schema: ChatSchema,
            version: env!("CARGO_PKG_VERSION").into(),
            created: timestamp(),
            model: subject.name.clone(),
            system: args.system.clone(),
            turns: talk.turns,
            sampling: sampled(&sampling),
            path: path_name(&args.choosing).into(),
            machine: machine(),
        };
        stdout::print(&to_json(&report))?;
    }
    Ok(Outcome::Done)
}

fn template(args: &Args, checkpoint: &Checkpoint, subject: &Subject) -> Result<ChatTemplate, Failure> {
    let mut template = match &args.template {
        Some(file) => {
            let source = std::fs::read_to_string(file)
                .map_err(|error| Failure::plain(format!("{}: {error}", file.display())))?;
            ChatTemplate::for_tokenizer(&source, &subject.tokenizer)?
        }
        None => ChatTemplate::from_checkpoint(checkpoint, &subject.tokenizer)?,
    };
    args.settings.iter().for_each(|(name, value)| template.set(name, value.clone()));
    Ok(template)
}

/// A conversation in progress.
struct Talk<'c, 'm> {
    chat: &'c mut Chat<'m>,
    positions: usize,
    json: bool,
    turns: Vec<Turn>,
}

impl Talk<'_, '_> {
    /// Says one thing and prints the answer; breaks when nobody reads on.
    fn say(&mut self, text: &str) -> Result<ControlFlow<()>, Failure> {
        let json = self.json;
        let mut each = |piece: &str| if json { ControlFlow::Continue(()) } else { stdout::stream(piece) };
        let turn = self.chat.say(text, &mut each)?;
        if turn.dropped_turns > 0 {
            eprintln!(
                "the oldest {} left out: the context holds {} tokens",
                if turn.dropped_turns == 1 {
                    "turn is".to_owned()
                } else {
                    format!("{} turns are", turn.dropped_turns)
                },
                self.positions
            );
        }
        let flow =
            if turn.generation.stop == "caller" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        if !json {
            stdout::print("\n")?;
            eprintln!("{}", summary(&turn.generation, self.positions));
        }
        self.turns.push(turn);
        Ok(flow)
    }

    /// Takes each line of stdin as a message, until its end.
    fn read_lines(&mut self, model: &str) -> Result<(), Failure> {
        let stdin = std::io::stdin();
        let terminal = stdin.is_terminal();
        if terminal {
            eprintln!("{model}; {HELP}");
        }
        let mut line = String::new();
        loop {
            if terminal {
                eprint!("> ");
                // A prompt that cannot be shown is not worth ending for.
                let _ = std::io::stderr().flush();
            }
            line.clear();
            let read = stdin.lock().read_line(&mut line);
            if read.map_err(|error| Failure::plain(format!("stdin: {error}")))? == 0 {
                break;
            }
            match line.trim() {
                "" => {}
                "/exit" => break,
                "/help" => eprintln!("{HELP}"),
                "/reset" => self.chat.reset(),
                command if command.starts_with('/') && !command.contains(' ') => {
                    eprintln!("there is no {command}: {HELP}");
                }
                text => match self.say(text) {
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break,
                    // At a terminal a message that cannot be answered is one to say differently.
                    Err(failure) if terminal => failure.print(),
                    Err(failure) => return Err(failure),
                },
            }
        }
        Ok(())
    }
}
