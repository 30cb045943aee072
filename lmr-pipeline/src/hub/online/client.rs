//! Requests to the Hub: which addresses, who is shown the token, what is tried again, and what an error is.

use std::io::Read;
use std::time::Duration;

use lmr_plugin::run::Observer;
use reqwest::blocking::Response;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::hub::{HubError, Patience, Refusal};

/// Redirects followed from one request; the Hub needs two.
const MAX_HOPS: usize = 5;
/// Characters shown of what a server says.
const MAX_SAID: usize = 200;

/// A connection to one endpoint.
pub struct Client<'a> {
    http: reqwest::blocking::Client,
    endpoint: Url,
    token: Option<&'a str>,
    patience: Patience,
    pub observer: &'a dyn Observer,
}

/// Why a request gave nothing.
#[derive(Debug)]
pub enum Fault {
    /// It may go better next time, perhaps only after some time.
    Passing(Refusal, Option<Duration>),
    /// It will not.
    Lasting(Refusal),
    /// Not the Hub's fault: the user asked to stop, or the disk is full.
    Here(HubError),
}

impl Fault {
    /// What it is to whoever asked for something.
    pub fn about(self, error: impl FnOnce(Refusal) -> HubError) -> HubError {
        match self {
            Self::Passing(reason, _) | Self::Lasting(reason) => error(reason),
            Self::Here(error) => error,
        }
    }

    pub fn malformed(what: impl Into<String>) -> Self {
        Self::Lasting(Refusal::Malformed(what.into()))
    }
}

/// Counts what failed in a row.
pub struct Tries<'a> {
    patience: Patience,
    failed: u32,
    observer: &'a dyn Observer,
}

impl Tries<'_> {
    /// Waits before the next try; gives the fault back if there is none.
    pub fn wait_after(&mut self, fault: Fault) -> Result<(), Fault> {
        let Fault::Passing(reason, wanted) = fault else { return Err(fault) };
        self.failed += 1;
        let wait = wanted.unwrap_or(self.patience.delay * 2u32.saturating_pow(self.failed - 1));
        if self.failed >= self.patience.tries || wait > self.patience.longest {
            return Err(Fault::Passing(reason, wanted));
        }
        tracing::warn!("{reason}; trying again in {:.1} s", wait.as_secs_f64());
        pause(wait, self.observer).map_err(Fault::Here)
    }

    /// Something came after all.
    pub fn went_forward(&mut self) {
        self.failed = 0;
    }
}

impl<'a> Client<'a> {
    /// Nothing is sent yet.
    pub fn new(
        endpoint: &str,
        token: Option<&'a str>,
        patience: Patience,
        observer: &'a dyn Observer,
    ) -> Result<Self, Refusal> {
        let endpoint = parse_endpoint(endpoint)?;
        let builder = reqwest::blocking::Client::builder()
            .user_agent(concat!("lmr/", env!("CARGO_PKG_VERSION")))
            // Redirects are followed here, where it is known who may see the token.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(patience.connect)
            // For each read, not for the whole body.
            .timeout(patience.stall);
        let builder = if endpoint.scheme() == "http" { builder.no_proxy() } else { builder };
        let http = builder.build().map_err(|error| Refusal::Unreachable(cause(&error)))?;
        Ok(Self { http, endpoint, token, patience, observer })
    }

    /// An address below the endpoint; every part is escaped.
    pub fn url<'p>(&self, parts: impl IntoIterator<Item = &'p str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        url
    }

    /// Whether an address is the endpoint's host, port and scheme.
    pub fn is_endpoint(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin() && has_no_user(url)
    }

    /// A new count of what fails in a row.
    pub fn tries(&self) -> Tries<'a> {
        Tries { patience: self.patience, failed: 0, observer: self.observer }
    }

    /// Tries until something comes, or nothing can be hoped for.
    pub fn patiently<T>(&self, attempt: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut tries = self.tries();
        loop {
            match attempt() {
                Err(fault) => tries.wait_after(fault)?,
                result => return result,
            }
        }
    }

    /// The first answer about a file that says what its bytes are. A large one is a redirect to elsewhere, which is not
    /// followed; one to another path of the Hub, where a repository has a new name, is.
    pub fn head(&self, url: &Url) -> Result<HeaderMap, Fault> {
        let mut url = url.clone();
        for _ in 0..=MAX_HOPS {
            let response = self.send(Method::HEAD, &url, None)?;
            let headers = response.headers();
            let is_complete = headers.contains_key("x-linked-etag") && headers.contains_key("x-linked-size");
            if !response.status().is_redirection() || is_complete {
                return Ok(headers.clone());
            }
            url = self.next(&url, headers)?;
            if !self.is_endpoint(&url) {
                return Err(Fault::malformed("does not say what the file is (no `X-Linked-Etag`)"));
            }
        }
        Err(Fault::malformed("redirects again and again"))
    }

    /// An answer with a body, from `start` on if that is not 0.
    pub fn get(&self, url: &Url, start: u64) -> Result<Response, Fault> {
        let mut url = url.clone();
        for _ in 0..=MAX_HOPS {
            let response = self.send(Method::GET, &url, (start > 0).then_some(start))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = self.next(&url, response.headers())?;
        }
        Err(Fault::malformed("redirects again and again"))
    }

    /// A small answer in JSON, and its headers.
    pub fn json<T: DeserializeOwned>(&self, url: &Url, limit: u64) -> Result<(T, HeaderMap), Fault> {
        self.patiently(|| {
            let response = self.get(url, 0)?;
            let headers = response.headers().clone();
            let mut body = Vec::new();
            response.take(limit + 1).read_to_end(&mut body).map_err(|error| broken(&error))?;
            if body.len() as u64 > limit {
                return Err(Fault::malformed(format!("has more than {limit} bytes")));
            }
            // serde's sentence would quote what the server says.
            let body = serde_json::from_slice(&body).map_err(|_| Fault::malformed("cannot be read"))?;
            Ok((body, headers))
        })
    }

    /// One request; an error status is an error.
    fn send(&self, method: Method, url: &Url, start: Option<u64>) -> Result<Response, Fault> {
        if self.observer.cancelled() {
            return Err(Fault::Here(HubError::Interrupted));
        }
        let mut request = self.http.request(method, url.clone());
        // Compressed, a body has neither the length nor the offsets of the file.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(start) = start {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        let shown = self.token.filter(|_| self.is_endpoint(url));
        if let Some(token) = shown {
            let mut value =
                HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Fault::Lasting(Refusal::Token))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let response = request.send().map_err(|error| Fault::Passing(Refusal::Unreachable(cause(&error)), None))?;
        let status = response.status();
        if status.is_success() || status.is_redirection() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        Err(refusal(status, response.headers(), shown, self.token))
    }

    /// Where a redirect leads, if it may be followed.
    fn next(&self, from: &Url, headers: &HeaderMap) -> Result<Url, Fault> {
        let location = text(headers, "location").and_then(|location| from.join(location).ok());
        let Some(to) = location else { return Err(Fault::malformed("redirects nowhere")) };
        if may_follow(from, &to) {
            return Ok(to);
        }
        let shown = format!("{}://{}", to.scheme(), to.host_str().unwrap_or_default());
        Err(Fault::Lasting(Refusal::Redirect(shorten(&shown))))
    }
}

/// Waits, unless the user asks to stop.
pub fn pause(duration: Duration, observer: &dyn Observer) -> Result<(), HubError> {
    const SLICE: Duration = Duration::from_millis(50);
    let end = std::time::Instant::now() + duration;
    loop {
        if observer.cancelled() {
            return Err(HubError::Interrupted);
        }
        match end.checked_duration_since(std::time::Instant::now()) {
            None => return Ok(()),
            Some(rest) => std::thread::sleep(rest.min(SLICE)),
        }
    }
}

/// A header as text.
pub fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// A connection that broke or stalled while an answer came.
pub fn broken(error: &std::io::Error) -> Fault {
    Fault::Passing(Refusal::Unreachable(cause(error)), None)
}

/// Answers steer where files are written, so they must come over a protected line or from this machine.
fn parse_endpoint(endpoint: &str) -> Result<Url, Refusal> {
    let url = Url::parse(endpoint).map_err(|_| Refusal::Endpoint)?;
    let protected = url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url));
    if !protected || !has_no_user(&url) || url.query().is_some() || url.fragment().is_some() {
        return Err(Refusal::Endpoint);
    }
    Ok(url)
}

/// Only from http on this machine to http on this machine; otherwise to https alone.
fn may_follow(from: &Url, to: &Url) -> bool {
    let local = |url: &Url| url.scheme() == "http" && is_loopback(url);
    has_no_user(to) && (to.scheme() == "https" || (local(from) && local(to)))
}

fn has_no_user(url: &Url) -> bool {
    url.username().is_empty() && url.password().is_none()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// What an error status means. `shown` is the token that was sent; `token` the one that must not be repeated.
fn refusal(status: StatusCode, headers: &HeaderMap, shown: Option<&str>, token: Option<&str>) -> Fault {
    let said = text(headers, "x-error-message").unwrap_or_default();
    let reason = match (status.as_u16(), text(headers, "x-error-code").unwrap_or_default()) {
        (401 | 403, "GatedRepo") => Refusal::Gated,
        (401 | 404, "RepoNotFound") if shown.is_none() => Refusal::Login,
        (404, "RepoNotFound") => Refusal::NoRepository,
        (_, "RevisionNotFound") => Refusal::NoRevision,
        (_, "EntryNotFound") => Refusal::NoFile,
        (401, _) if said.starts_with("Invalid credentials") => Refusal::Token,
        (401, _) => Refusal::Login,
        (403, _) if shown.is_some() => Refusal::Forbidden,
        (404 | 410, _) => Refusal::Nothing,
        (429, _) => {
            let wait = text(headers, "retry-after").and_then(|seconds| seconds.trim().parse().ok());
            let wait = wait.map(Duration::from_secs);
            return Fault::Passing(Refusal::RateLimited(wait), wait);
        }
        (status, _) => {
            // It may repeat what it was sent, or where: neither a token nor a signed address is shown.
            let said = token.map_or(said.to_owned(), |token| said.replace(token, "…"));
            let said = if said.is_empty() || said.contains("://") { String::new() } else { shorten(&said) };
            let said = if said.is_empty() { said } else { format!(" (\"{said}\")") };
            let reason = Refusal::Status { status, said };
            if matches!(status, 408 | 500 | 502..=504) {
                return Fault::Passing(reason, None);
            }
            reason
        }
    };
    Fault::Lasting(reason)
}

/// What a server says, so that it can be printed.
pub fn shorten(said: &str) -> String {
    said.chars().take(MAX_SAID).collect::<String>().escape_debug().to_string()
}

/// The innermost cause: the outer ones repeat the address.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = inner(cause) {
        cause = next;
    }
    // One of reqwest's own would show the address.
    if cause.is::<reqwest::Error>() { "the transfer broke off".to_owned() } else { shorten(&cause.to_string()) }
}

/// `io::Error` hides the error it was made of from `source`.
fn inner<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e (dyn std::error::Error + 'static)> {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://huggingface.co", true)]
    #[case("https://huggingface.co/", true)]
    #[case("http://localhost:8000", true)]
    #[case("http://127.0.0.1:8000/hub", true)]
    #[case("http://[::1]:8000", true)]
    #[case("http://huggingface.co", false)]
    #[case("http://localhost.example.org", false)]
    #[case("http://localhost:80@example.org", false)]
    #[case("https://user:password@example.org", false)]
    #[case("https://example.org/?x=1", false)]
    #[case("ftp://localhost", false)]
    #[case("localhost:8000", false)]
    #[case("", false)]
    fn endpoints(#[case] endpoint: &str, #[case] good: bool) {
        assert_eq!(parse_endpoint(endpoint).is_ok(), good);
    }

    #[rstest]
    #[case("https://huggingface.co/a", "https://cdn.example.org/b", true)]
    #[case("https://huggingface.co/a", "http://cdn.example.org/b", false)]
    #[case("https://huggingface.co/a", "http://127.0.0.1/b", false)]
    #[case("http://127.0.0.1:1/a", "http://127.0.0.1:2/b", true)]
    #[case("http://127.0.0.1:1/a", "http://example.org/b", false)]
    #[case("http://127.0.0.1:1/a", "https://example.org/b", true)]
    #[case("https://huggingface.co/a", "https://user@example.org/b", false)]
    #[case("https://huggingface.co/a", "file:///etc/passwd", false)]
    fn redirects(#[case] from: &str, #[case] to: &str, #[case] good: bool) {
        assert_eq!(may_follow(&Url::parse(from).unwrap(), &Url::parse(to).unwrap()), good);
    }

    /// Control characters do not get this far: they are not part of a header's text.
    #[rstest]
    #[case("go \"away\"", " (\"go \\\"away\\\"\")")]
    #[case("you sent hf_secret", " (\"you sent …\")")]
    #[case("ask https://cdn.example.org/x?signature=s", "")]
    #[case(&"long ".repeat(1000), &format!(" (\"{}\")", "long ".repeat(40)))]
    fn what_a_server_says_is_harmless(#[case] message: &str, #[case] shown: &str) {
        let name = header::HeaderName::from_static("x-error-message");
        let headers = HeaderMap::from_iter([(name, HeaderValue::from_str(message).unwrap())]);
        let Fault::Lasting(reason) = refusal(StatusCode::BAD_REQUEST, &headers, None, Some("hf_secret")) else {
            panic!("a 400 passes");
        };
        assert_eq!(reason, Refusal::Status { status: 400, said: shown.to_owned() });
    }
}
