//! What a reader should know of a plan that sizes and errors do not say: beside a comparison's figures and in a model card.

use bitmill_tensor::Encoding;

use crate::depth::Depth;
use crate::plan::{Plan, PlannedTensor};

/// A sentence or less each: layers that went, zeros, why tensors are stored otherwise than asked (of those of which `is_told`),
/// and the plan's own notes.
pub(crate) fn notes(plan: &Plan, is_told: impl Fn(&PlannedTensor) -> bool) -> Vec<String> {
    let layers = plan.depth.iter().map(Depth::summary);
    let (sparse, dense): (Vec<&PlannedTensor>, Vec<&PlannedTensor>) = plan
        .tensors
        .iter()
        .filter(|tensor| tensor.removal.is_some())
        .partition(|tensor| matches!(tensor.to, Encoding::Sparse { .. }));
    let about = |tensors: &[&PlannedTensor], what: &str| {
        let weights: u64 = tensors.iter().map(|tensor| tensor.source_weights()).sum();
        let zeros: u64 = tensors.iter().map(|tensor| tensor.zeros()).sum();
        let percent = (zeros as f64 * 1_000.0 / weights.max(1) as f64).round() / 10.0;
        (!tensors.is_empty()).then(|| format!("{} tensors: {percent} % zeros, {what}", tensors.len()))
    };
    let zeros = [
        about(&dense, "which take the space and the time of any other weight"),
        about(&sparse, "not stored; other runtimes of today do not load this form"),
    ];
    let told = plan.tensors.iter().filter(|tensor| is_told(tensor));
    let rest = reasons(told).into_iter().chain(plan.notes.iter().cloned());
    layers.chain(zeros.into_iter().flatten()).chain(rest).collect()
}

/// Each reason of `tensors`, with how many it is about.
fn reasons<'a>(tensors: impl Iterator<Item = &'a PlannedTensor>) -> Vec<String> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for tensor in tensors.filter(|tensor| !tensor.reason.is_empty()) {
        match counted.iter_mut().find(|(reason, _)| *reason == tensor.reason) {
            Some((_, count)) => *count += 1,
            None => counted.push((&tensor.reason, 1)),
        }
    }
    counted
        .into_iter()
        .map(|(reason, n)| format!("{n} tensor{}: {reason}", if n == 1 { "" } else { "s" }))
        .collect()
}
