//! Results on stdout. A reader that closes the pipe early has what it wanted: that is no error.

use std::io::{ErrorKind, Write as _};
use std::ops::ControlFlow;

use crate::failure::Failure;

/// Prints `text`, with a line end if it has none.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match out
        .write_all(text.as_bytes())
        .and_then(|()| out.write_all(end.as_bytes()))
        .and_then(|()| out.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::plain(format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a piece of a text that is still being written; whether anyone reads on.
pub fn stream(piece: &str) -> ControlFlow<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        // Full disks included: what cannot be printed need not be computed.
        Err(_) => ControlFlow::Break(()),
    }
}

/// Prints a JSON value.
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}"))
}
