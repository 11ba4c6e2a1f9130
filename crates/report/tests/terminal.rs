//! What a terminal shows, pinned. To accept a change: BITMILL_ACCEPT=1 cargo test -p bitmill-report --test terminal

use std::path::Path;

use bitmill_report::{
    BenchReport, CompareReport, PeakScope, Tasks, bench_text, compare_table, eval_text, from_json,
};

fn compare() -> CompareReport {
    from_json(include_str!("golden/compare.json")).unwrap()
}

fn bench() -> BenchReport {
    from_json(include_str!("golden/bench.json")).unwrap()
}

fn assert_pinned(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BITMILL_ACCEPT").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(found == expected, "{name} is now\n{found}\nand was\n{expected}");
}

#[test]
fn a_comparison_is_shown_as_pinned() {
    assert_pinned("compare.txt", &compare_table(&compare(), None));
}

#[test]
fn an_evaluation_is_shown_as_pinned() {
    assert_pinned("eval.txt", &eval_text(&from_json(include_str!("golden/eval.json")).unwrap()));
}

#[test]
fn a_benchmark_is_shown_as_pinned() {
    assert_pinned("bench.txt", &bench_text(&bench()));
}

#[test]
fn a_comparison_fits_120_columns_and_a_terminals_80() {
    for (width, most) in [(None, 120), (Some(100), 100), (Some(80), 80)] {
        for line in compare_table(&compare(), width).lines() {
            assert!(line.chars().count() <= most, "{line}");
        }
    }
    let narrow = compare_table(&compare(), Some(80));
    assert!(narrow.contains("(no room for: bits/weight, recovery %)"), "{narrow}");
}

#[test]
fn the_dense_model_comes_first_wherever_it_was_asked_for() {
    let mut report = compare();
    report.rows.rotate_left(3);
    let table = compare_table(&report, None);
    assert!(table.lines().nth(3).unwrap().starts_with("none (dense)"), "{table}");
}

#[test]
fn a_model_that_was_made_before_is_no_dense_model() {
    let mut report = compare();
    let made = report.rows.last_mut().unwrap();
    (made.strategy, made.path) = ("theirs".into(), Some("models/theirs".into()));
    (made.recipe, made.compress_seconds) = (None, None);
    let table = compare_table(&report, None);
    let lines: Vec<&str> = table.lines().filter(|line| line.starts_with("theirs ")).collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[1].ends_with('—'), "it was not compressed here: {}", lines[1]);
    assert_eq!(table.lines().filter(|line| line.starts_with("none (dense)")).count(), 2);
}

#[test]
fn what_does_not_apply_is_a_dash_and_no_zero() {
    let mut report = compare();
    for row in &mut report.rows {
        row.quality.tasks = Tasks::new();
        row.quality.accuracy = None;
        row.recovery = None;
        row.quality.perplexity = f64::NAN;
    }
    let table = compare_table(&report, None);
    let dense = table.lines().find(|line| line.starts_with("none")).unwrap();
    assert_eq!(dense.matches('—').count(), 4, "{dense}");
}

#[test]
fn a_peak_that_could_not_be_reset_says_so() {
    let mut report = bench();
    report.speed.peak_scope = PeakScope::Process;
    assert!(bench_text(&report).contains("since the process began"));
    report.speed.peak_bytes = None;
    assert!(bench_text(&report).contains("peak memory unknown"));
    let mut report = compare();
    report.rows[0].speed.peak_scope = PeakScope::Process;
    let table = compare_table(&report, None).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(table.contains("covers the process from its start"), "{table}");
}

#[test]
fn escape_sequences_do_not_reach_the_terminal() {
    let mut report = compare();
    report.rows[1].strategy = "\u{1b}[2J".into();
    report.failed[0].error = "\u{1b}]0;x\u{7}".into();
    let table = compare_table(&report, None);
    assert!(!table.contains(['\u{1b}', '\u{7}']));
}
