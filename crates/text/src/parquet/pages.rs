//! The pages of a column in a row group, and their cells.

use super::schema::Leaf;
use super::thrift::{self, Value};
use super::{Problem, Room, codec, encodings};

/// A value with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    /// Whether a row begins with it.
    pub starts_row: bool,
    /// How much of the path to it is there.
    pub level: u32,
    /// The value, if all of the path is there.
    pub text: Option<String>,
}

/// Reads the chunk that `meta` describes.
pub(super) fn read(
    bytes: &[u8],
    meta: &Value<'_>,
    leaf: &Leaf<'_>,
    room: &mut Room,
) -> Result<Vec<Cell>, Problem> {
    let size = |number| meta.field(number).and_then(Value::size);
    let codec = meta.field(4).and_then(Value::int).unwrap_or(0);
    let count = size(5).ok_or("it does not count its values")?;
    let data = size(9).ok_or("it does not say where its pages are")?;
    let mut at = size(11).filter(|dictionary| (1..data).contains(dictionary)).unwrap_or(data);
    let mut dictionary: Vec<Vec<u8>> = Vec::new();
    let mut cells = Vec::new();
    while cells.len() < count {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty()).ok_or("its pages end beyond the file")?;
        let (header, header_bytes) = thrift::read(rest)?;
        let size = |number| header.field(number).and_then(Value::size).ok_or("a page does not say its size");
        let (unpacked, packed) = (size(2)?, size(3)?);
        let body = rest[header_bytes..].get(..packed).ok_or("a page ends beyond the file")?;
        at += header_bytes + packed;
        if unpacked > room.left() {
            room.take(unpacked)?;
        }
        let kind = header.field(1).and_then(Value::int);
        let about = |number| header.field(number).ok_or("a page lacks its header");
        match kind {
            Some(0) => {
                let body = codec::unpack(codec, body, unpacked)?;
                let page = Page::first_version(about(5)?, &body, leaf, room)?;
                page.cells(&dictionary, leaf, room, &mut cells)?;
            }
            Some(2) => {
                let body = codec::unpack(codec, body, unpacked)?;
                let count = about(7)?
                    .field(1)
                    .and_then(Value::size)
                    .ok_or("a dictionary does not count its values")?;
                room.take(body.len())?;
                dictionary = encodings::plain(&body, count)?.into_iter().map(Into::into).collect();
            }
            Some(3) => {
                let about = about(8)?;
                let length = |number| about.field(number).and_then(Value::size).unwrap_or(0);
                let (repetition, definition) = (length(6), length(5));
                let levels = repetition.saturating_add(definition);
                let (levels, body) = body.split_at_checked(levels).ok_or("a page is all levels")?;
                let unpacked = unpacked.checked_sub(levels.len()).ok_or("a page is all levels")?;
                let codec = if about.field(7) == Some(&Value::Bool(false)) { 0 } else { codec };
                // Zstandard and Snappy have a form of nothing; writers leave it out.
                let body = if body.is_empty() { body.into() } else { codec::unpack(codec, body, unpacked)? };
                let page = Page::second_version(about, levels.split_at(repetition), &body, leaf, room)?;
                page.cells(&dictionary, leaf, room, &mut cells)?;
            }
            // An index.
            _ => {}
        }
    }
    if cells.len() > count {
        return Err(format!("{} values of {count}", cells.len()));
    }
    Ok(cells)
}

/// A page of data, its levels read.
struct Page<'p> {
    /// 0 where a row begins; empty outside lists.
    repetition: Vec<u32>,
    /// Empty where all values are there.
    definition: Vec<u32>,
    count: usize,
    encoding: i64,
    values: &'p [u8],
}

impl<'p> Page<'p> {
    /// Levels stand before the values, each kind after its length.
    fn first_version(
        about: &Value<'_>,
        mut body: &'p [u8],
        leaf: &Leaf<'_>,
        room: &mut Room,
    ) -> Result<Self, Problem> {
        let count = about.field(1).and_then(Value::size).ok_or("a page does not count its values")?;
        let mut levels = |most: u32, encoding: i16| {
            if most == 0 {
                return Ok(Vec::new());
            }
            const RLE: i64 = 3;
            if about.field(encoding).and_then(Value::int).is_some_and(|encoding| encoding != RLE) {
                return Err("levels in the old packing are not read".to_owned());
            }
            let split = |body: &'p [u8]| {
                let (length, rest) = body.split_first_chunk()?;
                rest.split_at_checked(u32::from_le_bytes(*length) as usize)
            };
            let (levels, rest) = split(body).ok_or("a page is all levels")?;
            body = rest;
            level_runs(levels, most, count, room)
        };
        let repetition = levels(leaf.repetition, 4)?;
        let definition = levels(leaf.definition, 3)?;
        let encoding = about.field(2).and_then(Value::int).unwrap_or(0);
        Ok(Self { repetition, definition, count, encoding, values: body })
    }

    /// Levels are never compressed, and their lengths are in the header.
    fn second_version(
        about: &Value<'_>,
        (repetition, definition): (&[u8], &[u8]),
        values: &'p [u8],
        leaf: &Leaf<'_>,
        room: &mut Room,
    ) -> Result<Self, Problem> {
        let count = about.field(1).and_then(Value::size).ok_or("a page does not count its values")?;
        let mut levels = |bytes, most| match most {
            0 => Ok(Vec::new()),
            _ => level_runs(bytes, most, count, room),
        };
        let repetition = levels(repetition, leaf.repetition)?;
        let definition = levels(definition, leaf.definition)?;
        let encoding = about.field(4).and_then(Value::int).unwrap_or(0);
        Ok(Self { repetition, definition, count, encoding, values })
    }

    /// Appends its cells.
    fn cells(
        self,
        dictionary: &[Vec<u8>],
        leaf: &Leaf<'_>,
        room: &mut Room,
        out: &mut Vec<Cell>,
    ) -> Result<(), Problem> {
        let level = |at: usize| self.definition.get(at).copied().unwrap_or(leaf.definition);
        room.take(self.count.saturating_mul(size_of::<Cell>()))?;
        let there = (0..self.count).filter(|at| level(*at) == leaf.definition).count();
        let strings = match self.encoding {
            0 => encodings::plain(self.values, there)?,
            2 | 8 => {
                let indices = match self.values.split_first() {
                    Some((width, indices)) => encodings::runs(indices, u32::from(*width), there, room)?,
                    None if there == 0 => Vec::new(),
                    None => return Err("a page has no indices".to_owned()),
                };
                let found =
                    |index: u32| dictionary.get(index as usize).map(|string| string.as_slice().into());
                let strings: Option<_> = indices.into_iter().map(found).collect();
                strings.ok_or("an index is beyond the dictionary")?
            }
            6 => encodings::delta_length(self.values, there, room)?,
            7 => encodings::delta_strings(self.values, there, room)?,
            other => return Err(format!("strings in encoding {other} are not read")),
        };
        let mut strings = strings.into_iter();
        for at in 0..self.count {
            let level = level(at);
            let string = if level == leaf.definition { strings.next() } else { None };
            if let Some(string) = &string {
                room.take(string.len())?;
            }
            let text = string.map(|string| String::from_utf8(string.into_owned())).transpose();
            let text = text.map_err(|_| format!("value {} is no UTF-8", out.len() + 1))?;
            out.push(Cell {
                starts_row: self.repetition.get(at).is_none_or(|level| *level == 0),
                level,
                text,
            });
        }
        Ok(())
    }
}

/// `count` levels from 0 to `most`.
fn level_runs(bytes: &[u8], most: u32, count: usize, room: &mut Room) -> Result<Vec<u32>, Problem> {
    let levels = encodings::runs(bytes, u32::BITS - most.leading_zeros(), count, room)?;
    match levels.iter().find(|level| **level > most) {
        Some(level) => Err(format!("a level of {level}, and {most} is the most")),
        None => Ok(levels),
    }
}
