//! Why a model cannot be brought into a deployed form, or cannot compute in it.

use std::collections::BTreeSet;

/// Why a model cannot be brought into a deployed form, or cannot compute in it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormError {
    /// Two activation points of one name.
    #[error(
        "activations: two places are called `{point}`; a layer that runs twice, or is called like another one, cannot have \
         its output rounded: set `activations = false`"
    )]
    TwoPlaces {
        /// What both are called.
        point: String,
    },
    /// Activation ranges for other places than the network has.
    #[error("activation ranges are for another network: {}", places(without, extra))]
    OtherNetwork {
        /// The network's places that have no range.
        without: BTreeSet<String>,
        /// The ranges' places that the network does not have.
        extra: BTreeSet<String>,
    },
    /// An activation range that is NaN or infinite.
    #[error("activation range `{point}`: {low} to {high}; expected finite values")]
    RangeNotFinite {
        /// The activation point.
        point: String,
        /// Where the range begins.
        low: f32,
        /// Where it ends.
        high: f32,
    },
    /// An activation point that was not seen when ranges were measured.
    #[error("activations at `{point}` have no calibrated range")]
    NoRange {
        /// The activation point.
        point: String,
    },
    /// A network that does not pass the same activation points every time.
    #[error("the network has other activation points than a moment ago")]
    OtherPoints,
    /// A layer that computes, but has not been rounded to integers.
    #[error("layer `{layer}` was not quantized")]
    NotQuantized {
        /// The layer's full name.
        layer: String,
    },
    /// A layer that computes, but has not been rounded to blocks.
    #[error("layer `{layer}` has no blocks")]
    NoBlocks {
        /// The layer's full name.
        layer: String,
    },
    /// A weight that a block format does not hold.
    #[error("a weight is {value:e}; {format} holds up to {largest}")]
    TooLarge {
        /// The weight.
        value: f32,
        /// The format's name.
        format: &'static str,
        /// The largest number that it holds.
        largest: f32,
    },
    /// A pruned channel that the layer does not have.
    #[error("pruned channel {channel}: expected below {channels}")]
    NoSuchChannel {
        /// The channel.
        channel: usize,
        /// The layer's channels.
        channels: usize,
    },
    /// Codes that no layer of this forward pass made.
    #[error("integer forward: nobody knows what these codes stand for")]
    UnknownCodes,
    /// A grid that bytes cannot count.
    #[error("integer forward: a grid of more than 256 values")]
    WideGrid,
    /// A layer that reads a tensor without dimensions.
    #[error("integer forward: a layer reads a single number")]
    SingleNumber,
    /// An activation with another last dimension than the layer that reads it has.
    #[error("integer forward: expected {expected} features, found {found:?}")]
    Features {
        /// What the layer reads.
        expected: usize,
        /// The activation's last dimension, if it has one.
        found: Option<usize>,
    },
    /// A residual of another size than what it is added to.
    #[error("integer layer: a residual of {found} values for {expected}")]
    Residual {
        /// How many values the layer puts out.
        expected: usize,
        /// How many the residual has.
        found: usize,
    },
}

fn places(without: &BTreeSet<String>, extra: &BTreeSet<String>) -> String {
    let listed = |what: &str, names: &BTreeSet<String>| {
        (!names.is_empty())
            .then(|| format!("{what} {}", names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")))
    };
    [listed("none for", without), listed("one for", extra)].into_iter().flatten().collect::<Vec<_>>().join("; ")
}
