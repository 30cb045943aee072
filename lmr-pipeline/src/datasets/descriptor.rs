//! `datasets/<name>.toml`: what a data set is and where its files are.

use std::collections::HashSet;
use std::path::Path;

use lmr_plugin::data::Normalization;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{DataError, Split};
use crate::hub::names;
use crate::preprocess::{Interpolation, Preprocessing, Resize, check_side};

/// A data set: its classes, the shape of its images and where they come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Descriptor {
    /// The name configurations use, equal to the file's name without `.toml`: lower-case letters, digits, `_` and `-`.
    pub name: String,
    /// The name people use.
    pub title: String,
    /// The licence of the images: an SPDX identifier where there is one, otherwise "unknown".
    pub license: String,
    /// Where the data set is described.
    pub homepage: String,
    /// The name of each class, in the order of the labels.
    pub classes: Vec<String>,
    /// Other names of the classes in the same order, such as WordNet's ids. The folders of images may have either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_ids: Vec<String>,
    /// The shape every image has, or is brought to.
    pub image: ImageShape,
    /// Mean and standard deviation of the training split's pixels in [0, 1].
    pub normalization: Normalization,
    /// Where the training images are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<Source>,
    /// Where the test images are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Source>,
}

/// Channels, height and width of an image, and how one of another size is brought to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageShape {
    /// 1 for greyscale, 3 for colour. Stored images of the other kind are converted.
    pub channels: usize,
    /// Rows, 1 to 4096.
    pub height: usize,
    /// Columns, 1 to 4096.
    pub width: usize,
    /// What an image of any size is resized to before the centre of `height` and `width` is cut out. Without it, every
    /// image must have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// How it is resized; `bilinear` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
}

impl ImageShape {
    /// Channels, height and width in the order of a tensor's dimensions.
    pub fn chw(self) -> [usize; 3] {
        [self.channels, self.height, self.width]
    }
}

/// Where the images of one split are.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Source {
    /// A folder with a folder of images for each class.
    Folder(FolderSource),
    /// A pair of IDX files, the format of MNIST.
    Idx(IdxSource),
    /// Parquet files of a data set repository on the Hugging Face Hub.
    Parquet(ParquetSource),
}

/// A folder with a folder for each class, and in that and in folders below it the images of the class, as ImageNet is laid out.
///
/// Symbolic links are followed. Hidden entries, files that are not called as images or are beside the classes, and folders
/// without images are passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FolderSource {
    /// The folder. Relative to the `root` of a pipeline's `[data]`, otherwise to the descriptor's folder.
    pub path: String,
    /// Whether the folders, sorted by name, are the classes in their order, whatever they are called. Otherwise the name
    /// of a folder is the class, or its id.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sorted: bool,
    /// Whether classes may be without images.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// The same images on the Hugging Face Hub, for pipelines that name no `root`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<ParquetSource>,
}

/// Two IDX files, plain or gzipped, next to the descriptor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IdxSource {
    /// The images: unsigned bytes of three dimensions (image, row, column). Relative to the descriptor's folder.
    pub images: String,
    /// The labels: unsigned bytes of one dimension. Relative to the descriptor's folder.
    pub labels: String,
}

/// Parquet files with one row an image, all from one commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ParquetSource {
    /// The repository, `owner/name`.
    pub repo: String,
    /// A commit (40 lower-case hexadecimal digits), or a branch or tag, by default `main`. A branch can move: the
    /// report names the commit that was used, and giving that one here pins it.
    #[serde(default = "main_branch")]
    pub revision: String,
    /// The column with encoded images (PNG or JPEG): binary, or a group with a binary `bytes`.
    pub image_column: String,
    /// The column with the class, an integer.
    pub label_column: String,
    /// The files, in the order their rows are read.
    pub files: Vec<ParquetFile>,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// One Parquet file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ParquetFile {
    /// Its path in the repository.
    pub path: String,
    /// How many rows it has, checked when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// The SHA-256 of its bytes in hexadecimal digits, checked when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl<'de> Deserialize<'de> for Source {
    /// By hand, because a derived tagged enum no longer knows which field an error is about.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;

        fn rest<T: serde::de::DeserializeOwned, E: Error>(table: toml::Table) -> Result<T, E> {
            serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
                match error.path().to_string() {
                    path if path == "." => E::custom(error.inner().message()),
                    path => E::custom(format_args!("{path}: {}", error.inner().message())),
                }
            })
        }

        let mut table = toml::Table::deserialize(deserializer)?;
        match table.remove("kind") {
            Some(toml::Value::String(kind)) if kind == "folder" => rest(table).map(Self::Folder),
            Some(toml::Value::String(kind)) if kind == "idx" => rest(table).map(Self::Idx),
            Some(toml::Value::String(kind)) if kind == "parquet" => rest(table).map(Self::Parquet),
            Some(kind) => {
                Err(D::Error::custom(format_args!("kind: found {kind}, expected \"folder\", \"idx\" or \"parquet\"")))
            }
            None => Err(D::Error::custom("kind is missing; expected \"folder\", \"idx\" or \"parquet\"")),
        }
    }
}

impl Descriptor {
    /// Reads and checks a descriptor; `file` is for messages.
    pub fn parse(text: &str, file: &Path) -> Result<Self, DataError> {
        let refuse = |faults| DataError::Descriptor { file: file.to_owned(), faults };
        let parser = toml::Deserializer::parse(text).map_err(|error| refuse(vec![error.to_string()]))?;
        let descriptor: Self = serde_path_to_error::deserialize(parser).map_err(|error| {
            let message = error.inner().message();
            refuse(vec![match error.path().to_string() {
                path if path == "." => message.to_owned(),
                path => format!("{path}: {message}"),
            }])
        })?;
        let faults = descriptor.faults();
        if faults.is_empty() { Ok(descriptor) } else { Err(refuse(faults)) }
    }

    /// Where the images of a split are, if the descriptor says so.
    pub fn source(&self, split: Split) -> Option<&Source> {
        match split {
            Split::Train => self.train.as_ref(),
            Split::Test => self.test.as_ref(),
        }
    }

    /// How an image of any size becomes one of `image`, if it may have any.
    pub fn preprocessing(&self) -> Option<Preprocessing> {
        let widen = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
        Some(Preprocessing {
            size: [self.image.height, self.image.width],
            resize: self.image.resize?,
            interpolation: self.image.interpolation.unwrap_or_default(),
            mean: widen(&self.normalization.mean),
            std: widen(&self.normalization.std),
        })
    }

    /// Takes size, resizing and normalization from elsewhere. The result may have [`faults`](Self::faults).
    pub(super) fn set_preprocessing(&mut self, preprocessing: &Preprocessing) {
        [self.image.height, self.image.width] = preprocessing.size;
        self.image.resize = Some(preprocessing.resize);
        self.image.interpolation = Some(preprocessing.interpolation);
        self.normalization = preprocessing.normalization();
    }

    /// Everything impossible about it, each with the key.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !is_name(&self.name) {
            faults.push(format!(
                "name: found {:?}, expected lower-case letters, digits, `_` and `-`, at most 64",
                self.name
            ));
        }
        if self.classes.len() < 2 {
            faults.push(format!("classes: found {}, expected at least 2", self.classes.len()));
        }
        for (key, names) in [("classes", &self.classes), ("class-ids", &self.class_ids)] {
            let mut seen = HashSet::new();
            faults.extend(
                names.iter().filter(|name| !seen.insert(*name)).map(|name| format!("{key}: {name:?} occurs twice")),
            );
        }
        if ![0, self.classes.len()].contains(&self.class_ids.len()) {
            faults.push(format!(
                "class-ids: found {}, expected {}, one for each class",
                self.class_ids.len(),
                self.classes.len()
            ));
        }
        let ImageShape { channels, height, width, resize, interpolation } = self.image;
        if ![1, 3].contains(&channels) {
            faults.push(format!("image.channels: found {channels}, expected 1 or 3"));
        }
        for (key, side) in [("height", height), ("width", width)] {
            faults.extend(check_side(key, side).err().map(|fault| format!("image.{fault}")));
        }
        faults.extend(resize.and_then(|resize| resize.validate().err()).map(|fault| format!("image.{fault}")));
        if interpolation.is_some() && resize.is_none() {
            faults.push("image.interpolation: says how to resize, but there is no image.resize".to_owned());
        }
        if let Err(error) = self.normalization.validate(channels) {
            faults.push(error.to_string());
        }
        for split in [Split::Train, Split::Test] {
            let found = match self.source(split) {
                Some(Source::Folder(source)) => source.faults(),
                Some(Source::Idx(source)) => source.faults(&self.image),
                Some(Source::Parquet(source)) => source.faults(),
                None => Vec::new(),
            };
            faults.extend(found.into_iter().map(|fault| format!("{split}.{fault}")));
        }
        faults
    }
}

impl Source {
    /// The Parquet files that a split is read from, if it is, by a pipeline that names a `root` or none.
    pub fn parquet(&self, has_root: bool) -> Option<&ParquetSource> {
        match self {
            Self::Parquet(source) => Some(source),
            Self::Folder(source) if !has_root => source.hub.as_ref(),
            Self::Folder(_) | Self::Idx(_) => None,
        }
    }
}

impl FolderSource {
    fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            names::check_path(&self.path).err().map(|fault| format!("path: {fault}")).into_iter().collect();
        if self.sorted && self.partial {
            faults.push("partial: folders that are classes by their order cannot be missing; remove sorted".to_owned());
        }
        let hub = self.hub.iter().flat_map(ParquetSource::faults);
        faults.extend(hub.map(|fault| format!("hub.{fault}")));
        faults
    }
}

impl IdxSource {
    fn faults(&self, image: &ImageShape) -> Vec<String> {
        let mut faults = Vec::new();
        if image.channels != 1 {
            faults.push(format!("kind: IDX images are greyscale, but image.channels is {}", image.channels));
        }
        if image.resize.is_some() {
            faults.push("kind: IDX images are not resized, but there is image.resize".to_owned());
        }
        for (key, path) in [("images", &self.images), ("labels", &self.labels)] {
            faults.extend(names::check_path(path).err().map(|fault| format!("{key}: {fault}")));
        }
        faults
    }
}

impl ParquetSource {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        faults.extend(names::check_repo(&self.repo).err().map(|fault| format!("repo: {fault}")));
        faults.extend(names::check_revision(&self.revision).err().map(|fault| format!("revision: {fault}")));
        if self.files.is_empty() {
            faults.push("files: found none, expected at least one".to_owned());
        }
        for (index, file) in self.files.iter().enumerate() {
            faults.extend(names::check_path(&file.path).err().map(|fault| format!("files[{index}].path: {fault}")));
            if let Some(sha256) = &file.sha256
                && !names::is_hex(sha256, 64)
            {
                faults.push(format!("files[{index}].sha256: found {sha256:?}, expected 64 lower-case hex digits"));
            }
        }
        faults
    }
}

/// Whether this can be the name of a data set, and so part of a file's name.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}
