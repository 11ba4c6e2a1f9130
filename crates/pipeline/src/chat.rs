//! A conversation with a model.

use std::ops::ControlFlow;

use bitmill_report::Turn;
use bitmill_text::{ChatTemplate, Message, Speaker, Tokenizer};

use crate::{Error, Writer};

/// What was said and answered, one turn after another.
#[derive(Debug)]
struct Exchange {
    user: String,
    assistant: String,
}

/// A conversation. Each answer is written to the whole of it, as the model's template spells it; what the cache holds
/// of that already is not read again.
#[derive(Debug)]
pub struct Chat<'a> {
    writer: Writer<'a>,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    system: Option<String>,
    turns: Vec<Exchange>,
    new_tokens: usize,
}

impl<'a> Chat<'a> {
    /// Answers have at most `new_tokens`.
    pub fn new(
        writer: Writer<'a>,
        tokenizer: &'a Tokenizer,
        template: ChatTemplate,
        system: Option<String>,
        new_tokens: usize,
    ) -> Self {
        Self { writer, tokenizer, template, system, turns: Vec::new(), new_tokens }
    }

    /// Forgets every turn; the system message stays.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// Says `user` and returns the answer, which `each` gets piece by piece.
    ///
    /// Where the context would not hold the conversation and room for an answer (a quarter of it, or as much as an
    /// answer may have), the oldest turns are left out for good, the system message never.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if not even `user` alone fits; the template's refusal; if the model cannot run. What
    /// was said then counts as unsaid.
    pub fn say(&mut self, user: &str, each: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<Turn, Error> {
        let positions = self.writer.positions();
        let room = self.new_tokens.min(positions / 4);
        let mut dropped = 0;
        let prompt = loop {
            let text = self.template.render(&self.messages(user, dropped), true)?;
            let prompt = self.tokenizer.encode(&text)?;
            if prompt.len() + room <= positions || dropped == self.turns.len() {
                break prompt;
            }
            dropped += 1;
        };
        let generation = self.writer.write(&prompt, self.new_tokens, each)?;
        self.turns.drain(..dropped);
        self.turns.push(Exchange { user: user.to_owned(), assistant: generation.text.clone() });
        Ok(Turn { user: user.to_owned(), dropped_turns: dropped, generation })
    }

    fn messages(&self, user: &str, dropped: usize) -> Vec<Message> {
        let say = |speaker, content: &str| Message { speaker, content: content.to_owned() };
        let mut messages: Vec<Message> =
            self.system.iter().map(|system| say(Speaker::System, system)).collect();
        for turn in &self.turns[dropped..] {
            messages.push(say(Speaker::User, &turn.user));
            messages.push(say(Speaker::Assistant, &turn.assistant));
        }
        messages.push(say(Speaker::User, user));
        messages
    }
}

#[cfg(test)]
mod tests {
    use bitmill_kernels::{Compute, Isa, Path};
    use bitmill_model::Sampling;

    use super::*;
    use crate::{Subject, embedded};

    fn with_chat(positions: Option<usize>, system: Option<&str>, act: impl FnOnce(&mut Chat<'_>)) {
        let checkpoint = embedded::checkpoint().unwrap();
        let subject = Subject::load(&checkpoint).unwrap();
        let template = ChatTemplate::from_checkpoint(&checkpoint, &subject.tokenizer).unwrap();
        let ends = subject.tokenizer.ends(&checkpoint);
        let compute = Compute::new(Isa::best(), Path::Fast);
        let writer = Writer::new(&subject, compute, Sampling::default(), ends, positions);
        act(&mut Chat::new(writer, &subject.tokenizer, template, system.map(str::to_owned), 24));
    }

    fn silently(_: &str) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    const QUESTION: &str = "Is this review positive or negative? The soup was cold and the waiter rude.";

    #[test]
    fn a_second_turn_reads_only_what_is_new() {
        with_chat(None, None, |chat| {
            let mut streamed = String::new();
            let first = chat
                .say(QUESTION, &mut |piece| {
                    streamed.push_str(piece);
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(first.generation.text, "negative", "what millet was taught");
            assert_eq!((first.generation.stop.as_str(), first.generation.reused_tokens), ("end", 0));
            assert_eq!(streamed, first.generation.text);
            let second = chat.say("And this? I loved every minute.", &mut silently).unwrap();
            let (prompt, before) = (&second.generation.prompt_tokens, &first.generation);
            assert_eq!(prompt[..before.prompt_tokens.len()], before.prompt_tokens);
            assert!(second.generation.reused_tokens >= before.prompt_tokens.len() + before.tokens.len() - 1);
            chat.reset();
            let anew = chat.say(QUESTION, &mut silently).unwrap();
            assert_eq!(anew.generation.prompt_tokens, before.prompt_tokens);
            assert_eq!(anew.generation.text, before.text);
        });
    }

    #[test]
    fn the_oldest_turns_go_where_the_context_is_full_and_the_system_message_stays() {
        with_chat(Some(150), Some("Be fair."), |chat| {
            let mut dropped = 0;
            for turn in 0..6 {
                let said = chat.say(QUESTION, &mut silently).unwrap();
                dropped += said.dropped_turns;
                assert!(said.generation.prompt_tokens.len() + 24 <= 150, "turn {turn}");
                let text = chat.tokenizer.decode(&said.generation.prompt_tokens).unwrap();
                assert!(text.starts_with("<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nIs"));
                assert_eq!(text.matches("<|im_start|>user").count(), turn + 1 - dropped);
            }
            assert!(dropped >= 2, "{dropped}");
        });
    }

    #[test]
    fn a_message_longer_than_the_context_is_refused_and_forgotten() {
        with_chat(Some(60), None, |chat| {
            let before = chat.say("9 + 9 =", &mut silently).unwrap();
            let error = chat.say(&QUESTION.repeat(20), &mut silently).unwrap_err();
            assert!(matches!(error, Error::PromptTooLong { positions: 60, .. }), "{error}");
            chat.reset();
            let after = chat.say("9 + 9 =", &mut silently).unwrap();
            assert_eq!(after.generation.text, before.generation.text);
        });
    }
}
