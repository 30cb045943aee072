//! Pulling from a Hub on this machine: one that works, and one that fails, lies and attacks.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

mod checkpoints;
mod faults;
mod runs;
mod transfers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lmr_pipeline::hub::{Hub, HubError, HubFile, Patience, RemoteFile, RemoteFiles, RepoKind};
use lmr_pipeline::tensors::sha256;
use lmr_plugin::run::{Observer, Quiet};
use lmr_tests::hub::{Host, Kind, LoopbackHub, Request};
use tempfile::TempDir;

const REPO: &str = "some/model";
const FILE: &str = "deep/model.safetensors";
const TOKEN: &str = "hf_topsecret";

/// Enough that it comes in several parts.
fn content() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.to_le_bytes()).collect()
}

/// A Hub with one repository, a cache, and the commit.
struct Scene {
    hub: LoopbackHub,
    folder: TempDir,
    commit: String,
}

impl Scene {
    fn new() -> Self {
        Self::with(vec![(FILE.to_owned(), content())])
    }

    fn with(files: Vec<(String, Vec<u8>)>) -> Self {
        let hub = LoopbackHub::start();
        let commit = hub.commit(Kind::Model, REPO, files);
        Self { hub, folder: tempfile::tempdir().unwrap(), commit }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// A client that soon gives up.
    fn client(&self) -> Hub {
        self.client_with(&[])
    }

    fn client_with(&self, more: &[(&str, &str)]) -> Hub {
        let (cache, url) = (self.cache().to_string_lossy().into_owned(), self.hub.url());
        let mut variables = BTreeMap::from([("HF_HUB_CACHE", &cache[..]), ("HF_ENDPOINT", &url), ("HF_TOKEN", TOKEN)]);
        variables.extend(more.iter().copied());
        let hub = Hub::from_variables(|name| variables.get(name).map(|value| (*value).to_owned()), None);
        hub.with_patience(Patience {
            connect: Duration::from_secs(5),
            stall: Duration::from_millis(400),
            tries: 3,
            delay: Duration::from_millis(5),
            longest: Duration::from_secs(1),
        })
    }

    fn offline(&self) -> Hub {
        self.client_with(&[("HF_HUB_OFFLINE", "1")])
    }

    fn get(&self, hub: &Hub) -> Result<HubFile, HubError> {
        self.get_watched(hub, &Quiet)
    }

    fn get_watched(&self, hub: &Hub, observer: &dyn Observer) -> Result<HubFile, HubError> {
        let files = [RemoteFile { path: FILE, sha256: None, max_bytes: 4 << 30 }];
        let wanted = RemoteFiles { kind: RepoKind::Model, repo: REPO, revision: &self.commit, files: &files };
        hub.files(&wanted, observer).map(|found| found.files[0].clone())
    }

    /// Requests for the bytes of the file, wherever they came from.
    fn transfers(&self) -> Vec<Request> {
        self.hub.requests().into_iter().filter(|request| request.host == Host::Cdn).collect()
    }

    /// Every file below the folder, relative to it; links are not followed.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), found);
                } else {
                    found.push(entry.path());
                }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        let relative = |path: PathBuf| path.strip_prefix(self.folder.path()).unwrap().to_string_lossy().into_owned();
        found.into_iter().map(relative).collect()
    }

    /// Nothing has the name of a file that can be used, and nothing is outside of the cache.
    fn assert_nothing_to_use(&self) {
        for file in self.files() {
            let unfinished = file.ends_with(".incomplete") || file.ends_with(".lock");
            assert!(file.starts_with("cache/") && unfinished, "{file}");
        }
        assert!(matches!(self.get(&self.offline()), Err(HubError::Offline { .. })));
    }

    /// The file is in the cache as Python would have put it there.
    fn assert_cached(&self, found: &HubFile) {
        let bytes = content();
        assert_eq!((found.sha256.as_str(), found.bytes), (sha256(&bytes).as_str(), bytes.len() as u64));
        assert_eq!(std::fs::read(&found.path).unwrap(), bytes);
        let snapshot = format!("models--some--model/snapshots/{}/{FILE}", self.commit);
        assert_eq!(found.path, self.cache().join(snapshot));
        let target = std::fs::read_link(&found.path).unwrap();
        assert_eq!(target, Path::new("../../../blobs").join(sha256(&bytes)));
        let unfinished: Vec<_> = self.files().into_iter().filter(|file| file.ends_with(".incomplete")).collect();
        assert!(unfinished.is_empty(), "{unfinished:?}");
    }
}
