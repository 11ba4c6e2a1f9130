//! Puts the parts of a split GGUF model together, whichever of them was named.
//!
//! ```text
//! NAME-00001-of-00003.gguf   every key of the model; split.no = 0, split.count = 3, split.tensors.count = 291
//! NAME-00002-of-00003.gguf   split.no = 1, …         each part holds some of the tensors, with offsets of its own
//! NAME-00003-of-00003.gguf   split.no = 2, …
//! ```
//!
//! All parts must be there, under these names and in one folder; each must say that it is the part its name says, of the
//! same number of parts and tensors, and no tensor may be in two.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::gguf_in::{self, Contents, GgufTensor};
use crate::{Error, GgufValue, Region};

/// A model that may be in several files.
#[derive(Debug)]
pub(crate) struct Whole {
    /// The keys of the first part.
    pub metadata: Vec<(String, GgufValue)>,
    /// The tensors of all parts.
    pub tensors: Vec<GgufTensor>,
    /// Bytes of all files.
    pub bytes: u64,
    /// The file, or `NAME.gguf` for what is split.
    pub path: PathBuf,
}

/// Reads the GGUF file `file`, whose bytes are `region`, and the parts that belong to it; `sibling` opens a file of its
/// folder, if it is there.
pub(crate) fn read(
    file: &Path,
    region: &Region,
    sibling: &dyn Fn(&str) -> Result<Option<Region>, Error>,
) -> Result<Whole, Error> {
    let (metadata, tensors) = gguf_in::read(file, region)?;
    let Some(split) = Split::of(file, &metadata)? else {
        return Ok(Whole { metadata, tensors, bytes: region.len() as u64, path: file.to_owned() });
    };
    let wrong = |file: &Path, problem: String| Error::GgufSplit { file: file.to_owned(), problem };
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let suffix = part_suffix(split.number, split.count);
    let Some(prefix) = name.strip_suffix(&suffix) else {
        let (number, count) = (split.number + 1, split.count);
        return Err(wrong(
            file,
            format!("it is part {number} of {count}, and its name does not end in `{suffix}`"),
        ));
    };
    let mut whole = Whole {
        metadata: Vec::new(),
        tensors: Vec::new(),
        bytes: 0,
        path: file.with_file_name(format!("{prefix}.gguf")),
    };
    let mut opened = Some((metadata, tensors));
    let mut seen = HashSet::new();
    for number in 0..split.count {
        let part_name = format!("{prefix}{}", part_suffix(number, split.count));
        let path = file.with_file_name(&part_name);
        let ((metadata, tensors), bytes): (Contents, usize) = match opened.take_if(|_| number == split.number)
        {
            Some(contents) => (contents, region.len()),
            None => {
                let Some(region) = sibling(&part_name)? else {
                    return Err(Error::GgufPartMissing { file: file.to_owned(), part: part_name });
                };
                (gguf_in::read(&path, &region)?, region.len())
            }
        };
        let found = Split::of(&path, &metadata)?;
        if found != Some(Split { number, ..split }) {
            let found =
                found.map_or_else(|| "no part of a split model".to_owned(), |found| found.to_string());
            let expected = Split { number, ..split };
            return Err(wrong(&path, format!("it says that it is {found}, where {expected} is expected")));
        }
        whole.bytes += bytes as u64;
        if let Some(tensor) = tensors.iter().find(|tensor| !seen.insert(tensor.name.clone())) {
            return Err(Error::DuplicateTensor { file: path, tensor: tensor.name.clone() });
        }
        whole.tensors.extend(tensors);
        if number == 0 {
            whole.metadata = metadata;
        } else if let Some(key) = disagreement(&whole.metadata, &metadata) {
            return Err(wrong(&path, format!("its `{key}` is not that of the first part")));
        }
    }
    if whole.tensors.len() as u64 != split.tensors {
        let (found, expected) = (whole.tensors.len(), split.tensors);
        return Err(wrong(
            file,
            format!("{found} tensors in all parts where `split.tensors.count` is {expected}"),
        ));
    }
    Ok(whole)
}

/// What a part says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Split {
    /// From 0.
    number: u64,
    count: u64,
    /// Of all parts.
    tensors: u64,
}

impl Split {
    /// `None` for a model in one file.
    fn of(file: &Path, metadata: &[(String, GgufValue)]) -> Result<Option<Self>, Error> {
        let number = |key: &str| match metadata.iter().find(|(name, _)| name == key) {
            None => Ok(None),
            Some((_, value)) => value.as_u64().map(Some).ok_or_else(|| Error::GgufKeyType {
                file: file.to_owned(),
                key: key.to_owned(),
                found: value.describe(),
                expected: "u16",
            }),
        };
        let missing = |key: &str| Error::GgufMissingKey { file: file.to_owned(), key: key.to_owned() };
        let Some(count) = number("split.count")?.filter(|&count| count > 1) else {
            return Ok(None);
        };
        // A u16 in the format.
        let limit = u64::from(u16::MAX);
        if count > limit {
            let what = "number of parts".to_owned();
            return Err(Error::GgufLimit { file: file.to_owned(), what, found: count, limit });
        }
        let split = Self {
            number: number("split.no")?.ok_or_else(|| missing("split.no"))?,
            count,
            tensors: number("split.tensors.count")?.ok_or_else(|| missing("split.tensors.count"))?,
        };
        if split.number >= count {
            let what = "number of this part".to_owned();
            return Err(Error::GgufLimit {
                file: file.to_owned(),
                what,
                found: split.number,
                limit: count - 1,
            });
        }
        Ok(Some(split))
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "part {} of {} with {} tensors in all", self.number + 1, self.count, self.tensors)
    }
}

pub(crate) fn part_suffix(number: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

/// The first key that both have with different values.
fn disagreement<'a>(first: &[(String, GgufValue)], other: &'a [(String, GgufValue)]) -> Option<&'a str> {
    let differs = |key: &str, value: &GgufValue| {
        first.iter().find(|(name, _)| name == key).is_some_and(|(_, known)| known != value)
    };
    other
        .iter()
        .find(|(key, value)| !key.starts_with("split.") && key != "general.alignment" && differs(key, value))
        .map(|(key, _)| key.as_str())
}
