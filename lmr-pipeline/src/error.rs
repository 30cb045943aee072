//! What can go wrong around a pipeline, and the exit code each kind of failure has.

use std::path::{Path, PathBuf};

use crate::hub::HubError;
use crate::problem::Problems;

/// Everything this crate reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pipeline file, or something it names, cannot work; found before anything ran.
    #[error("{0}")]
    Rejected(Problems),
    /// A checkpoint or a data file cannot be used.
    #[error("{}: {message}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// Data that was read cannot be used.
    #[error("data `{name}`: {message}")]
    Data {
        /// The dataset's name in the pipeline.
        name: String,
        /// What was found and what was expected.
        message: String,
    },
    /// The Hub or its cache did not give the checkpoint.
    #[error(transparent)]
    Hub(HubError),
    /// The run folder is in use by another process.
    #[error("{} is in use by another run; wait for it, or write elsewhere with `--out`", folder.display())]
    Busy {
        /// The run folder.
        folder: PathBuf,
    },
    /// A stage failed while it ran.
    #[error("stage[{index}] ({name}): {source}")]
    Stage {
        /// Position in the pipeline file.
        index: usize,
        /// The stage's name.
        name: String,
        /// What the stage said.
        source: Box<lmr_plugin::Error>,
    },
    /// All stages are finished, but their numbers are not what the pipeline's `[expect]` says.
    #[error("{}", missed(.0))]
    Missed(Vec<String>),
    /// The user asked to stop. Finished stages are kept.
    #[error("stopped; the same command continues after the stages that are finished in {}", folder.display())]
    Interrupted {
        /// The run folder.
        folder: PathBuf,
    },
    /// The received checkpoint's names or dtypes do not hold the new numbers.
    #[error("tensor `{name}` cannot be written as it was received: it {message}")]
    Unwritable {
        /// The tensor.
        name: String,
        /// What it is or has.
        message: String,
    },
    /// What should be published cannot be.
    #[error("publish: {0}")]
    Unpublishable(String),
    /// The Hub did not do what was asked.
    #[error("publishing to {repo}: {message}")]
    Publish {
        /// The repository.
        repo: String,
        /// Why not, and what to do.
        message: String,
    },
    /// The user asked to stop while something was sent.
    #[error(
        "stopped while publishing to {repo}: the commit is there as a whole or not at all; the same command goes on"
    )]
    PublishStopped {
        /// The repository.
        repo: String,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried ("write", "create", ...).
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A trigger cannot be read from the files that the pipeline names, or that a run left.
    #[error("{0}")]
    Trigger(String),
    /// The model or the device failed outside of any stage.
    #[error(transparent)]
    Model(#[from] lmr_plugin::Error),
    /// This crate broke its own rules.
    #[error("{0}; this is a bug")]
    Internal(String),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// 2 for bad input (pipeline file, checkpoint, data), 130 for Ctrl-C, 3 for numbers other than expected, 1 for a failure
    /// while running.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Rejected(_) | Self::Input { .. } | Self::Data { .. } | Self::Hub(_) | Self::Unpublishable(_) => 2,
            Self::Model(lmr_plugin::Error::Image(_)) => 2,
            Self::Stage { source, .. } if matches!(**source, lmr_plugin::Error::Image(_)) => 2,
            Self::Missed(_) => 3,
            Self::Interrupted { .. } | Self::PublishStopped { .. } | Self::Model(lmr_plugin::Error::Interrupted) => 130,
            Self::Busy { .. }
            | Self::Stage { .. }
            | Self::Unwritable { .. }
            | Self::Publish { .. }
            | Self::Io { .. }
            | Self::Trigger(_)
            | Self::Model(_)
            | Self::Internal(_) => 1,
        }
    }

    /// A file that cannot be used.
    pub fn input(path: &Path, message: impl Into<String>) -> Self {
        Self::Input { path: path.to_path_buf(), message: message.into() }
    }

    /// [`Error::Missed`], unless nothing was missed.
    pub fn unless_missed(missed: Vec<String>) -> Result<()> {
        if missed.is_empty() { Ok(()) } else { Err(Self::Missed(missed)) }
    }

    /// Turns an I/O error on `path` into an [`Error::Io`].
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

fn missed(all: &[String]) -> String {
    match all {
        [one] => format!("an expectation is missed: {one}"),
        all => format!("{} expectations are missed:\n  {}", all.len(), all.join("\n  ")),
    }
}

impl From<lmr_plugin::nn::Error> for Error {
    fn from(error: lmr_plugin::nn::Error) -> Self {
        Self::Model(error.into())
    }
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Interrupted => Self::Model(lmr_plugin::Error::Interrupted),
            error => Self::Hub(error),
        }
    }
}
