//! The cache on disk, as Python's `huggingface_hub` has it:
//!
//! ```text
//! <cache>/.locks/models--<owner>--<name>/<digest>.lock   held by whoever writes the blob
//! <cache>/models--<owner>--<name>/                       datasets--… for data sets
//!   refs/<branch>                                        the commit, without a newline
//!   blobs/<digest>                                       a file's bytes; `.incomplete` while they come
//!   snapshots/<commit>/<path>                            relative link to the blob, or a plain file
//!   .no_exist/<commit>/<path>                            empty: the repository has no such file
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::digest::{Digest, Digests};
use super::{HubError, HubFile, RepoKind, names};

/// One repository in the cache. Whoever makes one has checked the name.
pub struct CachedRepository {
    pub(super) folder: PathBuf,
}

impl CachedRepository {
    /// The repository `owner/name`.
    pub fn new(cache: &Path, kind: RepoKind, repo: &str) -> Self {
        Self { folder: cache.join(format!("{}--{}", kind.plural(), repo.replace('/', "--"))) }
    }

    /// The file that notes the commit of a branch or tag.
    pub fn note(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit the cache notes for a branch or tag.
    pub fn read_note(&self, revision: &str) -> Result<Option<String>, HubError> {
        let path = self.note(revision);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HubError::Io { path, source }),
        };
        let text = String::from_utf8_lossy(&bytes);
        let commit = text.trim();
        names::check_commit(commit).map_err(|fault| HubError::Ref { path, fault })?;
        Ok(Some(commit.to_owned()))
    }

    /// Notes the commit of a branch or tag, whole or not at all: Python and other runs read it meanwhile.
    pub fn write_note(&self, revision: &str, commit: &str) {
        let path = self.note(revision);
        let write = |folder: &Path| {
            fs::create_dir_all(folder)?;
            // Through `File`, so that others may read it as they may read the rest of the cache.
            let mut file = tempfile::Builder::new().make_in(folder, |path| File::create_new(path))?;
            file.write_all(commit.as_bytes())?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok::<_, std::io::Error>(())
        };
        if let Err(error) = write(path.parent().unwrap_or(Path::new("."))) {
            tracing::warn!(path = %path.display(), %error, "the commit cannot be noted");
        }
    }

    /// Whether the cache knows that a commit has no such file.
    pub fn lacks(&self, commit: &str, path: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(path).is_file()
    }

    /// Notes that a commit has no such file, to save a request next time.
    pub fn note_lack(&self, commit: &str, path: &str) {
        let note = self.folder.join(".no_exist").join(commit).join(path);
        let folder = note.parent().unwrap_or(Path::new("."));
        if let Err(error) = fs::create_dir_all(folder).and_then(|()| File::create(&note)) {
            tracing::debug!(path = %note.display(), %error, "cannot be noted");
        }
    }
}

/// Hashes a cached file and compares with the digest the cache records, and the one the caller knows.
pub fn verify(described: &str, sha256: Option<&str>, path: PathBuf, hint: &'static str) -> Result<HubFile, HubError> {
    let found = Digests::of(&path).map_err(HubError::io(&path))?;
    let known = sha256.map(|sha256| Digest::Sha256(sha256.to_owned()));
    for expected in recorded_digest(&path).into_iter().chain(known) {
        check(described, &path, &found, &expected, hint)?;
    }
    Ok(HubFile { path, sha256: found.sha256, bytes: found.bytes })
}

/// Refuses bytes with another digest.
pub fn check(
    described: &str,
    path: &Path,
    found: &Digests,
    expected: &Digest,
    hint: &'static str,
) -> Result<(), HubError> {
    if expected.among(found) == expected.name() {
        return Ok(());
    }
    Err(HubError::Digest {
        file: described.to_owned(),
        path: path.to_owned(),
        found: format!("{} {}", expected.kind(), expected.among(found)),
        expected: expected.name().to_owned(),
        hint,
    })
}

/// The digest by which the blob is named that a file of a commit links to; a plain file has none.
fn recorded_digest(path: &Path) -> Option<Digest> {
    let target = fs::read_link(path).ok()?;
    Digest::of_name(target.file_name()?.to_str()?)
}
