//! Forward passes that can be stopped between layers, copied, and gone on with: for measuring what one layer or one
//! matrix does without running what lies before it again.

use bitmill_checkpoint::{RoleKind, Tensor};
use bitmill_kernels::Compute;
use bitmill_tensor::Matrix;

use crate::model::Scratch;
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
}

impl Stage {
    /// The layer that comes next; the number of layers after the last.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// What that layer reads: `[tokens, hidden_size]`, text after text.
    pub fn hidden(&self) -> &Matrix {
        &self.scratch.hidden
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
        let mut caches: Vec<Cache> = stage.lengths.iter().map(|_| self.new_cache()).collect();
        let mut batch: Vec<Sequence<'_>> =
            caches.iter_mut().map(|cache| Sequence { tokens: &[], cache, want: Want::All }).collect();
        let scratch = &mut stage.scratch;
        self.attend(compute, stage.layer, layer, &mut batch, scratch);
        for kind in [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV] {
            see(kind, None, &scratch.normed);
        }
        see(RoleKind::AttnOutput, None, &scratch.attended);
        self.feed_forward(compute, layer, scratch, &mut see);
        stage.layer += 1;
    }

    /// What the head multiplies for the rows of `stage` that `rows` lists: `[rows, hidden_size]`.
    pub fn before_head(&self, compute: &Compute, stage: &Stage, rows: &[usize], out: &mut Matrix) {
        let mut gathered = Matrix::default();
        compute.gather(&stage.scratch.hidden, rows, &mut gathered);
        compute.rms_norm(&gathered, &self.weights.norm, self.config.rms_norm_eps, out);
    }

    /// The logits of the rows of `stage` that `rows` lists: `[rows, vocab_size]`.
    pub fn leave(&self, compute: &Compute, stage: &mut Stage, rows: &[usize], logits: &mut Matrix) {
        let mut normed = std::mem::take(&mut stage.scratch.normed);
        self.before_head(compute, stage, rows, &mut normed);
        self.head(compute, &normed, logits);
        stage.scratch.normed = normed;
    }

    /// Puts `tensor` in the place of the matrix with its role, and returns that; `None` if the model has no such
    /// matrix.
    ///
    /// # Panics
    /// If it has another shape.
    pub fn replace(&mut self, tensor: Tensor) -> Option<Tensor> {
        let place = self.weights.matrix_mut(tensor.info.role)?;
        assert_eq!(place.info.shape, tensor.info.shape, "a matrix of the same shape");
        Some(std::mem::replace(place, tensor))
    }
}
