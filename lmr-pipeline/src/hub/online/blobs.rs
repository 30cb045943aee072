//! The half of the cache that downloads write: bytes under their digest, and links to them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lmr_plugin::run::Observer;

use super::client::pause;
use crate::hub::HubError;
use crate::hub::cache::CachedRepository;
use crate::hub::digest::Digest;

/// How often it is tried to get a lock that another process holds.
const LOCK_EVERY: Duration = Duration::from_millis(100);

impl CachedRepository {
    /// Where bytes with this digest are.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.name())
    }

    /// Where they are until all of them are there and verified.
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", digest.name()))
    }

    /// Waits until no other process writes these bytes. The lock is given back with the file.
    pub fn lock(&self, digest: &Digest, observer: &dyn Observer) -> Result<Option<File>, HubError> {
        let name = self.folder.file_name().unwrap_or_default();
        let locks = self.folder.with_file_name(".locks").join(name);
        let path = locks.join(format!("{}.lock", digest.name()));
        fs::create_dir_all(&locks).map_err(HubError::io(&locks))?;
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
