//! A set of equally large images as bytes, and the way from there to a float batch.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::data::Augment;
use crate::data::augment::Draw;
use crate::rng::Rng;
use crate::{Error, Result};

/// Labelled images of one shape: `u8` pixels in NCHW order, row-major, and a class for each image.
///
/// Cloning is cheap: clones share pixels and labels. Bytes take a quarter of the memory of floats, and CIFAR-10's
/// 50,000 training images stay at 150 MB.
#[derive(Clone)]
pub struct Images {
    pixels: Arc<Vec<u8>>,
    labels: Arc<Vec<u32>>,
    /// Channels, height, width.
    shape: [usize; 3],
    classes: usize,
}

impl std::fmt::Debug for Images {
    /// Leaves the pixels out: a few million numbers help nobody in a message.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shape, classes, .. } = self;
        f.debug_struct("Images").field("len", &self.len()).field("shape", shape).field("classes", classes).finish()
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
        let [c, h, w] = shape;
        if shape.contains(&0) {
            return Err(Error::invalid(format!("images of {c}x{h}x{w} (channels, height, width) have no pixels")));
        }
        let expected = [c, h, w].iter().try_fold(labels.len(), |n, &d| n.checked_mul(d));
        if expected != Some(pixels.len()) {
            return Err(Error::invalid(format!(
                "{} images of {c}x{h}x{w} (channels, height, width): found {} bytes of pixels, expected {}",
                labels.len(),
                pixels.len(),
                expected.map_or_else(|| "more than memory can hold".to_owned(), |n| n.to_string()),
            )));
        }
        if let Some((index, label)) = labels.iter().enumerate().find(|&(_, &label)| label as usize >= classes) {
            return Err(Error::invalid(format!(
                "label of image {index}: found class {label}, expected one below {classes}"
            )));
        }
        Ok(Self { pixels: Arc::new(pixels), labels: Arc::new(labels), shape, classes })
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
        self.shape
    }

    /// How many classes there are; every label is below.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The class of every image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// All pixels, image after image, in NCHW order.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The pixels of one image in CHW order, if there is such an image.
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        self.pixels.chunks_exact(self.image_len()).nth(index)
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
        let mut pixels = Vec::with_capacity(indices.len() * self.image_len());
        for &index in indices {
            pixels.extend_from_slice(self.bytes(index));
        }
        let labels = indices.iter().map(|&index| self.labels[index]).collect();
        Ok(Self { pixels: Arc::new(pixels), labels: Arc::new(labels), ..*self })
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
        self.assemble(indices, device, |slot, out| {
            for (out, &byte) in out.iter_mut().zip(self.bytes(indices[slot])) {
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
        let [_, height, width] = self.shape;
        let draws: Vec<Draw> = indices.iter().map(|_| augment.draw([height, width], rng)).collect();
        self.assemble(indices, device, |slot, out| {
            let planes = self.bytes(indices[slot]).chunks_exact(height * width);
            for (out, plane) in out.chunks_exact_mut(height * width).zip(planes) {
                draws[slot].render(plane, out, [height, width]);
            }
        })
    }

    /// Fills a batch in parallel, one image at a time: `fill(slot, pixels of that slot)`.
    fn assemble(
        &self,
        indices: &[usize],
        device: &Device,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<(Tensor, Tensor)> {
        if indices.is_empty() {
            return Err(Error::invalid("a batch needs at least one image, found none"));
        }
        self.check(indices)?;
        let [c, h, w] = self.shape;
        let mut pixels = vec![0f32; indices.len() * self.image_len()];
        pixels.par_chunks_exact_mut(self.image_len()).enumerate().for_each(|(slot, out)| fill(slot, out));
        let labels: Vec<u32> = indices.iter().map(|&index| self.labels[index]).collect();
        let images = Tensor::from_vec(pixels, (indices.len(), c, h, w), device)?;
        let labels = Tensor::from_vec(labels, indices.len(), device)?;
        Ok((images, labels))
    }

    fn image_len(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self, index: usize) -> &[u8] {
        &self.pixels[index * self.image_len()..][..self.image_len()]
    }

    fn check(&self, indices: &[usize]) -> Result<()> {
        match indices.iter().find(|&&index| index >= self.len()) {
            Some(index) => Err(Error::invalid(format!("image {index} was asked for, there are {}", self.len()))),
            None => Ok(()),
        }
    }
}

/// A byte as a float in [0, 1]: divided, not multiplied by a rounded 1/255, so values equal those of torchvision.
pub(super) fn unit(byte: u8) -> f32 {
    f32::from(byte) / 255.0
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

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
        assert_eq!(chosen.image(1), images().image(0));
        assert_eq!(chosen.image(0), chosen.image(2));
        assert_eq!(chosen.image(3), None);
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

    #[test]
    fn bytes_become_the_floats_of_a_division() {
        assert_eq!((unit(0), unit(255)), (0.0, 1.0));
        assert!((0..=255u8).all(|byte| (unit(byte) * 255.0).round() as u8 == byte));
    }
}
