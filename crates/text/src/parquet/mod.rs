//! Texts and chats in Parquet files: two kinds of columns out of all that the format has.
//!
//! ```text
//! "PAR1"  pages of a column chunk, …  footer: schema, row groups, their chunks (Thrift)  its length u32  "PAR1"
//!         └ header (Thrift), then levels and values, compressed
//! ```
//!
//! Read: strings in a column `text`, or in `role` and `content` of a list `messages`; plain, dictionary and delta encodings;
//! pages of both versions, uncompressed or in Snappy, gzip or Zstandard. The general reader costs a minute to build.
//!
//! Limits: a schema 32 deep; values that take no more memory than [`LEAST_ROOM`] and [`ROOM`] times the file.

mod codec;
mod encodings;
mod pages;
mod schema;
mod thrift;

use pages::Cell;
use schema::{Leaf, Schema};
use thrift::Value;

/// What makes a file unreadable.
pub(crate) type Problem = String;

/// A row of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Row {
    /// `text`, if it is not null.
    Text(Option<String>),
    /// Role and content of each of the `messages`.
    Messages(Vec<(Option<String>, Option<String>)>),
}

const MAGIC: &[u8; 4] = b"PAR1";
/// Memory for values, as a multiple of the file's bytes: text is compressed to a quarter, and a hostile dictionary says the
/// same long text a million times in five bytes.
const ROOM: usize = 64;
/// Memory that a file of any size may fill with values.
const LEAST_ROOM: usize = 64 << 20;

/// The rows of the file.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Row>, Problem> {
    let footer = footer(bytes)?;
    let schema = Schema::parse(&footer)?;
    let mut room = Room(LEAST_ROOM.saturating_add(bytes.len().saturating_mul(ROOM)));
    let groups = footer.field(4).and_then(Value::list).ok_or("the footer names no row groups")?;
    let mut rows = Vec::new();
    match (schema.text(), schema.messages()) {
        (Some(text), _) => {
            for group in groups {
                let cells = column(bytes, group, &schema, text, &mut room)?;
                rows.extend(cells.into_iter().map(|cell| Row::Text(cell.text)));
            }
        }
        (None, Some((role, content))) => {
            for group in groups {
                let roles = column(bytes, group, &schema, role, &mut room)?;
                let contents = column(bytes, group, &schema, content, &mut room)?;
                messages(&mut rows, (role, roles), (content, contents))?;
            }
        }
        (None, None) => {
            return Err(format!(
                "no column of texts is called `text` or `messages`: it has {}",
                schema.names()
            ));
        }
    }
    Ok(rows)
}

/// What the file says at its end of all that comes before.
fn footer(bytes: &[u8]) -> Result<Value<'_>, Problem> {
    let body = bytes.strip_prefix(MAGIC).and_then(|rest| rest.strip_suffix(MAGIC));
    let (body, length) = body.and_then(<[u8]>::split_last_chunk).ok_or("it is no Parquet file")?;
    let length = u32::from_le_bytes(*length) as usize;
    let start = body.len().checked_sub(length).ok_or("its footer is longer than the file")?;
    thrift::read(&body[start..]).map(|(value, _)| value)
}

/// The cells of `leaf` in a row group.
fn column(
    bytes: &[u8],
    group: &Value<'_>,
    schema: &Schema<'_>,
    leaf: &Leaf<'_>,
    room: &mut Room,
) -> Result<Vec<Cell>, Problem> {
    let chunks = group.field(1).and_then(Value::list).unwrap_or_default();
    if chunks.len() != schema.leaves.len() {
        return Err(format!("a row group has {} columns of {}", chunks.len(), schema.leaves.len()));
    }
    let rows = group.field(3).and_then(Value::size).ok_or("a row group does not count its rows")?;
    let chunk =
        chunks[leaf.index].field(3).ok_or_else(|| format!("`{}` lies in another file", leaf.name()))?;
    let cells =
        pages::read(bytes, chunk, leaf, room).map_err(|problem| format!("`{}`: {problem}", leaf.name()))?;
    let found = cells.iter().filter(|cell| cell.starts_row).count();
    if found != rows {
        return Err(format!("`{}` has {found} rows in a group of {rows}", leaf.name()));
    }
    Ok(cells)
}

/// Puts roles and contents together.
fn messages(
    rows: &mut Vec<Row>,
    (role, roles): (&Leaf<'_>, Vec<Cell>),
    (content, contents): (&Leaf<'_>, Vec<Cell>),
) -> Result<(), Problem> {
    if roles.len() != contents.len() {
        return Err(format!("{} roles and {} contents in a row group", roles.len(), contents.len()));
    }
    for (one, other) in roles.into_iter().zip(contents) {
        let exists = one.level >= role.element_level;
        if one.starts_row != other.starts_row || exists != (other.level >= content.element_level) {
            return Err("roles and contents are not of the same messages".to_owned());
        }
        if one.starts_row {
            rows.push(Row::Messages(Vec::new()));
        }
        match rows.last_mut() {
            Some(Row::Messages(messages)) if exists => messages.push((one.text, other.text)),
            Some(_) => {}
            None => return Err("a row begins in its middle".to_owned()),
        }
    }
    Ok(())
}

/// Memory that values may still take.
pub(crate) struct Room(usize);

impl Room {
    /// Takes `bytes` of it.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        let problem = || format!("it unpacks to more than {ROOM} times its size");
        self.0 = self.0.checked_sub(bytes).ok_or_else(problem)?;
        Ok(())
    }

    /// What is left.
    pub(crate) fn left(&self) -> usize {
        self.0
    }
}
