//! What is noted of a tensor once it is on disk, and read by the run that goes on after it.

use serde_json::{Value, json};

use crate::compress::TensorRecord;
use crate::plan::Plan;

/// The entry for `record`.
pub(crate) fn entry(record: &TensorRecord) -> Value {
    // The error's bits beside its digits: a parser may read the digits as their neighbour, and a record must not follow from
    // where a run was interrupted.
    json!({"tensor": record, "error_bits": record.relative_error.to_bits()})
}

/// The records of the first tensors of `plan`, as far as `entries` are theirs.
pub(crate) fn records<'a>(plan: &'a Plan, entries: &'a [Value]) -> impl Iterator<Item = TensorRecord> + 'a {
    plan.tensors.iter().zip(entries).map_while(|(planned, entry)| {
        let record: TensorRecord = serde_json::from_value(entry["tensor"].clone()).ok()?;
        let relative_error = f64::from_bits(entry["error_bits"].as_u64()?);
        (record.name == planned.name).then_some(TensorRecord { relative_error, ..record })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_to_the_bit() {
        let checkpoint = crate::embedded::checkpoint().unwrap();
        let recipe = crate::preset("q8_0").unwrap();
        let plan = Plan::new(&checkpoint, &recipe, &crate::PlanOptions::default()).unwrap();
        for bits in 0..2000u64 {
            let record = TensorRecord {
                name: plan.tensors[0].name.clone(),
                from: "f16".into(),
                to: "q8_0".into(),
                bytes: 34,
                relative_error: f64::from_bits(0x3f7a_e147_ae14_7ae1 + 977 * bits),
                source: None,
                source_shape: None,
                zeros: None,
                source_hash: "0".into(),
                stored_hash: "1".into(),
                method: None,
                cache_scale: None,
                input_scale: None,
                outliers: None,
                reason: String::new(),
            };
            let entry: Value = serde_json::from_str(&entry(&record).to_string()).unwrap();
            let entries = [entry, json!({"tensor": 1})];
            assert_eq!(records(&plan, &entries).collect::<Vec<_>>(), [record]);
        }
    }
}
