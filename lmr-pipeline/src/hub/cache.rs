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

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lmr_plugin::run::Observer;

use super::digest::{Digest, Digests};
use super::{HubError, HubFile, RepoKind, names};

/// How often it is tried to get a lock that another process holds.
const LOCK_EVERY: Duration = Duration::from_millis(100);

/// One repository in the cache. Whoever makes one has checked the name.
pub struct CachedRepository {
    folder: PathBuf,
    locks: PathBuf,
}

impl CachedRepository {
    /// The repository `owner/name`.
    pub fn new(cache: &Path, kind: RepoKind, repo: &str) -> Self {
        let name = format!("{}--{}", kind.plural(), repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The file that notes the commit of a branch or tag.
    pub fn note(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where bytes with this digest are.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.name())
    }

    /// Where they are until all of them are there and verified.
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", digest.name()))
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

    /// Waits until no other process writes these bytes. The lock is given back with the file.
    pub fn lock(&self, digest: &Digest, observer: &dyn Observer) -> Result<Option<File>, HubError> {
        let path = self.locks.join(format!("{}.lock", digest.name()));
        fs::create_dir_all(&self.locks).map_err(HubError::io(&self.locks))?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(HubError::io(&path))?;
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {
                    if !said {
                        tracing::info!("another process downloads {}; waiting for it", digest.name());
                        said = true;
                    }
                    pause(LOCK_EVERY, observer)?;
                }
                // Some network file systems have no locks. The digest still decides what is used.
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(path = %path.display(), %error, "cannot be locked; do not download twice at a time");
                    return Ok(None);
                }
            }
        }
    }

    /// Makes a blob a file of a commit, in place of what may be there.
    pub fn link(&self, commit: &str, path: &str, digest: &Digest) -> Result<PathBuf, HubError> {
        let place = self.snapshot(commit).join(path);
        let folder = place.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        let up = "../".repeat(2 + path.matches('/').count());
        let target = format!("{up}blobs/{}", digest.name());
        let link = tempfile::Builder::new().make_in(folder, |at| symlink(&self.blob(digest), &target, at));
        link.and_then(|link| link.persist(&place).map_err(|error| error.error)).map_err(HubError::io(&place))?;
        Ok(place)
    }
}

/// A relative link, so that the cache can be moved.
#[cfg(unix)]
fn symlink(_: &Path, target: &str, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

/// Where links need rights that users do not have: another name of the same bytes.
#[cfg(not(unix))]
fn symlink(blob: &Path, _: &str, at: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, at)
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
