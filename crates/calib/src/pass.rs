//! One layer at a time: shows what each matrix is about to multiply, so that it can be replaced by one that was made for
//! that, and goes on with what comes of it.
//!
//! ```text
//! compressed   norm ─▶ meet(q k v) ─▶ attention ─▶ meet(o) ─▶ norm ─▶ meet(gate up) ─▶ meet(down) ─▶ next layer
//! dense        runs each step with the matrices as they were, just before they are met
//! ```

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
    pub dense: Option<Stage>,
    /// So many rows of `compressed` are of texts to calibrate on; those after them are only run.
    pub calibration_rows: usize,
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
/// let mut streams = Streams { compressed, dense: None, calibration_rows: 3 };
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
    let Streams { compressed, dense, calibration_rows } = streams;
    let rows = *calibration_rows;
    let layer = compressed.layer();
    // The dense model's stream is one step ahead; its buffers hold what the step began with.
    if let Some(dense) = dense {
        model.begin_layer(compute, dense);
        model.attend_layer(compute, dense);
    }
    model.begin_layer(compute, compressed);
    let roles = [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV].map(|kind| Role::in_layer(layer, kind));
    let inputs = Inputs::new(compressed.normed(), rows, dense.as_ref().map(Stage::normed));
    let replaced = meet(model, &roles, inputs)?;
    model.attend_layer(compute, compressed);
    put_back(model, replaced);

    if let Some(dense) = dense {
        model.end_attention(compute, dense);
    }
    let inputs = Inputs::new(compressed.attended(), rows, dense.as_ref().map(Stage::attended));
    let replaced = meet(model, &[Role::in_layer(layer, RoleKind::AttnOutput)], inputs)?;
    model.end_attention(compute, compressed);
    put_back(model, replaced);

    for block in model.blocks(layer) {
        let [gate, up, down] = block.roles(layer);
        // Experts meet other tokens in the dense model.
        let beside = block.expert().is_none();
        let dense_runs = dense.as_mut().is_some_and(|dense| model.begin_block(compute, dense, block));
        if let Some(dense) = dense.as_mut().filter(|_| dense_runs) {
            model.open_block(compute, dense);
        }
        let runs = model.begin_block(compute, compressed, block);
        if runs {
            let dense = dense.as_ref().filter(|_| beside).map(Stage::block_input);
            let inputs = Inputs::new(compressed.block_input(), compressed.block_rows(rows), dense);
            let replaced = meet(model, &[gate, up], inputs)?;
            model.open_block(compute, compressed);
            put_back(model, replaced);
        } else {
            meet_nothing(model, meet, &[gate, up])?;
        }
        if let Some(dense) = dense.as_mut().filter(|_| dense_runs) {
            model.end_block(compute, dense);
        }
        if runs {
            let dense = dense.as_ref().filter(|_| beside).map(Stage::block_inner);
            let inputs = Inputs::new(compressed.block_inner(), compressed.block_rows(rows), dense);
            let replaced = meet(model, &[down], inputs)?;
            model.end_block(compute, compressed);
            put_back(model, replaced);
        } else {
            meet_nothing(model, meet, &[down])?;
        }
    }
    model.end_layer(compute, compressed);
    if let Some(dense) = dense {
        model.end_layer(compute, dense);
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
