//! Continuing a text: tokens chosen, text given out as it comes, times taken.

use std::ops::ControlFlow;
use std::time::Duration;

use bitmill_checkpoint::Checkpoint;
use bitmill_kernels::Compute;
use bitmill_model::{Limits, Sampler, Sampling, Session, Stop};
use bitmill_report::{Generation, Sampled};
use bitmill_text::TextStream;

use crate::{Error, Subject};

/// Continues texts with one model.
#[derive(Debug)]
pub struct Writer<'a> {
    subject: &'a Subject,
    session: Session<'a>,
    sampler: Sampler,
    ends: Vec<u32>,
    positions: usize,
}

impl<'a> Writer<'a> {
    /// Writes with `subject` until one of `ends`, using at most `positions` of its context.
    pub fn new(
        subject: &'a Subject,
        compute: Compute,
        sampling: Sampling,
        ends: Vec<u32>,
        positions: Option<usize>,
    ) -> Self {
        let most = subject.model.config().max_positions;
        let positions = positions.unwrap_or(most).min(most);
        let session = Session::new(&subject.model, compute);
        Self { subject, session, sampler: Sampler::new(sampling), ends, positions }
    }

    /// Positions of the context.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Continues `prompt` by at most `new_tokens`. `each` gets the text piece by piece, in whole characters, and may
    /// end it.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`], or if the model cannot run.
    pub fn write(
        &mut self,
        prompt: &[u32],
        new_tokens: usize,
        each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation, Error> {
        if prompt.len() > self.positions {
            return Err(Error::PromptTooLong { tokens: prompt.len(), positions: self.positions });
        }
        let mut stream = TextStream::new(&self.subject.tokenizer);
        let mut text = String::new();
        let mut broken = None;
        let limits = Limits { new_tokens, positions: self.positions, ends: &self.ends };
        let run =
            self.session.generate(&mut self.sampler, prompt, limits, |token| match stream.push(token) {
                Ok(piece) if piece.is_empty() => ControlFlow::Continue(()),
                Ok(piece) => {
                    text.push_str(&piece);
                    each(&piece)
                }
                Err(error) => {
                    broken = Some(error);
                    ControlFlow::Break(())
                }
            })?;
        if let Some(error) = broken {
            return Err(error.into());
        }
        let rest = stream.finish()?;
        if !rest.is_empty() {
            text.push_str(&rest);
            // Nothing is left to end.
            let _ = each(&rest);
        }
        let stop = match run.stop {
            Stop::End => "end",
            Stop::Length => "length",
            Stop::Context => "context",
            Stop::Caller => "caller",
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Generation {
            prompt_tokens: prompt.to_vec(),
            reused_tokens: run.reused,
            tokens: run.tokens,
            text,
            stop: stop.to_owned(),
            prefill_ms: ms(run.prefill),
            decode_ms: ms(run.decode),
        })
    }
}

/// How a model's own generation_config.json asks for tokens to be chosen; the likeliest where it does not ask for
/// sampling, or says nothing.
pub fn model_sampling(checkpoint: &Checkpoint) -> Sampling {
    let files = checkpoint.other_files();
    let config = files.iter().find(|(name, _)| name == "generation_config.json");
    let config: serde_json::Value =
        config.and_then(|(_, bytes)| serde_json::from_slice(bytes).ok()).unwrap_or_default();
    let number = |key: &str| config[key].as_f64().map(|value| value as f32).filter(|value| value.is_finite());
    let plain = Sampling::default();
    let penalty = number("repetition_penalty").filter(|&penalty| penalty > 0.0);
    let repetition_penalty = penalty.unwrap_or(plain.repetition_penalty);
    if config["do_sample"] != true {
        return Sampling { repetition_penalty, ..plain };
    }
    Sampling {
        temperature: number("temperature").unwrap_or(1.0).max(0.0),
        top_k: config["top_k"].as_u64().unwrap_or(0) as usize,
        top_p: number("top_p").unwrap_or(1.0),
        min_p: number("min_p").unwrap_or(0.0),
        repetition_penalty,
        ..plain
    }
}

/// `sampling` as documents carry it.
pub fn sampled(sampling: &Sampling) -> Sampled {
    let &Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed } = sampling;
    Sampled { temperature, top_k, top_p, min_p, repetition_penalty, seed }
}

#[cfg(test)]
mod tests {
    use bitmill_checkpoint::Region;
    use bitmill_testkit::millet;

    use super::*;

    fn sampling(config: &str) -> Sampling {
        let own = |name: &str| Region::from_vec(std::fs::read(millet().join("model").join(name)).unwrap());
        let mut files: Vec<(String, Region)> =
            ["config.json", "model.safetensors"].map(|name| (name.to_owned(), own(name))).into();
        files.push(("generation_config.json".to_owned(), Region::from_vec(config.into())));
        model_sampling(&Checkpoint::from_files("test", files).unwrap())
    }

    #[test]
    fn a_models_own_sampling_holds_where_it_asks_for_any() {
        let asked = r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}"#;
        let expected = Sampling {
            temperature: 0.7,
            top_k: 20,
            top_p: 0.8,
            repetition_penalty: 1.05,
            ..Sampling::default()
        };
        assert_eq!(sampling(asked), expected);
        assert_eq!(sampling(r#"{"temperature": 0.7, "top_k": 20}"#), Sampling::default());
        assert_eq!(sampling(r#"{"do_sample": true}"#), Sampling { temperature: 1.0, ..Sampling::default() });
        let strange = r#"{"do_sample": true, "temperature": -3, "top_k": "x", "repetition_penalty": 0}"#;
        assert_eq!(sampling(strange), Sampling::default());
    }
}
