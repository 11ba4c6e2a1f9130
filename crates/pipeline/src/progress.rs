//! How long work tells how far it is.

/// Told of work as it goes on; the command line draws it, tests ignore it.
pub trait Progress: Sync {
    /// A new piece of work with `total` units begins.
    fn begin(&self, what: &str, total: u64);
    /// `done` units of it are done.
    fn at(&self, done: u64);
    /// All work is done.
    fn end(&self);
}

/// Nobody is watching.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str, _total: u64) {}
    fn at(&self, _done: u64) {}
    fn end(&self) {}
}
