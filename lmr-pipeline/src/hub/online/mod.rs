//! What is asked of the Hub: which commit a branch is at, which files there are, the files themselves, and to take a commit.

mod blobs;
mod client;
mod download;
#[cfg(test)]
mod tests;
mod tree;
#[cfg(feature = "hub-upload")]
mod upload;

use serde::Deserialize;

pub(crate) use client::Client;
use client::Fault;
use download::Download;
#[cfg(all(test, feature = "hub-upload"))]
pub(crate) use tree::Large;
#[cfg(feature = "hub-upload")]
pub(crate) use tree::Listed;
#[cfg(feature = "hub-upload")]
pub(crate) use upload::{UploadError, Writer};

use super::cache::CachedRepository;
use super::{HubError, HubFile, RemoteFile, RemoteFiles, RepoKind, describe, names};

/// What the Hub says about a repository takes less, unless it has very many files.
const MAX_INFO: u64 = 32 << 20;

/// The part that matters of what the Hub says about a revision.
#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
}

impl Client<'_> {
    /// The commit that a branch or tag is at.
    pub fn commit(&self, kind: RepoKind, repo: &str, revision: &str) -> Result<String, HubError> {
        let (owner, name) = repo.split_once('/').unwrap_or((repo, ""));
        let url = self.url(["api", kind.plural(), owner, name, "revision", revision]);
        let ask = || {
            let (info, _) = self.json::<Info>(&url, MAX_INFO)?;
            let commit = info.sha.ok_or_else(|| Fault::malformed("is incomplete (no `sha`)"))?;
            names::check_commit(&commit).map_err(|fault| Fault::malformed(format!("is malformed: {fault}")))?;
            Ok(commit)
        };
        ask().map_err(|fault: Fault| {
            fault.about(|reason| HubError::Unresolved {
                repo: kind.describe(repo),
                revision: revision.to_owned(),
                reason,
            })
        })
    }

    /// The paths of all files at a commit whose names can be asked for.
    pub fn files(&self, kind: RepoKind, repo: &str, commit: &str) -> Result<Vec<String>, HubError> {
        Ok(tree::entries(self, kind, repo, commit)?.into_iter().map(|file| file.path).collect())
    }

    /// One file into the cache, verified.
    pub fn download(
        &self,
        cached: &CachedRepository,
        at_commit: &RemoteFiles,
        file: &RemoteFile,
    ) -> Result<HubFile, HubError> {
        let RemoteFiles { kind, repo, revision: commit, .. } = *at_commit;
        let (owner, name) = repo.split_once('/').unwrap_or((repo, ""));
        let prefix = if kind == RepoKind::Dataset { &["datasets"][..] } else { &[] };
        let parts = prefix.iter().copied().chain([owner, name, "resolve", commit]).chain(file.path.split('/'));
        let (described, url) = (describe(at_commit, file), self.url(parts));
        Download { client: self, cached, commit, file, described, url }.run()
    }
}
