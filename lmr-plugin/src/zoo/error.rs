//! Why one of the zoo's networks cannot be built, loaded or cut.

use super::Pooling;

/// Why one of the zoo's networks cannot be built, loaded or cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// A [`ModelSpec`](super::ModelSpec) with faults, each of which names the key.
    #[error("model: {}", .0.join("; "))]
    Spec(Vec<String>),
    /// An option of a [`ModelSpec`](super::ModelSpec) that neither the caller nor the architecture gives a value.
    #[error("model: {key} has neither a value nor a default")]
    NoDefault {
        /// The option.
        key: &'static str,
    },
    /// Another number of widths than of prunable layers.
    #[error(
        "model: widths: expected {}, one for each prunable layer, found {found}",
        expected.map_or_else(|| "more numbers".to_owned(), |n| format!("{n} numbers"))
    )]
    WidthCount {
        /// How many layers there are; `None` where there are more than widths.
        expected: Option<usize>,
        /// How many widths were given.
        found: usize,
    },
    /// A depthwise layer with another width than the layer it reads.
    #[error("model: widths: expected {expected} for a depthwise layer, found {found}")]
    DepthwiseWidth {
        /// The width of the layer that it reads.
        expected: usize,
        /// The width that was given.
        found: usize,
    },
    /// A convolution in groups, whose filters are neither dense nor depthwise.
    #[error("{layer}: filters of {groups} groups cannot be removed")]
    Groups {
        /// The layer's full name.
        layer: String,
        /// How many groups it has.
        groups: usize,
    },
    /// A checkpoint that keeps queries, keys and values apart, and has not all of them.
    #[error("the checkpoint has only a part of `{name}`: `{missing}` is missing")]
    MissingPart {
        /// The tensor that they make together.
        name: String,
        /// The letters of those that are missing.
        missing: String,
    },
    /// Factors of LayerScale for another number of features than the layer before them has.
    #[error("`{name}`: {found:?} factors do not fit `{layer}`")]
    Scale {
        /// The factors.
        name: String,
        /// Their dimensions.
        found: Vec<usize>,
        /// The layer's tensor.
        layer: String,
    },
    /// A checkpoint whose names tell another pooling.
    #[error(
        "model: pooling: expected {}, as the names of the checkpoint's last norm tell, found {}",
        serde_json::json!(.found), serde_json::json!(.expected)
    )]
    Pooling {
        /// What the specification has.
        expected: Pooling,
        /// What the names tell.
        found: Pooling,
    },
    /// A tensor of queries, keys and values that does not have as many rows of each.
    #[error("`{name}`: {rows} rows are not q, k and v")]
    Rows {
        /// The tensor.
        name: String,
        /// How many rows it has.
        rows: usize,
    },
}
