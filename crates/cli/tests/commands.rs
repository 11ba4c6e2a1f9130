//! The commands as a user types them: output, exit codes, what is left on disk.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use bitmill_testkit::{Tiny, Variant, millet, tiny};
use serde_json::Value;

fn bitmill(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitmill")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Stdout of a run that must succeed.
fn succeeds(arguments: &[&str]) -> String {
    let output = bitmill(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let mut arguments = arguments.to_vec();
    arguments.push("--json");
    serde_json::from_str(&succeeds(&arguments)).unwrap()
}

/// Stderr of a run that must be refused: exit code 2, nothing on stdout, no panic.
fn refused(arguments: &[&str]) -> String {
    let output = bitmill(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

#[test]
fn several_recipes_have_one_pass_and_an_output_each() {
    let place = tempfile::tempdir().unwrap();
    let (folder, alone) = (place.path().join("out"), place.path().join("alone"));
    let few = ["--samples", "8", "--length", "64", "--held-out", "2"];
    let names = ["--recipe", "gptaq_w4a16_g128", "--recipe", "gptaq_q4_k_m", "--recipe", "q8_0"];
    let plans = json(&[&["plan"], &names[..], &few].concat());
    assert_eq!(plans["schema"], "bitmill.plans/1");
    let peaks: Vec<u64> =
        plans["plans"].as_array().unwrap().iter().map(|plan| plan["peak_bytes"].as_u64().unwrap()).collect();
    assert!(peaks.len() == 3 && peaks.iter().all(|peak| *peak < plans["peak_bytes"].as_u64().unwrap()));
    let text_of_plan = succeeds(&[&["plan"], &names[..], &few].concat());
    assert!(text_of_plan.contains("in one pass: peak memory about"), "{text_of_plan}");

    let compress = [&["compress", "-o", text(&folder)], &names[..], &few].concat();
    let said = succeeds(&compress);
    assert!(said.contains("taken over"), "{said}");
    let single = ["compress", "-o", text(&alone), "--recipe", "gptaq_w4a16_g128"];
    succeeds(&[&single[..], &few].concat());
    let read = |path: &Path| std::fs::read(path).unwrap();
    for file in ["model.safetensors", "config.json", "bitmill.json", "bitmill.md"] {
        assert!(read(&folder.join("gptaq_w4a16_g128").join(file)) == read(&alone.join(file)), "{file}");
    }
    assert!(folder.join("gptaq_q4_k_m.gguf").is_file() && folder.join("q8_0.gguf").is_file());
    // What is there is left, and by itself refused.
    let again = json(&compress);
    let resumed = |output: &Value| output["resumed_tensors"].as_u64().unwrap() > 0;
    assert!(again["outputs"].as_array().unwrap().iter().all(resumed), "{again}");
    let other = [&["compress", "-o", text(&folder), "--samples", "9"], &names[..], &few[2..]].concat();
    assert!(refused(&other).contains("exists"), "another plan's output is not replaced");

    let twice = refused(&["plan", "--recipe", "q8_0", "--recipe", "q8_0"]);
    assert!(twice.contains("two recipes are called `q8_0`"), "{twice}");
}

#[test]
fn single_tensors_have_the_types_that_flags_give_them() {
    let planned = ["plan", "--recipe", "q4_k_m", "--tensor-type", "*.mlp.down_proj.weight=Q8_0"];
    let plan =
        json(&[&planned[..], &["--tensor-type", "model.layers.{0}.mlp.down_proj.weight=bf16"]].concat());
    let of = |name: &str| {
        let tensors = plan["tensors"].as_array().unwrap();
        tensors.iter().find(|tensor| tensor["name"] == name).unwrap()["to"].clone()
    };
    assert_eq!(of("model.layers.0.mlp.down_proj.weight"), "bf16");
    assert_eq!(of("model.layers.1.mlp.down_proj.weight"), "q8_0");
    assert_eq!(of("model.layers.1.mlp.up_proj.weight"), "q4_k");
    for (flag, said) in [
        ("ffn_down=q8_0", "`ffn_down` matches no tensor"),
        ("*.input_layernorm.weight=q8_0", "matches only tensors that"),
        ("*.down_proj.weight=q9", "`q9` is no type"),
        ("*.down_proj.weight", "PATTERN=TYPE"),
    ] {
        let stderr = refused(&["plan", "--recipe", "q4_k_m", "--tensor-type", flag]);
        assert!(stderr.contains(said), "{flag}: {stderr}");
    }
    let stderr = refused(&["plan", "--recipe", "w4a16_g128", "--tensor-type", "*.down_proj.weight=q8_0"]);
    assert!(stderr.contains("no use for"), "{stderr}");
}

#[test]
fn recipes_are_listed_and_printed_as_files_that_plan_takes() {
    let listed = succeeds(&["recipes"]);
    for name in ["q8_0", "q4_0", "q4_k_m", "w8a16", "w4a16_g128"] {
        assert!(listed.contains(name), "{listed}");
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["q4_k_m", "w4a16_g128"] {
        let file = folder.path().join("mine.toml");
        std::fs::write(&file, succeeds(&["recipes", name])).unwrap();
        let (from_file, from_name) =
            (json(&["plan", "--recipe", text(&file)]), json(&["plan", "--recipe", name]));
        assert_eq!(from_file["schema"], "bitmill.plan/1");
        assert_eq!(from_file["tensors"], from_name["tensors"]);
        assert_eq!(from_file["bytes"], from_name["bytes"]);
    }
    assert!(refused(&["recipes", "q9"]).contains("q9"));
}

#[test]
fn inspect_shows_the_embedded_model_and_what_would_fit() {
    let shown = succeeds(&["inspect", "--tensors"]);
    for part in
        ["millet", "Qwen2ForCausalLM", "4.39 M", "q4_k_m", "GiB", "model.layers.3.mlp.down_proj.weight"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let document = json(&["inspect"]);
    assert_eq!(document["schema"], "bitmill.inspect/1");
    assert_eq!(document["intermediate_size"], 896);
    assert_eq!(document["tensors"].as_array().unwrap().len(), 4 * 12 + 3);
}

#[test]
fn compress_writes_what_plan_said_and_eval_reads_it_against_dense() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("millet-q4_0.gguf");
    let plan = json(&["plan", "--recipe", "q4_0"]);
    let record = json(&["compress", "--recipe", "q4_0", "-o", text(&out)]);
    assert_eq!(record["schema"], "bitmill.compress/1");
    assert_eq!(record["bytes"], plan["bytes"]);
    assert_eq!(plan["bytes"], std::fs::metadata(&out).unwrap().len());
    assert!(refused(&["compress", "--recipe", "q4_0", "-o", text(&out)]).contains("--force"));
    succeeds(&["compress", "--recipe", "q4_0", "-o", text(&out), "--force"]);

    let few = ["--windows", "2", "--items", "4"];
    let against = json(&[&["eval", text(&out), "--against", "millet", "--fast-path"][..], &few].concat());
    assert_eq!(against["schema"], "bitmill.eval/1");
    assert_eq!(against["windows"], 2);
    // A file made from millet is measured as millet is: windows of 256, all five tasks.
    assert_eq!(against["targets"], 2 * 255);
    assert_eq!(against["tasks"].as_object().unwrap().len(), 5);
    assert!(against["kl_mean"].as_f64().unwrap() > 0.0);
    assert!(against["kl_fast_path"].as_f64().unwrap() > 0.0);
    let alone = json(&[&["eval", text(&out), "--threads", "1"][..], &few].concat());
    assert_eq!(alone["perplexity"], against["perplexity"], "threads and company change no figure");
}

#[test]
fn a_missed_bound_is_exit_code_1() {
    // millet with a third of its weights, those in the middle of the file, set to zero.
    let folder = tempfile::tempdir().unwrap();
    let (dense, out) = (millet().join("model"), folder.path().to_owned());
    for file in std::fs::read_dir(&dense).unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        if file.ends_with("model.safetensors") {
            let third = bytes.len() / 3;
            bytes[third..2 * third].fill(0);
        }
        std::fs::write(out.join(file.file_name().unwrap()), bytes).unwrap();
    }
    let task = millet().join("tasks/sums.jsonl");
    let eval = |least: &str| {
        bitmill(&[
            "eval",
            text(&out),
            "--against",
            text(&dense),
            "--windows",
            "1",
            "--items",
            "60",
            "--task",
            text(&task),
            "--min-recovery",
            least,
            "--json",
        ])
    };
    let met = eval("0.05");
    assert_eq!(met.status.code(), Some(0), "{}", String::from_utf8_lossy(&met.stderr));
    let report: Value = serde_json::from_slice(&met.stdout).unwrap();
    let recovery = report["recovery"].as_f64().unwrap();
    assert!((0.05..0.9).contains(&recovery), "{recovery}");
    let missed = eval("1.0");
    assert_eq!(missed.status.code(), Some(1));
    assert!(!missed.stdout.is_empty(), "the figures are printed all the same");
    assert!(String::from_utf8_lossy(&missed.stderr).contains("recovery"));
}

#[test]
fn bench_prints_latency_and_peak_memory() {
    let document = json(&["bench", "--prefill", "16", "--decode", "3", "--repeats", "2", "--seed", "7"]);
    assert_eq!(document["schema"], "bitmill.bench/1");
    assert_eq!(document["decode_tokens"], 6);
    assert_eq!(document["seed"], 7);
    assert!(document["prefill_ms"]["median"].as_f64().unwrap() > 0.0);
    assert!(document["peak_bytes"].as_u64().unwrap() > 1 << 20);
}

#[test]
fn compare_prints_a_table_and_writes_both_reports() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/b");
    let table = succeeds(&[
        "compare",
        "--recipe",
        "q8_0",
        "--recipe",
        "w4a16_g64",
        "--windows",
        "1",
        "--items",
        "2",
        "-o",
        text(&out),
    ]);
    for part in ["none", "q8_0", "w4a16_g64", "perplexity"] {
        assert!(table.contains(part), "{table}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["schema"], "bitmill.compare/1");
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for name in [
        "strategy",
        "bytes",
        "ratio",
        "bits_per_weight",
        "prefill_ms",
        "decode_ms",
        "peak_bytes",
        "perplexity",
        "perplexity_stderr",
        "perplexity_second_half",
        "targets",
        "windows",
        "tasks",
        "accuracy",
        "recovery",
    ] {
        assert!(rows.iter().all(|row| !row[name].is_null()), "{name}");
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("w4a16_g64"));
    let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn compare_measures_models_that_are_there_already() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("a")).unwrap();
    succeeds(&["compress", "--recipe", "q4_0", "-o", text(&at("m.gguf"))]);
    succeeds(&["compress", "--recipe", "w8a16", "-o", text(&at("a/m.gguf"))]);
    let quick = ["--windows", "1", "--items", "1", "-o", text(&at("out")), "--also"].map(str::to_owned);
    let compared = |more: &[&str]| {
        let quick: Vec<&str> = quick.iter().map(String::as_str).collect();
        bitmill(&[&["compare"], &quick[..], more].concat())
    };
    let (first, second) = (at("m.gguf"), at("a/m.gguf"));
    let output = compared(&[text(&first), "--also", text(&second), "--no-recipes", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["strategy"].as_str().unwrap()).collect();
    let own = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(names, ["none", &format!("{own}/m.gguf"), "a/m.gguf"]);
    assert_eq!((&rows[1]["format"], &rows[2]["format"]), (&"gguf".into(), &"compressed-tensors".into()));
    assert_eq!(rows[1]["path"], text(&first));
    assert!(rows[1]["recipe"].is_null() && rows[1]["kl_mean"].as_f64().unwrap() > 0.0);
    assert!(first.is_file() && second.is_dir());

    // Of what is named every row is asked for.
    let other = tiny(Variant::Qwen2);
    let output = compared(&[text(other.path()), "--recipe", "q8_0"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(out.contains("q8_0") && out.contains("the dense model has"), "{out}");
    assert!(err.contains("1 of the strategies and models failed"), "{err}");

    std::fs::remove_dir_all(at("out")).unwrap();
    let absent = at("absent");
    let early = |arguments: &[&str]| {
        let said = refused(&[&["compare", "-o", text(&at("out"))], arguments].concat());
        assert!(!at("out").exists(), "nothing is begun");
        said
    };
    let said = early(&["--also", text(&absent)]);
    assert!(said.contains("absent") && said.contains("hint: "), "{said}");
    let again = at("a/../m.gguf");
    let said = early(&["--also", text(&first), "--also", text(&again)]);
    assert!(said.contains("the same model"), "{said}");
    let within = second.join("report");
    let said = refused(&["compare", "--also", text(&second), "-o", text(&within)]);
    assert!(said.contains("--output lies in it") && !within.exists(), "{said}");
}

#[test]
fn other_models_run_with_files_of_their_own() {
    let model = tiny(Variant::LlamaWide);
    let folder = tempfile::tempdir().unwrap();
    let (words, task) = (folder.path().join("words.txt"), folder.path().join("pairs.jsonl"));
    std::fs::write(&words, "the quick brown fox jumps over the lazy dog. ".repeat(40)).unwrap();
    std::fs::write(&task, "{\"prompt\": \"\", \"choices\": [\" yes\", \" no\"], \"answer\": 1}\n").unwrap();
    let report =
        json(&["eval", text(model.path()), "--text", text(&words), "--window", "64", "--task", text(&task)]);
    assert_eq!(report["tasks"]["pairs"]["n"], 1);
    assert!(report["perplexity"].as_f64().unwrap() > 1.0);
    let short = refused(&["eval", text(model.path()), "--text", text(&words), "--window", "100000"]);
    assert!(short.contains("words.txt") && short.contains("hint: "), "{short}");
}

#[test]
fn bad_input_is_refused_with_the_file_and_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let absent = refused(&["inspect", text(&at("absent"))]);
    assert!(absent.contains("absent"), "{absent}");
    assert!(refused(&["eval", "hf:Qwen"]).contains("hf:Qwen"));

    std::fs::write(at("cut.gguf"), b"GGUF\x03\0\0\0").unwrap();
    assert!(refused(&["inspect", text(&at("cut.gguf"))]).contains("cut.gguf"));

    let model = tiny(Variant::Qwen2);
    let weights = model.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    assert!(refused(&["eval", text(model.path())]).contains("model.safetensors"));

    std::fs::write(
        at("odd.toml"),
        "format = \"gguf\"\nspeed = 1\n[[step]]\nkind = \"mix\"\nmix = \"q8_0\"\n",
    )
    .unwrap();
    let odd = refused(&["plan", "--recipe", text(&at("odd.toml"))]);
    assert!(odd.contains("odd.toml") && odd.contains("speed") && odd.contains("hint: "), "{odd}");
    assert!(refused(&["plan", "--recipe", "q4_k_xxl"]).contains("q4_k_xxl"));

    std::fs::write(
        at("empty.toml"),
        "format = \"gguf\"\n[[step]]\nkind = \"block\"\ntargets = [\"*.expert.*\"]\ntype = \"q8_0\"\n",
    )
    .unwrap();
    let nothing = refused(&["compress", "--recipe", text(&at("empty.toml")), "-o", text(&at("x.gguf"))]);
    assert!(nothing.contains("`*.expert.*` matches no tensor"), "{nothing}");

    let uneven = refused(&["compress", "--recipe", "w4a16_g256", "-o", text(&at("x"))]);
    assert!(uneven.contains("mlp.down_proj.weight") && uneven.contains("32, 64, 128"), "{uneven}");

    let nan = Tiny::new(Variant::Llama).write_with(|name, _, values| {
        if name == "lm_head.weight" {
            values[3] = f32::NAN;
        }
    });
    let nan = refused(&["compress", text(nan.path()), "--recipe", "q8_0", "-o", text(&at("x.gguf"))]);
    assert!(nan.contains("lm_head.weight") && nan.contains("NaN"), "{nan}");

    // A file where a folder should be: no one, root included, can write below it.
    let below = at("odd.toml").join("x.gguf");
    let cannot = refused(&["compress", "--recipe", "q8_0", "-o", text(&below)]);
    assert!(cannot.contains("odd.toml"), "{cannot}");
    assert!(refused(&["compare", "-o", text(&below)]).contains("odd.toml"));

    std::fs::write(at("bad.jsonl"), "{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 0}\n").unwrap();
    let task = refused(&["eval", "--task", text(&at("bad.jsonl"))]);
    assert!(task.contains("bad.jsonl, line 1"), "{task}");

    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "nothing half-written stays: {left:?}");
}

#[test]
fn wrong_flags_are_exit_code_2() {
    for arguments in [
        &["eval", "--window", "1"][..],
        &["compress", "-o", "x"],
        &["compare", "--no-recipes"],
        &["compare", "--no-recipes", "--also", "x", "--recipe", "q8_0"],
        &["melt"],
        &["plan", "--recipe", "q8_0", "--shard-size", "many"],
    ] {
        let output = bitmill(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitmill"))
        .args(["inspect", "--tensors"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn converts_there_and_back_and_says_what_was_unpacked() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let convert = |from: &Path, to: &str, name: &str| {
        succeeds(&["convert", text(from), "--to", to, "-o", text(&at(name))])
    };
    convert(source.path(), "gguf", "m.gguf");
    convert(&at("m.gguf"), "hugging-face", "back");
    let evaluated = |model: &Path| {
        let document = json(&["eval", text(model), "--no-tasks", "--window", "64", "--windows", "2"]);
        document["perplexity"].as_f64().unwrap()
    };
    assert_eq!(evaluated(source.path()), evaluated(&at("back")));

    succeeds(&["compress", text(source.path()), "--recipe", "q4_k_m", "-o", text(&at("q.gguf"))]);
    let said = convert(&at("q.gguf"), "gguf", "copy.gguf");
    assert!(said.contains("tensors of q4_k copied as they are"), "{said}");
    let said = convert(&at("q.gguf"), "hugging-face", "plain");
    assert!(said.contains("tensors of q4_k unpacked to f16"), "{said}");

    succeeds(&["compress", text(source.path()), "--recipe", "w4a16_g32", "-o", text(&at("packed"))]);
    let said = convert(&at("packed"), "gptq", "columns");
    assert!(said.contains("tensors of 4-bit g32 copied as they are"), "{said}");

    let to_onnx = bitmill(&["convert", text(source.path()), "--to", "onnx", "-o", text(&at("x"))]);
    assert_eq!(to_onnx.status.code(), Some(2));
    let said = refused(&["convert", text(source.path()), "--to", "gguf", "-o", text(&at("m.gguf"))]);
    assert!(said.contains("--force"), "{said}");
}

/// Runs with `input` on stdin; stdout and stderr of a run that has to succeed.
fn talks(arguments: &[&str], input: &str) -> (String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitmill"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    (out, err)
}

#[test]
fn generate_continues_a_text_from_wherever_it_comes() {
    let prompt = "The capital of Barcorland is";
    let (text, why) = talks(&["generate", "--prompt", prompt, "-n", "4"], "");
    assert!(text.starts_with(" lume"), "{text}");
    assert!(why.contains("4 written") && why.contains("as many as asked for"), "{why}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, prompt).unwrap();
    assert_eq!(talks(&["generate", "--file", file.to_str().unwrap(), "-n", "4"], "").0, text);
    assert_eq!(talks(&["generate", "-n", "4"], prompt).0, text);

    let document = json(&["generate", "--prompt", prompt, "-n", "4", "--exact"]);
    assert_eq!(document["schema"], "bitmill.generate/1");
    assert_eq!(document["path"], "exact");
    assert_eq!(document["stop"], "length");
    assert_eq!(document["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(document["text"], text.trim_end_matches('\n'));
    assert!(document["prefill_ms"].as_f64().unwrap() > 0.0 && document["decode_ms"].as_f64().unwrap() > 0.0);

    let full = json(&["generate", "--prompt", prompt, "--context", "12", "-n", "99"]);
    assert_eq!(full["stop"], "context");
    assert!(refused(&["generate", "--prompt", ""]).contains("nothing to continue"));
    assert!(refused(&["generate", "--prompt", prompt, "--context", "2"]).contains("the context has 2"));
}

#[test]
fn one_seed_draws_the_same_tokens_with_any_number_of_threads() {
    let draw = |seed: &str, threads: &str| {
        let arguments = ["generate", "--prompt", "Once", "-n", "16", "-t", "1.5", "--top-p", "0.95"];
        let report = json(&[&arguments[..], &["--seed", seed, "--threads", threads]].concat());
        assert_eq!(report["sampling"]["temperature"], 1.5);
        report["tokens"].clone()
    };
    assert_eq!(draw("5", "1"), draw("5", "2"));
    assert_ne!(draw("5", "1"), draw("6", "1"));
}

#[test]
fn chat_answers_by_the_models_template() {
    let question = "Is this review positive or negative? The soup was cold and the waiter rude.";
    let (answer, _) = talks(&["chat", "--prompt", question], "");
    assert_eq!(answer, "negative\n");
    let lines = format!("{question}\n\n/help\n/nonsense\n/reset\n{question}\n/exit\nnever said\n");
    let (answers, err) = talks(&["chat"], &lines);
    assert_eq!(answers, "negative\nnegative\n");
    assert!(err.contains("/reset forgets") && err.contains("there is no /nonsense"), "{err}");

    let (document, _) =
        talks(&["chat", "--json", "--system", "Be fair."], &format!("{question}\n{question}\n"));
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["schema"], "bitmill.chat/1");
    assert_eq!(document["system"], "Be fair.");
    let turns = document["turns"].as_array().unwrap();
    assert_eq!((turns.len(), &turns[0]["stop"]), (2, &Value::from("end")));
    assert!(turns[1]["reused_tokens"].as_u64() > turns[0]["reused_tokens"].as_u64());

    let (_, err) = talks(&["chat", "--context", "110"], &format!("{question}\n").repeat(4));
    assert!(err.contains("left out: the context holds 110 tokens"), "{err}");
}

#[test]
fn chat_refuses_what_cannot_be_talked_with() {
    let model = tiny(Variant::Llama);
    let error = refused(&["chat", text(model.path()), "--prompt", "Hi"]);
    assert!(error.contains("has no chat template") && error.contains("hint: "), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("template.jinja");
    let with = |template: &str| {
        std::fs::write(&file, template).unwrap();
        refused(&["chat", text(model.path()), "--template", text(&file), "--prompt", "Hi"])
    };
    assert!(
        with("<|im_start|>{{ messages[0].content }}").contains("`<|im_start|>`, which the vocabulary lacks")
    );
    assert!(with("{% if %}").contains("line 1: syntax error"));
    assert!(with("{{ raise_exception('no') }}").contains("the chat template: line 1: no"));
    assert!(
        with("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
            .contains("fuel")
    );
    let (answer, _) = {
        std::fs::write(&file, "{{ greeting }}{{ messages[-1].content }}").unwrap();
        let more = ["--set", "greeting=Well", "-n", "3"];
        talks(
            &[&["chat", text(model.path()), "--template", text(&file), "--prompt", "x"][..], &more].concat(),
            "",
        )
    };
    assert!(answer.ends_with('\n'));
}

#[test]
fn an_importance_matrix_is_made_and_used_in_either_form() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, form) in [("i.gguf", "gguf"), ("i.dat", "dat")] {
        let said =
            succeeds(&["imatrix", "--windows", "1", "--window", "32", "--json", "-o", text(&at(name))]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((said["form"].as_str(), said["entries"].as_u64()), (Some(form), Some(28)));
        let target = at(&format!("{name}.out.gguf"));
        succeeds(&["compress", "--recipe", "q4_0", "--imatrix", text(&at(name)), "-o", text(&target)]);
    }
    let [one, other] = ["i.gguf.out.gguf", "i.dat.out.gguf"].map(|name| std::fs::read(at(name)).unwrap());
    assert_ne!(one, other, "their keys name different files");
    let plain = at("plain.gguf");
    succeeds(&["compress", "--recipe", "q4_0", "-o", text(&plain)]);
    assert_ne!(std::fs::read(plain).unwrap().len(), one.len(), "the keys are there");
    let error = refused(&["imatrix", "-o", text(&at("i.gguf"))]);
    assert!(error.contains("is there already"), "{error}");
    let error =
        refused(&["compress", "--recipe", "w8a16", "--imatrix", text(&at("i.gguf")), "-o", text(&at("x"))]);
    assert!(error.contains("no use for an importance matrix"), "{error}");
    let error = refused(&["plan", "--recipe", "w8a16", "--no-pad"]);
    assert!(error.contains("no use for being told not to pad"), "{error}");
}
