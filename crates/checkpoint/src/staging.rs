//! Output that appears whole or not at all, and can be gone on with.
//!
//! ```text
//! .NAME.bitmill-partial/   beside the target, on the same file system; locked by the run that writes it
//!   journal                what was begun and what is finished, see `journal`
//!   output/                the files, under the names that they will have; or the folder itself
//! ```
//!
//! Finishing flushes everything to disk and renames it; an existing folder is exchanged in one step where the system
//! can, so there is never a moment without either. Dropping an output unfinished removes it unless it is to be kept; a
//! killed process leaves it, and the next run with the same target and [`Identity`] goes on with it. Space is reserved
//! at the start where the file system can, so that a full disk shows before hours of work.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FallocateFlags, FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde_json::Value;

use crate::journal::{Contents, Identity, Journal, Placing};
use crate::{Error, Overwrite, Target, Written};

/// Whether the target is a file, or files beside it, or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Files,
    Folder,
}

/// An output on its way to its target.
#[derive(Debug)]
pub(crate) struct Staging {
    target: Target,
    shape: Shape,
    parent: PathBuf,
    /// `.NAME.bitmill-partial`.
    path: PathBuf,
    /// What takes its place in the end: files, of which the first is the one that readers are given, or the folder.
    names: Vec<String>,
    journal: Journal,
    identity: Identity,
    /// Records of tensors that an earlier run finished.
    finished: Vec<Value>,
    /// Whether another run can go on with it.
    is_begun: AtomicBool,
    keep: AtomicBool,
    /// The folder itself; the lock goes with it.
    _lock: File,
}

impl Staging {
    /// Goes on with the output of an interrupted run with the same target and `identity`, or begins it; without an identity
    /// it begins one that nobody can go on with.
    pub fn resume(
        target: &Target,
        shape: Shape,
        names: Vec<String>,
        identity: Identity,
    ) -> Result<Self, Error> {
        let parent = target.parent()?;
        check(target, &parent, shape, &names)?;
        let path = partial_path(target, &parent);
        let (lock, journal, contents) = open(target, &parent)?;
        let is_resumed = match &contents.begun {
            Some(there) if !identity.is_empty() => {
                let differences = identity.differences(there);
                if !differences.is_empty() {
                    let (target, differences) = (target.path.clone(), differences.join("; "));
                    return Err(Error::OtherPartial { path: target, partial: path, differences });
                }
                true
            }
            _ => false,
        };
        let staging = Self {
            target: target.clone(),
            shape,
            parent,
            path,
            names,
            journal,
            identity,
            finished: if is_resumed { contents.finished } else { Vec::new() },
            is_begun: AtomicBool::new(is_resumed),
            // What an earlier run left is not removed for what this one stumbles over first.
            keep: AtomicBool::new(is_resumed),
            _lock: lock,
        };
        if !is_resumed {
            let output = staging.output();
            match fs::remove_dir_all(&output) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &output, error));
                }
                _ => fs::create_dir(&output).map_err(|source| staging.write_error(source, 0))?,
            }
        }
        Ok(staging)
    }

    /// What was recorded of the tensors that an earlier run finished, in the order in which it finished them.
    pub fn finished(&self) -> &[Value] {
        &self.finished
    }

    /// Whether what is written stays when this is dropped, for a later run to go on with.
    pub fn keep(&self, keep: bool) {
        self.keep.store(keep, Ordering::Relaxed);
    }

    /// The path that the output will have.
    pub fn target(&self) -> &Path {
        &self.target.path
    }

    /// The folder of all that goes with an unfinished output.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where files lie until they are finished; as a folder, the output itself.
    pub fn output(&self) -> PathBuf {
        self.path.join("output")
    }

    /// Refuses to begin what the disk has no room for; `needed` bytes in all, of which an earlier run may hold some.
    pub fn check_space(&self, needed: u64) -> Result<(), Error> {
        match missing(&self.parent, &self.output(), needed) {
            Some(missing) if missing > 0 => {
                Err(Error::DiskFull { path: self.target.path.clone(), needed, missing: Some(missing) })
            }
            _ => Ok(()),
        }
    }

    /// Creates a file of `bytes`, or opens the one that an earlier run created; `needed` is what the whole output takes,
    /// for a message.
    pub fn file(&self, name: &str, bytes: u64, needed: u64) -> Result<File, Error> {
        let path = self.output().join(name);
        let failed = |source| self.write_error(source, needed);
        if self.is_begun() {
            let file = File::options().read(true).write(true).open(&path);
            let file = file.ok().filter(|file| file.metadata().is_ok_and(|there| there.len() == bytes));
            return file.ok_or_else(|| Error::DamagedPartial { path: self.target.path.clone(), file: path });
        }
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        reserve(&file, bytes).map_err(failed)?;
        Ok(file)
    }

    /// Writes a small file whole and flushes it, over what an earlier run may have written.
    pub fn small_file(&self, name: &str, bytes: &[u8], needed: u64) -> Result<(), Error> {
        let path = self.output().join(name);
        fs::write(&path, bytes)
            .and_then(|()| File::open(&path)?.sync_all())
            .map_err(|source| self.write_error(source, needed))
    }

    /// To be called once every file is created: from here on an interrupted run can be gone on with.
    pub fn begin<'a>(&self, files: impl Iterator<Item = &'a File>) -> Result<(), Error> {
        if self.is_begun() || self.identity.is_empty() {
            return Ok(());
        }
        self.flush(files)?;
        sync_folder(&self.output())?;
        self.journal.begin(&self.identity).map_err(|source| self.write_error(source, 0))?;
        sync_folder(&self.path)?;
        sync_folder(&self.parent)?;
        self.is_begun.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn is_begun(&self) -> bool {
        self.is_begun.load(Ordering::Relaxed)
    }

    /// Has everything that was written to `files` on disk.
    pub fn flush<'a>(&self, mut files: impl Iterator<Item = &'a File>) -> Result<(), Error> {
        files.try_for_each(File::sync_data).map_err(|source| self.write_error(source, 0))
    }

    /// Notes that tensors are finished; their bytes must have been flushed.
    pub fn note(&self, records: &[Value]) -> Result<(), Error> {
        if !self.is_begun() {
            return Ok(());
        }
        self.journal.finished(records).map_err(|source| self.write_error(source, 0))
    }

    /// What a failed write means; `needed` is what the whole output takes, for a message.
    pub fn write_error(&self, source: io::Error, needed: u64) -> Error {
        full_or(&self.target, &self.parent, needed, source, |source| {
            Error::io("write", &self.target.path, source)
        })
    }

    /// Puts everything in its place; it must have been flushed.
    pub fn finish(self) -> Result<(), Error> {
        sync_folder(&self.output())?;
        // Hours may have passed since the first look.
        check(&self.target, &self.parent, self.shape, &self.names)?;
        let entry = |name: &String| {
            let from = match self.shape {
                Shape::Files => format!("output/{name}"),
                Shape::Folder => "output".to_owned(),
            };
            let path = self.path.join(&from);
            let there = fs::symlink_metadata(&path).map_err(|source| Error::io("read", &path, source))?;
            Ok(Placing { from, name: name.clone(), inode: there.ino() })
        };
        // The one that readers are given comes last.
        let entries = self.names.iter().rev().map(entry).collect::<Result<Vec<_>, _>>()?;
        if self.is_begun() {
            self.journal.placing(&entries).map_err(|source| self.write_error(source, 0))?;
            self.keep(true);
        }
        place(&self.target, &self.parent, &self.path, &entries)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !(self.keep.load(Ordering::Relaxed) && self.is_begun())
            && let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "an unfinished output could not be removed");
        }
    }
}

/// Writes the file `target` whole, or not at all.
pub(crate) fn write_file(target: &Target, bytes: &[u8]) -> Result<Written, Error> {
    let (name, len) = (target.name()?, bytes.len() as u64);
    let staging = Staging::resume(target, Shape::Files, vec![name.clone()], Identity::default())?;
    staging.check_space(len)?;
    staging.small_file(&name, bytes, len)?;
    staging.finish()?;
    Ok(Written { path: target.path.clone(), files: vec![(target.path.clone(), len)], bytes: len })
}

/// What was left of a run that was interrupted among its last renames.
#[derive(Debug)]
pub struct Finished {
    /// What was recorded of each tensor.
    pub records: Vec<Value>,
    /// What is in its place now.
    pub written: Written,
}

/// Puts in its place what an interrupted run with the same target and `identity` had written and checked; `None` if there is
/// no such run, or it had not come that far.
///
/// # Errors
/// [`Error::TargetBusy`] if that run is still going on, [`Error::TargetExists`], [`Error::Io`].
pub fn finish_interrupted(target: &Target, identity: &Identity) -> Result<Option<Finished>, Error> {
    let parent = target.parent()?;
    let path = partial_path(target, &parent);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let (_lock, _, contents) = open(target, &parent)?;
    let (Some(begun), Some(entries)) = (contents.begun, contents.placing) else { return Ok(None) };
    if !identity.differences(&begun).is_empty() {
        return Ok(None);
    }
    place(target, &parent, &path, &entries)?;
    let mut files = Vec::new();
    for entry in entries.iter().rev() {
        list(&parent.join(&entry.name), &mut files)?;
    }
    let bytes = files.iter().map(|(_, bytes)| bytes).sum();
    let written = Written { path: target.path.clone(), files, bytes };
    Ok(Some(Finished { records: contents.finished, written }))
}

/// Removes what an interrupted run left for the target `path`; whether there was anything.
///
/// # Errors
/// [`Error::TargetBusy`] if that run is still going on, [`Error::Io`].
pub fn discard_partial(path: &Path) -> Result<bool, Error> {
    let target = Target { path: path.to_owned(), overwrite: Overwrite::Force };
    let partial = partial_path(&target, &target.parent()?);
    if fs::symlink_metadata(&partial).is_err() {
        return Ok(false);
    }
    let _lock = lock(&target, &partial)?;
    fs::remove_dir_all(&partial).map_err(|source| Error::io("remove", &partial, source))?;
    Ok(true)
}

/// Lets the system forget the pages of a file that are on disk.
pub(crate) fn forget(file: &File) {
    if let Err(error) = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed) {
        tracing::debug!(%error, "pages of an output could not be forgotten");
    }
}

/// Whether everything may take its place.
fn check(target: &Target, parent: &Path, shape: Shape, names: &[String]) -> Result<(), Error> {
    names.iter().try_for_each(|name| {
        let path = if names.len() == 1 { target.path.clone() } else { parent.join(name) };
        Target { path, overwrite: target.overwrite }.check(shape == Shape::Folder)
    })
}

/// `.NAME.bitmill-partial` beside the target.
fn partial_path(target: &Target, parent: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.path.file_name().unwrap_or_default());
    name.push(".bitmill-partial");
    parent.join(name)
}

/// Locks the partial output of `target`, which is created if it is not there, and reads its journal.
fn open(target: &Target, parent: &Path) -> Result<(File, Journal, Contents), Error> {
    let path = partial_path(target, parent);
    let lock = loop {
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(full_or(target, parent, 0, error, |error| target.create_error(parent, error)));
            }
            _ => {}
        }
        let lock = lock(target, &path)?;
        // Another run may have finished and removed the folder between the two.
        let same = |there: fs::Metadata| lock.metadata().is_ok_and(|ours| ours.ino() == there.ino());
        if fs::metadata(&path).is_ok_and(same) {
            break lock;
        }
    };
    let at = path.join("journal");
    let (journal, contents) = Journal::open(&at).map_err(|source| Error::io("open", &at, source))?;
    Ok((lock, journal, contents))
}

/// Locks the folder `partial` for as long as the file is open.
fn lock(target: &Target, partial: &Path) -> Result<File, Error> {
    let folder = File::open(partial).map_err(|source| Error::io("open", partial, source))?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(Errno::WOULDBLOCK) => {
            Err(Error::TargetBusy { path: target.path.clone(), partial: partial.to_owned() })
        }
        // Some network file systems know no locks.
        Err(error) => {
            tracing::debug!(%error, "an output could not be locked");
            Ok(folder)
        }
    }
}

/// Renames `entries` to their places in `parent`, unless they are there already, and removes the partial output `partial`.
fn place(target: &Target, parent: &Path, partial: &Path, entries: &[Placing]) -> Result<(), Error> {
    for entry in entries {
        let (from, to) = (partial.join(&entry.from), parent.join(&entry.name));
        let is_it = |path: &Path| fs::symlink_metadata(path).is_ok_and(|there| there.ino() == entry.inode);
        if is_it(&to) {
            continue;
        }
        if !is_it(&from) {
            return Err(Error::DamagedPartial { path: target.path.clone(), file: from });
        }
        let failed = |source: io::Error| Error::io("put in its place", &to, source);
        match rename(&from, &to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) if target.overwrite == Overwrite::Refuse => {
                return Err(Error::TargetExists { path: to });
            }
            Err(Errno::EXIST) if from.is_dir() => {
                exchange(&from, &to, &partial.join("replaced")).map_err(failed)?;
            }
            Err(Errno::EXIST) => fs::rename(&from, &to).map_err(failed)?,
            Err(error) => return Err(failed(error.into())),
        }
    }
    sync_folder(parent)?;
    fs::remove_dir_all(partial).map_err(|source| Error::io("remove", partial, source))
}

/// Puts the finished folder in the place of the one at the target, which is removed with all that is left.
fn exchange(from: &Path, to: &Path, aside: &Path) -> io::Result<()> {
    match rename(from, to, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            // Network file systems. Between the two renames there is no target, but both folders are complete.
            fs::rename(to, aside)?;
            fs::rename(from, to).inspect_err(|_| {
                // Back to where it was; or it stays with what is kept.
                let _ = fs::rename(aside, to);
            })
        }
        result => result.map_err(Into::into),
    }
}

/// Adds the file, or all files of the folder, with their sizes.
fn list(path: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<(), Error> {
    let failed = |source| Error::io("list", path, source);
    let there = fs::symlink_metadata(path).map_err(failed)?;
    if !there.is_dir() {
        files.push((path.to_owned(), there.len()));
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        files.push((entry.path(), entry.metadata().map_err(failed)?.len()));
    }
    Ok(())
}

/// That the disk is full, if that is what `source` says.
fn full_or(
    target: &Target,
    parent: &Path,
    needed: u64,
    source: io::Error,
    other: impl FnOnce(io::Error) -> Error,
) -> Error {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let output = partial_path(target, parent).join("output");
            let missing = missing(parent, &output, needed).filter(|&missing| missing > 0);
            Error::DiskFull { path: target.path.clone(), needed, missing }
        }
        _ => other(source),
    }
}

/// By how many bytes the disk of `parent` is too small for `needed`, of which the files in `output` hold some; none where
/// the system does not tell.
fn missing(parent: &Path, output: &Path, needed: u64) -> Option<u64> {
    let disk = rustix::fs::statvfs(parent).ok()?;
    let held = fs::read_dir(output).map_or(0, |entries| {
        entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|there| 512 * there.blocks()).sum()
    });
    Some(needed.saturating_sub(held).saturating_sub(disk.f_bavail.saturating_mul(disk.f_frsize)))
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

/// Flushes a folder, so that what was created or renamed in it outlives a power cut.
fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = File::open(path).map_err(|source| Error::io("open", path, source))?;
    match folder.sync_all() {
        // Some network file systems cannot; their renames are as durable as they get.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result.map_err(|source| Error::io("flush", path, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(place: &Path, shape: Shape, overwrite: Overwrite) -> (Target, Staging, Identity) {
        let mut identity = Identity::default();
        identity.add("version", "1");
        let target = Target { path: place.join("out"), overwrite };
        let names = match shape {
            Shape::Files => vec!["out".to_owned(), "out.json".to_owned()],
            Shape::Folder => vec!["out".to_owned()],
        };
        let staging = Staging::resume(&target, shape, names.clone(), identity.clone()).unwrap();
        staging.begin(std::iter::empty()).unwrap();
        match shape {
            Shape::Files => names.iter().for_each(|name| staging.small_file(name, b"new", 3).unwrap()),
            Shape::Folder => staging.small_file("config.json", b"new", 3).unwrap(),
        }
        staging.note(&[serde_json::json!(1)]).unwrap();
        let froms = match shape {
            Shape::Files => vec!["output/out.json", "output/out"],
            Shape::Folder => vec!["output"],
        };
        let entry = |(from, name): (&&str, &String)| Placing {
            from: (*from).to_owned(),
            name: name.clone(),
            inode: fs::metadata(staging.path.join(from)).unwrap().ino(),
        };
        let entries: Vec<Placing> = froms.iter().zip(names.iter().rev()).map(entry).collect();
        staging.journal.placing(&entries).unwrap();
        staging.keep(true);
        (target, staging, identity)
    }

    #[test]
    fn renames_that_were_interrupted_are_ended_wherever_that_was() {
        for renamed in 0..=2 {
            let place = tempfile::tempdir().unwrap();
            let (target, staging, identity) = staged(place.path(), Shape::Files, Overwrite::Refuse);
            let path = staging.path.clone();
            drop(staging);
            for name in ["out.json", "out"].into_iter().take(renamed) {
                fs::rename(path.join("output").join(name), place.path().join(name)).unwrap();
            }
            assert!(finish_interrupted(&target, &Identity::default()).unwrap().is_none(), "another run's");
            let finished = finish_interrupted(&target, &identity).unwrap().unwrap();
            assert_eq!(finished.records, [serde_json::json!(1)]);
            assert_eq!(finished.written.files[0], (place.path().join("out"), 3));
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn a_folder_that_was_exchanged_already_is_not_exchanged_back() {
        for exchanged in [false, true] {
            let place = tempfile::tempdir().unwrap();
            let out = place.path().join("out");
            fs::create_dir(&out).unwrap();
            fs::write(out.join("config.json"), "old").unwrap();
            let (target, staging, identity) = staged(place.path(), Shape::Folder, Overwrite::Force);
            let path = staging.path.clone();
            drop(staging);
            if exchanged {
                exchange(&path.join("output"), &out, &path.join("replaced")).unwrap();
                assert_eq!(fs::read(path.join("output/config.json")).unwrap(), b"old");
            }
            finish_interrupted(&target, &identity).unwrap().unwrap();
            assert_eq!(fs::read(out.join("config.json")).unwrap(), b"new");
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn what_the_disk_has_no_room_for_is_refused_with_the_bytes_that_are_missing() {
        let place = tempfile::tempdir().unwrap();
        let (_, staging, _) = staged(place.path(), Shape::Files, Overwrite::Refuse);
        staging.check_space(3).unwrap();
        let needed = 1 << 60;
        let Err(Error::DiskFull { missing: Some(missing), .. }) = staging.check_space(needed) else {
            panic!("a disk of an exabyte")
        };
        // What is held already need not be there twice.
        let disk = rustix::fs::statvfs(place.path()).unwrap();
        let free = disk.f_bavail * disk.f_frsize;
        assert!(missing > needed - free - (1 << 30) && missing < needed, "{missing}");
        let error = staging.write_error(io::ErrorKind::StorageFull.into(), needed).to_string();
        assert!(error.contains("bytes more than there is room for"), "{error}");
    }
}
