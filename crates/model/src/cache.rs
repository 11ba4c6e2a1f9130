//! What a model remembers of one sequence.

use bitmill_kernels::KvCache;

/// The keys and values of one sequence, layer by layer; made by [`Model::new_cache`](crate::Model::new_cache).
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) layers: Vec<KvCache>,
    /// Tokens of the first pass, by which some models stretch their positions.
    pub(crate) prompt: usize,
}

impl Cache {
    /// Positions held: tokens run so far.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::len)
    }

    /// Whether no token has been run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets every position from `len` on, so that the next token stands there.
    ///
    /// What is left stays as it was computed, also where a model stretches its positions by the length of the sequence
    /// (dynamic RoPE scaling): a new cache then gives other numbers.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }

    /// Makes room for `positions` more, so that running them allocates nothing here.
    pub fn reserve(&mut self, positions: usize) {
        self.layers.iter_mut().for_each(|layer| layer.reserve(positions));
    }

    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KvCache::bytes).sum()
    }
}
