//! The comparison, and a history of watching, as one page each: no script, nothing loaded from elsewhere, light and dark, wide and narrow, print.

mod axis;
mod labels;
mod markup;
mod plots;
mod svg;
mod watch;

use std::fmt::Write;

pub use self::watch::watch_html;

use self::markup::escape;
use self::plots::{Look, formats, look, name, scatters, task_bars};
use self::svg::Svg;
use crate::figures::{self, ABSENT, count, counted, moment, one_line, percent, probability, single};
use crate::table::{
    Column, detail_columns, heading, machine, main_columns, quality_conditions, shown, speed_conditions,
};
use crate::{CompareReport, Row};

/// The comparison as one self-contained HTML page.
///
/// Everything is drawn from the record; text from outside (names, recipes, errors) is escaped. The page asks the
/// browser to refuse scripts and loads, so that a mistake in that would not run either.
pub fn compare_html(report: &CompareReport) -> String {
    let title = format!("{}: compression strategies compared", one_line(&report.model));
    let mut page = String::new();
    page_head(&mut page, &title, &report.version);
    header(&mut page, report);
    main_table(&mut page, report);
    plot_section(&mut page, report);
    task_section(&mut page, report);
    flip_section(&mut page, report);
    detail_section(&mut page, report);
    method_section(&mut page, report);
    recipe_section(&mut page, report);

    page_end(&mut page);
    page
}

/// Everything before a page's content.
fn page_head(page: &mut String, title: &str, version: &str) {
    page.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.push_str("<meta name=\"color-scheme\" content=\"light dark\">\n");
    page.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
    );
    put(page, format_args!("<meta name=\"generator\" content=\"bitmill {}\">\n", escape(version)));
    put(page, format_args!("<title>{}</title>\n", escape(title)));
    put(page, format_args!("<style>\n{}</style>\n</head>\n<body>\n<main>\n", include_str!("style.css")));
}

fn page_end(page: &mut String) {
    page.push_str("</main>\n</body>\n</html>\n");
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = page.write_fmt(text);
}

fn header(page: &mut String, report: &CompareReport) {
    let made = report.rows.iter().filter(|row| row.is_made()).count();
    let strategies = match report.rows.iter().filter(|row| !row.is_dense()).count() - made {
        0 if made > 0 => None,
        1 => Some("1 compression strategy".to_string()),
        n => Some(format!("{n} compression strategies")),
    };
    let made = (made > 0).then(|| counted(made, "other model"));
    let what: Vec<String> = strategies.into_iter().chain(made).collect();
    put(
        page,
        format_args!(
            "<header>\n<h1>{}: {}, measured</h1>\n",
            escape(&one_line(&report.model)),
            what.join(" and ")
        ),
    );
    put(
        page,
        format_args!(
            "<p class=\"byline muted\">{} weights · {} · bitmill {} · {}</p>\n",
            figures::weights(report.weights),
            escape(&one_line(&report.machine.cpu)),
            escape(&one_line(&report.version)),
            escape(&moment(&report.created))
        ),
    );
    let findings = findings(report);
    if !findings.is_empty() {
        put(page, format_args!("<p>{}</p>\n", findings.join(" ")));
    }
    page.push_str("</header>\n");
}

/// What the table says at a glance, one sentence each, as HTML.
fn findings(report: &CompareReport) -> Vec<String> {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| !row.is_dense()).collect();
    let Some(dense) = report.dense() else { return Vec::new() };
    let least = |value: &dyn Fn(&Row) -> Option<f64>| {
        rows.iter()
            .filter_map(|row| Some((value(row).filter(|value| value.is_finite())?, *row)))
            .min_by(|a, b| a.0.total_cmp(&b.0))
    };
    let bold = |row: &Row| format!("<strong>{}</strong>", escape(&name(row)));
    let mut out = Vec::new();
    if let Some((_, row)) = least(&|row| Some(row.bytes as f64)) {
        let mut text = format!(
            "Smallest is {}: {} against {}, {} times smaller",
            bold(row),
            figures::size(row.bytes),
            figures::size(dense.bytes),
            single(row.ratio, 3)
        );
        match (row.quality.accuracy, dense.quality.accuracy) {
            (Some(here), Some(there)) => {
                let _ =
                    write!(text, ", with {} % accuracy where dense has {} %.", percent(here), percent(there));
            }
            _ => text.push('.'),
        }
        out.push(text);
    }
    if let Some((kl, row)) = least(&|row| row.quality.divergence.map(|d| d.kl_mean)) {
        out.push(format!(
            "Closest to dense is {}, with a divergence of {} nats a token.",
            bold(row),
            single(kl, 3)
        ));
    }
    if let Some((ms, row)) = least(&|row| Some(row.speed.decode_ms.median)) {
        out.push(format!(
            "Fastest at decoding is {}: {} ms a token, dense {}.",
            bold(row),
            single(ms, 3),
            single(dense.speed.decode_ms.median, 3)
        ));
    }
    out
}

fn main_table(page: &mut String, report: &CompareReport) {
    let columns = main_columns(report);
    open_table(page, "Strategies side by side", "wide", columns.iter().map(heading));
    table_body(page, report, &columns);
    for failure in &report.failed {
        put(
            page,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td class=\"why\" colspan=\"{}\">failed: {}",
                escape(&one_line(&failure.strategy)),
                columns.len() - 1,
                escape(&one_line(&failure.error))
            ),
        );
        if let Some(hint) = &failure.hint {
            put(page, format_args!("<br>hint: {}", escape(&one_line(hint))));
        }
        page.push_str("</td></tr>\n");
    }
    close_table(page);
    let notes: Vec<(&Row, &String)> =
        report.rows.iter().flat_map(|row| row.notes.iter().map(move |note| (row, note))).collect();
    if !notes.is_empty() {
        page.push_str("<ul class=\"muted\">\n");
        for (row, note) in notes {
            put(
                page,
                format_args!(
                    "<li><strong>{}</strong>: {}</li>\n",
                    escape(&name(row)),
                    escape(&one_line(note))
                ),
            );
        }
        page.push_str("</ul>\n");
    }
    page.push_str("</section>\n");
}

/// Begins a section with a table that scrolls by itself where it is too wide.
fn open_table(page: &mut String, title: &str, class: &str, headings: impl IntoIterator<Item = String>) {
    put(
        page,
        format_args!(
            "<section>\n<h2>{0}</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">\n<table class=\"{class}\">\n<thead><tr>",
            escape(title)
        ),
    );
    for heading in headings {
        put(page, format_args!("<th scope=\"col\">{}</th>", escape(&heading)));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
}

fn close_table(page: &mut String) {
    page.push_str("</tbody>\n</table>\n</div>\n");
}

fn table_body(page: &mut String, report: &CompareReport, columns: &[Column]) {
    for (i, row) in shown(report).iter().enumerate() {
        let class = if row.is_dense() { " class=\"first\"" } else { "" };
        put(page, format_args!("<tr{class}><th scope=\"row\">{}</th>", escape(&columns[0].cells[i])));
        for column in &columns[1..] {
            put(page, format_args!("<td>{}</td>", escape(&column.cells[i])));
        }
        page.push_str("</tr>\n");
    }
}

fn plot_section(page: &mut String, report: &CompareReport) {
    if report.rows.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>What size and speed cost</h2>\n<ul class=\"legend\">\n");
    let mut entry = |look: Look, text: &str| {
        let mut icon = Svg::new(14.0, 14.0);
        icon.mark(look.class, look.mark, (7.0, 7.0), text);
        let icon = icon.finish(&format!("legend-{}", look.class), text, "its mark in the plots below");
        put(page, format_args!("<li>{icon}{}</li>\n", escape(text)));
    };
    if report.dense().is_some() {
        entry(look(None), "dense");
    }
    // More formats than looks: the rest would repeat them, and the names beside the points tell them apart.
    for (i, format) in formats(report).into_iter().enumerate().take(3) {
        entry(look(Some(i)), &one_line(format));
    }
    page.push_str("</ul>\n<div class=\"plots\">\n");
    for figure in scatters(report) {
        put(
            page,
            format_args!(
                "<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n",
                figure.svg,
                escape(&figure.caption)
            ),
        );
    }
    page.push_str("</div>\n</section>\n");
}

fn task_section(page: &mut String, report: &CompareReport) {
    let bars = task_bars(report);
    if bars.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Accuracy by task</h2>\n");
    page.push_str(
        "<p class=\"muted\">Percent of items answered right. Thin lines are 95 % intervals (Wilson), the dotted line is \
         the dense model.</p>\n<div class=\"bars\">\n",
    );
    for svg in bars {
        put(page, format_args!("<figure>\n{svg}</figure>\n"));
    }
    page.push_str("</div>\n</section>\n");
}

/// Which answers changed against dense, and whether that could be chance.
fn flip_section(page: &mut String, report: &CompareReport) {
    let rows: Vec<&Row> = shown(report)
        .into_iter()
        .filter(|row| row.quality.tasks.iter().any(|(_, score)| score.gained.is_some()))
        .collect();
    let Some(first) = rows.first() else { return };
    let tasks: Vec<&str> = first.quality.tasks.names().collect();
    let headings = std::iter::once("strategy".to_string()).chain(tasks.iter().map(|task| one_line(task)));
    open_table(page, "Answers that changed against dense", "", headings);
    for row in &rows {
        put(page, format_args!("<tr><th scope=\"row\">{}</th>", escape(&name(row))));
        for task in &tasks {
            let flips =
                row.quality.tasks.get(task).and_then(|score| Some((score.gained?, score.lost?, score)));
            match flips {
                None => put(page, format_args!("<td>{ABSENT}</td>")),
                Some((0, 0, _)) => page.push_str("<td>0</td>"),
                Some((gained, lost, score)) => {
                    let p = score.mcnemar_p.map(|p| (p < 0.05, escape(&probability(p))));
                    put(page, format_args!("<td>+{} −{}", count(gained), count(lost)));
                    match p {
                        Some((true, p)) => put(page, format_args!(" <strong>p {p}</strong>")),
                        Some((false, p)) => put(page, format_args!(" <small>p {p}</small>")),
                        None => {}
                    }
                    page.push_str("</td>");
                }
            }
        }
        page.push_str("</tr>\n");
    }
    close_table(page);
    page.push_str(
        "<p class=\"muted\">Items right here and wrong in the dense model (+), and the reverse (−). p is McNemar’s exact \
         two-sided test: how often flips at least this lopsided would come by chance if neither model were better. Bold: \
         below 0.05, as one cell in twenty is without cause.</p>\n</section>\n",
    );
}

fn detail_section(page: &mut String, report: &CompareReport) {
    if report.rows.is_empty() {
        return;
    }
    let columns = detail_columns(report);
    open_table(page, "How sure, how close, at what cost", "wide", columns.iter().map(heading));
    table_body(page, report, &columns);
    close_table(page);
    page.push_str(
        "<p class=\"muted\">± is one standard error over windows. The 99th percentile is over tokens. KL of fast path is \
         what the faster arithmetic adds to the same weights. Memory counts mapped weights.</p>\n</section>\n",
    );
}

fn method_section(page: &mut String, report: &CompareReport) {
    page.push_str("<section>\n<h2>How this was measured</h2>\n");
    let made = match report.rows.iter().any(Row::is_made) {
        true => " Models that were made before were measured as they lie.",
        false => "",
    };
    put(
        page,
        format_args!(
            "<p>Each strategy was compressed, written to disk, read back and measured from what was read.{made} Perplexity, \
             divergence and accuracy come from the exact path: 32-bit activations over the packed weights. Latency comes \
             from the fast path, which rounds activations to 8 bits where the format’s runtimes do so too.</p>\n<dl>\n"
        ),
    );
    let settings = &report.settings;
    let limits = if settings.full {
        "all windows and items".to_string()
    } else {
        let limit = |most: Option<usize>, thing: &str| match most {
            Some(most) => format!("at most {}", counted(most, thing)),
            None => format!("all {thing}s"),
        };
        format!("{}; {} a task", limit(settings.windows, "window"), limit(settings.items, "item"))
    };
    let mut entries = vec![
        ("Machine", machine(&report.machine)),
        ("Model", format!("{}, {} weights", one_line(&report.model), figures::weights(report.weights))),
    ];
    entries.extend(quality_conditions(report).map(|text| ("Quality", text)));
    entries.extend(speed_conditions(report).map(|text| ("Latency", text)));
    entries.push(("Budget", format!("{limits}; seed {}", settings.seed)));
    entries.push((
        "Perplexity",
        "every token of a window but its first is a target; windows do not overlap".to_string(),
    ));
    entries.push((
        "KL",
        "of the next-token distribution from the dense model’s, in nats, mean over targets".into(),
    ));
    entries.push((
        "Accuracy",
        "an item counts if its right choice has the largest sum of log-probabilities; the mean weighs tasks equally; \
         recovery is that mean over the dense model’s"
            .into(),
    ));
    entries.push(("Size", "weight files on disk with all metadata; MB are millions of bytes".into()));
    for (term, text) in entries {
        put(page, format_args!("<dt>{term}</dt><dd>{}</dd>\n", escape(&text)));
    }
    page.push_str("</dl>\n</section>\n");
}

fn recipe_section(page: &mut String, report: &CompareReport) {
    let recipes: Vec<(&Row, &String)> =
        report.rows.iter().filter_map(|row| Some((row, row.recipe.as_ref()?))).collect();
    if recipes.is_empty() {
        return;
    }
    page.push_str("<section>\n<h2>Recipes</h2>\n");
    page.push_str("<p class=\"muted\">With every default filled in; <code>bitmill compress --recipe FILE</code> repeats one.</p>\n");
    for (row, recipe) in recipes {
        put(
            page,
            format_args!(
                "<details>\n<summary>{} <span>· {}</span></summary>\n<pre tabindex=\"0\">{}</pre>\n</details>\n",
                escape(&name(row)),
                escape(&one_line(&row.format)),
                escape(recipe.trim_end())
            ),
        );
    }
    page.push_str("</section>\n");
}
