//! What a dense model said, in a file of one percent of its logits: enough to measure another model against it later,
//! without it and without its text.
//!
//! ```text
//! "bmillbsl"  u32 version (1)  u32 length of the header  header: JSON, see `BaselineHeader`
//! tokens      windows × window × u16, or u32 where the vocabulary has more than 65536
//! nlls        rows × f32, rows = windows × (window − 1)
//! sketches    rows × { u16 kept, u16 rest, u16 entries that follow, entries × { token: u16 or u32, u16 code } }
//! answers     of each task: items × { u16 chosen, u16 chosen by length, u16 right }
//! checksum    u64: XXH3 of all before
//! ```
//!
//! Little-endian throughout; [`sketch`](crate::sketch) says what the codes are. Limits: a header of 4 MB, 10⁹ tokens; every
//! count is checked against the file's length before anything is allocated.

use bitmill_kernels::Compute;
use bitmill_model::Model;
use bitmill_text::Windows;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::perplexity::check_finite;
use crate::sketch::Sketch;
use crate::statistics::{clustered_mean, mean};
use crate::walk::walk;
use crate::{Answer, Error, Progress, TaskAnswers};

const MAGIC: &[u8; 8] = b"bmillbsl";
const VERSION: u32 = 1;
const LONGEST_HEADER: usize = 4_000_000;
const MOST_TOKENS: u64 = 1_000_000_000;
/// Fraction of the full logits, as f32, that a file may take.
const SHARE: f64 = 0.01;
/// Entries of a sketch at least, where the share would not give as many (vocabularies of less than about 1200 tokens).
const LEAST_ENTRIES: usize = 8;

/// What a baseline is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaselineHeader {
    /// Of bitmill.
    pub version: String,
    /// When it was recorded, in UTC.
    pub created: String,
    /// The dense model's name.
    pub model: String,
    /// How it was named on the command line.
    pub source: String,
    /// XXH3 of the model's tensors: names, shapes, encodings and bytes of each one's ends.
    pub fingerprint: String,
    /// Its logits at a position.
    pub vocab_size: usize,
    /// The text's name.
    pub text: String,
    /// Tokens of a window.
    pub window: usize,
    /// Windows.
    pub windows: usize,
    /// Entries of a sketch at most.
    pub entries: usize,
    /// What the file says of the dense model's divergence from itself: what rounding adds to any divergence, in nats.
    pub kl_floor: f64,
    /// The tasks it answered.
    pub tasks: Vec<BaselineTask>,
}

/// A task of a baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaselineTask {
    /// Its name.
    pub name: String,
    /// Its file; absent for a built-in one.
    pub file: Option<String>,
    /// Items answered, from the first on.
    pub items: usize,
    /// XXH3 of these items.
    pub fingerprint: String,
}

/// A dense model's predictions for some windows, its negative log-likelihoods and its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// What it is about.
    pub header: BaselineHeader,
    /// The text in tokens.
    pub windows: Windows,
    /// Of the tasks in the header's order.
    pub answers: Vec<TaskAnswers>,
    nlls: Vec<f32>,
    sketches: Vec<Sketch>,
}

/// How far a model is from a baseline.
#[derive(Debug, Clone, PartialEq)]
pub struct Drift {
    /// exp of the model's mean negative log-likelihood.
    pub perplexity: f64,
    /// Of the dense model's.
    pub dense_perplexity: f64,
    /// Mean over targets of the model's negative log-likelihood less the dense model's, in nats.
    pub nll_difference: f64,
    /// Its standard error, between windows.
    pub nll_difference_stderr: f64,
    /// Mean divergence from dense, in nats a target, less the file's floor; not below 0.
    pub kl_mean: f64,
    /// Its standard error between windows, the sketches' sampling included.
    pub kl_stderr: f64,
    /// Of that, what the sampling adds: the mean's uncertainty had the text been all there is.
    pub kl_sampling_stderr: f64,
    /// Fraction of targets at which both put the same token first.
    pub top1_agreement: f64,
    /// Targets.
    pub targets: usize,
}

impl Baseline {
    /// Runs the dense model over `windows`. The header's counts, floor and tasks are filled in here.
    ///
    /// # Errors
    /// As [`perplexity`](crate::perplexity()).
    pub fn record(
        mut header: BaselineHeader,
        model: &Model,
        compute: &Compute,
        windows: &Windows,
        answers: Vec<TaskAnswers>,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        let vocab_size = model.config().vocab_size;
        let rows = windows.len() * windows.length.saturating_sub(1);
        (header.vocab_size, header.window, header.windows) = (vocab_size, windows.length, windows.len());
        // What the file holds beside entries, the header's later growth included.
        let fixed = 16
            + header_bytes(&header)?.len()
            + 256
            + windows.tokens.len() * width(vocab_size)
            + rows * (4 + 6)
            + 8
            + answers.iter().map(|task| 6 * task.answers.len()).sum::<usize>();
        let share = SHARE * rows as f64 * vocab_size as f64 * 4.0 - fixed as f64;
        let affordable = (share / (rows.max(1) * (width(vocab_size) + 2)) as f64).max(0.0) as usize;
        header.entries = affordable.max(LEAST_ENTRIES).min(usize::from(u16::MAX)).min(vocab_size);

        let (mut nlls, mut row_nlls) = (Vec::with_capacity(rows), Vec::new());
        let mut sketches: Vec<Sketch> = Vec::with_capacity(rows);
        let mut floors = Vec::with_capacity(rows);
        walk(model, compute, windows, 0, progress, |rows| {
            compute.cross_entropy(rows.logits, rows.targets, &mut row_nlls);
            check_finite(&row_nlls, rows.before, windows.length - 1)?;
            for (row, (&nll, &target)) in row_nlls.iter().zip(rows.targets).enumerate() {
                let logits = rows.logits.row(row);
                let sketch = Sketch::new(logits, header.entries, draw(rows.before + row));
                let log_total = nll + f64::from(logits[target as usize]);
                floors.push(sketch.divergence(logits, log_total).divergence);
                sketches.push(sketch);
                nlls.push(nll as f32);
            }
            Ok(())
        })?;
        header.kl_floor = mean(&floors);
        Ok(Self { header, windows: windows.clone(), answers, nlls, sketches })
    }

    /// Measures `model` on the baseline's windows.
    ///
    /// # Errors
    /// [`Error::OtherVocabulary`]; otherwise as [`perplexity`](crate::perplexity()).
    pub fn drift(&self, model: &Model, compute: &Compute, progress: Progress<'_>) -> Result<Drift, Error> {
        let (dense, found) = (self.header.vocab_size, model.config().vocab_size);
        if dense != found {
            return Err(Error::OtherVocabulary { dense, found });
        }
        let per_window = self.windows.length - 1;
        let (mut differences, mut kls) = (Vec::new(), Vec::new());
        let (mut row_nlls, mut row_first) = (Vec::new(), Vec::new());
        let (mut variance, mut agreed, mut nll_sum) = (0.0, 0, 0.0);
        walk(model, compute, &self.windows, 0, progress, |rows| {
            compute.cross_entropy(rows.logits, rows.targets, &mut row_nlls);
            check_finite(&row_nlls, rows.before, per_window)?;
            compute.largest(rows.logits, &mut row_first);
            for (row, (&nll, &target)) in row_nlls.iter().zip(rows.targets).enumerate() {
                let sketch = &self.sketches[rows.before + row];
                let logits = rows.logits.row(row);
                let estimate = sketch.divergence(logits, nll + f64::from(logits[target as usize]));
                kls.push(estimate.divergence);
                variance += estimate.variance;
                agreed += usize::from(sketch.entries[0].0 == row_first[row]);
                nll_sum += nll;
                // Rounded as the file's are, so that equal runs differ by exactly nothing.
                differences.push(f64::from(nll as f32) - f64::from(self.nlls[rows.before + row]));
            }
            Ok(())
        })?;
        let targets = kls.len();
        let (nll_difference, nll_difference_stderr) = clustered_mean(&differences, per_window);
        let (kl_mean, kl_stderr) = clustered_mean(&kls, per_window);
        let dense_nll = self.nlls.iter().map(|&nll| f64::from(nll)).sum::<f64>() / targets as f64;
        Ok(Drift {
            perplexity: (nll_sum / targets as f64).exp(),
            dense_perplexity: dense_nll.exp(),
            nll_difference,
            nll_difference_stderr,
            kl_mean: (kl_mean - self.header.kl_floor).max(0.0),
            kl_stderr,
            kl_sampling_stderr: variance.sqrt() / targets as f64,
            top1_agreement: agreed as f64 / targets as f64,
            targets,
        })
    }

    /// Largest difference of a negative log-likelihood between two runs of `model` over the first windows, at most
    /// `windows` of them, in nats: 0 where it computes the same twice.
    ///
    /// # Errors
    /// As [`perplexity`](crate::perplexity()).
    pub fn noise(&self, model: &Model, compute: &Compute, windows: usize) -> Result<f64, Error> {
        let first = Windows::new(self.windows.tokens.clone(), self.windows.length, Some(windows));
        let run = || {
            let (mut nlls, mut row_nlls) = (Vec::new(), Vec::new());
            walk(model, compute, &first, 0, &|_, _| (), |rows| {
                compute.cross_entropy(rows.logits, rows.targets, &mut row_nlls);
                nlls.extend_from_slice(&row_nlls);
                Ok(())
            })?;
            Ok::<_, Error>(nlls)
        };
        Ok(run()?.iter().zip(run()?).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
    }

    /// The file's bytes over those of the full logits as f32.
    pub fn share(&self, bytes: usize) -> f64 {
        bytes as f64 / (self.nlls.len() as f64 * self.header.vocab_size as f64 * 4.0)
    }

    /// The file.
    ///
    /// # Errors
    /// [`Error::Baseline`] if the header is longer than can be read back.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let header = header_bytes(&self.header)?;
        let wide = width(self.header.vocab_size) == 4;
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(header.len() as u32).to_le_bytes());
        out.extend_from_slice(&header);
        let token = |out: &mut Vec<u8>, token: u32| match wide {
            true => out.extend_from_slice(&token.to_le_bytes()),
            false => out.extend_from_slice(&(token as u16).to_le_bytes()),
        };
        let short = |out: &mut Vec<u8>, value: u16| out.extend_from_slice(&value.to_le_bytes());
        self.windows.tokens.iter().for_each(|&id| token(&mut out, id));
        self.nlls.iter().for_each(|nll| out.extend_from_slice(&nll.to_le_bytes()));
        for sketch in &self.sketches {
            short(&mut out, sketch.kept);
            short(&mut out, sketch.rest);
            short(&mut out, sketch.entries.len() as u16);
            for &(id, code) in &sketch.entries {
                token(&mut out, id);
                short(&mut out, code);
            }
        }
        for answer in self.answers.iter().flat_map(|task| &task.answers) {
            for place in [answer.chosen, answer.chosen_norm, answer.right] {
                short(&mut out, place.min(usize::from(u16::MAX)) as u16);
            }
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        Ok(out)
    }

    /// Reads a file; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Baseline`] if it is none, was cut or changed, or claims what cannot be.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, Error> {
        read(bytes).map_err(|problem| Error::Baseline { file: name.to_owned(), problem })
    }
}

/// Bytes of a token id.
fn width(vocab_size: usize) -> usize {
    if vocab_size > 1 << 16 { 4 } else { 2 }
}

/// Where in the rest of row `row` its sample begins: splitmix64, so that neighbours differ and every run agrees.
fn draw(row: usize) -> f64 {
    let mut z = (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn header_bytes(header: &BaselineHeader) -> Result<Vec<u8>, Error> {
    let wrong = |problem: String| Error::Baseline { file: header.text.clone(), problem };
    let bytes = serde_json::to_vec(header).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() > LONGEST_HEADER {
        return Err(wrong("its header would be too long".to_owned()));
    }
    Ok(bytes)
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn short(&mut self) -> Result<u16, String> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn long(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn token(&mut self, vocab_size: usize) -> Result<u32, String> {
        let token = if width(vocab_size) == 4 { self.long()? } else { u32::from(self.short()?) };
        match (token as usize) < vocab_size {
            true => Ok(token),
            false => Err(format!("token {token} is not in its vocabulary of {vocab_size}")),
        }
    }
}

fn read(bytes: &[u8]) -> Result<Baseline, String> {
    if !bytes.starts_with(MAGIC) {
        return Err("it is no baseline".to_owned());
    }
    let (body, checksum) = bytes.split_last_chunk::<8>().ok_or("it is cut short")?;
    let mut reader = Reader(&body[MAGIC.len().min(body.len())..]);
    let version = reader.long()?;
    if version != VERSION {
        return Err(format!("version {version}; this program reads version {VERSION}"));
    }
    if xxh3_64(body) != u64::from_le_bytes(*checksum) {
        return Err("its checksum is wrong: it was cut or changed".to_owned());
    }
    let length = reader.long()? as usize;
    if length > LONGEST_HEADER {
        return Err(format!("a header of {length} bytes; at most {LONGEST_HEADER} are read"));
    }
    let header: BaselineHeader =
        serde_json::from_slice(reader.take(length)?).map_err(|error| format!("its header: {error}"))?;
    let vocab_size = header.vocab_size;
    let n_tokens = (header.windows as u64).checked_mul(header.window as u64).filter(|n| *n <= MOST_TOKENS);
    let (Some(n_tokens), true) = (n_tokens, header.window >= 3 && header.windows >= 1 && vocab_size >= 1)
    else {
        return Err(format!("{} windows of {} tokens of {vocab_size}", header.windows, header.window));
    };
    if !header.kl_floor.is_finite() {
        return Err("its floor is no number".to_owned());
    }
    let rows = header.windows * (header.window - 1);
    // Every row has a likelihood, a sketch's head and one entry: no count can ask for more than the file holds.
    let least = n_tokens as usize * width(vocab_size) + rows * (4 + 6 + 2 + width(vocab_size));
    if reader.0.len() < least {
        return Err(format!("{least} bytes are needed for its windows, and {} are there", reader.0.len()));
    }
    let tokens = (0..n_tokens).map(|_| reader.token(vocab_size)).collect::<Result<Vec<_>, _>>()?;
    let nlls = (0..rows)
        .map(|_| match f32::from_bits(reader.long()?) {
            nll if nll.is_finite() => Ok(nll),
            _ => Err("a likelihood is no number".to_owned()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut sketches = Vec::with_capacity(rows);
    for row in 0..rows {
        let (kept, rest, n) = (reader.short()?, reader.short()?, usize::from(reader.short()?));
        if kept == 0 || usize::from(kept) > n || n > header.entries {
            return Err(format!("row {row} keeps {kept} of {n} entries, of at most {}", header.entries));
        }
        let entries = (0..n).map(|_| Ok((reader.token(vocab_size)?, reader.short()?)));
        let entries = entries.collect::<Result<Vec<_>, String>>()?;
        sketches.push(Sketch { kept, rest, entries });
    }
    let mut answers = Vec::new();
    for task in &header.tasks {
        if reader.0.len() / 6 < task.items {
            return Err(format!("task `{}` has {} items, and the file ends", task.name, task.items));
        }
        let answer = |_| {
            let (chosen, chosen_norm, right) =
                (usize::from(reader.short()?), usize::from(reader.short()?), usize::from(reader.short()?));
            Ok(Answer { scores: Vec::new(), chosen, chosen_norm, right })
        };
        let of_task = (0..task.items).map(answer).collect::<Result<Vec<_>, String>>()?;
        answers.push(TaskAnswers { name: task.name.clone(), answers: of_task });
    }
    if !reader.0.is_empty() {
        return Err(format!("{} bytes too many", reader.0.len()));
    }
    let windows = Windows { length: header.window, tokens };
    Ok(Baseline { header, windows, answers, nlls, sketches })
}
