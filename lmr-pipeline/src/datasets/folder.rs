//! A folder of photographs: in it a folder for each class, in that the images of the class, one a file.
//!
//! When it is opened, every file is read once for its digest and the look of its header; no pixel is decoded before it is
//! wanted, and none is kept.

use std::borrow::Cow;
use std::fs::{DirEntry, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use lmr_plugin::data::ImageSource;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::digest::hex;
use super::pixels::Decoding;
use super::{DataError, FileProvenance, FolderSource};

/// Far above any photograph of a data set.
const MAX_FILE: u64 = 64 << 20;
/// What torchvision's `ImageFolder` takes for an image; others are passed over. What is in the file decides whether it can
/// be read.
const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];

/// The images of a folder, decoded when they are read.
pub(super) struct Folder {
    root: PathBuf,
    files: Vec<ImageFile>,
    decoding: Decoding,
}

/// One of them.
struct ImageFile {
    /// Below the root.
    path: PathBuf,
    sha256: [u8; 32],
}

/// What the folders of classes may be called.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub classes: &'a [String],
    pub ids: &'a [String],
}

impl Folder {
    /// Finds and checks the images in `root`: the first one of every class, then the second ones, and so on, so that the
    /// first n are of all classes. Gives the class of each, too.
    pub(super) fn open(
        root: &Path,
        source: &FolderSource,
        names: Names<'_>,
        decoding: Decoding,
    ) -> Result<(Self, Vec<u32>, FileProvenance), DataError> {
        let root = root.canonicalize().map_err(|error| DataError::Io {
            file: root.to_owned(),
            source: error,
            hint: format!("; set `root` under [data] to the folder that holds `{}`", source.path),
        })?;
        let mut found = Vec::new();
        for (class, folder) in class_folders(&root, source, names)? {
            let files = image_files(&root, &folder)?;
            if files.is_empty() && !source.partial {
                return Err(DataError::content(folder, "no image", "at least one").advise(PARTIAL));
            }
            found.extend(files.into_iter().enumerate().map(|(rank, file)| (rank, class, file)));
        }
        found.sort_by_key(|&(rank, class, _)| (rank, class));

        let checked: Vec<_> = found.par_iter().map(|(_, _, path)| check(&root.join(path), &decoding)).collect();
        let (mut files, mut labels, mut bytes) = (Vec::new(), Vec::new(), 0);
        for ((_, class, path), checked) in found.into_iter().zip(checked) {
            let (sha256, len) = checked?;
            bytes += len;
            labels.push(class);
            files.push(ImageFile { path, sha256 });
        }
        let provenance = FileProvenance { path: source.path.clone(), repo: None, bytes, sha256: listing(&files) };
        Ok((Self { root, files, decoding }, labels, provenance))
    }

    fn decode(&self, file: &ImageFile, out: &mut [u8]) -> Result<(), DataError> {
        let path = self.root.join(&file.path);
        let bytes = read_file(&path)?;
        if Sha256::digest(&bytes)[..] != file.sha256 {
            return Err(DataError::content(path, "other bytes than when the run began", "the same"));
        }
        self.decoding.decode(&bytes, out).map_err(|(found, expected)| DataError::content(path, found, expected))
    }
}

impl ImageSource for Folder {
    fn count(&self) -> usize {
        self.files.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.decoding.shape
    }

    fn read(&self, index: usize, out: &mut [u8]) -> lmr_plugin::Result<()> {
        self.decode(&self.files[index], out).map_err(|error| lmr_plugin::Error::Image(error.into()))
    }

    fn identity(&self, index: usize) -> lmr_plugin::Result<Cow<'_, [u8]>> {
        Ok(self.decoding.identity(&self.files[index].sha256).into())
    }
}

/// The SHA-256 of what `sha256sum` prints of the files, sorted by path.
fn listing(files: &[ImageFile]) -> String {
    let mut files: Vec<_> = files.iter().map(|file| (file.path.as_os_str(), &file.sha256)).collect();
    files.sort_unstable();
    let mut hasher = Sha256::new();
    for (path, sha256) in files {
        hasher.update(format!("{}  {}\n", hex(sha256), path.display()));
    }
    hex(&hasher.finalize())
}

const PARTIAL: &str = "; where classes may be without images, add `partial = true` to the descriptor";

/// The folder of every class that has one, in the order of the classes.
fn class_folders(root: &Path, source: &FolderSource, names: Names<'_>) -> Result<Vec<(u32, PathBuf)>, DataError> {
    let mut folders = Vec::new();
    for entry in entries(root)? {
        let path = entry.path();
        if is_inside(root, &path)?.is_dir() {
            folders.push((name_of(&path)?, path));
        }
    }
    let classes = names.classes;
    if source.sorted {
        if folders.len() != classes.len() {
            let found = format!("{} folders", folders.len());
            return Err(DataError::content(root, found, format!("{}, one for each class", classes.len())));
        }
        return Ok((0..).zip(folders.into_iter().map(|(_, path)| path)).collect());
    }
    let mut by_class: Vec<Option<PathBuf>> = vec![None; classes.len()];
    for (name, path) in folders {
        let is_it = |class: usize| classes[class] == name || names.ids.get(class).is_some_and(|id| *id == name);
        let Some(class) = (0..classes.len()).find(|&class| is_it(class)) else {
            if image_files(root, &path)?.is_empty() {
                continue;
            }
            return Err(DataError::content(path, "images of no class", "the name or the id of a class"));
        };
        if let Some(other) = by_class[class].replace(path.clone()) {
            let found = format!("a second folder of class `{}`, beside {}", classes[class], other.display());
            return Err(DataError::content(path, found, "one"));
        }
    }
    if let Some(class) = by_class.iter().position(Option::is_none)
        && !source.partial
    {
        let called = names.ids.get(class).unwrap_or(&classes[class]);
        return Err(DataError::content(root, "no folder of this name", format!("`{called}`")).advise(PARTIAL));
    }
    Ok((0..).zip(by_class).filter_map(|(class, path)| Some((class, path?))).collect())
}

/// The images in the folder of a class, below the root and in the order of their names.
fn image_files(root: &Path, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for entry in entries(folder)? {
        let path = entry.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        if !ENDINGS.contains(&ending.as_str()) {
            continue;
        }
        name_of(&path)?;
        if !is_inside(root, &path)?.is_file() {
            return Err(DataError::content(path, "no ordinary file", "an image"));
        }
        files.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
    }
    Ok(files)
}

/// What is in a folder, sorted by name; hidden entries are left out.
fn entries(folder: &Path) -> Result<Vec<DirEntry>, DataError> {
    let io = |source| DataError::io(folder, source);
    let mut entries: Vec<DirEntry> = std::fs::read_dir(folder).map_err(io)?.collect::<Result<_, _>>().map_err(io)?;
    entries.retain(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// What an entry is. A symbolic link may lead to another place in the folder, not out of it.
fn is_inside(root: &Path, path: &Path) -> Result<std::fs::Metadata, DataError> {
    let io = |source| DataError::io(path, source);
    let metadata = path.symlink_metadata().map_err(io)?;
    if !metadata.is_symlink() {
        return Ok(metadata);
    }
    let target = path.canonicalize().map_err(io)?;
    if !target.starts_with(root) {
        let found = format!("a symbolic link to {}", target.display());
        return Err(DataError::content(path, found, format!("one that stays in {}", root.display())));
    }
    target.metadata().map_err(io)
}

/// The name of an entry; it goes into digests and messages.
fn name_of(path: &Path) -> Result<String, DataError> {
    let name = path.file_name().unwrap_or_default();
    match name.to_str().filter(|name| !name.contains(char::is_control)) {
        Some(name) => Ok(name.to_owned()),
        None => {
            let folder = path.parent().unwrap_or(path);
            Err(DataError::content(folder, format!("the name {name:?}"), "UTF-8 without control characters"))
        }
    }
}

/// The digest and length of an image that looks sound from outside.
fn check(path: &Path, decoding: &Decoding) -> Result<([u8; 32], u64), DataError> {
    let bytes = read_file(path)?;
    decoding.check(&bytes).map_err(|(found, expected)| DataError::content(path, found, expected))?;
    Ok((Sha256::digest(&bytes).into(), bytes.len() as u64))
}

fn read_file(path: &Path) -> Result<Vec<u8>, DataError> {
    let io = |source| DataError::io(path, source);
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(DataError::content(path, format!("more than {MAX_FILE} bytes"), "a photograph"));
    }
    Ok(bytes)
}
