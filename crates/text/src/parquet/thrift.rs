//! Thrift's compact protocol, as far as Parquet's footer and page headers need it: values as a tree.
//!
//! A field is a byte (the step from the last field's number, and a type), a list a byte (length and type) before its
//! elements; integers are zigzag varints. Limit: 24 levels deep.

use super::Problem;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'b> {
    /// `true` or `false`.
    Bool(bool),
    /// Any integer.
    Int(i64),
    /// Bytes or text.
    Bytes(&'b [u8]),
    /// A list or a set.
    List(Vec<Value<'b>>),
    /// Fields by their numbers.
    Struct(Vec<(i16, Value<'b>)>),
    /// What Parquet has no use for here: floats, maps, identifiers.
    Unread,
}

const DEEPEST: usize = 24;

impl<'b> Value<'b> {
    /// A field of a struct.
    pub(super) fn field(&self, number: i16) -> Option<&Self> {
        match self {
            Self::Struct(fields) => fields.iter().find(|(known, _)| *known == number).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The integer.
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The integer as a size.
    pub(super) fn size(&self) -> Option<usize> {
        self.int()?.try_into().ok()
    }

    /// The elements of a list.
    pub(super) fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(elements) => Some(elements),
            _ => None,
        }
    }

    /// The text.
    pub(super) fn text(&self) -> Option<&'b str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

/// The struct at the beginning of `bytes`, and how many bytes it takes.
pub(super) fn read(bytes: &[u8]) -> Result<(Value<'_>, usize), Problem> {
    let mut reader = Reader { rest: bytes };
    let value = reader.structure(0).ok_or("its metadata are no Thrift")?;
    Ok((value, bytes.len() - reader.rest.len()))
}

struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn varint(&mut self) -> Option<u64> {
        varint(&mut self.rest)
    }

    fn structure(&mut self, depth: usize) -> Option<Value<'b>> {
        let mut fields = Vec::new();
        let mut number = 0i16;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(Value::Struct(fields));
            }
            number = match head >> 4 {
                0 => i16::try_from(zigzag(self.varint()?)).ok()?,
                step => number.checked_add(i16::from(step))?,
            };
            let value = match head & 15 {
                1 => Value::Bool(true),
                2 => Value::Bool(false),
                kind => self.value(kind, depth)?,
            };
            fields.push((number, value));
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<Value<'b>> {
        if depth == DEEPEST {
            return None;
        }
        Some(match kind {
            1 | 2 => Value::Bool(self.byte()? == 1),
            3 => Value::Int(i64::from(self.byte()? as i8)),
            4..=6 => Value::Int(zigzag(self.varint()?)),
            7 => self.take(8).map(|_| Value::Unread)?,
            8 => {
                let length = self.varint()?.try_into().ok()?;
                Value::Bytes(self.take(length)?)
            }
            9 | 10 => {
                let head = self.byte()?;
                let length = match head >> 4 {
                    15 => self.varint()?,
                    short => u64::from(short),
                };
                // Every element takes a byte at least.
                let length = usize::try_from(length).ok().filter(|length| *length <= self.rest.len())?;
                let element = |_| self.value(head & 15, depth + 1);
                Value::List((0..length).map(element).collect::<Option<_>>()?)
            }
            11 => {
                let length = self.varint()?;
                let kinds = if length == 0 { 0 } else { self.byte()? };
                for _ in 0..length {
                    self.value(kinds >> 4, depth + 1)?;
                    self.value(kinds & 15, depth + 1)?;
                }
                Value::Unread
            }
            12 => self.structure(depth + 1)?,
            13 => self.take(16).map(|_| Value::Unread)?,
            _ => return None,
        })
    }
}

/// Takes an unsigned varint from the beginning of `rest`.
pub(super) fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// The signed integer that a varint stands for.
pub(super) fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_fields_lists_and_what_it_has_no_use_for() {
        // 1: i32 −3; 2: list of two texts; 4: true; 5: a map of one i32 to a text; 300: a struct with 1: i64 150.
        let bytes = [
            0x15, 5, 0x19, 0x28, 1, b'a', 2, b'b', b'c', 0x21, 0x1b, 1, 0x58, 2, 1, b'x', 0x0c, 0xd8, 4,
            0x16, 0xac, 2, 0, 0, 9,
        ];
        let (value, length) = read(&bytes).unwrap();
        assert_eq!(length, bytes.len() - 1);
        assert_eq!(value.field(1).and_then(Value::int), Some(-3));
        assert_eq!(value.field(1).and_then(Value::size), None);
        let texts: Vec<_> = value.field(2).unwrap().list().unwrap().iter().filter_map(Value::text).collect();
        assert_eq!(texts, ["a", "bc"]);
        assert_eq!(value.field(4), Some(&Value::Bool(true)));
        assert_eq!(value.field(5), Some(&Value::Unread));
        assert_eq!(value.field(300).and_then(|inner| inner.field(1)?.size()), Some(150));
    }

    #[test]
    fn nothing_is_taken_on_trust() {
        let endless = [0xff; 20];
        for bytes in
            [&[0x15][..], &[0x19, 0xf8, 0xff, 0xff, 0xff, 0xff, 15, 1], &[0x1c; 100], &endless, &[0x1f, 0]]
        {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
        // A map of 2^60 entries that take no bytes has no kinds to take none.
        assert!(read(&[0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 15, 0x00, 0]).is_err());
    }
}
