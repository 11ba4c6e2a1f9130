//! The comparison as a terminal table.

use comfy_table::{CellAlignment, Table, TableComponent, presets};

use crate::figures::{self, ABSENT, Digits, PAD, count, counted, megabytes, moment, one_line, percent, wrap};
use crate::{CompareReport, Machine, PeakScope, Row};

/// The comparison as a table, the dense model first, and what one must know to read it.
///
/// Where `width` (the terminal's, in columns) is too small for all columns, those that follow from others go first
/// and a line says which; none keeps all, about 105 columns. Ends in a newline.
pub fn compare_table(report: &CompareReport, width: Option<usize>) -> String {
    let mut main = main_columns(report);
    for failure in &report.failed {
        for (i, column) in main.iter_mut().enumerate() {
            column.cells.push(match i {
                0 => one_line(&failure.strategy),
                1 => "failed".into(),
                _ => ABSENT.into(),
            });
        }
    }
    let mut out = fit(&main, width);
    out.push('\n');
    out.push_str(&fit(&detail_columns(report), width));
    out.push('\n');
    let mut say = |text: String| out.push_str(&wrap(&text, width.unwrap_or(100)));
    for failure in &report.failed {
        say(format!("{} failed: {}", one_line(&failure.strategy), one_line(&failure.error)));
        if let Some(hint) = &failure.hint {
            say(format!("  hint: {}", one_line(hint)));
        }
    }
    for row in &report.rows {
        for note in &row.notes {
            say(format!("{}: {}", one_line(&row.strategy), one_line(note)));
        }
    }
    for line in conditions(report) {
        say(line);
    }
    out
}

/// Rows in the order in which they are shown: the dense model, then the strategies as they were asked for.
pub(crate) fn shown(report: &CompareReport) -> Vec<&Row> {
    let (dense, others): (Vec<&Row>, Vec<&Row>) = report.rows.iter().partition(|row| row.is_dense());
    dense.into_iter().chain(others).collect()
}

/// One column of figures; the first column of a table names the strategies.
pub(crate) struct Column {
    /// In two lines at most.
    pub title: &'static str,
    /// One text a shown row.
    pub cells: Vec<String>,
    /// Which columns go first where there is no room: the largest; 0 stays.
    expendable: u8,
}

/// The columns of the main table, for the terminal and the page alike.
pub(crate) fn main_columns(report: &CompareReport) -> Vec<Column> {
    let rows = shown(report);
    let column = |title, expendable, significant, least, most, value: &dyn Fn(&Row) -> Option<f64>| {
        let digits = Digits::of(rows.iter().filter_map(|row| value(row)), significant, least, most);
        let cells = rows.iter().map(|row| digits.write_or_absent(value(row))).collect();
        Column { title, cells, expendable }
    };
    let percents = |title, expendable, value: &dyn Fn(&Row) -> Option<f64>| Column {
        title,
        cells: rows.iter().map(|row| value(row).map_or_else(|| ABSENT.into(), percent)).collect(),
        expendable,
    };
    vec![
        strategies(&rows),
        column("MB", 0, 3, 0, 3, &|row| Some(megabytes(row.bytes))),
        column("× smaller", 0, 3, 2, 2, &|row| Some(row.ratio)),
        column("bits/\nweight", 3, 3, 2, 2, &|row| Some(row.bits_per_weight)),
        column("prefill\nms", 2, 3, 0, 3, &|row| Some(row.speed.prefill_ms.median)),
        column("decode\nms/token", 0, 3, 0, 3, &|row| Some(row.speed.decode_ms.median)),
        column("perplexity", 0, 5, 1, 4, &|row| Some(row.quality.perplexity)),
        divergences("KL to\ndense", 0, &rows, 3, &|row| row.quality.divergence.map(|d| d.kl_mean)),
        percents("accuracy\n%", 0, &|row| row.quality.accuracy),
        percents("recovery\n%", 4, &|row| row.recovery),
    ]
}

/// The columns that say how sure the main table's figures are, and what they cost.
pub(crate) fn detail_columns(report: &CompareReport) -> Vec<Column> {
    let rows = shown(report);
    let column = |title, expendable, least, most, value: &dyn Fn(&Row) -> Option<f64>| {
        let digits = Digits::of(rows.iter().filter_map(|row| value(row)), 2, least, most);
        let cells = rows.iter().map(|row| digits.write_or_absent(value(row))).collect();
        Column { title, cells, expendable }
    };
    let decode = Digits::of(rows.iter().map(|row| row.speed.decode_ms.p10), 3, 0, 3);
    let mut columns = vec![
        strategies(&rows),
        column("perplexity\n±", 0, 4, 4, &|row| Some(row.quality.perplexity_stderr)),
        divergences("KL\n±", 0, &rows, 2, &|row| row.quality.divergence.map(|d| d.kl_stderr)),
        divergences("KL, 99th\npercentile", 2, &rows, 2, &|row| row.quality.divergence.map(|d| d.kl_p99)),
        Column {
            title: "same top\ntoken %",
            cells: rows
                .iter()
                .map(|row| {
                    row.quality.divergence.map_or_else(|| ABSENT.into(), |d| percent(d.top1_agreement))
                })
                .collect(),
            expendable: 0,
        },
        divergences("KL of\nfast path", 0, &rows, 2, &|row| row.kl_fast_path),
        Column {
            title: "decode ms\np10–p90",
            cells: rows
                .iter()
                .map(|row| {
                    let ms = row.speed.decode_ms;
                    format!("{}–{}", decode.write(ms.p10), decode.write(ms.p90))
                })
                .collect(),
            expendable: 3,
        },
        column("peak\nMB", 0, 0, 1, &|row| row.speed.peak_bytes.map(megabytes)),
        column("compress\ns", 1, 1, 2, &|row| row.compress_seconds),
    ];
    // Only where a search said beforehand what it would be.
    if rows.iter().any(|row| row.predicted_kl.is_some()) {
        columns.insert(1, divergences("KL\npredicted", 0, &rows, 3, &|row| row.predicted_kl));
    }
    columns
}

fn divergences(
    title: &'static str,
    expendable: u8,
    rows: &[&Row],
    significant: usize,
    value: &dyn Fn(&Row) -> Option<f64>,
) -> Column {
    let values: Vec<Option<f64>> = rows.iter().map(|row| value(row)).collect();
    Column { title, cells: figures::aligned(&values, significant), expendable }
}

fn strategies(rows: &[&Row]) -> Column {
    let cells = rows
        .iter()
        .map(|row| if row.is_dense() { "none (dense)".into() } else { one_line(&row.strategy) })
        .collect();
    Column { title: "strategy", cells, expendable: 0 }
}

/// The table of as many columns as fit, and a line naming those that do not.
fn fit(columns: &[Column], width: Option<usize>) -> String {
    let mut kept: Vec<&Column> = columns.iter().collect();
    let mut dropped: Vec<&Column> = Vec::new();
    loop {
        let mut table = draw(&kept, Spacing::Wide);
        if width.is_some_and(|width| widest_line(&table) > width) {
            table = draw(&kept, Spacing::Narrow);
        }
        let widest = widest_line(&table);
        let next = kept.iter().enumerate().max_by_key(|(_, column)| column.expendable);
        let too_wide = width.is_some_and(|width| widest > width);
        match next {
            Some((i, column)) if too_wide && column.expendable > 0 => {
                dropped.push(column);
                kept.remove(i);
            }
            _ if dropped.is_empty() => return table,
            _ => {
                let names: Vec<String> = dropped.iter().rev().map(|column| heading(column)).collect();
                return format!("{table}(no room for: {})\n", names.join(", "));
            }
        }
    }
}

/// A column's title in one line.
pub(crate) fn heading(column: &Column) -> String {
    column.title.replace("/\n", "/").replace('\n', " ")
}

/// Blanks between columns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spacing {
    Wide,
    Narrow,
}

fn widest_line(table: &str) -> usize {
    table.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

fn draw(columns: &[&Column], spacing: Spacing) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_style(TableComponent::HeaderLines, '─');
    table.set_style(TableComponent::MiddleHeaderIntersections, '─');
    table.set_header(columns.iter().map(|column| column.title));
    let n_rows = columns.first().map_or(0, |column| column.cells.len());
    for i in 0..n_rows {
        table.add_row(columns.iter().map(|column| column.cells[i].as_str()));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        // One more blank stands where a vertical line would.
        column.set_padding((0, u16::from(spacing == Spacing::Wide)));
        column.set_cell_alignment(if i == 0 { CellAlignment::Left } else { CellAlignment::Right });
    }
    let mut out = String::new();
    for line in table.lines() {
        // The pad has done its work; a terminal, and who pastes from it, is better off with blanks.
        out.push_str(line.replace(PAD, " ").trim_end());
        out.push('\n');
    }
    out
}

/// What was measured, how much of it, on what and when; one sentence a line.
pub(crate) fn conditions(report: &CompareReport) -> Vec<String> {
    let mut lines = vec![format!(
        "{}, {} weights; {}; {}; bitmill {}.",
        one_line(&report.model),
        figures::weights(report.weights),
        machine(&report.machine),
        moment(&report.created),
        one_line(&report.version),
    )];
    lines.extend(quality_conditions(report).map(|text| format!("Quality, {text}")));
    lines.extend(speed_conditions(report).map(|text| format!("Latency, {text}")));
    lines
}

/// The texts, windows and items behind the quality figures.
pub(crate) fn quality_conditions(report: &CompareReport) -> Option<String> {
    let quality = &shown(report).first()?.quality;
    let mut line = format!(
        "on the exact path (32-bit activations): {} in {} of {} tokens from {}",
        counted(quality.targets, "target"),
        counted(quality.windows, "window"),
        count(quality.window),
        one_line(&report.settings.text),
    );
    if !quality.tasks.is_empty() {
        let items =
            quality.tasks.iter().map(|(name, score)| format!("{} {}", one_line(name), count(score.n)));
        line.push_str(&format!("; items: {}", items.collect::<Vec<_>>().join(", ")));
    }
    if !report.settings.full {
        line.push_str("; a sample, `--full` measures all");
    }
    line.push('.');
    Some(line)
}

/// What was timed, how often, and what the memory figure covers.
pub(crate) fn speed_conditions(report: &CompareReport) -> Option<String> {
    let rows = shown(report);
    let speed = &rows.first()?.speed;
    let mut line = format!(
        "on the fast path (8-bit activations where the format's runtimes use them): medians of {} of {} tokens and of {} after {}.",
        counted(speed.repeats, "prefill"),
        count(speed.prefill_tokens),
        counted(speed.decode_tokens, "decoded token"),
        count(speed.decode_context),
    );
    if rows.iter().any(|row| row.speed.peak_bytes.is_some() && row.speed.peak_scope == PeakScope::Process) {
        line.push_str(
            " Peak memory covers the process from its start: the system refuses to reset the mark.",
        );
    }
    Some(line)
}

/// The machine in one line.
pub(crate) fn machine(machine: &Machine) -> String {
    let memory = match machine.memory_bytes {
        0 => String::new(),
        bytes => format!(", {}", figures::size(bytes)),
    };
    format!(
        "{}, {} of {} cores, {}{memory}, {}",
        one_line(&machine.cpu),
        counted(machine.threads, "thread"),
        machine.cores,
        one_line(&machine.isa),
        one_line(&machine.os),
    )
}
