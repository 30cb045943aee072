//! Why a trigger cannot be built, applied, or read from what was stored of it.

/// Why a trigger cannot be built, applied, or read from what was stored of it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// A filter for images that are not in color.
    #[error("a filter needs images of 3 channels, found {found}")]
    Channels {
        /// The channels of the images.
        found: usize,
    },
    /// A warp of images that have nothing to warp.
    #[error("cannot warp an image of {height}x{width} pixels")]
    TooSmallToWarp {
        /// The height of the images.
        height: usize,
        /// Their width.
        width: usize,
    },
    /// Another number of grids than of images.
    #[error("grid sampling: {images} images and {grids} grids")]
    GridCount {
        /// How many images there are.
        images: usize,
        /// How many grids.
        grids: usize,
    },
    /// Stored under the name of a form that there is not.
    #[error("form: expected one of {}, found {found:?}", known.join(", "))]
    UnknownForm {
        /// The forms that there are.
        known: Vec<&'static str>,
        /// The beginning of the name.
        found: String,
    },
    /// Stored with a target that is no class number.
    #[error("target: expected a class number, found {found:?}")]
    Target {
        /// What stands there.
        found: String,
    },
    /// A stored tensor has NaN or infinity, or no numbers at all.
    #[error("{name}: expected finite numbers")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// A stored tensor is missing.
    #[error("the tensor `{name}` is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A stored tensor has another shape or other elements.
    #[error("`{name}`: expected {expected:?} of floats, found {found:?} of {dtype}")]
    Shape {
        /// The tensor.
        name: String,
        /// The shape that it has to have.
        expected: Vec<usize>,
        /// The shape that it has.
        found: Vec<usize>,
        /// What its elements are.
        dtype: &'static str,
    },
    /// A stored number is out of range.
    #[error("`{name}`: expected {low} to {high}, found {found}")]
    Range {
        /// The tensor.
        name: String,
        /// The smallest number that there may be.
        low: f32,
        /// The largest one.
        high: f32,
        /// The number.
        found: f32,
    },
    /// A stored tensor that this form does not have.
    #[error("unknown tensor {name:?}")]
    Unknown {
        /// The beginning of its name.
        name: String,
    },
}
