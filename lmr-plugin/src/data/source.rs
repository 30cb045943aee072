//! Where the pixels of a set of images come from.

use std::borrow::Cow;

use crate::Result;

/// Equally large images that are read one by one: from memory, or from files that are decoded each time.
///
/// Threads read at the same time, and what they get must not depend on it.
pub trait ImageSource: Send + Sync {
    /// How many images there are.
    fn count(&self) -> usize;

    /// Channels, height and width of every image.
    fn shape(&self) -> [usize; 3];

    /// Writes the bytes of the image at `index`, below [`count`](Self::count), to `out` in CHW order: the same ones every
    /// time. `out` has exactly their length.
    fn read(&self, index: usize, out: &mut [u8]) -> Result<()>;

    /// Bytes that two images of a kind of source share only if they are equal, for digests: the pixels, unless a source
    /// knows something shorter that determines them.
    fn identity(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let mut pixels = vec![0; self.shape().iter().product()];
        self.read(index, &mut pixels)?;
        Ok(pixels.into())
    }
}

/// Pixels that were decoded once, in NCHW order.
pub(super) struct InMemory {
    pub pixels: Vec<u8>,
    pub shape: [usize; 3],
}

impl InMemory {
    fn image(&self, index: usize) -> &[u8] {
        let len = self.shape.iter().product::<usize>();
        &self.pixels[index * len..][..len]
    }
}

impl ImageSource for InMemory {
    fn count(&self) -> usize {
        self.pixels.len() / self.shape.iter().product::<usize>()
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(self.image(index));
        Ok(())
    }

    fn identity(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        Ok(self.image(index).into())
    }
}
