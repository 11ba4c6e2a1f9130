//! One model's figures for a terminal.

use comfy_table::{CellAlignment, Table, presets};

use crate::figures::{ABSENT, count, counted, one_line, percent, probability, single, size};
use crate::table::machine;
use crate::{BenchReport, EvalReport, Latency, PeakScope};

/// What `bitmill eval` prints: perplexity, divergence from dense, tasks. Ends in a newline.
pub fn eval_text(report: &EvalReport) -> String {
    let quality = &report.quality;
    let mut out = heading(&report.model, report.bytes, report.bits_per_weight);
    if let (Some(against), Some(ratio)) = (&report.against, report.ratio) {
        out.push_str(&format!("against {}, {} × smaller\n", one_line(against), single(ratio, 3)));
    }
    out.push('\n');
    let mut lines = vec![
        [
            "perplexity".into(),
            plus_minus(quality.perplexity, quality.perplexity_stderr, 5),
            format!(
                "{} in {} of {} tokens, {}",
                counted(quality.targets, "target"),
                counted(quality.windows, "window"),
                count(quality.window),
                one_line(&report.text)
            ),
        ],
        [
            "  second half".into(),
            plus_minus(quality.perplexity_second_half, quality.perplexity_second_half_stderr, 5),
            "each window's later half, as llama.cpp scores".into(),
        ],
    ];
    if let Some(divergence) = &quality.divergence {
        lines.push([
            "KL to dense".into(),
            plus_minus(divergence.kl_mean, divergence.kl_stderr, 3),
            format!(
                "nats per target; median {}, p90 {}, p99 {}",
                single(divergence.kl_median, 3),
                single(divergence.kl_p90, 3),
                single(divergence.kl_p99, 3)
            ),
        ]);
        lines.push([
            "same top token".into(),
            format!("{} %", percent(divergence.top1_agreement)),
            "of targets".into(),
        ]);
    }
    if let Some(kl) = report.kl_fast_path {
        lines.push([
            "KL of fast path".into(),
            single(kl, 3),
            "nats per target; what 8-bit activations add".into(),
        ]);
    }
    out.push_str(&draw(lines, &[CellAlignment::Left, CellAlignment::Left, CellAlignment::Left]));
    if !quality.tasks.is_empty() {
        out.push('\n');
        out.push_str(&task_table(report));
    }
    out.push_str(&format!("\n{}; exact path\n", machine(&report.machine)));
    out
}

fn task_table(report: &EvalReport) -> String {
    let quality = &report.quality;
    let compared = quality.tasks.iter().any(|(_, score)| score.gained.is_some());
    let mut titles = vec!["task", "items", "accuracy %", "by bytes %"];
    if compared {
        titles.extend(["gained", "lost", "McNemar p"]);
    }
    let mut lines = vec![titles.into_iter().map(String::from).collect::<Vec<_>>()];
    for (name, score) in quality.tasks.iter() {
        let mut line =
            vec![one_line(name), count(score.n), percent(score.accuracy), percent(score.accuracy_norm)];
        if compared {
            let counts = [score.gained, score.lost].map(|n| n.map_or_else(|| ABSENT.into(), count));
            line.extend(counts);
            line.push(score.mcnemar_p.map_or_else(|| ABSENT.into(), probability));
        }
        lines.push(line);
    }
    if let Some(accuracy) = quality.accuracy {
        lines.push(vec!["mean".into(), String::new(), percent(accuracy)]);
    }
    let mut alignments = vec![CellAlignment::Left];
    alignments.resize(lines[0].len(), CellAlignment::Right);
    let mut out = draw(lines, &alignments);
    if let Some(recovery) = report.recovery {
        out.push_str(&format!("recovery {} % of the dense model's mean\n", percent(recovery)));
    }
    out
}

/// What `bitmill bench` prints: latencies, throughput, memory. Ends in a newline.
pub fn bench_text(report: &BenchReport) -> String {
    let speed = &report.speed;
    let mut out = heading(&report.model, report.bytes, report.bits_per_weight);
    out.push('\n');
    let line = |name: &str, ms: Latency, tokens: usize, what: String| {
        let per_second = 1e3 * tokens as f64 / ms.median;
        let per_second = if per_second.is_finite() { single(per_second, 3) } else { ABSENT.into() };
        vec![name.into(), single(ms.median, 3), single(ms.p10, 3), single(ms.p90, 3), per_second, what]
    };
    let lines = vec![
        ["", "median", "p10", "p90", "tokens/s", ""].map(String::from).to_vec(),
        line(
            "prefill ms",
            speed.prefill_ms,
            speed.prefill_tokens,
            format!("{} tokens at once, {} times", count(speed.prefill_tokens), count(speed.repeats)),
        ),
        line(
            "decode ms/token",
            speed.decode_ms,
            1,
            format!("{} after {}", counted(speed.decode_tokens, "token"), count(speed.decode_context)),
        ),
    ];
    use CellAlignment::{Left, Right};
    out.push_str(&draw(lines, &[Left, Right, Right, Right, Right, Left]));
    let scope = match speed.peak_scope {
        PeakScope::Measurement => "",
        PeakScope::Process => " since the process began (the system refuses to reset the mark)",
    };
    let peak = speed.peak_bytes.map_or_else(|| "unknown".into(), size);
    out.push_str(&format!("\npeak memory {peak}{scope}, mapped weights included\n"));
    out.push_str(&format!("{}; fast path\n", machine(&report.machine)));
    out
}

fn heading(model: &str, bytes: u64, bits_per_weight: f64) -> String {
    format!("{}: {}, {bits_per_weight:.2} bits/weight\n", one_line(model), size(bytes))
}

/// A figure and its standard error to the same digit: two significant ones in the error, or `significant` in the
/// figure where that is more, since figures of models measured on the same text differ by less than their errors.
fn plus_minus(value: f64, stderr: f64, significant: i32) -> String {
    if !(value.is_finite() && stderr.is_finite() && value > 0.0 && stderr > 0.0) {
        return single(value, significant as usize);
    }
    let last = |value: f64, significant: i32| significant - 1 - value.log10().floor() as i32;
    let digits = last(stderr, 2).max(last(value, significant)).clamp(0, 9) as usize;
    format!("{value:.digits$} ± {stderr:.digits$}")
}

fn draw<I>(lines: impl IntoIterator<Item = I>, alignments: &[CellAlignment]) -> String
where
    I: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for line in lines {
        table.add_row(line);
    }
    for (column, alignment) in table.column_iter_mut().zip(alignments) {
        column.set_padding((0, 3));
        column.set_cell_alignment(*alignment);
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
