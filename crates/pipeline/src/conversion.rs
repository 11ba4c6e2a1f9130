//! The recipe behind `convert`: another format, the same numbers.

use bitmill_tensor::FloatType;

use crate::recipe::{FloatName, Format, Recipe, Step};

/// The recipe that writes every tensor in `format`: as it is stored (`None`; codes that the format has no form for are
/// unpacked to the dtype that the model was made in), or as `float`.
///
/// ```
/// use bitmill_pipeline::{Format, conversion};
/// use bitmill_tensor::FloatType;
/// assert_eq!(conversion(Format::HuggingFace, Some(FloatType::BF16)).name, "bf16");
/// assert_eq!(conversion(Format::Gguf, None).name, "as it is");
/// ```
pub fn conversion(format: Format, float: Option<FloatType>) -> Recipe {
    let targets = Some(vec!["*".to_owned()]);
    let (name, step) = match float {
        None => ("as it is", Step::Keep { targets, skip: Vec::new() }),
        Some(float) => (float.name(), Step::Float { targets, skip: Vec::new(), float: FloatName(float) }),
    };
    Recipe::new(name, format, vec![step])
}
