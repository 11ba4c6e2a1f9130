//! The `tojson` filter of chat templates: Python's `json.dumps`, whose spaces models have learnt.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `value` as `json.dumps(value, ensure_ascii=False, **options)` writes it: `indent`, `separators`, `sort_keys` and
/// `ensure_ascii` are known.
pub(crate) fn to_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut value = serde_json::to_value(value).map_err(failed)?;
    if sort_keys.unwrap_or(false) {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(32));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
        None => {
            let (item, key) = match separators.as_deref() {
                Some([item, key]) => (item.as_str(), key.as_str()),
                Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "`separators` are two")),
                None => (", ", ": "),
            };
            let formatter = Separated { item, key };
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
    }
    // The serializer writes UTF-8 alone.
    let text = String::from_utf8_lossy(&out).into_owned();
    Ok(if ensure_ascii.unwrap_or(false) { ascii(&text) } else { text })
}

/// Everything on one line, with these between items and behind keys.
struct Separated<'a> {
    item: &'a str,
    key: &'a str,
}

impl Formatter for Separated<'_> {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// Every character beyond ASCII as `\uXXXX`, in pairs beyond 16 bits: they stand in strings only.
fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}
