//! Feed-forward blocks made wider with zeros: what is written, that no output changes, and when it happens unasked.

mod common;

use bitmill_checkpoint::{Checkpoint, Imatrix, ImatrixEntry, ImatrixForm, Overwrite, RoleKind, Target};
use bitmill_pipeline::{Format, Plan, PlannedTensor, Recipe, conversion, n_weights, own_weights, preset};
use bitmill_tensor::{BlockType, Encoding};
use bitmill_testkit::{Variant, max_abs, max_abs_diff, millet, tiny};

use common::{first_logits, logits, plan, recipe, run, values};

fn open(variant: Variant) -> Checkpoint {
    let folder = tiny(variant);
    Checkpoint::open(folder.path()).unwrap()
}

fn down(plan: &Plan) -> impl Iterator<Item = &PlannedTensor> {
    plan.tensors.iter().filter(|tensor| tensor.role.kind == RoleKind::FfnDown)
}

#[test]
fn every_family_gives_the_logits_of_its_source() {
    for variant in Variant::ALL {
        let source = tiny(variant);
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let tokens = checkpoint.config().plain_positions().min(40);
        let dense = first_logits(source.path(), tokens);
        let out = tempfile::tempdir().unwrap();
        for format in ["hugging-face", "gguf"] {
            if format == "gguf" && !variant.has_gguf_form() {
                continue;
            }
            let target = out.path().join(if format == "gguf" { "m.gguf" } else { "folder" });
            let padded = format!("format = \"{format}\"\n[[step]]\nkind = \"pad\"\nffn = 384");
            run(source.path(), &recipe(&padded), &target).unwrap();
            let written = Checkpoint::open(&target).unwrap();
            let name = variant.name();
            match &written.config().experts {
                Some(experts) => {
                    assert_eq!(experts.width % 384, 0, "{name}");
                    assert!(experts.shared_width.is_none_or(|width| width % 384 == 0), "{name}");
                }
                None => assert!(written.config().intermediate_size.is_multiple_of(384), "{name}"),
            }
            let found = first_logits(&target, tokens);
            // The order of sums may be another one where rows end in other places.
            let moved = max_abs_diff(&found, &dense) / max_abs(&dense);
            assert!(moved < 1e-5, "{name} as {format}: logits moved by {moved}");
        }
    }
}

#[test]
fn the_source_s_weights_are_all_there_and_the_rest_is_zero() {
    let source = tiny(Variant::Qwen2);
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("folder");
    run(source.path(), &recipe("format = \"hugging-face\"\n[[step]]\nkind = \"pad\"\nffn = 100"), &target)
        .unwrap();
    let [source, padded] = [source.path(), &target].map(|path| Checkpoint::open(path).unwrap());
    for info in source.tensors() {
        let wide = padded.tensor(&info.name).unwrap().info.shape;
        let [before, after] = [&source, &padded].map(|checkpoint| values(checkpoint, &info.name));
        let cols = info.shape.last().copied().unwrap();
        let wide_cols = wide.last().copied().unwrap();
        let changed = matches!(info.role.kind, RoleKind::FfnDown | RoleKind::FfnGate | RoleKind::FfnUp);
        assert_eq!(wide != info.shape, changed, "{}", info.name);
        for (row, found) in after.chunks(wide_cols).enumerate() {
            let expected = before.chunks(cols).nth(row);
            let (own, zeros) = found.split_at(if expected.is_some() { cols } else { 0 });
            assert_eq!(own, expected.unwrap_or_default(), "{}, row {row}", info.name);
            assert!(zeros.iter().all(|value| value.to_bits() == 0), "{}, row {row}", info.name);
        }
    }
}

#[test]
fn k_quants_are_padded_unasked_where_the_width_needs_it() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let padded = plan(&checkpoint, &preset("q4_k_m").unwrap()).unwrap();
    assert!(down(&padded).all(|down| down.shape == [256, 512] && down.is_padded()));
    assert!(down(&padded).all(|down| matches!(down.to, Encoding::Block(BlockType::Q4_K | BlockType::Q6_K))));
    let note = padded.notes.iter().find(|note| note.contains("288 padded to 512")).expect("a note");
    let kept = plan(&checkpoint, &preset("q4_k_m").unwrap().without_padding().unwrap()).unwrap();
    assert!(down(&kept).all(|down| matches!(down.to, Encoding::Block(BlockType::Q5_0 | BlockType::Q8_0))));
    assert!(kept.notes.is_empty() && down(&kept).all(|down| !down.is_padded()));
    // 288 of 512: what gate and up gain in rows is more than narrower blocks cost.
    let bytes = |plan: &Plan| plan.tensors.iter().map(|tensor| tensor.bytes_after).sum::<u64>();
    let difference = bitmill_report::size(bytes(&padded) - bytes(&kept));
    assert!(note.contains(&format!("{difference} larger")), "{note}");
    assert!(padded.to_text().contains("padded from 256 x 288"), "{}", padded.to_text());
    let json = padded.to_json();
    let line =
        json["tensors"].as_array().unwrap().iter().find(|line| line["source_shape"].is_array()).unwrap();
    assert_eq!(line["source_shape"], serde_json::json!([256, 288]));

    let out = tempfile::tempdir().unwrap();
    let dense = logits(source.path());
    let mut moved = Vec::new();
    for (name, recipe) in [("padded", padded.recipe), ("kept", kept.recipe)] {
        let target = out.path().join(format!("{name}.gguf"));
        run(source.path(), &recipe, &target).unwrap();
        let width = Checkpoint::open(&target).unwrap().config().intermediate_size;
        assert_eq!(width, if name == "padded" { 512 } else { 288 });
        moved.push(max_abs_diff(&logits(&target), &dense) / max_abs(&dense));
    }
    assert!(moved.iter().all(|moved| (0.001..0.5).contains(moved)), "{moved:?}");
}

#[test]
fn what_needs_no_padding_is_not_padded() {
    let wide = open(Variant::LlamaWide);
    for name in ["q4_k_m", "iq4_xs", "q8_0"] {
        assert!(plan(&wide, &preset(name).unwrap()).unwrap().notes.is_empty(), "{name}");
    }
    let uneven = open(Variant::Qwen2Wide);
    for name in ["q8_0", "q4_0", "q5_1", "iq4_nl"] {
        assert!(
            down(&plan(&uneven, &preset(name).unwrap()).unwrap()).all(|down| !down.is_padded()),
            "{name}"
        );
    }
    // A later step that stores every `down_proj` in narrower blocks leaves nothing to win.
    let narrow = "format = \"gguf\"\n[[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n[[step]]\nkind = \"block\"\n\
                  targets = [\"*.down_proj.weight\"]\ntype = \"q8_0\"";
    let kept = plan(&uneven, &recipe(narrow)).unwrap();
    assert!(kept.tensors.iter().all(|tensor| !tensor.is_padded()));
    let wider = plan(&uneven, &recipe(&narrow.replace("q8_0", "q6_k"))).unwrap();
    assert!(down(&wider).all(|down| down.to == Encoding::Block(BlockType::Q6_K) && down.is_padded()));
    let refused = recipe(&format!("pad = \"off\"\n{}", narrow.replace("q8_0", "q6_k")));
    let error = plan(&uneven, &refused).unwrap_err();
    assert!(error.to_string().contains("288"), "{error}");
    let nothing = recipe(
        "format = \"gguf\"\n[[step]]\nkind = \"pad\"\nffn = 32\n[[step]]\nkind = \"mix\"\nmix = \"q8_0\"",
    );
    assert!(plan(&uneven, &nothing).unwrap().notes.is_empty());
}

#[test]
fn groups_divide_a_width_that_was_padded_for_them() {
    let source = tiny(Variant::Qwen3Moe);
    let out = tempfile::tempdir().unwrap();
    let text = "format = \"compressed-tensors\"\n[[step]]\nkind = \"pad\"\nffn = 128\n[[step]]\nkind = \"rtn\"\n\
                targets = [\"*.down_proj.weight\"]\nbits = 8\ngranularity = { group = { size = 128 } }";
    for zero_point in ["symmetric", "asymmetric"] {
        let text = format!("{text}\nzero_point = \"{zero_point}\"");
        let unpadded = text.replace("[[step]]\nkind = \"pad\"\nffn = 128\n", "");
        assert!(plan(&Checkpoint::open(source.path()).unwrap(), &recipe(&unpadded)).is_err());
        let target = out.path().join(zero_point);
        run(source.path(), &recipe(&text), &target).unwrap();
        let dense = logits(source.path());
        let found = logits(&target);
        let moved = max_abs_diff(&found, &dense) / max_abs(&dense);
        assert!(moved > 0.0 && moved < 0.4, "{zero_point}: logits moved by {moved}");
    }
}

#[test]
fn weights_are_pruned_as_without_padding() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let prune = "[[step]]\nkind = \"magnitude\"\nsparsity = 0.5\n";
    for scope in ["row", "tensor"] {
        let text = format!(
            "format = \"hugging-face\"\n{prune}scope = \"{scope}\"\n[[step]]\nkind = \"pad\"\nffn = 512"
        );
        let zeros = |recipe: &Recipe| {
            let plan = plan(&checkpoint, recipe).unwrap();
            plan.tensors.iter().map(|tensor| tensor.zeros()).sum::<u64>()
        };
        let unpadded = text.replace("[[step]]\nkind = \"pad\"\nffn = 512", "");
        assert_eq!(zeros(&recipe(&text)), zeros(&recipe(&unpadded)));
        let [with, without] = [(text, "with"), (unpadded, "without")].map(|(text, name)| {
            let target = out.path().join(format!("{name}-{scope}"));
            run(source.path(), &recipe(&text), &target).unwrap();
            Checkpoint::open(&target).unwrap()
        });
        for info in without.tensors() {
            let [with, without] = [&with, &without].map(|checkpoint| values(checkpoint, &info.name));
            let not_zero = |values: &[f32]| values.iter().filter(|value| **value != 0.0).count();
            assert_eq!(not_zero(&with), not_zero(&without), "{} by {scope}", info.name);
        }
    }
}

#[test]
fn importance_may_be_of_the_source_or_of_the_padded_model() {
    let source = tiny(Variant::Qwen2Wide);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for width in [288, 512] {
        let sums =
            (0..width).map(|col| if col < 288 { 1.0 + (col * 37 % 101) as f32 } else { 0.0 }).collect();
        let entry = ImatrixEntry { sums, counts: vec![3] };
        let entries = (0..2).map(|layer| (format!("blk.{layer}.ffn_down.weight"), entry.clone())).collect();
        let path = out.path().join(format!("{width}.imatrix"));
        let target = Target { path: path.clone(), overwrite: Overwrite::Refuse };
        Imatrix { entries, chunk_size: 1, ..Imatrix::default() }.write(&target, ImatrixForm::Gguf).unwrap();
        let weighed = preset("q6_k").unwrap().with_imatrix(&path).unwrap();
        let note = plan(&checkpoint, &weighed).unwrap().notes;
        assert_eq!(note.len(), 2, "{note:?}");
        let target = out.path().join(format!("{width}.gguf"));
        run(source.path(), &weighed, &target).unwrap();
        files.push(Checkpoint::open(&target).unwrap());
    }
    let name = "model.layers.0.mlp.down_proj.weight";
    assert_eq!(values(&files[0], name), values(&files[1], name));
    let plain = out.path().join("plain.gguf");
    run(source.path(), &preset("q6_k").unwrap(), &plain).unwrap();
    assert_ne!(values(&files[0], name), values(&Checkpoint::open(&plain).unwrap(), name));
}

#[test]
fn the_embedded_model_is_padded_and_its_bytes_are_foretold() {
    let source = millet().join("model");
    let out = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let plan = plan(&checkpoint, &preset("q4_k_m").unwrap()).unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("896 padded to 1024")), "{:?}", plan.notes);
    let target = out.path().join("m.gguf");
    run(&source, &plan.recipe, &target).unwrap();
    assert_eq!(std::fs::metadata(&target).unwrap().len(), plan.output_bytes);
}

#[test]
fn zeros_that_pad_are_no_weights_of_the_model() {
    let source = tiny(Variant::Qwen2Wide);
    let out = tempfile::tempdir().unwrap();
    let weights = n_weights(&Checkpoint::open(source.path()).unwrap());
    let padded = out.path().join("padded.gguf");
    run(source.path(), &preset("q6_k").unwrap(), &padded).unwrap();
    let folder = out.path().join("folder");
    run(&padded, &conversion(Format::HuggingFace, None), &folder).unwrap();
    let shallower = out.path().join("shallower.gguf");
    run(&folder, &recipe("format = \"gguf\"\n[[step]]\nkind = \"depth\"\nlayers = [1]"), &shallower).unwrap();
    for (path, layers) in [(padded, 2), (folder, 2), (shallower, 1)] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        // Gate, up and down of 288 columns, padded to 512.
        let hidden = checkpoint.config().hidden_size as u64;
        assert_eq!(n_weights(&checkpoint) - own_weights(&checkpoint), layers * 3 * hidden * (512 - 288));
        assert!(layers < 2 || own_weights(&checkpoint) == weights, "{}", path.display());
    }
}

#[test]
fn feed_forward_blocks_are_padded_for_the_ranks_that_share_them_and_it_is_said() {
    // 160 columns are 5 groups of 32; two ranks take 3 each of 192.
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let at = |ranks: usize, size: usize| {
        let text = format!(
            "format = \"compressed-tensors\"\ntensor_parallel = {ranks}\n[[step]]\nkind = \"rtn\"\nbits = 4\n\
             granularity = {{ group = {{ size = {size} }} }}\n"
        );
        plan(&checkpoint, &recipe(&text))
    };
    let two = at(2, 32).unwrap();
    assert!(
        two.notes.iter().any(|note| note.contains("160 padded to 192") && note.contains("2 ranks")),
        "{:?}",
        two.notes
    );
    let down = two.tensors.iter().find(|tensor| tensor.name.ends_with("0.mlp.down_proj.weight")).unwrap();
    assert_eq!(down.shape, [64, 192]);
    // One rank has nothing to share out.
    assert!(at(1, 32).unwrap().tensors.iter().all(|tensor| !tensor.is_padded()));
    // 64 columns of o_proj are two groups of 32: none for four ranks, and heads cannot be padded.
    let error = at(4, 32).unwrap_err();
    assert!(matches!(&error, bitmill_pipeline::Error::UnevenRanks { ranks: 4, .. }), "{error}");
    assert!(error.to_string().contains("self_attn.o_proj") && error.hint().is_some(), "{error}");
    // Three ranks share neither four heads nor two.
    assert!(at(3, 32).unwrap_err().to_string().contains("2 heads"));
    // A group that divides no row by itself does once it is padded for.
    let out = tempfile::tempdir().unwrap();
    let text = "format = \"gptq\"\ntensor_parallel = 2\n[[step]]\nkind = \"rtn\"\nbits = 4\n\
                granularity = { group = { size = 64 } }\ntargets = [\"*.mlp.*\"]\n";
    run(source.path(), &recipe(text), &out.path().join("m")).unwrap();
    let written = Checkpoint::open(&out.path().join("m")).unwrap();
    assert_eq!(written.config().intermediate_size, 256);
}
