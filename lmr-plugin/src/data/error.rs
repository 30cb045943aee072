//! What is wrong with images, labels and numbers about them.

/// What is wrong with images, labels and numbers about them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A clean set without images.
    #[error("the clean set is empty; a purifying stage needs at least one image")]
    EmptyCleanSet,
    /// A clean set of no images was asked for.
    #[error("the clean set's count is 0, expected at least 1")]
    NoCount,
    /// A clean set of more images than there are was asked for.
    #[error("the clean set's count is {count}, but there are only {total} images")]
    CountTooLarge {
        /// How many were asked for.
        count: usize,
        /// How many there are.
        total: usize,
    },
    /// A label of a class that there is not.
    #[error("label of image {index}: found class {found}, expected one below {classes}")]
    Label {
        /// Whose label it is.
        index: usize,
        /// The label.
        found: u32,
        /// How many classes there are.
        classes: usize,
    },
    /// Another number of labels than of images.
    #[error("{images} images: found {found} labels, expected as many")]
    LabelCount {
        /// How many images there are.
        images: usize,
        /// How many labels.
        found: usize,
    },
    /// An order of classes that does not have every class once.
    #[error("an order of {found} classes does not have each of {classes} classes once")]
    Order {
        /// How many classes there are.
        classes: usize,
        /// How many the order has.
        found: usize,
    },
    /// Another number of bytes than images of this shape have.
    #[error(
        "{images} images of {}x{}x{} (channels, height, width): found {found} bytes of pixels, expected {}",
        shape[0], shape[1], shape[2], expected.map_or_else(|| "more than memory can hold".to_owned(), |n| n.to_string())
    )]
    PixelCount {
        /// How many images there are, by their labels.
        images: usize,
        /// Channels, height, width.
        shape: [usize; 3],
        /// How many bytes were found.
        found: usize,
        /// How many were expected; `None` where no number of 64 bits says it.
        expected: Option<usize>,
    },
    /// A shape with a zero.
    #[error("images of {}x{}x{} (channels, height, width) have no pixels", shape[0], shape[1], shape[2])]
    NoPixels {
        /// Channels, height, width.
        shape: [usize; 3],
    },
    /// A batch of no images.
    #[error("a batch needs at least one image, found none")]
    EmptyBatch,
    /// No images to train on.
    #[error("training needs at least one image, found none")]
    NothingToTrainOn,
    /// No images to look at.
    #[error("{phase}: no images to look at")]
    NothingToLookAt {
        /// What was to look at them.
        phase: String,
    },
    /// An image that there is not.
    #[error("image {index} was asked for, there are {len}")]
    Index {
        /// The image that was asked for.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// Another number of means or deviations than of channels.
    #[error("normalization.{list}: found {found} values, expected {channels}, one for each channel")]
    NormalizationLength {
        /// `mean` or `std`.
        list: &'static str,
        /// How many values were found.
        found: usize,
        /// How many channels there are.
        channels: usize,
    },
    /// A mean or a deviation that nothing can be normalized with.
    #[error("normalization.{list}: found {found}, expected {expected}")]
    NormalizationValue {
        /// `mean` or `std`.
        list: &'static str,
        /// The number.
        found: f32,
        /// What it has to be.
        expected: &'static str,
    },
}
