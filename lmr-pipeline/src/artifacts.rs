//! The run folder: one process at a time, and never a half-written file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use lmr_plugin::nn::StateDict;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{MODEL_FILE, json};
use crate::tensors::sha256;
use crate::{Error, Result, weights};

/// Files that are being written begin with this; a killed run may leave some behind.
const PARTIAL: &str = ".partial-";

/// A stage's result on disk. Written last, so a folder that has it is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// SHA-256 of `inputs`: what decides whether the result can be reused.
    pub key: String,
    /// Everything the result depends on.
    pub inputs: Value,
    /// What the report shows.
    pub outcome: Value,
    /// Findings for the stages after it.
    pub findings: Map<String, Value>,
    /// Digest of the model's tensors after the stage.
    pub model: String,
    /// SHA-256 of every file beside this one.
    pub files: std::collections::BTreeMap<String, String>,
}

/// How long a stage took. Kept apart from the record, which is the same bytes on every run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Seconds of work.
    pub seconds: f64,
}

/// A run folder that this process alone writes to.
pub struct RunFolder {
    path: PathBuf,
    /// Held open: the operating system gives the lock back when the process ends, however it ends.
    _lock: File,
}

/// Describes the weights beside it, where the pipeline's `[model]` does not.
pub const CONFIG_FILE: &str = "config.json";
/// How the name of a model written in the received checkpoint's form begins; the format's ending follows.
pub const EXPORT_PREFIX: &str = "export.";
const RECORD_FILE: &str = "outcome.json";
const TIMING_FILE: &str = "timing.json";

impl RunFolder {
    /// Creates or opens the folder, locks it and sweeps up what a killed run left half-written.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let lock = path.join(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(Error::io("open", &lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { folder: path.to_path_buf() }),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &lock)(error)),
        }
        let folder = Self { path: path.to_path_buf(), _lock: file };
        folder.sweep(path)?;
        for entry in fs::read_dir(path).map_err(Error::io("list", path))?.flatten() {
            if entry.path().is_dir() {
                folder.sweep(&entry.path())?;
            }
        }
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the folder as a whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_whole(&self.path.join(name), bytes)
    }

    /// Removes the reports of a former run, which no longer tell what is in the folder.
    pub fn remove_reports(&self) -> Result<()> {
        for name in ["report.json", "report.md"] {
            remove(&self.path.join(name))?;
        }
        Ok(())
    }

    /// Keeps a stage's result: its files first, the record last.
    pub fn keep(&self, stage: &str, record: &Record, files: &[(String, Vec<u8>)], seconds: f64) -> Result<()> {
        let folder = self.path.join(stage);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        // An older record would vouch for files that are about to be replaced.
        let record_file = folder.join(RECORD_FILE);
        remove(&record_file)?;
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let result = name.ends_with(".safetensors") || name.starts_with(EXPORT_PREFIX) || name == CONFIG_FILE;
            if result && !files.iter().any(|(kept, _)| kept == &name) {
                remove(&entry.path())?;
            }
        }
        for (name, bytes) in files {
            write_whole(&folder.join(name), bytes)?;
        }
        write_whole(&folder.join(TIMING_FILE), &json(&Timing { seconds })?)?;
        write_whole(&record_file, &json(record)?)
    }

    fn sweep(&self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a file; one that is not there is fine.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A finished stage of a run folder whose key is `key` and whose files are intact; `None`, with a warning where something is
/// damaged, if it has to run (again).
pub fn finished(run: &Path, stage: &str, key: &str) -> Option<Finished> {
    let folder = run.join(stage);
    let record = folder.join(RECORD_FILE);
    let record: Record = match fs::read(&record) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!("{} is damaged ({error}); the stage runs again", record.display()))
            .ok()?,
        Err(_) => return None,
    };
    if record.key != key {
        return None;
    }
    let mut model = None;
    for (name, expected) in &record.files {
        let path = folder.join(name);
        let bytes = fs::read(&path).ok().filter(|bytes| &sha256(bytes) == expected);
        let Some(bytes) = bytes else {
            tracing::warn!("{} is missing or damaged; the stage runs again", path.display());
            return None;
        };
        if name == MODEL_FILE {
            model = Some(weights::parse(&bytes).ok()?);
        }
    }
    let timing: Option<Timing> =
        fs::read(folder.join(TIMING_FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Some(Finished { record, model, seconds: timing.map_or(0.0, |timing| timing.seconds) })
}

/// A stage that need not run again.
pub struct Finished {
    /// Its record.
    pub record: Record,
    /// The model it wrote, if it changed the model.
    pub model: Option<StateDict>,
    /// How long it took when it ran.
    pub seconds: f64,
}

/// Writes beside the target, flushes to the disk and renames: a reader sees the old bytes or the new ones.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let partial = parent.join(format!("{PARTIAL}{name}"));
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        // The rename itself is only safe once the folder is on the disk. Not every system can flush a folder.
        File::open(parent).and_then(|folder| folder.sync_all()).or(Ok(()))
    };
    write().map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, file: &[u8]) -> Record {
        Record {
            key: key.into(),
            inputs: Value::Null,
            outcome: Value::Null,
            findings: Map::new(),
            model: String::new(),
            files: [("extra.safetensors".to_string(), sha256(file))].into(),
        }
    }

    #[test]
    fn a_folder_has_one_owner_and_forgets_a_dead_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::open(dir.path()).unwrap();
        assert!(matches!(RunFolder::open(dir.path()), Err(Error::Busy { .. })));
        drop(first);
        fs::write(dir.path().join(".partial-report.json"), "{").unwrap();
        RunFolder::open(dir.path()).unwrap();
        assert!(!dir.path().join(".partial-report.json").exists());
    }

    #[test]
    fn a_result_is_reused_only_whole_and_for_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path()).unwrap();
        let files = [("extra.safetensors".to_string(), b"tensors".to_vec())];
        assert!(finished(dir.path(), "00-a", "k").is_none());
        folder.keep("00-a", &record("k", b"tensors"), &files, 1.5).unwrap();
        assert!(finished(dir.path(), "00-a", "other").is_none());
        let kept = finished(dir.path(), "00-a", "k").unwrap();
        assert_eq!((kept.record, kept.seconds), (record("k", b"tensors"), 1.5));
        fs::write(dir.path().join("00-a/extra.safetensors"), "tensor").unwrap();
        assert!(finished(dir.path(), "00-a", "k").is_none());
        folder.keep("00-a", &record("k", b"tensors"), &files, 1.5).unwrap();
        fs::write(dir.path().join("00-a/outcome.json"), "{").unwrap();
        assert!(finished(dir.path(), "00-a", "k").is_none());
    }
}
