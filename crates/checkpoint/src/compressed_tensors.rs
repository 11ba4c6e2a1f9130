//! compressed-tensors' `pack-quantized`.
use bitmill_tensor::Grouped;

use crate::StTensorSpec;

/// The tensors that a packed matrix is stored as.
pub fn grouped_specs(
    name: &str,
    out_features: usize,
    in_features: usize,
    grouped: &Grouped,
) -> Vec<StTensorSpec> {
    let _ = (name, out_features, in_features, grouped);
    Vec::new()
}

/// The `quantization_config` of config.json.
pub fn compressed_tensors_config(groups: &[(Grouped, Vec<String>)], ignore: &[String]) -> serde_json::Value {
    let _ = (groups, ignore);
    serde_json::Value::Null
}
