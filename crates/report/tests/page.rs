//! The page: well formed, self-contained, and true to the record whatever the record holds.

use bitmill_report::{CompareReport, Failure, Tasks, compare_html, from_json};

fn compare() -> CompareReport {
    from_json(include_str!("golden/compare.json")).unwrap()
}

/// Panics unless every element is closed in turn and every attribute is quoted.
fn assert_well_formed(page: &str) {
    const VOID: [&str; 2] = ["meta", "br"];
    let body = page.strip_prefix("<!doctype html>").unwrap();
    let (mut open, mut rest) = (Vec::new(), body);
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        if open.last() != Some(&"style") {
            assert!(!text.contains('>'), "a bare > in {text:?}");
            for (i, _) in text.match_indices('&') {
                let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
                assert!(known.iter().any(|entity| text[i..].starts_with(entity)), "a bare & in {text:?}");
            }
        }
        let end = start + rest[start..].find('>').expect("a tag without end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "tag {tag:?}");
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of {tag:?}");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closed in turn");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

fn assert_self_contained(page: &str) {
    for load in [
        "http://",
        "https://",
        "//cdn",
        "src=",
        "href=",
        "url(",
        "@import",
        "<script",
        "<link",
        "<img",
        "<iframe",
        "javascript:",
        " onload",
        " onerror",
    ] {
        assert!(!page.contains(load), "{load}");
    }
    assert!(page.contains("default-src 'none'"));
}

fn ids_are_unique(page: &str) {
    let mut ids: Vec<&str> =
        page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let n = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), n);
}

#[test]
fn the_page_is_well_formed_and_loads_nothing() {
    let page = compare_html(&compare());
    assert_well_formed(&page);
    assert_self_contained(&page);
    ids_are_unique(&page);
    // To look at it: BITMILL_PAGE=page.html cargo test -p bitmill-report --test page
    if let Some(path) = std::env::var_os("BITMILL_PAGE") {
        std::fs::write(path, &page).unwrap();
    }
}

#[test]
fn every_drawing_has_a_name_and_a_description() {
    let page = compare_html(&compare());
    let drawings = page.matches("<svg ").count();
    // Three marks of the legend, four scatters, five tasks.
    assert_eq!(drawings, 3 + 4 + 5);
    assert_eq!(page.matches("role=\"img\" aria-labelledby=\"").count(), drawings);
    assert_eq!(page.matches("<desc ").count(), drawings);
}

#[test]
fn every_strategy_failure_note_and_recipe_is_shown() {
    let page = compare_html(&compare());
    let report = compare();
    for row in &report.rows {
        assert!(
            page.contains(&format!("{}</th>", if row.is_dense() { "none (dense)" } else { &row.strategy }))
        );
    }
    assert_eq!(page.matches("<details>").count(), report.rows.len() - 1);
    assert!(page.contains("w4a16_g96.toml") && page.contains("do not divide into groups of 96"));
    assert!(page.contains("hint: group sizes that divide 256"));
    assert!(page.contains("stored as q5_0 instead"));
    assert!(page.contains("targets = [&quot;*.self_attn.*.weight&quot;"));
    assert!(page.contains("AMD EPYC 7B13"));
    assert!(page.contains("+31 −76 <strong>p &lt;0.001</strong>"));
}

#[test]
fn models_that_were_made_before_have_rows_and_no_recipe() {
    let mut report = compare();
    let mut made = report.rows[2].clone();
    made.strategy = "theirs/<model>".into();
    made.path = Some("/models/theirs/<model>".into());
    (made.recipe, made.compress_seconds) = (None, None);
    made.notes = vec!["made before, measured as it lies at /models/theirs/<model>".into()];
    report.rows.push(made);
    assert_eq!(report.dense().unwrap().strategy, "none");
    let page = compare_html(&report);
    assert_well_formed(&page);
    assert!(
        page.contains(&format!(
            "{} compression strategies and 1 other model, measured",
            report.rows.len() - 2
        ))
    );
    assert!(page.contains("theirs/&lt;model&gt;</th>") && page.contains("measured as they lie"));
    assert_eq!(page.matches("<details>").count(), report.rows.len() - 2);
    report.rows.retain(|row| row.recipe.is_none());
    let page = compare_html(&report);
    assert_well_formed(&page);
    assert!(page.contains(": 1 other model, measured</h1>"), "{page}");
}

#[test]
fn text_from_outside_stays_text() {
    let evil = "</title></style><script>alert(1)</script>\"'><img src=x onerror=y>&\u{1b}[0m";
    let mut report = compare();
    for text in [&mut report.model, &mut report.version, &mut report.created, &mut report.settings.text] {
        *text = evil.into();
    }
    for text in [&mut report.machine.cpu, &mut report.machine.isa, &mut report.machine.os] {
        *text = evil.into();
    }
    for row in &mut report.rows {
        row.format = evil.into();
        row.notes = vec![evil.into()];
        if row.recipe.is_some() {
            row.strategy = evil.into();
            row.recipe = Some(evil.into());
        }
        row.quality.tasks =
            row.quality.tasks.iter().map(|(name, score)| (format!("{evil}{name}"), *score)).collect();
    }
    report.failed = vec![Failure { strategy: evil.into(), error: evil.into(), hint: Some(evil.into()) }];
    let page = compare_html(&report);
    assert_well_formed(&page);
    assert!(!page.contains("<script") && !page.contains("<img") && !page.contains('\u{1b}'));
}

#[test]
fn reports_with_little_in_them_still_make_a_page() {
    let mut no_tasks = compare();
    for row in &mut no_tasks.rows {
        row.quality.tasks = Tasks::new();
        row.quality.accuracy = None;
        row.recovery = None;
    }
    let page = compare_html(&no_tasks);
    assert_well_formed(&page);
    assert!(page.contains("Size against perplexity") && !page.contains("Accuracy by task"));
    assert!(!page.contains("Answers that changed"));

    let mut dense_only = compare();
    dense_only.rows.truncate(1);
    dense_only.failed.clear();
    assert_well_formed(&compare_html(&dense_only));

    let mut no_dense = compare();
    no_dense.rows.remove(0);
    assert_well_formed(&compare_html(&no_dense));

    let mut empty = compare();
    empty.rows.clear();
    assert_well_formed(&compare_html(&empty));
}

#[test]
fn figures_without_a_value_break_nothing() {
    let mut report = compare();
    for (i, row) in report.rows.iter_mut().enumerate() {
        let hole = [f64::NAN, f64::INFINITY, 0.0, 1e300][i % 4];
        row.quality.perplexity = hole;
        row.quality.perplexity_stderr = hole;
        row.quality.accuracy = Some(hole);
        row.speed.decode_ms.median = hole;
        row.speed.peak_bytes = None;
        row.bytes = 0;
        row.ratio = hole;
        if let Some(divergence) = &mut row.quality.divergence {
            divergence.kl_mean = hole;
            divergence.kl_stderr = hole;
        }
        let names: Vec<String> = row.quality.tasks.names().map(String::from).collect();
        for name in names {
            let mut score = *row.quality.tasks.get(&name).unwrap();
            score.accuracy = hole;
            score.n = 0;
            row.quality.tasks.insert(name, score);
        }
    }
    let page = compare_html(&report);
    assert_well_formed(&page);
    let drawings: String =
        page.split("<svg ").skip(1).map(|rest| rest.split("</svg>").next().unwrap()).collect();
    for hole in ["\"NaN", "inf\"", "NaN,", ",NaN"] {
        let at = drawings.find(hole).map(|at| &drawings[at.saturating_sub(80)..at + 40]);
        assert_eq!(at, None, "{hole}");
    }
    bitmill_report::compare_table(&report, Some(80));
}

#[test]
fn drawings_keep_to_their_frames() {
    for (n, report) in [3, 8, 14].map(|n| {
        let mut report = compare();
        while report.rows.len() < n {
            let mut row = report.rows[report.rows.len() - 5].clone();
            row.strategy = format!("{}_{}", row.strategy, report.rows.len());
            report.rows.push(row);
        }
        report.rows.truncate(n);
        (n, report)
    }) {
        let page = compare_html(&report);
        for drawing in page.split("<svg viewBox=\"0 0 ").skip(1) {
            let drawing = drawing.split("</svg>").next().unwrap();
            let mut size =
                drawing.split('"').next().unwrap().split(' ').map(|side| side.parse::<f64>().unwrap());
            let (width, height) = (size.next().unwrap(), size.next().unwrap());
            for (names, most) in [
                ([" x=\"", " x1=\"", " x2=\"", " cx=\""], width),
                ([" y=\"", " y1=\"", " y2=\"", " cy=\""], height),
            ] {
                for name in names {
                    for rest in drawing.split(name).skip(1) {
                        let at: f64 = rest.split('"').next().unwrap().parse().unwrap();
                        assert!((0.0..=most).contains(&at), "{n} rows:{name}{at} of {most}");
                    }
                }
            }
        }
    }
}
