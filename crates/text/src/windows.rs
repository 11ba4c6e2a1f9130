//! A token stream cut into windows.

use crate::{Error, Tokenizer};

/// Non-overlapping windows of equal length over a token stream; what is left at the end is dropped.
///
/// ```
/// use bitmill_text::Windows;
/// let windows = Windows::new(vec![1, 2, 3, 4, 5, 6, 7], 3, None);
/// assert_eq!(windows.iter().collect::<Vec<_>>(), [[1, 2, 3], [4, 5, 6]]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Tokens in a window.
    pub length: usize,
    /// The windows, one after the other: a multiple of `length`.
    pub tokens: Vec<u32>,
}

impl Windows {
    /// Cuts `tokens` into windows of `length`, keeping the first `limit` of them (`None`: all).
    ///
    /// A `length` of 0 gives no windows.
    pub fn new(mut tokens: Vec<u32>, length: usize, limit: Option<usize>) -> Self {
        let whole = tokens.len().checked_div(length).unwrap_or(0);
        let windows = limit.map_or(whole, |limit| limit.min(whole));
        tokens.truncate(windows * length);
        Self { length, tokens }
    }

    /// Cuts the tokens of `text`, which begin with BOS where the model asks for it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn of_text(
        tokenizer: &Tokenizer,
        text: &str,
        length: usize,
        limit: Option<usize>,
    ) -> Result<Self, Error> {
        Ok(Self::new(tokenizer.encode_document(text)?, length, limit))
    }

    /// How many windows there are.
    pub fn len(&self) -> usize {
        self.tokens.len().checked_div(self.length).unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One window.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn get(&self, window: usize) -> &[u32] {
        &self.tokens[window * self.length..(window + 1) * self.length]
    }

    /// Every window in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        (0..self.len()).map(|window| self.get(window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_rest_and_obeys_the_limit() {
        let windows = Windows::new((0..10).collect(), 4, None);
        assert_eq!((windows.len(), windows.get(1)), (2, &[4, 5, 6, 7][..]));
        assert_eq!(Windows::new((0..10).collect(), 4, Some(1)).tokens, [0, 1, 2, 3]);
        assert_eq!(Windows::new((0..10).collect(), 4, Some(9)).len(), 2);
    }

    #[test]
    fn a_text_shorter_than_a_window_gives_none() {
        assert!(Windows::new(vec![1, 2], 3, None).is_empty());
        assert!(Windows::new(vec![1, 2], 0, None).is_empty());
        assert!(Windows::new(vec![], 3, None).is_empty());
    }
}
