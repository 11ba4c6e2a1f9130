//! GGUF models in several files.

mod common;

use std::path::{Path, PathBuf};

use bitmill_checkpoint::{Checkpoint, Error};
use common::Gguf;

/// Writes the tiny model as three parts, each changed by `change` (its number from 0), and gives their paths.
fn write(folder: &Path, change: impl Fn(usize, &mut Gguf)) -> Vec<PathBuf> {
    let whole = Gguf::tiny("llama");
    let n_tensors = whole.tensors.len();
    let per_part = n_tensors.div_ceil(3);
    (0..3)
        .map(|part| {
            let mut gguf = Gguf::empty();
            if part == 0 {
                gguf.keys = whole.keys.clone();
            }
            gguf.set("split.no", 2, (part as u16).to_le_bytes().to_vec());
            gguf.set("split.count", 2, 3u16.to_le_bytes().to_vec());
            gguf.set("split.tensors.count", 5, (n_tensors as i32).to_le_bytes().to_vec());
            for (name, dims, id, offset) in whole.tensors.iter().skip(part * per_part).take(per_part) {
                let bytes = 4 * dims.iter().product::<u64>() as usize;
                gguf.tensor(name, dims.clone(), *id, &whole.data[*offset as usize..][..bytes]);
            }
            change(part, &mut gguf);
            let path = folder.join(format!("tiny-0000{}-of-00003.gguf", part + 1));
            std::fs::write(&path, gguf.bytes()).unwrap();
            path
        })
        .collect()
}

fn refusal(change: impl Fn(usize, &mut Gguf)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let parts = write(folder.path(), change);
    let error = Checkpoint::open(&parts[0]).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error.to_string()
}

#[test]
fn any_part_opens_the_whole_model() {
    let (one, several) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let single = one.path().join("tiny.gguf");
    std::fs::write(&single, Gguf::tiny("llama").bytes()).unwrap();
    let single = Checkpoint::open(&single).unwrap();
    for path in write(several.path(), |_, _| ()) {
        let split = Checkpoint::open(&path).unwrap();
        assert_eq!(split.name(), "tiny.gguf");
        assert_eq!(split.config(), single.config());
        assert_eq!(split.tensors(), single.tensors());
        for info in single.tensors() {
            let (a, b) = (single.tensor(&info.name).unwrap(), split.tensor(&info.name).unwrap());
            assert_eq!(format!("{:?}", a.view().data()), format!("{:?}", b.view().data()), "{}", info.name);
        }
        let sizes =
            std::fs::read_dir(several.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        assert_eq!(split.stored_bytes(), sizes.sum::<u64>());
    }
}

#[test]
fn names_the_part_that_is_missing_and_the_name_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let parts = write(folder.path(), |_, _| ());
    let renamed = folder.path().join("second.gguf");
    std::fs::rename(&parts[1], &renamed).unwrap();
    let error = Checkpoint::open(&parts[0]).unwrap_err();
    assert!(
        matches!(&error, Error::GgufPartMissing { part, .. } if part == "tiny-00002-of-00003.gguf"),
        "{error}"
    );
    let error = Checkpoint::open(&renamed).unwrap_err();
    assert!(error.to_string().contains("its name does not end in `-00002-of-00003.gguf`"), "{error}");
}

#[test]
fn refuses_parts_that_disagree() {
    let said = refusal(|part, gguf| {
        if part == 2 {
            gguf.set("split.no", 2, 1u16.to_le_bytes().to_vec());
        }
    });
    assert!(said.contains("-00003-of-") && said.contains("part 2 of 3"), "{said}");
    let said = refusal(|part, gguf| {
        if part == 1 {
            gguf.set("split.tensors.count", 5, 4i32.to_le_bytes().to_vec());
        }
    });
    assert!(said.contains("with 4 tensors in all"), "{said}");
    let said = refusal(|_, gguf| gguf.set("split.tensors.count", 5, 400i32.to_le_bytes().to_vec()));
    assert!(said.contains("`split.tensors.count` is 400"), "{said}");
    let said = refusal(|part, gguf| {
        if part == 1 {
            gguf.keys.clear();
        }
    });
    assert!(said.contains("no part of a split model"), "{said}");
    let said = refusal(|part, gguf| {
        if part == 2 {
            gguf.text("general.architecture", "qwen2");
        }
    });
    assert!(said.contains("`general.architecture` is not that of the first part"), "{said}");
    let said = refusal(|part, gguf| {
        if part == 2 {
            gguf.tensor("token_embd.weight", vec![1], 0, &[0; 4]);
        }
    });
    assert!(said.contains("`token_embd.weight` appears twice"), "{said}");
    let said = refusal(|_, gguf| gguf.set("split.no", 4, 7u32.to_le_bytes().to_vec()));
    assert!(said.contains("number of this part"), "{said}");
    let said = refusal(|_, gguf| gguf.set("split.count", 4, u32::MAX.to_le_bytes().to_vec()));
    assert!(said.contains("number of parts"), "{said}");
}

#[test]
fn one_part_of_one_is_a_plain_file() {
    let mut gguf = Gguf::tiny("llama");
    gguf.set("split.count", 2, 1u16.to_le_bytes().to_vec());
    assert!(common::open_gguf(&gguf.bytes()).is_ok());
    gguf.set("split.count", 2, 2u16.to_le_bytes().to_vec());
    assert!(
        matches!(common::open_gguf(&gguf.bytes()), Err(Error::GgufMissingKey { key, .. }) if key == "split.no")
    );
    gguf.set("split.count", 8, common::string("two"));
    assert!(
        matches!(common::open_gguf(&gguf.bytes()), Err(Error::GgufKeyType { key, .. }) if key == "split.count")
    );
}
