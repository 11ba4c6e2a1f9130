//! `bitmill eval --save-baseline` and `bitmill watch` as a user types them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bitmill(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitmill")).args(arguments).output().unwrap()
}

fn succeeds(arguments: &[&str]) -> String {
    let output = bitmill(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_model_is_watched_against_its_baseline() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (baseline, small, prompts) = (at("millet.baseline"), at("q2.gguf"), at("prompts.jsonl"));
    let recipe = at("q2.toml");
    std::fs::write(&recipe, "format = \"gguf\"\n[[step]]\nkind = \"block\"\ntype = \"q4_0\"\n").unwrap();
    std::fs::write(
        &prompts,
        "{\"prompt\": \"One day a fox went to the river\"}\n{\"text\": \"2 + 2 = 4\"}\n",
    )
    .unwrap();
    succeeds(&["eval", "--windows", "4", "--items", "8", "--save-baseline", text(&baseline)]);
    succeeds(&["compress", "--recipe", text(&recipe), "-o", text(&small)]);
    let watch = |more: &[&str]| {
        let output =
            bitmill(&[&["watch", text(&small), "--baseline", text(&baseline), "--json"], more].concat());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            panic!("{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        });
        (output.status.code(), report)
    };

    let (code, first) = watch(&["--prompts", text(&prompts), "--max-drift", "1.0"]);
    assert_eq!(code, Some(0));
    assert_eq!(first["schema"], "bitmill.watch/1");
    assert!(first["kl_mean"].as_f64().unwrap() > 1e-5, "{first}");
    assert_eq!(first["noise_floor"], 0.0, "the same model computes the same twice");
    assert_eq!(first["tasks"].as_object().unwrap().len(), 5);
    assert!(first["tasks"]["sums"]["mcnemar_p"].is_number());
    assert!(first["prompts"]["against"].is_null(), "nothing to compare with yet");

    // Without the dense model, prompts are compared with the first time they were measured.
    let (_, second) = watch(&["--prompts", text(&prompts), "--no-tasks"]);
    assert_eq!(second["prompts"]["against"], first["created"]);
    assert_eq!(second["prompts"]["nll"]["mean"], 0.0);
    assert_eq!(second["kl_mean"], first["kl_mean"]);

    // With it, paired with it; and the tensors that lost most are named, and given more bits within the budget.
    let adjusted = at("adjusted.toml");
    let budget = (std::fs::metadata(&small).unwrap().len() + 300_000).to_string();
    let (_, third) = watch(&[
        "--prompts",
        text(&prompts),
        "--no-tasks",
        "--against",
        "millet",
        "--adjust",
        text(&adjusted),
        "--budget",
        &budget,
    ]);
    assert_eq!(third["prompts"]["against"], "millet");
    let deserving = third["deserving"].as_array().unwrap();
    let gains: Vec<f64> = deserving.iter().map(|tensor| tensor["gain_per_mb"].as_f64().unwrap()).collect();
    assert!(!gains.is_empty() && gains.is_sorted_by(|a, b| a >= b), "{gains:?}");
    let better = at("better.gguf");
    succeeds(&["compress", "--recipe", text(&adjusted), "-o", text(&better)]);
    let bytes = std::fs::metadata(&better).unwrap().len();
    assert!(bytes <= budget.parse().unwrap() && bytes > std::fs::metadata(&small).unwrap().len(), "{bytes}");
    let kl = |model: &Path| {
        let report = succeeds(&["watch", text(model), "--baseline", text(&baseline), "--no-tasks", "--json"]);
        serde_json::from_str::<Value>(&report).unwrap()["kl_mean"].as_f64().unwrap()
    };
    assert!(kl(&better) < kl(&small), "more bits, less divergence");

    // A search's table names them without the dense model, and its assignment is the better one within the same bytes.
    let (searched, by_table) = (at("searched.toml"), at("by_table.toml"));
    succeeds(&["search", "--budget", "5bpw", "--tokens", "128", "--rounds", "1", "-o", text(&searched)]);
    let table = at("searched.sensitivity.json");
    let (_, fourth) = watch(&["--no-tasks", "--sensitivity", text(&table)]);
    assert_eq!(fourth["deserving_by"], "kl");
    let first = &fourth["deserving"][0];
    assert!(
        first["form"] == "q4_0" && first["next"].is_string() && first["gain_per_mb"].as_f64() > Some(0.0)
    );
    succeeds(&[
        "watch",
        text(&small),
        "--baseline",
        text(&baseline),
        "--no-tasks",
        "--sensitivity",
        text(&table),
        "--against",
        "millet",
        "--adjust",
        text(&by_table),
        "--budget",
        &budget,
    ]);
    let best = at("best.gguf");
    succeeds(&["compress", "--recipe", text(&by_table), "-o", text(&best)]);
    assert!(std::fs::metadata(&best).unwrap().len() <= budget.parse().unwrap());
    assert!(kl(&best) < kl(&better), "by KL rather than by the weights: {} {}", kl(&best), kl(&better));
    let foreign =
        bitmill(&["watch", "millet", "--baseline", text(&baseline), "--sensitivity", text(&recipe)]);
    assert_eq!(foreign.status.code(), Some(2));

    // The dense model itself has not drifted, whatever the bound.
    let itself =
        bitmill(&["watch", "millet", "--baseline", text(&baseline), "--max-drift", "0", "--no-tasks"]);
    assert_eq!(itself.status.code(), Some(0), "{}", String::from_utf8_lossy(&itself.stderr));

    let history = std::fs::read_to_string(at("millet.baseline.history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 10);
    assert!(
        history
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).unwrap()["schema"] == "bitmill.watch/1")
    );
    let page = std::fs::read_to_string(at("millet.baseline.history.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Perplexity above dense") && !page.contains("<script"));
}

#[test]
fn a_watcher_measures_again_until_it_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let baseline = at("b");
    succeeds(&["eval", "--windows", "2", "--window", "32", "--no-tasks", "--save-baseline", text(&baseline)]);
    let mut watcher = Command::new(env!("CARGO_BIN_EXE_bitmill"))
        .args(["watch", "millet", "--baseline", text(&baseline), "--every", "1s", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It runs until whoever reads it has seen two documents: lines of `}` end one.
    let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines().map(Result::unwrap);
    let documents: Vec<Value> = (0..2)
        .map(|_| {
            let mut document = String::new();
            for line in lines.by_ref() {
                document.push_str(&line);
                if line == "}" {
                    break;
                }
            }
            serde_json::from_str(&document).unwrap()
        })
        .collect();
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    assert_eq!(
        documents[0]["kl_mean"], documents[1]["kl_mean"],
        "an unchanged model has not drifted further"
    );
    let history = std::fs::read_to_string(at("b.history.jsonl")).unwrap();
    let kept: Vec<Value> = history.lines().take(2).map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept, documents);
    assert!(std::fs::read_to_string(at("b.history.html")).unwrap().contains("2 measurements"));
}

#[test]
fn a_drifted_model_is_exit_code_1_and_bad_input_2() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (baseline, broken) = (at("b"), at("broken"));
    succeeds(&["eval", "--windows", "3", "--no-tasks", "--save-baseline", text(&baseline)]);
    std::fs::create_dir(&broken).unwrap();
    for file in
        std::fs::read_dir(bitmill_testkit::millet().join("model")).unwrap().map(|entry| entry.unwrap().path())
    {
        let mut bytes = std::fs::read(&file).unwrap();
        if file.ends_with("model.safetensors") {
            let third = bytes.len() / 3;
            bytes[third..2 * third].fill(0);
        }
        std::fs::write(broken.join(file.file_name().unwrap()), bytes).unwrap();
    }
    let drifted = bitmill(&["watch", text(&broken), "--baseline", text(&baseline), "--max-drift", "0.1"]);
    assert_eq!(drifted.status.code(), Some(1));
    assert!(!drifted.stdout.is_empty(), "the figures are printed all the same");
    assert!(String::from_utf8_lossy(&drifted.stderr).contains("10 %"));

    std::fs::write(at("no"), "not one").unwrap();
    std::fs::write(at("torn.jsonl"), "{\"schema\": \"bitmill.wat").unwrap();
    std::fs::write(at("empty.jsonl"), "{\"question\": 1}\n").unwrap();
    for (arguments, said) in [
        (vec!["--baseline", text(&at("no"))], "it is no baseline"),
        (vec!["--baseline", text(&at("absent"))], "absent"),
        (vec!["--baseline", text(&baseline), "--history", text(&at("torn.jsonl"))], "torn.jsonl, line 1"),
        (vec!["--baseline", text(&baseline), "--prompts", text(&at("empty.jsonl"))], "empty.jsonl, line 1"),
        (vec!["--baseline", text(&baseline), "--every", "soon"], "1h"),
        (vec!["--baseline", text(&baseline), "--adjust", "x.toml"], "--budget"),
    ] {
        let arguments: Vec<&str> = arguments;
        let refused = bitmill(&[&["watch", "millet"], &arguments[..]].concat());
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
