//! Importance matrices: llama-imatrix's own files, both forms, and files that lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitmill_checkpoint::{
    Error, Imatrix, ImatrixEntry, ImatrixForm, Overwrite, Region, Role, RoleKind, Target,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn written(imatrix: &Imatrix, form: ImatrixForm) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let target = Target { path: folder.path().join("imatrix"), overwrite: Overwrite::Refuse };
    imatrix.write(&target, form).unwrap();
    std::fs::read(target.path).unwrap()
}

fn read(bytes: &[u8]) -> Result<Imatrix, Error> {
    Imatrix::from_bytes(Path::new("some.imatrix"), &Region::from_vec(bytes.to_vec()))
}

/// Two matrices of three columns under one name, and one of two.
fn sample() -> Imatrix {
    let entry = |sums: &[f32], counts: &[u64]| ImatrixEntry { sums: sums.to_vec(), counts: counts.to_vec() };
    Imatrix {
        entries: [
            ("blk.0.attn_q.weight".to_owned(), entry(&[3.0, 0.0], &[6])),
            ("blk.1.ffn_up_exps.weight".to_owned(), entry(&[8.0, 4.0, 2.0, 0.0, 0.0, 0.0], &[4, 0])),
        ]
        .into(),
        datasets: vec!["a.txt".to_owned(), "b.txt".to_owned()],
        chunk_count: 3,
        chunk_size: 2,
    }
}

#[test]
fn llama_imatrix_s_files_read_and_write_back_byte_for_byte() {
    let gguf = Imatrix::open(&golden("imatrix.gguf")).unwrap();
    assert_eq!((gguf.chunk_count, gguf.chunk_size), (4, 64));
    assert_eq!(gguf.datasets, ["calib.txt"]);
    assert_eq!(written(&gguf, ImatrixForm::Gguf), std::fs::read(golden("imatrix.gguf")).unwrap());
    assert_eq!(written(&gguf, ImatrixForm::Legacy), std::fs::read(golden("imatrix.dat")).unwrap());
    let legacy = Imatrix::open(&golden("imatrix.dat")).unwrap();
    assert_eq!(written(&legacy, ImatrixForm::Legacy), std::fs::read(golden("imatrix.dat")).unwrap());
}

#[test]
fn both_forms_weigh_the_columns_alike() {
    let [gguf, legacy] = ["imatrix.gguf", "imatrix.dat"].map(|name| Imatrix::open(&golden(name)).unwrap());
    assert_eq!(gguf.entries.keys().collect::<Vec<_>>(), legacy.entries.keys().collect::<Vec<_>>());
    let mut compared = 0;
    for name in gguf.entries.keys() {
        let first = Role::from_gguf_name(name);
        let (n_experts, entry) = (gguf.entries[name].counts.len(), &gguf.entries[name]);
        let columns = entry.sums.len() / n_experts;
        for expert in 0..n_experts {
            let role = Role { expert: first.expert.map(|_| expert), ..first };
            let of = |imatrix: &Imatrix| imatrix.importance(role, columns, n_experts).unwrap().unwrap();
            for (a, b) in of(&gguf).into_iter().zip(of(&legacy)) {
                // Times and through the number of calls: two roundings.
                assert!((a - b).abs() <= 2.0 * f32::EPSILON * a, "{name}: {a} and {b}");
                compared += 1;
            }
        }
    }
    assert!(compared > 1000);
}

#[test]
fn experts_without_tokens_weigh_all_columns_alike() {
    let up = |expert| Role::in_expert(1, expert, RoleKind::FfnUp);
    for form in [ImatrixForm::Gguf, ImatrixForm::Legacy] {
        let imatrix = read(&written(&sample(), form)).unwrap();
        assert_eq!(imatrix.importance(up(0), 3, 2).unwrap().unwrap(), [2.0, 1.0, 0.5]);
        assert_eq!(imatrix.importance(up(1), 3, 2).unwrap().unwrap(), [1.0; 3]);
        assert_eq!(
            imatrix.importance(Role::in_layer(0, RoleKind::AttnQ), 2, 2).unwrap().unwrap(),
            [0.5, 0.0]
        );
        assert_eq!(imatrix.importance(Role::in_layer(0, RoleKind::AttnK), 2, 2).unwrap(), None);
    }
    let kept = read(&written(&sample(), ImatrixForm::Gguf)).unwrap();
    assert_eq!(kept, sample());
    // The older form has room for one text.
    assert_eq!(read(&written(&sample(), ImatrixForm::Legacy)).unwrap().datasets, ["b.txt"]);
}

#[test]
fn entries_of_another_size_are_refused_by_name() {
    let error = sample().importance(Role::in_layer(0, RoleKind::AttnQ), 4, 0).unwrap_err();
    assert!(matches!(&error, Error::ImatrixEntry { found: 2, expected: 4, .. }), "{error}");
    assert!(error.to_string().contains("model.layers.0.self_attn.q_proj.weight"), "{error}");
    let more_experts = sample().importance(Role::in_expert(1, 0, RoleKind::FfnUp), 3, 4);
    assert!(more_experts.is_err());
    // llama-quantize lets this one pass.
    let mut other = sample();
    let entry = other.entries["blk.0.attn_q.weight"].clone();
    other.entries.insert("token_embd.weight".to_owned(), entry);
    assert_eq!(other.importance(Role::outside(RoleKind::TokenEmbedding), 64, 0).unwrap(), None);
}

#[test]
fn fused_matrices_of_the_first_generation_weigh_for_each_of_theirs() {
    let mut imatrix = sample();
    let entry = imatrix.entries.remove("blk.0.attn_q.weight").unwrap();
    imatrix.entries.insert("blk.0.attn_qkv.weight".to_owned(), entry);
    for kind in [RoleKind::AttnQ, RoleKind::AttnK, RoleKind::AttnV] {
        assert_eq!(imatrix.importance(Role::in_layer(0, kind), 2, 0).unwrap().unwrap(), [0.5, 0.0]);
    }
    assert_eq!(imatrix.importance(Role::in_layer(0, RoleKind::AttnOutput), 2, 0).unwrap(), None);
}

#[test]
fn calls_that_are_none_leave_values_as_they_are() {
    let mut bytes = written(&sample(), ImatrixForm::Legacy);
    let calls = 4 + 4 + "blk.0.attn_q.weight".len();
    assert_eq!(bytes[calls..calls + 4], 3i32.to_le_bytes());
    bytes[calls..calls + 4].copy_from_slice(&0i32.to_le_bytes());
    let read = read(&bytes).unwrap();
    assert_eq!(read.importance(Role::in_layer(0, RoleKind::AttnQ), 2, 0).unwrap().unwrap(), [1.5, 0.0]);
}

#[test]
fn every_cut_and_every_changed_byte_is_refused_or_read() {
    for form in [ImatrixForm::Gguf, ImatrixForm::Legacy] {
        let bytes = written(&sample(), form);
        for length in 0..bytes.len() {
            match read(&bytes[..length]) {
                Err(error) => assert!(error.to_string().contains("some.imatrix"), "{error}"),
                // The older form may end before its last keys, the newer one before its padding.
                Ok(imatrix) => {
                    let entries = if form == ImatrixForm::Gguf { sample().entries } else { sample_means() };
                    assert_eq!(imatrix.entries, entries, "{length} bytes");
                }
            }
        }
        for at in 0..bytes.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                if let Ok(imatrix) = read(&changed) {
                    assert!(!imatrix.entries.is_empty());
                }
            }
        }
    }
}

fn sample_means() -> BTreeMap<String, ImatrixEntry> {
    read(&written(&sample(), ImatrixForm::Legacy)).unwrap().entries
}

#[test]
fn files_that_lie_are_refused_and_say_where() {
    let gguf = |change: fn(&mut Imatrix)| {
        let mut imatrix = sample();
        change(&mut imatrix);
        written(&imatrix, ImatrixForm::Gguf)
    };
    let set = |value: f32| {
        move |imatrix: &mut Imatrix| {
            imatrix.entries.get_mut("blk.0.attn_q.weight").unwrap().sums[1] = value;
        }
    };
    let with = |value: f32| {
        let mut imatrix = sample();
        set(value)(&mut imatrix);
        written(&imatrix, ImatrixForm::Gguf)
    };
    let three_for_two = gguf(|imatrix| {
        imatrix.entries.get_mut("blk.1.ffn_up_exps.weight").unwrap().counts = vec![1; 6];
    });
    assert!(read(&three_for_two).is_ok(), "six matrices of one column are no lie by themselves");
    let none = gguf(|imatrix| imatrix.entries.clear());
    let key = b"imatrix.chunk_size";
    let mut keyless = written(&sample(), ImatrixForm::Gguf);
    let at = keyless.windows(key.len()).position(|window| window == key).unwrap();
    keyless[at] = b'x';
    for (bytes, said) in [
        (with(f32::NAN), "NaN"),
        (with(f32::INFINITY), "inf"),
        (with(-1.0), "-1"),
        (none, "no entries"),
        (keyless, "imatrix.chunk_size"),
        (0i32.to_le_bytes().to_vec(), "number of entries"),
        ((-1i32).to_le_bytes().to_vec(), "number of entries"),
        (i32::MAX.to_le_bytes().to_vec(), "number of entries"),
        (b"GGUF".to_vec(), "version"),
    ] {
        let error = read(&bytes).unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
}
