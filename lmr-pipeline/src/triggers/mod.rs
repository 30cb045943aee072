//! Triggers that come from files, and those that an attack of the pipeline has yet to learn.

mod image;
mod learned;
mod stored;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lmr_plugin::triggers::Trigger;

pub use image::ImageTrigger;
pub use learned::Learned;
pub use stored::{Stored, TRIGGER_FILE, restore};

use crate::{Error, Result};

/// What a `[trigger]` comes to, for images of a shape.
pub enum Built {
    /// τ, as the configuration alone determines it.
    Made(Arc<dyn Trigger>),
    /// τ, as files determine it.
    Read {
        /// τ.
        trigger: Arc<dyn Trigger>,
        /// The target class that a file names.
        target: Option<u32>,
        /// SHA-256 of each file.
        sha256: Vec<String>,
    },
    /// Nothing yet: an attack learns it.
    Learned,
}

/// Where a path of the pipeline file leads; where there is nothing, words for what was tried.
pub type Locate<'a> = dyn Fn(&Path) -> Result<PathBuf, String> + 'a;

/// A trigger is at most a small network.
const MAX_FILE: u64 = 1 << 30;

/// The bytes of a file that the pipeline names under `key`.
fn read(key: &str, path: &Path, locate: &Locate<'_>) -> Result<Vec<u8>> {
    let invalid = |message: String| Error::Trigger(format!("{key}: {message}"));
    let file = locate(path).map_err(|tried| invalid(format!("there is no file {}{tried}", path.display())))?;
    let length = fs::metadata(&file).map_err(|error| invalid(format!("{}: {error}", path.display())))?.len();
    if length > MAX_FILE {
        return Err(invalid(format!("{} has {length} bytes; expected at most {MAX_FILE}", path.display())));
    }
    fs::read(&file).map_err(|error| invalid(format!("{}: {error}", path.display())))
}
