//! The names that the Hub gives to the bytes of a file, which say what the bytes must be.

use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::names::is_hex;

/// An ETag of the Hub, and the name of a blob in the cache: a digest of the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256, of files that are kept apart from git.
    Sha256(String),
    /// SHA-1 of `blob <length>\0` and the bytes: git's name of a file.
    GitBlob(String),
}

/// Digests of a file's bytes.
pub struct Digests {
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// Git's name of the file.
    pub git_blob: String,
    /// How many bytes there are.
    pub bytes: u64,
}

impl Digest {
    /// Reads a blob's name; `None` for what is no digest, which must not become part of a path.
    pub fn of_name(name: &str) -> Option<Self> {
        if is_hex(name, 64) {
            Some(Self::Sha256(name.to_owned()))
        } else if is_hex(name, 40) {
            Some(Self::GitBlob(name.to_owned()))
        } else {
            None
        }
    }

    /// The digits.
    pub fn name(&self) -> &str {
        match self {
            Self::Sha256(name) | Self::GitBlob(name) => name,
        }
    }

    /// What it is called in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git blob id",
        }
    }

    /// The digest of this kind.
    pub fn among<'a>(&self, found: &'a Digests) -> &'a str {
        match self {
            Self::Sha256(_) => &found.sha256,
            Self::GitBlob(_) => &found.git_blob,
        }
    }
}

impl Digests {
    /// Reads a file once. Git's name begins with the length, so a file that grows meanwhile has a wrong one.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let mut file = std::fs::File::open(path)?;
        let mut sha256 = Sha256::new();
        let mut git_blob = Sha1::new_with_prefix(format!("blob {}\0", file.metadata()?.len()));
        let mut bytes = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => {
                    sha256.update(&buffer[..n]);
                    git_blob.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
        Ok(Self { sha256: hex(&sha256.finalize()), git_blob: hex(&git_blob.finalize()), bytes })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf hello | sha256sum`, `printf hello | git hash-object --stdin`.
    #[test]
    fn digests_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello");
        std::fs::write(&path, "hello").unwrap();
        let found = Digests::of(&path).unwrap();
        assert_eq!(found.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!((found.git_blob.as_str(), found.bytes), ("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", 5));
    }
}
