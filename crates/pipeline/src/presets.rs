//! The recipes that have a name.

use std::num::NonZeroUsize;

use bitmill_prune::{NOfM, RowRule, Sparsity};
use bitmill_quant::Mix;
use bitmill_tensor::{Bits, FloatType};

use crate::balancing::{AwqStep, SmoothStep};
use crate::calibration::CalibrationOptions;
use crate::conversion::conversion;
use crate::learned::{Begin, LearnedStep};
use crate::method::{Gptq, Order};
use crate::pruning::{DepthStep, MagnitudeStep, Removal, Storage};
use crate::recipe::{
    ActivationsName, BitsNumber, ClipName, Damping, Format, GranularityName, ImportanceName, MixName,
    NumberName, Recipe, SearchName, Step, ZeroPointName,
};
use crate::search::{Budget, Measure};
use crate::turning::RotateStep;

/// A preset as `bitmill recipes` lists it.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// What `--recipe` takes.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
}

/// The presets that are listed. Weight-only groups exist at every width from 2 to 8 and every size: `w4a16_g64`,
/// `w3a16_g32_asym`.
pub const PRESETS: &[Preset] = &[
    Preset { name: "bf16", about: "GGUF, plain floats (also `f16`, `f32`); vectors in f32" },
    Preset { name: "q8_0", about: "GGUF, 8-bit blocks of 32: near lossless" },
    Preset { name: "q4_0", about: "GGUF, 4-bit blocks of 32: the plainest and fastest" },
    Preset { name: "q4_k_m", about: "GGUF, llama.cpp's mix of q4_k and q6_k: the usual choice" },
    Preset {
        name: "q5_k_m",
        about: "GGUF, q5_k with q6_k where it matters: closer to the model than q4_k_m",
    },
    Preset { name: "q6_k", about: "GGUF, 6-bit blocks: between q5_k_m and q8_0" },
    Preset {
        name: "q3_k_m",
        about: "GGUF, q3_k with q4_k and q5_k where it matters: for the tightest memory",
    },
    Preset { name: "iq4_xs", about: "GGUF, 4.25 bits a weight: smaller than q4_k_m, slower to unpack" },
    Preset { name: "iq3_m", about: "GGUF, 3.7 bits a weight from grids of points: below q3_k_m" },
    Preset {
        name: "iq2_m",
        about: "GGUF, 2.7 bits a weight, with an importance matrix (any of llama.cpp's mixes: `iq1_s` to `iq4_xs`)",
    },
    Preset {
        name: "mixed_4.5",
        about: "GGUF, 4.5 bits a weight (any `mixed_N`) where they count most: measures first",
    },
    Preset { name: "w8a16", about: "compressed-tensors, 8-bit codes, one scale a row" },
    Preset { name: "w4a16_g128", about: "compressed-tensors, 4-bit codes, one scale for 128 weights" },
    Preset {
        name: "w4a16_g64",
        about: "the same with 64 (any `_gN`; `w2` to `w8`), `_asym` for zero points",
    },
    Preset {
        name: "w3a16_g64_clip",
        about: "3-bit codes, ranges clipped by squared error (`_clip` on any of these)",
    },
    Preset {
        name: "gptq_w4a16_g128",
        about: "4-bit codes chosen by what they multiply (GPTQ, ranges clipped), before any of these: runs the model over text",
    },
    Preset {
        name: "gptaq_w4a16_g128",
        about: "the same at its best: refined, and making up for what earlier layers lost (GPTAQ)",
    },
    Preset {
        name: "imatrix_q4_k_m",
        about: "GGUF blocks weighed by what they multiply in a run over text (before any mix): as with an importance matrix",
    },
    Preset {
        name: "awq_w4a16_g128",
        about: "4-bit codes after features that matter are scaled up and ranges searched (AWQ), before any of these",
    },
    Preset {
        name: "rotated_w4a16_g128",
        about: "4-bit codes of a model whose outliers are spread first (QuaRot), before any of these: without data",
    },
    Preset {
        name: "autoround_w4a16_g128",
        about: "4-bit codes whose rounding is learned layer by layer (AutoRound), before any of these: takes its time",
    },
    Preset {
        name: "learned_w3a16_g128",
        about: "GPTAQ's codes, then moved on by what the layer's output loses, before any of these: for 2 and 3 bits",
    },
    Preset {
        name: "w8a8_int8",
        about: "compressed-tensors, 8-bit integers, activations too as the model runs",
    },
    Preset {
        name: "w8a8_fp8",
        about: "compressed-tensors, 8-bit floats, activations too (`w8a16_fp8`: weights alone)",
    },
    Preset {
        name: "smoothquant_w8a8_int8",
        about: "8-bit integers after outliers of activations are moved into weights (before any `w8a8_`)",
    },
    Preset { name: "w8a8_fp8_static", about: "the same, activations by scales that a run over text finds" },
    Preset { name: "w8a8_fp8_block", about: "the same with one scale for 128 x 128 weights" },
    Preset { name: "nvfp4", about: "compressed-tensors, 4-bit floats, a scale for 16 weights: 4.5 bits" },
    Preset {
        name: "mxfp4",
        about: "compressed-tensors, 4-bit floats, a power of two for 32 weights: 4.25 bits",
    },
    Preset { name: "mxfp6", about: "the same with 6-bit floats: 6.25 bits" },
    Preset { name: "mxfp8", about: "the same with 8-bit floats: 8.25 bits" },
    Preset {
        name: "nf4",
        about: "bitsandbytes, 16 values of a normal distribution, a scale for 64 weights: 4.5 bits (QLoRA)",
    },
    Preset { name: "nf4_double", about: "the same with scales in 8 bits: 4.13 bits" },
    Preset {
        name: "hqq_w4a16_g64_asym",
        about: "4-bit codes on grids found for heavy tails, without data (`hqq_` before any of these)",
    },
    Preset {
        name: "prune_50",
        about: "plain floats, the smaller half of every row zero: same bytes, same time",
    },
    Preset {
        name: "prune_2of4",
        about: "plain floats, 2 kept of every 4 inputs (any `prune_N`, `prune_NofM`)",
    },
    Preset {
        name: "prune_50_sparse",
        about: "compressed-tensors, what is left and a bit a weight (any `prune_…`)",
    },
    Preset {
        name: "depth_25",
        about: "a quarter of the layers removed, those that change least (any `depth_N`)",
    },
];

/// The recipe of a preset's name; `None` if no preset is called that.
///
/// ```
/// use bitmill_pipeline::{Format, preset};
/// assert_eq!(preset("q4_k_m").unwrap().format, Format::Gguf);
/// assert_eq!(preset("w4a16_g32").unwrap().format, Format::CompressedTensors);
/// assert!(preset("w9a16").is_none());
/// ```
pub fn preset(name: &str) -> Option<Recipe> {
    if let Ok(mix) = name.parse::<Mix>() {
        let steps = vec![Step::Mix { mix: MixName(mix) }];
        return Some(Recipe::new(mix.name(), Format::Gguf, steps));
    }
    if let Some(float) = FloatType::parse(name).filter(|float| float.name() == name) {
        return Some(conversion(Format::Gguf, Some(float)));
    }
    mixed(name)
        .or_else(|| reshaped(name))
        .or_else(|| chosen(name))
        .or_else(|| important(name))
        .or_else(|| learned(name))
        .or_else(|| weight_only(name))
        .or_else(|| small_numbers(name))
        .or_else(|| pruned(name))
        .or_else(|| shallower(name))
}

/// `awq_`, `rotated_` or `smoothquant_` before a preset: a step in front of its own.
fn reshaped(name: &str) -> Option<Recipe> {
    let (step, recipe) = if let Some(what) = name.strip_prefix("awq_") {
        (Step::Awq(AwqStep::default()), codes(what)?)
    } else if let Some(what) = name.strip_prefix("rotated_") {
        let awq = || reshaped(what).filter(|_| what.starts_with("awq_"));
        (Step::Rotate(RotateStep::default()), codes(what).or_else(|| small_numbers(what)).or_else(awq)?)
    } else {
        let recipe = small_numbers(name.strip_prefix("smoothquant_")?)?;
        let rounds_activations = |step: &Step| matches!(step, Step::Scaled { activations, .. } if *activations != ActivationsName::Full);
        if !recipe.steps.iter().any(rounds_activations) {
            return None;
        }
        // What llm-compressor's recipes for W8A8 take; its default and the paper's is a half.
        (Step::Smooth(SmoothStep { alpha: Damping(0.8) }), recipe)
    };
    let steps = std::iter::once(step).chain(recipe.steps).collect();
    Some(Recipe { name: name.into(), steps, ..recipe })
}

/// A weight-only grid or a mix of GGUF blocks, by weights alone or by what they multiply.
fn codes(name: &str) -> Option<Recipe> {
    let mix = || {
        let mix = name.parse::<Mix>().ok()?;
        Some(Recipe::new(mix.name(), Format::Gguf, vec![Step::Mix { mix: MixName(mix) }]))
    };
    weight_only(name).or_else(|| chosen(name)).or_else(mix)
}

/// `imatrix_` before a mix of GGUF blocks.
fn important(name: &str) -> Option<Recipe> {
    let mix = name.strip_prefix("imatrix_")?.parse::<Mix>().ok()?;
    let recipe = Recipe::new(name, Format::Gguf, vec![Step::Mix { mix: MixName(mix) }]);
    Some(Recipe { importance: Some(ImportanceName::Calibration), ..recipe })
}

/// `gptq_` or `gptaq_` before a mix of GGUF blocks (`gptq_q4_k_m`) or a weight-only grid.
fn chosen(name: &str) -> Option<Recipe> {
    let (what, refined) = match name.strip_prefix("gptq_") {
        Some(what) => (what, false),
        None => (name.strip_prefix("gptaq_")?, true),
    };
    let recipe = match what.parse::<Mix>() {
        Ok(mix) => Recipe {
            search: SearchName::Compensated,
            ..Recipe::new(name, Format::Gguf, vec![Step::Mix { mix: MixName(mix) }])
        },
        Err(_) => {
            let recipe = weight_only(what)?;
            let steps = recipe.steps.into_iter().map(|step| gptq(step, refined)).collect();
            Recipe::new(name, recipe.format, steps)
        }
    };
    Some(Recipe { calibration: refined.then(gptaq_options), ..recipe })
}

/// `autoround_` before a weight-only grid, or `learned_`: from GPTAQ's codes, in fewer and smaller steps.
fn learned(name: &str) -> Option<Recipe> {
    let (what, begin) = match name.strip_prefix("autoround_") {
        Some(what) => (what, Begin::Nearest),
        None => (name.strip_prefix("learned_")?, Begin::Gptq),
    };
    let recipe = weight_only(what)?;
    let learned = |step| match step {
        Step::Rtn { bits, granularity, zero_point, clip, .. } => {
            let clip = if begin == Begin::Gptq { usual_clip(clip) } else { clip };
            Step::Learned(LearnedStep::usual(begin, bits, granularity, zero_point, clip))
        }
        other => other,
    };
    let recipe = Recipe::new(name, recipe.format, recipe.steps.into_iter().map(learned).collect());
    Some(Recipe { calibration: (begin == Begin::Gptq).then(gptaq_options), ..recipe })
}

/// Options of runs that make up for what earlier layers lost.
fn gptaq_options() -> CalibrationOptions {
    CalibrationOptions { asymmetry: Some(Damping(GPTAQ)), ..CalibrationOptions::default() }
}

/// Ranges clipped by squared error, unless a recipe asks for others.
fn usual_clip(clip: ClipName) -> ClipName {
    if clip == ClipName::None { ClipName::Mse } else { clip }
}

/// The step with codes chosen by GPTQ as held-out tokens were found to like it best: damped more than its authors have it, with ranges
/// clipped, and `refined` or not.
fn gptq(step: Step, refined: bool) -> Step {
    match step {
        Step::Rtn { targets, skip, bits, granularity, zero_point, scale, clip } => Step::Gptq {
            targets,
            skip,
            bits,
            granularity,
            zero_point,
            scale,
            clip: usual_clip(clip),
            damping: Damping(Gptq::USUAL_DAMPING),
            order: Order::Static,
            refine: if refined { Gptq::REFINED } else { 0 },
        },
        other => other,
    }
}

/// How much GPTAQ makes up for: see `bitmill_stats::Cross::aim_at_dense`.
const GPTAQ: f32 = 0.5;

/// `prune_N` (percent of every row) and `prune_NofM`, either with `_sparse`.
fn pruned(name: &str) -> Option<Recipe> {
    let what = name.strip_prefix("prune_")?;
    let (what, format, storage) = match what.strip_suffix("_sparse") {
        Some(what) => (what, Format::CompressedTensors, Storage::Sparse),
        None => (what, Format::HuggingFace, Storage::Dense),
    };
    let rule = match what.split_once("of") {
        Some((kept, of)) => RowRule::NOfM(NOfM::new(plain_number(kept)?, plain_number(of)?)?),
        None => RowRule::Sparsity(Sparsity::new(percent(what)?)?),
    };
    let step = MagnitudeStep { targets: None, skip: Vec::new(), removal: Removal::Rows(rule), storage };
    Some(Recipe::new(name, format, vec![Step::Magnitude(step)]))
}

/// `depth_N`: percent of the layers.
fn shallower(name: &str) -> Option<Recipe> {
    let remove = percent(name.strip_prefix("depth_")?)?;
    let step = Step::Depth(DepthStep::Least { remove, calibration: None });
    Some(Recipe::new(name, Format::HuggingFace, vec![step]))
}

/// `1` to `99` as a fraction.
fn percent(digits: &str) -> Option<f64> {
    plain_number(digits).filter(|&number| number < 100).map(|number| number as f64 / 100.0)
}

/// A number from 1 in its one spelling: no sign, no leading zero.
fn plain_number(digits: &str) -> Option<usize> {
    digits.starts_with(|c: char| c.is_ascii_digit() && c != '0').then(|| digits.parse().ok())?
}

/// `mixed_N`: a search for N bits a weight.
fn mixed(name: &str) -> Option<Recipe> {
    let digits = name.strip_prefix("mixed_")?;
    let budget: Budget = format!("{digits}bpw").parse().ok()?;
    // One spelling a recipe: as the number itself is written.
    if budget.to_string() != format!("{digits}bpw") {
        return None;
    }
    let step = Step::Search { budget, sensitivity: Measure::Kl, tokens: None };
    Some(Recipe::new(name, Format::Gguf, vec![step]))
}

/// Numbers of few bits with scales.
fn small_numbers(name: &str) -> Option<Recipe> {
    let (number, activations) = match name {
        "w8a8_int8" => (NumberName::Int8, ActivationsName::Dynamic),
        "w8a8_fp8" => (NumberName::Fp8, ActivationsName::Dynamic),
        "w8a8_fp8_static" => (NumberName::Fp8, ActivationsName::Static),
        "w8a8_fp8_block" => (NumberName::Fp8Block, ActivationsName::Dynamic),
        "w8a16_fp8" => (NumberName::Fp8, ActivationsName::Full),
        "w8a16_fp8_block" => (NumberName::Fp8Block, ActivationsName::Full),
        "nvfp4" => (NumberName::Nvfp4, ActivationsName::Full),
        "mxfp4" => (NumberName::Mxfp4, ActivationsName::Full),
        "mxfp6" => (NumberName::Mxfp6, ActivationsName::Full),
        "mxfp8" => (NumberName::Mxfp8, ActivationsName::Full),
        "nf4" => (NumberName::Nf4, ActivationsName::Full),
        "nf4_double" => (NumberName::Nf4Double, ActivationsName::Full),
        _ => return None,
    };
    let step = Step::Scaled { targets: None, skip: Vec::new(), number, activations };
    Some(Recipe::new(name, number.format(), vec![step]))
}

/// `w{2..8}a16[_gN][_asym][_clip]`, or `hqq_` and the same without `_clip`.
fn weight_only(name: &str) -> Option<Recipe> {
    let (what, searched) = match name.strip_prefix("hqq_") {
        Some(what) => (what, true),
        None => (name, false),
    };
    let (bits, rest) = what.strip_prefix('w')?.split_once("a16")?;
    let bits = match bits.as_bytes() {
        [digit @ b'2'..=b'8'] => digit - b'0',
        _ => return None,
    };
    let (rest, clip) = match rest.strip_suffix("_clip") {
        Some(_) if searched => return None,
        Some(rest) => (rest, ClipName::Mse),
        None if searched => (rest, ClipName::Hqq),
        None => (rest, ClipName::None),
    };
    let (rest, zero_point) = match rest.strip_suffix("_asym") {
        Some(rest) => (rest, ZeroPointName::Asymmetric),
        None => (rest, ZeroPointName::Symmetric),
    };
    let granularity = match rest {
        "" => GranularityName::Channel,
        group => {
            let size = plain_number(group.strip_prefix("_g")?)?;
            GranularityName::Group { size: NonZeroUsize::new(size)? }
        }
    };
    let step = Step::Rtn {
        targets: None,
        skip: Vec::new(),
        bits: BitsNumber(Bits::new(bits)?),
        granularity,
        zero_point,
        scale: None,
        clip,
    };
    Some(Recipe::new(name, Format::CompressedTensors, vec![step]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_preset_exists_under_its_name() {
        for listed in PRESETS {
            assert_eq!(preset(listed.name).map(|recipe| recipe.name).as_deref(), Some(listed.name));
        }
    }

    #[test]
    fn floats_are_conversions_to_gguf() {
        for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
            assert_eq!(preset(float.name()), Some(conversion(Format::Gguf, Some(float))));
        }
    }

    #[test]
    fn what_reshapes_stands_in_front() {
        let kinds = |name: &str| -> Vec<&str> {
            let recipe = preset(name).unwrap();
            assert_eq!(recipe.name, name);
            let again = Recipe::parse(&recipe.to_toml(), std::path::Path::new("again.toml")).unwrap();
            assert_eq!(again, recipe);
            recipe.steps.iter().map(Step::kind).collect()
        };
        assert_eq!(kinds("awq_w4a16_g128_asym"), ["awq", "rtn"]);
        assert_eq!(kinds("awq_gptq_w3a16_g64"), ["awq", "gptq"]);
        assert_eq!(kinds("awq_q4_k_m"), ["awq", "mix"]);
        assert_eq!(kinds("rotated_awq_w4a16_g128"), ["rotate", "awq", "rtn"]);
        assert_eq!(kinds("rotated_gptaq_w4a16_g128"), ["rotate", "gptq"]);
        assert_eq!(kinds("rotated_nvfp4"), ["rotate", "scaled"]);
        assert_eq!(kinds("smoothquant_w8a8_int8"), ["smooth", "scaled"]);
    }

    #[test]
    fn near_misses_are_no_presets() {
        for name in [
            "",
            "w4a16_",
            "hqq_w4a16_clip",
            "hqq_q8_0",
            "w4a16_g",
            "w4a16_g0",
            "mixed_",
            "mixed_4.50",
            "mixed_+4",
            "mixed_0",
            "mixed_99",
            "w4a16_g+64",
            "w4a16_g064",
            "w1a16",
            "w04a16",
            "w4a8",
            "w4a16_sym",
            "w4a16_clip_asym",
            "q4",
            "bfloat16",
            "F16",
            "prune_",
            "prune_0",
            "prune_100",
            "prune_050",
            "prune_5of4",
            "prune_2of",
            "prune_50%",
            "depth_100",
            "depth_-5",
            "depth",
            "awq_",
            "awq_awq_w4a16",
            "awq_rotated_w4a16",
            "awq_w8a8_int8",
            "learned_hqq",
            "learned_q4_k_m",
            "smoothquant_w4a16",
            "imatrix_w4a16",
            "imatrix_gptq_q4_k_m",
            "smoothquant_w8a16_fp8",
            "rotated_prune_50",
        ] {
            assert!(preset(name).is_none(), "{name}");
        }
    }
}
