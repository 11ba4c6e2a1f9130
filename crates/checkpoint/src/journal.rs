//! What an output under way says of itself, so that a run that was interrupted can be taken up again.
//!
//! ```text
//! HASH {"begun":{"version":"0.1.0","recipe":"…",…}}      what makes two runs the same
//! HASH {"finished":{"name":"model.norm.weight",…}}       one for each tensor whose bytes are on disk, in their order
//! …
//! HASH {"placing":[{"from":"output/out.gguf",…}]}        all is on disk and checked: what is renamed
//! ```
//!
//! HASH is xxh3 of the rest of its line in 16 hexadecimal digits. A line counts if it ends, its hash is right, and all
//! lines before it count; what follows the last such line is cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

/// Longest journal that is read: 72 billion weights in experts take some MB.
const LONGEST: u64 = 1 << 30;

/// What a run is made from and how, by name: two runs with the same may go on with each other's output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity(Vec<(String, String)>);

impl Identity {
    /// Adds what the run follows from; differences are told line by line.
    pub fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect())
    }

    fn from_json(value: &Map<String, Value>) -> Option<Self> {
        let entries = value.iter().map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        entries.collect::<Option<_>>().map(Self)
    }

    /// In what `self`, which is at hand, differs from `there`, a phrase for each.
    pub(crate) fn differences(&self, there: &Self) -> Vec<String> {
        let find =
            |all: &Self, name: &str| all.0.iter().find(|(other, _)| other == name).map(|(_, v)| v.clone());
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.extend(there.0.iter().map(|(name, _)| name.as_str()).filter(|name| find(self, name).is_none()));
        let differing = names.into_iter().filter_map(|name| {
            let (ours, theirs) =
                (find(self, name).unwrap_or_default(), find(there, name).unwrap_or_default());
            let (our_lines, their_lines): (Vec<&str>, Vec<&str>) =
                (ours.lines().collect(), theirs.lines().collect());
            let at = (0..our_lines.len().max(their_lines.len()))
                .find(|&at| our_lines.get(at) != their_lines.get(at))?;
            let line =
                |lines: &[&str]| lines.get(at).map_or("nothing".to_owned(), |line| format!("`{line}`"));
            Some(format!("{name} ({} there, {} here)", line(&their_lines), line(&our_lines)))
        });
        differing.collect()
    }
}

/// What is renamed in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placing {
    /// Its path in the partial output.
    pub from: String,
    /// Its name beside that.
    pub name: String,
    /// Tells it from what else may have either name.
    pub inode: u64,
}

impl Placing {
    /// Whether it goes from the output to a name beside it.
    fn stays_inside(&self) -> bool {
        let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('/');
        is_name(&self.name)
            && (self.from == "output" || self.from.strip_prefix("output/").is_some_and(is_name))
    }
}

/// What a journal says.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// None: nothing that could be gone on with.
    pub begun: Option<Identity>,
    pub finished: Vec<Value>,
    pub placing: Option<Vec<Placing>>,
    /// Where the next line goes.
    bytes: u64,
}

/// Reads as many lines as count.
pub(crate) fn parse(bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let known = whole(line).is_some_and(|entry| contents.take(entry));
        if !known {
            break;
        }
        contents.bytes += line.len() as u64;
    }
    contents
}

/// The entry on a line that ends and has the right hash.
fn whole(line: &[u8]) -> Option<Map<String, Value>> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (hash, entry) = text.split_once(' ')?;
    if hash != format!("{:016x}", xxh3_64(entry.as_bytes())) {
        return None;
    }
    serde_json::from_str(entry).ok()
}

impl Contents {
    /// Whether the entry is one that may stand here.
    fn take(&mut self, mut entry: Map<String, Value>) -> bool {
        if self.begun.is_none() {
            self.begun = entry.get("begun").and_then(Value::as_object).and_then(Identity::from_json);
            return self.begun.is_some();
        }
        if self.placing.is_some() {
            return false;
        }
        if let Some(finished) = entry.remove("finished") {
            self.finished.push(finished);
            return true;
        }
        let placing = entry.remove("placing").and_then(|placing| serde_json::from_value(placing).ok());
        self.placing = placing.filter(|entries: &Vec<Placing>| entries.iter().all(Placing::stays_inside));
        self.placing.is_some()
    }
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal(File);

impl Journal {
    /// Opens or creates it and reads what it says; what does not count is cut off with the first new line.
    pub fn open(path: &Path) -> io::Result<(Self, Contents)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(LONGEST).read_to_end(&mut bytes)?;
        let contents = parse(&bytes);
        file.seek(SeekFrom::Start(contents.bytes))?;
        Ok((Self(file), contents))
    }

    /// Begins anew.
    pub fn begin(&self, identity: &Identity) -> io::Result<()> {
        (&self.0).seek(SeekFrom::Start(0))?;
        self.append(&[json!({"begun": identity.to_json()})])
    }

    /// Notes that tensors are finished; their bytes must be on disk.
    pub fn finished(&self, records: &[Value]) -> io::Result<()> {
        let entries: Vec<Value> = records.iter().map(|record| json!({"finished": record})).collect();
        self.append(&entries)
    }

    /// Notes that everything is on disk and goes to its place.
    pub fn placing(&self, entries: &[Placing]) -> io::Result<()> {
        self.append(&[json!({"placing": entries})])
    }

    fn append(&self, entries: &[Value]) -> io::Result<()> {
        let mut text = String::new();
        for entry in entries {
            let entry = entry.to_string();
            text.push_str(&format!("{:016x} {entry}\n", xxh3_64(entry.as_bytes())));
        }
        let mut file = &self.0;
        // A torn line of an earlier run is longer than nothing and may be longer than this.
        let at = file.stream_position()?;
        file.set_len(at)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(recipe: &str) -> Identity {
        let mut identity = Identity::default();
        identity.add("version", "0.1.0");
        identity.add("recipe", recipe);
        identity
    }

    #[test]
    fn what_was_appended_is_read_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, contents) = Journal::open(&path).unwrap();
        assert!(contents.begun.is_none());
        journal.begin(&identity("a\nb")).unwrap();
        journal.finished(&[json!({"name": "x\n\"y\""}), json!(2)]).unwrap();
        drop(journal);
        let bytes = std::fs::read(&path).unwrap();
        // Wherever it is cut, whole lines are what is left; a line that is longer than its hash says is none.
        let ends: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'\n').map(|at| at + 1).collect();
        for len in 0..=bytes.len() {
            let contents = parse(&bytes[..len]);
            let lines = ends.iter().filter(|&&end| end <= len).count();
            assert_eq!(contents.begun.is_some(), lines > 0);
            assert_eq!(contents.finished.len(), lines.saturating_sub(1));
            assert_eq!(contents.bytes as usize, ends[..lines].last().copied().unwrap_or(0));
        }
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let (journal, contents) = Journal::open(&path).unwrap();
        assert_eq!(contents.finished, [json!({"name": "x\n\"y\""})]);
        journal.finished(&[json!(3)]).unwrap();
        let placing = [Placing { from: "output".into(), name: "out".into(), inode: 7 }];
        journal.placing(&placing).unwrap();
        let contents = parse(&std::fs::read(&path).unwrap());
        assert_eq!(contents.finished.len(), 2);
        assert_eq!(contents.finished[1], 3);
        assert_eq!(contents.placing, Some(placing.to_vec()));
    }

    #[test]
    fn a_changed_byte_ends_what_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        journal.begin(&identity("a")).unwrap();
        journal.finished(&[json!(1), json!(2)]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let second = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        bytes[second + 20] ^= 1;
        let contents = parse(&bytes);
        assert!(contents.begun.is_some() && contents.finished.is_empty());
    }

    #[test]
    fn what_would_be_put_elsewhere_does_not_count() {
        let placing = |from: &str, name: &str| {
            let entries = [
                json!({"begun": {"version": "1"}}),
                json!({"placing": [{"from": from, "name": name, "inode": 7}]}),
            ];
            let line = |entry: &Value| format!("{:016x} {entry}\n", xxh3_64(entry.to_string().as_bytes()));
            parse(entries.iter().map(line).collect::<String>().as_bytes()).placing.is_some()
        };
        assert!(placing("output", "out") && placing("output/m.gguf", "m.gguf"));
        for (from, name) in
            [("output", "../out"), ("output", ".."), ("../x", "x"), ("output/../../x", "x"), ("output/", "x")]
        {
            assert!(!placing(from, name), "{from}, {name}");
        }
    }

    #[test]
    fn differences_are_named_with_the_first_line_that_differs() {
        let here = identity("kind = \"mix\"\nmix = \"q4_0\"");
        assert_eq!(
            here.differences(&identity("kind = \"mix\"\nmix = \"q8_0\"")),
            ["recipe (`mix = \"q8_0\"` there, `mix = \"q4_0\"` here)"]
        );
        assert!(here.differences(&here.clone()).is_empty());
        let mut more = here.clone();
        more.add("imatrix", "12");
        assert_eq!(here.differences(&more), ["imatrix (`12` there, nothing here)"]);
        assert_eq!(more.differences(&here), ["imatrix (nothing there, `12` here)"]);
    }
}
