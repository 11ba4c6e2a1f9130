//! Numbers that may have no value: JSON knows neither NaN nor infinity, so both are written as `null`.
//!
//! A model that compression has destroyed has an infinite perplexity. That is a result, not an error, and a report
//! holding it must still be written and read back. `null` is read as NaN.

use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_none() }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
