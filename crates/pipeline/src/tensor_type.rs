//! Types of single tensors, whatever a recipe gives them: `--tensor-type`.

use std::fmt;
use std::str::FromStr;

use bitmill_tensor::{BlockType, FloatType};

use crate::Error;
use crate::recipe::{BlockName, FloatName, Recipe, Step};

/// A type for the tensors that match a pattern, as llama-quantize's `--tensor-type` names one.
///
/// ```
/// use bitmill_pipeline::TensorType;
/// let down: TensorType = "*.mlp.down_proj.weight=q8_0".parse().unwrap();
/// assert_eq!(down.to_string(), "*.mlp.down_proj.weight=q8_0");
/// assert!("*.mlp.down_proj.weight=q9".parse::<TensorType>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    pattern: String,
    to: To,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Block(BlockType),
    Float(FloatType),
}

impl TensorType {
    /// The step that gives it.
    fn step(&self) -> Step {
        let (targets, skip) = (Some(vec![self.pattern.clone()]), Vec::new());
        match self.to {
            To::Block(block) => Step::Block { targets, skip, block: BlockName(block) },
            To::Float(float) => Step::Float { targets, skip, float: FloatName(float) },
        }
    }
}

impl FromStr for TensorType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, name) = text
            .rsplit_once('=')
            .ok_or_else(|| format!("`{text}` is no PATTERN=TYPE, such as `*.mlp.down_proj.weight=q8_0`"))?;
        let block = BlockType::parse(name).map(To::Block);
        let to = block.or_else(|| FloatType::parse(name).map(To::Float)).ok_or_else(|| {
            let blocks: Vec<_> = BlockType::ALL.iter().map(|block| block.name()).collect();
            format!("`{name}` is no type: f32, f16, bf16, {}", blocks.join(", "))
        })?;
        Ok(Self { pattern: pattern.to_owned(), to })
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to {
            To::Block(block) => write!(f, "{}={}", self.pattern, block.name()),
            To::Float(float) => write!(f, "{}={}", self.pattern, float.name()),
        }
    }
}

impl Recipe {
    /// The recipe with a step for each of `types` after its own: the last whose pattern matches a tensor decides.
    ///
    /// # Errors
    /// [`Error::NoUse`] if its format does not store such a type, or a search decides about everything.
    pub fn with_tensor_types(mut self, types: &[TensorType]) -> Result<Self, Error> {
        for step in types.iter().map(TensorType::step) {
            if self.is_search() || !self.format.takes(&step) {
                return Err(Error::NoUse { recipe: self.name, what: "GGUF types of single tensors" });
            }
            self.steps.push(step);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    #[test]
    fn types_are_named_in_either_case_and_patterns_may_hold_an_equals_sign() {
        for (text, to) in [
            ("lm_head.weight=Q6_K", To::Block(BlockType::Q6_K)),
            ("lm_head.weight=bf16", To::Float(FloatType::BF16)),
            ("a=b=f32", To::Float(FloatType::F32)),
        ] {
            assert_eq!(text.parse::<TensorType>().unwrap().to, to, "{text}");
        }
        for text in ["", "q8_0", "=", "x=", "x=q4_k_m"] {
            assert!(text.parse::<TensorType>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_becomes_the_step_that_a_recipe_would_say() {
        let types: Vec<TensorType> =
            ["*.down_proj.weight=q8_0", "lm_head.weight=f16"].map(|text| text.parse().unwrap()).into();
        let recipe = preset("q4_k_m").unwrap().with_tensor_types(&types).unwrap();
        let text = "name = \"q4_k_m\"\nformat = \"gguf\"\n\n[[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n\n\
                    [[step]]\nkind = \"block\"\ntargets = [\"*.down_proj.weight\"]\ntype = \"q8_0\"\n\n\
                    [[step]]\nkind = \"float\"\ntargets = [\"lm_head.weight\"]\ntype = \"f16\"\n";
        assert_eq!(recipe.to_toml(), text);
        for other in ["mixed_4.5", "w4a16_g128", "prune_50"] {
            let refused = preset(other).unwrap().with_tensor_types(&types);
            assert!(matches!(refused, Err(Error::NoUse { .. })), "{other}");
        }
        let float = ["lm_head.weight=f16".parse().unwrap()];
        assert!(preset("w4a16_g128").unwrap().with_tensor_types(&float).is_ok());
    }
}
