//! What is wrong with what a file has of a deployed form.

/// What is wrong with what a file has of a deployed form.
///
/// Names, shapes and dtypes other than the network's are a [`WeightsError`](crate::nn::WeightsError).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StoredError {
    /// A tensor has NaN or infinity.
    #[error("`{name}`: NaN or infinite values")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// A tensor is missing.
    #[error("`{name}` is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// Ranges as they were stored once, in the order of places that have other names now.
    #[error(
        "`{name}`: ranges without the names of their places, which are no longer read; publish the run that this is from \
         again"
    )]
    UnnamedRanges {
        /// The tensor.
        name: &'static str,
    },
    /// Integers that the bits do not hold.
    #[error("`{name}`: expected integers from {smallest} to {largest}, found {low} to {high}")]
    Integers {
        /// The tensor.
        name: String,
        /// The smallest integer of the grid that is said to be there.
        smallest: f64,
        /// The largest one.
        largest: f64,
        /// The smallest integer.
        low: f32,
        /// The largest one.
        high: f32,
    },
    /// A scale that is not positive.
    #[error("`{name}`: expected positive numbers, found {found}")]
    Scale {
        /// The tensor.
        name: String,
        /// The smallest scale.
        found: f32,
    },
    /// A range that ends before it begins.
    #[error("`{name}`: ranges from {low} down to {high}")]
    Descending {
        /// The tensor.
        name: String,
        /// Where it begins.
        low: f32,
        /// Where it ends.
        high: f32,
    },
    /// A range of other than two numbers.
    #[error("`{name}`: expected two numbers")]
    NotTwo {
        /// The tensor.
        name: String,
    },
    /// Blocks in a file that has no place for them.
    #[error("blocks are read from GGUF files alone")]
    NoBlocks,
}
