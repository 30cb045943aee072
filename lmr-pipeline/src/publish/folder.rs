//! The folder that is sent.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::artifacts::write_whole;
use crate::config::PublishTable;
use crate::report::Report;
use crate::tensors::sha256;
use crate::{Error, Result};

/// Where a run folder has it.
pub const NAME: &str = "publish";
/// Folders in folders; a publication has one level.
const MAX_DEPTH: usize = 4;

/// A file that is sent.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishedFile {
    /// Its path in the repository.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// SHA-256 of it, in hexadecimal digits.
    pub sha256: String,
}

impl PublishedFile {
    /// A file with this content.
    pub fn new(path: &str, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), sha256: sha256(&bytes), bytes }
    }
}

/// What is sent, and where to.
#[non_exhaustive]
pub struct Publication {
    /// Repository, branch, visibility.
    pub table: PublishTable,
    /// What the commit is called by.
    pub title: String,
    /// All files, sorted but for the card, which comes first.
    pub files: Vec<PublishedFile>,
}

impl Publication {
    /// Where the folder is written if nobody says otherwise.
    pub fn default_folder(run: &Path) -> PathBuf {
        run.join(NAME)
    }

    /// Writes every file. In the run's own folder, files of an earlier publication go; another folder must not have any
    /// others.
    pub fn write(&self, folder: &Path, own: bool) -> Result<()> {
        if fs::symlink_metadata(folder).is_ok_and(|found| own && !found.is_dir()) {
            return Err(Error::input(folder, "is no folder; remove it"));
        }
        let wanted: BTreeSet<PathBuf> = self.files.iter().map(|file| folder.join(&file.path)).collect();
        let mut found = Vec::new();
        list(folder, MAX_DEPTH, &mut found)?;
        for other in found.iter().filter(|path| !wanted.contains(*path)) {
            if !own {
                let message =
                    format!("is not of this publication; give `--dry-run` an empty folder, not {}", folder.display());
                return Err(Error::input(other, message));
            }
            fs::remove_file(other).map_err(Error::io("remove", other))?;
        }
        for file in &self.files {
            let path = folder.join(&file.path);
            let parent = path.parent().unwrap_or(folder);
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            write_whole(&path, &file.bytes)?;
        }
        Ok(())
    }
}

/// Every file in a folder, links and the insides of folders included; links are not followed.
fn list(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth > 0 {
            list(&entry.path(), depth - 1, found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Takes over when and how fast stages ran from the report that was published before, if nothing else differs: a run that
/// is resumed with nothing left to do is the same run, and publishing it again changes nothing.
pub fn keep_times(report: &mut Report, folder: &Path) {
    let before = fs::read(folder.join("report.json")).ok();
    let Some(before) = before.and_then(|bytes| serde_json::from_slice::<Report>(&bytes).ok()) else { return };
    if timeless(report.clone()) == timeless(before.clone()) {
        *report = before;
    }
}

/// A report as JSON without times.
fn timeless(mut report: Report) -> Option<serde_json::Value> {
    report.run.started = String::new();
    report.run.seconds = 0.0;
    for stage in &mut report.stages {
        (stage.seconds, stage.reused) = (0.0, false);
    }
    serde_json::to_value(report).ok()
}
