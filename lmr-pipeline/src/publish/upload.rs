//! From a folder to a commit.

use std::collections::BTreeMap;

use lmr_plugin::run::Observer;
use sha1::{Digest, Sha1};

use super::Sent;
use super::folder::{Publication, PublishedFile};
use crate::config::PublishTable;
use crate::hub::{Hub, Listed, UploadError, Writer};
use crate::{Error, Result};

/// Files of a repository by their paths.
type Files = BTreeMap<String, Listed>;

/// Whether this machine has what an upload needs, before hours of work go into what would be sent. Nothing is asked.
pub fn check_access(table: &PublishTable, hub: &Hub, observer: &dyn Observer) -> Result<()> {
    hub.writer(&table.repo, &table.revision, observer).map(drop).map_err(|error| explain(table, error))
}

/// Sends what the repository does not have yet, as one commit on top of the one that was looked at, and checks that it
/// arrived. A branch that moved meanwhile is looked at once more, and left alone if a file that would be replaced is
/// another one by now.
pub fn send(publication: &Publication, hub: &Hub, observer: &dyn Observer) -> Result<Sent> {
    let table = &publication.table;
    hub.writer(&table.repo, &table.revision, observer)
        .and_then(|writer| Sender { publication, writer }.send())
        .map_err(|error| explain(table, error))
}

fn explain(table: &PublishTable, error: UploadError) -> Error {
    let repo = table.repo.clone();
    let message = match error {
        UploadError::Interrupted => return Error::PublishStopped { repo },
        UploadError::Refused(message) => message,
        UploadError::Moved => {
            format!(
                "somebody else changed the same files of branch {} meanwhile; look at them, then run again",
                table.revision
            )
        }
        UploadError::Broken(message) => {
            format!(
                "{message}; the commit is there as a whole or not at all: run again, which changes nothing if it is there"
            )
        }
    };
    Error::Publish { repo, message }
}

struct Sender<'a> {
    publication: &'a Publication,
    writer: Writer<'a>,
}

impl Sender<'_> {
    fn send(&self) -> Result<Sent, UploadError> {
        let mut head = self.head()?;
        let mut there = self.writer.files(&head)?;
        if self.missing(&there).is_empty() {
            return self.sent(head, &there, false);
        }
        for last in [false, true] {
            let missing = self.missing(&there);
            let files = missing.iter().map(|file| (file.path.clone(), file.bytes.clone())).collect();
            let error = match self.writer.commit(&head, files, self.message()) {
                Ok(commit) => {
                    let arrived = self.writer.files(&commit)?;
                    return self.sent(commit, &arrived, true);
                }
                Err(error @ (UploadError::Moved | UploadError::Broken(_))) => error,
                Err(error) => return Err(error),
            };
            // The answer may have been lost, or the commit sent twice.
            let Some((moved, now)) = self.look() else { return Err(error) };
            if moved != head && self.missing(&now).is_empty() {
                return self.sent(moved, &now, true);
            }
            let untouched = missing.iter().all(|file| there.get(&file.path) == now.get(&file.path));
            if last || !untouched || !matches!(error, UploadError::Moved) {
                return Err(error);
            }
            (head, there) = (moved, now);
        }
        Err(UploadError::Moved)
    }

    /// The commit the branch is at; the repository is made if there is none.
    fn head(&self) -> Result<String, UploadError> {
        if let Some(head) = self.writer.head()? {
            return Ok(head);
        }
        self.writer.create(self.publication.table.private)?;
        let gone = || UploadError::Refused("the repository was made, but is not there; run again in a moment".into());
        self.writer.head()?.ok_or_else(gone)
    }

    /// The branch and its files, if the Hub says.
    fn look(&self) -> Option<(String, Files)> {
        let head = self.writer.head().ok()??;
        let files = self.writer.files(&head).ok()?;
        Some((head, files))
    }

    /// The files that the repository does not have, or has otherwise.
    fn missing(&self, there: &Files) -> Vec<&PublishedFile> {
        self.publication
            .files
            .iter()
            .filter(|file| !there.get(&file.path).is_some_and(|there| is(there, file)))
            .collect()
    }

    /// Checks what a commit has.
    fn sent(&self, commit: String, there: &Files, changed: bool) -> Result<Sent, UploadError> {
        let url = self.writer.commit_url(&commit);
        if let [first, ..] = self.missing(there).as_slice() {
            let message = format!("commit {commit} has another `{}` than what was sent; look at {url}", first.path);
            return Err(UploadError::Refused(message));
        }
        let ours = |path: &String| self.publication.files.iter().any(|file| &file.path == path);
        let others = there.keys().filter(|path| !ours(path) && *path != ".gitattributes").cloned().collect();
        Ok(Sent { commit, url, changed, others })
    }

    fn message(&self) -> String {
        format!("Publish a purified model (run {}, LMR {})", self.publication.title, env!("CARGO_PKG_VERSION"))
    }
}

/// Whether the Hub's file has these bytes.
fn is(there: &Listed, file: &PublishedFile) -> bool {
    match &there.lfs {
        Some(large) => large.oid == file.sha256 && large.size == file.bytes.len() as u64,
        None => there.oid.as_deref() == Some(&git_blob(&file.bytes)),
    }
}

/// Git's name of a file with these bytes.
fn git_blob(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_as_git_and_the_hub_do() {
        // What `printf hello | git hash-object --stdin` prints.
        assert_eq!(git_blob(b"hello"), "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0");
        let file = PublishedFile::new("a", b"hello".to_vec());
        let mut there = Listed { path: "a".into(), oid: Some(git_blob(b"hello")), lfs: None };
        assert!(is(&there, &file));
        there.lfs = Some(crate::hub::Large { oid: file.sha256.clone(), size: 6 });
        assert!(!is(&there, &file), "the pointer of a large file is not the file");
        there.lfs = Some(crate::hub::Large { oid: file.sha256.clone(), size: 5 });
        assert!(is(&there, &file));
    }
}
