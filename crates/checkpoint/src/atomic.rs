//! Where output goes, what may be replaced there, and whether all of it was written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The file or folder.
    pub path: PathBuf,
    /// What happens if it is there already.
    pub overwrite: Overwrite,
}

/// What happens to an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overwrite {
    /// Writing is refused.
    Refuse,
    /// It is replaced once the new one is complete. A folder must look like a checkpoint (config.json or
    /// safetensors, no folders inside) or be empty: a slip of the hand must not replace a home directory.
    Force,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file or folder.
    pub path: PathBuf,
    /// Every file with its size in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Their sum.
    pub bytes: u64,
}

impl Target {
    /// The folder that the target lies in, which must be there.
    pub(crate) fn parent(&self) -> Result<PathBuf, Error> {
        let path = &self.path;
        if path.file_name().is_none() {
            let problem = "the path names no file".to_owned();
            return Err(Error::TargetNotReplaceable { path: path.clone(), problem });
        }
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        match fs::metadata(&parent) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(self.parent_error(parent, "is not a folder".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.parent_error(parent, "does not exist".to_owned()));
            }
            Err(error) => return Err(self.parent_error(parent, format!("cannot be looked into: {error}"))),
        }
        Ok(parent)
    }

    /// The target's own name.
    pub(crate) fn name(&self) -> Result<String, Error> {
        self.parent()?;
        Ok(self.path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Checks that nothing is there, or what may be replaced by a file or, for `folder`, by a folder.
    pub(crate) fn check(&self, folder: bool) -> Result<(), Error> {
        let path = &self.path;
        let there = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::io("look at", path, source)),
        };
        if self.overwrite == Overwrite::Refuse {
            return Err(Error::TargetExists { path: path.clone() });
        }
        let problem = match (folder, there.file_type()) {
            (_, kind) if kind.is_symlink() => Some("it is a symbolic link".to_owned()),
            (false, kind) if kind.is_dir() => Some("it is a folder, and a file is to be written".to_owned()),
            (false, kind) if !kind.is_file() => Some("it is not a regular file".to_owned()),
            (true, kind) if !kind.is_dir() => Some("it is a file, and a folder is to be written".to_owned()),
            (true, _) => not_a_checkpoint(path)?,
            (false, _) => None,
        };
        match problem {
            Some(problem) => Err(Error::TargetNotReplaceable { path: path.clone(), problem }),
            None => Ok(()),
        }
    }

    fn parent_error(&self, parent: PathBuf, problem: String) -> Error {
        Error::TargetFolder { path: self.path.clone(), parent, problem }
    }

    /// What it means that nothing can be created in the parent.
    pub(crate) fn create_error(&self, parent: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                let reason = match source.kind() {
                    io::ErrorKind::ReadOnlyFilesystem => "is on a read-only file system",
                    _ => "cannot be written to: permission denied",
                };
                self.parent_error(parent.to_owned(), reason.to_owned())
            }
            _ => self.parent_error(parent.to_owned(), format!("cannot be written to: {source}")),
        }
    }
}

/// Why the folder at `path` is not one that a checkpoint may replace.
fn not_a_checkpoint(path: &Path) -> Result<Option<String>, Error> {
    let mut empty = true;
    let mut checkpoint = false;
    for entry in fs::read_dir(path).map_err(|source| Error::io("list", path, source))? {
        let entry = entry.map_err(|source| Error::io("list", path, source))?;
        let kind = entry.file_type().map_err(|source| Error::io("list", path, source))?;
        if kind.is_dir() {
            let name = entry.file_name().to_string_lossy().into_owned();
            return Ok(Some(format!("there is a folder `{name}` inside, so it is not only a checkpoint")));
        }
        empty = false;
        let name = entry.file_name();
        checkpoint |=
            name == "config.json" || Path::new(&name).extension().is_some_and(|ext| ext == "safetensors");
    }
    if empty || checkpoint {
        return Ok(None);
    }
    Ok(Some("there is neither config.json nor safetensors inside, so it is not a checkpoint".to_owned()))
}

/// How much of each of several tensors has been written.
#[derive(Debug)]
pub(crate) struct Progress {
    tensors: Vec<(String, u64, AtomicU64)>,
}

impl Progress {
    /// For tensors of these names and sizes.
    pub fn new(tensors: impl Iterator<Item = (String, u64)>) -> Self {
        Self { tensors: tensors.map(|(name, bytes)| (name, bytes, AtomicU64::new(0))).collect() }
    }

    /// Checks that `len` bytes at `offset` lie within tensor number `tensor`.
    ///
    /// # Panics
    /// If there is no such tensor: the caller made the list.
    pub fn check(&self, tensor: usize, offset: u64, len: usize) -> Result<(), Error> {
        let (name, size, _) = &self.tensors[tensor];
        let bytes = len as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > *size) {
            return Err(Error::WriteOutside { tensor: name.clone(), offset, bytes, size: *size });
        }
        Ok(())
    }

    pub fn add(&self, tensor: usize, bytes: u64) {
        self.tensors[tensor].2.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts all of a tensor.
    pub fn add_whole(&self, tensor: usize) {
        self.add(tensor, self.tensors[tensor].1);
    }

    /// Every tensor must have been written as many bytes as it has. A byte written twice counts twice, so that
    /// writing one part twice and another never may pass for complete only if the sizes agree: writers split
    /// tensors into disjoint rows.
    pub fn check_complete(&self, path: &Path) -> Result<(), Error> {
        for (name, expected, written) in &self.tensors {
            let written = written.load(Ordering::Relaxed);
            if written != *expected {
                let (path, tensor, expected) = (path.to_owned(), name.clone(), *expected);
                return Err(Error::Incomplete { path, tensor, written, expected });
            }
        }
        Ok(())
    }
}
