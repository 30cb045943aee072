//! Labelled images as bytes, turned into float batches on demand.
//!
//! Nothing here opens a file. A loader (or any caller's own code) hands over pixels, or an [`ImageSource`] that reads them
//! when they are wanted, and labels; stages receive a [`CleanSet`], the only data a purifying stage may see.

mod augment;
mod error;
mod images;
mod normalization;
mod source;
mod split;

pub use augment::Augment;
pub use error::DataError;
pub use images::Images;
pub(crate) use images::unit;
pub use normalization::Normalization;
pub use source::ImageSource;
pub use split::stratified_split;

use crate::Result;

/// The few clean, labelled images a purifying stage works with.
///
/// It knows nothing of the attack: no trigger, no triggered image, no target class, no test image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CleanSet {
    /// The images as raw pixels; at least one, unless made by [`CleanSet::none`].
    pub images: Images,
    /// How many classes the model tells apart; every label is below it.
    pub classes: usize,
}

impl CleanSet {
    /// Puts a clean set together; refuses an empty one.
    ///
    /// ```
    /// use lmr_plugin::data::{CleanSet, Images};
    /// let images = Images::new(vec![0, 128, 255, 7], vec![0, 2], [1, 1, 2], 3)?;
    /// let clean = CleanSet::new(images)?;
    /// assert_eq!((clean.classes, clean.absent_classes()), (3, vec![1]));
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn new(images: Images) -> Result<Self> {
        if images.is_empty() {
            return Err(DataError::EmptyCleanSet.into());
        }
        let classes = images.classes();
        Ok(Self { images, classes })
    }

    /// No images, for what looks at none, such as measuring a model as it is.
    pub fn none(shape: [usize; 3], classes: usize) -> Result<Self> {
        Ok(Self { images: Images::new(Vec::new(), Vec::new(), shape, classes)?, classes })
    }

    /// Classes without a single image, ascending.
    ///
    /// Unlearning pushes only the classes it sees down, so an absent class can pass for the backdoor class. A stage
    /// that ranks classes says so in its outcome when this is not empty.
    pub fn absent_classes(&self) -> Vec<usize> {
        let counts = self.images.class_counts();
        (0..self.classes).filter(|&class| counts[class] == 0).collect()
    }
}
