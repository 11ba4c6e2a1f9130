//! One layer at a time: shows what each matrix is about to multiply, so that it can be replaced by one that was made for
//! that, and goes on with what comes of it.
//!
//! ```text
//! compressed   norm ─▶ meet(q k v) ─▶ attention ─▶ meet(o) ─▶ norm ─▶ meet(gate up) ─▶ meet(down) ─▶ next layer
//! dense        runs each step with the matrices as they were, just before they are met
//! ```

use std::sync::Arc;

use bitmill_checkpoint::{Role, RoleKind, Tensor};
use bitmill_kernels::Compute;
use bitmill_model::{Model, Stage};
use bitmill_tensor::Matrix;

/// Whole texts on their way through a model and through the model that it becomes.
#[derive(Debug)]
pub struct Streams {
    /// What the layers compressed so far make of the texts.
    pub compressed: Stage,
    /// What the dense model makes of the same texts, or of the last of them.
    pub dense: Option<Dense>,
    /// So many rows of `compressed` are of texts to calibrate on; those after them are only run.
    pub calibration_rows: usize,
    /// What a cache of the compressed model holds of the texts to calibrate on; `None` if nobody asks.
    pub cached: Option<Cached>,
}

/// How far the keys and values reach that a layer puts into its cache.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cached {
    /// The largest magnitude of keys, turned by their positions; NaN if one of them is.
    pub keys: f32,
    /// The largest magnitude of values; NaN if one of them is.
    pub values: f32,
}

impl Cached {
    /// Looks at the first `rows` of what a layer has just cached.
    fn add(&mut self, stage: &Stage, rows: usize) {
        let largest = |most: f32, x: &Matrix| {
            let met = &x.as_slice()[..rows * x.cols()];
            // `max` would pass over a NaN, which is to be found.
            met.iter().fold(most, |most, x| if most.is_nan() || x.abs() <= most { most } else { x.abs() })
        };
        self.keys = largest(self.keys, stage.keys());
        self.values = largest(self.values, stage.values());
    }
}

/// The dense model's stream.
#[derive(Debug)]
pub enum Dense {
    /// It runs.
    Runs(Stage),
    /// It runs, and what its matrices multiply is noted.
    Noted(Stage, Vec<Matrix>),
    /// It has run through the layer beside another stream.
    Ran(Arc<DensePass>),
}

/// What the dense model made of texts in a layer.
#[derive(Debug, Default)]
pub struct DensePass {
    /// What its matrices multiplied, in the order in which they are met; nothing if that was not noted.
    pub inputs: Vec<Matrix>,
    /// What it put out.
    pub hidden: Matrix,
}

impl Dense {
    /// What it makes of the texts so far.
    pub fn hidden(&self) -> &Matrix {
        match self {
            Self::Runs(stage) | Self::Noted(stage, _) => stage.hidden(),
            Self::Ran(pass) => &pass.hidden,
        }
    }

    fn run(&mut self, run: impl FnOnce(&mut Stage)) {
        if let Self::Runs(stage) | Self::Noted(stage, _) = self {
            run(stage);
        }
    }

    /// Runs a step, the one after `met` that were shown; what its matrices multiply.
    fn step(
        &mut self,
        met: &mut usize,
        run: impl FnOnce(&mut Stage),
        seen: fn(&Stage) -> &Matrix,
    ) -> Option<&Matrix> {
        *met += 1;
        match self {
            Self::Runs(stage) => {
                run(stage);
                Some(seen(stage))
            }
            Self::Noted(stage, inputs) => {
                run(stage);
                inputs.push(seen(stage).clone());
                inputs.last()
            }
            Self::Ran(pass) => pass.inputs.get(*met - 1),
        }
    }
}

/// What some matrices of a layer are about to multiply.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[tokens, in_features]`.
    pub x: &'a Matrix,
    /// So many of its first rows are there to calibrate on.
    pub calibration_rows: usize,
    /// What the dense model's matrices multiply for the same tokens, where all of them run there too.
    pub dense: Option<&'a Matrix>,
}

/// Is shown the roles of matrices that share their inputs, before they run; returns the tensors that it replaced, which are
/// put back once the others have run.
pub type Meet<'a, E> = &'a mut dyn FnMut(&mut Model, &[Role], Inputs<'_>) -> Result<Vec<Tensor>, E>;

/// Runs the layer that `streams` stand before, step by step: what one matrix was replaced by shows in the inputs of the next.
///
/// ```
/// use bitmill_calib::{Streams, pass_layer};
/// use bitmill_checkpoint::Checkpoint;
/// use bitmill_kernels::{Compute, Isa, Path};
/// use bitmill_model::Model;
///
/// let folder = bitmill_testkit::tiny(bitmill_testkit::Variant::Llama);
/// let mut model = Model::load(&Checkpoint::open(folder.path())?)?;
/// let compute = Compute::new(Isa::best(), Path::Exact);
/// let compressed = model.enter(&compute, &[&[1, 17, 42], &[1, 5]])?;
/// let mut streams = Streams { compressed, dense: None, calibration_rows: 3, cached: None };
/// let mut widths = Vec::new();
/// pass_layer::<std::convert::Infallible>(&mut model, &compute, &mut streams, &mut |_, roles, inputs| {
///     widths.push((roles.len(), inputs.x.cols(), inputs.calibration_rows));
///     Ok(Vec::new())
/// })?;
/// assert_eq!(widths, [(3, 64, 3), (1, 64, 3), (2, 64, 3), (1, 160, 3)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What `meet` returns.
///
/// # Panics
/// If they are past the last layer.
pub fn pass_layer<E>(
    model: &mut Model,
    compute: &Compute,
    streams: &mut Streams,
    meet: Meet<'_, E>,
) -> Result<(), E> {
    let Streams { compressed, dense, calibration_rows, cached } = streams;
    let rows = *calibration_rows;
    let layer = compressed.layer();
    let mut met = 0;
    // The dense model's stream is one step ahead; its buffers hold what the step began with.
    let beside = dense.as_mut().and_then(|dense| {
        let run = |stage: &mut Stage| {
            model.begin_layer(compute, stage);
            model.attend_layer(compute, stage);
        };
        dense.step(&mut met, run, Stage::normed)
    });
    model.begin_layer(compute, compressed);
    let roles = [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV].map(|kind| Role::in_layer(layer, kind));
    let inputs = Inputs::new(compressed.normed(), rows, beside);
    let replaced = meet(model, &roles, inputs)?;
    model.attend_layer(compute, compressed);
    if let Some(cached) = cached {
        cached.add(compressed, rows);
    }
    put_back(model, replaced);

    let beside = dense
        .as_mut()
        .and_then(|dense| dense.step(&mut met, |stage| model.end_attention(compute, stage), Stage::attended));
    let inputs = Inputs::new(compressed.attended(), rows, beside);
    let replaced = meet(model, &[Role::in_layer(layer, RoleKind::AttnOutput)], inputs)?;
    model.end_attention(compute, compressed);
    put_back(model, replaced);

    for block in model.blocks(layer) {
        let [gate, up, down] = block.roles(layer);
        // Experts meet other tokens in the dense model, which runs through them by itself.
        let mut dense_block = dense.as_mut().filter(|_| block.expert().is_none());
        let beside = dense_block.as_mut().and_then(|dense| {
            let run = |stage: &mut Stage| {
                model.begin_block(compute, stage, block);
                model.open_block(compute, stage);
            };
            dense.step(&mut met, run, Stage::block_input)
        });
        let runs = model.begin_block(compute, compressed, block);
        if runs {
            let inputs = Inputs::new(compressed.block_input(), compressed.block_rows(rows), beside);
            let replaced = meet(model, &[gate, up], inputs)?;
            model.open_block(compute, compressed);
            put_back(model, replaced);
        } else {
            meet_nothing(model, meet, &[gate, up])?;
        }
        let beside = dense_block.as_mut().and_then(|dense| {
            dense.step(&mut met, |stage| model.end_block(compute, stage), Stage::block_inner)
        });
        if runs {
            let inputs = Inputs::new(compressed.block_inner(), compressed.block_rows(rows), beside);
            let replaced = meet(model, &[down], inputs)?;
            model.end_block(compute, compressed);
            put_back(model, replaced);
        } else {
            meet_nothing(model, meet, &[down])?;
        }
        if let Some(dense) = dense.as_mut().filter(|_| block.expert().is_some()) {
            dense.run(|stage| {
                if model.begin_block(compute, stage, block) {
                    model.open_block(compute, stage);
                    model.end_block(compute, stage);
                }
            });
        }
    }
    model.end_layer(compute, compressed);
    if let Some(dense) = dense {
        dense.run(|stage| model.end_layer(compute, stage));
    }
    Ok(())
}

/// Shows matrices that no token meets.
fn meet_nothing<E>(model: &mut Model, meet: Meet<'_, E>, roles: &[Role]) -> Result<(), E> {
    let replaced = meet(model, roles, Inputs::new(&Matrix::default(), 0, None))?;
    put_back(model, replaced);
    Ok(())
}

fn put_back(model: &mut Model, replaced: Vec<Tensor>) {
    for tensor in replaced {
        model.replace(tensor);
    }
}

impl<'a> Inputs<'a> {
    fn new(x: &'a Matrix, calibration_rows: usize, dense: Option<&'a Matrix>) -> Self {
        Self { x, calibration_rows, dense: dense.filter(|dense| dense.rows() == x.rows()) }
    }
}
