//! Outputs that a run left unfinished: gone on with by the same run, refused to another, never in the way of what was there.

use std::fs;
use std::path::Path;

use bitmill_checkpoint::{
    Error, FolderWriter, GgufOptions, GgufTensorSpec, GgufWriter, Identity, Overwrite, StTensorSpec, Target,
    discard_partial, finish_interrupted,
};
use bitmill_tensor::{Dtype, Encoding, FloatType};
use serde_json::json;

fn target(path: &Path, overwrite: Overwrite) -> Target {
    Target { path: path.to_owned(), overwrite }
}

fn identity(recipe: &str) -> Identity {
    let mut identity = Identity::default();
    identity.add("version", "1");
    identity.add("recipe", recipe);
    identity
}

fn specs() -> Vec<GgufTensorSpec> {
    let spec = |name: &str, n: usize| GgufTensorSpec {
        name: name.to_owned(),
        shape: vec![n],
        encoding: Encoding::Float(FloatType::F32),
    };
    vec![spec("a", 16), spec("b", 24), spec("c", 8)]
}

fn bytes_of(tensor: usize) -> Vec<u8> {
    let len = specs()[tensor].shape[0] * 4;
    (0..len).map(|i| (i * 7 + tensor) as u8).collect()
}

/// Everything in `folder`, hidden files too.
fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn gguf(path: &Path, overwrite: Overwrite, recipe: &str) -> Result<GgufWriter, Error> {
    let options = GgufOptions { beside: vec!["x.json".into()], ..GgufOptions::default() };
    GgufWriter::resume(&target(path, overwrite), &[], &specs(), options, identity(recipe))
}

#[test]
fn a_file_is_gone_on_with_and_the_old_one_stays_until_it_is_whole() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.gguf");
    fs::write(&path, "old").unwrap();
    let writer = gguf(&path, Overwrite::Force, "q8").unwrap();
    assert!(writer.finished().is_empty());
    writer.write_at(0, 0, &bytes_of(0)).unwrap();
    writer.note(&[json!({"name": "a"})]).unwrap();
    // Written, and not noted: it is written again.
    writer.write_at(1, 0, &[0xff; 96]).unwrap();
    writer.keep(true);
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(place.path()), [".x.gguf.bitmill-partial", "x.gguf"]);

    let writer = gguf(&path, Overwrite::Force, "q8").unwrap();
    assert_eq!(writer.finished(), [json!({"name": "a"})]);
    writer.count_written(0, 64);
    for tensor in [1, 2] {
        writer.write_at(tensor, 0, &bytes_of(tensor)).unwrap();
    }
    writer.add_file("x.json", b"{}").unwrap();
    writer.finish().unwrap();
    assert_eq!(listing(place.path()), ["x.gguf", "x.json"]);

    let whole = place.path().join("whole.gguf");
    let writer = GgufWriter::create(&target(&whole, Overwrite::Refuse), &[], &specs()).unwrap();
    (0..3).for_each(|tensor| writer.write_at(tensor, 0, &bytes_of(tensor)).unwrap());
    writer.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&whole).unwrap());
}

#[test]
fn another_run_is_refused_by_what_differs_until_it_is_told_to_discard() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.gguf");
    assert!(!discard_partial(&path).unwrap());
    gguf(&path, Overwrite::Refuse, "q8").unwrap().keep(true);
    let error = gguf(&path, Overwrite::Refuse, "q4").unwrap_err();
    assert!(matches!(error, Error::OtherPartial { .. }), "{error}");
    assert!(error.to_string().contains("another recipe (`q8` there, `q4` here)"), "{error}");
    assert!(error.hint().unwrap().contains("--restart"));
    // The refusal took nothing away.
    assert!(gguf(&path, Overwrite::Refuse, "q8").is_ok());
    assert!(discard_partial(&path).unwrap());
    assert_eq!(listing(place.path()), [""; 0]);
    assert!(gguf(&path, Overwrite::Refuse, "q4").is_ok());
}

#[test]
fn two_runs_do_not_write_one_output() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.gguf");
    let first = gguf(&path, Overwrite::Refuse, "q8").unwrap();
    for result in [gguf(&path, Overwrite::Refuse, "q8").map(drop), discard_partial(&path).map(drop)] {
        assert!(matches!(result, Err(Error::TargetBusy { .. })), "{result:?}");
    }
    drop(first);
    assert!(gguf(&path, Overwrite::Refuse, "q8").is_ok());
}

#[test]
fn a_target_that_appeared_is_not_replaced_and_what_was_left_is_not_touched() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.gguf");
    gguf(&path, Overwrite::Refuse, "q8").unwrap().keep(true);
    fs::write(&path, "mine").unwrap();
    assert!(matches!(gguf(&path, Overwrite::Refuse, "q8"), Err(Error::TargetExists { .. })));
    assert_eq!(listing(place.path()), [".x.gguf.bitmill-partial", "x.gguf"]);
}

#[test]
fn a_file_of_another_length_is_no_partial_output() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.gguf");
    gguf(&path, Overwrite::Refuse, "q8").unwrap().keep(true);
    let staged = place.path().join(".x.gguf.bitmill-partial/output/x.gguf");
    fs::write(&staged, "short").unwrap();
    let error = gguf(&path, Overwrite::Refuse, "q8").unwrap_err();
    assert!(matches!(error, Error::DamagedPartial { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--restart"));
}

#[test]
fn a_folder_is_gone_on_with_and_exchanged_for_the_old_one() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("out");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("config.json"), "old").unwrap();
    let specs: Vec<StTensorSpec> =
        ["a", "b"].map(|name| StTensorSpec { name: name.into(), shape: vec![40], dtype: Dtype::U8 }).into();
    // A shard for each tensor.
    let open = || {
        let target = target(&path, Overwrite::Force);
        FolderWriter::resume(&target, &specs, 40, identity("w4")).unwrap()
    };
    let writer = open();
    writer.add_file("config.json", b"new").unwrap();
    writer.write_at(0, 0, &[1; 40]).unwrap();
    writer.note(&[json!("a")]).unwrap();
    writer.keep(true);
    drop(writer);
    assert_eq!(fs::read(path.join("config.json")).unwrap(), b"old");

    let writer = open();
    assert_eq!(writer.finished(), [json!("a")]);
    writer.count_written(0);
    writer.add_file("config.json", b"new").unwrap();
    writer.write_at(1, 0, &[2; 40]).unwrap();
    let written = writer.finish().unwrap();
    assert_eq!(listing(place.path()), ["out"]);
    assert_eq!(listing(&path).len(), written.files.len());
    assert_eq!(fs::read(path.join("config.json")).unwrap(), b"new");
    let shard = fs::read(path.join("model-00001-of-00002.safetensors")).unwrap();
    assert!(shard.ends_with(&[1; 40]));
}

#[test]
fn nothing_is_put_in_place_that_was_not_whole() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.gguf");
    let target = target(&path, Overwrite::Refuse);
    assert!(finish_interrupted(&target, &identity("q8")).unwrap().is_none());
    assert_eq!(listing(place.path()), [""; 0]);
    gguf(&path, Overwrite::Refuse, "q8").unwrap().keep(true);
    assert!(finish_interrupted(&target, &identity("q8")).unwrap().is_none());
    assert_eq!(listing(place.path()), [".x.gguf.bitmill-partial"]);
}

#[test]
fn a_model_is_split_by_the_size_of_its_tensors_and_read_from_any_part() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("x.gguf");
    // 64, 96 and 32 bytes: the second does not fit beside the first, the third does beside the second.
    let options = GgufOptions { split_bytes: Some(128), beside: Vec::new() };
    let target = target(&path, Overwrite::Refuse);
    let writer = GgufWriter::resume(&target, &[], &specs(), options, Identity::default()).unwrap();
    (0..3).for_each(|tensor| writer.write_at(tensor, 0, &bytes_of(tensor)).unwrap());
    let total = writer.total_bytes();
    let written = writer.finish().unwrap();
    assert_eq!(listing(place.path()), ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"]);
    assert_eq!(written.files.iter().map(|(path, _)| fs::metadata(path).unwrap().len()).sum::<u64>(), total);
    let first = fs::read(place.path().join("x-00001-of-00002.gguf")).unwrap();
    assert!(first.ends_with(&bytes_of(0)));
    let second = fs::read(place.path().join("x-00002-of-00002.gguf")).unwrap();
    assert!(second.ends_with(&[bytes_of(1), bytes_of(2)].concat()));
    // A part that is there already is in the way, whatever the target itself is called.
    fs::remove_file(place.path().join("x-00001-of-00002.gguf")).unwrap();
    let options = GgufOptions { split_bytes: Some(128), beside: Vec::new() };
    let error = GgufWriter::resume(&target, &[], &specs(), options, Identity::default()).unwrap_err();
    assert!(error.to_string().contains("x-00002-of-00002.gguf"), "{error}");
}
