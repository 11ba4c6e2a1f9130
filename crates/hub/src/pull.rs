//! From a name to a path.

use std::fs;
use std::path::PathBuf;

use crate::cache::{Holding, Place, holding, make_parent};
use crate::client::{Client, Retry};
use crate::download::{fetch, is_whole};
use crate::listing::{hugging_face_listing, model_scope_listing};
use crate::select::select;
use crate::url::{Slashes, Url, encode};
use crate::{Error, Hub, ModelName, RemoteFile, Site};

/// How far a pull is.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// Another process fetches this file.
    Waiting(&'a str),
    /// So many of the bytes are there.
    Bytes {
        /// Those that were there before included.
        done: u64,
        /// Of all files wanted.
        total: u64,
    },
}

/// A model that is in the cache now.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The model's folder, or its (first) GGUF file where nothing else was fetched.
    pub path: PathBuf,
    /// What the revision stood for; ModelScope does not say.
    pub commit: Option<String>,
    /// The model's files.
    pub files: Vec<PulledFile>,
}

/// One file of it.
#[derive(Debug, Clone)]
pub struct PulledFile {
    /// Relative to the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// By which it was checked; `None` where the hub gives no hash, so that its length alone was.
    pub hash: Option<String>,
    /// Whether it was fetched now; else it was in the cache.
    pub fetched: bool,
}

/// The model's path, if the cache has all of it.
pub fn cached(site: &Site, model: &ModelName) -> Option<PathBuf> {
    match holding(&Place::new(site, model).folder()?, model) {
        Holding::Whole(path) => Some(path),
        Holding::WithoutTokenizer(_) | Holding::Nothing => None,
    }
}

/// The model's path: the cache's own where all is there, without asking the hub; else fetched.
///
/// # Errors
/// As [`pull`]. Where that fails and the cache has everything but a tokenizer, it is no error.
pub fn locate(
    site: &Site,
    model: &ModelName,
    retry: Retry,
    progress: &dyn Fn(Progress),
) -> Result<PathBuf, Error> {
    let there = Place::new(site, model).folder().map_or(Holding::Nothing, |folder| holding(&folder, model));
    match there {
        Holding::Whole(path) => Ok(path),
        Holding::WithoutTokenizer(path) => {
            Ok(pull(site, model, &[], retry, progress).map_or(path, |pulled| pulled.path))
        }
        Holding::Nothing => Ok(pull(site, model, &[], retry, progress)?.path),
    }
}

/// Brings the model into the cache: asks what the revision is now and fetches what is missing. `include` are patterns
/// of files wanted instead of the usual ones; `*` matches any characters, `/` too.
///
/// # Errors
/// [`Error`]; nothing half-written is in place then, and what came of a broken transfer is gone on from next time.
pub fn pull(
    site: &Site,
    model: &ModelName,
    include: &[String],
    retry: Retry,
    progress: &dyn Fn(Progress),
) -> Result<Pulled, Error> {
    if site.offline {
        return Err(Error::Offline {
            model: model.to_string(),
            cache: site.cache.clone(),
            variable: "HF_HUB_OFFLINE",
        });
    }
    let client = Client::new(site, model, retry)?;
    let place = Place::new(site, model);
    let (commit, files) = list(site, &client, model, include)?;
    let mut wanted = select(model, &files, include)?;
    // ModelScope's files appear one by one; the config, without which a folder is no model, last.
    wanted.sort_by_key(|file| (file.path == "config.json", file.path.ends_with(".json"), file.path.as_str()));
    let total = wanted.iter().map(|file| file.size).sum();

    let mut present = Vec::new();
    for file in &wanted {
        let target = place.target(&file.path, id(file));
        present.push(match site.hub {
            // A blob is named by its content and appears complete.
            Hub::HuggingFace => fs::metadata(&target).is_ok_and(|there| there.len() == file.size),
            Hub::ModelScope => is_whole(&target, file)?,
        });
    }
    let missing = wanted.iter().zip(&present).filter(|(_, present)| !**present).map(|(file, _)| {
        let partial = incomplete(&place, file);
        file.size.saturating_sub(fs::metadata(partial).map_or(0, |there| there.len()))
    });
    let needed = missing.sum();
    if let Some(free) = place.free().filter(|free| *free < needed) {
        return Err(Error::NoSpace { path: site.cache.clone(), needed, free });
    }

    let mut done = 0;
    for (file, present) in wanted.iter().zip(&mut present) {
        if !*present {
            let before = done;
            let at = |have| progress(Progress::Bytes { done: before + have, total });
            *present = !bring(site, &client, &place, model, commit.as_deref(), file, progress, at)?;
        }
        done += file.size;
        progress(Progress::Bytes { done, total });
    }
    if let Some(commit) = &commit {
        let links: Vec<(&str, &str)> = wanted.iter().map(|file| (file.path.as_str(), id(file))).collect();
        place.link(commit, &links)?;
    }
    let folder = place.snapshot(commit.as_deref().unwrap_or_default());
    let all_gguf = wanted.iter().all(|file| file.path.ends_with(".gguf"));
    let first = wanted.first().filter(|_| all_gguf).map(|file| folder.join(&file.path));
    let files = wanted
        .iter()
        .zip(present)
        .map(|(file, present)| PulledFile {
            path: file.path.clone(),
            size: file.size,
            hash: file.hash.as_ref().map(|hash| hash.digits().to_owned()),
            fetched: !present,
        })
        .collect();
    Ok(Pulled { path: first.unwrap_or(folder), commit, files })
}

fn list(
    site: &Site,
    client: &Client,
    model: &ModelName,
    include: &[String],
) -> Result<(Option<String>, Vec<RemoteFile>), Error> {
    let (repository, revision) = (model.repository(), encode(&model.revision, Slashes::Encoded));
    match site.hub {
        Hub::HuggingFace => {
            let url = site.endpoint.at(&format!("/api/models/{repository}/revision/{revision}?blobs=true"));
            let (commit, files) = hugging_face_listing(&url.shown(), &client.ask(&url)?)?;
            Ok((Some(commit), files))
        }
        Hub::ModelScope => {
            // A recursive listing is cut at 3000 entries without a word, so only where one is needed.
            let deep = include.iter().chain(&model.file).any(|path| path.contains('/'));
            let recursive = if deep { "True" } else { "False" };
            let query = format!("?Revision={revision}&Recursive={recursive}");
            let url = site.endpoint.at(&format!("/api/v1/models/{repository}/repo/files{query}"));
            Ok((None, model_scope_listing(&url.shown(), &client.ask(&url)?)?))
        }
    }
}

fn id(file: &RemoteFile) -> &str {
    file.hash.as_ref().map_or("", |hash| hash.digits())
}

fn incomplete(place: &Place, file: &RemoteFile) -> PathBuf {
    let mut path = place.target(&file.path, id(file)).into_os_string();
    path.push(".incomplete");
    path.into()
}

/// Fetches one file, unless another process just did. Says whether it was fetched.
fn bring(
    site: &Site,
    client: &Client,
    place: &Place,
    model: &ModelName,
    commit: Option<&str>,
    file: &RemoteFile,
    progress: &dyn Fn(Progress),
    mut at: impl FnMut(u64),
) -> Result<bool, Error> {
    let target = place.target(&file.path, id(file));
    let partial = incomplete(place, file);
    make_parent(&target)?;
    let _lock = place.lock(&file.path, id(file), || progress(Progress::Waiting(&file.path)))?;
    if is_whole(&target, file)? {
        return Ok(false);
    }
    fetch(client, &address(site, model, commit, file), file, &partial, &mut at)?;
    fs::rename(&partial, &target).map_err(|source| Error::io("put in place", &target, source))?;
    Ok(true)
}

fn address(site: &Site, model: &ModelName, commit: Option<&str>, file: &RemoteFile) -> Url {
    let repository = model.repository();
    match (site.hub, commit) {
        (Hub::HuggingFace, Some(commit)) => {
            let path = encode(&file.path, Slashes::Stay);
            site.endpoint.at(&format!("/{repository}/resolve/{commit}/{path}"))
        }
        _ => {
            let (revision, path) =
                (encode(&model.revision, Slashes::Encoded), encode(&file.path, Slashes::Encoded));
            site.endpoint.at(&format!("/api/v1/models/{repository}/repo?Revision={revision}&FilePath={path}"))
        }
    }
}
