//! Where the Hub is, where its cache lies, and who asks: the variables that Python's huggingface_hub reads, with its
//! defaults.

use crate::{Error, Result};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The Hub itself, where `HF_ENDPOINT` names no mirror.
const ENDPOINT: &str = "https://huggingface.co";

/// How to reach the Hub, and where what comes from there is kept.
///
/// <https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>
#[derive(Clone)]
pub struct Hub {
    /// The folder with one `models--OWNER--NAME` a model: `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or what `hf auth login` left in `HF_TOKEN_PATH`. It is sent to the endpoint's own host only.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: no socket is opened.
    pub offline: bool,
    /// Whether the cache's snapshots may consist of symbolic links (not with `HF_HUB_DISABLE_SYMLINKS`).
    pub symlinks: bool,
    /// How long a server may say nothing before it is asked again: `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds.
    pub patience: Duration,
    /// The wait before the second attempt; it doubles with each further one.
    pub backoff: Duration,
    /// Certificates (PEM) that are trusted in place of the usual ones: `SSL_CERT_FILE`, for proxies that replace them.
    pub certificates: Option<PathBuf>,
}

impl Hub {
    /// As the process's environment says.
    ///
    /// # Errors
    /// If `HF_ENDPOINT` is no web address, or no place for the cache can be found.
    pub fn from_environment() -> Result<Self> {
        Self::read(&|name| std::env::var_os(name))
    }

    fn read(get: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &str| get(name)?.into_string().ok().filter(|value| !value.is_empty());
        let home = || ["HOME", "USERPROFILE"].iter().find_map(|name| set(get, name)).map(PathBuf::from);
        let folder = |name: &str| {
            let path = PathBuf::from(set(get, name)?);
            match (path.strip_prefix("~"), home()) {
                (Ok(rest), Some(home)) => Some(home.join(rest)),
                _ => Some(path),
            }
        };
        let caches = folder("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
        let hf_home = folder("HF_HOME").or_else(|| Some(caches?.join("huggingface")));
        let in_home = |name: &str| Some(hf_home.clone()?.join(name));
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")).or_else(|| in_home("hub"));
        let cache = cache.ok_or_else(|| Error::usage("no place for the Hub's cache: set HF_HOME to a folder"))?;

        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_string();
        if !["https://", "http://"].iter().any(|scheme| endpoint.len() > scheme.len() && endpoint.starts_with(scheme)) {
            let what = format!("HF_ENDPOINT is {endpoint:?}; it must be a web address, such as {ENDPOINT}");
            return Err(Error::usage(what));
        }
        let from_file = || {
            let path = folder("HF_TOKEN_PATH").or_else(|| in_home("token"))?;
            std::fs::read_to_string(path).ok()
        };
        let token = match is_true(get, "HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => text("HF_TOKEN").or_else(from_file).map(|token| token.trim().to_string()),
        };
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok()).filter(|s| *s > 0);
        Ok(Self {
            cache,
            endpoint,
            // what cannot stand in a header is no token
            token: token.filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())),
            offline: is_true(get, "HF_HUB_OFFLINE"),
            symlinks: !is_true(get, "HF_HUB_DISABLE_SYMLINKS"),
            patience: Duration::from_secs(seconds.unwrap_or(10)),
            backoff: Duration::from_secs(1),
            certificates: folder("SSL_CERT_FILE"),
        })
    }
}

/// Never shows the token.
impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "...");
        f.debug_struct("Hub")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .finish()
    }
}

/// `HF_HUB_DISABLE_PROGRESS_BARS`.
pub fn progress_bars_are_disabled() -> bool {
    is_true(&|name| std::env::var_os(name), "HF_HUB_DISABLE_PROGRESS_BARS")
}

fn set(get: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    get(name).filter(|value| !value.is_empty())
}

/// Whether a variable says yes.
fn is_true(get: &dyn Fn(&str) -> Option<OsString>, name: &str) -> bool {
    let value = get(name).and_then(|value| value.into_string().ok()).unwrap_or_default().to_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(variables: &[(&str, &str)]) -> Result<Hub> {
        let variables: Vec<(String, String)> = variables.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Hub::read(&move |name| variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        for (variables, expected) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "")], "/hf/hub"),
        ] {
            assert_eq!(hub(variables).unwrap().cache, PathBuf::from(expected), "{variables:?}");
        }
        assert!(hub(&[]).unwrap_err().to_string().contains("set HF_HOME"));
    }

    #[test]
    fn yes_has_four_spellings() {
        for value in ["1", "ON", "on", "Yes", "true"] {
            assert!(hub(&[("HOME", "/h"), ("HF_HUB_OFFLINE", value)]).unwrap().offline, "{value}");
        }
        for value in ["", "0", "off", "no", "2"] {
            assert!(!hub(&[("HOME", "/h"), ("HF_HUB_OFFLINE", value)]).unwrap().offline, "{value}");
        }
    }

    #[test]
    fn the_token_comes_from_variable_or_file_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(folder.path().join("other"), "hf_other").unwrap();
        let other = folder.path().join("other");
        let token = |more: &[(&str, &str)]| hub(&[&[("HF_HOME", home)], more].concat()).unwrap().token;
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[("HF_TOKEN", " hf_set ")]).as_deref(), Some("hf_set"));
        assert_eq!(token(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_TOKEN", "two\nlines")]), None);
        let shown = format!("{:?}", hub(&[("HF_HOME", home), ("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn an_endpoint_is_a_web_address() {
        let endpoint = |value: &str| hub(&[("HOME", "/h"), ("HF_ENDPOINT", value)]);
        assert_eq!(endpoint("").unwrap().endpoint, ENDPOINT);
        assert_eq!(endpoint("http://localhost:80/").unwrap().endpoint, "http://localhost:80");
        for wrong in ["localhost", "ftp://x", "https://"] {
            assert!(endpoint(wrong).unwrap_err().to_string().contains("HF_ENDPOINT"), "{wrong}");
        }
    }
}
