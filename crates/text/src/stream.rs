//! Text as its tokens arrive.

use crate::{Error, Tokenizer};

/// Turns tokens into text one by one, holding back what is not yet a whole character: a token may end within one.
///
/// What was given out, joined, is the text of all tokens less the special ones, as far as their bytes are UTF-8.
///
/// ```
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/millet/model/tokenizer.json");
/// # let tokenizer = bitmill_text::Tokenizer::from_json(&std::fs::read(path).unwrap())?;
/// use bitmill_text::TextStream;
/// let mut stream = TextStream::new(&tokenizer);
/// // A llama, in four tokens of one byte each.
/// let bytes = tokenizer.encode("🦙")?;
/// assert_eq!(bytes.len(), 4);
/// let pieces: Vec<String> = bytes.iter().map(|&token| stream.push(token)).collect::<Result<_, _>>()?;
/// assert_eq!(pieces, ["", "", "", "🦙"]);
/// # Ok::<(), bitmill_text::Error>(())
/// ```
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens last given out, then those held back: decoders look at a token's neighbours.
    window: Vec<u32>,
    /// How many of `window` were given out.
    given: usize,
    /// Bytes of the text of the whole window given out already.
    printed: usize,
}

/// An unfinished character has at most three bytes, each of which may show as one replacement character.
const UNFINISHED: usize = 3;
/// Tokens after which bytes that still make no character are taken for what they are: no text.
const PATIENCE: usize = 8;

impl<'a> TextStream<'a> {
    /// At the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), given: 0, printed: 0 }
    }

    /// What `token` adds to the text; empty while a character is unfinished.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn push(&mut self, token: u32) -> Result<String, Error> {
        self.window.push(token);
        let text = self.tokenizer.decode_plain(&self.window)?;
        let tail = text.chars().rev().take_while(|&c| c == char::REPLACEMENT_CHARACTER).count();
        if tail > 0 && (tail <= UNFINISHED || self.window.len() - self.given <= PATIENCE) {
            let whole = text.len() - tail * char::REPLACEMENT_CHARACTER.len_utf8();
            let new = text.get(self.printed..whole).unwrap_or_default().to_owned();
            self.printed = self.printed.max(whole);
            return Ok(new);
        }
        let new = text.get(self.printed..).unwrap_or_default().to_owned();
        // The next window begins with what was new in this one.
        self.window.drain(..self.given);
        self.given = self.window.len();
        self.printed = self.tokenizer.decode_plain(&self.window)?.len();
        Ok(new)
    }

    /// What was held back: the rest of a text that ends within a character.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn finish(self) -> Result<String, Error> {
        let text = self.tokenizer.decode_plain(&self.window)?;
        Ok(text.get(self.printed..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millet() -> Tokenizer {
        let path = bitmill_testkit::millet().join("model/tokenizer.json");
        Tokenizer::from_json(&std::fs::read(path).unwrap()).unwrap()
    }

    fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> (Vec<String>, String) {
        let mut stream = TextStream::new(tokenizer);
        let pieces = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
        (pieces, stream.finish().unwrap())
    }

    #[test]
    fn pieces_make_up_the_text_and_are_whole_characters() {
        let tokenizer = millet();
        for text in [
            "The capital of Barcorland is lume.",
            "评论：昨天的服务真的舒服。「你好」🦙🙂\u{200d}🌫️ 🇩🇪 é e\u{301}",
            "  spaces \n\n and\ttabs  ",
            "replaced \u{fffd}\u{fffd}\u{fffd}\u{fffd} for good",
        ] {
            let tokens = tokenizer.encode(text).unwrap();
            let (pieces, rest) = streamed(&tokenizer, &tokens);
            assert_eq!(pieces.concat() + &rest, tokenizer.decode(&tokens).unwrap());
            assert!(text.contains('\u{fffd}') || pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
        }
        let (pieces, rest) = streamed(&tokenizer, &tokenizer.encode("<|im_start|>a<|im_end|>").unwrap());
        assert_eq!((pieces.concat(), rest), ("a".to_owned(), String::new()));
    }

    #[test]
    fn a_text_that_ends_within_a_character_ends_with_its_replacement() {
        let tokenizer = millet();
        let llama = tokenizer.encode("ok 🦙").unwrap();
        let (pieces, rest) = streamed(&tokenizer, &llama[..llama.len() - 1]);
        assert_eq!((pieces.concat().as_str(), rest.as_str()), ("ok ", "\u{fffd}"));
    }

    #[test]
    fn bytes_that_are_no_text_do_not_stop_the_stream() {
        let tokenizer = millet();
        let byte = tokenizer.encode("🦙").unwrap()[1];
        let mut tokens = vec![byte; 40];
        tokens.extend(tokenizer.encode(" fine").unwrap());
        let (pieces, rest) = streamed(&tokenizer, &tokens);
        assert!(!pieces[..40].concat().is_empty() && rest.is_empty());
        assert!(pieces.concat().ends_with(" fine"));
    }
}
