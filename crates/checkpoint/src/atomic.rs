//! Output that appears whole or not at all.

use std::path::PathBuf;

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
    /// It is replaced once the new one is complete.
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
