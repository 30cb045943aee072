//! The one error type of the crate.

use crate::nn;

/// What can go wrong in a stage, a model or a loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Candle refused an operation (shape, dtype, device).
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A setting or an input is impossible; the message says what was found and what was expected.
    #[error("{0}")]
    Invalid(String),
    /// A number is out of the range of what it is for.
    #[error(transparent)]
    OutOfRange(#[from] crate::ranges::OutOfRange),
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
    /// An [`Error::Invalid`] from anything printable.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
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
                Err(foreign) => Self::Nn(Box::new(nn::Error::Other(foreign))),
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
            own => Self::Other(Box::new(own)),
        }
    }
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
