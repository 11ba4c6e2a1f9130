//! Feed-forward blocks: one for every token, or many of which a router picks a few for each.

use bitmill_checkpoint::Tensor;
use bitmill_kernels::{Compute, Routes};
use bitmill_tensor::Matrix;

use crate::weights::Linear;

/// `down(silu(gate(x)) · up(x))`.
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl FeedForward {
    /// `silu(gate(x)) · up(x)`, what `down` multiplies, into `gate`.
    pub(crate) fn open(&self, compute: &Compute, x: &Matrix, gate: &mut Matrix, up: &mut Matrix) {
        Linear::run_each(compute, x, [(&self.gate, &mut *gate), (&self.up, &mut *up)]);
        compute.swiglu(gate, up);
    }

    /// `y = down(silu(gate(x)) · up(x))`.
    pub(crate) fn run(
        &self,
        compute: &Compute,
        x: &Matrix,
        gate: &mut Matrix,
        up: &mut Matrix,
        y: &mut Matrix,
    ) {
        self.open(compute, x, gate, up);
        self.down.run(compute, gate, y);
    }

    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        [&self.gate, &self.up, &self.down].into_iter().map(|linear| &linear.weight)
    }
}

/// A layer's experts.
#[derive(Debug)]
pub(crate) struct Experts {
    /// `[experts, hidden_size]`.
    pub(crate) router: Linear,
    pub(crate) experts: Vec<FeedForward>,
    pub(crate) shared: Option<Shared>,
    /// Experts that a token goes through.
    pub(crate) used: usize,
    /// Whether their shares are made to sum to one.
    pub(crate) normalised: bool,
}

/// The block that every token goes through beside its experts.
#[derive(Debug)]
pub(crate) struct Shared {
    /// `[1, hidden_size]`: how much of it is let through.
    pub(crate) gate: Linear,
    pub(crate) block: FeedForward,
}

/// Activations of [`Experts`].
#[derive(Debug, Default)]
pub(crate) struct ExpertScratch {
    /// Of the router, then of the shared block's gate.
    logits: Matrix,
    routes: Routes,
    /// The tokens of one expert.
    pub(crate) x: Matrix,
    pub(crate) y: Matrix,
}

impl ExpertScratch {
    /// The tokens that go through expert `number`, ascending.
    pub(crate) fn tokens(&self, number: usize) -> &[usize] {
        self.routes.tokens(number)
    }
}

impl Experts {
    /// `y = Σ share · expert(x)`, expert after expert, then the shared block.
    ///
    /// Each expert sees all of its tokens at once, so that its matrices are read once a batch.
    pub(crate) fn run(
        &self,
        compute: &Compute,
        x: &Matrix,
        [gate, up]: [&mut Matrix; 2],
        scratch: &mut ExpertScratch,
        y: &mut Matrix,
    ) {
        self.route(compute, x, scratch, y);
        for (number, expert) in self.experts.iter().enumerate() {
            if self.gather(compute, number, x, scratch) {
                let tokens = if self.takes_all(number, x, scratch) { x } else { &scratch.x };
                expert.run(compute, tokens, gate, up, &mut scratch.y);
                self.add(compute, number, scratch, y);
            }
        }
        if let Some(shared) = &self.shared {
            shared.block.run(compute, x, gate, up, &mut scratch.y);
            shared.add(compute, x, scratch, y);
        }
    }

    /// Picks the experts of each token; `y` becomes zeros.
    pub(crate) fn route(&self, compute: &Compute, x: &Matrix, scratch: &mut ExpertScratch, y: &mut Matrix) {
        self.router.run(compute, x, &mut scratch.logits);
        compute.route(&scratch.logits, self.used, self.normalised, &mut scratch.routes);
        y.reshape(x.rows(), x.cols());
        y.as_mut_slice().fill(0.0);
    }

    /// The tokens that go through expert `number`, into `scratch.x` unless they are all of them, in order: one decoded token
    /// is. Whether there is any.
    pub(crate) fn gather(
        &self,
        compute: &Compute,
        number: usize,
        x: &Matrix,
        scratch: &mut ExpertScratch,
    ) -> bool {
        let tokens = scratch.routes.tokens(number);
        if tokens.len() < x.rows() {
            compute.gather(x, tokens, &mut scratch.x);
        }
        !tokens.is_empty()
    }

    /// Whether every token goes through expert `number`.
    pub(crate) fn takes_all(&self, number: usize, x: &Matrix, scratch: &ExpertScratch) -> bool {
        scratch.routes.tokens(number).len() == x.rows()
    }

    /// Adds what expert `number` made of its tokens, `scratch.y`, to theirs of `y`.
    pub(crate) fn add(&self, compute: &Compute, number: usize, scratch: &ExpertScratch, y: &mut Matrix) {
        let routes = &scratch.routes;
        compute.add_scaled_rows(y, routes.tokens(number), routes.shares(number), &scratch.y);
    }

    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        let shared = self.shared.iter();
        let shared = shared.flat_map(|shared| shared.block.matrices().chain([&shared.gate.weight]));
        self.experts.iter().flat_map(FeedForward::matrices).chain(shared).chain([&self.router.weight])
    }
}

impl Shared {
    /// Adds what the block made of `x`, `scratch.y`, to `y` as far as its gate lets it through.
    pub(crate) fn add(&self, compute: &Compute, x: &Matrix, scratch: &mut ExpertScratch, y: &mut Matrix) {
        self.gate.run(compute, x, &mut scratch.logits);
        compute.gate_rows(&mut scratch.y, &scratch.logits);
        compute.add_assign(y, &scratch.y);
    }
}
