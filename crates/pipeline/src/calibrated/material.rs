//! The tokens of a calibrated run, and how many of them run at once.

use std::ops::Range;

use bitmill_checkpoint::{Checkpoint, ModelConfig};
use bitmill_tensor::FloatType;
use bitmill_text::Tokenizer;
use serde_json::{Value, json};

use crate::Error;
use crate::calibration::{self, Calibration, CalibrationOptions};

/// Windows to calibrate on and, after them, windows on which the result is measured.
#[derive(Debug, Clone)]
pub(crate) struct Material {
    pub calibration: Calibration,
    /// So many of the windows, the last ones, are held out.
    pub held_out: usize,
    /// What states between layers are kept in.
    pub states: FloatType,
    /// Bytes that activations of a layer may take.
    memory: u64,
}

impl Material {
    /// Reads the windows that `options` ask for. Where the built-in text has too few for all, a quarter at most is held out.
    ///
    /// # Errors
    /// As [`calibration::read`].
    pub fn read(checkpoint: &Checkpoint, options: &CalibrationOptions) -> Result<Self, Error> {
        let tokenizer = Tokenizer::from_checkpoint(checkpoint)?;
        let all = CalibrationOptions { samples: options.samples + options.held_out, ..options.clone() };
        let calibration = calibration::read(checkpoint, &tokenizer, &all)?;
        let found = calibration.windows.len();
        let held_out = if found < all.samples { options.held_out.min(found / 4) } else { options.held_out };
        Ok(Self { calibration, held_out, states: options.states.0, memory: options.memory.0 })
    }

    /// What a plan and a record say of it.
    pub fn to_json(&self) -> Value {
        json!({
            "source": self.calibration.source,
            "windows": self.windows(),
            "length": self.length(),
            "held_out_windows": self.held_out,
            "tokens_hash": self.calibration.hash,
        })
    }

    /// Windows to calibrate on.
    pub fn windows(&self) -> usize {
        self.calibration.windows.len() - self.held_out
    }

    /// Tokens of a window.
    pub fn length(&self) -> usize {
        self.calibration.windows.length
    }

    /// Of all `windows`, the rows of states: of calibration, and of what is held out.
    pub fn rows(&self, windows: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let (first_held_out, length) = (self.windows(), self.length());
        let calibration = windows.start.min(first_held_out)..windows.end.min(first_held_out);
        let held_out = windows.start.max(first_held_out)..windows.end.max(first_held_out);
        let place = |window: usize| (window - first_held_out) * length;
        (calibration.start * length..calibration.end * length, place(held_out.start)..place(held_out.end))
    }

    /// Those of `windows` that are held out.
    pub fn held_out_of(&self, windows: &Range<usize>) -> Range<usize> {
        windows.start.max(self.windows())..windows.end.max(self.windows())
    }

    /// All windows, as many at once as have room: one batch if all have. Held-out windows are in none with others then.
    pub fn batches(&self, config: &ModelConfig) -> Vec<Range<usize>> {
        let all = self.calibration.windows.len();
        let at_once = self.windows_at_once(config);
        if all <= at_once {
            return std::iter::once(0..all).collect();
        }
        let cut = |windows: Range<usize>| {
            let end = windows.end;
            windows.step_by(at_once).map(move |first| first..(first + at_once).min(end))
        };
        cut(0..self.windows()).chain(cut(self.windows()..all)).collect()
    }

    fn windows_at_once(&self, config: &ModelConfig) -> usize {
        // Both models run where a method wants the dense one's inputs: room for both is kept.
        let window = 2 * token_bytes(config) * self.length() as u64;
        usize::try_from(self.memory / window.max(1)).unwrap_or(usize::MAX).max(1)
    }

    /// The most bytes that activations of a layer take at once, those of the dense model beside: of all windows if it runs over
    /// them, else of those that are held out.
    pub fn activation_bytes(&self, config: &ModelConfig, dense_calibration: bool) -> u64 {
        let rows = |windows: &Range<usize>| {
            let (calibration, held_out) = self.rows(windows);
            let dense = if dense_calibration { calibration.len() } else { 0 } + held_out.len();
            (calibration.len() + held_out.len() + dense) as u64
        };
        self.batches(config).iter().map(rows).max().unwrap_or(0) * token_bytes(config)
    }

    /// The most rows of one batch that are calibrated on, if others are beside them: statistics are summed of a copy then.
    pub fn copied_rows(&self, config: &ModelConfig) -> usize {
        let rows = |windows: &Range<usize>| {
            let (calibration, held_out) = self.rows(windows);
            if held_out.is_empty() { 0 } else { calibration.len() }
        };
        self.batches(config).iter().map(rows).max().unwrap_or(0)
    }
}

/// Bytes that a token's activations take in a layer.
fn token_bytes(config: &ModelConfig) -> u64 {
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    // Hidden states, norm and update; q and what attention makes of it, k and v, the angles they are turned by; gate and up, after
    // the caches of k and v are gone.
    let floats =
        3 * config.hidden_size + 2 * q + 2 * kv + config.head_dim + 2 * config.intermediate_size.max(kv);
    // What an expert's tokens are gathered in, and what it makes of them.
    let gathered = if config.experts.is_some() { 2 * config.hidden_size } else { 0 };
    4 * (floats + gathered) as u64
}
