//! What may become of a unit, and what units there are.

use std::num::NonZeroUsize;

use bitmill_checkpoint::{Checkpoint, RoleKind, Tensor, TensorInfo};
use bitmill_quant::{BlockSearch, Clip, Importance, RtnGrid, needs_importance};
use bitmill_tensor::{Bits, BlockType, Encoding, FloatType, Granularity, ZeroPoint};

use crate::Error;
use crate::encode::Rounding;
use crate::importance::Weighed;
use crate::plan::{FUSIONS, is_written, rows_and_columns, scale_dtype};
use crate::recipe::{
    BitsNumber, BlockName, ClipName, FloatName, Format, GranularityName, Step, ZeroPointName,
};

/// Group sizes that are tried in compressed-tensors.
const GROUP_SIZES: [usize; 3] = [32, 64, 128];

/// Whether a search tries blocks of this type. Those that mean nothing without an importance matrix, and those for weights of
/// three values, are left out.
fn is_tried(block: BlockType) -> bool {
    !needs_importance(block) && !matches!(block, BlockType::TQ1_0 | BlockType::TQ2_0)
}

/// One way to store a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Candidate {
    /// Plain floats.
    Float(FloatType),
    /// GGUF blocks.
    Block(BlockType),
    /// compressed-tensors' symmetric groups, their ranges clipped by squared error.
    Groups { bits: Bits, size: NonZeroUsize },
}

impl Candidate {
    /// Every candidate of `format` that fits the rows of `info`, floats last.
    fn all(format: Format, info: &TensorInfo) -> Vec<Self> {
        let (_, in_features) = rows_and_columns(&info.shape);
        let codes: Vec<Self> = match format {
            Format::Gguf => {
                BlockType::ALL.into_iter().filter(|&block| is_tried(block)).map(Self::Block).collect()
            }
            Format::CompressedTensors => {
                let widths = (2..=8).filter_map(|bits| Some(BitsNumber::try_from(bits).ok()?.0));
                let sizes = GROUP_SIZES.map(NonZeroUsize::new).into_iter().flatten();
                widths.flat_map(|bits| sizes.clone().map(move |size| Self::Groups { bits, size })).collect()
            }
            Format::Gptq | Format::Awq | Format::Bitsandbytes | Format::HuggingFace => Vec::new(),
        };
        let float = match info.encoding {
            // What an f32 checkpoint loses in f16 is less than in bf16, and its weights are far from f16's ends.
            Encoding::Float(FloatType::BF16) => FloatType::BF16,
            _ => FloatType::F16,
        };
        let fits = |candidate: &Self| in_features.is_multiple_of(candidate.group_size());
        codes.into_iter().filter(fits).chain([Self::Float(float)]).collect()
    }

    /// Weights of a row that are stored together.
    fn group_size(self) -> usize {
        match self {
            Self::Float(_) => 1,
            Self::Block(block) => block.weights(),
            Self::Groups { size, .. } => size.get(),
        }
    }

    /// How tables call it: `q4_k`, `w4_g128`, `bf16`.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Float(float) => float.name().into(),
            Self::Block(block) => block.name().into(),
            Self::Groups { bits, size } => format!("w{bits}_g{size}"),
        }
    }

    /// The candidate of a [`name`](Self::name).
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if let Some((bits, size)) = name.strip_prefix('w').and_then(|rest| rest.split_once("_g")) {
            return Some(Self::Groups { bits: Bits::new(bits.parse().ok()?)?, size: size.parse().ok()? });
        }
        BlockType::parse(name).map(Self::Block).or_else(|| FloatType::parse(name).map(Self::Float))
    }

    /// How `info` is stored then.
    pub(crate) fn encoding(self, info: &TensorInfo) -> Encoding {
        match self {
            Self::Float(float) => Encoding::Float(float),
            Self::Block(block) => Encoding::Block(block),
            Self::Groups { bits, size } => {
                let (_, in_features) = rows_and_columns(&info.shape);
                let grid = RtnGrid {
                    bits,
                    granularity: Granularity::Group { size },
                    zero_point: ZeroPoint::Symmetric,
                    scale: scale_dtype(info.encoding),
                };
                // `all` offers sizes that divide the row only.
                grid.layout(in_features).map_or(Encoding::Float(FloatType::F32), Encoding::Grouped)
            }
        }
    }

    /// How the rows of `info` become that; blocks weigh errors by `importance`.
    pub(crate) fn rounding<'a>(self, info: &TensorInfo, importance: Option<Importance<'a>>) -> Rounding<'a> {
        let clip = match self {
            Self::Groups { .. } => Clip::Mse,
            Self::Float(_) | Self::Block(_) => Clip::None,
        };
        Rounding { encoding: self.encoding(info), clip, importance, search: BlockSearch::Best }
    }

    /// Bytes of `info` in a file of `format`: its parts with what aligns them, headers apart.
    pub(crate) fn bytes(self, format: Format, info: &TensorInfo) -> u64 {
        let (rows, cols) = rows_and_columns(&info.shape);
        let bytes = self.encoding(info).matrix_bytes(rows, cols) as u64;
        match (format, self) {
            (Format::Gguf, _) => bytes.next_multiple_of(32),
            // The shape of what is packed lies beside it: two i64.
            (_, Self::Groups { .. }) => bytes + 16,
            _ => bytes,
        }
    }

    /// The step that gives `targets` this form.
    pub(crate) fn step(self, targets: Vec<String>) -> Step {
        let (targets, skip) = (Some(targets), Vec::new());
        match self {
            Self::Float(float) => Step::Float { targets, skip, float: FloatName(float) },
            Self::Block(block) => Step::Block { targets, skip, block: BlockName(block) },
            Self::Groups { bits, size } => Step::Rtn {
                targets,
                skip,
                bits: BitsNumber(bits),
                granularity: GranularityName::Group { size },
                zero_point: ZeroPointName::Symmetric,
                scale: None,
                clip: ClipName::Mse,
            },
        }
    }
}

/// Tensors that get one form: one tensor, or those that runtimes fuse.
#[derive(Debug, Clone)]
pub(crate) struct Unit {
    /// Its tensors; at least one.
    pub tensors: Vec<TensorInfo>,
    /// What may become of them.
    pub candidates: Vec<Candidate>,
    /// What the columns of each of its tensors count, where an importance matrix says so.
    importance: Vec<Option<Vec<f32>>>,
}

impl Unit {
    fn new(format: Format, tensors: Vec<TensorInfo>) -> Self {
        let mut candidates = Candidate::all(format, &tensors[0]);
        for other in &tensors[1..] {
            let theirs = Candidate::all(format, other);
            candidates.retain(|candidate| theirs.contains(candidate));
        }
        Self { importance: vec![None; tensors.len()], tensors, candidates }
    }

    /// Its tensors with their bytes.
    pub(crate) fn read(&self, checkpoint: &Checkpoint) -> Result<Vec<Tensor>, Error> {
        self.tensors.iter().map(|info| Ok(checkpoint.tensor(&info.name)?)).collect()
    }

    /// Takes what `weighed` says of its tensors.
    pub(crate) fn weigh(&mut self, checkpoint: &Checkpoint, weighed: &Weighed) -> Result<(), Error> {
        for (importance, info) in self.importance.iter_mut().zip(&self.tensors) {
            *importance = weighed.of_source(checkpoint, info)?;
        }
        Ok(())
    }

    /// What the columns of its tensor at `place` count.
    pub(crate) fn importance(&self, place: usize) -> Option<Importance<'_>> {
        // What was read from a file is finite and not negative.
        self.importance[place].as_deref().and_then(|columns| Importance::new(columns).ok())
    }

    /// The names of its tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors.iter().map(|info| info.name.clone()).collect()
    }

    /// Weights of its tensors.
    pub(crate) fn weights(&self) -> u64 {
        self.tensors.iter().map(|info| info.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// The decoder layer that it is in.
    pub(crate) fn layer(&self) -> Option<usize> {
        self.tensors[0].role.layer
    }

    /// Whether it is the embedding.
    pub(crate) fn is_embedding(&self) -> bool {
        self.tensors[0].role.kind == RoleKind::TokenEmbedding
    }

    /// Bytes of its tensors as `candidate` in a file of `format`.
    pub(crate) fn bytes(&self, format: Format, candidate: Candidate) -> u64 {
        self.tensors.iter().map(|info| candidate.bytes(format, info)).sum()
    }
}

/// Everything of `checkpoint` that `format` lets a recipe choose a form for, in the order of the model.
///
/// compressed-tensors: the matrices of the decoder layers, q/k/v and gate/up of a layer together; embedding and head
/// stay as they are. GGUF: every matrix by itself, the experts of a layer together.
pub(crate) fn units(checkpoint: &Checkpoint, format: Format) -> Vec<Unit> {
    let eligible = |info: &&TensorInfo| {
        let is_inner = info.role.layer.is_some();
        info.role.kind.is_matrix() && is_written(checkpoint, info) && (format == Format::Gguf || is_inner)
    };
    let mut infos: Vec<&TensorInfo> = checkpoint.tensors().iter().filter(eligible).collect();
    infos.sort_by_key(|info| crate::plan::reading_order(&info.role));
    let mut units: Vec<Vec<TensorInfo>> = Vec::new();
    for info in infos {
        let fused = |member: &TensorInfo| {
            let (member, role) = (member.role, info.role);
            let one_matrix = || {
                FUSIONS.iter().any(|(_, kinds)| kinds.contains(&member.kind) && kinds.contains(&role.kind))
            };
            member.layer == role.layer
                && match format {
                    Format::CompressedTensors => member.expert == role.expert && one_matrix(),
                    // The experts of a layer are one tensor there.
                    _ => role.expert.is_some() && member.expert.is_some() && member.kind == role.kind,
                }
        };
        match units.iter_mut().find(|unit| fused(&unit[0])) {
            Some(unit) => unit.push(info.clone()),
            None => units.push(vec![info.clone()]),
        }
    }
    units.into_iter().map(|tensors| Unit::new(format, tensors)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_testkit::{Variant, tiny};

    fn opened(variant: Variant) -> Checkpoint {
        let folder = tiny(variant);
        Checkpoint::open(folder.path()).unwrap()
    }

    #[test]
    fn candidates_are_found_by_their_names() {
        let checkpoint = opened(Variant::Qwen2);
        for format in [Format::Gguf, Format::CompressedTensors] {
            for unit in units(&checkpoint, format) {
                for candidate in unit.candidates {
                    assert_eq!(Candidate::parse(&candidate.name()), Some(candidate));
                }
            }
        }
        for bad in ["", "w4", "w9_g32", "w4_g0", "q9"] {
            assert_eq!(Candidate::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn compressed_tensors_ties_what_runtimes_fuse_and_leaves_embedding_and_head() {
        let checkpoint = opened(Variant::Qwen2);
        let layers = checkpoint.config().n_layers;
        let tied = units(&checkpoint, Format::CompressedTensors);
        assert_eq!(tied.len(), 4 * layers);
        for (parts, block) in [(&["q", "k", "v"][..], "self_attn"), (&["gate", "up"], "mlp")] {
            let mut names: Vec<String> =
                parts.iter().map(|part| format!("model.layers.0.{block}.{part}_proj.weight")).collect();
            names.sort();
            let mut sorted = tied.iter().map(|unit| {
                let mut names = unit.names();
                names.sort();
                names
            });
            assert!(sorted.any(|unit| unit == names), "{names:?}");
        }
        let free = units(&checkpoint, Format::Gguf);
        assert_eq!(free.len(), 7 * layers + 2);
        assert!(free[0].is_embedding() && free.iter().all(|unit| unit.tensors.len() == 1));
        // A tied head is no unit of its own.
        assert_eq!(units(&opened(Variant::Qwen2Tied), Format::Gguf).len(), 7 * layers + 1);
    }
}
