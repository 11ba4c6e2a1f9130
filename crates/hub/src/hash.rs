//! The hashes by which a hub names its files.

use std::fmt::Write as _;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// What a file must hash to, in lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hash {
    /// Of the content: files in Git LFS, and all of ModelScope's.
    Sha256(String),
    /// Of `blob LENGTH\0` and the content: git's own name for a small file. It guards against accidents; a server that
    /// can forge SHA-1 collisions could have lied in the listing just as well.
    GitBlob(String),
}

impl Hash {
    pub(crate) fn sha256(text: &str) -> Option<Self> {
        hex(text, 64).map(Self::Sha256)
    }

    pub(crate) fn git_blob(text: &str) -> Option<Self> {
        hex(text, 40).map(Self::GitBlob)
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git blob SHA-1",
        }
    }

    pub(crate) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitBlob(digits) => digits,
        }
    }

    /// Begins to hash a file of `size` bytes.
    pub(crate) fn begin(&self, size: u64) -> Context {
        match self {
            Self::Sha256(_) => Context::new(&SHA256),
            Self::GitBlob(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                context
            }
        }
    }
}

/// `bytes` as lower-case hexadecimal digits.
pub(crate) fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `text` in lower case, if it is `n` hexadecimal digits.
pub(crate) fn hex(text: &str, n: usize) -> Option<String> {
    (text.len() == n && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        // `printf 'hello\n' | git hash-object --stdin`, `printf 'hello\n' | sha256sum`
        let git = Hash::git_blob("CE013625030BA8DBA906F756967F9E9CA394464A").unwrap();
        let mut context = git.begin(6);
        context.update(b"hello\n");
        assert_eq!(digits(context.finish().as_ref()), git.digits());
        let sha = Hash::sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").unwrap();
        let mut context = sha.begin(6);
        context.update(b"hello\n");
        assert_eq!(digits(context.finish().as_ref()), sha.digits());
        assert!(Hash::sha256("../../../etc/passwd").is_none());
    }
}
