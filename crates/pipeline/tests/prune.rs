//! Whole runs that take weights or layers away.

mod common;

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{Error, Plan, Recipe, Silent, compress, n_weights, preset};
use bitmill_testkit::{Float, Tiny, Variant, max_abs, max_abs_diff, millet, tiny};

use common::{logits, names, plan, recipe, run, told, values};

const FORMATS: [(&str, &str); 3] = [
    ("hugging-face", ""),
    ("gguf", "[[step]]\nkind = \"block\"\ntype = \"q8_0\"\n"),
    ("compressed-tensors", "[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\n"),
];

/// `steps` in `format`, stored by `storing`.
fn pruning(format: &str, steps: &str, storing: &str) -> Recipe {
    recipe(&format!("format = \"{format}\"\n{steps}{storing}"))
}

fn target(out: &tempfile::TempDir, format: &str) -> std::path::PathBuf {
    out.path().join(if format == "gguf" { "model.gguf" } else { format })
}

fn document(path: &Path) -> serde_json::Value {
    let record =
        if path.is_dir() { path.join("bitmill.json") } else { path.with_extension("gguf.bitmill.json") };
    serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap()
}

#[test]
fn half_of_every_row_is_zero_the_rest_as_it_was_and_not_a_byte_is_saved() {
    let source = Tiny::new(Variant::Qwen2).float(Float::BF16).write();
    let out = tempfile::tempdir().unwrap();
    let dense = Checkpoint::open(source.path()).unwrap();
    run(source.path(), &preset("prune_50").unwrap(), &out.path().join("half")).unwrap();
    let pruned = Checkpoint::open(&out.path().join("half")).unwrap();
    let bytes = |of: &Checkpoint| of.tensors().iter().map(|info| info.stored_bytes).sum::<u64>();
    assert_eq!(bytes(&pruned), bytes(&dense), "zeros take the space of weights");
    for info in dense.tensors() {
        let (before, after) = (values(&dense, &info.name), values(&pruned, &info.name));
        if info.role.layer.is_none() || !info.role.is_matrix() {
            assert_eq!(before, after, "{}", info.name);
            continue;
        }
        for (before, after) in before.chunks(info.shape[1]).zip(after.chunks(info.shape[1])) {
            assert_eq!(after.iter().filter(|w| **w == 0.0).count(), info.shape[1] / 2, "{}", info.name);
            assert!(after.iter().all(|w| w.to_bits() != (-0.0f32).to_bits()), "{}", info.name);
            let least_kept =
                after.iter().filter(|w| **w != 0.0).fold(f32::MAX, |least, w| least.min(w.abs()));
            for (b, a) in before.iter().zip(after) {
                assert!(a == b || (*a == 0.0 && b.abs() <= least_kept), "{}: {b} became {a}", info.name);
            }
        }
    }
    let record = document(&out.path().join("half"));
    let lines = record["tensors"].as_array().unwrap();
    let line = lines.iter().find(|line| line["name"] == "model.layers.1.mlp.up_proj.weight").unwrap();
    assert_eq!(line["zeros"], 160 * 64 / 2);
    assert!(line["relative_error"].as_f64().unwrap() > 0.1, "what went counts as error: {line}");
    assert!(lines[0].get("zeros").is_none(), "the embedding was not pruned: {}", lines[0]);
}

#[test]
fn a_threshold_for_the_tensor_does_not_follow_from_how_a_format_orders_rows() {
    // bf16 has many equal magnitudes; llama's q and k lie permuted in GGUF.
    let source = Tiny::new(Variant::Llama).float(Float::BF16).write();
    let steps = "[[step]]\nkind = \"magnitude\"\nsparsity = 0.37\nscope = \"tensor\"\n";
    let out = tempfile::tempdir().unwrap();
    let [folder, file] = ["hugging-face", "gguf"].map(|format| {
        run(source.path(), &pruning(format, steps, ""), &target(&out, format)).unwrap();
        Checkpoint::open(&target(&out, format)).unwrap()
    });
    for name in ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"] {
        let name = format!("model.layers.1.{name}.weight");
        let pruned = values(&folder, &name);
        assert_eq!(pruned, values(&file, &name), "{name}");
        let zeros = pruned.iter().filter(|w| **w == 0.0).count();
        assert_eq!(zeros, (pruned.len() as f64 * 0.37).round() as usize, "{name}");
        let rows: Vec<usize> =
            pruned.chunks(64).map(|row| row.iter().filter(|w| **w == 0.0).count()).collect();
        assert!(rows.iter().any(|zeros| *zeros != rows[0]), "rows lose as their weights are: {rows:?}");
    }
}

#[test]
fn zeros_stay_zeros_in_symmetric_codes_and_the_groups_are_of_what_is_left() {
    let source = tiny(Variant::Llama);
    let out = tempfile::tempdir().unwrap();
    let steps = "[[step]]\nkind = \"magnitude\"\nn_of_m = \"2:4\"\n";
    let mut zeros = Vec::new();
    for (format, storing) in FORMATS {
        let path = target(&out, format);
        run(source.path(), &pruning(format, steps, storing), &path).unwrap();
        let pruned = values(&Checkpoint::open(&path).unwrap(), "model.layers.0.mlp.gate_proj.weight");
        for four in pruned.chunks(4) {
            assert!(four.iter().filter(|w| **w == 0.0).count() >= 2, "{format}: {four:?}");
        }
        zeros.push(pruned.iter().map(|w| *w == 0.0).collect::<Vec<_>>());
    }
    let kept_by_all = |i: usize| zeros.iter().any(|zeros| !zeros[i]);
    assert!((0..zeros[0].len()).all(|i| !zeros[0][i] || zeros.iter().all(|zeros| zeros[i])), "same places");
    assert_eq!((0..zeros[0].len()).filter(|i| kept_by_all(*i)).count(), zeros[0].len() / 2);
}

#[test]
fn a_layer_that_does_nothing_goes_first_and_is_not_missed() {
    let silent = |name: &str, _: &[usize], weights: &mut [f32]| {
        if ["model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"].contains(&name) {
            weights.fill(0.0);
        }
    };
    for variant in [Variant::Qwen2, Variant::LlamaLlama3] {
        let source = Tiny::new(variant).layers(3).write_with(silent);
        let dense = logits(source.path());
        let out = tempfile::tempdir().unwrap();
        for format in ["hugging-face", "gguf"] {
            let path = target(&out, format);
            let steps = "[[step]]\nkind = \"depth\"\nremove = 0.34\n";
            run(source.path(), &pruning(format, steps, ""), &path).unwrap();
            let shallow = Checkpoint::open(&path).unwrap();
            assert_eq!(shallow.config().n_layers, 2, "{format}");
            assert!(shallow.tensors().iter().all(|info| info.role.layer.is_none_or(|layer| layer < 2)));
            let moved = max_abs_diff(&logits(&path), &dense) / max_abs(&dense);
            assert!(moved < 1e-5, "{} as {format}: logits moved by {moved}", variant.name());
            let record = document(&path);
            assert_eq!(record["depth"]["removed"], serde_json::json!([1]));
            assert_eq!(record["depth"]["influence"][1], 0.0);
            assert_eq!(record["depth"]["influence"].as_array().unwrap().len(), 3);
            assert_eq!(record["depth"]["calibration"], "built-in calibration text");
        }
    }
}

#[test]
fn layers_that_are_named_go_and_the_others_move_up_with_their_codes() {
    let source = Tiny::new(Variant::Qwen2).layers(4).write();
    let dense = Checkpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let steps = "[[step]]\nkind = \"depth\"\nlayers = [2, 0]\n";
    for (format, storing) in FORMATS {
        let path = target(&out, format);
        run(source.path(), &pruning(format, steps, storing), &path).unwrap();
        let shallow = Checkpoint::open(&path).unwrap();
        for (new, old) in [(0, 1), (1, 3)] {
            for part in ["self_attn.k_proj.weight", "self_attn.k_proj.bias", "input_layernorm.weight"] {
                let found = values(&shallow, &format!("model.layers.{new}.{part}"));
                let expected = values(&dense, &format!("model.layers.{old}.{part}"));
                let moved = max_abs_diff(&found, &expected) / max_abs(&expected);
                assert!(moved < 0.1, "{format}: {part} of {old} moved by {moved}");
            }
        }
        assert_eq!(document(&path)["depth"]["removed"], serde_json::json!([0, 2]));
        assert!(document(&path)["depth"].get("influence").is_none(), "nothing was measured");
    }
    let sources: Vec<_> = document(&target(&out, "gguf"))["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|line| line["name"] == "model.layers.1.mlp.up_proj.weight")
        .map(|line| line["source"].clone())
        .collect();
    assert_eq!(sources, ["model.layers.3.mlp.up_proj.weight"]);
}

#[test]
fn a_quarter_of_millet_is_the_layer_that_turns_its_input_least() {
    let checkpoint = Checkpoint::open(&millet().join("model")).unwrap();
    let plan = plan(&checkpoint, &preset("depth_25").unwrap()).unwrap();
    let depth = plan.depth.clone().unwrap();
    assert_eq!((depth.n_layers, depth.removed), (4, vec![1]));
    let influence = depth.influence.unwrap();
    assert_eq!(influence.calibration_tokens, 2048);
    assert!(influence.influence[0] > 0.9 && influence.influence[1] < 0.15, "{influence:?}");
    assert_eq!(plan.weights, n_weights(&checkpoint), "size is counted against the source's weights");
    assert!(
        plan.to_text().contains("1 of 4 layers removed: 1\nblock influence over 2048 tokens"),
        "{}",
        plan.to_text()
    );
    let out = tempfile::tempdir().unwrap();
    let record = compress(&checkpoint, &plan, &out.path().join("m"), Overwrite::Refuse, &Silent).unwrap();
    assert_eq!(record.written.bytes, plan.output_bytes + told(&out.path().join("m")));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("m/config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 3);
}

#[test]
fn pruning_and_its_calibration_do_not_depend_on_threads() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let steps = "[[step]]\nkind = \"depth\"\nremove = 0.5\n[[step]]\nkind = \"magnitude\"\nsparsity = 0.4\nscope = \"tensor\"\n";
    let mut files: Vec<Vec<Vec<u8>>> = Vec::new();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let path = out.path().join(threads.to_string());
        pool.install(|| run(source.path(), &pruning("hugging-face", steps, ""), &path)).unwrap();
        files.push(names(&path).iter().map(|file| std::fs::read(path.join(file)).unwrap()).collect());
    }
    assert!(files[0] == files[1]);
}

#[test]
fn what_cannot_be_pruned_is_refused_by_name_with_a_hint() {
    let source = Tiny::new(Variant::Qwen2).layers(3).write();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let refused = |steps: &str| -> (Error, String) {
        let error = plan(&checkpoint, &pruning("hugging-face", steps, "")).unwrap_err();
        let hint = error.hint().unwrap();
        (error, hint)
    };
    let (error, hint) = refused("[[step]]\nkind = \"magnitude\"\nn_of_m = \"3:7\"\n");
    assert_eq!(
        error.to_string(),
        "`model.layers.0.mlp.down_proj.weight`: 160 input features do not divide into groups of 7"
    );
    assert!(hint.contains("2:4"), "{hint}");
    let (error, hint) = refused("[[step]]\nkind = \"depth\"\nlayers = [3]\n");
    assert!(error.to_string().contains("removes layer 3 of a model with layers 0 to 2"), "{error}");
    assert!(hint.contains("from 0"), "{hint}");
    for (steps, said) in [
        ("[[step]]\nkind = \"depth\"\nremove = 0.1\n", "would remove 0 of 3 layers"),
        ("[[step]]\nkind = \"depth\"\nlayers = [0, 1, 2]\n", "would remove 3 of 3 layers"),
    ] {
        let (error, hint) = refused(steps);
        assert!(error.to_string().contains(said), "{error}");
        assert!(hint.contains("1/3"), "{hint}");
    }
    let (error, _) =
        refused("[[step]]\nkind = \"magnitude\"\nsparsity = 0.5\ntargets = [\"*norm.weight\"]\n");
    assert!(matches!(error, Error::PatternMatchesNoMatrix { .. }), "{error}");
    let short = source.path().join("short.txt");
    std::fs::write(&short, "too short").unwrap();
    let steps = format!("[[step]]\nkind = \"depth\"\nremove = 0.5\ncalibration = {short:?}\n");
    let (error, _) = refused(&steps);
    assert!(matches!(error, Error::ShortText { .. }) && error.to_string().contains("short.txt"), "{error}");
}

#[test]
fn sparse_storage_holds_what_is_left_in_exactly_the_bytes_that_were_planned() {
    for (variant, float) in [(Variant::Qwen2, Float::BF16), (Variant::Llama, Float::F32)] {
        let source = Tiny::new(variant).float(float).write();
        let out = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        for name in ["prune_50", "prune_2of4", "prune_90"] {
            let dense = out.path().join(name);
            run(source.path(), &preset(name).unwrap(), &dense).unwrap();
            let planned = plan(&checkpoint, &preset(&format!("{name}_sparse")).unwrap()).unwrap();
            let path = out.path().join(format!("{name}_sparse"));
            let record = compress(&checkpoint, &planned, &path, Overwrite::Refuse, &Silent).unwrap();
            assert_eq!(record.written.bytes, planned.output_bytes + told(&path), "{name}");
            assert_eq!(logits(&path), logits(&dense), "{name}: the same weights in the same order");
            let [packed, plain] = [&path, &dense].map(|path| Checkpoint::open(path).unwrap());
            let up = "model.layers.1.mlp.up_proj.weight";
            assert_eq!(values(&packed, up), values(&plain, up));
            let bytes = |of: &Checkpoint| of.tensor(up).unwrap().info.stored_bytes;
            let kept = if name == "prune_90" { 160 * 6 } else { 160 * 32 };
            let width = if float == Float::BF16 { 2 } else { 4 };
            assert_eq!(
                bytes(&packed),
                kept * width + 160 * (8 + 8) + 16,
                "values, bits, row offsets and shape"
            );
            assert_eq!(bytes(&plain), 160 * 64 * width);
        }
    }
}

#[test]
fn a_weight_that_is_zero_already_may_be_kept_and_the_count_holds() {
    let zeros = |name: &str, _: &[usize], weights: &mut [f32]| {
        if name == "model.layers.0.mlp.down_proj.weight" {
            weights.iter_mut().step_by(2).for_each(|weight| *weight = -0.0);
        }
    };
    let source = Tiny::new(Variant::Qwen2).write_with(zeros);
    let out = tempfile::tempdir().unwrap();
    run(source.path(), &preset("prune_25_sparse").unwrap(), &out.path().join("m")).unwrap();
    let written = Checkpoint::open(&out.path().join("m")).unwrap();
    let name = "model.layers.0.mlp.down_proj.weight";
    let stored = values(&written, name);
    assert_eq!(written.tensor(name).unwrap().info.encoding.to_string(), "sparse f32");
    assert_eq!(stored.iter().filter(|weight| **weight == 0.0).count(), 64 * 160 / 2);
    assert!(stored.iter().all(|weight| weight.to_bits() != (-0.0f32).to_bits()));
}

#[test]
fn sparse_storage_stands_beside_no_codes() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let sparse = "[[step]]\nkind = \"magnitude\"\nsparsity = 0.5\nstorage = \"sparse\"\n";
    let rtn = "[[step]]\nkind = \"rtn\"\nbits = 8\ngranularity = \"channel\"\n";
    for steps in [
        format!("{sparse}{rtn}"),
        format!("{sparse}targets = [\"*.mlp.*\"]\n{rtn}targets = [\"*.self_attn.?_proj.weight\"]\n"),
    ] {
        let error = plan(&checkpoint, &pruning("compressed-tensors", &steps, "")).unwrap_err();
        assert!(matches!(error, Error::SparseBesideCodes { .. }), "{error}");
        assert!(error.to_string().contains("8-bit") && error.hint().is_some(), "{error}");
    }
    // A float step says of what type the values are.
    let float = format!("{sparse}[[step]]\nkind = \"float\"\ntype = \"f16\"\n");
    let planned = plan(&checkpoint, &pruning("compressed-tensors", &float, "")).unwrap();
    let up = planned.tensors.iter().find(|tensor| tensor.name.ends_with("0.mlp.up_proj.weight")).unwrap();
    assert_eq!(up.to.to_string(), "sparse f16");
}

#[test]
fn the_plan_says_how_much_of_what_is_zero() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let plan: Plan = plan(
        &checkpoint,
        &recipe(
            "format = \"gguf\"\n[[step]]\nkind = \"magnitude\"\nsparsity = 0.3\n\
             [[step]]\nkind = \"magnitude\"\nn_of_m = \"1:4\"\ntargets = [\"*.down_proj.weight\"]\n\
             [[step]]\nkind = \"block\"\ntype = \"q8_0\"\nskip = [\"*.up_proj.weight\"]\n",
        ),
    )
    .unwrap();
    let text = plan.to_text();
    let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap();
    assert!(line("down_proj").contains("q8_0, 75 % zeros"), "{text}");
    assert!(line("gate_proj").contains("q8_0, 29.69 % zeros"), "19 of 64: {text}");
    assert!(line("up_proj").contains("f32, 29.69 % zeros") && !line("up_proj").contains("kept"), "{text}");
    assert!(line("embed_tokens").contains("kept f32") && !line("embed_tokens").contains("zeros"), "{text}");
    let json = plan.to_json();
    let lines = json["tensors"].as_array().unwrap();
    let down = lines.iter().find(|line| line["name"] == "model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!(down["zeros"], 64 * 160 * 3 / 4);
}
