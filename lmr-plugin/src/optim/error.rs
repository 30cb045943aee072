//! Why an optimizer cannot be made, or cannot make a step.

/// Why an optimizer cannot be made, or cannot make a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizerError {
    /// Nothing to train.
    #[error("the model has no trainable parameters")]
    NoTrainable,
    /// A parameter that is not there, or is not trained.
    #[error("no trainable parameter is called `{name}`")]
    NoSuchParameter {
        /// What was looked for.
        name: String,
    },
    /// The graph between a parameter and the loss was cut somewhere.
    #[error("parameter `{name}` received no gradient")]
    NoGradient {
        /// The parameter.
        name: String,
    },
    /// A rule that has fewer averages than it needs.
    #[error("an optimizer lost its averages")]
    LostAverages,
}
