//! The forward pass.

use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, PoisonError};

use bitmill_checkpoint::{Checkpoint, ModelConfig, Tensor};
use bitmill_kernels::{AttentionShape, Compute, KvCache, Rotations};
use bitmill_tensor::Matrix;

use crate::experts::ExpertScratch;
use crate::turns::{Turns, log_n_factor};
use crate::weights::{Ffn, Layer, Linear, Weights};
use crate::{Cache, Error, Limits, Sampler, Sampling, Session};

/// A model that runs from its checkpoint: norms and biases are in memory, matrices stay where they are, as they are
/// stored.
///
/// ```
/// use bitmill_checkpoint::Checkpoint;
/// use bitmill_kernels::{Compute, Isa, Path};
/// use bitmill_model::{Model, Sequence, Want};
/// use bitmill_tensor::Matrix;
///
/// let folder = bitmill_testkit::tiny(bitmill_testkit::Variant::Llama);
/// let model = Model::load(&Checkpoint::open(folder.path())?)?;
/// let compute = Compute::new(Isa::best(), Path::Exact);
///
/// let mut cache = model.new_cache();
/// let mut logits = Matrix::default();
/// let mut batch = [Sequence { tokens: &[1, 17, 42], cache: &mut cache, want: Want::Last }];
/// model.forward(&compute, &mut batch, &mut logits)?;
/// assert_eq!((logits.rows(), logits.cols()), (1, 320));
/// assert_eq!(cache.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
    turns: Turns,
    /// Buffers of forward passes that are over, for the next ones.
    spare: Mutex<Vec<Scratch>>,
}

/// The new tokens of one sequence of a batch.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// The tokens, at least one; the first stands at position `cache.len()`.
    pub tokens: &'a [u32],
    /// What was run of this sequence before; the tokens are added to it.
    pub cache: &'a mut Cache,
    /// The positions to return logits for.
    pub want: Want,
}

/// Positions of a sequence's new tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All of them.
    All,
    /// The last.
    Last,
    /// This one, counted from the first new token, and those after it; none if it is past the end.
    From(usize),
}

impl Want {
    /// The first position wanted of `tokens`.
    fn first(self, tokens: usize) -> usize {
        match self {
            Self::All => 0,
            Self::Last => tokens.saturating_sub(1),
            Self::From(first) => first.min(tokens),
        }
    }
}

/// Activations of one forward pass.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) tokens: Vec<u32>,
    /// Positions of each sequence's new tokens, and the tokens of its first pass.
    pub(crate) spans: Vec<(Range<usize>, usize)>,
    /// What each query is multiplied by, for models that do so.
    pub(crate) query_factors: Vec<f32>,
    /// First row of each sequence, then the number of rows.
    pub(crate) starts: Vec<usize>,
    /// Rows that logits are wanted for.
    wanted: Vec<usize>,
    pub(crate) rotations: Rotations,
    pub(crate) hidden: Matrix,
    /// What the products that begin a block multiply.
    pub(crate) normed: Matrix,
    q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    pub(crate) attended: Matrix,
    /// What a block adds to `hidden`; also the other half of a gathering.
    pub(crate) update: Matrix,
    /// The gate, and then what the last product multiplies.
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) experts: ExpertScratch,
}

impl Model {
    /// A model over the weights of `checkpoint`, which it keeps open. Reads norms and biases only.
    ///
    /// # Errors
    /// [`Error`] if a tensor is missing or has another shape than the config asks for, or a norm is no float.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let turns = Turns::new(&config)?;
        let weights = Weights::load(checkpoint)?;
        Ok(Self { config, weights, turns, spare: Mutex::default() })
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> Cache {
        let kv_width = self.config.n_kv_heads * self.config.head_dim;
        Cache { layers: (0..self.config.n_layers).map(|_| KvCache::new(kv_width)).collect(), prompt: 0 }
    }

    /// Drops the pages of every matrix that a mapped file holds, and the buffers of passes that are over; the next
    /// pass reads and makes them again.
    pub fn release(&self) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.weights.matrices().for_each(Tensor::release);
    }

    /// Runs the new tokens of several sequences at once, adds them to the sequences' caches, and puts the logits of
    /// the positions wanted into `logits`: sequence after sequence, position after position.
    ///
    /// Products with weights see all tokens together, attention sees each sequence alone, so a sequence's logits are
    /// those of running it by itself, up to the rounding of another order of sums.
    ///
    /// # Shapes
    /// `logits` becomes `[positions wanted, vocab_size]`.
    ///
    /// # Errors
    /// [`Error`] if a sequence has no tokens, a token no row, the context too many positions or a cache another
    /// model's shape; no cache was touched then.
    pub fn forward(
        &self,
        compute: &Compute,
        batch: &mut [Sequence<'_>],
        logits: &mut Matrix,
    ) -> Result<(), Error> {
        self.check(batch)?;
        let lock = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        self.run(compute, batch, &mut scratch, logits);
        lock().push(scratch);
        Ok(())
    }

    /// Runs the new tokens of several sequences as [`forward`](Self::forward) does, but for the logits: `observe` gets
    /// the number of each layer with the states that enter it and those that leave it, residual stream included.
    ///
    /// # Shapes
    /// States: `[tokens of all sequences, hidden_size]`, sequence after sequence.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn observe_layers(
        &self,
        compute: &Compute,
        batch: &mut [Sequence<'_>],
        mut observe: impl FnMut(usize, &Matrix, &Matrix),
    ) -> Result<(), Error> {
        self.check(batch)?;
        let (mut scratch, mut entering) = (Scratch::default(), Matrix::default());
        self.begin(compute, batch, &mut scratch);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            entering.clone_from(&scratch.hidden);
            self.attend(compute, index, layer, batch, &mut scratch);
            self.feed_forward(compute, layer, &mut scratch);
            observe(index, &entering, &scratch.hidden);
        }
        Ok(())
    }

    /// The tokens that follow `prompt` when the likeliest is taken each time: `max_new` of them, fewer if one ends
    /// the text (that one is the last) or the context is full.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn greedy(&self, compute: &Compute, prompt: &[u32], max_new: usize) -> Result<Vec<u32>, Error> {
        let limits =
            Limits { new_tokens: max_new, positions: self.config.max_positions, ends: &self.config.eos };
        let mut sampler = Sampler::new(Sampling::default());
        let mut session = Session::new(self, *compute);
        Ok(session.generate(&mut sampler, prompt, limits, |_| ControlFlow::Continue(()))?.tokens)
    }

    pub(crate) fn check(&self, batch: &[Sequence<'_>]) -> Result<(), Error> {
        let config = &self.config;
        let kv_width = config.n_kv_heads * config.head_dim;
        if batch.is_empty() {
            return Err(Error::NoTokens { sequence: 0 });
        }
        for (sequence, Sequence { tokens, cache, .. }) in batch.iter().enumerate() {
            if tokens.is_empty() {
                return Err(Error::NoTokens { sequence });
            }
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
                return Err(Error::TokenOutOfRange { token, vocab_size: config.vocab_size });
            }
            let positions = cache.len() + tokens.len();
            if positions > config.max_positions {
                return Err(Error::TooLong { positions, max_positions: config.max_positions });
            }
            let foreign = cache.layers.iter().find(|layer| layer.width() != kv_width);
            if foreign.is_some() || cache.layers.len() != config.n_layers {
                return Err(Error::ForeignCache {
                    found: cache.layers.len(),
                    found_width: foreign.map_or(kv_width, KvCache::width),
                    expected: config.n_layers,
                    expected_width: kv_width,
                });
            }
        }
        Ok(())
    }

    fn run(&self, compute: &Compute, batch: &mut [Sequence<'_>], scratch: &mut Scratch, logits: &mut Matrix) {
        self.begin(compute, batch, scratch);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attend(compute, index, layer, batch, scratch);
            if index + 1 == self.weights.layers.len() {
                scratch.keep_wanted(compute);
            }
            self.feed_forward(compute, layer, scratch);
        }
        if self.weights.layers.is_empty() {
            scratch.keep_wanted(compute);
        }
        compute.rms_norm(&scratch.hidden, &self.weights.norm, self.config.rms_norm_eps, &mut scratch.normed);
        self.head(compute, &scratch.normed, logits);
    }

    /// The last product.
    pub(crate) fn head(&self, compute: &Compute, normed: &Matrix, logits: &mut Matrix) {
        match &self.weights.head {
            Some(head) => head.run(compute, normed, logits),
            None => compute.matmul(&self.weights.embedding.view(), normed, logits),
        }
    }

    /// Lists the rows of `batch` and looks up their embeddings.
    pub(crate) fn begin(&self, compute: &Compute, batch: &mut [Sequence<'_>], scratch: &mut Scratch) {
        scratch.lay_out(batch, self.config.log_n);
        let tables = scratch
            .spans
            .iter()
            .map(|(positions, prompt)| (self.turns.of(positions.end, *prompt), positions.clone()));
        compute.rotations(scratch.tokens.len(), tables, &mut scratch.rotations);
        compute.embed(&self.weights.embedding.view(), &scratch.tokens, &mut scratch.hidden);
    }

    /// The attention block up to its last product; the new keys and values into the caches.
    pub(crate) fn attend(
        &self,
        compute: &Compute,
        index: usize,
        layer: &Layer,
        batch: &mut [Sequence<'_>],
        scratch: &mut Scratch,
    ) {
        self.norm(compute, &layer.attn_norm, scratch);
        self.attend_normed(compute, index, layer, batch, scratch);
    }

    /// What the products that begin a block multiply.
    pub(crate) fn norm(&self, compute: &Compute, weight: &[f32], scratch: &mut Scratch) {
        compute.rms_norm(&scratch.hidden, weight, self.config.rms_norm_eps, &mut scratch.normed);
    }

    /// [`attend`](Self::attend) after the norm.
    pub(crate) fn attend_normed(
        &self,
        compute: &Compute,
        index: usize,
        layer: &Layer,
        batch: &mut [Sequence<'_>],
        scratch: &mut Scratch,
    ) {
        let Scratch { starts, query_factors, rotations, normed, q, k, v, attended, .. } = scratch;
        Linear::run_each(compute, normed, [(&layer.q, q), (&layer.k, k), (&layer.v, v)]);
        for (x, norm) in [(&mut *q, &layer.q_norm), (&mut *k, &layer.k_norm)] {
            if let Some(norm) = norm {
                compute.rms_norm_heads(x, norm, self.config.rms_norm_eps);
            }
            compute.rope(x, rotations);
        }
        if !query_factors.is_empty() {
            compute.scale_rows(q, query_factors);
        }
        for (sequence, rows) in batch.iter_mut().zip(starts.windows(2)) {
            compute.append(&mut sequence.cache.layers[index], k, v, rows[0]..rows[1]);
        }
        let shape = AttentionShape {
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim,
            window: self.config.window_of(index),
        };
        let batch = &*batch;
        compute.attention(shape, q, starts, |sequence| &batch[sequence].cache.layers[index], attended);
    }

    /// The product that ends the attention block, added to `hidden`, and the norm of the feed-forward block.
    pub(crate) fn end_attending(&self, compute: &Compute, layer: &Layer, scratch: &mut Scratch) {
        layer.o.run(compute, &scratch.attended, &mut scratch.update);
        compute.add_assign(&mut scratch.hidden, &scratch.update);
        self.norm(compute, &layer.ffn_norm, scratch);
    }

    /// The product that ends the attention block, and the feed-forward block, into `hidden`.
    fn feed_forward(&self, compute: &Compute, layer: &Layer, scratch: &mut Scratch) {
        self.end_attending(compute, layer, scratch);
        let Scratch { hidden, normed, update, gate, up, experts, .. } = scratch;
        match &layer.ffn {
            Ffn::Plain(block) => block.run(compute, normed, gate, up, update),
            Ffn::Experts(block) => block.run(compute, normed, [gate, up], experts, update),
        }
        compute.add_assign(hidden, update);
    }
}

impl Scratch {
    /// Lists the rows of `batch`; queries past position `log_n` get a factor.
    fn lay_out(&mut self, batch: &mut [Sequence<'_>], log_n: Option<usize>) {
        let Self { tokens, spans, query_factors, starts, wanted, .. } = self;
        tokens.clear();
        spans.clear();
        query_factors.clear();
        starts.clear();
        wanted.clear();
        for sequence in batch {
            let (first, past) = (tokens.len(), sequence.cache.len());
            if past == 0 {
                sequence.cache.prompt = sequence.tokens.len();
            }
            starts.push(first);
            tokens.extend_from_slice(sequence.tokens);
            let positions = past..past + sequence.tokens.len();
            if let Some(original) = log_n {
                query_factors.extend(positions.clone().map(|position| log_n_factor(position, original)));
            }
            spans.push((positions, sequence.cache.prompt));
            wanted.extend(first + sequence.want.first(sequence.tokens.len())..tokens.len());
        }
        starts.push(tokens.len());
    }

    /// Keeps the rows that logits are wanted for: past the last attention no other row is read again.
    fn keep_wanted(&mut self, compute: &Compute) {
        if self.wanted.len() == self.tokens.len() {
            return;
        }
        for kept in [&mut self.hidden, &mut self.attended] {
            if kept.rows() == self.tokens.len() {
                compute.gather(kept, &self.wanted, &mut self.update);
                std::mem::swap(kept, &mut self.update);
            }
        }
    }
}
