//! A history of measurements as one page.

use std::fmt::Write as _;

use super::axis::Axis;
use super::markup::escape;
use super::plots::Figure;
use super::svg::{Anchor, Mark, Svg};
use super::{close_table, open_table, page_end, page_head, put};
use crate::WatchReport;
use crate::figures::{ABSENT, count, moment, one_line, percent, probability, single};
use crate::watch::{forms, lost, tensors};

/// Normal quantile of a two-sided 95 % interval.
const Z95: f64 = 1.96;
/// Measurements that are drawn and listed at most: the last.
const MOST: usize = 200;

/// The history as one self-contained HTML page, under the same rules as [`compare_html`](crate::compare_html).
pub fn watch_html(history: &[WatchReport]) -> String {
    let history = &history[history.len().saturating_sub(MOST)..];
    let mut page = String::new();
    let Some(last) = history.last() else { return page };
    let title = format!("{}: drift from {}", one_line(&last.model), one_line(&last.against));
    page_head(&mut page, &title, &last.version);
    put(&mut page, format_args!("<header>\n<h1>{}</h1>\n", escape(&title)));
    put(
        &mut page,
        format_args!(
            "<p class=\"byline muted\">{} measurements · last {} · bitmill {}</p>\n<p>{}</p>\n</header>\n",
            history.len(),
            escape(&moment(&last.created)),
            escape(&one_line(&last.version)),
            escape(&finding(last))
        ),
    );
    page.push_str("<section>\n<h2>Over time</h2>\n<div class=\"plots\">\n");
    for figure in figures(history) {
        put(
            &mut page,
            format_args!(
                "<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n",
                figure.svg,
                escape(&figure.caption)
            ),
        );
    }
    page.push_str("</div>\n</section>\n");
    table(&mut page, history);
    deserving(&mut page, last);
    page.push_str(
        "<section>\n<h2>How this was measured</h2>\n<p>Every measurement runs the model over the tokens that the baseline \
         holds, on the exact path. Differences are paired, target by target, with the dense model’s likelihoods in the \
         baseline; standard errors are between windows. KL is estimated from the baseline’s sketches of the dense \
         distributions.</p>\n</section>\n",
    );
    page_end(&mut page);
    page
}

fn finding(last: &WatchReport) -> String {
    let [low, increase, high] = last.nll.increase().map(|value| 100.0 * value);
    let mut text = format!(
        "Perplexity is {increase:+.3} % from dense, 95 % interval {low:+.3} to {high:+.3}; KL {} nats a token.",
        single(last.kl_mean, 3)
    );
    if let Some(bound) = last.max_drift {
        let verdict = if last.missed { "missed" } else { "kept" };
        let _ = write!(text, " The bound of {:+.3} % is {verdict}.", 100.0 * bound);
    }
    text
}

/// One point of a series: lower end, value, upper end.
type Point = [f64; 3];

fn figures(history: &[WatchReport]) -> Vec<Figure> {
    let bound = history.last().and_then(|last| last.max_drift).map(|bound| 100.0 * bound);
    let increases: Vec<Point> =
        history.iter().map(|report| report.nll.increase().map(|value| 100.0 * value)).collect();
    let divergences: Vec<Point> = history
        .iter()
        .map(|report| {
            let spread = Z95 * report.kl_stderr;
            [(report.kl_mean - spread).max(0.0), report.kl_mean, report.kl_mean + spread]
        })
        .collect();
    let caption = "Vertical lines are 95 % intervals";
    let mut out = vec![
        series(
            history,
            "increase",
            "Perplexity above dense, %",
            &increases,
            bound,
            format!(
                "{caption}; the dotted line is the bound, or zero. The model is the dense one’s equal at zero."
            ),
        ),
        series(
            history,
            "kl",
            "KL to dense, nats a token",
            &divergences,
            None,
            format!("{caption}. Lower is better."),
        ),
    ];
    let prompts: Vec<Point> = history
        .iter()
        .map(|report| {
            let nll = report.prompts.as_ref().and_then(|prompts| prompts.nll);
            nll.map_or([f64::NAN; 3], |nll| nll.increase().map(|value| 100.0 * value))
        })
        .collect();
    if prompts.iter().any(|point| point[1].is_finite()) {
        let caption = format!(
            "{caption} between prompts, against the dense model or the first measurement of the same prompts."
        );
        out.push(series(history, "prompts", "Perplexity of prompts, change in %", &prompts, bound, caption));
    }
    out
}

fn series(
    history: &[WatchReport],
    id: &str,
    title: &str,
    points: &[Point],
    bound: Option<f64>,
    caption: String,
) -> Figure {
    const SIZE: (f64, f64) = (400.0, 260.0);
    const LEFT: f64 = 56.0;
    const RIGHT: f64 = 388.0;
    const TOP: f64 = 30.0;
    const BOTTOM: f64 = 218.0;
    let reference = bound.unwrap_or(0.0);
    let values: Vec<f64> = points.iter().flatten().copied().chain([reference]).collect();
    let axis = Axis::around(&values, (f64::NEG_INFINITY, f64::INFINITY));
    let y = |value| BOTTOM - axis.position(value) * (BOTTOM - TOP);
    let x = |place: usize| LEFT + (place as f64 + 0.5) / points.len().max(1) as f64 * (RIGHT - LEFT);
    let mut svg = Svg::new(SIZE.0, SIZE.1);
    for (value, label) in &axis.ticks {
        svg.line("grid", (LEFT, y(*value)), (RIGHT, y(*value)));
        svg.text("tick", (LEFT - 7.0, y(*value) + 4.0), Anchor::End, label);
    }
    svg.line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    svg.line("reference", (LEFT, y(reference)), (RIGHT, y(reference)));
    svg.text("title", (0.0, 14.0), Anchor::Start, title);
    let mut description = Vec::new();
    for (place, ([low, value, high], report)) in points.iter().zip(history).enumerate() {
        if !value.is_finite() {
            continue;
        }
        let hint = format!(
            "{}: {} ({} to {})",
            moment(&report.created),
            single(*value, 4),
            single(*low, 4),
            single(*high, 4)
        );
        svg.line("interval a", (x(place), y(*low)), (x(place), y(*high)));
        svg.mark("a", Mark::Circle, (x(place), y(*value)), &hint);
        description.push(hint);
    }
    let ends = [(0, Anchor::Start), (points.len().saturating_sub(1), Anchor::End)];
    for (place, anchor) in ends.into_iter().take(points.len()) {
        let at = if anchor == Anchor::Start { LEFT } else { RIGHT };
        svg.text("tick", (at, BOTTOM + 17.0), anchor, &moment(&history[place].created));
    }
    Figure { svg: svg.finish(id, title, &format!("{}.", description.join("; "))), caption }
}

fn table(page: &mut String, history: &[WatchReport]) {
    let headings = [
        "when",
        "model",
        "perplexity",
        "above dense %",
        "± %",
        "KL",
        "same top %",
        "tasks: lost and gained",
        "bound",
    ];
    open_table(page, "Every measurement, the last first", "wide", headings.map(String::from));
    for report in history.iter().rev() {
        let flips: Vec<String> = report
            .tasks
            .iter()
            .filter_map(|(name, score)| {
                let p = score.mcnemar_p.map_or_else(String::new, |p| format!(" p {}", probability(p)));
                Some(format!("{} −{} +{}{p}", one_line(name), count(score.lost?), count(score.gained?)))
            })
            .collect();
        let [low, increase, high] = report.nll.increase().map(|value| 100.0 * value);
        let bound = match (report.max_drift, report.missed) {
            (None, _) => ABSENT,
            (Some(_), true) => "missed",
            (Some(_), false) => "kept",
        };
        let cells = [
            one_line(&report.model),
            single(report.perplexity, 5),
            format!("{increase:+.3}"),
            format!("{:.3}", (high - low) / 2.0),
            single(report.kl_mean, 3),
            percent(report.top1_agreement),
            flips.join("; "),
            bound.to_owned(),
        ];
        put(page, format_args!("<tr><th scope=\"row\">{}</th>", escape(&moment(&report.created))));
        for cell in cells {
            put(page, format_args!("<td>{}</td>", escape(&cell)));
        }
        page.push_str("</tr>\n");
    }
    close_table(page);
    page.push_str("</section>\n");
}

fn deserving(page: &mut String, last: &WatchReport) {
    if last.deserving.is_empty() {
        return;
    }
    let lost = lost(last);
    let headings = [
        "tensor".to_owned(),
        "stored as".into(),
        lost.into(),
        format!("{lost} that a further MB takes away"),
    ];
    open_table(page, "Tensors that deserve more bits first", "", headings);
    for tensor in &last.deserving {
        put(
            page,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escape(&tensors(tensor)),
                escape(&forms(tensor)),
                single(tensor.error, 3),
                single(tensor.gain_per_mb, 3)
            ),
        );
    }
    close_table(page);
    page.push_str("</section>\n");
}
