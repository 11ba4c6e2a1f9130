//! Steps of kind `learned`.

use std::num::NonZeroU32;

use bitmill_quant::Ranges;
use serde::{Deserialize, Serialize};

use crate::method::{Gptq, Learning};
use crate::recipe::{BitsNumber, ClipName, Damping, GranularityName, ScaleName, ZeroPointName};

/// Codes whose rounding, and the ranges of their groups, are learned layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedStep {
    /// Patterns of canonical tensor names; absent: every matrix of the decoder layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Patterns taken out again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// 2 to 8.
    pub bits: BitsNumber,
    /// `{ group = { size = 128 } }` or `"channel"`.
    pub granularity: GranularityName,
    /// `"symmetric"` (the default) or `"asymmetric"`.
    #[serde(default)]
    pub zero_point: ZeroPointName,
    /// The dtype of scales, `"f16"` or `"bf16"`; absent: as in `rtn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<ScaleName>,
    /// What ranges begin with: `"none"` (the default), those of the weights; `"mse"`, those of least squared error.
    #[serde(default)]
    pub clip: ClipName,
    /// Steps of the descent: 200 by default.
    #[serde(default = "usual_iterations")]
    pub iterations: NonZeroU32,
    /// Windows that a step looks at: 8 by default, or as many as there are.
    #[serde(default = "usual_batch")]
    pub batch: NonZeroU32,
    /// How far the first step moves, of a code's width; it falls to nothing. Absent: 1 / iterations, or, where it begins with codes that
    /// were chosen well, 2 / (iterations · bits).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Damping>,
    /// Whether the ranges of groups are learned too: true by default.
    #[serde(default = "usual_minmax")]
    pub minmax: bool,
    /// What learning begins with: `"nearest"` codes (the default), or `"gptq"`'s.
    #[serde(default, skip_serializing_if = "Begin::is_nearest")]
    pub begin: Begin,
}

/// What learning begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// The nearest codes.
    #[default]
    Nearest,
    /// Codes that are chosen column after column, and refined; with `asymmetry` in `[calibration]`, GPTAQ's.
    Gptq,
}

impl Begin {
    fn is_nearest(&self) -> bool {
        *self == Self::Nearest
    }
}

fn usual_iterations() -> NonZeroU32 {
    const { NonZeroU32::new(200).unwrap() }
}

fn usual_batch() -> NonZeroU32 {
    const { NonZeroU32::new(8).unwrap() }
}

fn usual_minmax() -> bool {
    true
}

impl LearnedStep {
    /// The codes of a weight-only grid: from the nearest ones as AutoRound's authors have it, from GPTQ's in few steps.
    pub(crate) fn usual(
        begin: Begin,
        bits: BitsNumber,
        granularity: GranularityName,
        zero_point: ZeroPointName,
        clip: ClipName,
    ) -> Self {
        let (iterations, batch) = match begin {
            Begin::Nearest => (usual_iterations(), usual_batch()),
            Begin::Gptq => const { (NonZeroU32::new(40).unwrap(), NonZeroU32::new(2).unwrap()) },
        };
        Self {
            targets: None,
            skip: Vec::new(),
            bits,
            granularity,
            zero_point,
            scale: None,
            clip,
            iterations,
            batch,
            rate: None,
            minmax: usual_minmax(),
            begin,
        }
    }

    /// How codes are learned.
    pub(crate) fn learning(&self, asymmetry: Option<f32>) -> Learning {
        let iterations = self.iterations.get() as f32;
        let usual_rate = match self.begin {
            Begin::Nearest => 1.0 / iterations,
            Begin::Gptq => 2.0 / (iterations * f32::from(self.bits.0.get())),
        };
        Learning {
            begin: (self.begin == Begin::Gptq).then(|| Gptq::refined(asymmetry)),
            iterations: self.iterations.get(),
            batch: self.batch.get() as usize,
            rate: self.rate.map_or(usual_rate, |rate| rate.0),
            ranges: if self.minmax { Ranges::Learned } else { Ranges::Fixed },
        }
    }
}
