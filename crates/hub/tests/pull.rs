//! Pulls from a hub on this machine: what arrives, where it lies, and what a bad server or connection brings about.

mod server;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bitmill_hub::{Error, Hub, ModelName, Progress, Pulled, Retry, Site, cached, locate, pull};
use server::{COMMIT, Reply, Request, Server, git_blob, listing, noise, sha256};

const CONFIG: &[u8] = b"{\"model_type\": \"qwen2\"}";
const QUICK: Retry = Retry { tries: 4, first_pause: Duration::from_millis(1) };

fn model(name: &str) -> ModelName {
    ModelName::parse(name).unwrap().unwrap()
}

/// A cache and the hub that fills it.
struct Setup {
    cache: tempfile::TempDir,
    server: Server,
    /// An endpoint other than the server.
    elsewhere: Option<String>,
    token: Option<&'static str>,
}

impl Setup {
    fn new(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self {
            cache: tempfile::tempdir().unwrap(),
            server: Server::start(answer),
            elsewhere: None,
            token: None,
        }
    }

    /// A hub that lists `weights` and gives out its config; `answer` gives out the weights.
    fn with_weights(
        weights: &'static [u8],
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::new(move |request, before| match request.path.as_str() {
            path if path.starts_with("/api/") => Reply::new(
                200,
                listing(&[("config.json", CONFIG), ("model.safetensors", weights), ("README.md", b"x")]),
            ),
            path if path.ends_with("config.json") => Reply::file(request, CONFIG),
            _ => answer(request, before),
        })
    }

    fn site(&self, hub: Hub, more: &[(&str, &str)]) -> Site {
        let url = self.elsewhere.as_ref().unwrap_or(&self.server.url).clone();
        let cache = self.cache.path().to_str().unwrap().to_owned();
        Site::new(hub, &|name| {
            let value = match (name, hub) {
                ("HF_ENDPOINT" | "MODELSCOPE_ENDPOINT", _) => url.clone(),
                ("HF_HUB_CACHE" | "MODELSCOPE_CACHE", _) => cache.clone(),
                ("HF_TOKEN" | "MODELSCOPE_API_TOKEN", _) => self.token.unwrap_or_default().to_owned(),
                _ => more.iter().find(|(key, _)| *key == name)?.1.to_owned(),
            };
            Some(OsString::from(value))
        })
        .unwrap()
    }

    fn pull(&self, name: &str) -> Result<Pulled, Error> {
        let model = model(name);
        pull(&self.site(model.hub, &[]), &model, &[], QUICK, &|_| ())
    }

    fn repo(&self) -> PathBuf {
        self.cache.path().join("models--a--b")
    }

    /// Whatever lies in the cache apart from locks, as paths relative to it.
    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        walk(self.cache.path(), &mut |path| {
            let path = path.strip_prefix(self.cache.path()).unwrap().to_str().unwrap().to_owned();
            if !path.starts_with(".lock") {
                left.push(path);
            }
        });
        left.sort();
        left
    }
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => walk(&path, visit),
            false => visit(&path),
        }
    }
}

fn weights(len: usize) -> &'static [u8] {
    noise(len).leak()
}

#[test]
fn a_folder_lies_as_huggingface_hub_lays_it() {
    let bytes = weights(300_000);
    let hub = Setup::with_weights(bytes, move |request, _| Reply::file(request, bytes));
    let name = model("hf:a/b");
    let site = hub.site(Hub::HuggingFace, &[]);
    assert_eq!(cached(&site, &name), None);

    let totals = std::sync::Mutex::new(Vec::new());
    let watch = |progress: Progress| {
        if let Progress::Bytes { done, total } = progress {
            totals.lock().unwrap().push((done, total));
        }
    };
    let pulled = pull(&site, &name, &[], QUICK, &watch).unwrap();
    assert_eq!(pulled.commit.as_deref(), Some(COMMIT));
    assert_eq!(pulled.path, hub.repo().join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(hub.repo().join("refs/main")).unwrap(), COMMIT);
    for (file, content, id) in
        [("config.json", CONFIG, git_blob(CONFIG)), ("model.safetensors", bytes, sha256(bytes))]
    {
        assert_eq!(fs::read_link(pulled.path.join(file)).unwrap(), Path::new("../../blobs").join(id));
        assert_eq!(fs::read(pulled.path.join(file)).unwrap(), content);
    }
    assert_eq!(pulled.files.len(), 2, "no README");
    assert!(pulled.files.iter().all(|file| file.fetched && file.hash.is_some()));
    let whole = (bytes.len() + CONFIG.len()) as u64;
    let totals = totals.into_inner().unwrap();
    assert!(totals.iter().all(|(_, total)| *total == whole));
    assert!(totals.is_sorted());
    assert_eq!(totals.last(), Some(&(whole, whole)));

    // Once more: the hub is asked what `main` is, and nothing is fetched.
    let requests = hub.server.count("resolve");
    assert!(pull(&site, &name, &[], QUICK, &|_| ()).unwrap().files.iter().all(|file| !file.fetched));
    assert_eq!(hub.server.count("resolve"), requests);
}

#[test]
fn what_is_cached_is_used_without_asking() {
    let bytes = weights(2000);
    let hub = Setup::with_weights(bytes, move |request, _| Reply::file(request, bytes));
    hub.pull("hf:a/b").unwrap();
    let offline = hub.site(Hub::HuggingFace, &[("HF_HUB_OFFLINE", "1")]);
    let asked = hub.server.seen().len();
    // Without a tokenizer it counts only where the hub cannot help.
    let path = locate(&offline, &model("hf:a/b"), QUICK, &|_| ()).unwrap();
    assert_eq!(path, hub.repo().join("snapshots").join(COMMIT));
    let tokenizer = hub.repo().join("snapshots").join(COMMIT).join("tokenizer.json");
    fs::write(tokenizer, "{}").unwrap();
    for name in ["hf:a/b".to_owned(), format!("hf:a/b@{COMMIT}")] {
        assert_eq!(cached(&offline, &model(&name)), Some(path.clone()));
        assert_eq!(locate(&hub.site(Hub::HuggingFace, &[]), &model(&name), QUICK, &|_| ()).unwrap(), path);
    }
    assert_eq!(hub.server.seen().len(), asked);
    for absent in ["hf:a/c", "hf:a/b@v2", "hf:a/b/x.gguf"] {
        let error = locate(&offline, &model(absent), QUICK, &|_| ()).unwrap_err();
        assert!(matches!(error, Error::Offline { .. }), "{error}");
        assert!(error.hint().unwrap().contains("HF_HUB_OFFLINE"));
    }
    // A sharded folder counts once every shard is there.
    let folder = path.as_path();
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}"#;
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    fs::write(folder.join("model-00001-of-00002.safetensors"), "").unwrap();
    assert_eq!(cached(&offline, &model("hf:a/b")), None);
    fs::write(folder.join("model-00002-of-00002.safetensors"), "").unwrap();
    assert_eq!(cached(&offline, &model("hf:a/b")), Some(path));
}

#[test]
fn a_dropped_connection_is_gone_on_from() {
    let bytes = weights(100_000);
    let hub = Setup::with_weights(bytes, move |request, before| Reply {
        cut: (before < 3).then_some(30_000),
        ..Reply::file(request, bytes)
    });
    let pulled = hub.pull("hf:a/b").unwrap();
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), bytes);
    let asked: Vec<usize> =
        hub.server.seen().iter().filter(|r| r.path.ends_with("safetensors")).map(Request::from).collect();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[0], 0);
    assert!(asked.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= 90_000), "{asked:?}");
}

#[test]
fn a_connection_that_always_drops_ends_and_the_next_pull_goes_on() {
    let bytes = weights(100_000);
    let hub = Setup::with_weights(bytes, move |request, before| Reply {
        cut: (before < 4).then_some(10_000),
        ..Reply::file(request, bytes)
    });
    let error = hub.pull("hf:a/b").unwrap_err();
    assert!(matches!(error, Error::BrokenOff { tries: 4, expected: 100_000, .. }), "{error}");
    let partial = hub.repo().join("blobs").join(format!("{}.incomplete", sha256(bytes)));
    let came = fs::metadata(&partial).unwrap().len() as usize;
    assert!((1..=40_000).contains(&came), "{came}");
    assert!(!hub.repo().join("snapshots").exists(), "nothing in place");
    let pulled = hub.pull("hf:a/b").unwrap();
    let seen = hub.server.seen();
    let asked = seen.iter().rfind(|request| request.path.ends_with("safetensors"));
    assert_eq!(asked.unwrap().from(), came);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), bytes);
    assert!(!partial.exists());
}

#[test]
fn a_server_that_ignores_ranges_starts_over_and_does_not_go_on_for_ever() {
    let bytes = weights(100_000);
    let hub = Setup::with_weights(bytes, move |_, before| Reply {
        cut: (before < 2).then_some(50_000),
        ..Reply::new(200, bytes)
    });
    let pulled = hub.pull("hf:a/b").unwrap();
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), bytes);

    let hub = Setup::with_weights(bytes, move |_, _| Reply { cut: Some(50_000), ..Reply::new(200, bytes) });
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::BrokenOff { .. })));
    assert_eq!(hub.server.count("model.safetensors"), 4);
}

#[test]
fn wrong_lengths_are_refused_and_leave_nothing() {
    let bytes = weights(5000);
    let longer: &'static [u8] = [bytes, b"x"].concat().leak();
    type Lie = fn(&'static [u8], &'static [u8]) -> Reply;
    let lies: [Lie; 5] = [
        |bytes, _| Reply::new(200, &bytes[..4000]),
        |_, longer| Reply::new(200, longer),
        |bytes, _| Reply { chunked: true, ..Reply::new(200, &bytes[..4000]) },
        |_, longer| Reply { chunked: true, ..Reply::new(200, longer) },
        |_, _| Reply::new(200, ""),
    ];
    for lie in lies {
        let hub = Setup::with_weights(bytes, move |_, _| lie(bytes, longer));
        let error = hub.pull("hf:a/b").unwrap_err();
        assert!(matches!(&error, Error::WrongLength { expected: 5000, .. }), "{error}");
        assert!(error.to_string().contains("model.safetensors"));
        assert_eq!(hub.server.count("model.safetensors"), 1, "asking again does not help");
        assert!(!hub.left().iter().any(|path| path.contains(&sha256(bytes)) || path.contains("snapshots")));
    }
    // A length that is promised and not kept is a dropped connection.
    let hub = Setup::with_weights(bytes, move |_, _| Reply { cut: Some(4000), ..Reply::new(200, bytes) });
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::BrokenOff { .. })));
}

#[test]
fn wrong_ranges_are_refused() {
    let bytes = weights(5000);
    for lie in ["bytes 0-4999/5000", "bytes 2000-4999/6000", "pages 1-2", ""] {
        let hub = Setup::with_weights(bytes, move |request, before| match before {
            0 => Reply { cut: Some(1000), ..Reply::new(200, bytes) },
            _ => Reply::new(206, &bytes[request.from()..]).header("Content-Range", lie),
        });
        let error = hub.pull("hf:a/b").unwrap_err();
        assert!(matches!(error, Error::WrongRange { .. } | Error::WrongLength { .. }), "{lie}: {error}");
    }
}

#[test]
fn a_wrong_hash_is_refused_and_leaves_nothing() {
    let bytes = weights(5000);
    let mut other = bytes.to_vec();
    other[4321] ^= 1;
    let hub = Setup::with_weights(bytes, move |request, _| Reply::file(request, &other));
    let error = hub.pull("hf:a/b").unwrap_err();
    assert!(
        matches!(&error, Error::WrongHash { kind: "SHA-256", expected, .. } if *expected == sha256(bytes)),
        "{error}"
    );
    assert!(!hub.left().iter().any(|path| path.contains(&sha256(bytes)) || path.contains("snapshots")));

    // A small file is known by git's name.
    let hub = Setup::new(|request, _| match request.path.starts_with("/api/") {
        true => Reply::new(200, listing(&[("config.json", CONFIG), ("model.safetensors", b"1234")])),
        false => Reply::new(200, "4321"),
    });
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::WrongHash { kind: "git blob SHA-1", .. })));
}

#[test]
fn what_another_file_left_behind_is_fetched_anew() {
    let bytes = weights(5000);
    let hub = Setup::with_weights(bytes, move |request, _| Reply::file(request, bytes));
    let blobs = hub.repo().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    for left in [&noise(6000)[1..3000], &noise(6001)[1..]] {
        let partial = blobs.join(format!("{}.incomplete", sha256(bytes)));
        fs::write(&partial, left).unwrap();
        let pulled = hub.pull("hf:a/b").unwrap();
        assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), bytes);
        assert!(!partial.exists());
        fs::remove_dir_all(&blobs).unwrap();
        fs::create_dir_all(&blobs).unwrap();
    }
}

#[test]
fn passing_failures_are_retried_and_others_are_not() {
    let bytes = weights(2000);
    for status in [408, 429, 500, 502, 503, 504] {
        let hub = Setup::with_weights(bytes, move |request, before| match before {
            0 | 1 => Reply::new(status, "busy").header("Retry-After", "0"),
            _ => Reply::file(request, bytes),
        });
        hub.pull("hf:a/b").unwrap();
        let hub = Setup::new(move |_, _| Reply::new(status, ""));
        assert!(matches!(hub.pull("hf:a/b"), Err(Error::Status { status: s, .. }) if s == status));
        assert_eq!(hub.server.seen().len(), 4);
    }
    let hub = Setup::new(|_, _| Reply::new(429, "").header("Retry-After", "3600"));
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::Busy { seconds: 3600, .. })));
    assert_eq!(hub.server.seen().len(), 1);
    let hub = Setup::new(|_, before| match before {
        0 => Reply::new(429, "").header("Retry-After", "1"),
        _ => Reply::new(410, "gone"),
    });
    let begun = std::time::Instant::now();
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::Status { status: 410, .. })));
    assert!(begun.elapsed() >= Duration::from_secs(1), "it waits as long as it was asked to");
}

#[test]
fn an_unreachable_hub_is_named() {
    let mut hub = Setup::new(|_, _| Reply::new(200, ""));
    // A port where nobody listens any more.
    let closed = Server::start(|_, _| Reply::new(200, ""));
    hub.elsewhere = Some(closed.url.clone());
    drop(closed);
    let error = hub.pull("hf:a/b").unwrap_err();
    assert!(matches!(error, Error::Unreachable { tries: 4, .. }), "{error}");
    assert!(error.hint().unwrap().contains("HF_ENDPOINT"));
}

#[test]
fn refusals_say_what_to_do() {
    let refusal = |reply: Reply, token| {
        let mut hub = Setup::new(move |_, _| reply.clone());
        hub.token = token;
        hub.pull("hf:a/b").unwrap_err()
    };
    let absent = refusal(Reply::new(401, "").header("X-Error-Message", "Invalid username"), None);
    assert!(matches!(&absent, Error::NoSuchModel { .. }), "{absent}");
    assert!(absent.to_string().contains("hf:a/b") && absent.to_string().contains("Invalid username"));
    let token = refusal(Reply::new(401, ""), Some("hf_old"));
    assert!(matches!(token, Error::TokenRefused { .. }), "{token}");
    assert!(!token.to_string().contains("hf_old"));
    let gone = refusal(Reply::new(404, "").header("X-Error-Code", "RepoNotFound"), Some("hf_x"));
    assert!(matches!(gone, Error::NoSuchModel { .. }));
    let revision = refusal(Reply::new(404, "").header("X-Error-Code", "RevisionNotFound"), None);
    assert!(matches!(revision, Error::NoSuchRevision { .. }));
    let gated = refusal(
        Reply::new(403, "")
            .header("X-Error-Code", "GatedRepo")
            .header("X-Error-Message", "Access to it is restricted"),
        None,
    );
    assert!(matches!(gated, Error::Gated { .. }) && gated.to_string().contains("restricted"));
    assert!(gated.hint().unwrap().contains("/a/b"), "{:?}", gated.hint());
    let html = refusal(Reply::new(200, "<html>Please log in to the hotel's network</html>"), None);
    assert!(matches!(html, Error::Answer { .. }));
}

#[test]
fn redirects_are_followed_without_the_token() {
    let bytes = weights(50_000);
    let other = Server::start(move |request, before| Reply {
        cut: (before == 0).then_some(20_000),
        ..Reply::file(request, bytes)
    });
    let to = format!("{}/signed?x=1", other.url);
    let mut hub = Setup::with_weights(bytes, move |request, _| match request.path.contains("/moved/") {
        true => Reply::new(302, "").header("Location", to.clone()),
        false => Reply::new(307, "").header("Location", "/moved/model.safetensors"),
    });
    hub.token = Some("hf_secret");
    hub.pull("hf:a/b").unwrap();
    assert!(hub.server.seen().iter().all(|r| r.headers["authorization"] == "Bearer hf_secret"));
    assert_eq!(other.seen().len(), 2);
    assert!(other.seen().iter().all(|r| !format!("{r:?}").contains("hf_secret")));
    assert!(other.seen()[1].from() > 0, "ranges are asked for behind redirects too");
}

#[test]
fn redirects_elsewhere_and_in_circles_are_refused() {
    for (to, circle) in
        [("/a/b/again", true), ("ftp://127.0.0.1/x", false), ("file:///etc/passwd", false), ("", true)]
    {
        let hub = Setup::new(move |_, _| Reply::new(302, "").header("Location", to));
        let error = hub.pull("hf:a/b").unwrap_err();
        match circle {
            true => assert!(matches!(error, Error::TooManyRedirects { .. }), "{to}: {error}"),
            false => assert!(matches!(error, Error::BadRedirect { .. }), "{to}: {error}"),
        }
        assert!(hub.server.seen().len() <= 6);
    }
}

#[test]
fn names_that_lead_elsewhere_reach_no_disk() {
    for name in ["../../evil", "/evil", "a/../../evil", "..", "a\\\\evil"] {
        let hub = Setup::new(move |_, _| Reply::new(200, listing(&[("config.json", CONFIG), (name, b"x")])));
        let error = hub.pull("hf:a/b").unwrap_err();
        assert!(matches!(error, Error::FileName { .. }), "{name}: {error}");
        assert_eq!(hub.server.seen().len(), 1);
        assert!(hub.left().is_empty());
    }
    let escape =
        listing(&[("config.json", CONFIG)]).replace(COMMIT, "../../../../../../../../../../../../../x");
    let hub = Setup::new(move |_, _| Reply::new(200, escape.clone()));
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::Answer { .. })));
}

#[test]
fn an_endless_listing_is_not_read_to_its_end() {
    let hub = Setup::new(|_, _| Reply::new(200, vec![b' '; 33_000_000]));
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::AnswerTooLong { .. })));
}

#[test]
fn a_full_disk_shows_before_anything_is_fetched() {
    let huge = listing(&[("config.json", CONFIG), ("model.safetensors", b"12345")])
        .replace("\"size\": 5", "\"size\": 5000000000000000");
    let hub = Setup::new(move |_, _| Reply::new(200, huge.clone()));
    let error = hub.pull("hf:a/b").unwrap_err();
    assert!(matches!(error, Error::NoSpace { needed: 5_000_000_000_000_000.., .. }), "{error}");
    assert_eq!(hub.server.seen().len(), 1);
    assert!(hub.left().is_empty());
}

#[test]
fn pulls_at_the_same_time_fetch_once() {
    let bytes = weights(200_000);
    let hub = Setup::with_weights(bytes, move |request, _| {
        std::thread::sleep(Duration::from_millis(200));
        Reply::file(request, bytes)
    });
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.pull("hf:a/b").unwrap())).collect();
        for pulled in pulls {
            assert_eq!(fs::read(pulled.join().unwrap().path.join("model.safetensors")).unwrap(), bytes);
        }
    });
    assert_eq!(hub.server.count("model.safetensors"), 1);
}

#[test]
fn one_gguf_file_is_a_model() {
    let bytes = weights(3000);
    let hub = Setup::new(move |request, _| match request.path.as_str() {
        path if path.starts_with("/api/") => Reply::new(
            200,
            listing(&[("q/x-q4 k.gguf", bytes), ("q/y.gguf", b"GGUF"), ("config.json", CONFIG)]),
        ),
        "/a/b/resolve/0123456789abcdef0123456789abcdef01234567/q/x-q4%20k.gguf" => {
            Reply::file(request, bytes)
        }
        _ => Reply::new(404, ""),
    });
    let pulled = hub.pull("hf:a/b/q/x-q4 k.gguf").unwrap();
    assert_eq!(pulled.path, hub.repo().join("snapshots").join(COMMIT).join("q/x-q4 k.gguf"));
    assert_eq!(fs::read(&pulled.path).unwrap(), bytes);
    assert_eq!(fs::read_link(&pulled.path).unwrap(), Path::new("../../../blobs").join(sha256(bytes)));
    let name = model("hf:a/b/q/x-q4 k.gguf");
    assert_eq!(cached(&hub.site(Hub::HuggingFace, &[("HF_HUB_OFFLINE", "yes")]), &name), Some(pulled.path));
    assert!(matches!(hub.pull("hf:a/b"), Err(Error::SeveralGguf { .. })));
}

#[test]
fn modelscope_fills_the_folder_its_client_reads() {
    let bytes = weights(40_000);
    let mut hub = Setup::new(move |request, before| match request.path.as_str() {
        "/api/v1/models/a/b.c/repo/files?Revision=master&Recursive=False" => {
            let file = |name: &str, bytes: &[u8], hash: String| {
                format!(
                    r#"{{"Path": "{name}", "Name": "{name}", "Type": "blob", "Size": {}, "Sha256": "{hash}"}}"#,
                    bytes.len()
                )
            };
            let files = [
                file("config.json", CONFIG, sha256(CONFIG)),
                file("model.safetensors", bytes, sha256(bytes)),
                file("tokenizer.json", b"{}", String::new()),
                r#"{"Path": "figures", "Type": "tree", "Size": 0}"#.to_owned(),
            ];
            Reply::new(
                200,
                format!(r#"{{"Code": 200, "Success": true, "Data": {{"Files": [{}]}}}}"#, files.join(",")),
            )
        }
        path => match path.strip_prefix("/api/v1/models/a/b.c/repo?Revision=master&FilePath=") {
            Some("config.json") => Reply::file(request, CONFIG),
            Some("tokenizer.json") => Reply::file(request, b"{}"),
            Some("model.safetensors") => {
                Reply { cut: (before == 0).then_some(9000), ..Reply::file(request, bytes) }
            }
            _ => Reply::new(404, r#"{"Message": "no such model"}"#),
        },
    });
    hub.token = Some("ms-token");
    let name = model("ms:a/b.c");
    let site = hub.site(Hub::ModelScope, &[]);
    let pulled = hub.pull("ms:a/b.c").unwrap();
    assert_eq!(pulled.path, hub.cache.path().join("models/a--b.c/snapshots/master"));
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(pulled.commit, None);
    let unhashed: Vec<_> =
        pulled.files.iter().filter(|file| file.hash.is_none()).map(|file| &file.path).collect();
    assert_eq!(unhashed, ["tokenizer.json"]);
    assert!(hub.server.seen().iter().all(|r| r.headers["cookie"] == "m_session_id=ms-token"));
    assert_eq!(cached(&site, &name), Some(pulled.path.clone()));

    // A file that was changed in place is fetched again.
    fs::write(pulled.path.join("model.safetensors"), &noise(40_001)[1..]).unwrap();
    let again = hub.pull("ms:a/b.c").unwrap();
    let fetched: Vec<_> = again.files.iter().filter(|file| file.fetched).map(|file| &file.path).collect();
    assert_eq!(fetched, ["model.safetensors"]);
    assert!(
        matches!(hub.pull("ms:a/d"), Err(Error::NoSuchModel { message, .. }) if message.contains("no such model"))
    );
}

#[test]
fn what_older_modelscope_clients_fetched_is_found() {
    let hub = Setup::new(|_, _| Reply::new(500, ""));
    let folder = hub.cache.path().join("hub/models/a/b___c");
    fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::write(folder.join(file), "{}").unwrap();
    }
    let site = hub.site(Hub::ModelScope, &[]);
    assert_eq!(locate(&site, &model("ms:a/b.c"), QUICK, &|_| ()).unwrap(), folder);
    assert_eq!(cached(&site, &model("ms:a/b.c@v1")), None, "which revision that is, nobody knows");
}
