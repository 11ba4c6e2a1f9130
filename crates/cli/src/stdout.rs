//! Results on stdout. A reader that closes the pipe early has what it wanted: that is no error.

use std::io::{ErrorKind, Write as _};

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

/// Prints a JSON value.
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}"))
}
