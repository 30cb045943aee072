//! A set of equally large images, and the way from their bytes to a float batch.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::data::augment::Draw;
use crate::data::source::InMemory;
use crate::data::{Augment, DataError, ImageSource};
use crate::rng::Rng;

/// Labelled images of one shape: a source of pixels as bytes, which of its images are in the set, and the class of each.
///
/// Cloning and selecting are cheap: all sets share the source. In memory, bytes take a quarter of what floats would, and
/// CIFAR-10's 50,000 training images stay at 150 MB; a source that decodes files keeps no pixel at all.
#[derive(Clone)]
pub struct Images {
    source: Arc<dyn ImageSource>,
    /// Which images of the source are in the set, in its order.
    indices: Arc<Vec<usize>>,
    labels: Arc<Vec<u32>>,
    classes: usize,
}

impl std::fmt::Debug for Images {
    /// Leaves the pixels out: a few million numbers help nobody in a message.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (len, shape) = (self.len(), self.shape());
        f.debug_struct("Images").field("len", &len).field("shape", &shape).field("classes", &self.classes).finish()
    }
}

impl Images {
    /// Takes over `pixels` (NCHW) and `labels` of images of `shape` (channels, height, width).
    ///
    /// Refuses a zero dimension, a number of pixels that does not fit, and a label outside `0..classes`. A set may be
    /// empty; what cannot work without images says so itself.
    ///
    /// ```
    /// use lmr_plugin::data::Images;
    /// let images = Images::new(vec![0, 64, 128, 255], vec![1, 0], [1, 1, 2], 2)?;
    /// assert_eq!(images.len(), 2);
    /// let error = Images::new(vec![0, 64, 128, 255], vec![1, 9], [1, 1, 2], 2).unwrap_err();
    /// assert_eq!(error.to_string(), "label of image 1: found class 9, expected one below 2");
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn new(pixels: Vec<u8>, labels: Vec<u32>, shape: [usize; 3], classes: usize) -> Result<Self> {
        check_shape(shape)?;
        let [c, h, w] = shape;
        let expected = [c, h, w].iter().try_fold(labels.len(), |n, &d| n.checked_mul(d));
        if expected != Some(pixels.len()) {
            return Err(DataError::PixelCount { images: labels.len(), shape, found: pixels.len(), expected }.into());
        }
        Self::from_source(Arc::new(InMemory { pixels, shape }), labels, classes)
    }

    /// All images of a source, with their classes.
    ///
    /// Refuses a zero dimension, a number of labels that does not fit, and a label outside `0..classes`.
    pub fn from_source(source: Arc<dyn ImageSource>, labels: Vec<u32>, classes: usize) -> Result<Self> {
        check_shape(source.shape())?;
        let count = source.count();
        if labels.len() != count {
            return Err(DataError::LabelCount { images: count, found: labels.len() }.into());
        }
        if let Some((index, &found)) = labels.iter().enumerate().find(|&(_, &label)| label as usize >= classes) {
            return Err(DataError::Label { index, found, classes }.into());
        }
        Ok(Self { source, indices: Arc::new((0..count).collect()), labels: Arc::new(labels), classes })
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Channels, height and width of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.source.shape()
    }

    /// How many classes there are; every label is below.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of every image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The pixels of one image in CHW order.
    pub fn image(&self, index: usize) -> Result<Vec<u8>> {
        self.check(&[index])?;
        let mut pixels = vec![0; self.image_len()];
        self.read(index, &mut pixels)?;
        Ok(pixels)
    }

    /// All pixels, image after image, in NCHW order.
    pub fn pixels(&self) -> Result<Vec<u8>> {
        let mut pixels = vec![0; self.len() * self.image_len()];
        self.fill(&mut pixels, |index, out| self.read(index, out))?;
        Ok(pixels)
    }

    /// The same set with all its pixels in memory: for few images that are looked at many times.
    pub fn in_memory(&self) -> Result<Self> {
        Self::new(self.pixels()?, self.labels.to_vec(), self.shape(), self.classes)
    }

    /// Bytes that tell an image from others, for digests; see [`ImageSource::identity`].
    pub fn identity(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        self.check(&[index])?;
        self.source.identity(self.indices[index])
    }

    /// How many images each class has, by class.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        for &label in self.labels.iter() {
            counts[label as usize] += 1;
        }
        counts
    }

    /// The images at `indices`, in that order; an index may occur more than once.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        self.check(indices)?;
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        let indices = indices.iter().map(|&index| self.indices[index]).collect();
        Ok(Self { indices: Arc::new(indices), labels: Arc::new(labels), ..self.clone() })
    }

    /// The images of some classes, which get the numbers of their places in `classes`.
    ///
    /// ```
    /// use lmr_plugin::data::Images;
    /// let images = Images::new(vec![7, 8, 9], vec![0, 1, 2], [1, 1, 1], 3)?.of_classes(&[2, 0])?;
    /// assert_eq!((images.pixels()?, images.labels(), images.classes()), (vec![7, 9], &[1, 0][..], 2));
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn of_classes(&self, classes: &[u32]) -> Result<Self> {
        let place = |label: u32| classes.iter().position(|class| *class == label);
        let kept: Vec<usize> = (0..self.len()).filter(|&index| place(self.labels[index]).is_some()).collect();
        let selected = self.select(&kept)?;
        let labels = selected.labels.iter().filter_map(|label| Some(place(*label)? as u32)).collect();
        Ok(Self { labels: Arc::new(labels), classes: classes.len(), ..selected })
    }

    /// The same images with class `order[c]` for class `c`: the classes in another order.
    ///
    /// ```
    /// let images = lmr_plugin::data::Images::new(vec![0, 1, 2], vec![0, 1, 2], [1, 1, 1], 3)?;
    /// assert_eq!(images.reordered(&[2, 0, 1])?.labels(), [2, 0, 1]);
    /// assert!(images.reordered(&[0, 0, 1]).is_err());
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn reordered(&self, order: &[u32]) -> Result<Self> {
        let mut seen = order.to_vec();
        seen.sort_unstable();
        if !seen.iter().map(|&class| class as usize).eq(0..self.classes) {
            return Err(DataError::Order { classes: self.classes, found: order.len() }.into());
        }
        let labels = self.labels.iter().map(|&label| order[label as usize]).collect();
        Ok(Self { labels: Arc::new(labels), ..self.clone() })
    }

    /// The images at `indices` as `f32` in [0, 1] of shape `[B, C, H, W]`, and their labels as `u32` of shape `[B]`.
    ///
    /// ```
    /// use candle_core::Device;
    /// let images = lmr_plugin::data::Images::new(vec![0, 51, 255, 102], vec![1, 0], [1, 1, 2], 2)?;
    /// let (x, y) = images.batch(&[1, 0], &Device::Cpu)?;
    /// assert_eq!(x.flatten_all()?.to_vec1::<f32>()?, [1.0, 0.4, 0.0, 0.2]);
    /// assert_eq!(y.to_vec1::<u32>()?, [0, 1]);
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn batch(&self, indices: &[usize], device: &Device) -> Result<(Tensor, Tensor)> {
        self.assemble(indices, device, |_, pixels, out| {
            for (out, &byte) in out.iter_mut().zip(pixels) {
                *out = unit(byte);
            }
        })
    }

    /// As [`Images::batch`], each image shifted and flipped at random as `augment` says.
    ///
    /// The random numbers are drawn in the order of `indices` before any pixel is touched, so the batch does not depend
    /// on the number of threads.
    pub fn augmented_batch(
        &self,
        indices: &[usize],
        augment: &Augment,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        let [_, height, width] = self.shape();
        let draws: Vec<Draw> = indices.iter().map(|_| augment.draw([height, width], rng)).collect();
        self.assemble(indices, device, |slot, pixels, out| {
            let planes = pixels.chunks_exact(height * width);
            for (out, plane) in out.chunks_exact_mut(height * width).zip(planes) {
                draws[slot].render(plane, out, [height, width], unit);
            }
        })
    }

    /// Reads a batch in parallel and turns bytes into floats, one image at a time: `convert(slot, bytes, floats)`.
    fn assemble(
        &self,
        indices: &[usize],
        device: &Device,
        convert: impl Fn(usize, &[u8], &mut [f32]) + Sync,
    ) -> Result<(Tensor, Tensor)> {
        if indices.is_empty() {
            return Err(DataError::EmptyBatch.into());
        }
        self.check(indices)?;
        let [c, h, w] = self.shape();
        let mut floats = vec![0f32; indices.len() * self.image_len()];
        self.fill(&mut floats, |slot, out| {
            let mut bytes = vec![0; out.len()];
            self.read(indices[slot], &mut bytes)?;
            convert(slot, &bytes, out);
            Ok(())
        })?;
        let labels: Vec<u32> = indices.iter().map(|&index| self.labels[index]).collect();
        let images = Tensor::from_vec(floats, (indices.len(), c, h, w), device)?;
        let labels = Tensor::from_vec(labels, indices.len(), device)?;
        Ok((images, labels))
    }

    /// Fills `out` in parallel, one image at a time. Of several errors the first in order is returned, whichever thread
    /// was faster.
    fn fill<T: Send>(&self, out: &mut [T], fill: impl Fn(usize, &mut [T]) -> Result<()> + Sync) -> Result<()> {
        let slots = out.par_chunks_exact_mut(self.image_len()).enumerate();
        let error = slots.filter_map(|(slot, out)| fill(slot, out).err()).find_first(|_| true);
        error.map_or(Ok(()), Err)
    }

    fn image_len(&self) -> usize {
        self.shape().iter().product()
    }

    pub(crate) fn read(&self, index: usize, out: &mut [u8]) -> Result<()> {
        self.source.read(self.indices[index], out)
    }

    fn check(&self, indices: &[usize]) -> Result<()> {
        match indices.iter().find(|&&index| index >= self.len()) {
            Some(&index) => Err(DataError::Index { index, len: self.len() }.into()),
            None => Ok(()),
        }
    }
}

fn check_shape(shape: [usize; 3]) -> Result<()> {
    if shape.contains(&0) {
        return Err(DataError::NoPixels { shape }.into());
    }
    Ok(())
}

/// A byte as a float in [0, 1]: divided, not multiplied by a rounded 1/255, so values equal those of torchvision.
pub(crate) fn unit(byte: u8) -> f32 {
    f32::from(byte) / 255.0
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::Error;

    fn images() -> Images {
        // Three images of two channels, two rows and three columns: byte = image * 100 + channel * 10 + row * 3 + column.
        let byte = |i: usize| (i / 12 * 100 + i % 12 / 6 * 10 + i % 6) as u8;
        Images::new((0..36).map(byte).collect(), vec![2, 0, 2], [2, 2, 3], 3).unwrap()
    }

    #[rstest]
    #[case::too_few(vec![0; 3], vec![0, 1], [1, 1, 2], 2, "found 3 bytes of pixels, expected 4")]
    #[case::too_many(vec![0; 5], vec![0, 1], [1, 1, 2], 2, "found 5 bytes of pixels, expected 4")]
    #[case::overflow(vec![], vec![0], [usize::MAX, 2, 2], 2, "more than memory can hold")]
    #[case::no_width(vec![], vec![], [1, 1, 0], 2, "images of 1x1x0")]
    #[case::label(vec![0; 4], vec![0, 2], [1, 1, 2], 2, "label of image 1: found class 2, expected one below 2")]
    fn impossible_sets_are_refused(
        #[case] pixels: Vec<u8>,
        #[case] labels: Vec<u32>,
        #[case] shape: [usize; 3],
        #[case] classes: usize,
        #[case] message: &str,
    ) {
        let error = Images::new(pixels, labels, shape, classes).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn selection_keeps_order_and_repeats() {
        let chosen = images().select(&[2, 0, 2]).unwrap();
        assert_eq!(chosen.labels(), [2, 2, 2]);
        assert_eq!(chosen.image(1).unwrap(), images().image(0).unwrap());
        assert_eq!(chosen.image(0).unwrap(), chosen.image(2).unwrap());
        assert_eq!(chosen.image(3).unwrap_err().to_string(), "image 3 was asked for, there are 3");
        assert_eq!(chosen.select(&[1]).unwrap().pixels().unwrap(), images().image(0).unwrap());
        assert_eq!(chosen.class_counts(), [0, 0, 3]);
        assert!(images().select(&[]).unwrap().is_empty());
        let error = images().select(&[0, 3]).unwrap_err().to_string();
        assert_eq!(error, "image 3 was asked for, there are 3");
    }

    #[test]
    fn batches_keep_channel_row_and_column() {
        let (x, y) = images().batch(&[1, 2], &Device::Cpu).unwrap();
        assert_eq!(x.dims(), [2, 2, 2, 3]);
        assert_eq!(y.to_vec1::<u32>().unwrap(), [0, 2]);
        for (image, byte) in [(0, 100u8), (1, 200)] {
            let found = x.get(image).unwrap().to_vec3::<f32>().unwrap();
            assert_eq!(found[1][1][2], f32::from(byte + 10 + 5) / 255.0);
            assert_eq!(found[0][1][0], f32::from(byte + 3) / 255.0);
        }
        assert!(images().batch(&[], &Device::Cpu).unwrap_err().to_string().contains("at least one image"));
        assert!(images().batch(&[7], &Device::Cpu).is_err());
    }

    /// Images of two pixels that cannot be read from the third on.
    struct Damaged;

    impl ImageSource for Damaged {
        fn count(&self) -> usize {
            100
        }

        fn shape(&self) -> [usize; 3] {
            [1, 1, 2]
        }

        fn read(&self, index: usize, out: &mut [u8]) -> Result<()> {
            out.fill(index as u8);
            if index < 3 { Ok(()) } else { Err(Error::Image(format!("image {index} is damaged").into())) }
        }
    }

    #[test]
    fn sources_are_read_when_asked() {
        let images = Images::from_source(Arc::new(Damaged), vec![0; 100], 1).unwrap();
        let sound = images.select(&[2, 0]).unwrap();
        assert_eq!(sound.pixels().unwrap(), [2, 2, 0, 0]);
        assert_eq!(sound.in_memory().unwrap().identity(0).unwrap(), sound.identity(0).unwrap());
        let all: Vec<usize> = (0..100).collect();
        for _ in 0..20 {
            let error = images.batch(&all, &Device::Cpu).unwrap_err().to_string();
            assert_eq!(error, "image 3 is damaged", "the first, whichever thread was faster");
        }
        let error = Images::from_source(Arc::new(Damaged), vec![0; 99], 1).unwrap_err().to_string();
        assert_eq!(error, "100 images: found 99 labels, expected as many");
    }

    #[test]
    fn bytes_become_the_floats_of_a_division() {
        assert_eq!((unit(0), unit(255)), (0.0, 1.0));
        assert!((0..=255u8).all(|byte| (unit(byte) * 255.0).round() as u8 == byte));
    }
}
