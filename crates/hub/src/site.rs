//! Where a hub is, where its cache is, and what may be sent to it, from the variables its own client reads.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::url::Url;
use crate::{Error, Hub};

/// One hub as this machine reaches it.
#[derive(Debug, Clone)]
pub struct Site {
    pub(crate) hub: Hub,
    pub(crate) endpoint: Url,
    pub(crate) token: Option<Token>,
    pub(crate) cache: PathBuf,
    pub(crate) offline: bool,
    pub(crate) certificates: Option<PathBuf>,
}

/// An access token. It shows in no message.
#[derive(Clone)]
pub(crate) struct Token(pub(crate) String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Site {
    /// Reads the variables through `variable`, usually [`std::env::var_os`].
    ///
    /// Hugging Face: `HF_ENDPOINT`, `HF_TOKEN` or the file that `HF_TOKEN_PATH` names (`HF_HOME/token`), `HF_HUB_CACHE`
    /// (`HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`, `~/.cache/huggingface/hub`), `HF_HUB_OFFLINE`.
    /// ModelScope: `MODELSCOPE_ENDPOINT`, `MODELSCOPE_API_TOKEN`, `MODELSCOPE_CACHE` (`~/.cache/modelscope`); it has no
    /// variable of its own against fetching, so `HF_HUB_OFFLINE` counts for both. An empty variable counts as unset,
    /// but an empty `HF_TOKEN` means: send none.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::TokenInClear`], [`Error::Io`] if the token's file cannot be read.
    pub fn new(hub: Hub, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(|value| expand(PathBuf::from(value), &set));
        let cache_home = |folder: &str| {
            let home = match hub {
                Hub::HuggingFace => path("XDG_CACHE_HOME"),
                Hub::ModelScope => None,
            };
            home.or_else(|| path("HOME").map(|home| home.join(".cache"))).map(|cache| cache.join(folder))
        };
        let homeless = |variable| Error::Setting {
            variable: "HOME",
            value: String::new(),
            problem: format!("there is no place for the cache; set HOME or {variable}"),
        };
        let (endpoint, endpoint_variable) = match hub {
            Hub::HuggingFace => ("https://huggingface.co", "HF_ENDPOINT"),
            Hub::ModelScope => ("https://www.modelscope.cn", "MODELSCOPE_ENDPOINT"),
        };
        let given = set(endpoint_variable).map(|value| value.to_string_lossy().into_owned());
        let given = given.unwrap_or_else(|| endpoint.to_owned());
        // ModelScope's client takes a bare host.
        let with_scheme = if hub == Hub::ModelScope && !given.contains("://") {
            format!("https://{given}")
        } else {
            given.clone()
        };
        let endpoint = Url::parse(with_scheme.trim_end_matches('/')).map_err(|problem| Error::Setting {
            variable: endpoint_variable,
            value: given,
            problem: problem.to_owned(),
        })?;
        let (token, token_variable, cache) = match hub {
            Hub::HuggingFace => {
                let home = path("HF_HOME").or_else(|| cache_home("huggingface"));
                let cache = path("HF_HUB_CACHE")
                    .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                    .or_else(|| home.as_ref().map(|home| home.join("hub")))
                    .ok_or_else(|| homeless("HF_HOME"))?;
                let token = match variable("HF_TOKEN") {
                    Some(token) => Some(token.to_string_lossy().into_owned()),
                    None => match path("HF_TOKEN_PATH").or_else(|| home.map(|home| home.join("token"))) {
                        Some(file) => token_file(&file)?,
                        None => None,
                    },
                };
                (token, "HF_TOKEN", cache)
            }
            Hub::ModelScope => {
                let cache = path("MODELSCOPE_CACHE")
                    .or_else(|| cache_home("modelscope"))
                    .ok_or_else(|| homeless("MODELSCOPE_CACHE"))?;
                let token = set("MODELSCOPE_API_TOKEN").map(|token| token.to_string_lossy().into_owned());
                (token, "MODELSCOPE_API_TOKEN", cache)
            }
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if let Some(token) = &token {
            if !token.bytes().all(|b| b.is_ascii_graphic() && b != b';' && b != b',') {
                return Err(Error::Setting {
                    variable: token_variable,
                    value: "…".to_owned(),
                    problem: "a token is letters, digits and underscores".to_owned(),
                });
            }
            if !endpoint.encrypted && !endpoint.is_loopback() {
                return Err(Error::TokenInClear { endpoint: endpoint.to_string(), variable: token_variable });
            }
        }
        let offline = set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE"));
        let offline = offline.is_some_and(|value| {
            ["1", "ON", "YES", "TRUE"].contains(&value.to_string_lossy().to_ascii_uppercase().as_str())
        });
        let token = token.map(Token);
        Ok(Self { hub, endpoint, token, cache, offline, certificates: path("SSL_CERT_FILE") })
    }

    /// [`Site::new`] with the process's own variables.
    ///
    /// # Errors
    /// As there.
    pub fn from_environment(hub: Hub) -> Result<Self, Error> {
        Self::new(hub, &|name| std::env::var_os(name))
    }
}

/// `~` at the beginning stands for the home folder.
fn expand(path: PathBuf, set: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    match (path.strip_prefix("~"), set("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

fn token_file(file: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(Error::io("read", file, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(hub: Hub, variables: &[(&str, &str)]) -> Result<Site, Error> {
        Site::new(hub, &|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn caches_lie_where_the_hubs_own_clients_put_them() {
        let at = |hub, variables: &[(&str, &str)]| site(hub, variables).unwrap().cache;
        let hf = Hub::HuggingFace;
        assert_eq!(at(hf, &[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        assert_eq!(at(hf, &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(at(hf, &[("HOME", "/h"), ("HF_HOME", "~/y")]), Path::new("/h/y/hub"));
        assert_eq!(at(hf, &[("HF_HOME", "/y"), ("HF_HUB_CACHE", "/z")]), Path::new("/z"));
        assert_eq!(at(Hub::ModelScope, &[("HOME", "/h")]), Path::new("/h/.cache/modelscope"));
        assert_eq!(at(Hub::ModelScope, &[("MODELSCOPE_CACHE", "/m")]), Path::new("/m"));
        assert!(matches!(site(hf, &[]), Err(Error::Setting { variable: "HOME", .. })));
    }

    #[test]
    fn tokens_come_from_the_variable_or_the_file_and_stay_out_of_messages() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().to_str().unwrap();
        assert!(site(Hub::HuggingFace, &[("HF_HOME", folder)]).unwrap().token.is_none());
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let from_file = site(Hub::HuggingFace, &[("HF_HOME", folder)]).unwrap();
        assert_eq!(from_file.token.as_ref().unwrap().0, "hf_file");
        assert!(!format!("{from_file:?}").contains("hf_file"));
        let named = site(Hub::HuggingFace, &[("HF_HOME", folder), ("HF_TOKEN", "hf_x")]).unwrap();
        assert_eq!(named.token.unwrap().0, "hf_x");
        assert!(site(Hub::HuggingFace, &[("HF_HOME", folder), ("HF_TOKEN", "")]).unwrap().token.is_none());
        let broken = site(Hub::HuggingFace, &[("HF_HOME", folder), ("HF_TOKEN", "hf\nHost: x")]);
        assert!(matches!(broken, Err(Error::Setting { variable: "HF_TOKEN", .. })));
    }

    #[test]
    fn a_token_goes_to_no_unencrypted_endpoint() {
        let mirror = |endpoint| {
            site(Hub::HuggingFace, &[("HF_HOME", "/y"), ("HF_TOKEN", "x"), ("HF_ENDPOINT", endpoint)])
        };
        assert!(matches!(mirror("http://mirror.example"), Err(Error::TokenInClear { .. })));
        assert!(mirror("http://127.0.0.1:9").is_ok());
        assert!(mirror("https://mirror.example/").is_ok());
        assert!(matches!(mirror("mirror"), Err(Error::Setting { variable: "HF_ENDPOINT", .. })));
        let bare = [("MODELSCOPE_CACHE", "/m"), ("MODELSCOPE_ENDPOINT", "modelscope.ai")];
        assert!(site(Hub::ModelScope, &bare).unwrap().endpoint.encrypted);
    }
}
