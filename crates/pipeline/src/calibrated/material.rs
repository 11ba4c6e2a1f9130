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
        let window = activation_bytes(config) * self.length() as u64;
        usize::try_from(self.memory / window.max(1)).unwrap_or(usize::MAX).max(1)
    }

    /// The most bytes that activations of a layer take at once, those of the dense model beside.
    pub fn activation_bytes(&self, config: &ModelConfig) -> u64 {
        let largest = self.batches(config).iter().map(Range::len).max().unwrap_or(0);
        (largest * self.length()) as u64 * activation_bytes(config)
    }
}

/// Bytes that a token's activations take in a layer, in the model that it becomes and in the dense one.
fn activation_bytes(config: &ModelConfig) -> u64 {
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    // Hidden states, their copy on the way in, norm, update; q, k, v, their cache and what attention makes; gate and up.
    let floats = 4 * config.hidden_size + 2 * q + 4 * kv + 2 * config.intermediate_size;
    2 * 4 * floats as u64
}
