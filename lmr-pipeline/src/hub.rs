//! Files of data set repositories on the Hugging Face Hub: from the local cache, or downloaded into it.
//!
//! The cache is the one Python shares. A file that is there is read without a request. What is downloaded is verified
//! before it is used, because the client checks neither the status nor the length nor the digest of what it stores: a
//! "503" page would otherwise be served as the file for ever.

pub(crate) mod names;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use hf_hub::{HFClient, HFError};

use crate::datasets::sha256_file;

/// How often a download waits (ten seconds each time) for another process that fetches the same file.
const LOCK_ATTEMPTS: usize = 60;

/// Where files are cached and where missing ones come from.
#[derive(Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
}

impl std::fmt::Debug for Hub {
    /// Shows whether there is a token, never the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, token, offline } = self;
        f.debug_struct("Hub")
            .field("cache", cache)
            .field("endpoint", endpoint)
            .field("token", &token.as_ref().map(|_| "<hidden>"))
            .field("offline", offline)
            .finish()
    }
}

/// One file of a data set repository.
#[derive(Debug, Clone, Copy)]
pub struct RemoteFile<'a> {
    /// The repository, `owner/name`.
    pub repo: &'a str,
    /// The commit, 40 hexadecimal digits.
    pub revision: &'a str,
    /// The path in the repository.
    pub path: &'a str,
    /// The SHA-256 its bytes must have, where it is known.
    pub sha256: Option<&'a str>,
}

impl std::fmt::Display for RemoteFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` of data set repository {} at {}", self.path, self.repo, self.revision)
    }
}

/// A file that is now on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Where it is.
    pub path: PathBuf,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// How many bytes it has.
    pub bytes: u64,
}

/// The cache or the Hub did not give a file.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A repository, commit or path that must not become part of a path or URL.
    #[error("{what}: {fault}")]
    Name {
        /// Which of them.
        what: &'static str,
        /// What was found and what was expected.
        fault: String,
    },
    /// The file is not in the cache, and downloads are off.
    #[error(
        "{file} is missing: looked for {}, and HF_HUB_OFFLINE forbids downloads; unset HF_HUB_OFFLINE, or run \
         `{command}` where the network is, or set `path` to a folder with the file",
        .looked.display()
    )]
    Offline {
        /// The file.
        file: String,
        /// Where it would be.
        looked: PathBuf,
        /// What fetches it.
        command: String,
    },
    /// The Hub or the network refused.
    #[error("{file} could not be downloaded: {reason}")]
    Download {
        /// The file.
        file: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The bytes are not those of the file.
    #[error("{file} is damaged: {} has SHA-256 {found}, expected {expected}; {hint}", .path.display())]
    Digest {
        /// The file.
        file: String,
        /// Where the bytes are or were.
        path: PathBuf,
        /// Their SHA-256.
        found: String,
        /// The SHA-256 they should have.
        expected: String,
        /// What to do.
        hint: &'static str,
    },
    /// A file of the cache could not be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl Hub {
    /// What the environment says, by the variables Python's client reads as well.
    ///
    /// The cache is `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` or
    /// `~/.cache/huggingface/hub`, the first that is set; `HF_ENDPOINT` is the Hub; `HF_TOKEN`, the file
    /// `HF_TOKEN_PATH` names, or `$HF_HOME/token` is the token; `HF_HUB_OFFLINE=1` forbids downloads.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// As [`Hub::from_env`], with variables from elsewhere.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let get = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let folder = |name: &str| get(name).map(PathBuf::from);
        let hf_home = folder("HF_HOME").unwrap_or_else(|| {
            let cache = folder("XDG_CACHE_HOME").unwrap_or_else(|| home.unwrap_or_default().join(".cache"));
            cache.join("huggingface")
        });
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        // Trimmed: with the newline a shell leaves in it, the client would silently send no token at all.
        let token = get("HF_TOKEN")
            .or_else(|| Some(std::fs::read_to_string(token_file).ok()?.trim().to_owned()))
            .filter(|token| !token.is_empty());
        let offline = get("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str()));
        Self {
            cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token,
            offline,
        }
    }

    /// A file of a data set repository: from the cache, otherwise downloaded into it; verified in either case where a
    /// digest is known.
    pub fn dataset_file(&self, file: &RemoteFile) -> Result<HubFile, HubError> {
        let name = |what, result: Result<(), String>| result.map_err(|fault| HubError::Name { what, fault });
        name("repo", names::check_repo(file.repo))?;
        name("revision", names::check_revision(file.revision))?;
        name("path", names::check_path(file.path))?;

        let folder = format!("datasets--{}", file.repo.replace('/', "--"));
        let cached = self.cache.join(folder).join("snapshots").join(file.revision).join(file.path);
        if cached.is_file() {
            return verify(file, cached, "remove it (and what it links to), then run again to download it");
        }
        if self.offline {
            let command =
                format!("hf download --repo-type dataset {} {} --revision {}", file.repo, file.path, file.revision);
            return Err(HubError::Offline { file: file.to_string(), looked: cached, command });
        }
        self.download(file)
    }

    /// Downloads and verifies; a file that fails is removed, so that it cannot be taken for the real one later.
    fn download(&self, file: &RemoteFile) -> Result<HubFile, HubError> {
        let refuse = |reason: String| HubError::Download { file: file.to_string(), reason };
        check_endpoint(&self.endpoint).map_err(refuse)?;
        let builder = HFClient::builder().endpoint(&self.endpoint).cache_dir(&self.cache);
        let builder = match &self.token {
            Some(token) => builder.token(token),
            None => builder,
        };
        let client = builder.build_sync().map_err(|error| refuse(explain(error)))?;
        let (owner, name) = hf_hub::split_id(file.repo);
        let repository = client.dataset(owner, name);
        tracing::info!(repo = file.repo, revision = file.revision, path = file.path, "downloading");
        let fetch = |force: bool| {
            for _ in 0..LOCK_ATTEMPTS {
                let request = repository.download_file().filename(file.path).revision(file.revision);
                match request.force_download(force).send() {
                    Err(HFError::CacheLockTimeout { .. }) => continue,
                    result => return result.map_err(|error| refuse(explain(error))),
                }
            }
            Err(refuse("another process has been fetching it for ten minutes".to_owned()))
        };
        let mut force = false;
        loop {
            let path = fetch(force)?;
            if file.sha256.is_none() && recorded_digest(&path).is_none() {
                discard(&path);
                return Err(refuse(
                    "the Hub names no SHA-256 to verify it by; give `sha256` in the descriptor".to_owned(),
                ));
            }
            match verify(file, path.clone(), "what was downloaded has been removed; try again later") {
                Err(error @ HubError::Digest { .. }) => {
                    discard(&path);
                    if force {
                        return Err(error);
                    }
                    // A passing fault of the server is the likeliest cause; once more, past the cache.
                    tracing::warn!(%error, "downloading once more");
                    force = true;
                }
                result => return result,
            }
        }
    }
}

/// Hashes a cached file and compares with the digest the caller knows, or the one the cache records.
fn verify(file: &RemoteFile, path: PathBuf, hint: &'static str) -> Result<HubFile, HubError> {
    let (sha256, bytes) = sha256_file(&path).map_err(|source| HubError::Io { path: path.clone(), source })?;
    match file.sha256.map(str::to_owned).or_else(|| recorded_digest(&path)) {
        Some(expected) if expected != sha256 => {
            Err(HubError::Digest { file: file.to_string(), path, found: sha256, expected, hint })
        }
        _ => Ok(HubFile { path, sha256, bytes }),
    }
}

/// The cache links a large file to a blob named by its SHA-256.
fn recorded_digest(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let name = target.file_name()?.to_str()?;
    names::is_hex(name, 64).then(|| name.to_owned())
}

/// Removes a bad download: the link, and the blob behind it.
fn discard(path: &Path) {
    for bad in [std::fs::canonicalize(path).ok(), Some(path.to_owned())].into_iter().flatten() {
        if let Err(error) = std::fs::remove_file(&bad)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %bad.display(), %error, "a damaged download could not be removed; remove it by hand");
        }
    }
}

/// Answers steer where files are written, so they must come over a protected line or from this machine.
fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let local = |rest: &str| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = match authority.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => authority.split(':').next().unwrap_or_default(),
        };
        // `localhost:x@elsewhere` is elsewhere.
        !authority.contains('@') && matches!(host, "localhost" | "127.0.0.1" | "::1")
    };
    if endpoint.starts_with("https://") || endpoint.strip_prefix("http://").is_some_and(local) {
        return Ok(());
    }
    Err("HF_ENDPOINT must begin with https:// (http:// only for this machine)".to_owned())
}

/// What went wrong, without URLs (they can be signed) and without bodies (they can be anything).
fn explain(error: HFError) -> String {
    match error {
        HFError::AuthRequired { .. } => {
            "the Hub wants a login, or there is no such repository; check its name, or set HF_TOKEN".to_owned()
        }
        HFError::Forbidden { .. } => {
            "the Hub refuses access with this token; ask for access on the repository's page".to_owned()
        }
        HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } | HFError::EntryNotFound { .. } => {
            "the Hub has no such repository, commit or file; check all three".to_owned()
        }
        HFError::RateLimited { .. } => "the Hub wants fewer requests; wait a while, or set HF_TOKEN".to_owned(),
        HFError::Http { context } => format!("the Hub answered {}", context.status),
        HFError::Request { source, .. } => {
            let source = source.without_url();
            let mut cause: &dyn std::error::Error = &source;
            while let Some(next) = cause.source() {
                cause = next;
            }
            format!("the Hub cannot be reached ({cause}); check the network and HF_ENDPOINT")
        }
        HFError::Io(source) => format!("the cache cannot be written ({source})"),
        HFError::MalformedResponse { what, .. } => format!("the Hub's answer is incomplete ({what})"),
        _ => "the transfer failed".to_owned(),
    }
}
