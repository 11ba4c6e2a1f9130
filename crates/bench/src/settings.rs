//! What to time, and how often.

/// How a model is timed.
///
/// ```
/// let quick = bitmill_bench::BenchSettings { repeats: 1, ..Default::default() };
/// assert_eq!(quick.prefill_tokens, 512);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BenchSettings {
    /// Length of the prompt that prefill reads at once; shortened to the model's context where that is smaller.
    pub prefill_tokens: usize,
    /// Tokens in the cache before the first token of decoding is timed; shortened likewise.
    pub decode_context: usize,
    /// Tokens timed one by one in each repetition; shortened likewise, never to none.
    pub decode_tokens: usize,
    /// Repetitions of both, after one that is not counted.
    pub repeats: usize,
    /// No repetition begins later than this after the first counted one, in seconds, so that a large model on a small
    /// machine is timed at least once and not all night.
    pub max_seconds: f64,
}

impl Default for BenchSettings {
    fn default() -> Self {
        Self { prefill_tokens: 512, decode_context: 128, decode_tokens: 32, repeats: 5, max_seconds: 30.0 }
    }
}
