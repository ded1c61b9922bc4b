//! Requests to the Hub: redirects, patience, another try, and what an answer means in words.

use super::environment::Hub;
use super::listing::{Entry, is_hash};
use crate::progress::check_interrupted;
use crate::{Error, Result};
use serde_json::Value;
use std::cell::Cell;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

/// Attempts at one request, each after twice the wait.
const ATTEMPTS: u32 = 5;
/// Attempts at the first request of all, if no server answers at all: without a network nobody should wait long.
const FIRST_ATTEMPTS: u32 = 2;
/// A server that wants a longer wait than this is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// A listing is not larger than this.
const LISTING_BYTES: u64 = 64 << 20;
/// A body that takes longer is cut, and goes on from where it is.
const BODY_TIME: Duration = Duration::from_secs(3600);

/// Why there is no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server (or the way to it) may do better later; the cache may serve meanwhile.
    Unreachable(String),
    /// Anything else.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Why one attempt failed, where another may not.
pub(super) struct Again {
    why: String,
    after: Option<Duration>,
    /// Whether it is no use to try again soon.
    not_soon: bool,
}

impl Again {
    /// For this reason.
    pub fn because(why: impl ToString) -> Self {
        Self { why: why.to_string(), after: None, not_soon: false }
    }
}

/// How an attempt ended: with something, or with the wish for another one.
pub(super) type Attempt<T> = std::result::Result<std::result::Result<T, Again>, Error>;

/// An answer with a body that is not read yet.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Answer {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Asks one Hub about one model.
pub(super) struct Client<'a> {
    agent: Agent,
    hub: &'a Hub,
    /// `OWNER/NAME`.
    repo: &'a str,
    /// Whether a server answered yet.
    reached: Cell<bool>,
}

impl<'a> Client<'a> {
    /// A client that has opened nothing yet.
    ///
    /// # Errors
    /// If the certificates that the user named cannot be read.
    pub fn new(hub: &'a Hub, repo: &'a str) -> Result<Self> {
        let host = origin(&hub.endpoint).map(|(_, host, _)| host).unwrap_or_default();
        let local = ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str());
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0) // followed here, so that no other host gets the token
            .max_redirects_will_error(false)
            .user_agent(concat!("erase-concept/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // sizes, ranges and hashes are of the content itself
            .proxy(if local { None } else { Proxy::try_from_env() })
            .timeout_resolve(Some(hub.patience))
            .timeout_connect(Some(hub.patience))
            .timeout_per_read(Some(hub.patience))
            .timeout_recv_body(Some(BODY_TIME))
            .tls_config(TlsConfig::builder().root_certs(roots(hub)?).build())
            .build();
        Ok(Self { agent: config.new_agent(), hub, repo, reached: Cell::new(false) })
    }

    /// The commit of a revision, and the files it has: `/api/models/OWNER/NAME/revision/REV`.
    pub fn info(&self, revision: &str) -> std::result::Result<Value, Failure> {
        let (endpoint, repo) = (&self.hub.endpoint, self.repo);
        let url = format!("{endpoint}/api/models/{repo}/revision/{}?blobs=true", encoded(revision, false));
        let what = format!("the list of files of {repo}");
        self.with_retries(&what, |client| {
            let mut answer = match client.request(&url, false, 0)? {
                Ok(answer) => answer,
                Err(again) => return Ok(Err(again)),
            };
            if let Some(again) = client.refusal(&answer, &what, revision)? {
                return Ok(Err(again));
            }
            match answer.body.with_config().limit(LISTING_BYTES).read_to_vec() {
                Ok(text) => match serde_json::from_slice(&text) {
                    Ok(value) => Ok(Ok(value)),
                    Err(_) => Err(not_a_hub(&client.hub.endpoint)),
                },
                Err(e) => Ok(Err(Again::because(e))),
            }
        })
    }

    /// Size and hash of a file, where the listing has none: the headers of its address.
    pub fn head(&self, commit: &str, rel: &str) -> std::result::Result<Entry, Failure> {
        let url = self.address(commit, rel);
        self.with_retries(rel, |client| {
            let answer = match client.request(&url, true, 0)? {
                Ok(answer) => answer,
                Err(again) => return Ok(Err(again)),
            };
            if let Some(again) = client.refusal(&answer, rel, commit)? {
                return Ok(Err(again));
            }
            let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string());
            let own_size = if (300..400).contains(&answer.status) { None } else { answer.header("content-length") };
            let size = answer.header("x-linked-size").or(own_size).and_then(|size| size.parse().ok());
            Ok(Ok(Entry { size, etag: etag.filter(|etag| is_hash(etag)) }))
        })
    }

    /// Where a file is.
    pub fn address(&self, commit: &str, rel: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.hub.endpoint, self.repo, encoded(rel, true))
    }

    /// One request; redirects are followed, and no host but the endpoint's sees the token. With `head`, only those are followed
    /// that stay on the host and say nothing of the file (which the Hub itself does, and a store of files does not).
    pub fn request(&self, url: &str, head: bool, offset: u64) -> Attempt<Answer> {
        check_interrupted()?;
        let endpoint = origin(&self.hub.endpoint);
        let mut url = url.to_string();
        for _ in 0..=REDIRECTS {
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = self.hub.token.as_ref().filter(|_| origin(&url) == endpoint) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if offset > 0 {
                request = request.header("Range", format!("bytes={offset}-"));
            }
            let (parts, body) = match request.call() {
                Ok(response) => response.into_parts(),
                Err(error) => return self.no_answer(&url, error).map(Err),
            };
            self.reached.set(true);
            let answer = Answer { status: parts.status.as_u16(), headers: parts.headers, body };
            let next = match answer.header("location").filter(|_| [301, 302, 303, 307, 308].contains(&answer.status)) {
                Some(location) => joined(&url, location),
                None => return Ok(Ok(answer)),
            };
            let Some(next) = next.filter(|next| !(url.starts_with("https://") && next.starts_with("http://"))) else {
                let what = format!("{url} leads to an address that is not followed");
                return Err(Error::Hub(what));
            };
            if head && (origin(&next) != origin(&url) || answer.header("x-linked-etag").is_some()) {
                return Ok(Ok(answer));
            }
            url = next;
        }
        Err(Error::Hub(format!("{url}: redirected more than {REDIRECTS} times; check HF_ENDPOINT and the proxy")))
    }

    /// What it means that a request brought no answer.
    fn no_answer(&self, url: &str, error: ureq::Error) -> Result<Again> {
        let place = origin(url).map_or_else(|| url.to_string(), |(scheme, host, _)| format!("{scheme}://{host}"));
        match error {
            ureq::Error::HostNotFound => Ok(Again::because(format!("{place}: no such host, or no network"))),
            ureq::Error::Timeout(_) => {
                Ok(Again::because(format!("{place}: no answer within {} s", self.hub.patience.as_secs_f32())))
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => Err(Error::Hub(format!(
                "{url}: not a web address ({error}); check HF_ENDPOINT and the proxy's variables"
            ))),
            // what the system's resolver says
            ureq::Error::Io(e) if e.to_string().contains("lookup") => {
                Ok(Again::because(format!("{place}: no such host, or no network")))
            }
            ureq::Error::Io(e) if !e.to_string().contains("certificate") => Ok(Again::because(format!("{place}: {e}"))),
            error @ (ureq::Error::Io(_) | ureq::Error::Tls(_) | ureq::Error::Rustls(_)) => {
                let hint = "if a proxy here replaces certificates, set SSL_CERT_FILE to a file with its own";
                let again = Again::because(format!("{place}: no trusted connection: {error}; {hint}"));
                Ok(Again { not_soon: true, ..again })
            }
            error => Ok(Again::because(format!("{place}: {error}"))),
        }
    }

    /// What an answer that is neither content nor redirect means: another try, or an error that says what to do.
    pub fn refusal(&self, answer: &Answer, what: &str, revision: &str) -> Result<Option<Again>> {
        let (endpoint, repo, status) = (&self.hub.endpoint, self.repo, answer.status);
        let reason = answer.header("x-error-message").map_or_else(String::new, |text| format!(": {text}"));
        let said = format!("{endpoint} answers {status}{reason}");
        let page = format!("{endpoint}/{repo}");
        let error = match (status, answer.header("x-error-code").unwrap_or_default()) {
            (200..=399, _) => return Ok(None),
            (408 | 429 | 500 | 502 | 503 | 504, _) => {
                let after = answer.header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
                let after = after.map(Duration::from_secs);
                let not_soon = after.is_some_and(|after| after > LONGEST_WAIT);
                let when = after
                    .filter(|_| not_soon)
                    .map_or(String::new(), |after| format!(" and asks to come back in {} s", after.as_secs()));
                return Ok(Some(Again { why: format!("{said}{when}"), after, not_soon }));
            }
            (401 | 403, "GatedRepo") if self.hub.token.is_none() => format!(
                "{repo} is gated ({said}): accept its licence at {page}, and set HF_TOKEN to a token of that account"
            ),
            (401 | 403, "GatedRepo") => format!(
                "{repo} is gated ({said}): accept its licence at {page} with the account that the token in use belongs to, and \
                 see that the token may read gated models"
            ),
            (401, _) if self.hub.token.is_none() => format!(
                "{repo}: there is no such folder here, and no public model of this name ({said}); check its spelling, and if it is private (or gated, see \
                 {page}), set HF_TOKEN to a token that may read it"
            ),
            (401, _) => format!(
                "{repo}: there is no such folder here, and no such model, or the token in use is not valid ({said}); check the name's spelling and HF_TOKEN"
            ),
            (403, _) => {
                format!("{repo}: access refused ({said}); see {page}, and check what the token in HF_TOKEN may read")
            }
            (404, "RevisionNotFound") => {
                format!("{repo} has no revision {revision:?} ({said}); see {page}/refs, or leave --revision out")
            }
            (404, "EntryNotFound") => {
                format!("{repo} has no file {what} at {revision} ({said}); choose another --revision or model")
            }
            (404, _) => format!(
                "{repo}: there is no such folder here, and no such model ({said}); check its spelling at {page}"
            ),
            _ => format!("{repo}: {said} when asked for {what}; see {page}, and check HF_ENDPOINT if it is set"),
        };
        Err(Error::Hub(error))
    }

    /// Tries until there is an answer, or it is no use.
    fn with_retries<T>(&self, what: &str, attempt: impl Fn(&Self) -> Attempt<T>) -> std::result::Result<T, Failure> {
        let mut tried = 0;
        loop {
            tried += 1;
            let again = match attempt(self)? {
                Ok(done) => return Ok(done),
                Err(again) => again,
            };
            if self.is_enough(tried, &again) {
                let plural = if tried == 1 { "attempt" } else { "attempts" };
                return Err(Failure::Unreachable(format!("{} ({tried} {plural} at {what})", again.why)));
            }
            self.wait(tried, &again)?;
        }
    }

    /// Whether no further attempt is made.
    pub fn is_enough(&self, tried: u32, again: &Again) -> bool {
        again.not_soon || tried >= if self.reached.get() { ATTEMPTS } else { FIRST_ATTEMPTS }
    }

    /// Waits before the next attempt; `tried` were made.
    pub fn wait(&self, tried: u32, again: &Again) -> Result<()> {
        let wait = again.after.unwrap_or_else(|| self.hub.backoff * 2u32.pow(tried.clamp(1, 6) - 1));
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            check_interrupted()?;
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }

    /// The end of a message about content that did not come.
    pub fn gave_up(&self, what: &str, tried: u32, again: &Again) -> Error {
        let plural = if tried == 1 { "attempt" } else { "attempts" };
        Error::Hub(format!(
            "{what} could not be fetched: {} ({tried} {plural}). What has come is kept; run again to go on from there",
            again.why
        ))
    }
}

/// Whom to trust: Mozilla's list, or what the user names.
fn roots(hub: &Hub) -> Result<RootCerts> {
    let Some(path) = &hub.certificates else { return Ok(RootCerts::WebPki) };
    let text = std::fs::read(path).map_err(Error::io(path))?;
    let certificates = parse_pem(&text).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    if certificates.is_empty() {
        return Err(Error::file(path, "has no certificate (PEM); correct or unset SSL_CERT_FILE"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// What is said of an answer that no Hub gives.
pub(super) fn not_a_hub(endpoint: &str) -> Error {
    Error::Hub(format!(
        "{endpoint} does not answer as the Hub does (a page to log in, a proxy?); check the network and HF_ENDPOINT"
    ))
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Where a redirect leads.
fn joined(base: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_string());
    }
    let (scheme, rest) = base.split_once("://")?;
    let host = rest.split('/').next()?;
    match location.strip_prefix("//") {
        Some(other) => Some(format!("{scheme}://{other}")),
        None => location.starts_with('/').then(|| format!("{scheme}://{host}{location}")),
    }
}

/// Text as a part of an address; slashes stay where `path`.
fn encoded(text: &str, path: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            b'/' if path => encoded.push('/'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_only_with_its_scheme_and_port() {
        assert_eq!(origin("https://huggingface.co/x"), origin("https://HuggingFace.co:443"));
        for other in ["http://huggingface.co", "https://huggingface.co:8443", "https://huggingface.co.evil.org/"] {
            assert_ne!(origin("https://huggingface.co"), origin(other), "{other}");
        }
    }

    #[test]
    fn redirects_and_names_become_addresses() {
        let base = "https://hub.co/a/b?x";
        assert_eq!(joined(base, "/api/x"), Some("https://hub.co/api/x".into()));
        assert_eq!(joined(base, "//cdn.co/x"), Some("https://cdn.co/x".into()));
        assert_eq!(joined(base, "http://other/x"), Some("http://other/x".into()));
        assert_eq!(joined(base, "file:x"), None);
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encoded("a b/ü.json", true), "a%20b/%C3%BC.json");
    }
}
