//! Output that appears whole or not at all.
//!
//! Bytes go to a sibling of the target, `.NAME.XXXXXX.partial`, on the same file system. Finishing flushes it to
//! disk and renames it; an existing target is exchanged in one step where the system can, so there is never a
//! moment without either. Dropping it unfinished removes it; a killed process leaves it behind, to be deleted by
//! hand. Space is reserved at the start where the file system can, so that a full disk shows before hours of work.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FallocateFlags, RenameFlags};
use rustix::io::Errno;
use tempfile::{TempDir, TempPath};

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
    /// Checks what can be checked before any work: the parent is a folder, and the target is absent or may be
    /// replaced by a file or, for `folder`, by a folder. Returns the parent.
    fn check(&self, folder: bool) -> Result<PathBuf, Error> {
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
        let there = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(parent),
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
            None => Ok(parent),
        }
    }

    fn parent_error(&self, parent: PathBuf, problem: String) -> Error {
        Error::TargetFolder { path: self.path.clone(), parent, problem }
    }

    fn prefix(&self) -> String {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        format!(".{name}.")
    }

    /// What a failed write to the target means.
    fn write_error(&self, source: io::Error, needed: u64) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::DiskFull { path: self.path.clone(), needed }
            }
            _ => Error::io("write", &self.path, source),
        }
    }

    fn create_error(&self, parent: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.write_error(source, 0),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                // tempfile adds its own path to the message; the system's words are enough.
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

/// A file of known size on its way to its target.
#[derive(Debug)]
pub(crate) struct StagedFile {
    target: Target,
    parent: PathBuf,
    file: File,
    temporary: TempPath,
    bytes: u64,
}

impl StagedFile {
    pub fn create(target: &Target, bytes: u64) -> Result<Self, Error> {
        let parent = target.check(false)?;
        let temporary = tempfile::Builder::new()
            .prefix(&target.prefix())
            .suffix(".partial")
            // As any other file that a program creates; the umask applies.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(&parent)
            .map_err(|source| target.create_error(&parent, source))?;
        let (file, temporary) = temporary.into_parts();
        let staged = Self { target: target.clone(), parent, file, temporary, bytes };
        reserve(&staged.file, bytes).map_err(|source| target.write_error(source, bytes))?;
        Ok(staged)
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(|source| self.target.write_error(source, self.bytes))
    }

    pub fn path(&self) -> &Path {
        &self.target.path
    }

    /// Where the bytes lie until they are finished.
    pub fn staged(&self) -> &Path {
        &self.temporary
    }

    pub fn finish(self) -> Result<Written, Error> {
        let Self { target, parent, file, temporary, bytes } = self;
        file.sync_all().map_err(|source| target.write_error(source, bytes))?;
        drop(file);
        // Hours may have passed since the first look.
        target.check(false)?;
        let renamed = match target.overwrite {
            Overwrite::Refuse => temporary.persist_noclobber(&target.path),
            Overwrite::Force => temporary.persist(&target.path),
        };
        renamed.map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => Error::TargetExists { path: target.path.clone() },
            _ => target.write_error(error.error, bytes),
        })?;
        sync_folder(&parent)?;
        Ok(Written { files: vec![(target.path.clone(), bytes)], path: target.path, bytes })
    }
}

/// A folder on its way to its target. Files are written into [`path`](Self::path).
#[derive(Debug)]
pub(crate) struct StagedFolder {
    target: Target,
    parent: PathBuf,
    temporary: TempDir,
}

impl StagedFolder {
    pub fn create(target: &Target) -> Result<Self, Error> {
        let parent = target.check(true)?;
        let temporary = tempfile::Builder::new()
            .prefix(&target.prefix())
            .suffix(".partial")
            .permissions(fs::Permissions::from_mode(0o777))
            .tempdir_in(&parent)
            .map_err(|source| target.create_error(&parent, source))?;
        Ok(Self { target: target.clone(), parent, temporary })
    }

    /// The path that the folder will have.
    pub fn target(&self) -> &Path {
        &self.target.path
    }

    /// Where the files lie until they are finished.
    pub fn staged(&self) -> &Path {
        self.temporary.path()
    }

    /// Creates a file of `bytes` in the folder; `needed` is what the whole folder takes, for a message.
    pub fn create_file(&self, name: &str, bytes: u64, needed: u64) -> Result<File, Error> {
        let file = File::create_new(self.temporary.path().join(name))
            .map_err(|source| self.target.write_error(source, needed))?;
        reserve(&file, bytes).map_err(|source| self.target.write_error(source, needed))?;
        Ok(file)
    }

    pub fn write_error(&self, source: io::Error, needed: u64) -> Error {
        self.target.write_error(source, needed)
    }

    /// Renames the folder to its target; its files must have been synced.
    pub fn finish(self) -> Result<(), Error> {
        let Self { target, parent, temporary } = self;
        sync_folder(temporary.path())?;
        // Hours may have passed since the first look.
        target.check(true)?;
        let failed = |error: Errno| target.write_error(error.into(), 0);
        match rename(temporary.path(), &target.path, RenameFlags::NOREPLACE) {
            Ok(()) => {
                // Nothing is left at the temporary path.
                let _ = temporary.keep();
            }
            Err(Errno::EXIST) if target.overwrite == Overwrite::Force => {
                exchange(temporary, &parent, &target)?
            }
            Err(Errno::EXIST) => return Err(Error::TargetExists { path: target.path }),
            Err(error) => return Err(failed(error)),
        }
        sync_folder(&parent)
    }
}

/// Puts the finished folder in the place of the one at the target, and removes that.
fn exchange(temporary: TempDir, parent: &Path, target: &Target) -> Result<(), Error> {
    let io = |source: io::Error| target.write_error(source, 0);
    match rename(temporary.path(), &target.path, RenameFlags::EXCHANGE) {
        Ok(()) => {
            sync_folder(parent)?;
            // What the temporary path names now is the old folder.
            temporary.close().map_err(|source| Error::io("remove what was in", &target.path, source))
        }
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            // Network file systems. Between the two renames there is no target, but both folders are complete.
            let aside = tempfile::Builder::new()
                .prefix(&target.prefix())
                .suffix(".replaced")
                .tempdir_in(parent)
                .map_err(|source| target.create_error(parent, source))?;
            fs::rename(&target.path, aside.path()).map_err(io)?;
            if let Err(source) = fs::rename(temporary.path(), &target.path) {
                let back = fs::rename(aside.path(), &target.path);
                if back.is_err() {
                    // Not deleted with the guard: it holds what the target held.
                    let _ = aside.keep();
                }
                return Err(io(source));
            }
            let _ = temporary.keep();
            sync_folder(parent)?;
            aside.close().map_err(|source| Error::io("remove what was in", &target.path, source))
        }
        Err(error) => Err(io(error.into())),
    }
}

/// A rename with flags; without them, after a look, where the file system knows none.
fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, flags) {
        Err(Errno::INVAL | Errno::NOSYS) if flags == RenameFlags::NOREPLACE => {
            if fs::symlink_metadata(to).is_ok() {
                return Err(Errno::EXIST);
            }
            rustix::fs::rename(from, to)
        }
        result => result,
    }
}

/// Makes the file `bytes` long, with room on disk if the file system can promise it.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.set_len(bytes),
        result => result.map_err(Into::into),
    }
}

/// Flushes a folder, so that a rename in it outlives a power cut.
fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = File::open(path).map_err(|source| Error::io("open", path, source))?;
    match folder.sync_all() {
        // Some network file systems cannot; their renames are as durable as they get.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result.map_err(|source| Error::io("flush", path, source)),
    }
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

    pub fn add(&self, tensor: usize, len: usize) {
        self.tensors[tensor].2.fetch_add(len as u64, Ordering::Relaxed);
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
