//! What can go wrong between a name on the Hub and a file on this machine, and what to do about it.
//!
//! No message has a URL, which may be signed, nor a token; what a server says is shortened and escaped.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why nothing is downloaded where that is off, and what to do.
const NO_DOWNLOADS: &str = match cfg!(feature = "hub") {
    true => "HF_HUB_OFFLINE forbids downloads; unset HF_HUB_OFFLINE",
    false => "this build of LMR cannot download; build it with the feature `hub`",
};

/// The cache or the Hub did not give a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
        "{file} is missing: looked for {looked}, and {}, or run `{command}` where the network is, or set `{local}` to a \
         folder with the file",
        NO_DOWNLOADS
    )]
    Offline {
        /// The file.
        file: String,
        /// Where it would be, and which file says the commit of a branch or tag.
        looked: String,
        /// What fetches it.
        command: String,
        /// The key that names a local folder instead.
        local: &'static str,
    },
    /// The Hub or the network did not say which commit a branch or tag is at.
    #[error("the commit of `{revision}` in {repo} is not known: {reason}")]
    Unresolved {
        /// The repository.
        repo: String,
        /// The branch or tag.
        revision: String,
        /// Why, and what to do.
        reason: Refusal,
    },
    /// The Hub or the network did not say which files a repository has.
    #[error("the files of {repo} are not known: {reason}")]
    Unlisted {
        /// The repository and the commit.
        repo: String,
        /// Why, and what to do.
        reason: Refusal,
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
        reason: Refusal,
    },
    /// The bytes are not those of the file.
    #[error("{file} is damaged: {} has {found}, expected {expected}; {hint}", .path.display())]
    Digest {
        /// The file.
        file: String,
        /// Where the bytes are or were.
        path: PathBuf,
        /// Which digest it is, and theirs: `SHA-256 …`, or `git blob id …`.
        found: String,
        /// The digest they should have.
        expected: String,
        /// What to do.
        hint: &'static str,
    },
    /// The Hub has other bytes than the configuration wants; nothing was downloaded.
    #[error("{file} has SHA-256 {found} on the Hub, expected {expected}; check `sha256` and `revision`")]
    Other {
        /// The file.
        file: String,
        /// The digest on the Hub.
        found: String,
        /// The digest that the configuration gives.
        expected: String,
    },
    /// The file is larger than such a file can be.
    #[error("{file} has {bytes} bytes; expected at most {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// How many bytes it has.
        bytes: u64,
        /// How many it may have.
        limit: u64,
    },
    /// The repository's files do not make a checkpoint.
    #[error("{repo} {fault}")]
    Checkpoint {
        /// The repository and the commit, or one of its files.
        repo: String,
        /// What was found and what was expected.
        fault: String,
    },
    /// The checkpoint is a pickle, which nobody allowed.
    #[error(
        "{file} is a pickle, and pickles from the Hub are refused; take a safetensors file, or set `allow-pickle = true` \
         in `weights` (nothing in it is run)"
    )]
    Pickle {
        /// The file.
        file: String,
    },
    /// The cache has no room for the file.
    #[error("{}: the disk is full; make room, or set HF_HUB_CACHE to a folder on another disk", .path.display())]
    Full {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A file of the cache could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The user asked to stop. What came of a file is kept, and the next run goes on from there.
    #[error("stopped; what came of the file is kept, and the same command goes on from there")]
    Interrupted,
}

/// Why the Hub or the network gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing can be asked.
    #[error("this build of LMR cannot ask the Hub; build it with the feature `hub`")]
    Absent,
    /// The endpoint is neither protected nor on this machine.
    #[error("HF_ENDPOINT must begin with https:// (http:// only for this machine) and have no user, query or fragment")]
    Endpoint,
    /// The repository is gated.
    #[error(
        "access to the repository is gated; ask for it on the repository's page, and set HF_TOKEN to a token of that account"
    )]
    Gated,
    /// The Hub hides whether there is such a repository.
    #[error("the Hub wants a login, or there is no such repository; check its name, or set HF_TOKEN")]
    Login,
    /// The token is not accepted.
    #[error("the Hub does not know this token; set HF_TOKEN to one that is valid, or remove it")]
    Token,
    /// The token does not allow it.
    #[error("the Hub refuses access with this token; ask for access on the repository's page")]
    Forbidden,
    /// There is no such repository.
    #[error("the Hub has no such repository, or it is private; check its name, and the account of HF_TOKEN")]
    NoRepository,
    /// There is no such revision.
    #[error("the Hub has no such revision; check `revision`")]
    NoRevision,
    /// There is no such file.
    #[error("the Hub has no such file at this revision; check its path, and `revision`")]
    NoFile,
    /// One of the three is not there.
    #[error("the Hub has no such repository, revision or file; check all three")]
    Nothing,
    /// Too many requests.
    #[error("the Hub wants fewer requests{}; wait a while, or set HF_TOKEN", after(.0))]
    RateLimited(Option<Duration>),
    /// Another status.
    #[error("the Hub answered {status}{said}; try again later")]
    Status {
        /// The status.
        status: u16,
        /// What the server says about it, shortened and escaped, or an empty text.
        said: String,
    },
    /// No connection, or one that broke or stalled again and again.
    #[error("the Hub cannot be reached ({0}); check the network and HF_ENDPOINT")]
    Unreachable(String),
    /// A redirect that is not followed.
    #[error(
        "the Hub redirects to {0}, which is refused: only https is followed (http from this machine to this machine); check \
         HF_ENDPOINT"
    )]
    Redirect(String),
    /// The answer is not what a Hub says.
    #[error("the Hub's answer {0}; check HF_ENDPOINT, and try again later")]
    Malformed(String),
}

fn after(wait: &Option<Duration>) -> String {
    wait.map(|wait| format!(" (the next one in {} s)", wait.as_secs())).unwrap_or_default()
}

impl HubError {
    /// What the operating system said about a file of the cache.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn a_full_disk_is_said_so() {
        let error = HubError::io(Path::new("cache/blobs/x"))(Error::from(ErrorKind::StorageFull));
        assert_eq!(
            error.to_string(),
            "cache/blobs/x: the disk is full; make room, or set HF_HUB_CACHE to a folder on another disk"
        );
        assert!(matches!(HubError::io(Path::new("x"))(Error::from(ErrorKind::NotFound)), HubError::Io { .. }));
    }
}
