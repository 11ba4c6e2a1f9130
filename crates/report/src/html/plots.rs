//! The page's plots: scatters of strategies, and bars of them by task.

use super::axis::Axis;
use super::labels::{Area, place};
use super::svg::{Anchor, Mark, Svg, text_width};
use crate::figures::{self, Digits, megabytes, one_line, percent};
use crate::table::shown;
use crate::{CompareReport, Row, TaskScore};

/// Normal quantile of a two-sided 95 % interval.
const Z95: f64 = 1.96;

/// Size of the labels' text, in pixels of the drawing; the style sheet's `.label` says the same.
const LABEL: f64 = 12.0;

/// A plot with what is said below it.
pub(crate) struct Figure {
    pub svg: String,
    pub caption: String,
}

/// How a strategy's points look: one class and mark a format, the dense model apart.
pub(crate) struct Look {
    pub class: &'static str,
    pub mark: Mark,
}

/// The formats of a report's compressed rows in order of appearance.
pub(crate) fn formats(report: &CompareReport) -> Vec<&str> {
    let mut formats = Vec::new();
    for row in report.rows.iter().filter(|row| !row.is_dense()) {
        if !formats.contains(&row.format.as_str()) {
            formats.push(row.format.as_str());
        }
    }
    formats
}

/// The look of the format at this place in [`formats`]; none for the dense model.
pub(crate) fn look(place: Option<usize>) -> Look {
    const LOOKS: [(&str, Mark); 3] = [("a", Mark::Circle), ("b", Mark::Square), ("c", Mark::Triangle)];
    match place {
        None => Look { class: "dense", mark: Mark::Diamond },
        Some(place) => {
            let (class, mark) = LOOKS[place % LOOKS.len()];
            Look { class, mark }
        }
    }
}

fn look_of(report: &CompareReport, row: &Row) -> Look {
    let place = formats(report).iter().position(|format| *format == row.format);
    look(if row.is_dense() { None } else { place })
}

/// What a scatter puts on an axis.
struct Measure {
    /// As the axis is titled.
    title: &'static str,
    value: fn(&Row) -> Option<f64>,
    /// A 95 % interval around the value, where one is known.
    interval: fn(&Row) -> Option<(f64, f64)>,
    write: fn(f64) -> String,
    axis: fn(&[f64]) -> Axis,
    /// On the vertical axis: whether it is compared with what is proportional to the horizontal one, rather than with
    /// the dense model's value.
    proportional: bool,
}

const SIZE: Measure = Measure {
    title: "Size on disk, MB",
    value: |row| Some(megabytes(row.bytes)),
    interval: |_| None,
    write: |value| format!("{} MB", figures::single(value, 3)),
    axis: Axis::from_zero,
    proportional: false,
};

const DECODE: Measure = Measure {
    title: "Decode latency, ms a token",
    value: |row| Some(row.speed.decode_ms.median),
    interval: |row| Some((row.speed.decode_ms.p10, row.speed.decode_ms.p90)),
    write: |value| format!("{} ms a token", figures::single(value, 3)),
    axis: Axis::from_zero,
    proportional: true,
};

const ACCURACY: Measure = Measure {
    title: "Accuracy, % (mean over tasks)",
    value: |row| row.quality.accuracy.map(|accuracy| 100.0 * accuracy),
    interval: |row| mean_interval(row).map(|(low, high)| (100.0 * low, 100.0 * high)),
    write: |value| format!("accuracy {} %", Digits::Fixed(2).write(value)),
    axis: |values| Axis::around(values, (0.0, 100.0)),
    proportional: false,
};

const PERPLEXITY: Measure = Measure {
    title: "Perplexity",
    value: |row| Some(row.quality.perplexity),
    interval: |row| {
        let spread = Z95 * row.quality.perplexity_stderr;
        Some((row.quality.perplexity - spread, row.quality.perplexity + spread))
    },
    write: |value| format!("perplexity {}", figures::single(value, 5)),
    axis: |values| Axis::around(values, (0.0, f64::INFINITY)),
    proportional: false,
};

const DIVERGENCE: Measure = Measure {
    title: "KL to dense, nats a token (log scale)",
    value: |row| row.quality.divergence.map(|d| d.kl_mean),
    interval: |row| {
        let d = row.quality.divergence?;
        Some((d.kl_mean - Z95 * d.kl_stderr, d.kl_mean + Z95 * d.kl_stderr))
    },
    write: |value| format!("KL {}", figures::single(value, 3)),
    axis: Axis::log,
    proportional: false,
};

/// The scatters that the report's figures allow.
pub(crate) fn scatters(report: &CompareReport) -> Vec<Figure> {
    let rows = shown(report);
    let has = |measure: &Measure| {
        rows.iter().any(|row| !row.is_dense() && (measure.value)(row).is_some_and(f64::is_finite))
    };
    let mut out = Vec::new();
    let interval = "Vertical lines are 95 % intervals of each figure by itself; strategies are measured on the \
                    same texts and items, so differences between them are surer than these suggest.";
    if has(&ACCURACY) {
        let caption = format!("Size against accuracy: up and left is better. {interval}");
        out.push(scatter(report, "size-accuracy", "Size against accuracy", &SIZE, &ACCURACY, caption));
    } else {
        let caption = format!("Size against perplexity: down and left is better. {interval}");
        out.push(scatter(report, "size-perplexity", "Size against perplexity", &SIZE, &PERPLEXITY, caption));
    }
    if has(&DIVERGENCE) {
        let caption = "Size against divergence: down and left is better. The dense model, at zero, lies below \
                       any logarithmic axis.";
        let title = "Size against divergence from dense";
        out.push(scatter(report, "size-kl", title, &SIZE, &DIVERGENCE, caption.into()));
    }
    let (title, quality, better) = if has(&ACCURACY) {
        ("Decode latency against accuracy", &ACCURACY, "up and left is better")
    } else {
        ("Decode latency against perplexity", &PERPLEXITY, "down and left is better")
    };
    let caption = format!("{title}: {better}. Latency is the fast path's, quality the exact path's.");
    out.push(scatter(report, "latency", title, &DECODE, quality, caption));
    let caption = "Size against decode latency: down and left is better. Vertical lines run from the fastest tenth \
                   to the slowest; on the dotted line, time falls as bytes do.";
    out.push(scatter(report, "size-latency", "Size against decode latency", &SIZE, &DECODE, caption.into()));
    out
}

fn scatter(
    report: &CompareReport,
    id: &str,
    title: &str,
    x: &Measure,
    y: &Measure,
    caption: String,
) -> Figure {
    // Narrow enough for a phone to show its text at nearly full size.
    const SIZE: (f64, f64) = (400.0, 312.0);
    const PLOT: Area = Area { left: 48.0, top: 30.0, right: 392.0, bottom: 266.0 };
    let at = |measure: &Measure, row: &Row| (measure.value)(row).filter(|value| value.is_finite());
    let points: Vec<(&Row, f64, f64)> = shown(report)
        .into_iter()
        // Not the dense model on an axis of divergence: it has none from itself.
        .filter_map(|row| Some((row, at(x, row)?, at(y, row)?)))
        .collect();
    let x_axis = (x.axis)(&points.iter().map(|(_, x, _)| *x).collect::<Vec<_>>());
    let spread: Vec<f64> = points
        .iter()
        .flat_map(|(row, _, y_value)| match (y.interval)(row) {
            Some((low, high)) => vec![*y_value, low, high],
            None => vec![*y_value],
        })
        .collect();
    let y_axis = (y.axis)(&spread);
    let px = |value| PLOT.left + x_axis.position(value) * (PLOT.right - PLOT.left);
    let py = |value| PLOT.bottom - y_axis.position(value) * (PLOT.bottom - PLOT.top);

    let mut svg = Svg::new(SIZE.0, SIZE.1);
    for (value, label) in &y_axis.ticks {
        svg.line("grid", (PLOT.left, py(*value)), (PLOT.right, py(*value)));
        svg.text("tick", (PLOT.left - 7.0, py(*value) + 4.0), Anchor::End, label);
    }
    for (value, label) in &x_axis.ticks {
        svg.line("grid", (px(*value), PLOT.top), (px(*value), PLOT.bottom));
        svg.text("tick", (px(*value), PLOT.bottom + 17.0), Anchor::Middle, label);
    }
    svg.line("axis", (PLOT.left, PLOT.bottom), (PLOT.right, PLOT.bottom));
    svg.text("title", (0.0, 14.0), Anchor::Start, y.title);
    svg.text("title", (PLOT.right, SIZE.1 - 8.0), Anchor::End, x.title);
    let mut lines = Vec::new();
    if let Some((_, x_dense, dense)) = points.iter().find(|(row, ..)| row.is_dense()) {
        let from = if y.proportional { (px(0.0), py(0.0)) } else { (PLOT.left, py(*dense)) };
        let to = if y.proportional { (px(*x_dense), py(*dense)) } else { (PLOT.right, py(*dense)) };
        svg.line("reference", from, to);
        lines.push((from, to));
    }

    let places: Vec<(f64, f64)> = points.iter().map(|(_, x, y)| (px(*x), py(*y))).collect();
    for ((row, ..), (x_place, _)) in points.iter().zip(&places) {
        if let Some((low, high)) = (y.interval)(row) {
            let class = format!("interval {}", look_of(report, row).class);
            svg.line(&class, (*x_place, py(low)), (*x_place, py(high)));
            lines.push(((*x_place, py(low)), (*x_place, py(high))));
        }
    }
    let names: Vec<String> = points.iter().map(|(row, ..)| short_name(row, 18)).collect();
    // With a little air, so that neighbours do not read as one name.
    let widths: Vec<f64> = names.iter().map(|name| text_width(name, LABEL) + 6.0).collect();
    let labels = place(&places, &widths, LABEL + 2.0, PLOT, &lines);
    for (point, label) in places.iter().zip(&labels) {
        if let Some(end) = label.leader {
            svg.line("leader", *point, end);
        }
    }
    for ((row, x_value, y_value), place) in points.iter().zip(&places) {
        let look = look_of(report, row);
        let hint = format!("{}: {}, {}", name(row), (x.write)(*x_value), (y.write)(*y_value));
        svg.mark(look.class, look.mark, *place, &hint);
    }
    for (label, name) in labels.iter().zip(&names) {
        let centre = (label.area.left + label.area.right) / 2.0;
        svg.text("label", (centre, label.area.bottom - 3.5), Anchor::Middle, name);
    }
    let description: Vec<String> = points
        .iter()
        .map(|(row, x_value, y_value)| {
            format!("{}: {}, {}", name(row), (x.write)(*x_value), (y.write)(*y_value))
        })
        .collect();
    Figure { svg: svg.finish(id, title, &format!("{}.", description.join("; "))), caption }
}

/// One plot of bars a task, in the order of the dense model's tasks.
pub(crate) fn task_bars(report: &CompareReport) -> Vec<String> {
    let rows = shown(report);
    let mut tasks: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.quality.tasks.names()) {
        if !tasks.contains(&name) {
            tasks.push(name);
        }
    }
    tasks.iter().enumerate().map(|(i, task)| bars(report, &rows, i, task)).collect()
}

fn bars(report: &CompareReport, rows: &[&Row], index: usize, task: &str) -> String {
    const WIDTH: f64 = 340.0;
    const STEP: f64 = 21.0;
    const TOP: f64 = 30.0;
    let names: Vec<String> = rows.iter().map(|row| short_name(row, 16)).collect();
    let widest = names.iter().map(|name| text_width(name, LABEL)).fold(0.0, f64::max);
    let (left, right) = (widest.min(130.0) + 8.0, WIDTH - 50.0);
    let bottom = TOP + STEP * rows.len() as f64;
    let x = |fraction: f64| left + fraction.clamp(0.0, 1.0) * (right - left);

    let mut svg = Svg::new(WIDTH, bottom + 24.0);
    let items = rows.iter().find_map(|row| row.quality.tasks.get(task)).map_or(0, |score| score.n);
    svg.text("heading", (0.0, 15.0), Anchor::Start, &one_line(task));
    svg.text("tick", (WIDTH, 15.0), Anchor::End, &figures::counted(items, "item"));
    for quarter in 0..=4 {
        let fraction = f64::from(quarter) / 4.0;
        svg.line("grid", (x(fraction), TOP - 4.0), (x(fraction), bottom));
        if quarter % 2 == 0 {
            svg.text("tick", (x(fraction), bottom + 16.0), Anchor::Middle, &format!("{}", 25 * quarter));
        }
    }
    let mut description = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let middle = TOP + STEP * (i as f64 + 0.5) - 2.0;
        svg.text("label", (left - 8.0, middle + 4.0), Anchor::End, &names[i]);
        let Some(score) = row.quality.tasks.get(task).filter(|score| score.accuracy.is_finite()) else {
            svg.text("tick", (left + 4.0, middle + 4.0), Anchor::Start, figures::ABSENT);
            continue;
        };
        let figure = percent(score.accuracy);
        let (low, high) = wilson(score);
        let hint =
            format!("{}: {figure} %, 95 % interval {} to {} %", name(row), percent(low), percent(high));
        let class = format!("bar {}", look_of(report, row).class);
        svg.rect(&class, (left, middle - 6.5), (x(score.accuracy) - left, 13.0), &hint);
        svg.line("whisker", (x(low), middle), (x(high), middle));
        svg.text("figure", (WIDTH, middle + 4.0), Anchor::End, &figure);
        description.push(format!("{} {figure} %", name(row)));
    }
    let dense = rows.iter().find(|row| row.is_dense()).and_then(|row| row.quality.tasks.get(task));
    if let Some(score) = dense.filter(|score| score.accuracy.is_finite()) {
        svg.line("reference", (x(score.accuracy), TOP - 4.0), (x(score.accuracy), bottom));
    }
    svg.line("axis", (left, TOP - 4.0), (left, bottom));
    let title = format!("Accuracy on {}, %", one_line(task));
    svg.finish(&format!("task-{index}"), &title, &format!("{}.", description.join("; ")))
}

/// What a row is called on the page: "dense" says more than `none`.
pub(crate) fn name(row: &Row) -> String {
    if row.is_dense() { "dense".into() } else { one_line(&row.strategy) }
}

fn short_name(row: &Row, most: usize) -> String {
    let name = name(row);
    if name.chars().count() <= most {
        return name;
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

/// 95 % interval of the mean over tasks, each task's accuracy binomial.
fn mean_interval(row: &Row) -> Option<(f64, f64)> {
    let tasks = &row.quality.tasks;
    let mean = row.quality.accuracy?;
    let variance: f64 =
        tasks.iter().map(|(_, score)| score.accuracy * (1.0 - score.accuracy) / score.n.max(1) as f64).sum();
    let spread = Z95 * variance.max(0.0).sqrt() / tasks.len().max(1) as f64;
    Some(((mean - spread).max(0.0), (mean + spread).min(1.0)))
}

/// Wilson's 95 % interval (1927) of a task's accuracy: right near 0 and 1 too, where the usual one is not.
fn wilson(score: &TaskScore) -> (f64, f64) {
    let (p, n) = (score.accuracy, score.n as f64);
    if score.n == 0 {
        return (0.0, 1.0);
    }
    let z2 = Z95 * Z95;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let spread = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    ((centre - spread).max(0.0), (centre + spread).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(accuracy: f64, n: usize) -> TaskScore {
        TaskScore { accuracy, accuracy_norm: accuracy, n, gained: None, lost: None, mcnemar_p: None }
    }

    #[test]
    fn wilsons_interval_equals_statsmodels() {
        // statsmodels.stats.proportion.proportion_confint(61, 100, method="wilson"), and (10, 10)
        let (low, high) = wilson(&score(0.61, 100));
        assert!((low - 0.5120).abs() < 1e-4 && (high - 0.6998).abs() < 1e-4, "{low} {high}");
        let (low, high) = wilson(&score(1.0, 10));
        assert!((low - 0.7225).abs() < 1e-4 && high > 1.0 - 1e-9, "{low} {high}");
        assert_eq!(wilson(&score(f64::NAN, 0)), (0.0, 1.0));
    }
}
