//! How the codes of a tensor are chosen.

use bitmill_quant::{Compensation, Ranges};
use bitmill_tensor::Encoding;
use serde::{Deserialize, Serialize};

/// How the codes of a tensor are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// By its weights alone.
    Alone,
    /// By its weights, each counted by the mean square of what it multiplies.
    Weighed,
    /// Column after column, what one loses pushed onto those to come.
    Gptq(Gptq),
    /// The same on the grids of GGUF blocks.
    Compensated(Compensated),
    /// With all matrices of a layer together, by what the error of the layer's output says of each weight.
    Learned(Learning),
}

/// What GPTQ is asked for beside a grid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gptq {
    /// Added to the Hessian's diagonal, as a fraction of its mean.
    pub damping: f32,
    /// The order of columns.
    pub order: Order,
    /// How much of what earlier layers changed in the inputs is made up for (GPTAQ); `None`: they are taken as they are.
    pub asymmetry: Option<f32>,
    /// How often scales are fitted and codes moved afterwards, while the error of the outputs falls.
    pub refine: usize,
}

impl Gptq {
    /// The damping that held-out tokens were found to like best, ten times as much as the authors'.
    pub(crate) const USUAL_DAMPING: f32 = 0.1;
    /// How often codes are refined that are to be at their best.
    pub(crate) const REFINED: u8 = 2;

    /// At its best, on any grid that readers know.
    pub(crate) fn refined(asymmetry: Option<f32>) -> Self {
        Self {
            damping: Self::USUAL_DAMPING,
            order: Order::Static,
            asymmetry,
            refine: usize::from(Self::REFINED),
        }
    }
}

/// How blocks are compensated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compensated {
    /// Damping and sweeps.
    pub options: Compensation,
    /// As in [`Gptq`].
    pub asymmetry: Option<f32>,
}

/// How rounding is learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learning {
    /// Steps of the descent.
    pub iterations: u32,
    /// Windows that a step looks at.
    pub batch: usize,
    /// How far the first step moves; it falls to nothing.
    pub rate: f32,
    /// Whether the ranges of groups are learned too.
    pub ranges: Ranges,
    /// What it begins with: codes that this chooses, or the nearest.
    pub begin: Option<Gptq>,
}

/// The order in which GPTQ rounds columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they stand.
    #[default]
    None,
    /// Those that matter most first; groups are runs of columns as they stand, and no reader need know.
    Static,
    /// Those that matter most first, and groups are runs of that order: GPTQ's `desc_act`, which readers must know.
    Full,
}

impl Method {
    /// As records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Weighed => "weighed",
            Self::Gptq(Gptq { asymmetry: None, .. }) => "gptq",
            Self::Gptq(_) => "gptaq",
            Self::Compensated(_) => "compensated",
            Self::Learned(_) => "learned",
        }
    }

    /// What takes its place where statistics do not allow it, for matrices that are stored as `to`.
    pub(crate) fn fallback(self, to: Encoding) -> &'static str {
        match (self, to) {
            (_, Encoding::Block(_)) | (Self::Weighed | Self::Compensated(_), _) => "ggml",
            (Self::Gptq(_) | Self::Learned(_) | Self::Alone, _) => "rtn",
        }
    }

    /// Whether the model runs over text for it.
    pub(crate) fn is_calibrated(self) -> bool {
        self != Self::Alone
    }

    /// Whether it wants the inputs of the dense model beside its own.
    pub(crate) fn wants_dense_inputs(self) -> bool {
        self.asymmetry().is_some()
    }

    /// Whether it wants the dense model's states kept beside its own.
    pub(crate) fn wants_dense_states(self) -> bool {
        self.wants_dense_inputs() || self.learning().is_some()
    }

    /// How it learns, if it does.
    pub(crate) fn learning(self) -> Option<Learning> {
        if let Self::Learned(learning) = self { Some(learning) } else { None }
    }

    /// How much of what earlier layers changed in the inputs it makes up for.
    pub(crate) fn asymmetry(self) -> Option<f32> {
        match self {
            Self::Compensated(Compensated { asymmetry, .. }) => asymmetry,
            other => other.gptq().and_then(|how| how.asymmetry),
        }
    }

    /// How codes are chosen column after column, if they are; to begin with, where they are learned.
    pub(crate) fn gptq(self) -> Option<Gptq> {
        match self {
            Self::Gptq(how) | Self::Learned(Learning { begin: Some(how), .. }) => Some(how),
            _ => None,
        }
    }

    /// Whether it wants the Hessian of its inputs factored.
    pub(crate) fn factors(self) -> bool {
        self.gptq().is_some() || matches!(self, Self::Compensated(_))
    }
}

/// How much of what ties `features` to one another in the inputs of `tokens` is left out, where a recipe does not say: as if as many tokens as
/// there are features had been met that tie nothing.
pub(crate) fn usual_shrinkage(features: usize, tokens: u64) -> f32 {
    (features as f64 / (features as f64 + tokens as f64).max(1.0)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_tokens_the_more_of_what_ties_their_features_is_believed() {
        assert_eq!((usual_shrinkage(768, 768), usual_shrinkage(100, 300)), (0.5, 0.25));
        assert!(usual_shrinkage(5120, 128 * 2048) < 0.02);
        assert_eq!((usual_shrinkage(64, 0), usual_shrinkage(0, 0)), (1.0, 0.0));
    }
}
