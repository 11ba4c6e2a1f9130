//! The caches of the hubs' own clients.
//!
//! ```text
//! HF_HUB_CACHE/models--OWNER--NAME/
//!   blobs/ETAG                     SHA-256 of a large file, git's name of a small one
//!   blobs/ETAG.incomplete          what has come so far
//!   refs/REVISION                  the commit
//!   snapshots/COMMIT/FILE          links to ../../blobs/ETAG
//! HF_HUB_CACHE/.locks/models--OWNER--NAME/ETAG.lock
//!
//! MODELSCOPE_CACHE/models/OWNER--NAME/snapshots/REVISION/FILE    (from 1.38 on)
//! MODELSCOPE_CACHE/[hub/]models/OWNER/NAME/FILE                  (before; `.` in NAME is `___`), used where it is there
//! MODELSCOPE_CACHE/.lock/file_DIGEST.lock
//! ```

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use rustix::fs::{FlockOperation, flock};

use crate::hash::{digits, hex};
use crate::select::part;
use crate::{Error, Hub, ModelName, Site};

/// The folder that holds, or will hold, a model's files.
pub(crate) struct Place<'a> {
    site: &'a Site,
    model: &'a ModelName,
    /// Hugging Face: the repository's folder. ModelScope: the files' own.
    root: PathBuf,
}

impl<'a> Place<'a> {
    pub(crate) fn new(site: &'a Site, model: &'a ModelName) -> Self {
        let (owner, name) = (&model.owner, &model.name);
        let root = match site.hub {
            Hub::HuggingFace => site.cache.join(format!("models--{owner}--{name}")),
            Hub::ModelScope => {
                let old_name = name.replace('.', "___");
                let old = ["models", "hub/models", "hub"]
                    .map(|folder| site.cache.join(folder).join(owner).join(&old_name));
                let used = |folder: &&PathBuf| {
                    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
                };
                // The old layout keeps one revision and does not say which.
                let old = old.iter().find(used).filter(|_| model.revision == site.hub.default_revision());
                old.cloned().unwrap_or_else(|| {
                    site.cache.join(format!("models/{owner}--{name}/snapshots")).join(&model.revision)
                })
            }
        };
        Self { site, model, root }
    }

    /// The folder of the model's files as the cache has them.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        let folder = match self.site.hub {
            Hub::ModelScope => self.root.clone(),
            Hub::HuggingFace => {
                let commit = hex(&self.model.revision, 40).or_else(|| {
                    let text = fs::read_to_string(self.root.join("refs").join(&self.model.revision)).ok()?;
                    hex(text.trim(), 40)
                })?;
                self.snapshot(&commit)
            }
        };
        folder.is_dir().then_some(folder)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        match self.site.hub {
            Hub::HuggingFace => self.root.join("snapshots").join(commit),
            Hub::ModelScope => self.root.clone(),
        }
    }

    /// Where a file's bytes go. `id` is its hash.
    pub(crate) fn target(&self, path: &str, id: &str) -> PathBuf {
        match self.site.hub {
            Hub::HuggingFace => self.root.join("blobs").join(id),
            Hub::ModelScope => self.root.join(path),
        }
    }

    /// Holds back every other process that fetches this file, Python's clients among them, until dropped. Calls
    /// `waiting` if there is one.
    pub(crate) fn lock(&self, path: &str, id: &str, waiting: impl FnOnce()) -> Result<File, Error> {
        let (owner, name) = (&self.model.owner, &self.model.name);
        let lock = match self.site.hub {
            Hub::HuggingFace => self.site.cache.join(format!(".locks/models--{owner}--{name}/{id}.lock")),
            Hub::ModelScope => {
                let key = format!("modelscope-hub-download-lock-v2\0file\0model\0{owner}/{name}\0{path}");
                let key = digits(digest(&SHA256, key.as_bytes()).as_ref());
                self.site.cache.join(format!(".lock/file_{key}.lock"))
            }
        };
        make_parent(&lock)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock)
            .map_err(|source| Error::io("create", &lock, source))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            waiting();
            flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| Error::io("lock", &lock, error.into()))?;
        }
        Ok(file)
    }

    /// Makes the files of a Hugging Face snapshot appear, all of whose blobs are there: `files` are paths with hashes.
    pub(crate) fn link(&self, commit: &str, files: &[(&str, &str)]) -> Result<(), Error> {
        // Links are made beside their places under one name: two pulls at once would take them from each other.
        let _lock = self.lock(commit, commit, || ())?;
        let folder = self.snapshot(commit);
        for (path, id) in files {
            let link = folder.join(path);
            if fs::canonicalize(&link).is_ok_and(|to| to.ends_with(id)) {
                continue;
            }
            make_parent(&link)?;
            let up = "../".repeat(2 + path.matches('/').count());
            let new = beside(&link, "link");
            let _ = fs::remove_file(&new);
            symlink(format!("{up}blobs/{id}"), &new).map_err(|source| Error::io("link", &new, source))?;
            fs::rename(&new, &link).map_err(|source| Error::io("link", &link, source))?;
        }
        if hex(&self.model.revision, 40).is_none() {
            let reference = self.root.join("refs").join(&self.model.revision);
            make_parent(&reference)?;
            let new = beside(&reference, "tmp");
            fs::write(&new, commit).map_err(|source| Error::io("write", &new, source))?;
            fs::rename(&new, &reference).map_err(|source| Error::io("write", &reference, source))?;
        }
        Ok(())
    }

    /// Free bytes where the cache lies.
    pub(crate) fn free(&self) -> Option<u64> {
        let there = self.site.cache.ancestors().find(|folder| folder.is_dir())?;
        let stat = rustix::fs::statvfs(there).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }
}

/// `NAME.PROCESS.KIND` beside `path`, on the same file system.
fn beside(path: &Path, kind: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{kind}", std::process::id()));
    path.with_file_name(name)
}

pub(crate) fn make_parent(path: &Path) -> Result<(), Error> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|source| Error::io("create", parent, source)),
        None => Ok(()),
    }
}

/// What of a model a folder holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// Weights, config and a tokenizer; or the GGUF file that is meant.
    Whole(PathBuf),
    /// Weights and config alone, as transformers fetches them without its tokenizer.
    WithoutTokenizer(PathBuf),
    /// Something is missing.
    Nothing,
}

/// What `folder` holds of `model`.
pub(crate) fn holding(folder: &Path, model: &ModelName) -> Holding {
    if let Some(file) = &model.file {
        let file = folder.join(file);
        return if gguf_is_whole(&file) { Holding::Whole(file) } else { Holding::Nothing };
    }
    let names: Vec<String> = match fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
        Err(_) => return Holding::Nothing,
    };
    let has = |name: &str| folder.join(name).is_file();
    if has("config.json") && (has("model.safetensors") || shards_are_there(folder)) {
        let tokenizer =
            ["tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"].iter().any(|name| has(name))
                || names.iter().any(|name| name.ends_with(".tiktoken"));
        let folder = folder.to_owned();
        return if tokenizer { Holding::Whole(folder) } else { Holding::WithoutTokenizer(folder) };
    }
    let mut firsts = names
        .iter()
        .filter(|name| name.ends_with(".gguf") && part(name).is_none_or(|(_, n, _)| n == 1))
        .map(|name| folder.join(name));
    match (firsts.next(), firsts.next()) {
        (Some(file), None) if gguf_is_whole(&file) => Holding::Whole(file),
        _ => Holding::Nothing,
    }
}

fn shards_are_there(folder: &Path) -> bool {
    let Some(index) = fs::read(folder.join("model.safetensors.index.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
    else {
        return false;
    };
    let shards = index.get("weight_map").and_then(|map| map.as_object());
    shards.is_some_and(|map| {
        let mut shards: Vec<&str> = map.values().filter_map(|shard| shard.as_str()).collect();
        shards.sort_unstable();
        shards.dedup();
        !shards.is_empty() && shards.iter().all(|shard| folder.join(shard).is_file())
    })
}

fn gguf_is_whole(file: &Path) -> bool {
    let Some(name) = file.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    match part(name) {
        Some((stem, _, count)) => {
            (1..=count).all(|n| file.with_file_name(format!("{stem}-{n:05}-of-{count:05}.gguf")).is_file())
        }
        None => file.is_file(),
    }
}
