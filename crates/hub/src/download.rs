//! One file: resumed where an earlier attempt stopped, and checked in length and hash before anyone sees it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::path::Path;

use ring::digest::Context;
use ureq::Body;
use ureq::http::Response;

use crate::client::{Client, Failure, header, printable};
use crate::hash::{Hash, digits};
use crate::url::Url;
use crate::{Error, RemoteFile};

/// Fetching this much makes an attempt count as progress.
const PROGRESS: u64 = 1 << 20;

/// Brings `file` from `url` into `partial`, complete and checked. `at` is told how many bytes are there.
///
/// What is there already is gone on from. If the hash of the whole then fails, the beginning may have been another
/// file's: it is fetched once more from byte 0. A failed check leaves nothing, a broken connection leaves what came.
pub(crate) fn fetch(
    client: &Client,
    url: &Url,
    file: &RemoteFile,
    partial: &Path,
    at: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let io = |action| move |source| Error::io(action, partial, source);
    let mut out = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(partial)
        .map_err(io("create"))?;
    let mut state = State { have: 0, hash: file.hash.as_ref().map(|hash| hash.begin(file.size)) };
    if out.metadata().map_err(io("look at"))?.len() <= file.size {
        state.take_in(&mut out).map_err(io("read"))?;
    } else {
        out.set_len(0).map_err(io("shorten"))?;
    }
    let mut resumed = state.have > 0;
    let mut best = state.have;
    let mut tries = client.tries();
    let drop_partial = |error: Error| {
        let _ = fs::remove_file(partial);
        error
    };
    loop {
        at(state.have);
        if state.have == file.size {
            match state.check(file) {
                Ok(()) => break,
                Err(_) if resumed => {}
                Err(error) => return Err(drop_partial(error)),
            }
            resumed = false;
            state.restart(file, &mut out).map_err(io("shorten"))?;
            continue;
        }
        let outcome = client.get(url, state.have).and_then(|response| {
            let start = begin(file, state.have, &response)?;
            if start == 0 && state.have > 0 {
                resumed = false;
                state
                    .restart(file, &mut out)
                    .map_err(|source| Failure::Final(Error::io("shorten", partial, source)))?;
            }
            state.receive(file, response, &mut out, partial, at)
        });
        match outcome {
            Ok(()) => {}
            Err(Failure::Final(error @ (Error::WrongLength { .. } | Error::WrongRange { .. }))) => {
                return Err(drop_partial(error));
            }
            Err(failure) => {
                if state.have >= best.saturating_add(PROGRESS) {
                    best = state.have;
                    tries.progressed();
                }
                tries.again(failure)?;
            }
        }
    }
    out.sync_all().map_err(io("write"))
}

/// Where the answer's bytes begin: at `have` if the server heeds ranges, else at 0. Its lengths must be the listing's.
fn begin(file: &RemoteFile, have: u64, response: &Response<Body>) -> Result<u64, Failure> {
    let wrong_length = |found: String| {
        Failure::Final(Error::WrongLength { file: file.path.clone(), expected: file.size, found })
    };
    let start = match response.status().as_u16() {
        206 => {
            let range = header(response.headers(), "content-range").unwrap_or_default();
            let (start, total) = content_range(&range).unwrap_or((0, None));
            if start != have || have == 0 {
                let (file, found) = (file.path.clone(), printable(&range));
                return Err(Failure::Final(Error::WrongRange { file, from: have, found }));
            }
            if let Some(total) = total.filter(|total| *total != file.size) {
                return Err(wrong_length(total.to_string()));
            }
            have
        }
        _ => 0,
    };
    let length =
        header(response.headers(), "content-length").and_then(|text| text.trim().parse::<u64>().ok());
    match length.map(|length| length.saturating_add(start)) {
        Some(total) if total != file.size => Err(wrong_length(total.to_string())),
        _ => Ok(start),
    }
}

/// First byte and, where it is said, the whole length of `bytes FIRST-LAST/TOTAL`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.parse().ok()?;
    Some((first, total.parse().ok()))
}

/// What of the file is on disk, and its hash so far.
struct State {
    have: u64,
    hash: Option<Context>,
}

impl State {
    /// Takes in what an earlier attempt left.
    fn take_in(&mut self, out: &mut File) -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match out.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.add(&buffer[..n]),
            }
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.have += bytes.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
    }

    fn restart(&mut self, file: &RemoteFile, out: &mut File) -> std::io::Result<()> {
        out.set_len(0)?;
        out.seek(SeekFrom::Start(0))?;
        *self = Self { have: 0, hash: file.hash.as_ref().map(|hash| hash.begin(file.size)) };
        Ok(())
    }

    fn receive(
        &mut self,
        file: &RemoteFile,
        response: Response<Body>,
        out: &mut File,
        partial: &Path,
        at: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let counted = response.headers().contains_key("content-length")
            || response.headers().contains_key("transfer-encoding");
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let problem = match body.read(&mut buffer) {
                Ok(0) if self.have == file.size => return Ok(()),
                // A body that says where it ends and ended there is short; one that does not say was cut.
                Ok(0) if counted => {
                    let (found, expected) = (self.have.to_string(), file.size);
                    return Err(Failure::Final(Error::WrongLength {
                        file: file.path.clone(),
                        expected,
                        found,
                    }));
                }
                Ok(0) => "the server closed it".to_owned(),
                Ok(n) if n as u64 > file.size - self.have => {
                    let (found, expected) = ("more".to_owned(), file.size);
                    return Err(Failure::Final(Error::WrongLength {
                        file: file.path.clone(),
                        expected,
                        found,
                    }));
                }
                Ok(n) => {
                    let full = |source| Failure::Final(Error::io("write", partial, source));
                    out.write_all(&buffer[..n]).map_err(full)?;
                    self.add(&buffer[..n]);
                    at(self.have);
                    continue;
                }
                Err(error) => error.to_string(),
            };
            let (file, received, expected) = (file.path.clone(), self.have, file.size);
            let why = move |tries| Error::BrokenOff { file, received, expected, problem, tries };
            return Err(Failure::Passing { why: Box::new(why), after: std::time::Duration::ZERO });
        }
    }

    fn check(&self, file: &RemoteFile) -> Result<(), Error> {
        let (Some(hash), Some(context)) = (&file.hash, &self.hash) else {
            return Ok(());
        };
        compare(&file.path, hash, context.clone())
    }
}

fn compare(file: &str, expected: &Hash, context: Context) -> Result<(), Error> {
    let found = digits(context.finish().as_ref());
    if found == expected.digits() {
        return Ok(());
    }
    let (kind, expected) = (expected.kind(), expected.digits().to_owned());
    Err(Error::WrongHash { file: file.to_owned(), kind, expected, found })
}

/// Whether the file at `path` is `file`, by length and hash.
pub(crate) fn is_whole(path: &Path, file: &RemoteFile) -> Result<bool, Error> {
    let io = |source| Error::io("read", path, source);
    let mut there = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        there => there.map_err(io)?,
    };
    if there.metadata().map_err(io)?.len() != file.size {
        return Ok(false);
    }
    let mut state = State { have: 0, hash: file.hash.as_ref().map(|hash| hash.begin(file.size)) };
    state.take_in(&mut there).map_err(io)?;
    Ok(state.check(file).is_ok())
}
