//! Calibration tokens: documents drawn by seed, tokenized and cut into windows.
//!
//! Documents are taken in an order that the seed decides until there are tokens enough; where they give more windows than
//! were asked for, as one long text does, the seed draws those too. Every window begins with BOS where the model begins a
//! text with it. None is ever padded: a padding token at the ends of a document, as data sets saved in batches have, is cut
//! off.

use std::path::PathBuf;

use bitmill_checkpoint::Checkpoint;
use bitmill_model::SplitMix64;
use bitmill_report::Utc;
use bitmill_tensor::FloatType;
use bitmill_text::{ChatTemplate, Content, Documents, Tokenizer, Windows};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::recipe::{Damping, FloatName};
use crate::{Error, embedded};

/// What to calibrate on: `[calibration]` of a recipe.
///
/// ```
/// use bitmill_pipeline::{CalibrationOptions, Fit};
/// let options: CalibrationOptions = toml::from_str("samples = 8\nlength = 512\nfit = \"truncate\"")?;
/// assert_eq!((options.samples, options.seed, options.fit), (8, 0, Fit::Truncate));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationOptions {
    /// Plain text, JSON lines or Parquet; the built-in calibration text if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<PathBuf>,
    /// Windows. Of the built-in text, which is short, as many as it has.
    pub samples: usize,
    /// Tokens of a window, BOS among them; fewer where the model's context is shorter.
    pub length: usize,
    /// Decides which documents are taken, and which windows of them.
    pub seed: u64,
    /// How documents become windows.
    pub fit: Fit,
    /// Windows beside `samples` that the result is measured on, and nothing is calibrated on.
    pub held_out: usize,
    /// What states between two layers are kept in: `"bf16"` or `"f32"`.
    pub states: FloatName,
    /// GPTAQ: how much of what earlier layers changed in a layer's inputs is made up for, 0 to 1; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asymmetry: Option<Damping>,
    /// How much of what ties input features to one another is left out of statistics, 0 to 1: see
    /// [`Hessian::shrink`](bitmill_stats::Hessian::shrink). Absent: for codes of grids features / (features + tokens), as if
    /// as many tokens had been met that tie nothing; for blocks a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shrinkage: Option<Damping>,
    /// What becomes of matrices that one scale a row ruins.
    pub outliers: Outliers,
    /// What activations of a layer may take: windows that have no room beside others run after them, and the layer is then
    /// quantized by what it does as it was. `"4GB"`.
    pub memory: Size,
}

impl Default for CalibrationOptions {
    /// 128 windows of 2048 tokens of the built-in text, packed; 4 held out.
    fn default() -> Self {
        Self {
            source: None,
            samples: 128,
            length: 2048,
            seed: 0,
            fit: Fit::Pack,
            held_out: 4,
            states: FloatName(FloatType::BF16),
            asymmetry: None,
            shrinkage: None,
            outliers: Outliers::default(),
            memory: Size(4_000_000_000),
        }
    }
}

/// Bytes, as a recipe writes them: `"4GB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        crate::parse_size(&text).map(Self).map_err(|error| error.to_string())
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        match size.0 {
            bytes if bytes.is_multiple_of(1_000_000_000) => format!("{}GB", bytes / 1_000_000_000),
            bytes if bytes.is_multiple_of(1_000_000) => format!("{}MB", bytes / 1_000_000),
            bytes => format!("{bytes}B"),
        }
    }
}

/// What becomes of matrices of which one scale a row leaves too little, for outliers of weights or activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outliers {
    /// They are stored in groups, or as floats where their form knows none.
    #[default]
    FallBack,
    /// They are stored as their step says; records tell of outliers.
    Report,
}

/// How documents become windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Documents follow one another, divided as the model knows it, and are cut wherever a window ends.
    #[default]
    Pack,
    /// A window is the beginning of one document; shorter documents are left out.
    Truncate,
}

/// Windows to calibrate on, and what they are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// Windows of equal length.
    pub windows: Windows,
    /// xxh3 of the windows' length and tokens: a part of a run's identity.
    pub hash: String,
    /// The file, or `"built-in calibration text"`.
    pub source: String,
    /// How documents were cut.
    pub fit: Fit,
    /// Documents of the source.
    pub documents: usize,
    /// Of those that were looked at: without a token.
    pub empty: usize,
    /// Of those that were looked at: shorter than a window, when each has to fill one.
    pub short: usize,
}

impl Calibration {
    /// `"128 windows of 2048 tokens of wiki.txt (packed, 3 empty documents passed over)"`, for records and logs.
    pub fn describe(&self) -> String {
        let mut notes = vec![match self.fit {
            Fit::Pack => "packed".to_owned(),
            Fit::Truncate => "a document each".to_owned(),
        }];
        for (count, what) in [(self.empty, "empty"), (self.short, "too short")] {
            if count > 0 {
                let plural = if count == 1 { "" } else { "s" };
                notes.push(format!("{count} {what} document{plural} passed over"));
            }
        }
        let (windows, length) = (self.windows.len(), self.windows.length);
        format!("{windows} windows of {length} tokens of {} ({})", self.source, notes.join(", "))
    }
}

/// Reads the windows that `options` ask for, as the model of `checkpoint` reads text.
///
/// Chats are written by the model's own template, which sees one date on every day, so that one seed gives one text. In a
/// pack, texts are divided by `<|endoftext|>` where the vocabulary has it, by a blank line where it has not; chats end as
/// their template ends them.
///
/// # Errors
/// [`Error::ReadFile`]; those of [`Documents`] and [`ChatTemplate`]; [`Error::NoDocuments`];
/// [`Error::CalibrationTooShort`] with what there is; [`Error::CalibrationSize`] if no window is asked for;
/// [`Error::PaddedWindow`].
pub fn read(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    options: &CalibrationOptions,
) -> Result<Calibration, Error> {
    let documents = match &options.source {
        None => embedded::calibration_documents()?,
        Some(path) => {
            let bytes =
                std::fs::read(path).map_err(|source| Error::ReadFile { path: path.clone(), source })?;
            Documents::from_bytes(&path.display().to_string(), &bytes)?
        }
    };
    let template = match documents.has_chats() {
        false => None,
        true => {
            let mut template = ChatTemplate::from_checkpoint(checkpoint, tokenizer)?;
            template.set_clock(|| Utc::at(DAY));
            Some(template)
        }
    };
    let length = options.length.min(checkpoint.config().max_positions);
    let bos = tokenizer.bos_to_add();
    // Something must be left of a window beside BOS.
    let body = length.saturating_sub(usize::from(bos.is_some()));
    if options.samples == 0 || body == 0 {
        return Err(Error::CalibrationSize { samples: options.samples, length });
    }
    let mut draw = Draw {
        tokenizer,
        template: template.as_ref(),
        documents: &documents,
        random: SplitMix64::new(options.seed),
        empty: 0,
        short: 0,
        tokens: 0,
    };
    let bodies = match options.fit {
        Fit::Pack => draw.pack(options.samples, body)?,
        Fit::Truncate => draw.truncate(options.samples, body)?,
    };
    let Draw { empty, short, tokens, .. } = draw;
    let found = bodies.len() / body;
    // The built-in text is what it is; a file that was chosen must have what was asked for.
    if found == 0 || (found < options.samples && options.source.is_some()) {
        let file = documents.file;
        if tokens == 0 {
            return Err(Error::NoDocuments { file, documents: documents.items.len() });
        }
        let (samples, fit) = (options.samples, options.fit);
        return Err(Error::CalibrationTooShort { file, tokens, found, samples, length, fit });
    }
    let mut windows = Windows { length, tokens: Vec::with_capacity(found * length) };
    for (window, body) in bodies.chunks_exact(body).enumerate() {
        if tokenizer.padding().is_some_and(|padding| body.iter().all(|token| *token == padding)) {
            return Err(Error::PaddedWindow { file: documents.file, window });
        }
        windows.tokens.extend(bos);
        windows.tokens.extend_from_slice(body);
    }
    Ok(Calibration {
        hash: hash(&windows),
        windows,
        source: documents.file,
        fit: options.fit,
        documents: documents.items.len(),
        empty,
        short,
    })
}

/// The date that templates see, in seconds: 1 January 2025.
const DAY: u64 = 1_735_689_600;

/// xxh3 of the length of windows and of their tokens.
fn hash(windows: &Windows) -> String {
    let mut hash = Xxh3::new();
    hash.update(&(windows.length as u64).to_le_bytes());
    for token in &windows.tokens {
        hash.update(&token.to_le_bytes());
    }
    format!("{:016x}", hash.digest())
}

/// Takes documents in the seed's order.
struct Draw<'d> {
    tokenizer: &'d Tokenizer,
    template: Option<&'d ChatTemplate>,
    documents: &'d Documents,
    random: SplitMix64,
    empty: usize,
    short: usize,
    /// Tokens of the documents that were looked at.
    tokens: usize,
}

impl Draw<'_> {
    /// At most `samples` windows of `body` tokens each, one after another.
    fn pack(&mut self, samples: usize, body: usize) -> Result<Vec<u32>, Error> {
        let divider = match self.tokenizer.id_of(embedded::END_OF_TEXT) {
            Some(token) => vec![token],
            None => self.tokenizer.encode("\n\n")?,
        };
        let mut stream = Vec::new();
        for index in self.order(self.documents.items.len()) {
            if stream.len() / body >= samples {
                break;
            }
            let tokens = self.tokens_of(index)?;
            if tokens.is_empty() {
                continue;
            }
            stream.extend(tokens);
            if matches!(self.documents.items[index].content, Content::Text(_)) {
                stream.extend(&divider);
            }
        }
        let found = stream.len() / body;
        let mut drawn = self.order(found);
        drawn.truncate(samples);
        drawn.sort_unstable();
        Ok(drawn.into_iter().flat_map(|window| &stream[window * body..][..body]).copied().collect())
    }

    /// As [`pack`](Self::pack), of one document each.
    fn truncate(&mut self, samples: usize, body: usize) -> Result<Vec<u32>, Error> {
        let mut out = Vec::new();
        for index in self.order(self.documents.items.len()) {
            if out.len() == samples * body {
                break;
            }
            let tokens = self.tokens_of(index)?;
            match tokens.get(..body) {
                Some(window) => out.extend_from_slice(window),
                None if tokens.is_empty() => {}
                None => self.short += 1,
            }
        }
        Ok(out)
    }

    /// The tokens of a document, less BOS, which a template may write itself, and padding at its ends.
    fn tokens_of(&mut self, index: usize) -> Result<Vec<u32>, Error> {
        let document = &self.documents.items[index];
        let text = self.documents.render(document, self.template)?;
        let mut tokens = self.tokenizer.encode(&text)?;
        let padding = self.tokenizer.padding();
        // The token that ends a chat may be the padding token, too.
        if matches!(document.content, Content::Text(_)) {
            while tokens.last().is_some_and(|last| Some(*last) == padding) {
                tokens.pop();
            }
        }
        let bos = self.tokenizer.bos_to_add();
        let cut = |token: &&u32| Some(**token) == padding || Some(**token) == bos;
        let leading = tokens.iter().take_while(cut).count();
        tokens.drain(..leading);
        self.tokens += tokens.len();
        self.empty += usize::from(tokens.is_empty());
        Ok(tokens)
    }

    /// `0..count` in an order that the seed decides: Fisher and Yates' shuffle.
    fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            let range = last as u128 + 1;
            let other = (u128::from(self.random.next()) * range) >> 64;
            order.swap(last, other as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_testkit::{Split, Variant, tiny, tokenizer_json};

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_json(tokenizer_json(Split::Qwen2).as_bytes()).unwrap()
    }

    fn options(path: &std::path::Path, samples: usize, length: usize) -> CalibrationOptions {
        CalibrationOptions { source: Some(path.into()), samples, length, ..CalibrationOptions::default() }
    }

    /// Runs `read` over a file of this name and content.
    fn read_file(
        name: &str,
        bytes: &[u8],
        change: impl Fn(&mut CalibrationOptions),
    ) -> Result<Calibration, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let model = tiny(Variant::Qwen2);
        let mut options = options(&path, 2, 8);
        change(&mut options);
        read(&Checkpoint::open(model.path()).unwrap(), &tokenizer(), &options)
    }

    fn lines(count: usize) -> String {
        (0..count).map(|at| format!("{{\"text\": \"number {at} of {count} lines, then\"}}\n")).collect()
    }

    #[test]
    fn the_built_in_text_gives_what_it_has() {
        let millet = embedded::checkpoint().unwrap();
        let tokenizer = Tokenizer::from_checkpoint(&millet).unwrap();
        let few = CalibrationOptions { samples: 4, length: 64, ..CalibrationOptions::default() };
        let calibration = read(&millet, &tokenizer, &few).unwrap();
        assert_eq!((calibration.windows.len(), calibration.windows.length), (4, 64));
        assert_eq!(calibration.source, "built-in calibration text");
        let all = read(&millet, &tokenizer, &CalibrationOptions::default()).unwrap();
        assert_eq!(all.windows.length, millet.config().max_positions, "no longer than the context");
        assert!(all.windows.len() > 32, "{}", all.describe());
    }

    #[test]
    fn a_seed_decides_and_decides_again() {
        let of = |seed| read_file("a.jsonl", lines(40).as_bytes(), |options| options.seed = seed).unwrap();
        assert_eq!(of(0).windows, of(0).windows);
        assert_ne!(of(0).hash, of(1).hash);
        assert_eq!(of(1).windows.len(), 2);
        let text = "one long text of many words and no division ".repeat(40);
        let of = |seed| read_file("a.txt", text.as_bytes(), |options| options.seed = seed).unwrap();
        assert_eq!(of(3).windows, of(3).windows);
        assert_ne!(of(3).windows, of(4).windows, "windows are drawn where there is but one document");
    }

    #[test]
    fn packed_documents_follow_one_another() {
        let tokenizer = tokenizer();
        let text = "{\"text\": \"the same\"}\n".repeat(30);
        let calibration = read_file("a.jsonl", text.as_bytes(), |options| options.samples = 1).unwrap();
        let mut one = tokenizer.encode("the same").unwrap();
        match tokenizer.id_of("<|endoftext|>") {
            Some(divider) => one.push(divider),
            None => one.append(&mut tokenizer.encode("\n\n").unwrap()),
        }
        assert_eq!(calibration.windows.tokens, one.iter().cycle().take(8).copied().collect::<Vec<_>>());
    }

    #[test]
    fn truncated_windows_begin_documents_and_short_ones_are_counted() {
        let text =
            "{\"text\": \"a document that is long enough for it\"}\n{\"text\": \"no\"}\n{\"text\": \"\"}\n";
        let calibration = read_file("a.jsonl", text.as_bytes(), |options| {
            (options.samples, options.fit) = (1, Fit::Truncate);
        });
        let calibration = calibration.unwrap();
        let whole = tokenizer().encode("a document that is long enough for it").unwrap();
        assert_eq!(calibration.windows.tokens, whole[..8]);
        assert!(calibration.short <= 1 && calibration.empty <= 1);
        let error = read_file("a.jsonl", text.as_bytes(), |options| options.fit = Fit::Truncate).unwrap_err();
        assert!(
            error.to_string().contains("1 document of 8 tokens or more, and 2 were asked for"),
            "{error}"
        );
    }

    #[test]
    fn too_little_text_says_what_would_fit() {
        let error =
            read_file("a.txt", b"some words that are few", |options| options.samples = 9).unwrap_err();
        let Error::CalibrationTooShort { tokens, found, samples: 9, length: 8, .. } = &error else {
            panic!("{error}")
        };
        assert!(*tokens > 0 && *found < 9);
        assert!(error.hint().unwrap().contains("samples"), "{:?}", error.hint());
    }

    #[test]
    fn what_has_no_tokens_is_an_error() {
        for (name, bytes) in
            [("a.txt", &b""[..]), ("a.jsonl", b"\n\n"), ("a.jsonl", b"{\"text\": \"\"}\n{\"text\": \"\"}")]
        {
            let error = read_file(name, bytes, |_| {}).unwrap_err();
            assert!(matches!(error, Error::NoDocuments { .. }), "{name}: {error}");
        }
        let none = read_file("a.txt", b"words", |options| options.samples = 0).unwrap_err();
        assert!(matches!(none, Error::CalibrationSize { .. }), "{none}");
    }

    #[test]
    fn windows_begin_with_bos_and_padding_is_cut_off() {
        let model = tiny(Variant::Qwen2);
        let write = |name: &str, text: &str| std::fs::write(model.path().join(name), text).unwrap();
        write("tokenizer.json", &tokenizer_json(Split::Qwen2));
        let special = r#"{"add_bos_token": true, "bos_token": "<|begin|>", "pad_token": "<|pad|>"}"#;
        write("tokenizer_config.json", special);
        let checkpoint = Checkpoint::open(model.path()).unwrap();
        let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
        let (bos, padding) = (tokenizer.bos_to_add().unwrap(), tokenizer.padding().unwrap());
        let text = "{\"text\": \"<|pad|><|begin|>some words in a row<|pad|><|pad|>\"}\n".repeat(9);
        let path = model.path().join("padded.jsonl");
        std::fs::write(&path, text).unwrap();
        for fit in [Fit::Pack, Fit::Truncate] {
            let calibration =
                read(&checkpoint, &tokenizer, &CalibrationOptions { fit, ..options(&path, 2, 6) });
            let windows = calibration.unwrap().windows;
            for window in windows.iter() {
                assert_eq!(window[0], bos);
                assert!(!window[1..].contains(&bos) && !window.contains(&padding), "{window:?}");
            }
        }
        let only = "{\"text\": \"<|pad|><|pad|><|pad|>\"}\n".repeat(9);
        std::fs::write(&path, only).unwrap();
        let error = read(&checkpoint, &tokenizer, &options(&path, 2, 6)).unwrap_err();
        assert!(matches!(error, Error::NoDocuments { documents: 9, .. }), "{error}");
        let inside = format!("{{\"text\": \"a{}b\"}}\n", "<|pad|>".repeat(40));
        std::fs::write(&path, inside).unwrap();
        let error = read(&checkpoint, &tokenizer, &options(&path, 4, 6)).unwrap_err();
        assert!(matches!(error, Error::PaddedWindow { .. }), "{error}");
    }

    #[test]
    fn chats_need_a_template() {
        let chat =
            "{\"messages\": [{\"role\": \"user\", \"content\": \"one two three four five\"}]}\n".repeat(9);
        let error = read_file("a.jsonl", chat.as_bytes(), |_| {}).unwrap_err();
        assert!(matches!(error, Error::Text(bitmill_text::Error::NoTemplate { .. })), "{error}");
        let millet = embedded::checkpoint().unwrap();
        let tokenizer = Tokenizer::from_checkpoint(&millet).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, &chat).unwrap();
        let calibration = read(&millet, &tokenizer, &options(&path, 2, 16)).unwrap();
        let text = tokenizer.decode(&calibration.windows.tokens).unwrap();
        assert!(text.contains("<|im_start|>user"), "{text}");
    }
}
