//! Whole runs on tiny models: what is written, what it reads back as, and what is refused.

mod common;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{Error, Plan, PlanOptions, Silent, compress, preset};
use bitmill_testkit::{Tiny, Variant, max_abs, max_abs_diff, millet, tiny};

use common::{compressed, first_logits, logits, names, plan, recipe, run};

#[test]
fn eight_bits_change_little_in_either_format_and_family() {
    // Random weights of hidden 256 magnify rounding to 4 %; wrongly permuted heads, swapped tensors or a lost bias move
    // logits by as much as they are.
    for variant in Variant::ALL {
        let source = tiny(variant);
        // Past this, positions of some sources have no form in any output, and the plan says so.
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let tokens = checkpoint.config().plain_positions().min(40);
        if variant.has_gguf_form() {
            let noted = plan(&checkpoint, &preset("q8_0").unwrap()).unwrap().notes;
            assert_eq!(noted.iter().any(|note| note.contains("16 tokens")), tokens == 16, "{noted:?}");
        }
        let dense = first_logits(source.path(), tokens);
        let out = tempfile::tempdir().unwrap();
        for (name, target) in [("q8_0", "m.gguf"), ("w8a16_g32", "folder"), ("w8a16_asym", "asymmetric")] {
            if name == "q8_0" && !variant.has_gguf_form() {
                continue;
            }
            let target = out.path().join(target);
            run(source.path(), &preset(name).unwrap(), &target).unwrap();
            let found = first_logits(&target, tokens);
            let moved = max_abs_diff(&found, &dense) / max_abs(&dense);
            // A token between two experts may go through the other one.
            let most = if checkpoint.config().experts.is_some() { 0.4 } else { 0.1 };
            assert!(moved < most, "{} as {name}: logits moved by {moved}", variant.name());
            assert!(moved > 0.0, "{} as {name}: nothing was rounded", variant.name());
        }
    }
}

#[test]
fn the_plan_predicts_every_byte_of_a_gguf_file() {
    let source = millet().join("model");
    let checkpoint = Checkpoint::open(&source).unwrap();
    let out = tempfile::tempdir().unwrap();
    for name in ["q8_0", "q4_0", "q4_k_m"] {
        let plan = plan(&checkpoint, &preset(name).unwrap()).unwrap();
        let target = out.path().join(format!("{name}.gguf"));
        let record = compress(&checkpoint, &plan, &target, Overwrite::Refuse, &Silent).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().len(), plan.output_bytes, "{name}");
        assert_eq!(record.written.bytes, plan.output_bytes);
        assert_eq!(record.document["schema"], "bitmill.compress/1");
        assert!(out.path().join(format!("{name}.gguf.bitmill.json")).is_file());
        assert!(out.path().join(format!("{name}.gguf.bitmill.md")).is_file());
    }
}

#[test]
fn a_card_says_what_was_done_what_it_cost_and_what_was_not_measured() {
    let source = millet().join("model");
    let out = tempfile::tempdir().unwrap();
    let eval = "Not measured. `bitmill eval OUT --against MODEL` measures it";
    let card = |name: &str, target: &str| {
        let path = out.path().join(target);
        let record = compressed(&Checkpoint::open(&source).unwrap(), &preset(name).unwrap(), &path).unwrap();
        let beside = if path.is_dir() {
            path.join("bitmill.md")
        } else {
            out.path().join(format!("{target}.bitmill.md"))
        };
        (std::fs::read_to_string(beside).unwrap(), record.document)
    };
    for (name, target) in [("w4a16_g128", "m"), ("q4_k_m", "m.gguf"), ("nf4", "n")] {
        let (card, record) = card(name, target);
        assert!(card.starts_with("# model, compressed\n\n") && card.contains(eval), "{card}");
        assert!(card.contains(&format!("by the recipe `{name}` of bitmill")), "{card}");
        assert!(card.contains(&format!("```toml\n{}```", record["recipe"].as_str().unwrap())), "{card}");
        assert!(!card.contains("## Calibration"), "{card}");
        // The tensor that lost most, with the error that its record has.
        let tensors = record["tensors"].as_array().unwrap();
        let error = |tensor: &serde_json::Value| tensor["relative_error"].as_f64().unwrap();
        let worst = tensors.iter().max_by(|a, b| error(a).total_cmp(&error(b))).unwrap();
        let line = format!(
            "|---|---|---|\n| `{}` | {} | {:.4} |",
            worst["name"].as_str().unwrap(),
            worst["to"].as_str().unwrap(),
            error(worst)
        );
        assert!(card.contains(&line), "{line}\n{card}");
    }
    let (shallow, _) = card("depth_25", "shallow");
    assert!(shallow.contains("- 1 of 4 layers removed: 1\n") && shallow.contains(eval), "{shallow}");
    let (pruned, _) = card("prune_50", "pruned");
    assert!(pruned.contains("- 28 tensors: 50 % zeros"), "{pruned}");
    let (plain, _) = card("bf16", "plain.gguf");
    assert!(plain.starts_with("# model, converted\n"), "{plain}");
    assert!(plain.contains("Not measured; every weight has the value that it had. `bitmill eval"), "{plain}");
    assert!(!plain.contains("## Tensors"), "{plain}");
}

#[test]
fn threads_change_no_byte() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    for name in ["q4_k_m", "q4_0", "w4a16_g64_asym", "w3a16_g64_asym_clip", "nvfp4", "w8a8_fp8_block"] {
        let mut files = Vec::new();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let target = out.path().join(format!("{name}-{threads}"));
            pool.install(|| run(source.path(), &preset(name).unwrap(), &target)).unwrap();
            files.push(if target.is_dir() {
                names(&target).iter().map(|file| std::fs::read(target.join(file)).unwrap()).collect()
            } else {
                let card = target.with_file_name(format!("{name}-{threads}.bitmill.md"));
                vec![std::fs::read(&target).unwrap(), std::fs::read(card).unwrap()]
            });
        }
        // The name of a GGUF model comes from its source, so nothing may differ.
        assert!(files[0] == files[1], "{name}");
    }
}

#[test]
fn a_folder_is_sharded_and_carries_every_other_file_over() {
    let source = Tiny::new(Variant::Qwen2Tied).shards(2).write();
    std::fs::write(source.path().join("README.md"), "read me").unwrap();
    let whole = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let recipe = preset("w4a16_g32").unwrap();
    let options = PlanOptions { shard_bytes: 40_000, ..PlanOptions::default() };
    let target = whole.path().join("sharded");
    let plan = Plan::new(&checkpoint, &recipe, &options).unwrap();
    compress(&checkpoint, &plan, &target, Overwrite::Refuse, &Silent).unwrap();
    let files = names(&target);
    assert!(files.iter().filter(|name| name.ends_with(".safetensors")).count() > 1, "{files:?}");
    assert!(files.contains(&"model.safetensors.index.json".to_owned()), "{files:?}");
    for carried in ["README.md", "tokenizer.json"] {
        assert_eq!(
            std::fs::read(target.join(carried)).unwrap(),
            std::fs::read(source.path().join(carried)).unwrap()
        );
    }
    run(source.path(), &recipe, &whole.path().join("whole")).unwrap();
    assert_eq!(logits(&target), logits(&whole.path().join("whole")));

    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(target.join("config.json")).unwrap()).unwrap();
    let quantization = &config["quantization_config"];
    assert_eq!(quantization["quant_method"], "compressed-tensors");
    assert_eq!(quantization["format"], "pack-quantized");
    assert_eq!(
        quantization["ignore"],
        serde_json::json!(["lm_head"]),
        "the head is ignored although it is tied"
    );
    assert_eq!(quantization["config_groups"]["group_0"]["weights"]["group_size"], 32);
}

#[test]
fn the_last_step_that_targets_a_tensor_decides() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let recipe = recipe(
        "format = \"compressed-tensors\"\n\
         [[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\nskip = [\"*.1.self_attn.o_proj.weight\"]\n\
         [[step]]\nkind = \"rtn\"\ntargets = [\"*.down_proj.weight\"]\nbits = 8\ngranularity = \"channel\"\n",
    );
    let plan = plan(&checkpoint, &recipe).unwrap();
    let to = |name: &str| plan.tensors.iter().find(|tensor| tensor.name == name).unwrap().to.to_string();
    assert_eq!(to("model.layers.0.mlp.down_proj.weight"), "8-bit g160");
    assert_eq!(to("model.layers.0.mlp.up_proj.weight"), "4-bit g32");
    assert_eq!(to("model.layers.1.self_attn.o_proj.weight"), "f32");
    assert_eq!(to("lm_head.weight"), "f32");
    assert_eq!(to("model.layers.0.self_attn.q_proj.bias"), "f32");
    let out = tempfile::tempdir().unwrap();
    run(source.path(), &recipe, &out.path().join("mixed")).unwrap();
    assert!(max_abs_diff(&logits(&out.path().join("mixed")), &logits(source.path())) > 0.0);
}

#[test]
fn a_mix_can_be_overridden_for_one_tensor() {
    let checkpoint = Checkpoint::open(&millet().join("model")).unwrap();
    let recipe = recipe(
        "format = \"gguf\"\npad = \"off\"\n[[step]]\nkind = \"mix\"\nmix = \"q4_k_m\"\n\
         [[step]]\nkind = \"block\"\ntargets = [\"lm_head.weight\"]\ntype = \"q8_0\"\n",
    );
    let plan = plan(&checkpoint, &recipe).unwrap();
    let find = |name: &str| plan.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    assert_eq!(find("lm_head.weight").to.to_string(), "q8_0");
    assert_eq!(find("model.layers.1.mlp.up_proj.weight").to.to_string(), "q4_k");
    let down = find("model.layers.1.mlp.down_proj.weight");
    assert_eq!(down.to.to_string(), "q5_0", "896 is no multiple of 256");
    assert!(down.reason.contains("896"), "{}", down.reason);
}

#[test]
fn refuses_a_weight_that_is_not_finite_and_leaves_nothing() {
    for bad in [f32::NAN, f32::INFINITY] {
        let source = Tiny::new(Variant::Llama).write_with(|name, shape, values| {
            if name == "model.layers.1.self_attn.k_proj.weight" {
                values[5 * shape[1] + 7] = bad;
            }
        });
        for name in ["q8_0", "w8a16"] {
            let out = tempfile::tempdir().unwrap();
            let error = run(source.path(), &preset(name).unwrap(), &out.path().join("m.gguf")).unwrap_err();
            let said = error.to_string();
            assert!(said.contains("model.layers.1.self_attn.k_proj.weight"), "{said}");
            assert!(said.contains("row 5, column 7"), "{said}");
            assert!(error.hint().is_some());
            assert!(names(out.path()).is_empty(), "{:?}", names(out.path()));
        }
    }
}

#[test]
fn refuses_an_existing_target_and_replaces_it_when_told() {
    let source = tiny(Variant::Llama);
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.gguf");
    std::fs::write(&target, "precious").unwrap();
    let error = run(source.path(), &preset("q8_0").unwrap(), &target).unwrap_err();
    assert!(error.to_string().contains("m.gguf"), "{error}");
    assert!(error.hint().unwrap().contains("--force"));
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let plan = plan(&checkpoint, &preset("q8_0").unwrap()).unwrap();
    compress(&checkpoint, &plan, &target, Overwrite::Force, &Silent).unwrap();
    assert!(Checkpoint::open(&target).unwrap().is_quantized());
}

#[test]
fn a_quantized_source_needs_permission() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let first = out.path().join("first.gguf");
    run(source.path(), &preset("q8_0").unwrap(), &first).unwrap();
    let error = run(&first, &preset("q4_0").unwrap(), &out.path().join("second.gguf")).unwrap_err();
    assert!(matches!(error, Error::AlreadyQuantized { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--allow-requantize"));

    // With it, rows that the first file holds permuted come out in their places again.
    let checkpoint = Checkpoint::open(&first).unwrap();
    let options = PlanOptions { allow_requantize: true, ..PlanOptions::default() };
    let plan = Plan::new(&checkpoint, &preset("q8_0").unwrap(), &options).unwrap();
    let second = out.path().join("second.gguf");
    compress(&checkpoint, &plan, &second, Overwrite::Refuse, &Silent).unwrap();
    let moved = max_abs_diff(&logits(&second), &logits(&first)) / max_abs(&logits(&first));
    assert!(moved < 1e-3, "q8_0 of q8_0 moved logits by {moved}");

    // A folder as well, with the config and tokenizer that the file holds.
    let plan = Plan::new(&checkpoint, &preset("w8a16").unwrap(), &options).unwrap();
    let folder = out.path().join("folder");
    compress(&checkpoint, &plan, &folder, Overwrite::Refuse, &Silent).unwrap();
    let moved = max_abs_diff(&logits(&folder), &logits(&first)) / max_abs(&logits(&first));
    assert!(moved > 0.0 && moved < 0.1, "w8a16 of q8_0 moved logits by {moved}");
}

#[test]
fn refuses_group_sizes_that_do_not_divide_and_lists_those_that_do() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let error = plan(&checkpoint, &preset("w4a16_g128").unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`model.layers.0.mlp.down_proj.weight`: 160 input features do not divide into groups of 128"
    );
    assert!(error.hint().unwrap().contains("16, 32"), "{:?}", error.hint());
    let block = recipe("format = \"gguf\"\n[[step]]\nkind = \"block\"\ntype = \"q4_k\"\n");
    let error = plan(&checkpoint, &block).unwrap_err();
    assert!(error.to_string().contains("groups of 256"), "{error}");
}

#[test]
fn refuses_patterns_that_do_nothing() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let with = |line: &str| {
        recipe(&format!(
            "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 8\ngranularity = \"channel\"\n{line}\n"
        ))
    };
    for line in ["targets = [\"*.experts.*\"]", "skip = [\"lm_haed.weight\"]"] {
        let error = plan(&checkpoint, &with(line)).unwrap_err();
        assert!(matches!(error, Error::PatternMatchesNothing { .. }), "{line}: {error}");
    }
    for line in ["targets = [\"*norm.weight\"]", "targets = [\"*.bias\"]", "targets = [\"*embed_tokens*\"]"] {
        let error = plan(&checkpoint, &with(line)).unwrap_err();
        assert!(matches!(error, Error::PatternMatchesNoMatrix { .. }), "{line}: {error}");
    }
}

#[test]
fn refuses_to_split_what_runtimes_fuse() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    for (targets, members) in [("*.v_proj.weight", "q/k/v"), ("*.1.mlp.up_proj.weight", "gate/up")] {
        let recipe = recipe(&format!(
            "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = {{ group = {{ size = 32 }} }}\n\
             [[step]]\nkind = \"rtn\"\ntargets = [\"{targets}\"]\nbits = 8\ngranularity = \"channel\"\n"
        ));
        let error = plan(&checkpoint, &recipe).unwrap_err();
        assert!(error.to_string().contains(members), "{error}");
    }
}

#[test]
fn all_zero_rows_and_groups_stay_zero() {
    let source = Tiny::new(Variant::LlamaWide).write_with(|name, shape, values| {
        if name.ends_with("gate_proj.weight") {
            values[..3 * shape[1]].fill(0.0);
            values[4 * shape[1]..4 * shape[1] + 128].fill(0.0);
        }
    });
    let out = tempfile::tempdir().unwrap();
    for name in [
        "q8_0",
        "q4_0",
        "q4_k_m",
        "q2_k",
        "q3_k_m",
        "q5_k_m",
        "iq4_xs",
        "iq3_m",
        "tq1_0",
        "mxfp4_moe",
        "w4a16_g32",
        "w8a16",
        "w4a16_g128_asym",
        "w3a16_g32_asym_clip",
    ] {
        let target = out.path().join(name);
        run(source.path(), &preset(name).unwrap(), &target).unwrap();
        assert!(logits(&target).iter().all(|logit| logit.is_finite()), "{name}");
    }
}

#[test]
fn groups_of_two_sizes_read_back_by_the_modules_they_name() {
    // 160 columns hold one group of 160; 64 columns hold one of 64: by shapes alone either group fits some matrix.
    let source = tiny(Variant::Qwen2);
    let recipe = recipe(
        "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\n\
         [[step]]\nkind = \"rtn\"\ntargets = [\"*.0.*.down_proj.weight\"]\nbits = 4\ngranularity = { group = { size = 160 } }\n\
         [[step]]\nkind = \"rtn\"\ntargets = [\"*.o_proj.weight\"]\nbits = 4\ngranularity = { group = { size = 64 } }\n",
    );
    let out = tempfile::tempdir().unwrap();
    run(source.path(), &recipe, &out.path().join("m")).unwrap();
    let written = Checkpoint::open(&out.path().join("m")).unwrap();
    let encoding = |name: &str| written.tensor(name).unwrap().info.encoding.to_string();
    assert_eq!(encoding("model.layers.0.mlp.down_proj.weight"), "4-bit g160");
    assert_eq!(encoding("model.layers.1.mlp.down_proj.weight"), "4-bit g32");
    assert_eq!(encoding("model.layers.1.self_attn.o_proj.weight"), "4-bit g64");
}

#[test]
fn a_folder_of_links_is_a_checkpoint_and_plan_counts_every_file() {
    let source = tiny(Variant::Qwen2);
    let links = tempfile::tempdir().unwrap();
    for name in names(source.path()) {
        std::os::unix::fs::symlink(source.path().join(&name), links.path().join(&name)).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    for (name, target) in [("w4a16_g32", "folder"), ("q8_0", "m.gguf")] {
        let target = out.path().join(target);
        let checkpoint = Checkpoint::open(links.path()).unwrap();
        let plan = plan(&checkpoint, &preset(name).unwrap()).unwrap();
        compress(&checkpoint, &plan, &target, Overwrite::Refuse, &Silent).unwrap();
        let written = Checkpoint::open(&target).unwrap();
        assert_eq!(plan.output_bytes, bitmill_pipeline::size_on_disk(&written), "{name}");
    }
    assert!(out.path().join("folder/tokenizer.json").is_file());
}

#[test]
fn never_replaces_its_own_source_or_somebody_elses_record() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let before = std::fs::read(source.path().join("model.safetensors")).unwrap();
    let into_itself = plan(&checkpoint, &preset("w8a16").unwrap()).unwrap();
    let error = compress(&checkpoint, &into_itself, source.path(), Overwrite::Force, &Silent).unwrap_err();
    assert!(matches!(error, Error::OutputIsSource { .. }), "{error}");
    assert_eq!(std::fs::read(source.path().join("model.safetensors")).unwrap(), before);

    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("m.gguf.bitmill.json"), "precious").unwrap();
    let error = run(source.path(), &preset("q8_0").unwrap(), &out.path().join("m.gguf")).unwrap_err();
    assert!(error.to_string().contains("m.gguf.bitmill.json exists"), "{error}");
    assert_eq!(names(out.path()), ["m.gguf.bitmill.json"]);
    let card = out.path().join("n.gguf.bitmill.md");
    std::fs::write(&card, "precious").unwrap();
    let error = run(source.path(), &preset("q8_0").unwrap(), &out.path().join("n.gguf")).unwrap_err();
    assert!(error.to_string().contains("n.gguf.bitmill.md exists"), "{error}");
    assert_eq!(std::fs::read(card).unwrap(), b"precious");
}

#[test]
fn refuses_a_recipe_that_quantizes_nothing() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let recipe = recipe(
        "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nskip = [\"*\"]\nbits = 4\ngranularity = \"channel\"\n",
    );
    assert!(matches!(plan(&checkpoint, &recipe).unwrap_err(), Error::NothingToDo { .. }));
}
