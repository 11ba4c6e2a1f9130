//! What is no checkpoint but often taken for one is named, with the way out.

mod common;

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, Error};
use common::{config, write_folder};

/// A zip archive of files without content, as `zip` lays it out.
fn zip(names: &[&str]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for name in names {
        let at = bytes.len() as u32;
        let length = (name.len() as u16).to_le_bytes();
        bytes.extend_from_slice(b"PK\x03\x04");
        bytes.extend_from_slice(&[0; 22]);
        bytes.extend_from_slice(&length);
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(name.as_bytes());
        directory.extend_from_slice(b"PK\x01\x02");
        directory.extend_from_slice(&[0; 24]);
        directory.extend_from_slice(&length);
        directory.extend_from_slice(&[0; 12]);
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (start, length) = (bytes.len() as u32, directory.len() as u32);
    bytes.extend(directory);
    bytes.extend_from_slice(b"PK\x05\x06");
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(names.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&(names.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes
}

/// Message and hint of the refusal of one file.
fn of_file(name: &str, bytes: &[u8]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &[(name, bytes)]);
    said(&folder.path().join(name))
}

fn of_folder(files: &[(&str, &[u8])]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), files);
    said(folder.path())
}

fn said(path: &Path) -> (String, String) {
    let error = Checkpoint::open(path).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    (error.to_string(), error.hint().unwrap())
}

#[test]
fn archives_are_named_with_the_model_inside() {
    let (said, hint) =
        of_file("llm.whl", &zip(&["llm/__init__.py", "llm/it's a.gguf", "llm.dist-info/RECORD"]));
    assert!(said.contains("holds the GGUF file llm/it's a.gguf"), "{said}");
    assert!(hint.contains("unzip '") && hint.ends_with("llm.whl' 'llm/it'\\''s a.gguf' -d DIR"), "{hint}");
    let (said, hint) = of_file("m.zip", &zip(&["m/config.json", "m/model.safetensors"]));
    assert!(said.contains("holds m/model.safetensors") && hint.ends_with("'m/*' -d DIR"), "{said}: {hint}");
    assert!(of_file("m.pt", &zip(&["archive/data.pkl", "archive/data/0"])).0.contains("PyTorch"));
    assert!(of_file("m.zip", &zip(&["a.txt"])).0.contains("without a GGUF"));
    // Damaged ones are archives still.
    let whole = zip(&["a/b.gguf"]);
    for end in 4..whole.len() {
        assert!(of_file("m.gguf", &whole[..end]).0.contains("zip archive"), "{end}");
    }
    for at in 0..whole.len() - 4 {
        let mut bad = whole.clone();
        bad[at + 3] = 0xff;
        of_file("m.zip", &bad);
    }
}

#[test]
fn stand_ins_for_weights_are_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n";
    let config = config("llama").to_string().into_bytes();
    let page = b"\n<!DOCTYPE HTML><title>Log in</title>";
    for (bytes, found, way) in [
        (&pointer[..], "988097824 bytes", "git lfs pull"),
        (&page[..], "a web page", "fetch"),
        (&b""[..], "it is empty", "fetch"),
    ] {
        let (said, hint) = of_file("m.gguf", bytes);
        assert!(said.contains(found) && hint.contains(way), "{said}: {hint}");
        for name in ["model.safetensors", "model.safetensors.index.json"] {
            let folder = tempfile::tempdir().unwrap();
            write_folder(folder.path(), &[("config.json", &config), (name, bytes)]);
            let error = Checkpoint::open(folder.path()).unwrap_err();
            assert!(matches!(&error, Error::Foreign { path, .. } if path.ends_with(name)), "{error:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &[("config.json", bytes)]);
        assert!(Checkpoint::open(folder.path()).unwrap_err().to_string().contains(found));
    }
}

#[test]
fn pickles_and_other_frameworks_are_refused_with_the_way_out() {
    for name in ["pytorch_model.bin", "model.pth", "model.pt", "model.ckpt"] {
        let (said, hint) = of_file(name, b"\x80\x02}q\x00");
        assert!(said.contains("PyTorch") && hint.contains("save_pretrained"), "{said}: {hint}");
    }
    assert!(of_file("model", b"\x80\x02}q\x00").0.contains("PyTorch"));
    assert!(of_file("model.onnx", b"\x08\x07").0.contains("ONNX"));
    assert!(of_file("model.safetensors", b"12345678").1.contains("name the folder"));

    let config = config("llama").to_string().into_bytes();
    for name in ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter.pt"] {
        for with_config in [true, false] {
            let mut files: Vec<(&str, &[u8])> = vec![(name, b"\x80\x02")];
            if with_config {
                files.push(("config.json", &config));
            }
            let (said, hint) = of_folder(&files);
            assert!(said.contains(name) && hint.contains("safetensors"), "{said}: {hint}");
        }
    }
    let (said, hint) = of_folder(&[("consolidated.safetensors", b"x"), ("params.json", b"{}")]);
    assert!(
        said.contains("consolidated.safetensors") && hint.contains("Hugging Face files"),
        "{said}: {hint}"
    );
    let (said, _) = of_folder(&[("consolidated.safetensors", b"x"), ("config.json", &config)]);
    assert!(said.contains("consolidated.safetensors"), "{said}");
    let (said, hint) = of_folder(&[("m-q8_0.gguf", b"GGUF")]);
    assert!(said.contains("m-q8_0.gguf") && hint.contains("name the .gguf file"), "{said}: {hint}");
}
