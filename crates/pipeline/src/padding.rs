//! Feed-forward blocks made wider, so that blocks and groups divide their rows.
//!
//! ```text
//! gate, up   [width, hidden]   zero rows at the end: what they give is 0, and silu(0) · 0 is 0
//! down       [hidden, width]   zero columns at the end: they are multiplied with those zeros
//! ```
//!
//! Every output is what it was, to the bit where sums run over the same terms in the same order.

use bitmill_checkpoint::{Checkpoint, GgufValue, ModelConfig, Role, RoleKind};
use bitmill_tensor::Encoding;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::PlannedTensor;

/// What widths are rounded up to a multiple of; 1 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PadWidth(u32);

impl PadWidth {
    /// The weights of a k-quant's block, which a width must be whole of.
    pub(crate) const SUPER_BLOCK: Self = Self(256);

    /// `width` rounded up.
    pub fn of(self, width: usize) -> usize {
        // Widths of models and 65536 are far from overflowing together.
        width.next_multiple_of(self.0 as usize)
    }
}

impl TryFrom<u32> for PadWidth {
    type Error = String;

    fn try_from(width: u32) -> Result<Self, String> {
        match width {
            1..=65_536 => Ok(Self(width)),
            _ => Err(format!("ffn = {width}: a width is rounded up to a multiple of 1 to 65536")),
        }
    }
}

impl From<PadWidth> for u32 {
    fn from(width: PadWidth) -> Self {
        width.0
    }
}

/// Whether a run pads what nobody asked it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pad {
    /// To multiples of 256, where `down_proj` would be stored in blocks of 256 but for its width.
    #[default]
    Auto,
    /// Never: types fall back as llama-quantize's do.
    Off,
}

impl Pad {
    pub(crate) fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// The width of a feed-forward block's rows, or their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Rows,
    Columns,
}

fn side(role: Role) -> Option<Side> {
    use RoleKind::{FfnDown, FfnGate, FfnUp, SharedDown, SharedGate, SharedUp};
    match role.kind {
        FfnGate | FfnUp | SharedGate | SharedUp => Some(Side::Rows),
        FfnDown | SharedDown => Some(Side::Columns),
        _ => None,
    }
}

/// The shape of the tensor with this role whose shape is `shape`, padded.
pub(crate) fn padded(role: Role, shape: &[usize], width: PadWidth) -> Vec<usize> {
    match (side(role), shape) {
        (Some(Side::Rows), [rows, cols]) => vec![width.of(*rows), *cols],
        (Some(Side::Columns), [rows, cols]) => vec![*rows, width.of(*cols)],
        _ => shape.to_vec(),
    }
}

/// Whether padding let this tensor be stored in blocks that its own width does not divide into.
pub(crate) fn is_won(tensor: &PlannedTensor) -> bool {
    let own = tensor.source_shape.last().copied().unwrap_or(0);
    match tensor.to {
        Encoding::Block(block) => {
            let is_super = PadWidth::SUPER_BLOCK.0 as usize == block.weights();
            is_super && side(tensor.role) == Some(Side::Columns) && !own.is_multiple_of(block.weights())
        }
        _ => false,
    }
}

/// Makes `config` that of the padded model.
pub(crate) fn widen(config: &mut ModelConfig, width: PadWidth) {
    let has_plain = config.experts.as_ref().is_none_or(|experts| !experts.dense_layers.is_empty());
    if has_plain {
        config.intermediate_size = width.of(config.intermediate_size);
    }
    if let Some(experts) = &mut config.experts {
        experts.width = width.of(experts.width);
        experts.shared_width = experts.shared_width.map(|shared| width.of(shared));
    }
}

/// Makes a config.json that of the padded model, whose shape is `config`.
pub(crate) fn rewrite(json: &mut Value, config: &ModelConfig, weights_that_pad: u64) {
    let Some(fields) = json.as_object_mut() else { return };
    fields.insert(CONFIG_KEY.into(), weights_that_pad.into());
    fields.insert("intermediate_size".into(), config.intermediate_size.into());
    if let Some(experts) = &config.experts {
        fields.insert("moe_intermediate_size".into(), experts.width.into());
        if let Some(shared) = experts.shared_width {
            fields.insert("shared_expert_intermediate_size".into(), shared.into());
        }
    }
}

/// Where an output says how many of its weights pad: in config.json, in the keys of a GGUF file.
pub(crate) const CONFIG_KEY: &str = "bitmill_padded_weights";
pub(crate) const GGUF_KEY: &str = "bitmill.padded_weights";

/// Weights of `checkpoint` that bitmill added to pad it; 0 where nothing says so.
pub(crate) fn padded_weights(checkpoint: &Checkpoint) -> u64 {
    let in_config = || checkpoint.config_json()?.get(CONFIG_KEY)?.as_u64();
    let in_keys = checkpoint.metadata().iter().find_map(|(key, value)| match value {
        GgufValue::U64(weights) if key == GGUF_KEY => Some(*weights),
        _ => None,
    });
    in_keys.or_else(in_config).unwrap_or(0)
}

/// Weights that pad an output of `tensors` and `layers`: what the source was padded with, in the layers that stay, and what is new.
pub(crate) fn weights_that_pad(checkpoint: &Checkpoint, layers: usize, tensors: &[PlannedTensor]) -> u64 {
    let before = u128::from(padded_weights(checkpoint)) * layers as u128;
    let new: u64 = tensors.iter().map(|tensor| tensor.weights() - tensor.source_weights()).sum();
    (before / checkpoint.config().n_layers.max(1) as u128) as u64 + new
}

/// What padding did to `tensors`, in a sentence; `unpadded` are the same without it, where a recipe has a form for them.
pub(crate) fn note(tensors: &[PlannedTensor], unpadded: Option<&[PlannedTensor]>) -> Option<String> {
    let mut widths: Vec<(usize, usize)> = Vec::new();
    for tensor in tensors.iter().filter(|tensor| tensor.is_padded()) {
        let side = |shape: &[usize]| match side(tensor.role) {
            Some(Side::Rows) => shape[0],
            _ => shape[1],
        };
        let change = (side(&tensor.source_shape), side(&tensor.shape));
        if !widths.contains(&change) {
            widths.push(change);
        }
    }
    if widths.is_empty() {
        return None;
    }
    let widths: Vec<String> = widths.iter().map(|(from, to)| format!("{from} padded to {to}")).collect();
    let mut note = format!("feed-forward width {} with zeros, which change no output", widths.join(", "));
    if let Some(unpadded) = unpadded {
        let bytes = |tensors: &[PlannedTensor]| tensors.iter().map(|tensor| tensor.bytes_after).sum::<u64>();
        let (with, without) = (bytes(tensors), bytes(unpadded));
        let (difference, than) =
            if with <= without { (without - with, "smaller") } else { (with - without, "larger") };
        note.push_str(&format!(
            "; {} {than} than with the narrower blocks that it would fall back to (--no-pad, `pad = \"off\"`)",
            bitmill_report::size(difference),
        ));
    }
    Some(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_rounded_up_on_their_own_side() {
        let width = PadWidth::try_from(256).unwrap();
        let of = |kind, shape: &[usize]| padded(Role::in_layer(3, kind), shape, width);
        assert_eq!(of(RoleKind::FfnDown, &[8192, 29568]), [8192, 29696]);
        assert_eq!(of(RoleKind::FfnUp, &[29568, 8192]), [29696, 8192]);
        assert_eq!(of(RoleKind::SharedGate, &[512, 60]), [512, 60]);
        assert_eq!(of(RoleKind::AttnOutput, &[60, 60]), [60, 60]);
        assert_eq!(PadWidth::try_from(1024).unwrap().of(29568), 29696);
        assert!(PadWidth::try_from(0).is_err() && PadWidth::try_from(65_537).is_err());
    }
}
