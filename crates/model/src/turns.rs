//! What positions mean to a model: RoPE's turns, some of which follow the length of the sequence.

use std::borrow::Cow;

use bitmill_checkpoint::{ModelConfig, RopeScaling};
use bitmill_kernels::{Pairing, RopeTable, YarnStretch};

use crate::Error;

/// The turns of a model.
#[derive(Debug)]
pub(crate) struct Turns {
    /// Those of sequences that have not outgrown the original context.
    table: RopeTable,
    growth: Option<Growth>,
    head_dim: usize,
    theta: f64,
}

/// How turns slow down as a sequence grows. Keys in the cache stay as they were turned when they came.
#[derive(Debug, Clone, Copy)]
enum Growth {
    /// With each pass, by the length after it (transformers' `dynamic`).
    Dynamic { factor: f64, original: usize },
    /// Once, by the length of the first pass, in powers of two (Qwen's first generation).
    Prompt { original: usize },
}

impl Turns {
    pub(crate) fn new(config: &ModelConfig) -> Result<Self, Error> {
        let (head_dim, theta) = (config.head_dim, config.rope.theta);
        let plain = RopeTable::new(head_dim, theta, pairing(config));
        let mut growth = None;
        let table = match &config.rope.scaling {
            RopeScaling::None => plain,
            &RopeScaling::Linear { factor } => plain.linear(factor),
            &RopeScaling::Dynamic { factor, original } => {
                growth = Some(Growth::Dynamic { factor, original });
                plain
            }
            &RopeScaling::PromptNtk { original } => {
                growth = Some(Growth::Prompt { original });
                plain
            }
            &RopeScaling::Llama3 { factor, low, high, original } => plain.llama3(factor, low, high, original),
            RopeScaling::Yarn(yarn) => {
                let stretch = YarnStretch {
                    factor: yarn.factor,
                    original: yarn.original,
                    beta_fast: yarn.beta_fast,
                    beta_slow: yarn.beta_slow,
                    truncate: yarn.truncate,
                };
                plain.yarn(theta, &stretch).scaled(yarn.attention as f32)
            }
            RopeScaling::Factors(factors) if factors.len() == head_dim / 2 => plain.divided_by(factors),
            RopeScaling::Factors(factors) => {
                return Err(Error::RopeFactors { found: factors.len(), head_dim });
            }
        };
        Ok(Self { table, growth, head_dim, theta })
    }

    /// The table for new tokens of a sequence that is `len` long with them and whose first pass had `prompt` tokens.
    pub(crate) fn of(&self, len: usize, prompt: usize) -> Cow<'_, RopeTable> {
        let stretch = match self.growth {
            Some(Growth::Dynamic { factor, original }) if len > original => {
                factor * len as f64 / original as f64 - (factor - 1.0)
            }
            Some(Growth::Prompt { original }) => prompt_alpha(prompt, original),
            _ => 1.0,
        };
        if stretch <= 1.0 {
            return Cow::Borrowed(&self.table);
        }
        let dim = self.head_dim as f64;
        // Heads of two elements have one pair, which turns at 1 radian whatever theta is.
        let theta = if self.head_dim > 2 { self.theta * stretch.powf(dim / (dim - 2.0)) } else { self.theta };
        Cow::Owned(RopeTable::new(self.head_dim, theta, self.table.pairing()))
    }
}

fn pairing(config: &ModelConfig) -> Pairing {
    match config.rope.pairing {
        bitmill_checkpoint::Pairing::Halves => Pairing::Halves,
        bitmill_checkpoint::Pairing::Adjacent => Pairing::Adjacent,
    }
}

/// `2^⌈log₂(len / original) + 1⌉ − 1`, at least 1: `get_ntk_alpha` of `modeling_qwen.py`.
fn prompt_alpha(prompt: usize, original: usize) -> f64 {
    let context = (prompt as f64 / original as f64).log2() + 1.0;
    (context.ceil().exp2() - 1.0).max(1.0)
}

/// What a query at `position` is multiplied by where attention is scaled by the logarithm of the length: 1 within the
/// first `original` positions, `ln(position + 1) / ln(original)` after them.
pub(crate) fn log_n_factor(position: usize, original: usize) -> f32 {
    if position < original { 1.0 } else { (((position + 1) as f64).ln() / (original as f64).ln()) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_doubles_with_every_doubling_of_the_prompt() {
        for (prompt, alpha) in [(1, 1.0), (16, 1.0), (17, 3.0), (32, 3.0), (33, 7.0), (64, 7.0), (65, 15.0)] {
            assert_eq!(prompt_alpha(prompt, 16), alpha, "{prompt}");
        }
    }

    #[test]
    fn queries_grow_past_the_original_context() {
        assert_eq!([0, 8, 15].map(|position| log_n_factor(position, 16)), [1.0; 3]);
        assert_eq!(log_n_factor(255, 16), 2.0);
    }
}
