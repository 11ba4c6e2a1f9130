//! The documents' field names, order and units, pinned by samples written without this crate's help.

use bitmill_report::{
    BenchReport, CompareReport, Divergence, Document, Error, EvalReport, from_json, to_json,
};
use serde_json::Value;

const COMPARE: &str = include_str!("golden/compare.json");
const EVAL: &str = include_str!("golden/eval.json");
const BENCH: &str = include_str!("golden/bench.json");

/// Paths of all fields in the order in which they stand.
fn fields(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                out.push(format!("{path}.{name}"));
                fields(value, &format!("{path}.{name}"), out);
            }
        }
        Value::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                fields(value, &format!("{path}[{i}]"), out);
            }
        }
        _ => {}
    }
}

fn assert_same_document<D: Document>(text: &str) {
    let written = to_json::<D>(&from_json(text).unwrap());
    let (expected, found): (Value, Value) =
        (serde_json::from_str(text).unwrap(), serde_json::from_str(&written).unwrap());
    assert_eq!(found, expected);
    let (mut expected_fields, mut found_fields) = (Vec::new(), Vec::new());
    fields(&expected, "", &mut expected_fields);
    fields(&found, "", &mut found_fields);
    assert_eq!(found_fields, expected_fields);
    assert!(written.ends_with("}\n"));
}

#[test]
fn the_samples_are_read_and_written_back_field_for_field() {
    assert_same_document::<CompareReport>(COMPARE);
    assert_same_document::<EvalReport>(EVAL);
    assert_same_document::<BenchReport>(BENCH);
}

#[test]
fn tasks_keep_the_order_in_which_they_were_given() {
    let report: CompareReport = from_json(COMPARE).unwrap();
    let names: Vec<_> = report.rows[0].quality.tasks.names().collect();
    assert_eq!(names, ["facts", "sentiment", "sentiment_zh", "story", "sums"]);
}

#[test]
fn the_dense_row_has_no_divergence_fields_and_no_flips() {
    let value: Value = serde_json::from_str(&to_json::<CompareReport>(&from_json(COMPARE).unwrap())).unwrap();
    let dense = value["rows"][0].as_object().unwrap();
    assert!(dense.keys().all(|key| !key.starts_with("kl_") || key == "kl_fast_path"), "{dense:?}");
    assert!(!dense["tasks"]["facts"].as_object().unwrap().contains_key("gained"));
}

#[test]
fn a_figure_without_a_value_is_null_and_read_back_as_nan() {
    let mut report: CompareReport = from_json(COMPARE).unwrap();
    report.rows[1].quality.perplexity = f64::INFINITY;
    let Some(Divergence { kl_mean, .. }) = report.rows[1].quality.divergence.as_mut() else { panic!() };
    *kl_mean = f64::NAN;
    let text = to_json(&report);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value["rows"][1]["perplexity"].is_null());
    let read: CompareReport = from_json(&text).unwrap();
    assert!(read.rows[1].quality.perplexity.is_nan());
    assert!(read.rows[1].quality.divergence.unwrap().kl_mean.is_nan());
}

#[test]
fn another_documents_schema_is_refused_by_name() {
    let Err(error) = from_json::<EvalReport>(COMPARE) else { panic!("read a comparison as an evaluation") };
    let message = error.to_string();
    assert!(message.contains("bitmill.eval/1") && message.contains("bitmill.compare/1"), "{message}");
    assert_eq!(error.hint().as_deref(), Some("write the document anew with `bitmill eval --json`"));
    assert!(matches!(from_json::<EvalReport>("{"), Err(Error::Malformed { .. })));
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    let text = BENCH.replacen('{', "{\n  \"joules\": 3,", 1);
    assert_eq!(from_json::<BenchReport>(&text).unwrap(), from_json::<BenchReport>(BENCH).unwrap());
}

#[test]
fn every_field_of_the_samples_is_explained_in_docs_json_md() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/json.md")).unwrap();
    for text in [COMPARE, EVAL, BENCH] {
        let mut paths = Vec::new();
        fields(&serde_json::from_str(text).unwrap(), "", &mut paths);
        for path in paths {
            let name = path.rsplit('.').next().unwrap();
            let named_by_the_user = path.contains(".tasks.")
                && path.matches('.').count()
                    == path.find(".tasks.").map_or(0, |at| path[..at].matches('.').count() + 2);
            assert!(named_by_the_user || docs.contains(&format!("`{name}`")), "`{name}` ({path})");
        }
    }
}
