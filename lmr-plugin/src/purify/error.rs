//! Why a purifying stage cannot work with what it was given.

/// Why a purifying stage cannot work with what it was given.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PurifyError {
    /// A model that knows too little to unlearn anything.
    #[error(
        "the model's accuracy on the clean images is {accuracy:.3}, already at or below stop-accuracy = {stop_accuracy}; \
         are labels, normalization and classes those the model was trained with?"
    )]
    AccuracyTooLow {
        /// The model's accuracy on the clean images.
        accuracy: f64,
        /// Where unlearning stops.
        stop_accuracy: f64,
    },
    /// Scores for another number of columns than the head has.
    #[error("expected a score for each of {columns} columns, found {found}")]
    ScoreCount {
        /// The head's columns.
        columns: usize,
        /// How many scores there are.
        found: usize,
    },
    /// A pruned column that the head does not have.
    #[error("pruned column {column}: expected below {columns}")]
    NoSuchColumn {
        /// The column.
        column: usize,
        /// The head's columns.
        columns: usize,
    },
    /// A head that is not trained.
    #[error("the head's weight is not among the trainable parameters")]
    HeadNotTrainable,
}
