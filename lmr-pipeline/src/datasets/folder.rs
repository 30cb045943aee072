//! A folder of photographs: in it a folder for each class, in that and in folders below it the images of the class, one a file.
//! Which are read, and that symbolic links are followed, is as in torchvision's `ImageFolder`.
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
use unicode_normalization::UnicodeNormalization;

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
    /// The classes whose images are read; all if absent.
    pub wanted: Option<&'a [u32]>,
}

/// What is found in a folder.
#[derive(Default)]
struct Contents {
    /// Images by the folder they are in and their names.
    images: Vec<(PathBuf, String)>,
    /// How many other files there are.
    others: usize,
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
        let (folders, mut ignored) = class_folders(&root, source, names)?;
        for (class, folder) in folders {
            let contents = contents(&folder)?;
            ignored += contents.others;
            let paths = contents.images.into_iter().map(|(folder, name)| folder.join(name));
            let files: Vec<PathBuf> = paths.map(|path| path.strip_prefix(&root).unwrap_or(&path).to_owned()).collect();
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
        if ignored > 0 {
            tracing::info!("{}: passed over {ignored} files that are no images or beside the classes", root.display());
        }
        let path = source.path.clone();
        let provenance = FileProvenance { path, repo: None, bytes, ignored, sha256: listing(&files) };
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

const PARTIAL: &str = "; where classes may be without images, set `partial = true` under [data]";

/// The folder of every wanted class that has one, in the order of the classes, and how many files are beside them.
fn class_folders(
    root: &Path,
    source: &FolderSource,
    names: Names<'_>,
) -> Result<(Vec<(u32, PathBuf)>, usize), DataError> {
    let (mut folders, mut files) = (Vec::new(), 0);
    for entry in entries(root)? {
        let path = entry.path();
        match metadata(&path)?.is_dir() {
            true => folders.push((name_of(&path)?, path)),
            false => files += 1,
        }
    }
    let classes = names.classes;
    let wanted = |class: usize| names.wanted.is_none_or(|wanted| wanted.contains(&(class as u32)));
    if source.sorted {
        if folders.len() != classes.len() {
            let found = format!("{} folders", folders.len());
            return Err(DataError::content(root, found, format!("{}, one for each class", classes.len())));
        }
        let all = (0..).zip(folders.into_iter().map(|(_, path)| path));
        return Ok((all.filter(|(class, _)| wanted(*class as usize)).collect(), files));
    }
    let mut by_class: Vec<Option<PathBuf>> = vec![None; classes.len()];
    for (name, path) in folders {
        // Some systems write `é` as one character, others as two.
        let same = |class: &str| class == name || class.nfc().eq(name.nfc());
        let is_it = |class: usize| same(&classes[class]) || names.ids.get(class).is_some_and(|id| same(id));
        let Some(class) = (0..classes.len()).find(|&class| is_it(class)) else {
            let contents = contents(&path)?;
            if contents.images.is_empty() {
                files += contents.others;
                continue;
            }
            return Err(DataError::content(path, "images of no class", "the name or the id of a class"));
        };
        if let Some(other) = by_class[class].replace(path.clone()) {
            let found = format!("a second folder of class `{}`, beside {}", classes[class], other.display());
            return Err(DataError::content(path, found, "one"));
        }
    }
    if let Some(class) = (0..classes.len()).find(|&class| wanted(class) && by_class[class].is_none())
        && !source.partial
    {
        let called = names.ids.get(class).unwrap_or(&classes[class]);
        return Err(DataError::content(root, "no folder of this name", format!("`{called}`")).advise(PARTIAL));
    }
    let found = (0..).zip(by_class).filter_map(|(class, path)| Some((class, path?)));
    Ok((found.filter(|(class, _)| wanted(*class as usize)).collect(), files))
}

/// What is in the folder of a class and in those below it, folder after folder, each in the order of names.
fn contents(folder: &Path) -> Result<Contents, DataError> {
    let mut contents = Contents::default();
    collect(folder, &mut Vec::new(), &mut contents)?;
    // As Python sorts what `os.walk` gives: folders as whole texts.
    contents.images.sort_by(|a, b| (a.0.as_os_str(), &a.1).cmp(&(b.0.as_os_str(), &b.1)));
    Ok(contents)
}

/// `above`: the folders that lead here, where links have led to, so that none is its own.
fn collect(folder: &Path, above: &mut Vec<PathBuf>, contents: &mut Contents) -> Result<(), DataError> {
    let real = folder.canonicalize().map_err(|source| DataError::io(folder, source))?;
    if above.contains(&real) {
        let found = format!("a symbolic link to {}, in which it is", real.display());
        return Err(DataError::content(folder, found, "one to another place"));
    }
    above.push(real);
    for entry in entries(folder)? {
        let path = entry.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let is_image = ENDINGS.contains(&ending.as_str());
        match metadata(&path)? {
            found if found.is_dir() => {
                name_of(&path)?;
                collect(&path, above, contents)?;
            }
            _ if !is_image => contents.others += 1,
            found if found.is_file() => contents.images.push((folder.to_owned(), name_of(&path)?)),
            _ => return Err(DataError::content(path, "no ordinary file", "an image")),
        }
    }
    above.pop();
    Ok(())
}

/// What is in a folder, sorted by name; hidden entries are left out.
fn entries(folder: &Path) -> Result<Vec<DirEntry>, DataError> {
    let io = |source| DataError::io(folder, source);
    let mut entries: Vec<DirEntry> = std::fs::read_dir(folder).map_err(io)?.collect::<Result<_, _>>().map_err(io)?;
    entries.retain(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// What an entry is, wherever a link leads.
fn metadata(path: &Path) -> Result<std::fs::Metadata, DataError> {
    path.metadata().map_err(|source| DataError::io(path, source))
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
