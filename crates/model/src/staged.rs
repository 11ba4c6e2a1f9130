//! Forward passes that can be stopped between layers, copied, and gone on with: for measuring what one layer or one
//! matrix does without running what lies before it again.

use bitmill_checkpoint::{Role, RoleKind, Tensor};
use bitmill_kernels::Compute;
use bitmill_tensor::Matrix;

use crate::experts::FeedForward;
use crate::model::Scratch;
use crate::weights::{Ffn, Layer, vector};
use crate::{Cache, Error, Model, Sequence, Want};

/// Whole texts on their way through a model, before one of its layers; made by [`Model::enter`].
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
/// let mut stage = model.enter(&compute, &[&[1, 17, 42]])?;
/// while stage.layer() < model.config().n_layers {
///     model.pass_layer(&compute, &mut stage, |_, _, _| ());
/// }
/// let (mut staged, mut whole) = (Matrix::default(), Matrix::default());
/// model.leave(&compute, &mut stage, &[0, 1, 2], &mut staged);
///
/// let mut cache = model.new_cache();
/// model.forward(&compute, &mut [Sequence { tokens: &[1, 17, 42], cache: &mut cache, want: Want::All }], &mut whole)?;
/// assert_eq!(staged, whole);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Stage {
    layer: usize,
    lengths: Vec<usize>,
    scratch: Scratch,
    /// The block that runs.
    block: Block,
    /// Whether its tokens were copied out of the others.
    gathered: bool,
}

/// A feed-forward block of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Block {
    /// The only one.
    #[default]
    Plain,
    /// One that a router picks for some tokens.
    Expert(usize),
    /// What every token goes through beside the experts.
    Shared,
}

impl Block {
    /// The number of the expert.
    pub fn expert(self) -> Option<usize> {
        match self {
            Self::Expert(number) => Some(number),
            Self::Plain | Self::Shared => None,
        }
    }

    /// The roles of its gate, up and down in `layer`.
    pub fn roles(self, layer: usize) -> [Role; 3] {
        let plain = [RoleKind::FfnGate, RoleKind::FfnUp, RoleKind::FfnDown];
        match self {
            Self::Plain => plain.map(|kind| Role::in_layer(layer, kind)),
            Self::Expert(number) => plain.map(|kind| Role::in_expert(layer, number, kind)),
            Self::Shared => [RoleKind::SharedGate, RoleKind::SharedUp, RoleKind::SharedDown]
                .map(|kind| Role::in_layer(layer, kind)),
        }
    }
}

impl Layer {
    /// Its matrices.
    ///
    /// # Panics
    /// If the layer has no such block.
    fn block(&self, block: Block) -> &FeedForward {
        match (&self.ffn, block) {
            (Ffn::Plain(plain), Block::Plain) => plain,
            (Ffn::Experts(experts), Block::Expert(number)) => &experts.experts[number],
            (Ffn::Experts(experts), Block::Shared) => &experts.shared.as_ref().expect("a shared block").block,
            _ => panic!("the layer has no {block:?}"),
        }
    }
}

impl Stage {
    /// The layer that comes next; the number of layers after the last.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Rows, positions and states.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// What that layer reads: `[tokens, hidden_size]`, text after text.
    pub fn hidden(&self) -> &Matrix {
        &self.scratch.hidden
    }

    /// What q, k and v multiply after [`Model::begin_layer`], and what routers, plain and shared blocks multiply after
    /// [`Model::end_attention`]: `[tokens, hidden_size]`.
    pub fn normed(&self) -> &Matrix {
        &self.scratch.normed
    }

    /// Keys after [`Model::attend_layer`], turned by their positions, as a cache holds them: `[tokens, kv heads · head_dim]`.
    pub fn keys(&self) -> &Matrix {
        &self.scratch.k
    }

    /// Values after [`Model::attend_layer`], as a cache holds them: `[tokens, kv heads · head_dim]`.
    pub fn values(&self) -> &Matrix {
        &self.scratch.v
    }

    /// What the matrix after attention multiplies: `[tokens, heads · head_dim]`.
    pub fn attended(&self) -> &Matrix {
        &self.scratch.attended
    }

    /// What gate and up of the block that was begun multiply: `[tokens of the block, hidden_size]`.
    pub fn block_input(&self) -> &Matrix {
        if self.gathered { &self.scratch.experts.x } else { &self.scratch.normed }
    }

    /// How many of the block's tokens are among the first `rows` of the stage; they come first.
    pub fn block_rows(&self, rows: usize) -> usize {
        match self.block {
            Block::Expert(number) => {
                self.scratch.experts.tokens(number).partition_point(|&token| token < rows)
            }
            Block::Plain | Block::Shared => rows,
        }
    }

    /// What down of the block that was opened multiplies: `[tokens of the block, width]`.
    pub fn block_inner(&self) -> &Matrix {
        &self.scratch.gate
    }

    /// Stands before `layer` with these states, as if it had run there.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn stand_before(&mut self, layer: usize, hidden: Matrix) {
        let there = &self.scratch.hidden;
        assert_eq!((hidden.rows(), hidden.cols()), (there.rows(), there.cols()), "states of the same tokens");
        self.layer = layer;
        self.scratch.hidden = hidden;
    }

    /// Becomes a copy of `other`, in the memory that this one has.
    pub fn copy_from(&mut self, other: &Self) {
        self.layer = other.layer;
        self.lengths.clone_from(&other.lengths);
        let (to, from) = (&mut self.scratch, &other.scratch);
        to.tokens.clone_from(&from.tokens);
        to.spans.clone_from(&from.spans);
        to.query_factors.clone_from(&from.query_factors);
        to.rotations.clone_from(&from.rotations);
        to.starts.clone_from(&from.starts);
        to.hidden.clone_from(&from.hidden);
    }
}

impl Model {
    /// Looks up the tokens of `texts`, each a sequence of its own.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn enter(&self, compute: &Compute, texts: &[&[u32]]) -> Result<Stage, Error> {
        let mut caches: Vec<Cache> = texts.iter().map(|_| self.new_cache()).collect();
        let mut batch: Vec<Sequence<'_>> = texts
            .iter()
            .zip(&mut caches)
            .map(|(tokens, cache)| Sequence { tokens, cache, want: Want::All })
            .collect();
        self.check(&batch)?;
        let mut stage = Stage { lengths: texts.iter().map(|text| text.len()).collect(), ..Stage::default() };
        self.begin(compute, &mut batch, &mut stage.scratch);
        Ok(stage)
    }

    /// Runs the layer that `stage` stands before. `see` is shown what each of its matrices multiplies,
    /// `[tokens, in_features]`, routers included, and the number of the expert that it is in: an expert meets some of the
    /// tokens, and is not shown where it meets none.
    ///
    /// # Panics
    /// If `stage` is past the last layer.
    pub fn pass_layer(
        &self,
        compute: &Compute,
        stage: &mut Stage,
        mut see: impl FnMut(RoleKind, Option<usize>, &Matrix),
    ) {
        let layer = &self.weights.layers[stage.layer];
        self.begin_layer(compute, stage);
        for kind in [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV] {
            see(kind, None, stage.normed());
        }
        self.attend_layer(compute, stage);
        see(RoleKind::AttnOutput, None, stage.attended());
        self.end_attention(compute, stage);
        if let Ffn::Experts(experts) = &layer.ffn {
            let routers = experts.shared.iter().map(|_| RoleKind::SharedRouter);
            routers.chain([RoleKind::Router]).for_each(|kind| see(kind, None, stage.normed()));
        }
        for block in self.blocks(stage.layer) {
            if !self.begin_block(compute, stage, block) {
                continue;
            }
            let matrices = layer.block(block);
            for linear in [&matrices.gate, &matrices.up] {
                see(linear.weight.info.role.kind, block.expert(), stage.block_input());
            }
            self.open_block(compute, stage);
            see(matrices.down.weight.info.role.kind, block.expert(), stage.block_inner());
            self.end_block(compute, stage);
        }
        self.end_layer(compute, stage);
    }

    /// Begins the layer that `stage` stands before: [`Stage::normed`] is what q, k and v multiply. With
    /// [`attend_layer`](Self::attend_layer), [`end_attention`](Self::end_attention), the blocks and
    /// [`end_layer`](Self::end_layer) after it, the layer is run step by step, and a matrix can be replaced before it runs
    /// by one that was made for what it multiplies.
    ///
    /// # Panics
    /// If `stage` is past the last layer.
    pub fn begin_layer(&self, compute: &Compute, stage: &mut Stage) {
        self.norm(compute, &self.weights.layers[stage.layer].attn_norm, &mut stage.scratch);
    }

    /// Runs q, k, v and what they are for: [`Stage::attended`] is what the matrix after attention multiplies.
    pub fn attend_layer(&self, compute: &Compute, stage: &mut Stage) {
        let layer = &self.weights.layers[stage.layer];
        let mut caches: Vec<Cache> = stage.lengths.iter().map(|_| self.new_cache()).collect();
        let mut batch: Vec<Sequence<'_>> =
            caches.iter_mut().map(|cache| Sequence { tokens: &[], cache, want: Want::All }).collect();
        self.attend_normed(compute, stage.layer, layer, &mut batch, &mut stage.scratch);
    }

    /// Runs the matrix after attention: [`Stage::normed`] is what the feed-forward block begins with, and what routers
    /// have picked experts by.
    pub fn end_attention(&self, compute: &Compute, stage: &mut Stage) {
        let layer = &self.weights.layers[stage.layer];
        self.end_attending(compute, layer, &mut stage.scratch);
        if let Ffn::Experts(experts) = &layer.ffn {
            let Scratch { normed, update, experts: scratch, .. } = &mut stage.scratch;
            experts.route(compute, normed, scratch, update);
        }
    }

    /// The feed-forward blocks of a layer, in the order in which they run.
    pub fn blocks(&self, layer: usize) -> Vec<Block> {
        match &self.weights.layers[layer].ffn {
            Ffn::Plain(_) => vec![Block::Plain],
            Ffn::Experts(experts) => {
                let numbers = (0..experts.experts.len()).map(Block::Expert);
                numbers.chain(experts.shared.iter().map(|_| Block::Shared)).collect()
            }
        }
    }

    /// Gathers the tokens of a block: [`Stage::block_input`] is what gate and up multiply. False where no token goes
    /// through it; it is then left out.
    pub fn begin_block(&self, compute: &Compute, stage: &mut Stage, block: Block) -> bool {
        stage.block = block;
        stage.gathered = false;
        let Scratch { normed, experts: scratch, .. } = &mut stage.scratch;
        match (&self.weights.layers[stage.layer].ffn, block) {
            (Ffn::Experts(experts), Block::Expert(number)) => {
                stage.gathered = !experts.takes_all(number, normed, scratch);
                experts.gather(compute, number, normed, scratch)
            }
            _ => true,
        }
    }

    /// Runs gate and up of the block that was begun: [`Stage::block_inner`] is what down multiplies.
    pub fn open_block(&self, compute: &Compute, stage: &mut Stage) {
        let block = self.weights.layers[stage.layer].block(stage.block);
        let Scratch { normed, gate, up, experts, .. } = &mut stage.scratch;
        block.open(compute, if stage.gathered { &experts.x } else { normed }, gate, up);
    }

    /// Runs down of the block that was begun and adds what comes of it to that of the layer's others.
    pub fn end_block(&self, compute: &Compute, stage: &mut Stage) {
        let layer = &self.weights.layers[stage.layer];
        let Scratch { normed, gate, update, experts: scratch, .. } = &mut stage.scratch;
        let down = &layer.block(stage.block).down;
        match (&layer.ffn, stage.block) {
            (Ffn::Experts(experts), Block::Expert(number)) => {
                down.run(compute, gate, &mut scratch.y);
                experts.add(compute, number, scratch, update);
            }
            (Ffn::Experts(experts), _) => {
                down.run(compute, gate, &mut scratch.y);
                if let Some(shared) = &experts.shared {
                    shared.add(compute, normed, scratch, update);
                }
            }
            (Ffn::Plain(_), _) => down.run(compute, gate, update),
        }
    }

    /// Ends the layer, all of whose blocks have run; `stage` stands before the next one.
    pub fn end_layer(&self, compute: &Compute, stage: &mut Stage) {
        compute.add_assign(&mut stage.scratch.hidden, &stage.scratch.update);
        stage.layer += 1;
    }

    /// What the head multiplies for the rows of `stage` that `rows` lists: `[rows, hidden_size]`.
    pub fn before_head(&self, compute: &Compute, stage: &Stage, rows: &[usize], out: &mut Matrix) {
        let mut gathered = Matrix::default();
        compute.gather(&stage.scratch.hidden, rows, &mut gathered);
        compute.rms_norm(&gathered, &self.weights.norm, self.config.rms_norm_eps, out);
    }

    /// The logits of the rows of `states` that `rows` lists, states as the last layer leaves them: `[rows, vocab_size]`.
    pub fn predict(&self, compute: &Compute, states: &Matrix, rows: &[usize], logits: &mut Matrix) {
        let (mut gathered, mut normed) = (Matrix::default(), Matrix::default());
        compute.gather(states, rows, &mut gathered);
        compute.rms_norm(&gathered, &self.weights.norm, self.config.rms_norm_eps, &mut normed);
        self.head(compute, &normed, logits);
    }

    /// The logits of the rows of `stage` that `rows` lists: `[rows, vocab_size]`.
    pub fn leave(&self, compute: &Compute, stage: &mut Stage, rows: &[usize], logits: &mut Matrix) {
        let mut normed = std::mem::take(&mut stage.scratch.normed);
        self.before_head(compute, stage, rows, &mut normed);
        self.head(compute, &normed, logits);
        stage.scratch.normed = normed;
    }

    /// Puts `tensor` in the place of the matrix, router, norm or bias with its role, and returns what was there; `None` if
    /// the model has no such tensor.
    ///
    /// # Panics
    /// If it has another shape, or a norm or bias is no float.
    pub fn replace(&mut self, tensor: Tensor) -> Option<Tensor> {
        let role = tensor.info.role;
        if let Some(place) = self.weights.vector_mut(role) {
            let values = vector(&tensor).expect("a vector of floats");
            assert_eq!(place.len(), values.len(), "a vector of the same length");
            return Some(tensor.with_values(std::mem::replace(place, values)));
        }
        let place = self.weights.matrix_mut(role)?;
        assert_eq!(place.info.shape, tensor.info.shape, "a matrix of the same shape");
        Some(std::mem::replace(place, tensor))
    }
}
