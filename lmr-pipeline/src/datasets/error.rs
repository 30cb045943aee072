//! What can go wrong between a data set's name and its images.

use std::path::PathBuf;

use crate::hub::HubError;

/// A data set cannot be found, read or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No descriptor has this name.
    #[error("data set `{name}`: no `datasets/{name}.toml` in {} or a folder above it{hint}", .from.display())]
    Unknown {
        /// The name asked for.
        name: String,
        /// The folder the search began in.
        from: PathBuf,
        /// Names that exist, or an empty text.
        hint: String,
    },
    /// A descriptor is no valid TOML or says something impossible.
    #[error("{}: {}", .file.display(), .faults.join("; "))]
    Descriptor {
        /// The descriptor.
        file: PathBuf,
        /// Everything found wrong, each with the key it is about.
        faults: Vec<String>,
    },
    /// The descriptor does not say where the images of a split are.
    #[error("{}: there is no `{split}` split; add a [{split}] table, or use the other split", .file.display())]
    NoSplit {
        /// The descriptor.
        file: PathBuf,
        /// The missing split.
        split: &'static str,
    },
    /// The images are in Parquet, which this build cannot read.
    #[error(
        "{}: the images are in Parquet, which this build of LMR cannot read; build it with the feature `parquet`",
        .file.display()
    )]
    NoParquet {
        /// The descriptor.
        file: PathBuf,
    },
    /// The operating system refused to read a file.
    #[error("{}: {source}{hint}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do, or an empty text.
        hint: String,
    },
    /// A file was read, but is not what it should be.
    #[error("{}{place}: found {found}, expected {expected}{hint}", .file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// Where in the file, such as ", row 17", or an empty text.
        place: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
        /// What to do, or an empty text.
        hint: &'static str,
    },
    /// The Hugging Face cache or Hub did not give a file.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The images do not make a set.
    #[error("{}: {source}", .file.display())]
    Images {
        /// The descriptor.
        file: PathBuf,
        /// What is wrong with them.
        source: lmr_plugin::Error,
    },
}

impl DataError {
    /// An [`DataError::Io`] without advice.
    pub(crate) fn io(file: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { file: file.into(), source, hint: String::new() }
    }

    /// A [`DataError::Content`] without place and advice.
    pub(crate) fn content(
        file: impl Into<PathBuf>,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> Self {
        Self::Content {
            file: file.into(),
            place: String::new(),
            found: found.to_string(),
            expected: expected.to_string(),
            hint: "",
        }
    }

    /// Adds where in the file it is; other errors stay as they are.
    pub(crate) fn at(mut self, at: impl std::fmt::Display) -> Self {
        if let Self::Content { place, .. } = &mut self {
            *place = format!(", {at}");
        }
        self
    }

    /// Adds what to do about it; other errors stay as they are.
    pub(crate) fn advise(mut self, advice: &'static str) -> Self {
        if let Self::Content { hint, .. } = &mut self {
            *hint = advice;
        }
        self
    }
}
