//! What a terminal shows, pinned.

use bitmill_report::*;

fn compare() -> CompareReport {
    from_json(include_str!("golden/compare.json")).unwrap()
}

#[test]
fn show() {
    println!("{}", compare_table(&compare(), None));
    println!("{}", compare_table(&compare(), Some(80)));
    println!("{}", eval_text(&from_json(include_str!("golden/eval.json")).unwrap()));
    println!("{}", bench_text(&from_json(include_str!("golden/bench.json")).unwrap()));
}
