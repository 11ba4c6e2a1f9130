//! Reading, continuing and taking up a sequence again.

use std::ops::ControlFlow;

use bitmill_checkpoint::Checkpoint;
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Error, Limits, Model, Sampler, Sampling, Session, Stop};
use bitmill_testkit::{Variant, assert_close, tiny};

fn model() -> Model {
    Model::load(&Checkpoint::open(tiny(Variant::Llama).path()).unwrap()).unwrap()
}

fn exact() -> Compute {
    Compute::new(Isa::best(), Path::Exact)
}

#[test]
fn a_prefix_that_was_read_is_not_read_again() {
    let model = model();
    let mut session = Session::new(&model, exact());
    let first: Vec<u32> = (3..40).collect();
    assert_eq!(session.read(&first).unwrap(), 0);
    let mut second = first[..20].to_vec();
    second.extend([200, 201, 202]);
    assert_eq!(session.read(&second).unwrap(), 20);
    assert_eq!(session.held(), second);
    let again = session.logits().clone();
    let mut fresh = Session::new(&model, exact());
    assert_eq!(fresh.read(&second).unwrap(), 0);
    let reason = "another number of rows at once is another order of sums";
    assert_close(again.as_slice(), fresh.logits().as_slice(), 1e-5, reason);
    // The same prompt runs its last token for the logits.
    assert_eq!(session.read(&second).unwrap(), second.len() - 1);
    assert_eq!(session.read(&second[..5]).unwrap(), 4);
}

#[test]
fn a_prompt_that_fills_the_context_is_read_and_no_longer_one() {
    let model = model();
    let positions = model.config().max_positions;
    let prompt: Vec<u32> = (0..positions as u32).map(|i| i * 7 % 300).collect();
    let mut session = Session::new(&model, exact());
    session.read(&prompt).unwrap();
    assert_eq!(session.held().len(), positions);
    assert!(matches!(session.push(1), Err(Error::TooLong { .. })));
    let mut longer = prompt.clone();
    longer.push(1);
    assert!(matches!(session.read(&longer), Err(Error::TooLong { .. })));
    assert_eq!(session.held(), prompt, "what was refused changed nothing");
    assert!(matches!(session.read(&[]), Err(Error::NoTokens { .. })));
}

#[test]
fn it_stops_for_each_reason() {
    let model = model();
    let prompt = [5, 6, 7];
    let free = Limits { new_tokens: 10, positions: usize::MAX, ends: &[] };
    let run = |limits: Limits<'_>, caller_stops_at: usize| {
        let mut seen = Vec::new();
        let mut session = Session::new(&model, exact());
        let each = |token| {
            seen.push(token);
            if seen.len() == caller_stops_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut sampler = Sampler::new(Sampling::default());
        let run = session.generate(&mut sampler, &prompt, limits, each).unwrap();
        assert_eq!(run.tokens, seen);
        (run.tokens, run.stop)
    };
    let (tokens, stop) = run(free, 0);
    assert_eq!((tokens.len(), stop), (10, Stop::Length));
    let end = tokens[4];
    let first = tokens.iter().position(|&token| token == end).unwrap();
    let ended = run(Limits { ends: &[end], ..free }, 0);
    assert_eq!(ended, (tokens[..=first].to_vec(), Stop::End));
    assert_eq!(run(Limits { positions: 8, ..free }, 0), (tokens[..6].to_vec(), Stop::Context));
    assert_eq!(run(free, 2), (tokens[..2].to_vec(), Stop::Caller));
    assert_eq!(run(Limits { new_tokens: 0, ..free }, 0), (Vec::new(), Stop::Length));
}
