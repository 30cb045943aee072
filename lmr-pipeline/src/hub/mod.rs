//! Files of repositories on the Hugging Face Hub: from the local cache, or downloaded into it.
//!
//! The cache is the one Python shares. A file that is there is read without a request. Whatever a file is used for, its
//! bytes are verified first: against the digest by which the Hub names them, and against the one the caller knows.
//!
//! A branch or tag can move, so it is resolved to a commit first, and all files asked for together come from that one.
//!
//! The requests are made here and not by the `hf-hub` crate, which stores the body of an error as the file, verifies
//! neither length nor digest, trusts the names that headers give, and neither resumes nor gives up on a line that is dead.

mod cache;
mod checkpoint;
mod digest;
mod error;
mod expand;
pub(crate) mod names;
#[cfg(not(feature = "hub"))]
mod no_hub;
#[cfg(feature = "hub")]
mod online;
mod patience;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use lmr_plugin::run::Observer;

use cache::CachedRepository;
pub use checkpoint::{HubCheckpoint, RemoteCheckpoint};
pub use error::{HubError, Refusal};
use expand::expand;
#[cfg(not(feature = "hub"))]
use no_hub::Client;
#[cfg(feature = "hub")]
use online::Client;
#[cfg(all(test, feature = "hub-upload"))]
pub(crate) use online::Large;
#[cfg(feature = "hub-upload")]
pub(crate) use online::{Listed, UploadError, Writer};
pub use patience::Patience;

/// Where files are cached and where missing ones come from.
#[derive(Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    patience: Patience,
}

impl std::fmt::Debug for Hub {
    /// Shows whether there is a token, never the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, token, offline, patience } = self;
        f.debug_struct("Hub")
            .field("cache", cache)
            .field("endpoint", endpoint)
            .field("token", &token.as_ref().map(|_| "<hidden>"))
            .field("offline", offline)
            .field("patience", patience)
            .finish()
    }
}

/// What a repository is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// Files of a repository that belong together.
#[derive(Debug, Clone, Copy)]
pub struct RemoteFiles<'a> {
    /// What the repository is of.
    pub kind: RepoKind,
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
    /// The SHA-256 its bytes must have, where it is known; lower-case hexadecimal digits.
    pub sha256: Option<&'a str>,
    /// How many bytes it may have to be downloaded.
    pub max_bytes: u64,
}

/// Files that are now on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubFiles {
    /// The commit they are from: the one asked for, or the one the branch or tag was at.
    pub commit: String,
    /// The files, in the order asked for.
    pub files: Vec<HubFile>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubFile {
    /// Where it is.
    pub path: PathBuf,
    /// The SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// How many bytes it has.
    pub bytes: u64,
}

impl RepoKind {
    /// As it is in the cache and in the Hub's addresses.
    fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// A repository in messages.
    fn describe(self, repo: &str) -> String {
        match self {
            Self::Model => format!("model repository {repo}"),
            Self::Dataset => format!("data set repository {repo}"),
        }
    }

    /// The pipeline's key that names a local folder instead.
    fn local_key(self) -> &'static str {
        match self {
            Self::Model => "path",
            Self::Dataset => "root",
        }
    }
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
    ///
    /// In paths, `~` and `$VARIABLE` mean what they mean to Python's client.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let get = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let folder = |name: &str| get(name).map(|path| PathBuf::from(expand(&path, &variable, home.as_deref())));
        let hf_home = folder("HF_HOME").unwrap_or_else(|| {
            let home = || home.clone().unwrap_or_default();
            let cache = folder("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache"));
            cache.join("huggingface")
        });
        let token_file = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        // Trimmed: with the newline a shell leaves in it, the client would silently send no token at all.
        let token = get("HF_TOKEN")
            .or_else(|| Some(std::fs::read_to_string(token_file).ok()?.trim().to_owned()))
            .filter(|token| !token.is_empty());
        let forbidden = get("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str()));
        Self {
            cache: folder("HF_HUB_CACHE")
                .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            endpoint: get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token,
            offline: forbidden || !cfg!(feature = "hub"),
            patience: Patience::default(),
        }
    }

    /// Waits and tries as this says.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Whether nothing is downloaded: `HF_HUB_OFFLINE` forbids it, or this build has not the feature `hub`.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Files of a repository, all from one commit: from the cache, otherwise downloaded into it; verified in either case.
    ///
    /// A branch or tag is at the commit the cache notes, if all files are there, and otherwise at the one the Hub says
    /// now. The cache notes that one once it has the files. The observer sees every download, and stops it.
    pub fn files(&self, wanted: &RemoteFiles, observer: &dyn Observer) -> Result<HubFiles, HubError> {
        let (noted, missing) = self.look(wanted)?;
        match (noted, missing.first()) {
            (Some(commit), None) => {
                tracing::debug!(repo = wanted.repo, "{} is {commit} in the cache", wanted.revision);
                self.files_at(wanted, &commit, None)
            }
            (noted, Some(file)) if self.offline => Err(self.offline_error(wanted, file, noted.as_deref())),
            _ => {
                let client = self.client(observer).map_err(|reason| HubError::Download {
                    file: wanted.files.first().map(|file| describe(wanted, file)).unwrap_or_default(),
                    reason,
                })?;
                let commit = self.resolve(&client, wanted.kind, wanted.repo, wanted.revision)?;
                let found = self.files_at(wanted, &commit, Some(&client))?;
                // Not before: an earlier note may belong to files that are all there.
                self.note(wanted.kind, wanted.repo, wanted.revision, &commit);
                Ok(found)
            }
        }
    }

    /// The paths that [`Hub::files`] would have to download. Nothing is asked and no file is read.
    pub fn missing<'a>(&self, wanted: &RemoteFiles<'a>) -> Result<Vec<&'a str>, HubError> {
        Ok(self.look(wanted)?.1.iter().map(|file| file.path).collect())
    }

    /// Refuses files that are not in the cache where this build could not download them.
    pub(crate) fn check_build(&self, wanted: &RemoteFiles) -> Result<(), HubError> {
        let (noted, missing) = self.look(wanted)?;
        match missing.first() {
            Some(file) if !cfg!(feature = "hub") => Err(self.offline_error(wanted, file, noted.as_deref())),
            _ => Ok(()),
        }
    }

    /// The commit, as far as it is known without the Hub, and the files that are not in the cache. Refuses bad names.
    fn look<'a>(&self, wanted: &RemoteFiles<'a>) -> Result<(Option<String>, Vec<RemoteFile<'a>>), HubError> {
        check_names(wanted.repo, wanted.revision)?;
        let name = |what, result: Result<(), String>| result.map_err(|fault| HubError::Name { what, fault });
        if wanted.files.is_empty() {
            name("files", Err("found none, expected at least one".to_owned()))?;
        }
        for file in wanted.files {
            name("path", names::check_path(file.path))?;
        }
        let cached = self.cached(wanted.kind, wanted.repo);
        let commit = known_commit(&cached, wanted.revision)?;
        let is_missing = |file: &&RemoteFile| {
            commit.as_ref().is_none_or(|commit| !cached.snapshot(commit).join(file.path).is_file())
        };
        let missing = wanted.files.iter().filter(is_missing).copied().collect();
        Ok((commit, missing))
    }

    /// All the files, at a commit. Without a client, all of them are in the cache.
    fn files_at(&self, wanted: &RemoteFiles, commit: &str, client: Option<&Client>) -> Result<HubFiles, HubError> {
        let at_commit = RemoteFiles { revision: commit, ..*wanted };
        let get = |file| self.file_at(&at_commit, file, client);
        Ok(HubFiles { commit: commit.to_owned(), files: wanted.files.iter().map(get).collect::<Result<_, _>>()? })
    }

    /// A file at a commit.
    fn file_at(
        &self,
        at_commit: &RemoteFiles,
        file: &RemoteFile,
        client: Option<&Client>,
    ) -> Result<HubFile, HubError> {
        let RemoteFiles { kind, repo, revision: commit, .. } = *at_commit;
        let cached = self.cached(kind, repo);
        let place = cached.snapshot(commit).join(file.path);
        match client {
            Some(client) if !place.is_file() => client.download(&cached, at_commit, file),
            _ => {
                let hint = "remove it (and what it links to), then run again to download it";
                cache::verify(&describe(at_commit, file), file.sha256, place, hint)
            }
        }
    }

    fn cached(&self, kind: RepoKind, repo: &str) -> CachedRepository {
        CachedRepository::new(&self.cache, kind, repo)
    }

    fn client<'a>(&'a self, observer: &'a dyn Observer) -> Result<Client<'a>, Refusal> {
        Client::new(&self.endpoint, self.token.as_deref(), self.patience, observer)
    }

    /// The commit of a revision, asked of the Hub where it is a branch or tag.
    fn resolve(&self, client: &Client, kind: RepoKind, repo: &str, revision: &str) -> Result<String, HubError> {
        if names::check_commit(revision).is_ok() {
            return Ok(revision.to_owned());
        }
        let commit = client.commit(kind, repo, revision)?;
        tracing::info!(repo, "{revision} is {commit}");
        Ok(commit)
    }

    /// Notes what a branch or tag was at.
    fn note(&self, kind: RepoKind, repo: &str, revision: &str, commit: &str) {
        if revision != commit {
            self.cached(kind, repo).write_note(revision, commit);
        }
    }

    /// Nothing more can be done without the network. The advice fetches all files, as each may be missing.
    fn offline_error(&self, wanted: &RemoteFiles, file: &RemoteFile, noted: Option<&str>) -> HubError {
        let cached = self.cached(wanted.kind, wanted.repo);
        let looked = match noted {
            Some(commit) => {
                let place = cached.snapshot(commit).join(file.path);
                if commit == wanted.revision {
                    place.display().to_string()
                } else {
                    format!("{} (the commit in {})", place.display(), cached.note(wanted.revision).display())
                }
            }
            None => format!("the commit in {}", cached.note(wanted.revision).display()),
        };
        let paths: Vec<&str> = wanted.files.iter().map(|file| file.path).collect();
        HubError::Offline {
            file: describe(wanted, file),
            looked,
            command: hf_download(wanted.kind, wanted.repo, &paths, wanted.revision),
            local: wanted.kind.local_key(),
        }
    }
}

/// Refuses what must not become part of a path or URL.
fn check_names(repo: &str, revision: &str) -> Result<(), HubError> {
    names::check_repo(repo).map_err(|fault| HubError::Name { what: "repo", fault })?;
    names::check_revision(revision).map_err(|fault| HubError::Name { what: "revision", fault })
}

/// The commit of a revision, as far as it is known without the Hub.
fn known_commit(cached: &CachedRepository, revision: &str) -> Result<Option<String>, HubError> {
    match names::check_commit(revision) {
        Ok(()) => Ok(Some(revision.to_owned())),
        Err(_) => cached.read_note(revision),
    }
}

/// A file in messages.
fn describe(wanted: &RemoteFiles, file: &RemoteFile) -> String {
    format!("`{}` of {} at {}", file.path, wanted.kind.describe(wanted.repo), wanted.revision)
}

/// The command with which Python's client fetches files into the cache.
fn hf_download(kind: RepoKind, repo: &str, paths: &[&str], revision: &str) -> String {
    let kind = if kind == RepoKind::Dataset { "--repo-type dataset " } else { "" };
    let paths: String = paths.iter().map(|path| format!("{path} ")).collect();
    format!("hf download {kind}{repo} {paths}--revision {revision}")
}
