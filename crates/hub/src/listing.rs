//! The hubs' listings: what is in a repository, under which hash.
//!
//! ```text
//! Hugging Face   GET /api/models/OWNER/NAME/revision/REVISION?blobs=true
//!                {"sha": COMMIT, "siblings": [{"rfilename", "size", "blobId", "lfs": {"sha256", "size"}}]}
//! ModelScope     GET /api/v1/models/OWNER/NAME/repo/files?Revision=REVISION&Recursive=True
//!                {"Code": 200, "Success": true, "Data": {"Files": [{"Path", "Type", "Size", "Sha256"}]}}
//! ```

use std::collections::HashSet;

use serde::Deserialize;

use crate::Error;
use crate::client::printable;
use crate::hash::{Hash, hex};
use crate::name::check_path;

const MOST_FILES: usize = 100_000;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Relative to the repository, with `/`; checked to stay inside.
    pub path: String,
    /// Bytes.
    pub size: u64,
    pub(crate) hash: Option<Hash>,
}

#[derive(Deserialize)]
struct HuggingFace {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModelScope {
    #[serde(default)]
    message: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    #[serde(default)]
    files: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: String,
    r#type: Option<String>,
    #[serde(default)]
    size: u64,
    sha256: Option<String>,
}

/// The commit and the files in Hugging Face's answer from `url`.
///
/// # Errors
/// [`Error::Answer`], [`Error::FileName`].
pub fn hugging_face_listing(url: &str, answer: &[u8]) -> Result<(String, Vec<RemoteFile>), Error> {
    let malformed = |problem: String| Error::Answer { url: url.to_owned(), problem };
    let parsed: HuggingFace =
        serde_json::from_slice(answer).map_err(|error| malformed(printable(&error.to_string())))?;
    let commit = hex(&parsed.sha, 40).ok_or_else(|| malformed("`sha` is no commit".to_owned()))?;
    let mut files = Vec::new();
    for sibling in parsed.siblings {
        let hash = match &sibling.lfs {
            Some(lfs) => Hash::sha256(&lfs.sha256),
            None => sibling.blob_id.as_deref().and_then(Hash::git_blob),
        };
        let size = sibling.lfs.map(|lfs| lfs.size).or(sibling.size);
        let (Some(size), Some(hash)) = (size, hash) else {
            let name = printable(&sibling.rfilename);
            return Err(malformed(format!("`{name}` has no size or no hash")));
        };
        files.push(RemoteFile { path: sibling.rfilename, size, hash: Some(hash) });
    }
    check(url, &files)?;
    Ok((commit, files))
}

/// The files in ModelScope's answer from `url`. A file without `Sha256` is checked by its length alone.
///
/// # Errors
/// [`Error::Answer`], [`Error::FileName`].
pub fn model_scope_listing(url: &str, answer: &[u8]) -> Result<Vec<RemoteFile>, Error> {
    let malformed = |problem: String| Error::Answer { url: url.to_owned(), problem };
    let parsed: ModelScope =
        serde_json::from_slice(answer).map_err(|error| malformed(printable(&error.to_string())))?;
    let Some(entries) = parsed.data.and_then(|data| data.files) else {
        let said = parsed.message.map_or_else(String::new, |said| format!("; it says: {}", printable(&said)));
        return Err(malformed(format!("there is no list of files{said}")));
    };
    let mut files = Vec::new();
    for entry in entries {
        if entry.r#type.as_deref() == Some("tree") {
            continue;
        }
        let hash = match entry.sha256.as_deref() {
            None | Some("") => None,
            Some(text) => Some(Hash::sha256(text).ok_or_else(|| {
                malformed(format!("`{}`: its `Sha256` is no hash", printable(&entry.path)))
            })?),
        };
        files.push(RemoteFile { path: entry.path, size: entry.size, hash });
    }
    check(url, &files)?;
    Ok(files)
}

fn check(url: &str, files: &[RemoteFile]) -> Result<(), Error> {
    if files.len() > MOST_FILES {
        let problem = format!("{} files; at most {MOST_FILES} are read", files.len());
        return Err(Error::Answer { url: url.to_owned(), problem });
    }
    let mut seen = HashSet::new();
    for file in files {
        let bad = |problem| Error::FileName { url: url.to_owned(), name: printable(&file.path), problem };
        check_path(&file.path).map_err(bad)?;
        if !seen.insert(file.path.as_str()) {
            return Err(bad("it is there twice"));
        }
    }
    // No sum of sizes may overflow.
    match files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size)) {
        Some(_) => Ok(()),
        None => Err(Error::Answer { url: url.to_owned(), problem: "the sizes are absurd".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    fn one(name: &str, size: &str) -> String {
        format!(
            r#"{{"sha": "{SHA1}", "siblings": [{{"rfilename": {name}, "size": {size}, "blobId": "{SHA1}"}}]}}"#
        )
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in
            [r#""../x""#, r#""/etc/passwd""#, r#""a//b""#, r#""a/./b""#, r#""a\\b""#, r#""""#, r#""a\u0000""#]
        {
            let listing = hugging_face_listing("u", one(name, "1").as_bytes());
            assert!(matches!(listing, Err(Error::FileName { .. })), "{name}: {listing:?}");
            let listing = format!(r#"{{"Data": {{"Files": [{{"Path": {name}, "Size": 1}}]}}}}"#);
            assert!(
                matches!(model_scope_listing("u", listing.as_bytes()), Err(Error::FileName { .. })),
                "{name}"
            );
        }
        let twice = one("\"a\"", "1")
            .replace("}]", &format!("}}, {{\"rfilename\": \"a\", \"size\": 1, \"blobId\": \"{SHA1}\"}}]"));
        assert!(matches!(hugging_face_listing("u", twice.as_bytes()), Err(Error::FileName { .. })));
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        let absurd = one("\"a\"", "18446744073709551615")
            .replace("}]", &format!("}}, {{\"rfilename\": \"b\", \"size\": 1, \"blobId\": \"{SHA1}\"}}]"));
        for answer in [
            "",
            "[]",
            "<html>",
            "{\"sha\": \"../x\", \"siblings\": []}",
            &one("\"a\"", "-1"),
            &one("\"a\"", "null"),
            &one("\"a\"", "1").replace("blobId", "blob"),
            &absurd,
            &"[".repeat(100_000),
        ] {
            let listing = hugging_face_listing("u", answer.as_bytes());
            assert!(matches!(listing, Err(Error::Answer { .. })), "{answer}: {listing:?}");
        }
        for answer in ["{}", r#"{"Code": 404, "Message": "no such model", "Data": null}"#] {
            assert!(
                matches!(model_scope_listing("u", answer.as_bytes()), Err(Error::Answer { .. })),
                "{answer}"
            );
        }
        let bad_hash = r#"{"Data": {"Files": [{"Path": "a", "Size": 1, "Sha256": "../../x"}]}}"#;
        assert!(matches!(model_scope_listing("u", bad_hash.as_bytes()), Err(Error::Answer { .. })));
    }
}
