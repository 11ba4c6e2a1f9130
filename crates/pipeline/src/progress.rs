//! How long work tells how far it is.

/// Told of work as it goes on; the command line draws it, tests ignore it.
pub trait Progress: Sync {
    /// A new piece of work begins.
    fn begin(&self, what: &str);
    /// `done` of `total` units of it are done.
    fn at(&self, done: u64, total: u64);
    /// All work is done.
    fn end(&self);
    /// Whether work is to stop as soon as it can be gone on with.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Nobody is watching.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &str) {}
    fn at(&self, _done: u64, _total: u64) {}
    fn end(&self) {}
}
