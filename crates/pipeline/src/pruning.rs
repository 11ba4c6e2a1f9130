//! Steps that take weights or layers away, as recipes write them.
//!
//! ```toml
//! [[step]]
//! kind = "depth"
//! remove = 0.25          # of the layers, those of least influence; or: layers = [20, 21]
//!
//! [[step]]
//! kind = "magnitude"
//! sparsity = 0.5         # or: n_of_m = "2:4"
//! scope = "row"          # or "tensor"
//! storage = "dense"      # or "sparse": a bit for each weight, and those that are left
//! ```

use std::path::PathBuf;

use bitmill_prune::{Error as PruneError, NOfM, RowRule, Sparsity};
use serde::{Deserialize, Serialize};

/// Layers taken away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawDepth", into = "RawDepth")]
pub enum DepthStep {
    /// Those of least block influence.
    Least {
        /// The fraction of all layers, between 0 and 1; the number is rounded to nearest, halves up.
        remove: f64,
        /// A UTF-8 text to measure on; the built-in calibration text if absent.
        calibration: Option<PathBuf>,
    },
    /// These, counted from 0.
    Layers(Vec<usize>),
}

/// The keys of a `depth` step.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDepth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remove: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<usize>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    calibration: Option<PathBuf>,
}

impl TryFrom<RawDepth> for DepthStep {
    type Error = String;

    fn try_from(raw: RawDepth) -> Result<Self, String> {
        match raw {
            RawDepth { remove: Some(remove), layers: None, calibration } if remove > 0.0 && remove < 1.0 => {
                Ok(Self::Least { remove, calibration })
            }
            RawDepth { remove: Some(remove), layers: None, .. } => {
                Err(format!("remove = {remove}: a fraction of the layers between 0 and 1"))
            }
            RawDepth { remove: None, layers: Some(_), calibration: Some(_) } => {
                Err("`calibration` is for `remove`: layers that are named are not measured".into())
            }
            RawDepth { remove: None, layers: Some(mut layers), calibration: None } if !layers.is_empty() => {
                layers.sort_unstable();
                match layers.windows(2).find(|pair| pair[0] == pair[1]) {
                    Some(pair) => Err(format!("layers: {} is there twice", pair[0])),
                    None => Ok(Self::Layers(layers)),
                }
            }
            _ => Err("one of `remove` (a fraction) and `layers` (a list of numbers)".into()),
        }
    }
}

impl From<DepthStep> for RawDepth {
    fn from(step: DepthStep) -> Self {
        match step {
            DepthStep::Least { remove, calibration } => {
                Self { remove: Some(remove), layers: None, calibration }
            }
            DepthStep::Layers(layers) => Self { remove: None, layers: Some(layers), calibration: None },
        }
    }
}

/// Weights of small magnitude set to zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawMagnitude", into = "RawMagnitude")]
pub struct MagnitudeStep {
    /// Patterns of canonical tensor names; `None`: every matrix of the decoder layers.
    pub targets: Option<Vec<String>>,
    /// Patterns taken out again.
    pub skip: Vec<String>,
    /// Which weights go.
    pub removal: Removal,
    /// How what is left is stored, where no later step decides.
    pub storage: Storage,
}

/// How a matrix with zeros is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Zeros as any other weight.
    #[default]
    Dense,
    /// The weights that are left, and a bit for each that says whether it is.
    Sparse,
}

/// Which weights of a matrix go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Removal {
    /// The smallest of every row by itself, or of every few inputs of it.
    Rows(RowRule),
    /// The smallest of the whole matrix.
    Tensor(Sparsity),
}

impl Removal {
    /// How many weights of a matrix stay; exact.
    ///
    /// # Errors
    /// [`UnevenPattern`](bitmill_prune::Error::UnevenPattern) if a row does not divide into groups.
    pub fn kept(self, out_features: usize, in_features: usize) -> Result<usize, PruneError> {
        match self {
            Self::Rows(rule) => Ok(out_features * rule.kept(in_features)?),
            Self::Tensor(sparsity) => {
                let weights = out_features * in_features;
                Ok(weights - sparsity.removed(weights as u64) as usize)
            }
        }
    }
}

/// The keys of a `magnitude` step.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMagnitude {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    targets: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skip: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sparsity: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n_of_m: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    #[serde(default)]
    storage: Storage,
}

/// Among which weights those that go are the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scope {
    Row,
    Tensor,
}

impl TryFrom<RawMagnitude> for MagnitudeStep {
    type Error = String;

    fn try_from(raw: RawMagnitude) -> Result<Self, String> {
        let RawMagnitude { targets, skip, sparsity, n_of_m, scope, storage } = raw;
        let removal = match (sparsity, n_of_m, scope) {
            (Some(fraction), None, scope) => {
                let sparsity = Sparsity::new(fraction)
                    .ok_or_else(|| format!("sparsity = {fraction}: a fraction of the weights, 0 to 1"))?;
                match scope {
                    None | Some(Scope::Row) => Removal::Rows(RowRule::Sparsity(sparsity)),
                    Some(Scope::Tensor) => Removal::Tensor(sparsity),
                }
            }
            (None, Some(pattern), None | Some(Scope::Row)) => {
                let n_of_m = parse_n_of_m(&pattern)
                    .ok_or_else(|| format!("n_of_m = \"{pattern}\": such as \"2:4\", 2 kept of every 4"))?;
                Removal::Rows(RowRule::NOfM(n_of_m))
            }
            (None, Some(_), Some(Scope::Tensor)) => {
                return Err("`n_of_m` is counted along rows: `scope` is \"row\"".into());
            }
            _ => return Err("one of `sparsity` (a fraction) and `n_of_m` (such as \"2:4\")".into()),
        };
        Ok(Self { targets, skip, removal, storage })
    }
}

impl From<MagnitudeStep> for RawMagnitude {
    fn from(step: MagnitudeStep) -> Self {
        let (sparsity, n_of_m, scope) = match step.removal {
            Removal::Rows(RowRule::Sparsity(sparsity)) => (Some(sparsity.get()), None, Scope::Row),
            Removal::Rows(RowRule::NOfM(pattern)) => {
                (None, Some(format!("{}:{}", pattern.kept(), pattern.of())), Scope::Row)
            }
            Removal::Tensor(sparsity) => (Some(sparsity.get()), None, Scope::Tensor),
        };
        let MagnitudeStep { targets, skip, storage, .. } = step;
        Self { targets, skip, sparsity, n_of_m, scope: Some(scope), storage }
    }
}

fn parse_n_of_m(pattern: &str) -> Option<NOfM> {
    let (kept, of) = pattern.split_once(':')?;
    NOfM::new(kept.parse().ok()?, of.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use crate::{Error, Recipe};
    use std::path::Path;

    fn parse(step: &str) -> Result<Recipe, Error> {
        Recipe::parse(
            &format!("name = \"p\"\nformat = \"hugging-face\"\n\n[[step]]\n{step}\n"),
            Path::new("p.toml"),
        )
    }

    #[test]
    fn steps_write_every_default_out_and_read_back_equal() {
        for (step, written) in [
            ("kind = \"depth\"\nremove = 0.25", "kind = \"depth\"\nremove = 0.25"),
            ("kind = \"depth\"\nlayers = [5, 2]", "kind = \"depth\"\nlayers = [2, 5]"),
            (
                "kind = \"depth\"\nremove = 0.5\ncalibration = \"c.txt\"",
                "kind = \"depth\"\nremove = 0.5\ncalibration = \"c.txt\"",
            ),
            (
                "kind = \"magnitude\"\nsparsity = 0.5",
                "kind = \"magnitude\"\nsparsity = 0.5\nscope = \"row\"\nstorage = \"dense\"",
            ),
            (
                "kind = \"magnitude\"\nskip = [\"*.k_proj.weight\"]\nn_of_m = \"2:4\"",
                "kind = \"magnitude\"\nskip = [\"*.k_proj.weight\"]\nn_of_m = \"2:4\"\nscope = \"row\"\nstorage = \"dense\"",
            ),
            (
                "kind = \"magnitude\"\nscope = \"tensor\"\nsparsity = 0.3",
                "kind = \"magnitude\"\nsparsity = 0.3\nscope = \"tensor\"\nstorage = \"dense\"",
            ),
        ] {
            let recipe = parse(step).unwrap();
            assert!(recipe.to_toml().trim_end().ends_with(written), "{}", recipe.to_toml());
            assert_eq!(Recipe::parse(&recipe.to_toml(), Path::new("p.toml")).unwrap(), recipe);
        }
    }

    #[test]
    fn wrong_values_and_combinations_are_refused_by_name() {
        for (step, said) in [
            ("kind = \"depth\"", "one of `remove`"),
            ("kind = \"depth\"\nremove = 1.0", "between 0 and 1"),
            ("kind = \"depth\"\nremove = nan", "between 0 and 1"),
            ("kind = \"depth\"\nremove = 0.5\nlayers = [1]", "one of `remove`"),
            ("kind = \"depth\"\nlayers = []", "one of `remove`"),
            ("kind = \"depth\"\nlayers = [3, 3]", "3 is there twice"),
            ("kind = \"depth\"\nlayers = [3]\ncalibration = \"c.txt\"", "not measured"),
            ("kind = \"depth\"\nlayers = [3]\nscope = \"row\"", "scope"),
            ("kind = \"magnitude\"", "one of `sparsity`"),
            ("kind = \"magnitude\"\nsparsity = 1.5", "0 to 1"),
            ("kind = \"magnitude\"\nsparsity = 0.5\nn_of_m = \"2:4\"", "one of `sparsity`"),
            ("kind = \"magnitude\"\nn_of_m = \"4:2\"", "2 kept of every 4"),
            ("kind = \"magnitude\"\nn_of_m = \"0:4\"", "2 kept of every 4"),
            ("kind = \"magnitude\"\nn_of_m = \"two\"", "2 kept of every 4"),
            ("kind = \"magnitude\"\nn_of_m = \"2:4\"\nscope = \"tensor\"", "along rows"),
            ("kind = \"magnitude\"\nsparsity = 0.5\nscope = \"layer\"", "layer"),
            ("kind = \"magnitude\"\nsparsity = 0.5\nspeed = 1", "speed"),
            (
                "kind = \"magnitude\"\nsparsity = 0.5\nstorage = \"sparse\"",
                "`magnitude` with `storage = \"sparse\"` cannot be written as hugging-face",
            ),
            (
                "kind = \"float\"\ntype = \"bf16\"\n[[step]]\nkind = \"magnitude\"\nsparsity = 0.5",
                "`magnitude` comes after `float`",
            ),
            (
                "kind = \"depth\"\nlayers = [1]\n[[step]]\nkind = \"depth\"\nlayers = [2]",
                "two steps of kind `depth`",
            ),
        ] {
            let error = parse(step).unwrap_err();
            assert!(matches!(error, Error::MalformedRecipe { .. }), "{error}");
            assert!(error.to_string().contains(said), "{step}: {error}");
        }
    }
}
