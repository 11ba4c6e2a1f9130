//! `bitmill pull` and models named by their hub, against a hub on this machine.

#[path = "../../hub/tests/server/mod.rs"]
mod server;

use std::path::Path;
use std::process::{Command, Output};

use bitmill_testkit::{Variant, tiny};
use serde_json::Value;
use server::{COMMIT, Reply, Server, listing};

fn bitmill(arguments: &[&str], endpoint: &str, cache: &Path, offline: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitmill"))
        .args(arguments)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_OFFLINE", offline)
        .env("HF_TOKEN", "")
        .output()
        .unwrap()
}

#[test]
fn a_model_is_pulled_and_then_used_offline() {
    let model = tiny(Variant::Qwen2);
    let files: Vec<(String, Vec<u8>)> = std::fs::read_dir(model.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    let server = Server::start(move |request, before| {
        let named: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        if request.path.starts_with("/api/models/own/tiny-qwen2/revision/main?") {
            return Reply::new(200, listing(&named));
        }
        match named
            .iter()
            .find(|(name, _)| request.path == format!("/own/tiny-qwen2/resolve/{COMMIT}/{name}"))
        {
            // The first answer for the weights breaks off in the middle.
            Some((_, bytes)) if bytes.len() > 10_000 && before == 0 => {
                Reply { cut: Some(5000), ..Reply::file(request, bytes) }
            }
            Some((_, bytes)) => Reply::file(request, bytes),
            None => Reply::new(404, "").header("X-Error-Code", "RepoNotFound"),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], offline| bitmill(arguments, &server.url, folder.path(), offline);

    let absent = run(&["inspect", "hf:own/tiny-qwen2"], "1");
    assert_eq!(absent.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("HF_HUB_OFFLINE"));

    let pulled = run(&["pull", "hf:own/tiny-qwen2", "--json"], "");
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let document: Value = serde_json::from_slice(&pulled.stdout).unwrap();
    assert_eq!(document["schema"], "bitmill.pull/1");
    assert_eq!(document["commit"], COMMIT);
    assert_eq!(document["bytes"], document["fetched_bytes"]);
    assert!(Path::new(document["path"].as_str().unwrap()).join("config.json").is_file());

    // The folder's name is a commit; the model is called by its own.
    let asked = server.seen().len();
    let inspected = run(&["inspect", "hf:own/tiny-qwen2", "--json"], "1");
    assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stderr));
    let document: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(document["model"], "tiny-qwen2");
    assert_eq!(server.seen().len(), asked);

    let wrong = run(&["eval", "hf:own/other"], "");
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("hf:own/other") && said.contains("hint: "), "{said}");
    assert_eq!(run(&["pull", "own/tiny-qwen2"], "").status.code(), Some(2));
}
