//! Whether every matrix divides among the ranks of a runtime that shares out layers: tensor parallelism.
//!
//! ```text
//! q, k, v, gate, up   cut along their rows: each rank has whole heads, blocks, and words of zero points
//! o, down             cut along their columns: each rank has whole groups and blocks
//! ```
//!
//! A feed-forward width that does not divide is padded ([`padding`](crate::padding)); heads cannot be.

use std::num::NonZeroU16;

use bitmill_checkpoint::{ModelConfig, RoleKind};
use bitmill_tensor::{Encoding, Extent, ZeroPoint};

use crate::error::Error;
use crate::learned::LearnedStep;
use crate::padding::PadWidth;
use crate::plan::PlannedTensor;
use crate::recipe::{Format, GranularityName, Recipe, Step};

/// What feed-forward widths are rounded up to so that each of `ranks` has whole groups of every step; `None` if that is more
/// than widths are padded to.
pub(crate) fn pad_width(recipe: &Recipe, ranks: usize) -> Option<PadWidth> {
    let unit = recipe.steps.iter().map(unit).fold(1, lcm);
    u32::try_from(unit.checked_mul(ranks)?).ok().and_then(|width| PadWidth::try_from(width).ok())
}

/// Columns that a step's form is whole of.
fn unit(step: &Step) -> usize {
    match step {
        // Words of any width end with 32 codes.
        Step::Rtn { granularity, .. }
        | Step::Gptq { granularity, .. }
        | Step::Learned(LearnedStep { granularity, .. }) => match granularity {
            GranularityName::Channel => 32,
            GranularityName::Group { size } => lcm(size.get(), 32),
        },
        Step::Scaled { number, .. } => match number.layout(bitmill_tensor::FloatType::BF16).extent {
            Extent::Matrix | Extent::Row => 1,
            Extent::Columns(cols) | Extent::Block { cols, .. } => cols.get(),
        },
        _ => 1,
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: usize, b: usize) -> usize {
    a / gcd(a, b) * b
}

/// Whether a tensor of a feed-forward block, whose width can be padded, does not divide.
pub(crate) fn would_padding_help(
    tensors: &[PlannedTensor],
    config: &ModelConfig,
    format: Format,
    ranks: usize,
) -> bool {
    use RoleKind::{FfnDown, FfnGate, FfnUp, SharedDown, SharedGate, SharedUp};
    let is_ffn = |tensor: &&PlannedTensor| {
        matches!(tensor.role.kind, FfnDown | FfnGate | FfnUp | SharedDown | SharedGate | SharedUp)
    };
    tensors.iter().filter(is_ffn).any(|tensor| problem(tensor, config, format, ranks).is_some())
}

/// # Errors
/// [`Error::UnevenRanks`] for the first tensor that does not divide among `ranks`.
pub(crate) fn check(
    tensors: &[PlannedTensor],
    config: &ModelConfig,
    format: Format,
    ranks: usize,
) -> Result<(), Error> {
    for tensor in tensors {
        if let Some(problem) = problem(tensor, config, format, ranks) {
            return Err(Error::UnevenRanks { tensor: tensor.name.clone(), ranks, problem });
        }
    }
    Ok(())
}

/// The columns that a rank has of a matrix: all, or its share where columns are divided.
pub(crate) fn own_columns(tensor: &PlannedTensor, ranks: Option<NonZeroU16>) -> usize {
    let is_divided =
        matches!(tensor.role.kind, RoleKind::AttnOutput | RoleKind::FfnDown | RoleKind::SharedDown);
    let ranks = ranks.filter(|_| is_divided).map_or(1, |ranks| usize::from(ranks.get()));
    tensor.in_features() / ranks
}

/// Why a tensor does not divide.
fn problem(tensor: &PlannedTensor, config: &ModelConfig, format: Format, ranks: usize) -> Option<String> {
    use RoleKind::{
        AttnK, AttnOutput, AttnQ, AttnV, FfnDown, FfnGate, FfnUp, SharedDown, SharedGate, SharedUp,
    };
    let (rows, cols) = (tensor.out_features(), tensor.in_features());
    let (by_rows, count) = match tensor.role.kind {
        AttnQ => (true, config.n_heads),
        AttnK | AttnV => {
            // Fewer heads than ranks are kept on several of them.
            let kept = ranks.is_multiple_of(config.n_kv_heads);
            (true, if kept { ranks } else { config.n_kv_heads })
        }
        FfnGate | FfnUp | SharedGate | SharedUp => (true, rows),
        AttnOutput | FfnDown | SharedDown => (false, cols),
        _ => return None,
    };
    if !count.is_multiple_of(ranks) {
        let what = match tensor.role.kind {
            AttnQ | AttnK | AttnV => "heads",
            _ if by_rows => "rows",
            _ => "columns",
        };
        return Some(format!("{count} {what}"));
    }
    let own = match tensor.role.kind {
        AttnK | AttnV => rows / config.n_kv_heads * (config.n_kv_heads / ranks).max(1),
        _ if by_rows => rows / ranks,
        _ => cols / ranks,
    };
    let whole = |unit: usize, what: &str| {
        (!own.is_multiple_of(unit)).then(|| {
            let side = if by_rows { "rows" } else { "columns" };
            format!("{own} {side} a rank, no whole {what} of {unit}")
        })
    };
    match tensor.to {
        Encoding::Grouped(grouped) => {
            let bits = usize::from(grouped.bits.get());
            let words = 32 / gcd(32, bits);
            if by_rows {
                let has_words = format.is_by_column() || grouped.zero_point == ZeroPoint::Asymmetric;
                return has_words.then(|| whole(words, "words")).flatten();
            }
            let size = grouped.group_size.get();
            (size != cols).then(|| whole(size, "groups")).flatten().or_else(|| whole(words, "words"))
        }
        Encoding::Scaled(layout) => match layout.extent {
            Extent::Block { rows, .. } if by_rows => whole(rows.get(), "blocks"),
            Extent::Block { cols, .. } | Extent::Columns(cols) if !by_rows => whole(cols.get(), "blocks"),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    #[test]
    fn widths_are_padded_to_whole_groups_of_every_rank() {
        let width = |name: &str, ranks| pad_width(&preset(name).unwrap(), ranks).map(|width| width.of(29568));
        // 29568 = 231 * 128.
        assert_eq!(width("w4a16_g128", 8), Some(29696));
        assert_eq!(width("w4a16_g32", 4), Some(29568));
        assert_eq!(width("w8a8_fp8_block", 2), Some(29696));
        assert_eq!(width("nvfp4", 8), Some(29568));
        assert_eq!(width("w4a16_g128", 1 << 20), None);
    }
}
