//! What runs of several recipes over the same calibration tokens share in a layer: the dense model's stream, and the statistics
//! of inputs that are the same.
//!
//! Everything here is found by the bits of what it follows from, and follows from nothing else: a run that finds it makes the
//! bytes that it would make alone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bitmill_calib::DensePass;
use bitmill_stats::Hessian;
use bitmill_tensor::Matrix;
use xxhash_rust::xxh3::xxh3_128;

/// Inputs by their bits, and the width that they are summed at.
pub(crate) type InputsKey = (u128, usize);

/// The dense model's states by their bits, the layer in the source, the windows that they are of, and whether inputs are noted.
pub(crate) type DenseKey = (u128, usize, Range<usize>, bool);

/// What several runs share.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<Layer>);

#[derive(Debug, Default)]
struct Layer {
    number: usize,
    /// The states that each run enters its next layer with: the layer, and their hash.
    entering: HashMap<usize, (usize, u64)>,
    /// Of each run that takes part in the dense model's stream, whether it needs what its matrices multiply.
    dense_runs: HashMap<usize, bool>,
    hessians: HashMap<InputsKey, Arc<Hessian>>,
    dense: HashMap<DenseKey, Arc<DensePass>>,
    /// How often each run took over what another had found.
    taken: HashMap<usize, usize>,
}

impl Layer {
    fn count<T>(&mut self, run: usize, found: Option<T>) -> Option<T> {
        if found.is_some() {
            *self.taken.entry(run).or_default() += 1;
        }
        found
    }
}

/// A run among others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sharing<'a> {
    pub shared: &'a Shared,
    /// Its number.
    pub run: usize,
}

/// The bits of `rows` of `x`.
pub(crate) fn bits(x: &Matrix, rows: usize) -> u128 {
    xxh3_128(bytemuck::cast_slice(&x.as_slice()[..rows * x.cols()]))
}

impl<'a> Sharing<'a> {
    fn there(&self) -> MutexGuard<'a, Layer> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that the run enters `layer` with states of this hash.
    pub fn enters(&self, layer: usize, hash: u64) {
        self.there().entering.insert(self.run, (layer, hash));
    }

    /// Tells that the run has the dense model's stream as it is, and whether it needs what matrices multiply there.
    pub fn runs_dense(&self, needs_inputs: bool) {
        self.there().dense_runs.insert(self.run, needs_inputs);
    }

    /// Begins a layer; what others found in layers before it goes.
    pub fn begin(&self, layer: usize) {
        let mut there = self.there();
        if there.number != layer {
            there.number = layer;
            there.hessians.clear();
            there.dense.clear();
        }
    }

    /// Whether another run had the same inputs in the layer, or may have them because it enters it with the same states.
    pub fn has_twin(&self) -> bool {
        let there = self.there();
        let own = there.entering.get(&self.run);
        !there.hessians.is_empty()
            || there.entering.iter().any(|(run, entering)| *run != self.run && Some(entering) == own)
    }

    /// Whether another run needs the same of the dense model's stream.
    pub fn has_dense_twin(&self) -> bool {
        let there = self.there();
        let own = there.dense_runs.get(&self.run);
        own.is_some() && there.dense_runs.iter().any(|(run, needs)| *run != self.run && Some(needs) == own)
    }

    pub fn hessian(&self, key: InputsKey) -> Option<Arc<Hessian>> {
        let mut there = self.there();
        let found = there.hessians.get(&key).cloned();
        there.count(self.run, found)
    }

    pub fn keep_hessian(&self, key: InputsKey, hessian: Arc<Hessian>) {
        self.there().hessians.insert(key, hessian);
    }

    pub fn dense(&self, key: &DenseKey) -> Option<Arc<DensePass>> {
        let mut there = self.there();
        let found = there.dense.get(key).cloned();
        there.count(self.run, found)
    }

    /// How often the run took over what another had found.
    pub fn taken(&self) -> usize {
        self.there().taken.get(&self.run).copied().unwrap_or(0)
    }

    pub fn keep_dense(&self, key: DenseKey, pass: DensePass) {
        self.there().dense.insert(key, Arc::new(pass));
    }
}
