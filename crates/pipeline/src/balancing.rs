//! Steps that scale features beforehand, so that what rounds loses less: scales are found layer by layer, from what the
//! model runs over, and folded into what makes the features.
//!
//! ```toml
//! [[step]]
//! kind = "awq"
//! clip = true      # then search the ranges of groups that are rounded to nearest
//!
//! [[step]]
//! kind = "smooth"
//! alpha = 0.5      # 0: activations stay as they are; 1: their features become equally large
//! ```

use bitmill_checkpoint::{ModelConfig, RoleKind};
use bitmill_model::{Folding, MadeBy, foldings};
use serde::{Deserialize, Serialize};

use crate::recipe::Damping;

/// A step of kind `awq`: weights that multiply large features get more of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwqStep {
    /// Whether ranges are searched afterwards, for matrices that `rtn` stores with `clip = "none"`.
    #[serde(default = "usual_clip")]
    pub clip: bool,
}

/// A step of kind `smooth`: outliers of activations are moved into weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmoothStep {
    /// How much of them, from 0 to 1.
    #[serde(default = "usual_alpha")]
    pub alpha: Damping,
}

fn usual_clip() -> bool {
    true
}

fn usual_alpha() -> Damping {
    Damping(0.5)
}

impl Default for AwqStep {
    fn default() -> Self {
        Self { clip: usual_clip() }
    }
}

/// How scales are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Balance {
    Awq(AwqStep),
    Smooth(SmoothStep),
}

impl Balance {
    /// As records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awq(_) => "awq",
            Self::Smooth(_) => "smooth",
        }
    }

    /// What a plan says of it, in a sentence.
    pub fn note(self) -> String {
        let into = match self {
            Self::Awq(_) => "norms, v and up",
            Self::Smooth(_) => "norms",
        };
        format!("`{}` folds scales, found by what the model runs over, into {into}", self.name())
    }

    /// Whether tensors of a kind may become others.
    pub fn changes(self, kind: RoleKind) -> bool {
        use RoleKind::{
            AttnK, AttnNorm, AttnOutput, AttnQ, AttnV, AttnVBias, FfnDown, FfnGate, FfnNorm, FfnUp, Router,
            SharedDown, SharedGate, SharedRouter, SharedUp,
        };
        match kind {
            AttnNorm | FfnNorm | AttnQ | AttnK | AttnV | FfnGate | FfnUp | SharedGate | SharedUp | Router
            | SharedRouter => true,
            AttnVBias | AttnOutput | FfnDown | SharedDown => matches!(self, Self::Awq(_)),
            _ => false,
        }
    }

    /// Where scales of a layer are folded into. SmoothQuant's authors take norms alone.
    pub fn foldings(self, config: &ModelConfig, layer: usize) -> Vec<Folding> {
        let mut foldings = foldings(config, layer);
        if let Self::Smooth(_) = self {
            foldings.retain(|folding| matches!(folding.made_by, MadeBy::Norm(_)));
        }
        foldings
    }
}
