//! Bytes that someone keeps alive: a mapped file, the program itself, or a vector.

use std::fmt;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use crate::Error;

/// A range of shared bytes; clones and slices share them.
///
/// A mapped file is read page by page as its bytes are touched, so opening costs nothing. The file must
/// not be shortened while it is mapped: the system then ends the process with SIGBUS. Replacing it by a
/// rename, as every writer here does, is harmless.
///
/// ```
/// use bitmill_checkpoint::Region;
/// let region = Region::from_vec(vec![1, 2, 3, 4]).slice(1..3);
/// assert_eq!(&*region, [2, 3]);
/// ```
#[derive(Clone)]
pub struct Region {
    source: Source,
    start: usize,
    len: usize,
}

#[derive(Clone)]
enum Source {
    Static(&'static [u8]),
    Owned(Arc<Vec<u8>>),
    Floats(Arc<Vec<f32>>),
    Mapped(Arc<Mapped>),
}

struct Mapped {
    map: Mmap,
    /// Kept open to tell the system what of it is done with.
    file: File,
    path: PathBuf,
}

impl Region {
    /// Bytes of the program itself.
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { source: Source::Static(bytes), start: 0, len: bytes.len() }
    }

    /// Bytes on the heap.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self { source: Source::Owned(Arc::new(bytes)), start: 0, len }
    }

    /// The bytes of floats on the heap, as this machine has them.
    ///
    /// ```
    /// use bitmill_checkpoint::Region;
    /// assert_eq!(&*Region::from_floats(vec![0.0, 1.0]), [0.0f32.to_ne_bytes(), 1.0f32.to_ne_bytes()].concat());
    /// ```
    pub fn from_floats(values: Vec<f32>) -> Self {
        let len = std::mem::size_of_val(values.as_slice());
        Self { source: Source::Floats(Arc::new(values)), start: 0, len }
    }

    /// Maps the whole file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened or mapped; [`Error::NotACheckpoint`] if it is no regular file.
    pub fn map(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let metadata = file.metadata().map_err(|source| Error::io("read", path, source))?;
        if !metadata.is_file() {
            return Err(Error::NotACheckpoint {
                path: path.to_owned(),
                problem: "not a regular file".to_owned(),
            });
        }
        if metadata.len() == 0 {
            return Ok(Self::from_static(&[]));
        }
        // SAFETY: the map is private to this type and read-only. Another process may still change the file
        // under us: bytes are then other bytes (every parser here copies what it has checked before it relies
        // on it, and weights may hold any bits), and a shortened file ends the process, as documented above.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io("map", path, source))?;
        let mapped = Mapped { map, file, path: path.to_owned() };
        Ok(Self { len: mapped.map.len(), source: Source::Mapped(Arc::new(mapped)), start: 0 })
    }

    /// The bytes `range` of this region.
    ///
    /// # Panics
    /// If `range` does not lie within the region.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} lies within {} bytes",
            self.len
        );
        Self { source: self.source.clone(), start: self.start + range.start, len: range.end - range.start }
    }

    /// Lets go of the pages of a mapped file: they leave this process's memory and are read again when next
    /// touched. Nothing happens to other regions.
    pub fn release(&self) {
        if let Source::Mapped(mapped) = &self.source
            && self.len > 0
        {
            // SAFETY: the map is shared and read-only, so a dropped page comes back from the file with the
            // same bytes. The range is widened to whole pages, which at worst costs a neighbour a reread.
            let advised =
                unsafe { mapped.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.start, self.len) };
            if let Err(error) = advised {
                tracing::debug!(%error, "pages of a mapped file could not be released");
            }
        }
    }

    /// [`release`](Self::release), and lets the system forget the pages as well: for what is read once, so that a
    /// model larger than memory does not push out all else.
    pub fn forget(&self) {
        self.release();
        if let Source::Mapped(mapped) = &self.source
            && let Some(len) = NonZeroU64::new(self.len as u64)
            && let Err(error) =
                rustix::fs::fadvise(&mapped.file, self.start as u64, Some(len), rustix::fs::Advice::DontNeed)
        {
            tracing::debug!(%error, "pages of a mapped file could not be forgotten");
        }
    }

    /// The file that is mapped.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::Mapped(mapped) => Some(&mapped.path),
            Source::Static(_) | Source::Owned(_) | Source::Floats(_) => None,
        }
    }

    /// Tells the system that this range will be read soon, from front to back.
    pub fn will_need(&self) {
        if let Source::Mapped(mapped) = &self.source
            && self.len > 0
            && let Err(error) = mapped.map.advise_range(memmap2::Advice::WillNeed, self.start, self.len)
        {
            tracing::debug!(%error, "pages of a mapped file could not be asked for");
        }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.source {
            Source::Static(bytes) => bytes,
            Source::Owned(bytes) => bytes,
            Source::Floats(values) => bytemuck::cast_slice(values),
            Source::Mapped(mapped) => &mapped.map,
        };
        &all[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.source {
            Source::Static(_) => "static",
            Source::Owned(_) | Source::Floats(_) => "owned",
            Source::Mapped(_) => "mapped",
        };
        write!(f, "Region({kind}, {} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn released_pages_come_back_with_the_same_bytes() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i * 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let region = Region::map(file.path()).unwrap();
        let middle = region.slice(5000..30_000);
        assert_eq!(&*middle, &bytes[5000..30_000]);
        middle.release();
        middle.will_need();
        assert_eq!(&*middle, &bytes[5000..30_000]);
        middle.forget();
        region.slice(0..0).release();
        assert_eq!(&*region, &bytes[..]);
    }

    #[test]
    fn an_empty_file_and_a_folder_are_told_apart() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Region::map(file.path()).unwrap().len(), 0);
        let folder = tempfile::tempdir().unwrap();
        assert!(Region::map(folder.path()).is_err());
    }

    #[test]
    fn slices_of_slices_count_from_their_own_start() {
        let region = Region::from_static(b"abcdefgh").slice(2..7).slice(1..4);
        assert_eq!(&*region, b"def");
    }
}
