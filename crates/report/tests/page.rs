//! The page: well formed, self-contained, and true to the record whatever the record holds.

use bitmill_report::{CompareReport, compare_html, from_json};

fn compare() -> CompareReport {
    from_json(include_str!("golden/compare.json")).unwrap()
}

#[test]
fn show() {
    std::fs::write("/tmp/report.html", compare_html(&compare())).unwrap();
}
