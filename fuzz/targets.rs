//! Every reader of what others wrote, as a function of bytes: it may refuse them, and may not panic, hang or take memory
//! that the bytes do not account for.
//!
//! libFuzzer feeds them here (`main.rs`); `crates/pipeline/tests/fuzz_corpus.rs` replays `corpus/NAME` through the same table
//! in every test run. A new reader is a row in [`TARGETS`], its function, and a seed in that test.

use std::path::Path;

use bitmill_checkpoint::{
    Checkpoint, FolderWriter, GgufTokenizer, Identity, Imatrix, Overwrite, Region, Role, Target as Output,
    finish_interrupted,
};
use bitmill_eval::Baseline;
use bitmill_hub::{hugging_face_listing, model_scope_listing};
use bitmill_pipeline::{Format, Plan, PlanOptions, Recipe, Sensitivity, conversion};
use bitmill_text::{ChatTemplate, Documents, Message, Speaker, Task, TemplateTokens, Tokenizer};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Names, which are folders of the corpus, and what is fed.
pub const TARGETS: &[(&str, Target)] = &[
    ("gguf", gguf),
    ("folder", folder),
    ("config_json", config_json),
    ("tokenizer_json", tokenizer_json),
    ("gguf_tokenizer", gguf_tokenizer),
    ("recipe", recipe),
    ("task", task),
    ("qwen_tiktoken", qwen_tiktoken),
    ("sentencepiece", sentencepiece),
    ("tekken", tekken),
    ("chat_template", chat_template),
    ("hugging_face_listing", listing_of_hugging_face),
    ("model_scope_listing", listing_of_model_scope),
    ("baseline", baseline),
    ("sensitivity", sensitivity),
    ("imatrix", imatrix),
    ("documents_jsonl", documents_jsonl),
    ("documents_parquet", documents_parquet),
    ("journal", journal),
];

/// What tokenizers are asked to encode: letters, digits, spaces, a combining mark, another script, special tokens' texts.
const TEXT: &str = "Hello  wörld e\u{301} 123\n\t你好<|end|></s> 'll";

/// A GGUF file.
fn gguf(data: &[u8]) {
    walk(vec![("fuzz.gguf".to_owned(), Region::from_vec(data.to_vec()))]);
}

/// Files of a folder, or parts of a split GGUF: each after a line `=== NAME`.
fn folder(data: &[u8]) {
    walk(sections(data));
}

/// config.json alone.
fn config_json(data: &[u8]) {
    walk(vec![("config.json".to_owned(), Region::from_vec(data.to_vec()))]);
}

/// tokenizer.json.
fn tokenizer_json(data: &[u8]) {
    match Tokenizer::from_json(data) {
        Ok(tokenizer) => encode(&tokenizer),
        Err(error) => drop((error.to_string(), error.hint())),
    }
}

/// The tokenizer keys of a GGUF file, a line each: model, pre, then `t TYPE TEXT`, `s SCORE`, `m MERGE` or `b BOS`.
fn gguf_tokenizer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let mut keys = GgufTokenizer {
        model: lines.next().unwrap_or_default().to_owned(),
        pre: lines.next().unwrap_or_default().to_owned(),
        ..GgufTokenizer::default()
    };
    for line in lines {
        let (kind, rest) = line.split_at_checked(2).unwrap_or_default();
        match kind {
            "t " => {
                let (kind, token) = rest.split_once(' ').unwrap_or_default();
                keys.token_types.push(kind.parse().unwrap_or(1));
                keys.tokens.push(token.to_owned());
            }
            "s " => keys.scores.get_or_insert_default().push(rest.parse().unwrap_or(0.0)),
            "m " => keys.merges.push(rest.to_owned()),
            "b " => keys.bos = rest.parse().ok(),
            _ => {}
        }
    }
    match Tokenizer::from_gguf(&keys) {
        Ok(tokenizer) => encode(&tokenizer),
        Err(error) => drop((error.to_string(), error.hint())),
    }
    drop(Tokenizer::folder_files(&keys, 128));
}

/// A recipe's TOML.
fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Recipe::parse(text, Path::new("fuzz.toml")) {
        Ok(recipe) => {
            let again = recipe.to_toml();
            assert_eq!(Recipe::parse(&again, Path::new("again.toml")).ok(), Some(recipe), "{again}");
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
}

/// The JSON lines of a task.
fn task(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Task::from_jsonl("fuzz", text) {
        drop((error.to_string(), error.hint()));
    }
}

/// The ranks of Qwen's first generation.
fn qwen_tiktoken(data: &[u8]) {
    vocabulary("qwen.tiktoken", data);
}

/// SentencePiece's protocol buffer.
fn sentencepiece(data: &[u8]) {
    vocabulary("tokenizer.model", data);
}

/// Mistral's tekken.json.
fn tekken(data: &[u8]) {
    vocabulary("tekken.json", data);
}

/// A chat template: it may refuse, and ends within its fuel.
fn chat_template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let tokens =
        TemplateTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), ..TemplateTokens::default() };
    let template = match ChatTemplate::new(source, tokens) {
        Ok(template) => template,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    let message = |speaker, content: &str| Message { speaker, content: content.into() };
    let messages = [
        message(Speaker::System, "Be brief."),
        message(Speaker::User, TEXT),
        message(Speaker::Assistant, "<think>\n</think> 2"),
        message(Speaker::User, ""),
    ];
    for count in [0, 2, 4] {
        if let Err(error) = template.render(&messages[..count], count % 4 == 0) {
            drop((error.to_string(), error.hint()));
        }
    }
}

/// What Hugging Face answers.
fn listing_of_hugging_face(data: &[u8]) {
    match hugging_face_listing("https://example.com/api", data) {
        Ok((commit, files)) => {
            assert_eq!(commit.len(), 40);
            files.iter().for_each(|file| stays_inside(&file.path));
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
}

/// What ModelScope answers.
fn listing_of_model_scope(data: &[u8]) {
    match model_scope_listing("https://example.com/api", data) {
        Ok(files) => files.iter().for_each(|file| stays_inside(&file.path)),
        Err(error) => drop((error.to_string(), error.hint())),
    }
}

fn stays_inside(path: &str) {
    assert!(!path.starts_with('/') && path.split('/').all(|part| !["", ".", ".."].contains(&part)), "{path}");
}

/// A baseline; its checksum is made right first, for no fuzzer guesses it.
fn baseline(data: &[u8]) {
    drop(Baseline::from_bytes("fuzz", data).map_err(|error| error.to_string()));
    let Some((body, _)) = data.split_last_chunk::<8>() else { return };
    let right = [body, &xxhash_rust::xxh3::xxh3_64(body).to_le_bytes()].concat();
    if let Ok(baseline) = Baseline::from_bytes("fuzz", &right) {
        let Ok(again) = baseline.to_bytes() else { return };
        let again = Baseline::from_bytes("again", &again).map_err(|error| error.to_string());
        assert_eq!(again, Ok(baseline));
    }
}

/// A table of sensitivities.
fn sensitivity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Sensitivity::parse(text, Path::new("fuzz.json")) {
        drop((error.to_string(), error.hint()));
    }
}

/// An importance matrix, of either form.
fn imatrix(data: &[u8]) {
    let imatrix = match Imatrix::from_bytes(Path::new("fuzz.gguf"), &Region::from_vec(data.to_vec())) {
        Ok(imatrix) => imatrix,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    for (name, entry) in &imatrix.entries {
        let (role, matrices) = (Role::from_gguf_name(name), entry.counts.len());
        if let Ok(Some(importance)) = imatrix.importance(role, entry.sums.len() / matrices, matrices) {
            assert!(importance.iter().all(|value| value.is_finite() && *value >= 0.0), "{name}");
        }
    }
}

/// Calibration texts and chats, a JSON object a line.
fn documents_jsonl(data: &[u8]) {
    documents(Documents::from_jsonl("fuzz.jsonl", data));
}

/// The same in a Parquet file.
fn documents_parquet(data: &[u8]) {
    documents(Documents::from_parquet("fuzz.parquet", data));
}

fn documents(read: Result<Documents, bitmill_text::Error>) {
    let documents = match read {
        Ok(documents) => documents,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    let source = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}";
    let Ok(template) = ChatTemplate::new(source, TemplateTokens::default()) else { panic!("{source}") };
    for document in documents.items.iter().take(64) {
        drop(documents.render(document, Some(&template)).map_err(|error| error.to_string()));
    }
}

/// The journal of an interrupted run, line by line without their hashes, which are put before them; the last line may be torn.
fn journal(data: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let inside = folder.path().join("inside");
    let partial = inside.join(".out.bitmill-partial");
    let mut lines = Vec::new();
    for line in data.split_inclusive(|&byte| byte == b'\n') {
        let entry = line.strip_suffix(b"\n").unwrap_or(line);
        lines.extend_from_slice(format!("{:016x} ", xxhash_rust::xxh3::xxh3_64(entry)).as_bytes());
        lines.extend_from_slice(line);
    }
    let left = std::fs::create_dir_all(partial.join("output"));
    if left.and_then(|()| std::fs::write(partial.join("journal"), lines)).is_err() {
        return;
    }
    let output = Output { path: inside.join("out"), overwrite: Overwrite::Refuse };
    let mut identity = Identity::default();
    identity.add("version", "1");
    if let Err(error) = finish_interrupted(&output, &identity) {
        drop((error.to_string(), error.hint()));
    }
    match FolderWriter::resume(&output, &[], 1, identity) {
        Ok(writer) => drop(writer.finished().to_vec()),
        Err(error) => drop((error.to_string(), error.hint())),
    }
    assert!(std::fs::read_dir(folder.path()).is_ok_and(|all| all.count() == 1), "nothing is put elsewhere");
}

/// A folder's tokenizer from `file` alone.
fn vocabulary(file: &str, data: &[u8]) {
    match Tokenizer::from_file(file, data) {
        Ok(tokenizer) => encode(&tokenizer),
        Err(error) => drop((error.to_string(), error.hint())),
    }
}

/// Opens files and touches all that a command would before it reads weights.
fn walk(files: Vec<(String, Region)>) {
    let checkpoint = match Checkpoint::from_files("fuzz", files) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return drop((error.to_string(), error.hint())),
    };
    for info in checkpoint.tensors() {
        let Ok(tensor) = checkpoint.tensor(&info.name) else {
            panic!("`{}` is listed and not there", info.name)
        };
        assert_eq!(
            tensor.view().out_features() * tensor.view().in_features(),
            info.shape.iter().product::<usize>()
        );
    }
    drop(checkpoint.chat_template());
    if let Ok(tokenizer) = Tokenizer::from_checkpoint(&checkpoint) {
        encode(&tokenizer);
    }
    for format in [Format::Gguf, Format::HuggingFace] {
        match Plan::new(&checkpoint, &conversion(format, None), &PlanOptions::default()) {
            Ok(plan) => drop((plan.to_text(), plan.to_json())),
            Err(error) => drop((error.to_string(), error.hint())),
        }
    }
}

fn encode(tokenizer: &Tokenizer) {
    if let Ok(tokens) = tokenizer.encode_document(TEXT) {
        drop(tokenizer.decode(&tokens));
    }
    drop(tokenizer.decode(&[0, 1, 2, u32::MAX]));
}

/// The files in `data`, each after a line `=== NAME`.
pub fn sections(data: &[u8]) -> Vec<(String, Region)> {
    const MARK: &[u8] = b"=== ";
    let mut files = Vec::new();
    let mut rest = data.strip_prefix(MARK);
    while let Some(section) = rest {
        let end_of_name = section.iter().position(|&byte| byte == b'\n').unwrap_or(section.len());
        let name = String::from_utf8_lossy(&section[..end_of_name]).into_owned();
        let body = section.get(end_of_name + 1..).unwrap_or_default();
        let next = body.windows(MARK.len() + 1).position(|window| window[0] == b'\n' && window[1..] == *MARK);
        let bytes = &body[..next.unwrap_or(body.len())];
        files.push((name, Region::from_vec(bytes.to_vec())));
        rest = next.map(|next| &body[next + 1 + MARK.len()..]);
    }
    files
}
