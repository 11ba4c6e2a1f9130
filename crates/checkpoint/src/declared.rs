//! What config.json says of packed weights, by whichever method's rules.

use std::path::Path;

use serde_json::{Map, Value};

use crate::columns;
use crate::compressed_tensors::{self, Scheme};
use crate::config_json::Fields;
use crate::safetensors_in::StTensor;
use crate::{Error, bitsandbytes, scaled, sparse_bitmask};

/// The method that packed a checkpoint's weights, and what its config says of them.
pub(crate) enum Declared {
    CompressedTensors(Vec<Scheme>),
    Columns(columns::Declared),
    Bitsandbytes(bitsandbytes::Declared),
}

impl Declared {
    /// Reads `quantization_config` of config.json, or what lies beside it in its stead; `None` if nothing is declared.
    pub fn read(
        file: &Path,
        config: &Map<String, Value>,
        beside: Option<(&Path, &Value)>,
    ) -> Result<Option<Self>, Error> {
        let Some(value) = config.get("quantization_config").filter(|value| !value.is_null()) else {
            return beside.map(|(path, value)| columns::beside(path, value).map(Self::Columns)).transpose();
        };
        let Value::Object(map) = value else {
            return Err(Error::ConfigValue {
                file: file.to_owned(),
                key: "quantization_config".to_owned(),
                problem: "expected an object".to_owned(),
            });
        };
        let fields = Fields { file, prefix: "quantization_config", map };
        // Its first files name no method.
        let is_unnamed = fields.get("load_in_4bit").is_some() || fields.get("load_in_8bit").is_some();
        let method = if is_unnamed { "bitsandbytes" } else { "compressed-tensors" };
        Ok(Some(match fields.text("quant_method")?.unwrap_or(method) {
            "compressed-tensors" => Self::CompressedTensors(compressed_tensors::schemes(&fields)?),
            "fp8" => Self::CompressedTensors(vec![compressed_tensors::fp8_scheme(&fields)?]),
            "bitsandbytes" => Self::Bitsandbytes(bitsandbytes::declared(&fields)?),
            method => Self::Columns(columns::declared(&fields, method)?),
        }))
    }

    /// The matrix that a stored tensor is a part of (`….weight`), if its name says so.
    pub fn matrix_of(&self, tensor: &StTensor) -> Option<(String, &'static str)> {
        let name = &tensor.name;
        match self {
            Self::CompressedTensors(_) => compressed_tensors::matrix_of(name)
                .or_else(|| scaled::matrix_of(name, tensor.dtype))
                .or_else(|| sparse_bitmask::matrix_of(name)),
            Self::Columns(_) => columns::matrix_of(name),
            Self::Bitsandbytes(declared) => bitsandbytes::matrix_of(tensor, *declared),
        }
    }
}
