//! Inference over a set of images, in batches.

use std::ops::RangeInclusive;

use candle_core::{Device, Tensor};

use crate::data::{DataError, Images};
use crate::run::Run;
use crate::{Error, Result};

/// What is done to a batch of pixels before the model sees it; also gets the images' indices.
pub type Alter<'a> = dyn Fn(&Tensor, &[usize]) -> Result<Tensor> + 'a;

/// Images at a time: as many as have this many values together, so that photographs take no more memory than thumbnails.
const BATCH_VALUES: usize = 5 << 20;
/// But not so few that vectors stay half empty, nor so many that progress stands still.
const BATCH: RangeInclusive<usize> = 16..=256;

/// Logits of every image, `f32[N,K]` on the CPU. `forward` maps pixels `f32[B,C,H,W]` in `[0,1]` to logits;
/// `alter` comes first. Logits that are not finite are refused: a largest one would mean nothing.
pub fn logits(
    forward: &dyn Fn(&Tensor) -> Result<Tensor>,
    images: &Images,
    alter: Option<&Alter<'_>>,
    device: &Device,
    run: (&Run<'_>, &str),
) -> Result<Tensor> {
    let mut parts = Vec::new();
    for_each_batch(forward, images, alter, device, run, |logits| {
        parts.push(logits);
        Ok(())
    })?;
    Ok(Tensor::cat(&parts, 0)?)
}

/// [`classes`] of the [`logits`] of every image, without keeping those: a thousand classes make them large.
pub fn predictions(
    forward: &dyn Fn(&Tensor) -> Result<Tensor>,
    images: &Images,
    alter: Option<&Alter<'_>>,
    device: &Device,
    run: (&Run<'_>, &str),
) -> Result<Vec<u32>> {
    let mut predicted = Vec::with_capacity(images.len());
    for_each_batch(forward, images, alter, device, run, |logits| {
        predicted.extend(classes(&logits)?);
        Ok(())
    })?;
    Ok(predicted)
}

fn for_each_batch(
    forward: &dyn Fn(&Tensor) -> Result<Tensor>,
    images: &Images,
    alter: Option<&Alter<'_>>,
    device: &Device,
    (run, phase): (&Run<'_>, &str),
    mut take: impl FnMut(Tensor) -> Result<()>,
) -> Result<()> {
    if images.is_empty() {
        return Err(DataError::NothingToLookAt { phase: phase.into() }.into());
    }
    let order: Vec<usize> = (0..images.len()).collect();
    let size = batch_size(images.shape());
    for (i, batch) in order.chunks(size).enumerate() {
        run.checkpoint()?;
        let (mut pixels, _) = images.batch(batch, device)?;
        if let Some(alter) = alter {
            pixels = alter(&pixels, batch)?;
        }
        let z = forward(&pixels)?.to_device(&Device::Cpu)?;
        if let Some(value) = z.flatten_all()?.to_vec1::<f32>()?.into_iter().find(|v| !v.is_finite()) {
            return Err(Error::NotFinite { what: "logit", step: i, value: value.into() });
        }
        take(z)?;
        run.progress(phase, i * size + batch.len(), images.len(), "image");
    }
    Ok(())
}

fn batch_size(shape: [usize; 3]) -> usize {
    (BATCH_VALUES / shape.iter().product::<usize>().max(1)).clamp(*BATCH.start(), *BATCH.end())
}

/// The class with the largest logit of every row; the lowest of tied ones.
pub fn classes(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.argmax(1)?.to_vec1()?)
}

/// Share of `predicted` that equals the label.
pub fn accuracy(predicted: &[u32], labels: &[u32]) -> f64 {
    predicted.iter().zip(labels).filter(|(p, y)| p == y).count() as f64 / predicted.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    #[rstest]
    #[case::digits([1, 28, 28], 256)]
    #[case::cifar([3, 32, 32], 256)]
    #[case::tiny_imagenet([3, 64, 64], 256)]
    #[case::photographs([3, 224, 224], 34)]
    #[case::large([3, 4096, 4096], 16)]
    fn batches_shrink_as_images_grow(#[case] shape: [usize; 3], #[case] expected: usize) {
        assert_eq!(super::batch_size(shape), expected);
    }
}
