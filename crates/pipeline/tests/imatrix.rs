//! Runs that weigh the errors of blocks by an importance matrix.

mod common;

use std::path::{Path, PathBuf};

use bitmill_checkpoint::{
    Checkpoint, GgufValue, Imatrix, ImatrixEntry, ImatrixForm, Overwrite, RoleKind, Target,
};
use bitmill_pipeline::{Budget, Measure, Recipe, SearchOptions, Silent, preset, search};
use bitmill_quant::{BlockEncoder, Importance, quantize_blocks};
use bitmill_tensor::{BlockType, WeightData};
use bitmill_testkit::{Variant, tiny};

use common::{plan, recipe, run, values};

/// Made of tiny-qwen2-moe by llama-imatrix.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoint/tests/golden/imatrix.gguf")
}

/// An importance matrix of a model, every column weighing something else; without the entries of `skip`.
fn imatrix(checkpoint: &Checkpoint, skip: &str) -> Imatrix {
    let matrices =
        checkpoint.tensors().iter().filter(|info| info.role.is_matrix() && info.role.layer.is_some());
    let mut imatrix =
        Imatrix { datasets: vec!["a text".into()], chunk_count: 7, chunk_size: 8, ..Imatrix::default() };
    for (number, info) in matrices.enumerate() {
        let name = info.role.gguf_name().unwrap();
        let sums = (0..info.shape[1]).map(|col| ((col * 37 + number * 11) % 101) as f32).collect();
        if name != skip {
            imatrix.entries.insert(name, ImatrixEntry { sums, counts: vec![56] });
        }
    }
    imatrix
}

fn written(imatrix: &Imatrix, path: &Path) -> PathBuf {
    let form = ImatrixForm::of(path);
    imatrix.write(&Target { path: path.into(), overwrite: Overwrite::Refuse }, form).unwrap();
    path.into()
}

fn q6_k() -> Recipe {
    recipe("format = \"gguf\"\n[[step]]\nkind = \"block\"\ntype = \"q6_k\"")
}

#[test]
fn every_row_is_encoded_with_the_importance_of_its_columns() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let imatrix = imatrix(&checkpoint, "");
    let weighed = q6_k().with_imatrix(&written(&imatrix, &out.path().join("i.gguf"))).unwrap();
    run(source.path(), &weighed, &out.path().join("weighed.gguf")).unwrap();
    run(source.path(), &q6_k(), &out.path().join("plain.gguf")).unwrap();
    let [weighed, plain] =
        ["weighed.gguf", "plain.gguf"].map(|name| Checkpoint::open(&out.path().join(name)).unwrap());
    let mut differing = 0;
    // q and k among them, whose rows lie in another order in a llama's GGUF file.
    for info in checkpoint.tensors().iter().filter(|info| info.role.is_matrix() && info.role.layer.is_some())
    {
        let (rows, cols) = (info.shape[0], info.shape[1]);
        let importance = imatrix.importance(info.role, cols, 0).unwrap().unwrap();
        let encoder = BlockEncoder {
            importance: Some(Importance::new(&importance).unwrap()),
            ..BlockEncoder::new(BlockType::Q6_K)
        };
        let mut expected = vec![0; rows * cols / 256 * 210];
        quantize_blocks(&encoder, cols, &values(&checkpoint, &info.name), &mut expected).unwrap();
        let tensor = weighed.tensor(&info.name).unwrap();
        let WeightData::Block { bytes, .. } = tensor.view().data() else { panic!("blocks") };
        let row_bytes = cols / 256 * 210;
        for row in 0..rows {
            let stored = &bytes[tensor.stored_row(row) * row_bytes..][..row_bytes];
            assert_eq!(stored, &expected[row * row_bytes..][..row_bytes], "{}, row {row}", info.name);
        }
        differing += usize::from(values(&weighed, &info.name) != values(&plain, &info.name));
    }
    assert_eq!(differing, 7 * checkpoint.config().n_layers);
}

#[test]
fn the_file_says_what_it_was_weighed_with() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    // Longer than llama-quantize keeps, and cut within a character of two bytes.
    let folder = out.path().join("é".repeat(100));
    std::fs::create_dir(&folder).unwrap();
    let path = written(&imatrix(&checkpoint, ""), &folder.join("i.dat"));
    let target = out.path().join("m.gguf");
    run(source.path(), &q6_k().with_imatrix(&path).unwrap(), &target).unwrap();
    let found = Checkpoint::open(&target).unwrap();
    let get = |key: &str| {
        let key = format!("quantize.imatrix.{key}");
        found.metadata().iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    };
    assert_eq!(get("dataset"), Some(GgufValue::String("a text".into())));
    assert_eq!(get("entries_count"), Some(GgufValue::U32(14)));
    assert_eq!(get("chunks_count"), Some(GgufValue::U32(7)));
    let Some(GgufValue::String(file)) = get("file") else { panic!("{:?}", get("file")) };
    assert!(path.to_str().unwrap().starts_with(&file) && (126..=127).contains(&file.len()), "{file}");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("m.gguf.bitmill.json")).unwrap()).unwrap();
    assert_eq!(record["imatrix"]["chunks"], 7);
    assert_eq!(record["imatrix"]["entries"], 14);
}

#[test]
fn tensors_without_an_entry_are_named_and_entries_of_another_size_refused() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let mut partial = imatrix(&checkpoint, "blk.1.attn_v.weight");
    let weighed = |imatrix: &Imatrix, name: &str| {
        let recipe = q6_k().with_imatrix(&written(imatrix, &out.path().join(name))).unwrap();
        plan(&checkpoint, &recipe)
    };
    let notes = weighed(&partial, "one.gguf").unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("`model.layers.1.self_attn.v_proj.weight`")), "{notes:?}");
    assert!(weighed(&imatrix(&checkpoint, ""), "all.gguf").unwrap().notes.is_empty());
    partial.entries.get_mut("blk.0.ffn_down.weight").unwrap().sums.pop();
    let error = weighed(&partial, "short.gguf").unwrap_err();
    assert!(error.to_string().contains("model.layers.0.mlp.down_proj.weight"), "{error}");
    assert!(error.hint().is_some());
    let missing = q6_k().with_imatrix(&out.path().join("none.gguf")).unwrap();
    assert!(plan(&checkpoint, &missing).unwrap_err().to_string().contains("none.gguf"));
}

#[test]
fn experts_find_their_part_of_llama_imatrix_s_entries() {
    let source = tiny(Variant::Qwen2Moe);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let plan = plan(&checkpoint, &preset("q8_0").unwrap().with_imatrix(&golden()).unwrap()).unwrap();
    // Only what llama-imatrix leaves out unless told is without an entry.
    assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
    assert!(plan.notes[0].contains("2 tensors such as `model.embed_tokens.weight`"), "{:?}", plan.notes);
    assert!(plan.tensors.iter().any(|tensor| tensor.role.kind == RoleKind::Output));
}

#[test]
fn a_search_weighs_its_forms_and_names_the_matrix_in_its_recipe() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let path = written(&imatrix(&checkpoint, ""), &out.path().join("i.gguf"));
    let plain = SearchOptions { measure: Measure::Weights, ..SearchOptions::new(Budget::BitsPerWeight(4.5)) };
    let weighed = SearchOptions { imatrix: Some(path.clone()), ..plain.clone() };
    let [plain, found] = [&plain, &weighed].map(|options| search(&checkpoint, options, &Silent).unwrap());
    assert_eq!((plain.recipe.imatrix, found.recipe.imatrix.as_deref()), (None, Some(path.as_path())));
    // What weighs otherwise errs otherwise by the weights alone.
    assert!(
        plain
            .table
            .units
            .iter()
            .zip(&found.table.units)
            .any(|(plain, weighed)| plain.options != weighed.options)
    );
    let target = out.path().join("m.gguf");
    run(source.path(), &found.recipe, &target).unwrap();
    assert_eq!(std::fs::metadata(&target).unwrap().len(), found.report.bytes);
    let mixed = SearchOptions { table: Some(plain.table), ..weighed };
    let error = search(&checkpoint, &mixed, &Silent).unwrap_err();
    assert!(error.to_string().contains("another importance matrix"), "{error}");
}

#[test]
fn types_of_few_bits_are_refused_without_an_entry_as_llama_quantize_refuses_them() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let whole = written(&imatrix(&checkpoint, ""), &out.path().join("whole.gguf"));
    let partial = written(&imatrix(&checkpoint, "blk.1.attn_q.weight"), &out.path().join("partial.gguf"));
    for name in ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"] {
        let mix = preset(name).unwrap();
        let weighed = |path: &Path| preset(name).unwrap().with_imatrix(path).unwrap();
        for refused in [mix, weighed(&partial)] {
            let error = plan(&checkpoint, &refused).unwrap_err();
            assert!(error.to_string().contains("needs the importance of columns"), "{name}: {error}");
            assert!(error.hint().unwrap().contains("--imatrix"), "{name}");
        }
        run(source.path(), &weighed(&whole), &out.path().join(format!("{name}.gguf"))).unwrap();
    }
    // Others do without.
    for name in ["iq3_s", "iq3_m", "q2_k", "tq1_0", "tq2_0", "mxfp4_moe"] {
        plan(&checkpoint, &preset(name).unwrap()).unwrap();
    }
    // So does a block step whose search can; one whose search cannot is refused.
    let step =
        |block: &str| recipe(&format!("format = \"gguf\"\n[[step]]\nkind = \"block\"\ntype = \"{block}\""));
    plan(&checkpoint, &step("iq3_xxs")).unwrap();
    assert!(plan(&checkpoint, &step("iq2_xs")).is_err());
}
