//! Reads SentencePiece's own file, `tokenizer.model`: a protocol buffer.
//!
//! ```text
//! ModelProto      1: SentencePiece, repeated   2: TrainerSpec   3: NormalizerSpec
//! SentencePiece   1: piece, text   2: score, f32   3: type (1 normal … 6 byte; normal if absent)
//! TrainerSpec     3: model_type (1 unigram, 2 BPE, 3 word, 4 char; unigram if absent)
//!                 24: treat_whitespace_as_suffix
//! NormalizerSpec  2: precompiled_charsmap   3: add_dummy_prefix (true if absent)
//!                 4: remove_extra_whitespaces (true if absent)   5: escape_whitespaces (true if absent)
//! ```
//!
//! Every field is a varint key, `number << 3 | wire type`, and a value: 0 varint, 1 eight bytes, 2 varint length and
//! bytes, 5 four bytes. Fields that are not named here are passed over. Limit: as many pieces as the file has bytes for.

use crate::Error;
use crate::gguf::NORMAL;
use crate::pieces::Pieces;

/// Reads the pieces of a BPE vocabulary without a normalizer: Llama 2's kind.
///
/// # Errors
/// [`Error::Malformed`]; [`Error::UnreadPieces`] for another kind of vocabulary.
pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Pieces, Error> {
    let malformed = |problem: &str| Error::Malformed { file: file.to_owned(), problem: problem.to_owned() };
    let unread = |found: &str| Error::UnreadPieces { file: file.to_owned(), found: found.to_owned() };
    const CUT: &str = "this is no SentencePiece model, or it was cut short";
    let mut pieces = Pieces { space_prefix: true, ..Pieces::default() };
    let (mut kind, mut suffix) = (1, false);
    let (mut charsmap, mut strips, mut escapes) = (false, true, true);
    for field in Fields(bytes) {
        let (number, value) = field.ok_or_else(|| malformed(CUT))?;
        match (number, value) {
            (1, Wire::Bytes(piece)) => {
                let (mut text, mut score, mut kind) = ("", 0.0, NORMAL);
                for field in Fields(piece) {
                    match field.ok_or_else(|| malformed(CUT))? {
                        (1, Wire::Bytes(bytes)) => {
                            text =
                                std::str::from_utf8(bytes).map_err(|_| malformed("a piece is not UTF-8"))?;
                        }
                        (2, Wire::Four(bytes)) => score = f32::from_le_bytes(bytes),
                        (3, Wire::Varint(value)) => {
                            kind = i32::try_from(value).map_err(|_| malformed("a piece of unknown type"))?;
                        }
                        _ => {}
                    }
                }
                pieces.texts.push(text.to_owned());
                pieces.scores.push(score);
                pieces.types.push(kind);
            }
            (2, Wire::Bytes(trainer)) => {
                for field in Fields(trainer) {
                    match field.ok_or_else(|| malformed(CUT))? {
                        (3, Wire::Varint(value)) => kind = value,
                        (24, Wire::Varint(value)) => suffix = value != 0,
                        _ => {}
                    }
                }
            }
            (3, Wire::Bytes(normalizer)) => {
                for field in Fields(normalizer) {
                    match field.ok_or_else(|| malformed(CUT))? {
                        (2, Wire::Bytes(map)) => charsmap = !map.is_empty(),
                        (3, Wire::Varint(value)) => pieces.space_prefix = value != 0,
                        (4, Wire::Varint(value)) => strips = value != 0,
                        (5, Wire::Varint(value)) => escapes = value != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if pieces.texts.is_empty() {
        return Err(malformed(CUT));
    }
    match kind {
        2 => {}
        1 => return Err(unread("a unigram vocabulary")),
        _ => return Err(unread("a vocabulary of words or characters")),
    }
    if suffix || charsmap || strips || !escapes {
        return Err(unread(match (suffix, charsmap, strips) {
            (true, ..) => "spaces at the end of words",
            (_, true, _) => "a normalizer of characters",
            (.., true) => "spaces that are dropped",
            _ => "spaces that stay spaces",
        }));
    }
    Ok(pieces)
}

/// The value of a field.
enum Wire<'a> {
    Varint(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
    /// Eight bytes, which no field here has.
    Eight,
}

/// The fields of a message; `None` once where it is broken.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Eight
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}
