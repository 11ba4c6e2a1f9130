//! Timing prefill and decoding.

use std::time::{Duration, Instant};

use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Cache, Model, Sequence, Want};
use bitmill_report::{Latency, Speed};
use bitmill_tensor::Matrix;

use crate::{BenchSettings, Error, peak_bytes, reset_peak};

/// Times `model` on the fast path, in the rayon pool that it is called from, and takes its peak memory.
///
/// One repetition reads a random prompt at once, goes back to the context that decoding starts from, and runs token
/// after token, each timed by itself; logits are computed for the last position only, sampling is left out. The
/// first repetition warms up and is not counted. Token ids come from `seed` alone: time does not depend on them.
///
/// Peak memory covers this call: what the process already holds counts, so measure before anything large is kept.
///
/// # Errors
/// [`ContextTooShort`](Error::ContextTooShort) for a model of fewer than 2 positions.
pub fn measure(model: &Model, isa: Isa, settings: &BenchSettings, seed: u64) -> Result<Speed, Error> {
    let lengths = Lengths::fit(settings, model.config().max_positions)?;
    let compute = Compute::new(isa, Path::Fast);
    let longest = lengths.prefill.max(lengths.context + lengths.decode);
    let tokens = random_tokens(seed, longest, model.config().vocab_size);

    // Pages that an evaluation touched and a latency does not need would count otherwise.
    model.release();
    let peak_scope = reset_peak();
    let mut run =
        Run { model, compute, tokens: &tokens, cache: model.new_cache(), logits: Matrix::default() };
    run.cache.reserve(longest);

    let (mut prefill_ms, mut decode_ms) = (Vec::new(), Vec::new());
    run.repeat(lengths, &mut prefill_ms, &mut decode_ms)?;
    prefill_ms.clear();
    decode_ms.clear();
    let limit = Duration::try_from_secs_f64(settings.max_seconds).unwrap_or(Duration::MAX);
    let start = Instant::now();
    for i in 0..settings.repeats.max(1) {
        if i > 0 && start.elapsed() >= limit {
            break;
        }
        run.repeat(lengths, &mut prefill_ms, &mut decode_ms)?;
    }

    Ok(Speed {
        prefill_ms: Latency::from_samples(&prefill_ms),
        prefill_tokens: lengths.prefill,
        decode_ms: Latency::from_samples(&decode_ms),
        decode_tokens: decode_ms.len(),
        decode_context: lengths.context,
        repeats: prefill_ms.len(),
        peak_bytes: peak_bytes(),
        peak_scope,
    })
}

/// The settings' lengths, as far as the model's context allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lengths {
    prefill: usize,
    context: usize,
    decode: usize,
}

impl Lengths {
    fn fit(settings: &BenchSettings, max_positions: usize) -> Result<Self, Error> {
        if max_positions < 2 {
            return Err(Error::ContextTooShort { max_positions });
        }
        // Half of a short context is left for decoding.
        let decode = settings.decode_tokens.clamp(1, max_positions / 2);
        Ok(Self {
            prefill: settings.prefill_tokens.clamp(1, max_positions),
            context: settings.decode_context.clamp(1, max_positions - decode),
            decode,
        })
    }
}

struct Run<'a> {
    model: &'a Model,
    compute: Compute,
    tokens: &'a [u32],
    cache: Cache,
    logits: Matrix,
}

impl Run<'_> {
    fn repeat(
        &mut self,
        lengths: Lengths,
        prefill_ms: &mut Vec<f64>,
        decode_ms: &mut Vec<f64>,
    ) -> Result<(), Error> {
        self.cache.truncate(0);
        prefill_ms.push(self.advance(0, lengths.prefill)?);
        self.cache.truncate(lengths.context);
        if lengths.context > lengths.prefill {
            self.advance(lengths.prefill, lengths.context)?;
        }
        for position in lengths.context..lengths.context + lengths.decode {
            decode_ms.push(self.advance(position, position + 1)?);
        }
        Ok(())
    }

    /// Runs the tokens `from..to` and says how long that took, in ms.
    fn advance(&mut self, from: usize, to: usize) -> Result<f64, Error> {
        let tokens = &self.tokens[from..to];
        let mut batch = [Sequence { tokens, cache: &mut self.cache, want: Want::Last }];
        let start = Instant::now();
        self.model.forward(&self.compute, &mut batch, &mut self.logits)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// `n` token ids below `vocab_size`, by splitmix64 (Steele, Lea, Flood 2014).
fn random_tokens(seed: u64, n: usize, vocab_size: usize) -> Vec<u32> {
    let mut state = seed;
    let draw = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The high half of the product is uniform below `vocab_size` without a division.
        ((u128::from(z) * vocab_size as u128) >> 64) as u32
    };
    (0..n).map(draw).collect()
}

#[cfg(test)]
mod tests {
    use bitmill_checkpoint::Checkpoint;
    use bitmill_testkit::{Variant, tiny};

    use super::*;

    fn model() -> Model {
        let folder = tiny(Variant::Qwen2);
        Model::load(&Checkpoint::open(folder.path()).unwrap()).unwrap()
    }

    #[test]
    fn every_repetition_but_the_first_is_counted() {
        let settings = BenchSettings {
            prefill_tokens: 12,
            decode_context: 5,
            decode_tokens: 3,
            repeats: 4,
            max_seconds: 60.0,
        };
        for isa in Isa::available() {
            let speed = measure(&model(), isa, &settings, 1).unwrap();
            assert_eq!((speed.repeats, speed.decode_tokens), (4, 12));
            assert_eq!((speed.prefill_tokens, speed.decode_context), (12, 5));
            for ms in [speed.prefill_ms, speed.decode_ms] {
                assert!(0.0 < ms.p10 && ms.p10 <= ms.median && ms.median <= ms.p90, "{ms:?}");
            }
        }
    }

    #[test]
    fn a_context_longer_than_the_prompt_is_filled_up_untimed() {
        let settings = BenchSettings {
            prefill_tokens: 4,
            decode_context: 9,
            decode_tokens: 2,
            repeats: 1,
            max_seconds: 60.0,
        };
        let speed = measure(&model(), Isa::best(), &settings, 1).unwrap();
        assert_eq!((speed.prefill_tokens, speed.decode_context, speed.decode_tokens), (4, 9, 2));
    }

    #[test]
    fn no_time_left_still_measures_once() {
        let settings = BenchSettings {
            prefill_tokens: 4,
            decode_context: 2,
            decode_tokens: 2,
            repeats: 9,
            max_seconds: 0.0,
        };
        assert_eq!(measure(&model(), Isa::best(), &settings, 1).unwrap().repeats, 1);
    }

    #[test]
    fn lengths_shrink_to_the_models_context() {
        let settings = BenchSettings::default();
        let lengths = |max_positions| Lengths::fit(&settings, max_positions).unwrap();
        assert_eq!(lengths(32768), Lengths { prefill: 512, context: 128, decode: 32 });
        assert_eq!(lengths(256), Lengths { prefill: 256, context: 128, decode: 32 });
        assert_eq!(lengths(140), Lengths { prefill: 140, context: 108, decode: 32 });
        assert_eq!(lengths(2), Lengths { prefill: 2, context: 1, decode: 1 });
        assert!(matches!(Lengths::fit(&settings, 1), Err(Error::ContextTooShort { max_positions: 1 })));
        let none = BenchSettings { prefill_tokens: 0, decode_context: 0, decode_tokens: 0, ..settings };
        assert_eq!(Lengths::fit(&none, 99).unwrap(), Lengths { prefill: 1, context: 1, decode: 1 });
    }

    #[test]
    fn tokens_come_from_the_seed_and_lie_below_the_vocabulary() {
        // splitmix64's first three outputs from state 1234567, as its reference code gives them.
        let outputs = [6_457_827_717_110_365_317_u64, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        let expected: Vec<u32> =
            outputs.iter().map(|&z| ((u128::from(z) * 1_000_000) >> 64) as u32).collect();
        assert_eq!(random_tokens(1_234_567, 3, 1_000_000), expected);
        let tokens = random_tokens(1, 1000, 320);
        assert!(tokens.iter().all(|&token| token < 320));
        assert_ne!(tokens, random_tokens(2, 1000, 320));
        assert!(random_tokens(1, 5, 1).iter().all(|&token| token == 0));
    }
}
