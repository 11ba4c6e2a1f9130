//! One sequence that is read, continued, and taken up again.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bitmill_kernels::Compute;
use bitmill_tensor::Matrix;

use crate::{Cache, Error, Model, Sampler, Sequence, Want};

/// Tokens run at once when a prompt is read: bounds the memory of activations, and is long enough for the kernels
/// that share a weight's unpacking between tokens.
const CHUNK: usize = 512;

/// A sequence with its cache. Reading another prompt keeps what the two begin with in common, such as the turns of
/// a chat so far.
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a Model,
    compute: Compute,
    cache: Cache,
    /// The tokens that the cache holds.
    held: Vec<u32>,
    logits: Matrix,
    /// Tokens run at once.
    chunk: usize,
}

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// New tokens at most.
    pub new_tokens: usize,
    /// Positions at most, prompt included; the model's own limit holds besides.
    pub positions: usize,
    /// Tokens that end a text.
    pub ends: &'a [u32],
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A token that ends the text, the last one.
    End,
    /// As many tokens as asked for.
    Length,
    /// No position is left.
    Context,
    /// The caller wanted no more.
    Caller,
}

/// A continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The new tokens, with the one that ended the text.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub stop: Stop,
    /// Tokens of the prompt that the cache still held.
    pub reused: usize,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time of all new tokens, the caller's included.
    pub decode: Duration,
}

impl<'a> Session<'a> {
    /// An empty sequence.
    pub fn new(model: &'a Model, compute: Compute) -> Self {
        let (cache, held, logits) = (model.new_cache(), Vec::new(), Matrix::default());
        Self { model, compute, cache, held, logits, chunk: CHUNK }
    }

    /// The tokens that the cache holds.
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Makes `prompt` the sequence, running only what differs from the sequence so far, and at least its last token.
    /// Returns how many tokens were not run.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn read(&mut self, prompt: &[u32]) -> Result<usize, Error> {
        let common = self.held.iter().zip(prompt).take_while(|(held, new)| held == new).count();
        let reused = common.min(prompt.len().saturating_sub(1));
        let max_positions = self.model.config().max_positions;
        if prompt.len() > max_positions {
            return Err(Error::TooLong { positions: prompt.len(), max_positions });
        }
        self.cache.truncate(reused);
        self.held.truncate(reused);
        let mut rest = &prompt[reused..];
        if rest.is_empty() {
            return Err(Error::NoTokens { sequence: 0 });
        }
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rest.len().min(self.chunk));
            rest = after;
            let want = if rest.is_empty() { Want::Last } else { Want::From(chunk.len()) };
            self.run(chunk, want)?;
        }
        Ok(reused)
    }

    /// Adds `token` to the sequence.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn push(&mut self, token: u32) -> Result<(), Error> {
        self.run(&[token], Want::Last)
    }

    /// The scores of every token to come next, one row; none before anything was read.
    pub fn logits(&self) -> &Matrix {
        &self.logits
    }

    /// Reads `prompt` and continues it; `each` sees every token as it is chosen.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn generate(
        &mut self,
        sampler: &mut Sampler,
        prompt: &[u32],
        limits: Limits<'_>,
        mut each: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Continuation, Error> {
        let begin = Instant::now();
        let reused = self.read(prompt)?;
        let read = Instant::now();
        let positions = limits.positions.min(self.model.config().max_positions);
        let mut seen = prompt.to_vec();
        let stop = loop {
            if seen.len() - prompt.len() >= limits.new_tokens {
                break Stop::Length;
            }
            // The last token needs no position of its own: nothing is asked of it.
            if seen.len() > positions {
                break Stop::Context;
            }
            if seen.len() > prompt.len() {
                self.push(seen[seen.len() - 1])?;
            }
            let token = sampler.choose(&self.compute, &self.logits, &seen);
            seen.push(token);
            let flow = each(token);
            if limits.ends.contains(&token) {
                break Stop::End;
            }
            if flow.is_break() {
                break Stop::Caller;
            }
        };
        let tokens = seen.split_off(prompt.len());
        Ok(Continuation { tokens, stop, reused, prefill: read - begin, decode: read.elapsed() })
    }

    fn run(&mut self, tokens: &[u32], want: Want) -> Result<(), Error> {
        let mut batch = [Sequence { tokens, cache: &mut self.cache, want }];
        self.model.forward(&self.compute, &mut batch, &mut self.logits)?;
        self.held.extend_from_slice(tokens);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bitmill_checkpoint::Checkpoint;
    use bitmill_kernels::{Isa, Path};
    use bitmill_testkit::{Variant, assert_close, tiny};

    use super::*;

    #[test]
    fn chunks_make_up_the_whole() {
        let model = Model::load(&Checkpoint::open(tiny(Variant::Qwen2).path()).unwrap()).unwrap();
        let prompt: Vec<u32> = (0..100).map(|i| i * 7 % 300).collect();
        let read = |chunk| {
            let mut session =
                Session { chunk, ..Session::new(&model, Compute::new(Isa::best(), Path::Exact)) };
            session.read(&prompt).unwrap();
            assert_eq!(session.held(), prompt);
            session.logits().clone()
        };
        let whole = read(1000);
        for chunk in [1, 33, 50, 99, 100] {
            let reason = "another number of rows at once is another order of sums";
            assert_close(read(chunk).as_slice(), whole.as_slice(), 1e-5, reason);
        }
    }
}
