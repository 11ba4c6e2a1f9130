//! Names files and folders that are no checkpoint but often taken for one, and says the way out.
//!
//! Limits: of a zip archive the last 64 KiB and its list of names are read, at most 100 000 entries of it.

use std::path::Path;

use crate::Error;

/// The way from PyTorch's format to one that is read.
const SAVE_AGAIN: &str = "save it as safetensors with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT); \
    or fetch the safetensors files that most publishers have beside it";

/// What stands in the place of a file that should hold weights or JSON; `None` if it may be what it should.
pub(crate) fn stand_in(path: &Path, bytes: &[u8]) -> Option<Error> {
    let refuse = |found: &str, way_out: &str| {
        Some(Error::Foreign { path: path.to_owned(), found: found.to_owned(), way_out: way_out.to_owned() })
    };
    if bytes.is_empty() {
        return refuse("it is empty", "the download or copy was interrupted: fetch the file again");
    }
    if bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(512)]);
        let size = text.lines().find_map(|line| line.strip_prefix("size ")?.parse::<u64>().ok());
        let size = size.map_or_else(String::new, |size| format!(" of {size} bytes"));
        return refuse(
            &format!("a Git LFS pointer: the file{size} that it stands for was not fetched"),
            "run `git lfs pull` in the model's folder",
        );
    }
    let start = bytes.trim_ascii_start();
    let begins = |tag: &[u8]| start.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    if begins(b"<!doctype html") || begins(b"<html") {
        return refuse(
            "a web page saved under this name",
            "the server answered with a page, perhaps one that asks to log in or to accept a licence: do that, then fetch the \
             file again",
        );
    }
    None
}

/// Why a file that is no GGUF file is no checkpoint.
pub(crate) fn file(path: &Path, bytes: &[u8]) -> Error {
    if let Some(error) = stand_in(path, bytes) {
        return error;
    }
    let refuse = |found: &str, way_out: &str| Error::Foreign {
        path: path.to_owned(),
        found: found.to_owned(),
        way_out: way_out.to_owned(),
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is = |ends: &[&str]| ends.iter().any(|end| name.to_ascii_lowercase().ends_with(end));
    if bytes.starts_with(b"PK") {
        return archive(path, bytes);
    }
    // Pickles of protocol 2 and later begin so.
    if is(&[".bin", ".pt", ".pth", ".ckpt"]) || bytes.starts_with(&[0x80, 2]) {
        return refuse("a PyTorch checkpoint, which can run code when it is opened", SAVE_AGAIN);
    }
    if is(&[".onnx", ".onnx_data"]) {
        return refuse("an ONNX graph", "start from the checkpoint that it was exported from");
    }
    if is(&[".h5", ".msgpack", ".tflite"]) {
        return refuse("a checkpoint of another framework", "fetch the model's safetensors files");
    }
    if is(&[".safetensors", ".safetensors.index.json"]) || name == "config.json" {
        return refuse(
            "one file of a Hugging Face folder",
            "name the folder: config.json, the weights and the tokenizer belong together",
        );
    }
    Error::NotACheckpoint { path: path.to_owned(), problem: "neither a folder nor a GGUF file".to_owned() }
}

/// Why a folder without readable weights, or without a config, is no checkpoint; `names` are its files.
pub(crate) fn folder(path: &Path, names: &[String], problem: &str) -> Error {
    let refuse = |found: String, way_out: &str| Error::Foreign {
        path: path.to_owned(),
        found,
        way_out: way_out.to_owned(),
    };
    let find = |is: &dyn Fn(&str) -> bool| names.iter().find(|name| is(name));
    if let Some(consolidated) = find(&|name| {
        name.starts_with("consolidated") && (name.ends_with(".safetensors") || name.ends_with(".pth"))
    }) {
        return refuse(
            format!("{problem}: {consolidated} is Mistral's or Meta's own format"),
            "fetch the Hugging Face files of the same model: config.json, model*.safetensors and the tokenizer",
        );
    }
    if let Some(gguf) = find(&|name| name.ends_with(".gguf")) {
        return refuse(format!("{problem}, but there is {gguf}"), "name the .gguf file itself");
    }
    let ends = [".bin", ".pt", ".pth", ".ckpt"];
    if let Some(pickle) =
        find(&|name| ends.iter().any(|end| name.ends_with(end)) && name != "training_args.bin")
    {
        return refuse(format!("{problem}: {pickle} is a PyTorch checkpoint"), SAVE_AGAIN);
    }
    let others = [".onnx", ".h5", ".msgpack", ".ot"];
    if let Some(other) = find(&|name| others.iter().any(|end| name.ends_with(end))) {
        return refuse(
            format!("{problem}: {other} is a checkpoint of another framework"),
            "fetch the model's safetensors files",
        );
    }
    Error::NotACheckpoint { path: path.to_owned(), problem: problem.to_owned() }
}

/// A zip archive, which a wheel and a PyTorch checkpoint are too: named with the model inside.
fn archive(path: &Path, bytes: &[u8]) -> Error {
    let refuse = |found: String, way_out: String| Error::Foreign { path: path.to_owned(), found, way_out };
    let names = zip_names(bytes).unwrap_or_default();
    let shown = path.display();
    let find = |ends: &str| names.iter().find(|name| name.ends_with(ends));
    if let Some(gguf) = find(".gguf") {
        return refuse(
            format!("a zip archive that holds the GGUF file {gguf}"),
            format!("take it out first: unzip {} {} -d DIR", quoted(&shown.to_string()), quoted(gguf)),
        );
    }
    if let Some(weights) = find(".safetensors") {
        let folder = weights.rsplit_once('/').map_or("*", |(folder, _)| folder);
        let pattern = if folder == "*" { folder.to_owned() } else { format!("{folder}/*") };
        return refuse(
            format!("a zip archive that holds {weights}"),
            format!(
                "take the folder out first: unzip {} {} -d DIR",
                quoted(&shown.to_string()),
                quoted(&pattern)
            ),
        );
    }
    if find("data.pkl").is_some() {
        let found = "a PyTorch checkpoint, which can run code when it is opened".to_owned();
        return refuse(found, SAVE_AGAIN.to_owned());
    }
    refuse(
        "a zip archive without a GGUF or safetensors file".to_owned(),
        "a model is a Hugging Face folder or a .gguf file: name one of these".to_owned(),
    )
}

/// For a shell, and without anything that would act on a terminal.
fn quoted(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("'{}'", printable.replace('\'', r"'\''"))
}

/// The names in the central directory of a zip archive; `None` if it has none that can be read.
///
/// ```text
/// end record    "PK\5\6", 6 bytes, u16 entries, u32 directory bytes, u32 directory offset, u16 comment length
/// each entry    "PK\1\2", 24 bytes, u16 name length, u16 extra length, u16 comment length, 12 bytes, name, extra, comment
/// ```
fn zip_names(bytes: &[u8]) -> Option<Vec<String>> {
    const END: usize = 22;
    const ENTRY: usize = 46;
    const MOST_ENTRIES: usize = 100_000;
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize);
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    // A comment of up to 64 KiB may follow the end record.
    let earliest = bytes.len().checked_sub(END)?.saturating_sub(usize::from(u16::MAX));
    let end = (earliest..=bytes.len() - END).rev().find(|&at| bytes[at..].starts_with(b"PK\x05\x06"))?;
    let mut at = u32_at(end + 16)?;
    let mut names = Vec::new();
    while names.len() < MOST_ENTRIES && bytes.get(at..at.checked_add(4)?)? == b"PK\x01\x02" {
        let (name, extra, comment) = (u16_at(at + 28)?, u16_at(at + 30)?, u16_at(at + 32)?);
        names.push(String::from_utf8_lossy(bytes.get(at + ENTRY..at + ENTRY + name)?).into_owned());
        at = at.checked_add(ENTRY + name + extra + comment)?;
    }
    Some(names)
}
