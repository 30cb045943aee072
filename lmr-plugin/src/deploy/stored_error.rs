//! What is wrong with what a file has of a deployed form.

use crate::ranges::Bits;

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
    #[error(
        "`{name}`: expected integers from {} to {}, as {bits} bits hold, found {low} to {high}",
        -half(*bits), half(*bits) - 1.0
    )]
    Integers {
        /// The tensor.
        name: String,
        /// How many bits an integer is said to have.
        bits: Bits,
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

/// As many integers are negative.
pub(super) fn half(bits: Bits) -> f32 {
    (1u32 << (bits.get() - 1)) as f32
}
