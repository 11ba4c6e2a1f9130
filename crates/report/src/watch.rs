//! The record of one measurement against a baseline, and what a terminal shows of it.

use serde::{Deserialize, Serialize};

use crate::figures::{count, counted, one_line, percent, probability, single, size};
use crate::{Tasks, WatchSchema};

/// Normal quantile of a two-sided 95 % interval.
const Z95: f64 = 1.96;

/// What `bitmill watch` found: `bitmill.watch/1`, one line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchReport {
    /// The document's name.
    pub schema: WatchSchema,
    /// Version of bitmill.
    pub version: String,
    /// When, in UTC.
    pub created: String,
    /// The model measured.
    pub model: String,
    /// XXH3 of its tensors' names, shapes, encodings and first rows: whether it is still the same file.
    pub fingerprint: String,
    /// Its weight files on disk.
    pub bytes: u64,
    /// The dense model of the baseline.
    pub against: String,
    /// The text's name.
    pub text: String,
    /// Targets measured.
    pub targets: usize,
    /// exp of the model's mean negative log-likelihood.
    #[serde(with = "crate::finite")]
    pub perplexity: f64,
    /// The dense model's.
    #[serde(with = "crate::finite")]
    pub dense_perplexity: f64,
    /// Over the same targets, in nats.
    pub nll: PairedDifference,
    /// Mean divergence from dense, in nats a target.
    #[serde(with = "crate::finite")]
    pub kl_mean: f64,
    /// Its standard error, between windows.
    #[serde(with = "crate::finite")]
    pub kl_stderr: f64,
    /// Of that, what the baseline's sampling adds.
    #[serde(with = "crate::finite")]
    pub kl_sampling_stderr: f64,
    /// Fraction of targets at which both put the same token first.
    #[serde(with = "crate::finite")]
    pub top1_agreement: f64,
    /// Largest difference of a negative log-likelihood between two equal runs, in nats.
    #[serde(with = "crate::finite")]
    pub noise_floor: f64,
    /// Scores by task, with flips against dense.
    pub tasks: Tasks,
    /// The prompts asked for, if any.
    pub prompts: Option<PromptReport>,
    /// Tensors that deserve more bits, the first most; empty where there was neither a table of sensitivities nor a dense
    /// model to compare weights with.
    #[serde(default)]
    pub deserving: Vec<Deserving>,
    /// What the table measured (`kl`, `output`, `weights`); `null` where the weights themselves were compared.
    #[serde(default)]
    pub deserving_by: Option<String>,
    /// The relative increase of perplexity that was allowed, if any.
    pub max_drift: Option<f64>,
    /// Whether an increase whose 95 % interval lies wholly above `max_drift` was found.
    pub missed: bool,
}

/// A mean of paired differences of negative log-likelihoods, in nats a target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    /// Model less reference.
    #[serde(with = "crate::finite")]
    pub mean: f64,
    /// Its standard error, between windows or prompts.
    #[serde(with = "crate::finite")]
    pub stderr: f64,
}

impl PairedDifference {
    /// The relative increase of perplexity that this is: lower end of its 95 % interval, itself, upper end.
    ///
    /// ```
    /// use bitmill_report::PairedDifference;
    /// let [low, increase, high] = PairedDifference { mean: 0.01, stderr: 0.001 }.increase();
    /// assert!(low < increase && increase < high && (increase - 0.01005).abs() < 1e-5);
    /// ```
    pub fn increase(&self) -> [f64; 3] {
        let spread = if self.stderr.is_finite() { Z95 * self.stderr } else { 0.0 };
        [self.mean - spread, self.mean, self.mean + spread].map(f64::exp_m1)
    }

    /// Whether the interval lies wholly above `bound`.
    pub fn exceeds(&self, bound: f64) -> bool {
        self.increase()[0] > bound
    }
}

/// What a model makes of fresh prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptReport {
    /// XXH3 of the prompts' tokens: only equal ones are compared.
    pub fingerprint: String,
    /// Targets in them.
    pub targets: usize,
    /// exp of the mean negative log-likelihood of their targets.
    #[serde(with = "crate::finite")]
    pub perplexity: f64,
    /// Sum of negative log-likelihoods of each prompt, in nats.
    pub nlls: Vec<f64>,
    /// What they are compared with: the dense model's name, or the time of the history's first entry with them; `null`
    /// where there is neither.
    pub against: Option<String>,
    /// The difference from that.
    pub nll: Option<PairedDifference>,
}

/// A tensor, and what it lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deserving {
    /// Its canonical name.
    pub tensor: String,
    /// Further tensors that can only have the same form: what runtimes fuse, the experts of a layer.
    #[serde(default)]
    pub tied: usize,
    /// How it is stored now.
    pub form: String,
    /// The next larger form, to which the gain is counted; `null` where a further bit a weight is.
    #[serde(default)]
    pub next: Option<String>,
    /// What is lost in the present form: squared error relative to the squared weights, or what the table measured, KL in
    /// nats a token.
    #[serde(with = "crate::finite")]
    pub error: f64,
    /// What of that the next form, or a further bit a weight, takes away, per MB that it costs: what they are ordered by.
    #[serde(with = "crate::finite")]
    pub gain_per_mb: f64,
}

/// What `bitmill watch` prints of one measurement. Ends in a newline.
pub fn watch_text(report: &WatchReport) -> String {
    let mut out = format!(
        "{}: {}, against {}, {} of {}\n\n",
        one_line(&report.model),
        size(report.bytes),
        one_line(&report.against),
        counted(report.targets, "target"),
        one_line(&report.text)
    );
    out.push_str(&format!(
        "perplexity       {} (dense {}): {}\n",
        single(report.perplexity, 5),
        single(report.dense_perplexity, 5),
        change(&report.nll)
    ));
    out.push_str(&format!(
        "NLL difference   {:+.6} ± {:.6} nats a target, paired\n",
        report.nll.mean, report.nll.stderr
    ));
    out.push_str(&format!(
        "KL to dense      {} ± {} nats a target (of which sampling {})\n",
        single(report.kl_mean, 3),
        single(report.kl_stderr, 2),
        single(report.kl_sampling_stderr, 2)
    ));
    out.push_str(&format!("same top token   {} % of targets\n", percent(report.top1_agreement)));
    out.push_str(&format!(
        "noise floor      {} nats between two equal runs\n",
        single(report.noise_floor, 2)
    ));
    for (name, score) in report.tasks.iter() {
        let flips = match (score.gained, score.lost, score.mcnemar_p) {
            (Some(gained), Some(lost), Some(p)) => {
                format!(", +{} −{} against dense, McNemar p {}", count(gained), count(lost), probability(p))
            }
            _ => String::new(),
        };
        out.push_str(&format!(
            "task {}: {} % of {}{flips}\n",
            one_line(name),
            percent(score.accuracy),
            counted(score.n, "item")
        ));
    }
    if let Some(prompts) = &report.prompts {
        let compared = match (&prompts.against, &prompts.nll) {
            (Some(against), Some(nll)) => format!("; against {}: {}", one_line(against), change(nll)),
            _ => "; nothing to compare with yet".into(),
        };
        out.push_str(&format!(
            "prompts          perplexity {} over {} in {}{compared}\n",
            single(prompts.perplexity, 5),
            counted(prompts.targets, "target"),
            counted(prompts.nlls.len(), "prompt")
        ));
    }
    if !report.deserving.is_empty() {
        out.push_str("\nmore bits first to\n");
        for deserving in report.deserving.iter().take(5) {
            out.push_str(&format!(
                "  {}  {}, {} {}\n",
                tensors(deserving),
                forms(deserving),
                lost(report),
                single(deserving.error, 3)
            ));
        }
    }
    out
}

/// What a figure of [`Deserving`] is.
pub(crate) fn lost(report: &WatchReport) -> &'static str {
    match report.deserving_by.as_deref() {
        Some("kl") => "predicted KL",
        Some("output") => "relative error of its output",
        _ => "relative error",
    }
}

pub(crate) fn tensors(deserving: &Deserving) -> String {
    let more = if deserving.tied > 0 { format!(" and {} tied to it", deserving.tied) } else { String::new() };
    one_line(&deserving.tensor) + &more
}

pub(crate) fn forms(deserving: &Deserving) -> String {
    let next = deserving.next.as_ref().map_or_else(String::new, |next| format!(" → {}", one_line(next)));
    one_line(&deserving.form) + &next
}

fn change(nll: &PairedDifference) -> String {
    let [low, increase, high] = nll.increase().map(|value| 100.0 * value);
    format!("{increase:+.3} %, 95 % interval {low:+.3} to {high:+.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_exceeded_by_the_whole_interval_alone() {
        let drift = PairedDifference { mean: 0.02, stderr: 0.004 };
        assert!(drift.exceeds(0.01));
        assert!(!drift.exceeds(0.015), "the interval begins at 1.22 %");
        assert!(PairedDifference { mean: 0.02, stderr: f64::NAN }.exceeds(0.01));
        assert!(!PairedDifference { mean: 0.0, stderr: 0.0 }.exceeds(0.0));
    }
}
