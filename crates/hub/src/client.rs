//! Requests: redirects followed under rules of our own, passing failures retried, refusals named.

use std::io::Read as _;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body};

use crate::url::Url;
use crate::{Error, Hub, ModelName, Site};

const MOST_REDIRECTS: u32 = 5;
/// The longest listing, in bytes.
const LONGEST_ANSWER: u64 = 32_000_000;
/// The longest wait that a server can ask for, in seconds.
const LONGEST_WAIT: u64 = 120;

/// How often something is tried that may succeed later, and how long lies between.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in a row without progress before giving up; at least 1.
    pub tries: u32,
    /// The pause after the first; it doubles each time, up to 30 s.
    pub first_pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { tries: 6, first_pause: Duration::from_secs(1) }
    }
}

/// Counts failures in a row.
pub(crate) struct Tries {
    retry: Retry,
    failed: u32,
}

impl Tries {
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, failed: 0 }
    }

    /// Pauses before another attempt, or says why there is none.
    pub(crate) fn again(&mut self, failure: Failure) -> Result<(), Error> {
        let (why, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { why, after } => (why, after),
        };
        self.failed += 1;
        if self.failed >= self.retry.tries {
            return Err(why(self.failed));
        }
        let pause = self.retry.first_pause * 2_u32.pow((self.failed - 1).min(5));
        thread::sleep(pause.min(Duration::from_secs(30)).max(after));
        Ok(())
    }

    /// It went on for a while: the count begins anew.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }
}

/// Why a request brought nothing.
pub(crate) enum Failure {
    /// Asking again gives the same.
    Final(Error),
    /// Asking again may help, after this time at least. Given the number of tries, why it did not.
    Passing { why: Box<dyn FnOnce(u32) -> Error>, after: Duration },
}

impl Failure {
    fn passing(why: impl FnOnce(u32) -> Error + 'static) -> Self {
        Self::Passing { why: Box::new(why), after: Duration::ZERO }
    }
}

/// Asks one hub about one model.
pub(crate) struct Client<'a> {
    site: &'a Site,
    model: &'a ModelName,
    agent: Agent,
    retry: Retry,
}

impl<'a> Client<'a> {
    pub(crate) fn new(site: &'a Site, model: &'a ModelName, retry: Retry) -> Result<Self, Error> {
        let roots = match &site.certificates {
            None => RootCerts::WebPki,
            Some(file) => {
                let pem = std::fs::read(file).map_err(|source| Error::io("read", file, source))?;
                let roots: Vec<_> = parse_pem(&pem)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                if roots.is_empty() {
                    return Err(Error::Setting {
                        variable: "SSL_CERT_FILE",
                        value: file.display().to_string(),
                        problem: "it holds no certificate in PEM form".to_owned(),
                    });
                }
                roots.into()
            }
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("bitmill/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(Duration::from_secs(30)))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .tls_config(TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots).build());
        if site.endpoint.is_loopback() {
            config = config.proxy(None);
        }
        Ok(Self { site, model, agent: config.build().into(), retry })
    }

    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.retry)
    }

    /// The whole answer to a question about the repository.
    pub(crate) fn ask(&self, url: &Url) -> Result<Vec<u8>, Error> {
        let mut tries = self.tries();
        loop {
            let failure = match self.get(url, 0).map(|response| read_all(url, response)) {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(failure)) | Err(failure) => failure,
            };
            tries.again(failure)?;
        }
    }

    /// One request for what lies at `url`, from byte `from` on, redirects included.
    pub(crate) fn get(&self, url: &Url, from: u64) -> Result<Response<Body>, Failure> {
        let mut at = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.once(&at, from)?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return match status {
                    200 | 206 => Ok(response),
                    _ => Err(self.refusal(&at, response)),
                };
            }
            let to = header(response.headers(), "location").unwrap_or_default();
            at = redirected(&at, &to).map_err(Failure::Final)?;
        }
        Err(Failure::Final(Error::TooManyRedirects { url: url.shown(), limit: MOST_REDIRECTS }))
    }

    fn once(&self, url: &Url, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url.to_string()).header("Accept-Encoding", "identity");
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let own = &self.site.endpoint;
        // The token is for the endpoint alone: whoever it redirects to gets a signed address instead.
        let same_host = url.host == own.host && (url.encrypted || url.encrypted == own.encrypted);
        if let (Some(token), true) = (&self.site.token, same_host) {
            request = match self.site.hub {
                Hub::HuggingFace => request.header("Authorization", format!("Bearer {}", token.0)),
                Hub::ModelScope => request.header("Cookie", format!("m_session_id={}", token.0)),
            };
        }
        request.call().map_err(|error| {
            let (url, problem) = (url.shown(), error.to_string());
            match error {
                // Asking again brings no other certificate.
                ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::BadUri(_) => {
                    Failure::Final(Error::Unreachable { url, problem, tries: 1 })
                }
                _ => Failure::passing(move |tries| Error::Unreachable { url, problem, tries }),
            }
        })
    }

    /// What a status other than success means.
    fn refusal(&self, url: &Url, mut response: Response<Body>) -> Failure {
        let status = response.status().as_u16();
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let wait = header(response.headers(), "retry-after").and_then(|text| text.trim().parse::<u64>().ok());
        let said = header(response.headers(), "x-error-message").or_else(|| said_in_body(&mut response));
        let message = said.map_or_else(String::new, |said| format!(": {}", printable(&said)));
        let model = format!("{}:{}", self.site.hub.prefix(), self.model.repository());
        let endpoint = self.site.endpoint.to_string().trim_end_matches('/').to_owned();
        let shown = url.shown();
        if matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504) {
            let wait = wait.unwrap_or(0);
            if wait > LONGEST_WAIT {
                return Failure::Final(Error::Busy { url: shown, seconds: wait });
            }
            let why = move |_| Error::Status { url: shown, status, message };
            return Failure::Passing { why: Box::new(why), after: Duration::from_secs(wait) };
        }
        Failure::Final(match (status, code.as_str()) {
            (_, "GatedRepo") => Error::Gated { model, endpoint, message },
            (_, "RevisionNotFound") => Error::NoSuchRevision { model, revision: self.model.revision.clone() },
            // Hugging Face hides what does not exist behind 401 too; with a token 401 means the token.
            (401, _) if self.site.token.is_some() && code != "RepoNotFound" => Error::TokenRefused {
                endpoint,
                message,
                variable: match self.site.hub {
                    Hub::HuggingFace => "HF_TOKEN",
                    Hub::ModelScope => "MODELSCOPE_API_TOKEN",
                },
            },
            (401 | 404, _) if url.host == self.site.endpoint.host => {
                Error::NoSuchModel { model, endpoint, message }
            }
            _ => Error::Status { url: shown, status, message },
        })
    }
}

/// Where a redirect leads, if it may be followed: to http or https, and from https to https alone.
fn redirected(from: &Url, location: &str) -> Result<Url, Error> {
    let next = from.join(location).map_err(|problem| Error::BadRedirect {
        from: from.shown(),
        to: printable(location),
        problem,
    })?;
    if from.encrypted && !next.encrypted {
        return Err(Error::Downgraded { from: from.shown(), to: next.shown() });
    }
    Ok(next)
}

fn read_all(url: &Url, response: Response<Body>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = response.into_body().into_reader().take(LONGEST_ANSWER + 1).read_to_end(&mut bytes);
    if bytes.len() as u64 > LONGEST_ANSWER {
        return Err(Failure::Final(Error::AnswerTooLong { url: url.shown(), limit: LONGEST_ANSWER }));
    }
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let (url, problem) = (url.shown(), error.to_string());
            Err(Failure::passing(move |tries| Error::Unreachable { url, problem, tries }))
        }
    }
}

pub(crate) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// ModelScope puts its reason into the answer's `Message`, Hugging Face into `error` where no header has it.
fn said_in_body(response: &mut Response<Body>) -> Option<String> {
    let mut bytes = Vec::new();
    response.body_mut().as_reader().take(65_536).read_to_end(&mut bytes).ok()?;
    let json: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    ["Message", "error"].iter().find_map(|key| Some(json.get(key)?.as_str()?.to_owned()))
}

/// What a server said, fit for a terminal: one line of at most 200 characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_leave_https() {
        let from = Url::parse("https://hub.example/a").unwrap();
        assert!(redirected(&from, "https://cdn.example/x?signature=1").is_ok());
        assert!(redirected(&from, "/b").unwrap().encrypted);
        assert!(matches!(redirected(&from, "http://hub.example/a"), Err(Error::Downgraded { .. })));
        assert!(matches!(redirected(&from, "file:///etc/passwd"), Err(Error::BadRedirect { .. })));
        let plain = Url::parse("http://127.0.0.1:8080/a").unwrap();
        assert!(redirected(&plain, "https://cdn.example/x").unwrap().encrypted);
    }

    #[test]
    fn what_a_server_says_is_one_line() {
        assert_eq!(printable(" a\u{1b}[31m\nb "), "a[31mb");
        assert_eq!(printable(&"x".repeat(1000)).len(), 200);
    }
}
