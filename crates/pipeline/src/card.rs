//! A model card: what was done to a model and what that cost, for whoever finds the output.

use std::fmt::Write as _;

use crate::calibrated::{Continuation, HeldOut};
use crate::compress::{TensorRecord, beyond_f16};
use crate::notes::notes;
use crate::plan::Plan;
use crate::recipe::Step;

/// The name of the card in a folder, and the end of its name beside a GGUF file.
pub(crate) const CARD: &str = "bitmill.md";

/// So many tensors at most are listed of those that lost most.
const WORST: usize = 10;

/// The card that goes with an output of these tensors, as Markdown. The same run gives the same card, wherever it writes and
/// however long it took.
pub(crate) fn card(plan: &Plan, records: &[TensorRecord], held_out: Option<&HeldOut>) -> String {
    let size = bitmill_report::size;
    let is_conversion =
        plan.recipe.steps.iter().all(|step| matches!(step, Step::Keep { .. } | Step::Float { .. }));
    let mut text = format!(
        "# {model}, {done}\n\n{model} by the recipe `{recipe}` of bitmill {version}: {before} became {after}, {bits:.2} bits a weight.\n",
        model = plan.model,
        done = if is_conversion { "converted" } else { "compressed" },
        recipe = plan.recipe.name,
        version = env!("CARGO_PKG_VERSION"),
        before = size(plan.source_bytes),
        after = size(plan.output_bytes),
        bits = plan.bits_per_weight,
    );
    match held_out {
        Some(quality) => measured(&mut text, quality),
        None => unmeasured(&mut text, plan, records),
    }
    // Those of tensors with outliers stand below, one by one.
    let notes = notes(plan, |tensor| tensor.outliers.is_none());
    if !notes.is_empty() {
        let lines: String = notes.iter().map(|note| format!("- {note}\n")).collect();
        let _ = write!(text, "\n## Notes\n\n{lines}");
    }
    if let Some(weighed) = &plan.weighed {
        let _ = write!(
            text,
            "\n## Importance\n\nErrors of blocks were weighed by the importance matrix {}. Hash of the file: `{}`.\n",
            weighed.path().file_name().unwrap_or_default().display(),
            weighed.hash(),
        );
    }
    if let Some(material) = &plan.material {
        let _ = write!(
            text,
            "\n## Calibration\n\n{} windows of {} tokens of {}; {} more were held out. Hash of all tokens: `{}`.\n",
            material.windows(),
            material.length(),
            material.calibration.source,
            material.held_out,
            material.calibration.hash,
        );
    }
    tensors(&mut text, records);
    let _ = write!(text, "\n## Recipe\n\n```toml\n{}```\n", plan.recipe.to_toml());
    text
}

/// What was found on tokens that were held out. A String takes every write, here and below.
fn measured(text: &mut String, quality: &HeldOut) {
    if !quality.is_finite() {
        let _ = write!(
            text,
            "\n## Quality\n\nUnknown: on {} tokens that nothing was calibrated on, what the models put out is not finite.\n",
            quality.targets,
        );
        return;
    }
    let _ = write!(
        text,
        "\n## Quality\n\nOn {} tokens that nothing was calibrated on:\n\n| | dense | compressed |\n|---|---|---|\n\
         | perplexity | {} | {} |\n| KL to dense, nats a token | | {} |\n| same likeliest token | | {:.2} % |\n",
        quality.targets,
        quality.dense_perplexity,
        quality.perplexity,
        quality.kl_mean,
        100.0 * quality.top1_agreement,
    );
    if let Some(Continuation { prompt, text: more }) = &quality.continuation {
        let fence = "`".repeat(3.max(1 + longest_run_of_backticks(&format!("{prompt}{more}"))));
        let _ = write!(
            text,
            "\nGiven the beginning of one of them, it goes on by itself after the bar:\n\n{fence}text\n{prompt}┃{more}\n{fence}\n"
        );
    }
}

/// That nothing was measured, and what measures it.
fn unmeasured(text: &mut String, plan: &Plan, records: &[TensorRecord]) {
    let is_reshaped = plan.turn.is_some() || plan.tensors.iter().any(|tensor| tensor.reshaped);
    let is_as_it_was =
        plan.depth.is_none() && !is_reshaped && records.iter().all(|record| record.relative_error == 0.0);
    // Not by the paths of this run: outputs of one recipe are the same wherever they lie.
    let _ = write!(
        text,
        "\n## Quality\n\nNot measured{}. `bitmill eval OUT --against MODEL` measures it: OUT is this model, MODEL the one that it was made from.\n",
        if is_as_it_was { "; every weight has the value that it had" } else { "" },
    );
}

/// The tensors that lost most, and what is to be said of single ones.
fn tensors(text: &mut String, records: &[TensorRecord]) {
    let error = |record: &TensorRecord| record.method.as_ref().and_then(|method| method.output_error);
    let mut lossy: Vec<&TensorRecord> = records.iter().filter(|record| record.relative_error > 0.0).collect();
    lossy.sort_by(|a, b| {
        let key = |record: &TensorRecord| error(record).map_or(record.relative_error, f64::sqrt);
        key(b).total_cmp(&key(a)).then_with(|| a.name.cmp(&b.name))
    });
    let is_calibrated = records.iter().any(|record| record.method.is_some());
    if !lossy.is_empty() {
        let (of_outputs, head) = match is_calibrated {
            true => (
                ", and where it was calibrated of what it puts out",
                "| tensor | as | by | weights | outputs |\n|---|---|---|---|---|",
            ),
            false => ("", "| tensor | as | weights |\n|---|---|---|"),
        };
        let _ = write!(
            text,
            "\n## Tensors\n\nErrors are relative: of a tensor's weights{of_outputs}. Those of all tensors are in the record beside this card; \
             these {} of {} lost most.\n\n{head}\n",
            lossy.len().min(WORST),
            records.len(),
        );
    }
    for record in lossy.iter().take(WORST) {
        let TensorRecord { name, to, relative_error, .. } = record;
        if !is_calibrated {
            let _ = writeln!(text, "| `{name}` | {to} | {relative_error:.4} |");
            continue;
        }
        let by = record.method.as_ref().map_or_else(String::new, |method| {
            let scales = method.scaled.as_ref().filter(|scaled| scaled.alpha.is_some());
            scales
                .iter()
                .map(|scaled| scaled.by.as_str())
                .chain([method.method.as_str()])
                .collect::<Vec<_>>()
                .join(" + ")
        });
        let outputs = error(record).map_or_else(String::new, |error| format!("{:.4}", error.sqrt()));
        let _ = writeln!(text, "| `{name}` | {to} | {by} | {relative_error:.4} | {outputs} |");
    }
    let fallbacks =
        records.iter().filter_map(|record| Some((record, record.method.as_ref()?.fallback.as_ref()?)));
    for (record, why) in fallbacks {
        let _ = writeln!(text, "\n`{}` was rounded by its weights alone: {why}.", record.name);
    }
    let unscaled = |record: &TensorRecord| record.method.as_ref()?.scaled.as_ref()?.fallback.clone();
    for (record, why) in records.iter().filter_map(|record| Some((record, unscaled(record)?))) {
        let _ = writeln!(text, "\nThe features of `{}` keep their own scales: {why}.", record.name);
    }
    for (record, outliers) in records.iter().filter_map(|record| Some((record, record.outliers.as_ref()?))) {
        let _ = writeln!(
            text,
            "\n`{}` is stored as {} instead of {}: {}.",
            record.name, record.to, outliers.from, record.reason
        );
    }
    let beyond: Vec<_> = beyond_f16(records).collect();
    if let Some((record, largest)) = beyond.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
        let _ = writeln!(
            text,
            "\nInputs of {} tensors reach beyond what f16 holds, those of `{}` {largest:.0}: run it in bf16.",
            beyond.len(),
            record.name,
        );
    }
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}
