//! The one error type of the crate.

/// What can go wrong in a stage, a model or a loss.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Candle refused an operation (shape, dtype, device).
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A setting or an input is impossible; the message says what was found and what was expected.
    #[error("{0}")]
    Invalid(String),
    /// An image could not be read from where it is kept.
    #[error(transparent)]
    Image(Box<dyn std::error::Error + Send + Sync>),
    /// A checkpoint does not fit the model it was meant for.
    #[error("{0}")]
    Weights(#[from] crate::nn::WeightsError),
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

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
