//! Repositories: files by commit, branches that point at commits.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha1::{Digest, Sha1};

/// What a repository is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// All of them, by kind and `owner/name`.
#[derive(Debug, Default)]
pub struct Repositories(BTreeMap<(Kind, String), Repository>);

/// The files of a commit by their paths.
pub type Files = BTreeMap<String, Arc<Vec<u8>>>;

/// One repository.
#[derive(Debug)]
pub struct Repository {
    commits: BTreeMap<String, Files>,
    branches: BTreeMap<String, String>,
}

impl Kind {
    /// As it is in `/api/…`.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

impl Repositories {
    /// A repository, if it exists.
    pub fn get(&self, kind: Kind, id: &str) -> Option<&Repository> {
        self.0.get(&(kind, id.to_owned()))
    }

    /// A repository to change, if it exists.
    pub fn get_mut(&mut self, kind: Kind, id: &str) -> Option<&mut Repository> {
        self.0.get_mut(&(kind, id.to_owned()))
    }

    /// A repository, made with an empty first commit on `main` if it does not exist.
    pub fn create(&mut self, kind: Kind, id: &str) -> &mut Repository {
        self.0.entry((kind, id.to_owned())).or_insert_with(|| {
            let first = hex(Sha1::digest(format!("{kind:?} {id}")));
            Repository {
                commits: BTreeMap::from([(first.clone(), Files::new())]),
                branches: BTreeMap::from([("main".to_owned(), first)]),
            }
        })
    }

    /// A large file by the SHA-256 of its bytes, whichever repository has it.
    pub fn blob(&self, sha256: &str) -> Option<Arc<Vec<u8>>> {
        let files = self.0.values().flat_map(|repository| repository.commits.values()).flat_map(BTreeMap::values);
        files.into_iter().find(|bytes| lmr_pipeline::tensors::sha256(bytes) == sha256).cloned()
    }
}

impl Repository {
    /// The commit that a branch or a full commit id means.
    pub fn resolve(&self, revision: &str) -> Option<&String> {
        self.branches.get(revision).or_else(|| self.commits.get_key_value(revision).map(|(commit, _)| commit))
    }

    /// The files of a commit.
    pub fn files(&self, commit: &str) -> Option<&Files> {
        self.commits.get(commit)
    }

    /// Points a branch or tag at a commit.
    pub fn set_branch(&mut self, name: &str, commit: &str) {
        self.branches.insert(name.to_owned(), commit.to_owned());
    }

    /// Adds and, with `None`, removes files on a branch; gives the new commit. Its id follows from the files.
    pub fn commit(&mut self, branch: &str, changes: BTreeMap<String, Option<Vec<u8>>>) -> String {
        let parent = self.branches.get(branch).cloned().unwrap_or_default();
        let mut files = self.commits.get(&parent).cloned().unwrap_or_default();
        for (path, bytes) in changes {
            match bytes {
                Some(bytes) => drop(files.insert(path, Arc::new(bytes))),
                None => drop(files.remove(&path)),
            }
        }
        let mut hasher = Sha1::new_with_prefix(&parent);
        for (path, bytes) in &files {
            hasher.update(path);
            hasher.update(git_blob_id(bytes));
        }
        let commit = hex(hasher.finalize());
        self.commits.insert(commit.clone(), files);
        self.set_branch(branch, &commit);
        commit
    }
}

/// Git's name for a file's bytes.
pub fn git_blob_id(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(hasher.finalize())
}

/// Whether the Hub keeps such a file apart from git, under the SHA-256 of its bytes.
pub fn is_large(path: &str) -> bool {
    [".safetensors", ".bin", ".pth", ".pt", ".parquet"].iter().any(|ending| path.ends_with(ending))
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
