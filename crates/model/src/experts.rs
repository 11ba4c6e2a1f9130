//! Feed-forward blocks: one for every token, or many of which a router picks a few for each.

use bitmill_checkpoint::{RoleKind, Tensor};
use bitmill_kernels::{Compute, Routes};
use bitmill_tensor::Matrix;

use crate::weights::Linear;

/// Is shown what matrices multiply, `[tokens, in_features]`, and in which expert they are.
pub(crate) type See<'a> = &'a mut dyn FnMut(RoleKind, Option<usize>, &Matrix);

/// `down(silu(gate(x)) · up(x))`.
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl FeedForward {
    /// `y = down(silu(gate(x)) · up(x))`; what `down` multiplies stays in `gate`.
    pub(crate) fn run(
        &self,
        compute: &Compute,
        x: &Matrix,
        gate: &mut Matrix,
        up: &mut Matrix,
        y: &mut Matrix,
    ) {
        Linear::run_each(compute, x, [(&self.gate, &mut *gate), (&self.up, &mut *up)]);
        compute.swiglu(gate, up);
        self.down.run(compute, gate, y);
    }

    /// Shows what its matrices multiplied in [`run`](Self::run).
    pub(crate) fn show(&self, expert: Option<usize>, x: &Matrix, gate: &Matrix, see: See<'_>) {
        for linear in [&self.gate, &self.up] {
            see(linear.weight.info.role.kind, expert, x);
        }
        see(self.down.weight.info.role.kind, expert, gate);
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

/// Activations of [`Experts::run`].
#[derive(Debug, Default)]
pub(crate) struct ExpertScratch {
    /// Of the router, then of the shared block's gate.
    logits: Matrix,
    routes: Routes,
    /// The tokens of one expert.
    x: Matrix,
    y: Matrix,
}

impl Experts {
    /// `y = Σ share · expert(x)`, expert after expert, then the shared block.
    ///
    /// Each expert sees all of its tokens at once, so that its matrices are read once a batch; `see` is shown them.
    pub(crate) fn run(
        &self,
        compute: &Compute,
        x: &Matrix,
        [gate, up]: [&mut Matrix; 2],
        scratch: &mut ExpertScratch,
        y: &mut Matrix,
        see: See<'_>,
    ) {
        self.router.run(compute, x, &mut scratch.logits);
        see(RoleKind::Router, None, x);
        compute.route(&scratch.logits, self.used, self.normalised, &mut scratch.routes);
        y.reshape(x.rows(), x.cols());
        y.as_mut_slice().fill(0.0);
        for (number, expert) in self.experts.iter().enumerate() {
            let tokens = scratch.routes.tokens(number);
            if tokens.is_empty() {
                continue;
            }
            // All of them, in order: one decoded token is.
            let x = if tokens.len() == x.rows() {
                x
            } else {
                compute.gather(x, tokens, &mut scratch.x);
                &scratch.x
            };
            expert.run(compute, x, gate, up, &mut scratch.y);
            expert.show(Some(number), x, gate, see);
            compute.add_scaled_rows(y, tokens, scratch.routes.shares(number), &scratch.y);
        }
        if let Some(shared) = &self.shared {
            shared.gate.run(compute, x, &mut scratch.logits);
            see(RoleKind::SharedRouter, None, x);
            shared.block.run(compute, x, gate, up, &mut scratch.y);
            shared.block.show(None, x, gate, see);
            compute.gate_rows(&mut scratch.y, &scratch.logits);
            compute.add_assign(y, &scratch.y);
        }
    }

    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        let shared = self.shared.iter();
        let shared = shared.flat_map(|shared| shared.block.matrices().chain([&shared.gate.weight]));
        self.experts.iter().flat_map(FeedForward::matrices).chain(shared).chain([&self.router.weight])
    }
}
