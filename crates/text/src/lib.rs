//! Tokenizers, token windows and multiple-choice task files.
