//! Addresses: as much of them as redirects need.

use ureq::http::Uri;

/// An http or https address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) encrypted: bool,
    /// Host and port, in lower case, the scheme's own port left out.
    pub(crate) host: String,
    /// Begins with `/`; the query included.
    pub(crate) path: String,
}

impl Url {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: Uri = text.parse().map_err(|_| "it is no address")?;
        let (encrypted, port) = match uri.scheme_str() {
            Some("https") => (true, ":443"),
            Some("http") => (false, ":80"),
            _ => return Err("its scheme is neither https nor http"),
        };
        let host = uri.authority().ok_or("it names no host")?.as_str().to_ascii_lowercase();
        if host.contains('@') {
            return Err("it holds a user's name");
        }
        let host = host.strip_suffix(port).unwrap_or(&host).to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { encrypted, host, path })
    }

    /// Where a `Location` seen at this address leads.
    pub(crate) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let scheme = if self.encrypted { "https" } else { "http" };
        let base = self.path.split('?').next().unwrap_or("/");
        let folder = base.rfind('/').map_or("/", |slash| &base[..=slash]);
        // A scheme ends at the first colon that no slash, question mark or hash precedes.
        let has_scheme =
            location.find(['/', '?', '#', ':']).is_some_and(|at| location[at..].starts_with(':'));
        match location {
            _ if has_scheme => Self::parse(location),
            _ if location.starts_with("//") => Self::parse(&format!("{scheme}:{location}")),
            _ if location.starts_with('/') => Self::parse(&format!("{scheme}://{}{location}", self.host)),
            _ => Self::parse(&format!("{scheme}://{}{folder}{location}", self.host)),
        }
    }

    /// This address with `path` after its own.
    pub(crate) fn at(&self, path: &str) -> Self {
        Self { path: format!("{}{path}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host.rsplit_once(':').map_or(self.host.as_str(), |(host, port)| {
            if port.bytes().all(|b| b.is_ascii_digit()) { host } else { &self.host }
        });
        matches!(host, "localhost" | "127.0.0.1" | "[::1]")
    }

    /// Without the query, which may hold a signature.
    pub(crate) fn shown(&self) -> String {
        let text = self.to_string();
        text.split('?').next().unwrap_or_default().to_owned()
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", if self.encrypted { "https" } else { "http" }, self.host, self.path)
    }
}

/// `text` percent-encoded; slashes stay where `slashes` says so.
pub(crate) fn encode(text: &str, slashes: Slashes) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'/' if slashes == Slashes::Stay => out.push('/'),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// What becomes of `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slashes {
    Stay,
    Encoded,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined() {
        let here = Url::parse("https://Hub.example:443/a/b?c=d").unwrap();
        assert_eq!(here.host, "hub.example");
        for (location, expected) in [
            ("/x?y", "https://hub.example/x?y"),
            ("x", "https://hub.example/a/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("http://hub.example/x", "http://hub.example/x"),
            ("https://hub.example:444/x", "https://hub.example:444/x"),
        ] {
            assert_eq!(here.join(location).unwrap().to_string(), expected);
        }
        for bad in
            ["ftp://x/y", "file:///etc/passwd", "https://me@hub.example/", "javascript:alert(1)", "data:,x"]
        {
            assert!(here.join(bad).is_err(), "{bad}");
        }
        assert_eq!(here.shown(), "https://hub.example/a/b");
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("a/b c#?%ü", Slashes::Stay), "a/b%20c%23%3F%25%C3%BC");
        assert_eq!(encode("refs/pr/1", Slashes::Encoded), "refs%2Fpr%2F1");
    }

    #[test]
    fn loopback_is_known() {
        for (url, loopback) in [
            ("http://127.0.0.1:8000", true),
            ("http://localhost", true),
            ("http://[::1]:80/", true),
            ("http://127.0.0.1.example.com", false),
        ] {
            assert_eq!(Url::parse(url).unwrap().is_loopback(), loopback, "{url}");
        }
    }
}
