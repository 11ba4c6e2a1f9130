//! Runs that are killed, stopped or refused room by the system, as a user meets them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use bitmill_testkit::millet;
use rustix::process::{Pid, Resource, Rlimit};

fn compress(source: &Path, recipe: &str, output: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitmill"));
    command.args(["--threads", "1", "compress"]).arg(source).args(["--recipe", recipe, "-o"]).arg(output);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until the run has begun its output, and some time more; whether it is still running then.
fn is_under_way(child: &mut Child, partial: &Path, more: Duration) -> bool {
    while child.try_wait().unwrap().is_none() {
        let journal = std::fs::metadata(partial.join("journal"));
        if journal.is_ok_and(|journal| journal.len() > 0) {
            sleep(more);
            return child.try_wait().unwrap().is_none();
        }
        sleep(Duration::from_millis(1));
    }
    false
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_bytes() {
    let source = millet().join("model");
    for (recipe, name) in [("q4_k_m", "m.gguf"), ("w3a16_g64_asym_clip", "m")] {
        let out = tempfile::tempdir().unwrap();
        let whole = out.path().join("whole");
        assert!(compress(&source, recipe, &whole).output().unwrap().status.success());
        let target = out.path().join(name);
        let partial = out.path().join(format!(".{name}.bitmill-partial"));
        let mut kills = 0;
        for more in [0, 5, 20, 60, 150, 400] {
            let mut child = compress(&source, recipe, &target).spawn().unwrap();
            let killed = is_under_way(&mut child, &partial, Duration::from_millis(more));
            child.kill().unwrap();
            child.wait().unwrap();
            if !killed && target.exists() {
                break;
            }
            kills += 1;
            assert!(!target.exists(), "{recipe}: killed {more} ms after it began, and there is an output");
        }
        assert!(kills > 0, "{recipe}: no run was slow enough to be killed");
        if !target.exists() || partial.exists() {
            let output = compress(&source, recipe, &target).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        assert!(!partial.exists());
        let same = |a: &Path, b: &Path| std::fs::read(a).unwrap() == std::fs::read(b).unwrap();
        if target.is_dir() {
            assert_eq!(names(&target), names(&whole));
            assert!(
                names(&target).iter().all(|file| same(&target.join(file), &whole.join(file))),
                "{recipe}"
            );
        } else {
            assert!(same(&target, &whole), "{recipe}");
            for end in ["bitmill.json", "bitmill.md"] {
                assert!(same(
                    &out.path().join(format!("m.gguf.{end}")),
                    &out.path().join(format!("whole.{end}"))
                ));
            }
        }
    }
}

#[test]
fn ctrl_c_says_that_the_run_can_be_gone_on_with() {
    let source = millet().join("model");
    let out = tempfile::tempdir().unwrap();
    let (target, partial) = (out.path().join("m.gguf"), out.path().join(".m.gguf.bitmill-partial"));
    let mut child = compress(&source, "q4_k_m", &target).spawn().unwrap();
    assert!(is_under_way(&mut child, &partial, Duration::ZERO));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error: stopped") && said.contains("--restart"), "{said}");
    assert!(partial.exists() && !target.exists());

    // Another recipe is told what is there, and may discard it.
    let output = compress(&source, "q8_0", &target).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("another recipe") && said.contains("--restart"), "{said}");
    let output = compress(&source, "q8_0", &target).arg("--restart").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(out.path()), ["m.gguf", "m.gguf.bitmill.json", "m.gguf.bitmill.md"]);
}

#[test]
fn a_file_that_the_system_does_not_let_grow_is_an_error_and_leaves_nothing() {
    let source = millet().join("model");
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("m.gguf");
    // 512 bytes a block, in every shell; the signal would end the program before it can say anything.
    let limited = format!(
        "trap '' XFSZ; ulimit -f 100; exec '{}' compress '{}' --recipe q8_0 -o '{}'",
        env!("CARGO_BIN_EXE_bitmill"),
        source.display(),
        target.display()
    );
    let output = Command::new("sh").args(["-c", &limited]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot write") && said.contains("m.gguf"), "{said}");
    assert!(names(out.path()).is_empty(), "{:?}", names(out.path()));
    assert!(compress(&source, "q8_0", &target).output().unwrap().status.success());
}

#[test]
fn a_disk_that_stops_taking_bytes_midway_costs_nothing_once_it_takes_them_again() {
    let source = millet().join("model");
    let out = tempfile::tempdir().unwrap();
    let (target, partial) = (out.path().join("m.gguf"), out.path().join(".m.gguf.bitmill-partial"));
    let whole = out.path().join("whole.gguf");
    assert!(compress(&source, "q4_k_m", &whole).output().unwrap().status.success());
    let mut failures = 0;
    for more in [400, 100, 30, 10, 0] {
        // The signal would end the program before it can say anything.
        let command = format!(
            "trap '' XFSZ; exec '{}' --threads 1 compress '{}' --recipe q4_k_m -o '{}'",
            env!("CARGO_BIN_EXE_bitmill"),
            source.display(),
            target.display()
        );
        let mut child = Command::new("sh");
        child.args(["-c", &command]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        if is_under_way(&mut child, &partial, Duration::from_millis(more)) {
            let nothing = Rlimit { current: Some(0), maximum: Some(0) };
            // The run may have ended by itself a moment ago.
            let _ =
                rustix::process::prlimit(Pid::from_raw(child.id().cast_signed()), Resource::Fsize, nothing);
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            // Too late: all was written.
            std::fs::remove_file(&target).unwrap();
            std::fs::remove_file(out.path().join("m.gguf.bitmill.json")).unwrap();
            std::fs::remove_file(out.path().join("m.gguf.bitmill.md")).unwrap();
            continue;
        }
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("cannot write"), "{said}");
        assert!(partial.exists() && !target.exists(), "after {more} ms");
        failures += 1;
    }
    assert!(failures > 0, "no run was slow enough to fail");
    let output = compress(&source, "q4_k_m", &target).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let same = |name: &str, other: &str| {
        std::fs::read(out.path().join(name)).unwrap() == std::fs::read(out.path().join(other)).unwrap()
    };
    assert!(same("m.gguf", "whole.gguf") && same("m.gguf.bitmill.json", "whole.gguf.bitmill.json"));
    assert!(same("m.gguf.bitmill.md", "whole.gguf.bitmill.md"));
    assert!(!partial.exists());
}

#[test]
fn split_is_for_gguf_files() {
    let source = millet().join("model");
    let out = tempfile::tempdir().unwrap();
    let output = compress(&source, "q8_0", &out.path().join("m.gguf"))
        .args(["--split-max-size", "2MB"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(names(out.path()).contains(&"m-00001-of-00003.gguf".to_owned()), "{:?}", names(out.path()));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("m-00001-of-00003.gguf"), "{said}");
    let output =
        compress(&source, "w8a16", &out.path().join("m")).args(["--split-max-size", "2MB"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--shard-size"));
}
