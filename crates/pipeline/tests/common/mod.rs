//! What the tests of whole runs share.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_kernels::{Compute, Isa, Path as ComputePath};
use bitmill_model::{Model, Sequence, Want};
use bitmill_pipeline::{
    CompressRecord, Error, HeldOut, Plan, PlanOptions, Progress, Recipe, Silent, compress,
};
use bitmill_tensor::Matrix;

pub fn recipe(text: &str) -> Recipe {
    Recipe::parse(text, Path::new("test.toml")).unwrap()
}

pub fn plan(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Plan, Error> {
    Plan::new(checkpoint, recipe, &PlanOptions::default())
}

pub fn run(source: &Path, recipe: &Recipe, target: &Path) -> Result<(), Error> {
    compressed(&Checkpoint::open(source)?, recipe, target).map(|_| ())
}

/// [`run`] of a model that is open, and what it did.
pub fn compressed(checkpoint: &Checkpoint, recipe: &Recipe, target: &Path) -> Result<CompressRecord, Error> {
    compress(checkpoint, &plan(checkpoint, recipe)?, target, Overwrite::Refuse, &Silent)
}

/// Documents of the words that the test kit's tokenizer knows, enough for every window asked for.
pub fn calibration_text(folder: &Path) -> PathBuf {
    let path = folder.join("calibration.txt");
    let words = ["the", "low", "lower", "newest", "widest", "new", "wide", "a", "123", "你好"];
    let line = |at: usize| words[at * at * 7 % 11 % words.len()];
    let text: Vec<&str> = (0..4000).map(line).collect();
    std::fs::write(&path, text.join(" ")).unwrap();
    path
}

/// `head`, and then `steps` over a few windows of `source`, with `more` about calibration.
pub fn calibrated(head: &str, source: &Path, more: &str, steps: &str) -> Recipe {
    recipe(&format!(
        "{head}\n[calibration]\nsource = {source:?}\nsamples = 6\nlength = 32\nheld_out = 2\n{more}\n{steps}"
    ))
}

/// What the record says of held-out windows.
pub fn held_out(record: &CompressRecord) -> HeldOut {
    serde_json::from_value(record.document["held_out"].clone()).unwrap()
}

pub fn logits(path: &Path) -> Vec<f32> {
    first_logits(path, 40)
}

/// Logits of so many tokens.
pub fn first_logits(path: &Path, tokens: usize) -> Vec<f32> {
    let model = Model::load(&Checkpoint::open(path).unwrap()).unwrap();
    let compute = Compute::new(Isa::best(), ComputePath::Exact);
    let tokens: Vec<u32> = (0..tokens as u32).map(|i| 3 + i * 71 % 280).collect();
    let (mut cache, mut out) = (model.new_cache(), Matrix::default());
    let mut batch = [Sequence { tokens: &tokens, cache: &mut cache, want: Want::All }];
    model.forward(&compute, &mut batch, &mut out).unwrap();
    out.as_slice().to_vec()
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Bytes of the record and the card in a folder, which no plan counts.
pub fn told(folder: &Path) -> u64 {
    ["bitmill.json", "bitmill.md"]
        .map(|name| std::fs::metadata(folder.join(name)).unwrap().len())
        .iter()
        .sum()
}

/// Every value of a tensor, widened, in canonical order.
pub fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).unwrap();
    let view = tensor.view();
    let cols = view.in_features();
    if tensor.info.shape.len() < 2 {
        let mut stored = vec![0.0; cols];
        bitmill_kernels::dequantize_rows(Isa::scalar(), &view, 0, &mut stored);
        return (0..cols).map(|at| stored[tensor.stored_row(at)]).collect();
    }
    let mut values = vec![0.0; view.out_features() * cols];
    for (row, out) in values.chunks_exact_mut(cols).enumerate() {
        bitmill_kernels::dequantize_rows(Isa::scalar(), &view, tensor.stored_row(row), out);
    }
    values
}

/// Asks to stop at the look after so many.
pub struct StopAfter(pub AtomicUsize);

impl Progress for StopAfter {
    fn begin(&self, _what: &str) {}
    fn at(&self, _done: u64, _total: u64) {}
    fn end(&self) {}
    fn is_stopped(&self) -> bool {
        let left =
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1)));
        left == Ok(0)
    }
}

/// Every file in `folder` and in the folders in it, with its bytes.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            all.extend(contents(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            all.push((name, std::fs::read(path).unwrap()));
        }
    }
    all
}
