//! Progress with an ETA on stderr, on a terminal only.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitmill_pipeline::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::Failure;

/// A bar that is redrawn in place; nothing at all where stderr is no terminal.
pub struct Bar {
    bar: Mutex<ProgressBar>,
    stopped: Arc<AtomicBool>,
}

impl Bar {
    pub fn new() -> Self {
        Self { bar: Mutex::new(ProgressBar::hidden()), stopped: Arc::default() }
    }

    /// For work that can be gone on with: Ctrl-C and SIGTERM ask it to stop, a second one ends the program at once.
    pub fn stoppable() -> Result<Self, Failure> {
        let bar = Self::new();
        let registered = [SIGINT, SIGTERM].into_iter().try_for_each(|signal| {
            // In this order: the first signal finds the flag unset.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&bar.stopped))?;
            flag::register(signal, Arc::clone(&bar.stopped))?;
            Ok::<(), io::Error>(())
        });
        registered.map_err(|error| Failure::plain(format!("no handler of signals: {error}")))?;
        Ok(bar)
    }

    fn with(&self, act: impl FnOnce(&mut ProgressBar)) {
        // A poisoned lock only means that another drawing panicked; the bar is still a bar.
        act(&mut self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
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

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}
