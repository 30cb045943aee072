//! A checkpoint in a model repository: which files it is made of, and whether they are all here.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use lmr_plugin::run::Observer;

use super::cache::CachedRepository;
use super::{
    Client, Hub, HubError, Refusal, RemoteFile, RemoteFiles, RepoKind, check_names, describe, hf_download,
    known_commit, names,
};
use crate::{model_config, weights};

const KIND: RepoKind = RepoKind::Model;

/// A checkpoint that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct RemoteCheckpoint<'a> {
    /// The repository, `owner/name`.
    pub repo: &'a str,
    /// A commit, or the name of a branch or tag.
    pub revision: &'a str,
    /// The path of the checkpoint, or of the index of one in shards; without it, the one that libraries take.
    pub file: Option<&'a str>,
    /// The SHA-256 the file must have, where it is known; not checked here for one in shards. Lower-case digits.
    pub sha256: Option<&'a str>,
    /// Whether it may be a pickle.
    pub allow_pickle: bool,
}

/// A checkpoint that is now on this machine, with its shards and configuration files beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubCheckpoint {
    /// The repository.
    pub repo: String,
    /// The commit it is from.
    pub commit: String,
    /// Its path in the repository.
    pub file: String,
    /// Where it is.
    pub path: PathBuf,
}

impl std::fmt::Display for HubCheckpoint {
    /// `owner/name@commit/file`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}/{}", self.repo, self.commit, self.file)
    }
}

/// What the cache has of a checkpoint.
enum Cached {
    /// All of it; the path of the checkpoint.
    Whole(String),
    /// Not this file.
    Without(String),
    /// Nothing that tells which file the checkpoint is.
    Unknown,
}

impl Hub {
    /// A checkpoint, with what belongs to it: from the cache, otherwise downloaded into it; verified in either case. Its
    /// revision means what it means for [`Hub::files`].
    pub fn checkpoint(&self, wanted: &RemoteCheckpoint, observer: &dyn Observer) -> Result<HubCheckpoint, HubError> {
        check(wanted)?;
        let cached = self.cached(KIND, wanted.repo);
        let noted = known_commit(&cached, wanted.revision)?;
        let found = match &noted {
            Some(commit) => self.look_for(&cached, wanted, commit)?,
            None => Cached::Unknown,
        };
        match (&noted, found) {
            (Some(commit), Cached::Whole(file)) => self.collect(wanted, commit, &file, None),
            (_, found) if self.offline => Err(offline(&cached, wanted, noted.as_deref(), found)),
            _ => {
                let client = self.client(observer).map_err(|reason| HubError::Unresolved {
                    repo: KIND.describe(wanted.repo),
                    revision: wanted.revision.to_owned(),
                    reason,
                })?;
                let commit = self.resolve(&client, KIND, wanted.repo, wanted.revision)?;
                let file = match wanted.file {
                    Some(file) => file.to_owned(),
                    None => choose(&cached, &client, wanted.repo, &commit)?,
                };
                let found = self.collect(wanted, &commit, &file, Some(&client))?;
                self.note(KIND, wanted.repo, wanted.revision, &commit);
                Ok(found)
            }
        }
    }

    /// The checkpoint, if [`Hub::checkpoint`] would ask for nothing. Its bytes are not verified.
    pub fn cached_checkpoint(&self, wanted: &RemoteCheckpoint) -> Result<Option<HubCheckpoint>, HubError> {
        check(wanted)?;
        let cached = self.cached(KIND, wanted.repo);
        let Some(commit) = known_commit(&cached, wanted.revision)? else { return Ok(None) };
        match self.look_for(&cached, wanted, &commit)? {
            Cached::Whole(file) => {
                let found = HubCheckpoint {
                    repo: wanted.repo.to_owned(),
                    path: cached.snapshot(&commit).join(&file),
                    commit,
                    file,
                };
                refuse_pickle(wanted, &found)?;
                Ok(Some(found))
            }
            Cached::Without(_) | Cached::Unknown => Ok(None),
        }
    }

    /// Looks for a checkpoint and all that belongs to it. Where the Hub could be asked, a file that the cache does not have
    /// counts as missing until it is known that the repository lacks it too.
    fn look_for(&self, cached: &CachedRepository, wanted: &RemoteCheckpoint, commit: &str) -> Result<Cached, HubError> {
        let snapshot = cached.snapshot(commit);
        let file = match wanted.file {
            Some(file) => file.to_owned(),
            None => {
                let known = file_names(&snapshot);
                let at = || format!("{} at {commit}", KIND.describe(wanted.repo));
                let chosen = weights::choose(&known).map_err(|fault| HubError::Checkpoint { repo: at(), fault })?;
                let Some(chosen) = chosen else { return Ok(Cached::Unknown) };
                let lacks_better = weights::preferred_to(chosen)
                    .is_some_and(|mut better| better.all(|better| cached.lacks(commit, better)));
                if !lacks_better && !self.offline {
                    return Ok(Cached::Unknown);
                }
                chosen.to_owned()
            }
        };
        if !snapshot.join(&file).is_file() {
            return Ok(Cached::Without(file));
        }
        for shard in shards(&snapshot, &file)? {
            if !snapshot.join(&shard).is_file() {
                return Ok(Cached::Without(shard));
            }
        }
        for companion in companions(&file) {
            if !snapshot.join(&companion).is_file() && !cached.lacks(commit, &companion) && !self.offline {
                return Ok(Cached::Without(companion));
            }
        }
        Ok(Cached::Whole(file))
    }

    /// The checkpoint, its shards and what lies beside it, verified. Without a client, all of it is in the cache.
    fn collect(
        &self,
        wanted: &RemoteCheckpoint,
        commit: &str,
        file: &str,
        client: Option<&Client>,
    ) -> Result<HubCheckpoint, HubError> {
        let cached = self.cached(KIND, wanted.repo);
        let at_commit = RemoteFiles { kind: KIND, repo: wanted.repo, revision: commit, files: &[] };
        let max_bytes = weights::MAX_FILE;
        if weights::is_called_a_pickle(file) && !wanted.allow_pickle {
            return Err(HubError::Pickle {
                file: describe(&at_commit, &RemoteFile { path: file, sha256: None, max_bytes }),
            });
        }
        // The digest of one in shards is that of all its files.
        let sha256 = wanted.sha256.filter(|_| !file.ends_with(".json"));
        let main = self.file_at(&at_commit, &RemoteFile { path: file, sha256, max_bytes }, client)?;
        let found = HubCheckpoint {
            repo: wanted.repo.to_owned(),
            commit: commit.to_owned(),
            file: file.to_owned(),
            path: main.path,
        };
        refuse_pickle(wanted, &found)?;
        let mut left = max_bytes;
        for shard in shards(&cached.snapshot(commit), file)? {
            let shard =
                self.file_at(&at_commit, &RemoteFile { path: &shard, sha256: None, max_bytes: left }, client)?;
            left = left.saturating_sub(shard.bytes);
        }
        for companion in companions(file) {
            let is_here = cached.snapshot(commit).join(&companion).is_file();
            if !is_here && (client.is_none() || cached.lacks(commit, &companion)) {
                continue;
            }
            let wanted = RemoteFile { path: &companion, sha256: None, max_bytes: model_config::MAX_FILE };
            match self.file_at(&at_commit, &wanted, client) {
                Err(HubError::Download { reason: Refusal::NoFile, .. }) => cached.note_lack(commit, &companion),
                result => drop(result?),
            }
        }
        Ok(found)
    }
}

/// Refuses names that must not become part of a path or URL.
fn check(wanted: &RemoteCheckpoint) -> Result<(), HubError> {
    check_names(wanted.repo, wanted.revision)?;
    let path = wanted.file.map_or(Ok(()), names::check_path);
    path.map_err(|fault| HubError::Name { what: "file", fault })
}

/// The checkpoint among the files that the Hub lists. What it does not list is noted.
fn choose(cached: &CachedRepository, client: &Client, repo: &str, commit: &str) -> Result<String, HubError> {
    let files = client.files(KIND, repo, commit)?;
    let at = || format!("{} at {commit}", KIND.describe(repo));
    let top: Vec<String> = files.iter().filter(|file| !file.contains('/')).cloned().collect();
    let refuse = |fault| HubError::Checkpoint { repo: at(), fault };
    let chosen = weights::choose(&top).map_err(refuse)?.ok_or_else(|| refuse(weights::no_checkpoint()))?;
    let better = weights::preferred_to(chosen).into_iter().flatten().map(str::to_owned);
    for absent in better.chain(companions(chosen)).filter(|name| !top.contains(name)) {
        cached.note_lack(commit, &absent);
    }
    Ok(chosen.to_owned())
}

/// The configuration files that are read beside a checkpoint, as far as a repository has them.
fn companions(file: &str) -> impl Iterator<Item = String> {
    model_config::FILES.iter().map(|name| beside(file, name)).collect::<Vec<_>>().into_iter()
}

/// The shards beside an index, which is in the cache; none for another file.
fn shards(snapshot: &Path, file: &str) -> Result<Vec<String>, HubError> {
    if !file.ends_with(".json") {
        return Ok(Vec::new());
    }
    let path = snapshot.join(file);
    let mut bytes = Vec::new();
    let open = fs::File::open(&path).map_err(HubError::io(&path))?;
    open.take(weights::MAX_INDEX + 1).read_to_end(&mut bytes).map_err(HubError::io(&path))?;
    let refuse = |fault| HubError::Checkpoint { repo: path.display().to_string(), fault };
    let shards = weights::shards(&bytes).map_err(refuse)?;
    // An index may name any file; whatever else a shard must be, it must be one that can be asked for.
    shards.iter().try_for_each(|shard| names::check_path(shard)).map_err(refuse)?;
    Ok(shards.iter().map(|shard| beside(file, shard)).collect())
}

fn beside(file: &str, name: &str) -> String {
    match file.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    }
}

/// The names of the files in a folder; none if it is not there.
fn file_names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_file());
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A pickle may have any name.
fn refuse_pickle(wanted: &RemoteCheckpoint, found: &HubCheckpoint) -> Result<(), HubError> {
    let is_pickle = weights::is_called_a_pickle(&found.file)
        || weights::is_pickle(&found.path).map_err(HubError::io(&found.path))?;
    if is_pickle && !wanted.allow_pickle {
        let file = format!("`{}` of {} at {}", found.file, KIND.describe(&found.repo), found.commit);
        return Err(HubError::Pickle { file });
    }
    Ok(())
}

fn offline(cached: &CachedRepository, wanted: &RemoteCheckpoint, noted: Option<&str>, found: Cached) -> HubError {
    let (file, place) = match &found {
        Cached::Whole(file) | Cached::Without(file) => (format!("`{file}`"), file.as_str()),
        Cached::Unknown => (wanted.file.map_or("a checkpoint".to_owned(), |file| format!("`{file}`")), ""),
    };
    let looked = match noted {
        Some(commit) if commit == wanted.revision => cached.snapshot(commit).join(place).display().to_string(),
        Some(commit) => {
            let place = cached.snapshot(commit).join(place);
            format!("{} (the commit in {})", place.display(), cached.note(wanted.revision).display())
        }
        None => format!("the commit in {}", cached.note(wanted.revision).display()),
    };
    HubError::Offline {
        file: format!("{file} of {} at {}", KIND.describe(wanted.repo), wanted.revision),
        looked,
        // Without file names, it fetches the whole repository: shards and configuration too.
        command: hf_download(KIND, wanted.repo, &[], wanted.revision),
        local: KIND.local_key(),
    }
}
