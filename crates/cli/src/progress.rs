//! Progress with an ETA on stderr, on a terminal only.

use std::sync::Mutex;
use std::time::Duration;

use bitmill_pipeline::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// A bar that is redrawn in place; nothing at all where stderr is no terminal.
pub struct Bar(Mutex<ProgressBar>);

impl Bar {
    pub fn new() -> Self {
        Self(Mutex::new(ProgressBar::hidden()))
    }

    fn with(&self, act: impl FnOnce(&mut ProgressBar)) {
        // A poisoned lock only means that another drawing panicked; the bar is still a bar.
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Progress for Bar {
    fn begin(&self, what: &str) {
        self.with(|bar| {
            bar.finish_and_clear();
            // indicatif draws nothing where stderr is no terminal and leaves colours out under NO_COLOR.
            *bar = ProgressBar::no_length();
            let style = ProgressStyle::with_template("{msg}  {wide_bar} {percent:>3} %  {eta:>4} left");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
        });
    }

    fn at(&self, done: u64, total: u64) {
        self.with(|bar| {
            bar.set_length(total);
            bar.set_position(done);
        });
    }

    fn end(&self) {
        self.with(|bar| bar.finish_and_clear());
    }
}
