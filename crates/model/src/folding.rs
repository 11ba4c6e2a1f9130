//! What scales and rotations of features can be folded into: which tensors of a layer make the features that others read.

use bitmill_checkpoint::{ModelConfig, Role, RoleKind};

/// Matrices that read the same features, and what makes these. With a scale `s` for each feature, what makes them is divided
/// by `s` and the columns of what reads them multiplied: the model computes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folding {
    /// What is divided.
    pub made_by: MadeBy,
    /// The matrices whose columns are multiplied. Routers are among them, which no method rounds: leave them out of a
    /// search.
    pub read_by: Vec<Role>,
}

/// What makes features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeBy {
    /// A norm, whose weights are divided.
    Norm(Role),
    /// A matrix, whose rows are divided.
    Matrix {
        /// The matrix.
        weight: Role,
        /// Its bias, divided too in models that have it.
        bias: Option<Role>,
        /// Heads of v that are read by several of q share a scale: there are so many features for each row.
        features_for_each_row: usize,
    },
}

/// How the residual stream meets a tensor, for rotations of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// Its rows are states: the embedding.
    Rows,
    /// Its rows are multiplied with states.
    Read,
    /// Its columns are added to states; a bias is one column.
    Written,
}

/// The foldings of decoder layer `layer`, in the order of a forward pass.
///
/// - The attention norm into q, k and v; v into the output projection.
/// - The other norm into gate and up; up into down. With experts: the norm into all of theirs, the shared one's and both
///   routers; up into down in each.
///
/// ```
/// use bitmill_checkpoint::{Checkpoint, Role, RoleKind};
/// use bitmill_model::{MadeBy, foldings};
/// let folder = bitmill_testkit::tiny(bitmill_testkit::Variant::Qwen2);
/// let checkpoint = Checkpoint::open(folder.path())?;
/// let of_layer = foldings(checkpoint.config(), 1);
/// assert_eq!(of_layer.len(), 4);
/// assert_eq!(of_layer[2].made_by, MadeBy::Norm(Role::in_layer(1, RoleKind::FfnNorm)));
/// assert_eq!(of_layer[3].read_by, [Role::in_layer(1, RoleKind::FfnDown)]);
/// # Ok::<(), bitmill_checkpoint::Error>(())
/// ```
pub fn foldings(config: &ModelConfig, layer: usize) -> Vec<Folding> {
    use RoleKind::{
        AttnK, AttnNorm, AttnOutput, AttnQ, AttnV, AttnVBias, FfnDown, FfnGate, FfnNorm, FfnUp, Router,
        SharedDown, SharedGate, SharedRouter, SharedUp,
    };
    let role = |kind| Role::in_layer(layer, kind);
    let norm = |kind, read_by| Folding { made_by: MadeBy::Norm(role(kind)), read_by };
    let matrix = |weight, bias, features_for_each_row, read_by: Role| Folding {
        made_by: MadeBy::Matrix { weight, bias, features_for_each_row },
        read_by: vec![read_by],
    };
    let shared_by = config.n_heads / config.n_kv_heads.max(1);
    let mut out = vec![
        norm(AttnNorm, [AttnQ, AttnK, AttnV].map(role).to_vec()),
        matrix(role(AttnV), Some(role(AttnVBias)), shared_by, role(AttnOutput)),
    ];
    let Some(experts) = config.experts_in(layer) else {
        out.push(norm(FfnNorm, [FfnGate, FfnUp].map(role).to_vec()));
        out.push(matrix(role(FfnUp), None, 1, role(FfnDown)));
        return out;
    };
    let expert = |expert, kind| Role::in_expert(layer, expert, kind);
    let mut read_by = vec![role(Router)];
    read_by.extend((0..experts.count).flat_map(|at| [expert(at, FfnGate), expert(at, FfnUp)]));
    if experts.shared_width.is_some() {
        read_by.extend([SharedRouter, SharedGate, SharedUp].map(role));
    }
    out.push(norm(FfnNorm, read_by));
    out.extend((0..experts.count).map(|at| matrix(expert(at, FfnUp), None, 1, expert(at, FfnDown))));
    if experts.shared_width.is_some() {
        out.push(matrix(role(SharedUp), None, 1, role(SharedDown)));
    }
    out
}

/// How the residual stream meets tensors of a kind; `None` if it does not. A head that shares the embedding's weights must become
/// a tensor of its own before it is rotated: the last norm is multiplied into it.
pub fn residual(kind: RoleKind) -> Option<Residual> {
    use RoleKind::{
        AttnK, AttnOutput, AttnOutputBias, AttnQ, AttnV, FfnDown, FfnGate, FfnUp, Output, Router, SharedDown,
        SharedGate, SharedRouter, SharedUp, TokenEmbedding,
    };
    match kind {
        TokenEmbedding => Some(Residual::Rows),
        AttnQ | AttnK | AttnV | FfnGate | FfnUp | SharedGate | SharedUp | Router | SharedRouter | Output => {
            Some(Residual::Read)
        }
        AttnOutput | AttnOutputBias | FfnDown | SharedDown => Some(Residual::Written),
        _ => None,
    }
}
