//! Data sets: a descriptor says what and where, a loader brings small images into memory and decodes photographs when they
//! are wanted.
//!
//! ```no_run
//! use lmr_pipeline::datasets::{Dataset, Split};
//! let dataset = Dataset::open("fashion_mnist")?;
//! let test = dataset.load(Split::Test)?;
//! println!("{} images, from {}", test.images.len(), test.provenance.files[0].path);
//! # Ok::<(), lmr_pipeline::datasets::DataError>(())
//! ```

mod descriptor;
mod digest;
mod error;
mod folder;
mod idx;
mod jpeg;
#[cfg(not(feature = "parquet"))]
mod no_parquet;
#[cfg(feature = "parquet")]
mod parquet;
mod pixels;
#[cfg(feature = "parquet")]
mod spool;
mod subset;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lmr_plugin::data::{ImageSource, Images};
use lmr_plugin::run::{Observer, Quiet};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use descriptor::{Descriptor, FolderSource, IdxSource, ImageShape, ParquetFile, ParquetSource, Source};
pub use digest::digest;
pub(crate) use digest::sha256_file;
pub use error::DataError;
use folder::{Folder, Names};
use pixels::Decoding;
#[cfg(test)]
pub(crate) use pixels::decode_raster;
pub use subset::ClassChoice;
use subset::Subset;

use crate::hub::{Hub, RemoteFile, RemoteFiles, RepoKind};
use crate::preprocess::Preprocessing;

/// Far more than a Parquet file of images has; ImageNet's have 0.5 GB.
const MAX_FILE: u64 = 50 << 30;

/// The bytes of one encoded image (PNG or JPEG) of `shape` (channels, height, width), in CHW order.
pub(crate) fn decode_image(bytes: &[u8], shape: [usize; 3]) -> Result<Vec<u8>, String> {
    let mut pixels = vec![0; shape.iter().product()];
    let decoding = Decoding { shape, preprocessing: None };
    let refuse = |(found, expected): (String, String)| format!("found {found}, expected {expected}");
    decoding.decode(bytes, &mut pixels).map_err(refuse)?;
    Ok(pixels)
}

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// What models are trained on.
    Train,
    /// What they are measured on.
    Test,
}

impl Split {
    /// Its name in descriptors and configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A data set whose descriptor has been read; its images have not.
#[derive(Debug, Clone)]
pub struct Dataset {
    descriptor: Descriptor,
    file: PathBuf,
    root: Option<PathBuf>,
    subset: Option<Subset>,
    hub: Hub,
    /// Its classes in another order than the files have them.
    order: Option<Order>,
}

/// The classes of a data set in an order of somebody's choice.
#[derive(Debug, Clone)]
struct Order {
    /// The descriptor with its classes in that order.
    shown: Descriptor,
    /// Where each class of the files went.
    places: Vec<u32>,
}

/// The images of a split and where they came from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Loaded {
    /// The images, in the order of the files.
    pub images: Images,
    /// The files they were read from.
    pub provenance: Provenance,
}

/// Exactly which bytes the images of a split were read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Provenance {
    /// The data set's name.
    pub dataset: String,
    /// The split.
    pub split: Split,
    /// How many images there are.
    pub count: usize,
    /// Every file read, in order.
    pub files: Vec<FileProvenance>,
}

/// One file that was read, or a folder of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct FileProvenance {
    /// Its path as the descriptor gives it.
    pub path: String,
    /// The Hub repository and commit it belongs to, `owner/name@commit` even where the descriptor names a branch or
    /// tag; absent for a file next to the descriptor or in a folder the user named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// How many bytes it has, or all its images together.
    pub bytes: u64,
    /// How many files of a folder were passed over, being no images or beside the classes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ignored: usize,
    /// The SHA-256 of the bytes that were read, in hexadecimal digits. Of a folder, that of the lines that `sha256sum`
    /// prints of its images (path below the folder), sorted by path.
    pub sha256: String,
}

impl Dataset {
    /// Opens a data set by name or by the path of its descriptor.
    ///
    /// A name such as `cifar10` means `datasets/cifar10.toml` in the current folder or the nearest one above that has
    /// it. Anything with a path separator or ending in `.toml` is a path.
    pub fn open(reference: &str) -> Result<Self, DataError> {
        let here = std::env::current_dir().map_err(|source| DataError::io(".", source))?;
        Self::open_from(reference, &here)
    }

    fn open_from(reference: &str, here: &Path) -> Result<Self, DataError> {
        let is_path = reference.ends_with(".toml") || reference.contains(['/', '\\']);
        let file = if is_path { here.join(reference) } else { find(reference, here)? };
        let text = std::fs::read_to_string(&file).map_err(|source| DataError::io(&file, source))?;
        let descriptor = Descriptor::parse(&text, &file)?;
        if file.file_stem().is_none_or(|stem| stem != descriptor.name.as_str()) {
            let fault = format!("name: found {:?}, expected the name of the file without .toml", descriptor.name);
            return Err(DataError::Descriptor { file, faults: vec![fault] });
        }
        Ok(Self { descriptor, file, root: None, subset: None, hub: Hub::from_env(), order: None })
    }

    /// Looks for Parquet files in `root`, under the paths they have in the repository, and nowhere else; for folders of
    /// images too, instead of beside the descriptor.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// Leaves out all classes but these, which get new numbers in this order; images of others are passed over. An error says
    /// what is wrong with each choice.
    pub fn with_classes(mut self, classes: &[ClassChoice]) -> Result<Self, Vec<String>> {
        self.subset = Some(Subset::choose(&mut self.descriptor, classes)?);
        Ok(self)
    }

    /// Lets classes be without images, as `partial` does in a descriptor. `false` if no split is in folders, or the order of
    /// those is what tells the classes.
    pub fn allow_missing_classes(&mut self) -> bool {
        let splits = [&mut self.descriptor.train, &mut self.descriptor.test];
        let folders = splits.into_iter().flatten().filter_map(|source| match source {
            Source::Folder(folder) if !folder.sorted => Some(folder),
            _ => None,
        });
        folders.map(|folder| folder.partial = true).count() > 0
    }

    /// Uses this cache and Hub in place of those the environment names.
    #[must_use]
    pub fn with_hub(mut self, hub: Hub) -> Self {
        self.hub = hub;
        self
    }

    /// Brings images of any size to the input of a model in this way, instead of that of the descriptor.
    pub fn with_preprocessing(mut self, preprocessing: &Preprocessing) -> Result<Self, DataError> {
        self.descriptor.set_preprocessing(preprocessing);
        if let Some(order) = &mut self.order {
            order.shown.set_preprocessing(preprocessing);
        }
        match self.descriptor.faults() {
            faults if faults.is_empty() => Ok(self),
            faults => Err(DataError::Descriptor { file: self.file, faults }),
        }
    }

    /// Puts its classes into another order: class `c` of the files becomes class `places[c]`. `places` has every class once.
    #[must_use]
    pub(crate) fn with_order(mut self, places: Vec<u32>) -> Self {
        let mut shown = self.descriptor.clone();
        for (class, &place) in places.iter().enumerate() {
            for (to, from) in
                [(&mut shown.classes, &self.descriptor.classes), (&mut shown.class_ids, &self.descriptor.class_ids)]
            {
                if let (Some(to), Some(from)) = (to.get_mut(place as usize), from.get(class)) {
                    to.clone_from(from);
                }
            }
        }
        self.order = Some(Order { shown, places });
        self
    }

    /// What the descriptor says, its classes in the order in which they are used.
    pub fn descriptor(&self) -> &Descriptor {
        self.order.as_ref().map_or(&self.descriptor, |order| &order.shown)
    }

    /// The images of a split; files that are not here yet are downloaded.
    ///
    /// Images that the descriptor resizes, and those in folders, are decoded when they are wanted; others are now.
    pub fn load(&self, split: Split) -> Result<Loaded, DataError> {
        self.load_watched(split, &Quiet)
    }

    /// As [`Dataset::load`], with somebody who sees downloads and may stop them.
    pub fn load_watched(&self, split: Split, observer: &dyn Observer) -> Result<Loaded, DataError> {
        let source = self
            .descriptor
            .source(split)
            .ok_or_else(|| DataError::NoSplit { file: self.file.clone(), split: split.name() })?;
        let (images, files) = match source {
            Source::Folder(FolderSource { hub: Some(source), .. }) if self.root.is_none() => {
                self.load_parquet(source, observer)?
            }
            Source::Folder(source) => self.load_folder(source)?,
            Source::Idx(source) => self.load_idx(source)?,
            Source::Parquet(source) => self.load_parquet(source, observer)?,
        };
        let images = match &self.subset {
            Some(subset) => images
                .of_classes(&subset.chosen)
                .map_err(|source| DataError::Images { file: self.file.clone(), source })?,
            None => images,
        };
        if images.is_empty() {
            return Err(DataError::content(&self.file, format!("no images in the {split} split"), "at least one"));
        }
        let images = match &self.order {
            Some(order) => images
                .reordered(&order.places)
                .map_err(|source| DataError::Images { file: self.file.clone(), source })?,
            None => images,
        };
        tracing::debug!(dataset = self.descriptor.name, %split, images = images.len(), "loaded");
        let provenance = Provenance { dataset: self.descriptor.name.clone(), split, count: images.len(), files };
        Ok(Loaded { images, provenance })
    }

    fn load_idx(&self, source: &IdxSource) -> Result<Parts, DataError> {
        let local = |path: &str| self.file.with_file_name(path);
        let (images_file, labels_file) = (local(&source.images), local(&source.labels));
        let ImageShape { height, width, .. } = self.descriptor.image;
        let (pixels, count) = idx::read_images(&images_file, [height, width])?;
        let labels = idx::read_labels(&labels_file)?;
        if labels.len() != count {
            return Err(DataError::content(
                labels_file,
                format!("{} labels", labels.len()),
                format!("{count}, one for each image"),
            ));
        }
        let classes = self.stored_classes();
        if let Some((row, class)) = labels.iter().enumerate().find(|&(_, &class)| usize::from(class) >= classes) {
            return Err(DataError::content(labels_file, format!("class {class}"), format!("0 to {}", classes - 1))
                .at(format_args!("label {row}")));
        }
        let mut files = Vec::new();
        for (path, file) in [(&source.images, images_file), (&source.labels, labels_file)] {
            let (sha256, bytes) = sha256_file(&file).map_err(|source| DataError::io(&file, source))?;
            files.push(FileProvenance { path: path.clone(), repo: None, bytes, ignored: 0, sha256 });
        }
        Ok((self.in_memory(pixels, labels.into_iter().map(u32::from).collect())?, files))
    }

    fn load_folder(&self, source: &FolderSource) -> Result<Parts, DataError> {
        let root = match &self.root {
            Some(root) => root.join(&source.path),
            None => self.file.with_file_name(&source.path),
        };
        let names = match &self.subset {
            Some(subset) => Names { classes: &subset.classes, ids: &subset.ids, wanted: Some(&subset.chosen) },
            None => Names { classes: &self.descriptor.classes, ids: &self.descriptor.class_ids, wanted: None },
        };
        let (folder, labels, provenance) = Folder::open(&root, source, names, self.decoding())?;
        Ok((self.decoded_later(folder, labels)?, vec![provenance]))
    }

    /// How many classes the files tell apart.
    fn stored_classes(&self) -> usize {
        self.subset.as_ref().map_or(&self.descriptor.classes, |subset| &subset.classes).len()
    }

    fn decoding(&self) -> Decoding {
        Decoding { shape: self.descriptor.image.chw(), preprocessing: self.descriptor.preprocessing() }
    }

    fn in_memory(&self, pixels: Vec<u8>, labels: Vec<u32>) -> Result<Images, DataError> {
        Images::new(pixels, labels, self.descriptor.image.chw(), self.stored_classes())
            .map_err(|source| DataError::Images { file: self.file.clone(), source })
    }

    fn decoded_later(&self, source: impl ImageSource + 'static, labels: Vec<u32>) -> Result<Images, DataError> {
        Images::from_source(Arc::new(source), labels, self.stored_classes())
            .map_err(|source| DataError::Images { file: self.file.clone(), source })
    }

    /// Refuses a split that this build cannot read, whatever is done about it: in Parquet, or not in the cache, without the
    /// feature for it.
    pub(crate) fn check_build(&self, split: Split) -> Result<(), DataError> {
        let source = self.descriptor.source(split).and_then(|source| source.parquet(self.root.is_some()));
        match source {
            Some(_) if !cfg!(feature = "parquet") => Err(DataError::NoParquet { file: self.file.clone() }),
            Some(source) if self.root.is_none() => Ok(self.hub.check_build(&wanted(source, &remote_files(source)))?),
            _ => Ok(()),
        }
    }

    /// Which files of a split would have to be downloaded. Nothing is asked and no file is read.
    pub fn remote(&self, split: Split) -> Result<Option<RemoteSplit<'_>>, DataError> {
        match self.descriptor.source(split) {
            Some(Source::Parquet(source) | Source::Folder(FolderSource { hub: Some(source), .. }))
                if self.root.is_none() =>
            {
                let files = remote_files(source);
                let wanted = wanted(source, &files);
                let missing = self.hub.missing(&wanted)?.into_iter().map(str::to_owned).collect();
                Ok(Some(RemoteSplit { source, missing }))
            }
            _ => Ok(None),
        }
    }
}

/// A split that comes from the Hub.
#[derive(Debug)]
pub struct RemoteSplit<'a> {
    /// Where it comes from.
    pub source: &'a ParquetSource,
    /// The paths of the files that are not in the cache.
    pub missing: Vec<String>,
}

fn remote_files(source: &ParquetSource) -> Vec<RemoteFile<'_>> {
    fn remote(file: &ParquetFile) -> RemoteFile<'_> {
        RemoteFile { path: &file.path, sha256: file.sha256.as_deref(), max_bytes: MAX_FILE }
    }
    source.files.iter().map(remote).collect()
}

fn wanted<'a>(source: &'a ParquetSource, files: &'a [RemoteFile<'a>]) -> RemoteFiles<'a> {
    RemoteFiles { kind: RepoKind::Dataset, repo: &source.repo, revision: &source.revision, files }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Images and the files they came from.
type Parts = (Images, Vec<FileProvenance>);

/// The descriptor of the data set `name`: `datasets/<name>.toml` here or above.
fn find(name: &str, here: &Path) -> Result<PathBuf, DataError> {
    if descriptor::is_name(name) {
        let candidates = here.ancestors().map(|folder| folder.join("datasets").join(format!("{name}.toml")));
        if let Some(file) = candidates.into_iter().find(|file| file.is_file()) {
            return Ok(file);
        }
    }
    let known = known_names(here);
    let close = known.iter().max_by(|a, b| strsim::jaro(name, a).total_cmp(&strsim::jaro(name, b)));
    let hint = match close.filter(|close| strsim::jaro(name, close) > 0.7) {
        Some(close) => format!("; did you mean `{close}`?"),
        None if known.is_empty() => String::new(),
        None => format!("; there is {}", known.join(", ")),
    };
    Err(DataError::Unknown { name: name.to_owned(), from: here.to_owned(), hint })
}

/// The names in the nearest `datasets` folder, sorted.
fn known_names(here: &Path) -> Vec<String> {
    let Some(entries) = here.ancestors().find_map(|folder| std::fs::read_dir(folder.join("datasets")).ok()) else {
        return Vec::new();
    };
    let stem = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_suffix(".toml")?.to_owned())
    };
    let mut names: Vec<String> = entries.flatten().filter_map(stem).collect();
    names.sort();
    names
}
