//! Files of data set repositories on the Hugging Face Hub: from the local cache, or downloaded into it.
//!
//! The cache is the one Python shares. A file that is there is read without a request. What is downloaded is verified
//! before it is used, because the client checks neither the status nor the length nor the digest of what it stores: a
//! "503" page would otherwise be served as the file for ever.
//!
//! A branch or tag can move, so it is resolved to a commit first, and all files asked for together come from that one.

pub(crate) mod names;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};

use hf_hub::repository::RepoTypeDataset;
use hf_hub::{HFClient, HFError, HFRepositorySync};

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

/// Files of a data set repository that belong together.
#[derive(Debug, Clone, Copy)]
pub struct RemoteFiles<'a> {
    /// The repository, `owner/name`.
    pub repo: &'a str,
    /// A commit (40 lower-case hexadecimal digits), or the name of a branch or tag.
    pub revision: &'a str,
    /// The files.
    pub files: &'a [RemoteFile<'a>],
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct RemoteFile<'a> {
    /// The path in the repository.
    pub path: &'a str,
    /// The SHA-256 its bytes must have, where it is known.
    pub sha256: Option<&'a str>,
}

/// Files that are now on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFiles {
    /// The commit they are from: the one asked for, or the one the branch or tag was at.
    pub commit: String,
    /// The files, in the order asked for.
    pub files: Vec<HubFile>,
}

/// One of them.
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
    /// No file was asked for, or a repository, revision or path that must not become part of a path or URL.
    #[error("{what}: {fault}")]
    Name {
        /// Which of them.
        what: &'static str,
        /// What was found and what was expected.
        fault: String,
    },
    /// The file is not in the cache, and downloads are off.
    #[error(
        "{file} is missing: looked for {looked}, and HF_HUB_OFFLINE forbids downloads; unset HF_HUB_OFFLINE, or run \
         `{command}` where the network is, or set `path` to a folder with the file"
    )]
    Offline {
        /// The file.
        file: String,
        /// Where it would be, and which file says the commit of a branch or tag.
        looked: String,
        /// What fetches it.
        command: String,
    },
    /// The Hub or the network did not say which commit a branch or tag is at.
    #[error("the commit of `{revision}` in data set repository {repo} is not known: {reason}")]
    Unresolved {
        /// The repository.
        repo: String,
        /// The branch or tag.
        revision: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The cache's note of the commit a branch or tag is at does not hold one.
    #[error("{}: {fault}; remove it, then run again", .path.display())]
    Ref {
        /// The file `refs/<name>`.
        path: PathBuf,
        /// What was found and what was expected.
        fault: String,
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

    /// Files of a data set repository, all from one commit: from the cache, otherwise downloaded into it; verified in
    /// either case where a digest is known.
    ///
    /// A branch or tag is at the commit the cache notes, if all files are there, and otherwise at the one the Hub says
    /// now. The cache notes that one once it has the files.
    pub fn dataset_files(&self, wanted: &RemoteFiles) -> Result<HubFiles, HubError> {
        let name = |what, result: Result<(), String>| result.map_err(|fault| HubError::Name { what, fault });
        name("repo", names::check_repo(wanted.repo))?;
        name("revision", names::check_revision(wanted.revision))?;
        if wanted.files.is_empty() {
            name("files", Err("found none, expected at least one".to_owned()))?;
        }
        for file in wanted.files {
            name("path", names::check_path(file.path))?;
        }
        if names::check_commit(wanted.revision).is_ok() {
            return self.files_at(wanted, wanted.revision);
        }
        let note = self.folder(wanted.repo).join("refs").join(wanted.revision);
        let noted = read_note(&note)?;
        let missing = match &noted {
            Some(commit) => wanted.files.iter().find(|file| !self.place(wanted.repo, commit, file).is_file()),
            None => wanted.files.first(),
        };
        match (noted, missing) {
            (Some(commit), None) => {
                tracing::info!(repo = wanted.repo, "{} is {commit} in the cache", wanted.revision);
                self.files_at(wanted, &commit)
            }
            (noted, Some(file)) if self.offline => {
                let looked = match &noted {
                    Some(commit) => {
                        let place = self.place(wanted.repo, commit, file);
                        format!("{} (the commit in {})", place.display(), note.display())
                    }
                    None => format!("the commit in {}", note.display()),
                };
                Err(offline(wanted, file, looked))
            }
            _ => {
                let commit = self.resolve(wanted)?;
                tracing::info!(repo = wanted.repo, "{} is {commit}", wanted.revision);
                let found = self.files_at(wanted, &commit)?;
                // Not before: an earlier note may belong to files that are all there.
                if let Err(error) = write_note(&note, &commit) {
                    tracing::warn!(path = %note.display(), %error, "the commit cannot be noted");
                }
                Ok(found)
            }
        }
    }

    /// All the files, at a commit.
    fn files_at(&self, wanted: &RemoteFiles, commit: &str) -> Result<HubFiles, HubError> {
        let at_commit = RemoteFiles { revision: commit, ..*wanted };
        let get = |file| {
            let cached = self.place(wanted.repo, commit, file);
            if cached.is_file() {
                let hint = "remove it (and what it links to), then run again to download it";
                return verify(&describe(&at_commit, file), file, cached, hint);
            }
            if self.offline {
                return Err(offline(&at_commit, file, cached.display().to_string()));
            }
            self.download(&at_commit, file)
        };
        Ok(HubFiles { commit: commit.to_owned(), files: wanted.files.iter().map(get).collect::<Result<_, _>>()? })
    }

    /// Where the cache keeps a repository.
    fn folder(&self, repo: &str) -> PathBuf {
        self.cache.join(format!("datasets--{}", repo.replace('/', "--")))
    }

    /// Where the cache keeps a file.
    fn place(&self, repo: &str, commit: &str, file: &RemoteFile) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit).join(file.path)
    }

    /// Asks the Hub which commit a branch or tag is at.
    fn resolve(&self, wanted: &RemoteFiles) -> Result<String, HubError> {
        let ask = || {
            let info = self.repository(wanted.repo)?.info().revision(wanted.revision).send().map_err(explain)?;
            let commit = info.sha.ok_or("the Hub's answer is incomplete (no `sha`)")?;
            names::check_commit(&commit).map_err(|fault| format!("the Hub's answer is malformed: {fault}"))?;
            Ok(commit)
        };
        ask().map_err(|reason| HubError::Unresolved {
            repo: wanted.repo.to_owned(),
            revision: wanted.revision.to_owned(),
            reason,
        })
    }

    /// The repository on the Hub.
    fn repository(&self, repo: &str) -> Result<HFRepositorySync<RepoTypeDataset>, String> {
        check_endpoint(&self.endpoint)?;
        let builder = HFClient::builder().endpoint(&self.endpoint).cache_dir(&self.cache);
        let builder = match &self.token {
            Some(token) => builder.token(token),
            None => builder,
        };
        let (owner, name) = hf_hub::split_id(repo);
        Ok(builder.build_sync().map_err(explain)?.dataset(owner, name))
    }

    /// Downloads and verifies; a file that fails is removed, so that it cannot be taken for the real one later.
    fn download(&self, at_commit: &RemoteFiles, file: &RemoteFile) -> Result<HubFile, HubError> {
        let RemoteFiles { repo, revision, .. } = *at_commit;
        let described = describe(at_commit, file);
        let refuse = |reason: String| HubError::Download { file: described.clone(), reason };
        let repository = self.repository(repo).map_err(refuse)?;
        tracing::info!(repo, revision, path = file.path, "downloading");
        let fetch = |force: bool| {
            for _ in 0..LOCK_ATTEMPTS {
                let request = repository.download_file().filename(file.path).revision(revision);
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
            match verify(&described, file, path.clone(), "what was downloaded has been removed; try again later") {
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

/// A file in messages.
fn describe(wanted: &RemoteFiles, file: &RemoteFile) -> String {
    format!("`{}` of data set repository {} at {}", file.path, wanted.repo, wanted.revision)
}

/// Nothing more can be done without the network. The advice fetches all files, as each may be missing.
fn offline(wanted: &RemoteFiles, file: &RemoteFile, looked: String) -> HubError {
    let paths = wanted.files.iter().map(|file| file.path).collect::<Vec<_>>().join(" ");
    let command = format!("hf download --repo-type dataset {} {paths} --revision {}", wanted.repo, wanted.revision);
    HubError::Offline { file: describe(wanted, file), looked, command }
}

/// The commit the cache notes for a branch or tag.
fn read_note(path: &Path) -> Result<Option<String>, HubError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(HubError::Io { path: path.to_owned(), source }),
    };
    let text = String::from_utf8_lossy(&bytes);
    let commit = text.trim();
    names::check_commit(commit).map_err(|fault| HubError::Ref { path: path.to_owned(), fault })?;
    Ok(Some(commit.to_owned()))
}

/// Notes the commit of a branch or tag, whole or not at all: Python and other runs read it meanwhile.
fn write_note(path: &Path, commit: &str) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Through `File`, so that others may read it as they may read the rest of the cache.
    let mut file = tempfile::Builder::new().make_in(folder, |path| std::fs::File::create_new(path))?;
    file.write_all(commit.as_bytes())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Hashes a cached file and compares with the digest the caller knows, or the one the cache records.
fn verify(described: &str, file: &RemoteFile, path: PathBuf, hint: &'static str) -> Result<HubFile, HubError> {
    let (sha256, bytes) = sha256_file(&path).map_err(|source| HubError::Io { path: path.clone(), source })?;
    match file.sha256.map(str::to_owned).or_else(|| recorded_digest(&path)) {
        Some(expected) if expected != sha256 => {
            Err(HubError::Digest { file: described.to_owned(), path, found: sha256, expected, hint })
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
            "the Hub has no such repository, revision or file; check all three".to_owned()
        }
        HFError::RateLimited { .. } => "the Hub wants fewer requests; wait a while, or set HF_TOKEN".to_owned(),
        HFError::Http { context } => format!("the Hub answered {}", context.status),
        HFError::Request { source, .. } if source.is_decode() => {
            "the Hub's answer cannot be read; try again later, and check HF_ENDPOINT".to_owned()
        }
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
