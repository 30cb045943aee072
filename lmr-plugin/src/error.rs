//! The one error type of the crate.

use crate::attacks::AttackError;
use crate::data::DataError;
use crate::deploy::{FormError, StoredError};
use crate::nn;
use crate::optim::OptimizerError;
use crate::purify::PurifyError;
use crate::ranges::{NotAscending, OutOfRange};
use crate::triggers::TriggerError;
use crate::zoo::ZooError;

/// What can go wrong in a stage, a model or a loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Candle refused an operation (shape, dtype, device).
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Images, labels or numbers about them cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A trigger cannot be built, applied or read.
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    /// One of the zoo's networks cannot be built, loaded or cut.
    #[error(transparent)]
    Zoo(#[from] ZooError),
    /// An optimizer cannot be made, or cannot make a step.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// A purifying stage cannot work with what it was given.
    #[error(transparent)]
    Purify(#[from] PurifyError),
    /// An attack cannot do what it is set to.
    #[error(transparent)]
    Attack(#[from] AttackError),
    /// A model cannot be brought into a deployed form, or cannot compute in it.
    #[error(transparent)]
    Form(#[from] FormError),
    /// What a file has of a deployed form cannot be used.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// A setting goes beyond what the images or the model allow.
    #[error("{key}: expected {expected}, found {found}")]
    Setting {
        /// The setting, as a pipeline file calls it.
        key: &'static str,
        /// What these images or this model allow.
        expected: String,
        /// What was set.
        found: usize,
    },
    /// Images that a trigger's network cannot halve as often as it must.
    #[error(
        "the trigger's network needs images whose sides are multiples of {multiple}, found {}x{}", found[0], found[1]
    )]
    Sides {
        /// What both sides have to be multiples of.
        multiple: usize,
        /// Height and width of the images.
        found: [usize; 2],
    },
    /// Shares that do not ascend.
    #[error(transparent)]
    NotAscending(#[from] NotAscending),
    /// A number is out of the range of what it is for.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// A stage needs the full-precision model, and it is already in a form that is shipped.
    #[error("the model is {form}; purify the full-precision model instead (`from = \"<an earlier stage>\"`)")]
    Deployed {
        /// The word for the form: `quantized`, `pruned`.
        form: &'static str,
    },
    /// No earlier stage found out what a stage works from.
    #[error("no stage before this one gives `{name}`, which it needs")]
    MissingFinding {
        /// The finding's name.
        name: &'static str,
    },
    /// What a stage is to be shown is not there.
    #[error("{stage} needs {what}")]
    NotShown {
        /// The stage's kind.
        stage: &'static str,
        /// What it needs.
        what: &'static str,
    },
    /// The network does not offer what a stage needs.
    #[error("{what} needs {needs}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What the network would have to be.
        needs: &'static str,
    },
    /// The images are not what the model was made for.
    #[error(
        "the model takes images of {} channels and tells {} classes apart, found {} channels and {} classes",
        expected[0], expected[1], found[0], found[1]
    )]
    OtherImages {
        /// Channels and classes of the model.
        expected: [usize; 2],
        /// Channels and classes of the images.
        found: [usize; 2],
    },
    /// A class that the model does not have.
    #[error("{what} {class}: expected one below {classes}")]
    NoSuchClass {
        /// Whose class it is.
        what: &'static str,
        /// What was found.
        class: u32,
        /// K.
        classes: usize,
    },
    /// An image could not be read from where it is kept.
    #[error(transparent)]
    Image(Box<dyn std::error::Error + Send + Sync>),
    /// A checkpoint does not fit the model it was meant for.
    #[error("{0}")]
    Weights(#[from] nn::WeightsError),
    /// A layer or an operation refused what it was given.
    #[error(transparent)]
    Nn(Box<nn::Error>),
    /// Training or scoring produced NaN or infinity.
    #[error("{what} is {value} at step {step}; lower the learning rate or set `clip-norm`")]
    NotFinite {
        /// What was not finite ("loss", "gradient norm", ...).
        what: &'static str,
        /// The step, counted from 0, at which it was seen.
        step: usize,
        /// The value itself: NaN or an infinity.
        value: f64,
    },
    /// What a stage, a trigger or a network of the caller's own refuses; nothing in this crate makes one.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
    /// The run was asked to stop (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
    /// A finding could not be written as or read from JSON.
    #[error("finding `{name}`: {source}")]
    Finding {
        /// The finding's name.
        name: &'static str,
        /// What serde said.
        source: serde_json::Error,
    },
}

impl Error {
    /// An [`Error::Setting`] of a number.
    pub(crate) fn setting(key: &'static str, expected: String, found: usize) -> Self {
        Self::Setting { key, expected, found }
    }
}

impl From<nn::Error> for Error {
    /// What both crates know stays what it is, and an error of this crate that an interpreter passed on is itself again.
    fn from(error: nn::Error) -> Self {
        match error {
            nn::Error::Candle(error) => Self::Candle(error),
            nn::Error::Weights(faults) => Self::Weights(faults),
            nn::Error::Other(error) => match error.downcast::<Self>() {
                Ok(own) => *own,
                Err(foreign) => Self::Other(foreign),
            },
            error => Self::Nn(Box::new(error)),
        }
    }
}

impl From<Error> for nn::Error {
    /// For interpreters of this crate: what they fail with passes through the layers.
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => Self::Candle(error),
            Error::Weights(faults) => Self::Weights(faults),
            Error::Nn(error) => *error,
            Error::Other(foreign) => Self::Other(foreign),
            own => Self::Other(Box::new(own)),
        }
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
