//! Writers: what they wrote reads back byte for byte, and a target changes wholly or not at all.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bitmill_checkpoint::{
    Checkpoint, Error, FolderWriter, GgufArray, GgufTensorSpec, GgufValue, GgufWriter, Overwrite, Role,
    StTensorSpec, Target, check_gguf, folder_bytes, gguf_files, gguf_metadata,
};
use bitmill_tensor::{BlockType, Dtype, Encoding, FloatType, WeightData};
use common::{Stored, config, open_config, tensors};
use serde_json::json;

fn target(path: &Path, overwrite: Overwrite) -> Target {
    Target { path: path.to_owned(), overwrite }
}

fn specs(tensors: &[Stored]) -> Vec<StTensorSpec> {
    tensors
        .iter()
        .map(|(name, _, shape, _)| StTensorSpec {
            name: name.clone(),
            shape: shape.clone(),
            dtype: Dtype::F32,
        })
        .collect()
}

/// Writes the tiny model, every tensor in two halves, last tensor first.
fn write_folder(target: &Target, shard_bytes: u64) -> Result<bitmill_checkpoint::Written, Error> {
    let stored = tensors("llama");
    let writer = FolderWriter::create(target, &specs(&stored), shard_bytes)?;
    writer.add_file("config.json", config("llama").to_string().as_bytes())?;
    for (index, (.., bytes)) in stored.iter().enumerate().rev() {
        let half = bytes.len() / 2;
        writer.write_at(index, half as u64, &bytes[half..])?;
        writer.write_at(index, 0, &bytes[..half])?;
    }
    let total = writer.total_bytes();
    let written = writer.finish()?;
    assert_eq!(written.bytes, total);
    Ok(written)
}

fn bytes_of(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let tensor = checkpoint.tensor(name).unwrap();
    match tensor.view().data() {
        WeightData::Float { bytes, .. } | WeightData::Block { bytes, .. } => bytes.to_vec(),
        _ => panic!("not packed"),
    }
}

/// Everything in `folder`, hidden files too.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn folders_read_back_byte_for_byte_whatever_the_shards() {
    let stored = tensors("llama");
    // As many shards as huggingface_hub's `split_state_dict_into_shards_factory` makes of these sizes.
    for (shard_bytes, n_shards) in [(u64::MAX, 1), (20_000, 4), (6_000, 14), (1, stored.len())] {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("out");
        let written = write_folder(&target(&path, Overwrite::Refuse), shard_bytes).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        for (name, _, _, bytes) in &stored {
            assert_eq!(&bytes_of(&checkpoint, name), bytes);
        }
        let shards = written.files.iter().filter(|(path, _)| path.extension().unwrap() == "safetensors");
        assert_eq!(shards.clone().count(), n_shards);
        for (path, _) in shards {
            // A second opinion, and what the header's padding is for: data at a multiple of 8.
            let bytes = fs::read(path).unwrap();
            let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(header % 8, 0);
            assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
            safetensors::SafeTensors::deserialize(&bytes).unwrap();
        }
        assert_eq!(listing(&path).len(), written.files.len());
        for (path, bytes) in &written.files {
            assert_eq!(fs::metadata(path).unwrap().len(), *bytes);
        }
        let config_bytes = config("llama").to_string().len() as u64;
        assert_eq!(written.bytes, folder_bytes(&specs(&stored), shard_bytes) + config_bytes);
        assert_eq!(checkpoint.stored_bytes(), folder_bytes(&specs(&stored), shard_bytes) + config_bytes);
        assert_eq!(listing(place.path()), ["out"]);
    }
}

#[test]
fn shards_are_filled_as_transformers_fills_them() {
    let spec = |name: &str, bytes: usize| StTensorSpec {
        name: name.to_owned(),
        shape: vec![bytes],
        dtype: Dtype::U8,
    };
    // `big` passes the limit alone and gets its own shard; `b` and `c` go on filling the one begun before it.
    let tensors = [spec("a", 40), spec("big", 200), spec("b", 40), spec("c", 20), spec("d", 1)];
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("out");
    let writer = FolderWriter::create(&target(&path, Overwrite::Refuse), &tensors, 100).unwrap();
    for (index, spec) in tensors.iter().enumerate() {
        writer.write_at(index, 0, &vec![index as u8; spec.shape[0]]).unwrap();
    }
    writer.finish().unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(path.join("model.safetensors.index.json")).unwrap()).unwrap();
    let shard = |number: usize| format!("model-0000{number}-of-00003.safetensors");
    assert_eq!(
        index,
        json!({"metadata": {"total_size": 301}, "weight_map":
            {"a": shard(2), "b": shard(2), "big": shard(1), "c": shard(2), "d": shard(3)}})
    );
}

#[test]
fn tensors_lie_at_multiples_of_their_element_size() {
    let spec = |name: &str, n: usize, dtype| StTensorSpec { name: name.to_owned(), shape: vec![n], dtype };
    let tensors =
        [spec("scale", 3, Dtype::BF16), spec("shape", 2, Dtype::I64), spec("packed", 1, Dtype::I32)];
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("out");
    let writer = FolderWriter::create(&target(&path, Overwrite::Refuse), &tensors, u64::MAX).unwrap();
    for (index, spec) in tensors.iter().enumerate() {
        writer.write_at(index, 0, &vec![index as u8 + 1; spec.bytes() as usize]).unwrap();
    }
    writer.finish().unwrap();
    let bytes = fs::read(path.join("model.safetensors")).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (index, spec) in tensors.iter().enumerate() {
        let data = parsed.tensor(&spec.name).unwrap().data().to_vec();
        assert_eq!(data, vec![index as u8 + 1; spec.bytes() as usize]);
        let offset = parsed.tensor(&spec.name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset % spec.dtype.size_bytes(), 0, "{}", spec.name);
    }
}

#[test]
fn gguf_reads_back_byte_for_byte() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("out.gguf");
    let source = open_config("qwen2", |_| {}).unwrap();
    check_gguf("tiny", source.config()).unwrap();
    let mut metadata = gguf_metadata(source.config(), "tiny", 0);
    let values = [
        GgufValue::U8(1),
        GgufValue::I8(-1),
        GgufValue::U16(2),
        GgufValue::I16(-2),
        GgufValue::I32(-3),
        GgufValue::U64(u64::MAX),
        GgufValue::I64(i64::MIN),
        GgufValue::F64(0.1),
        GgufValue::Bool(true),
        GgufValue::String("größer".to_owned()),
        GgufValue::Array(GgufArray::U8(vec![1, 2])),
        GgufValue::Array(GgufArray::I8(vec![-1])),
        GgufValue::Array(GgufArray::U16(vec![])),
        GgufValue::Array(GgufArray::I16(vec![-300])),
        GgufValue::Array(GgufArray::U32(vec![7; 3])),
        GgufValue::Array(GgufArray::I32(vec![-7])),
        GgufValue::Array(GgufArray::F32(vec![0.5, -0.5])),
        GgufValue::Array(GgufArray::Bool(vec![true, false])),
        GgufValue::Array(GgufArray::String(vec![String::new(), "x".to_owned()])),
        GgufValue::Array(GgufArray::U64(vec![1 << 40])),
        GgufValue::Array(GgufArray::I64(vec![-1 << 40])),
        GgufValue::Array(GgufArray::F64(vec![1e300])),
    ];
    metadata.extend(values.into_iter().enumerate().map(|(index, value)| (format!("test.{index}"), value)));
    let stored = tensors("qwen2");
    let mut tensors: Vec<(GgufTensorSpec, Vec<u8>)> = stored
        .iter()
        .map(|(name, _, shape, bytes)| {
            let name = Role::from_canonical_name(name).gguf_name().unwrap();
            (
                GgufTensorSpec { name, shape: shape.clone(), encoding: Encoding::Float(FloatType::F32) },
                bytes.clone(),
            )
        })
        .collect();
    for block in BlockType::ALL {
        let encoding = Encoding::Block(block);
        let bytes = (0..encoding.matrix_bytes(3, 256)).map(|i| i as u8).collect();
        tensors
            .push((GgufTensorSpec { name: format!("extra.{block}"), shape: vec![3, 256], encoding }, bytes));
    }
    let specs: Vec<GgufTensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let writer = GgufWriter::create(&target(&path, Overwrite::Refuse), &metadata, &specs).unwrap();
    assert_eq!(gguf_files("x", &metadata, &specs, None), [("x".to_owned(), writer.total_bytes())]);
    // From several threads, in rows.
    std::thread::scope(|scope| {
        for (index, (_, bytes)) in tensors.iter().enumerate() {
            let writer = &writer;
            scope.spawn(move || {
                for (row, part) in bytes.chunks(50).enumerate() {
                    writer.write_at(index, 50 * row as u64, part).unwrap();
                }
            });
        }
    });
    let written = writer.finish().unwrap();
    assert_eq!(written.bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(gguf_files("x", &metadata, &specs, None)[0].1, written.bytes);
    assert_eq!(written.bytes % 32, 0);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.metadata(), metadata);
    for (spec, bytes) in &tensors {
        let role = Role::from_gguf_name(&spec.name);
        let name = role.canonical_name().unwrap_or_else(|| spec.name.clone());
        assert_eq!(&bytes_of(&checkpoint, &name), bytes);
        assert_eq!(checkpoint.tensor(&name).unwrap().info.shape, spec.shape);
    }
    assert_eq!(listing(place.path()), ["out.gguf"]);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
    assert_eq!(mode & 0o111, 0);
}

#[test]
fn an_unfinished_output_leaves_nothing_behind() {
    let place = tempfile::tempdir().unwrap();
    let stored = tensors("llama");
    let folder = target(&place.path().join("folder"), Overwrite::Refuse);
    drop(FolderWriter::create(&folder, &specs(&stored), u64::MAX).unwrap());
    let writer = FolderWriter::create(&folder, &specs(&stored), u64::MAX).unwrap();
    writer.write_at(0, 0, &stored[0].3).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(
        matches!(&error, Error::Incomplete { tensor, written: 0, .. } if *tensor == stored[1].0),
        "{error}"
    );

    let file = target(&place.path().join("x.gguf"), Overwrite::Refuse);
    let spec = GgufTensorSpec { name: "a".into(), shape: vec![4], encoding: Encoding::Float(FloatType::F32) };
    let writer = GgufWriter::create(&file, &[], &[spec]).unwrap();
    writer.write_at(0, 4, &[1; 12]).unwrap();
    assert!(matches!(writer.finish(), Err(Error::Incomplete { written: 12, expected: 16, .. })));
    assert_eq!(listing(place.path()), [""; 0]);
}

#[test]
fn refuses_writes_outside_a_tensor() {
    let place = tempfile::tempdir().unwrap();
    let target = target(&place.path().join("x.gguf"), Overwrite::Refuse);
    let spec = GgufTensorSpec { name: "a".into(), shape: vec![4], encoding: Encoding::Float(FloatType::F32) };
    let writer = GgufWriter::create(&target, &[], &[spec]).unwrap();
    for (offset, len) in [(0, 17), (16, 1), (u64::MAX, 1), (u64::MAX - 1, 2)] {
        let result = writer.write_at(0, offset, &vec![0; len]);
        assert!(matches!(result, Err(Error::WriteOutside { size: 16, .. })), "{offset} {len}");
    }
    writer.write_at(0, 16, &[]).unwrap();
}

#[test]
fn refuses_specs_that_the_formats_cannot_hold() {
    let place = tempfile::tempdir().unwrap();
    let gguf = |metadata: &[(String, GgufValue)], specs: &[GgufTensorSpec]| {
        let target = target(&place.path().join("x.gguf"), Overwrite::Refuse);
        assert!(matches!(GgufWriter::create(&target, metadata, specs), Err(Error::BadSpec { .. })));
    };
    let float = Encoding::Float(FloatType::F32);
    let spec = |name: &str, shape: &[usize], encoding| GgufTensorSpec {
        name: name.into(),
        shape: shape.into(),
        encoding,
    };
    gguf(&[], &[spec("a", &[1], float), spec("a", &[1], float)]);
    gguf(&[], &[spec(&"n".repeat(64), &[1], float)]);
    gguf(&[], &[spec("a", &[], float)]);
    gguf(&[], &[spec("a", &[1; 5], float)]);
    gguf(&[], &[spec("a", &[2, 200], Encoding::Block(BlockType::Q4_K))]);
    gguf(&[("k".into(), GgufValue::U8(1)), ("k".into(), GgufValue::U8(1))], &[]);
    gguf(&[("general.alignment".into(), GgufValue::U32(48))], &[]);

    let twice = specs(&[tensors("llama")[0].clone(), tensors("llama")[0].clone()]);
    let path = target(&place.path().join("out"), Overwrite::Refuse);
    assert!(matches!(FolderWriter::create(&path, &twice, 100), Err(Error::BadSpec { .. })));
    let writer = FolderWriter::create(&path, &[], 100).unwrap();
    writer.add_file("a.txt", b"a").unwrap();
    for name in [
        "a.txt",
        "../a.txt",
        "x/a.txt",
        "/a.txt",
        "",
        ".",
        "..",
        "a/",
        "more.safetensors",
        "model.safetensors.index.json",
    ] {
        assert!(matches!(writer.add_file(name, b"b"), Err(Error::BadFileName { .. })), "{name}");
    }
    assert_eq!(listing(place.path()).len(), 1, "only the unfinished folder");
}

#[test]
fn an_existing_target_is_refused_and_stays_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("out");
    write_folder(&target(&folder, Overwrite::Refuse), u64::MAX).unwrap();
    let before = fs::read(folder.join("model.safetensors")).unwrap();
    let error = write_folder(&target(&folder, Overwrite::Refuse), 1).unwrap_err();
    assert!(matches!(&error, Error::TargetExists { path } if *path == folder));
    assert!(error.hint().unwrap().contains("--force"));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), before);
    let file = place.path().join("x.gguf");
    fs::write(&file, "old").unwrap();
    assert!(matches!(
        GgufWriter::create(&target(&file, Overwrite::Refuse), &[], &[]),
        Err(Error::TargetExists { .. })
    ));
    assert_eq!(fs::read(&file).unwrap(), b"old");
    // One that appears while we write is not replaced either.
    let late = place.path().join("late.gguf");
    let writer = GgufWriter::create(&target(&late, Overwrite::Refuse), &[], &[]).unwrap();
    fs::write(&late, "someone else's").unwrap();
    assert!(matches!(writer.finish(), Err(Error::TargetExists { .. })));
    assert_eq!(fs::read(&late).unwrap(), b"someone else's");
    let late = place.path().join("late");
    let writer = FolderWriter::create(&target(&late, Overwrite::Refuse), &[], 1).unwrap();
    fs::create_dir(&late).unwrap();
    assert!(matches!(writer.finish(), Err(Error::TargetExists { .. })));
    assert_eq!(listing(place.path()), ["late", "late.gguf", "out", "x.gguf"]);
}

#[test]
fn force_replaces_a_checkpoint_only_when_the_new_one_is_complete() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("out");
    write_folder(&target(&folder, Overwrite::Refuse), u64::MAX).unwrap();
    fs::write(folder.join("stale.txt"), "of the old one").unwrap();
    let forced = target(&folder, Overwrite::Force);
    let unfinished = FolderWriter::create(&forced, &specs(&tensors("llama")), 1).unwrap();
    assert!(unfinished.finish().is_err());
    assert!(folder.join("stale.txt").exists());
    // The source may be the very folder that is replaced: its map outlives the name.
    let source = Checkpoint::open(&folder).unwrap();
    write_folder(&forced, 6000).unwrap();
    assert_eq!(bytes_of(&source, "model.norm.weight"), tensors("llama")[19].3);
    assert!(!folder.join("stale.txt").exists() && !folder.join("model.safetensors").exists());
    Checkpoint::open(&folder).unwrap();

    let file = place.path().join("x.gguf");
    fs::write(&file, "old").unwrap();
    let writer = GgufWriter::create(&target(&file, Overwrite::Force), &[], &[]).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"old");
    writer.finish().unwrap();
    assert!(fs::read(&file).unwrap().starts_with(b"GGUF"));
    assert_eq!(listing(place.path()), ["out", "x.gguf"]);
}

#[test]
fn force_does_not_replace_what_is_no_checkpoint() {
    let place = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let error = write_folder(&target(path, Overwrite::Force), 1).unwrap_err();
        assert!(matches!(error, Error::TargetNotReplaceable { .. }), "{error}");
        assert!(error.hint().is_some());
    };
    let home = place.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letter.txt"), "dear").unwrap();
    refused(&home);
    fs::write(home.join("config.json"), "{}").unwrap();
    fs::create_dir(home.join("photos")).unwrap();
    refused(&home);
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&file);
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&home, &link).unwrap();
    refused(&link);
    refused(Path::new("/"));
    let forced = target(&home, Overwrite::Force);
    assert!(matches!(GgufWriter::create(&forced, &[], &[]), Err(Error::TargetNotReplaceable { .. })));
    // An empty folder may be filled.
    let empty = place.path().join("empty");
    fs::create_dir(&empty).unwrap();
    write_folder(&target(&empty, Overwrite::Force), 1).unwrap();
}

#[test]
fn names_a_parent_that_cannot_be_written_to() {
    let place = tempfile::tempdir().unwrap();
    let nowhere = place.path().join("no/such");
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    // /proc is there on Linux and takes no files, whoever asks.
    for (parent, word) in [
        (nowhere, "does not exist"),
        (file, "is not a folder"),
        (PathBuf::from("/proc"), "cannot be written"),
    ] {
        for error in [
            write_folder(&target(&parent.join("out"), Overwrite::Refuse), 1).unwrap_err(),
            GgufWriter::create(&target(&parent.join("x.gguf"), Overwrite::Refuse), &[], &[]).unwrap_err(),
        ] {
            assert!(
                matches!(&error, Error::TargetFolder { parent: named, .. } if *named == parent),
                "{error}"
            );
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.hint().is_some());
        }
    }
}

#[test]
fn a_folder_without_write_permission_is_named() {
    let place = tempfile::tempdir().unwrap();
    let locked = place.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    let result = write_folder(&target(&locked.join("out"), Overwrite::Refuse), 1);
    // The superuser may write anywhere.
    match result {
        Ok(_) => assert!(fs::write(locked.join("proof"), "").is_ok()),
        Err(error) => assert!(error.to_string().contains("permission denied"), "{error}"),
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_full_disk_is_named_before_the_work_and_leaves_the_old_output() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("x.gguf");
    fs::write(&file, "old").unwrap();
    // 2^50 bytes: more than the disk has, or than the file system allows in a file.
    let spec = GgufTensorSpec {
        name: "a".into(),
        shape: vec![1 << 24, 1 << 24],
        encoding: Encoding::Float(FloatType::F32),
    };
    let result = GgufWriter::create(&target(&file, Overwrite::Force), &[], &[spec]);
    match result {
        Err(error @ Error::DiskFull { .. }) => assert!(error.to_string().contains("GB"), "{error}"),
        Err(error @ Error::Io { .. }) => assert!(error.to_string().contains("x.gguf"), "{error}"),
        // A file system that reserves nothing.
        other => assert!(other.is_ok()),
    }
    assert_eq!(fs::read(&file).unwrap(), b"old");
    assert_eq!(listing(place.path()), ["x.gguf"]);
}

#[test]
fn gguf_says_what_it_has_no_form_for() {
    let llama3 = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16});
    let llama = open_config("llama", |config| config["rope_parameters"] = llama3.clone()).unwrap();
    check_gguf("tiny", llama.config()).unwrap();
    let qwen2 = open_config("qwen2", |config| config["rope_parameters"] = llama3).unwrap();
    assert!(matches!(check_gguf("tiny", qwen2.config()), Err(Error::Unsupported { .. })));
}
