//! Inference over a set of images, in batches.

use candle_core::{Device, Tensor};

use crate::data::Images;
use crate::run::Run;
use crate::triggers::Trigger;
use crate::{Error, Result};

const BATCH: usize = 256;

/// Logits of every image, `f32[N,K]` on the CPU. `forward` maps pixels `f32[B,C,H,W]` in `[0,1]` to logits; with a
/// `trigger`, every image carries it. Logits that are not finite are refused: a largest one would mean nothing.
pub fn logits(
    forward: &dyn Fn(&Tensor) -> Result<Tensor>,
    images: &Images,
    trigger: Option<&dyn Trigger>,
    device: &Device,
    (run, phase): (&Run<'_>, &str),
) -> Result<Tensor> {
    let order: Vec<usize> = (0..images.len()).collect();
    let mut parts = Vec::with_capacity(order.len().div_ceil(BATCH));
    for (i, batch) in order.chunks(BATCH).enumerate() {
        run.checkpoint()?;
        let (mut pixels, _) = images.batch(batch, device)?;
        if let Some(trigger) = trigger {
            pixels = trigger.apply(&pixels)?;
        }
        let z = forward(&pixels)?.to_device(&Device::Cpu)?;
        if let Some(value) = z.flatten_all()?.to_vec1::<f32>()?.into_iter().find(|v| !v.is_finite()) {
            return Err(Error::NotFinite { what: "logit", step: i, value: value.into() });
        }
        parts.push(z);
        run.progress(phase, i * BATCH + batch.len(), images.len(), "image");
    }
    if parts.is_empty() {
        return Err(Error::invalid(format!("{phase}: no images to look at")));
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// The class with the largest logit of every row; the lowest of tied ones.
pub fn classes(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.argmax(1)?.to_vec1()?)
}

/// Share of `predicted` that equals the label.
pub fn accuracy(predicted: &[u32], labels: &[u32]) -> f64 {
    predicted.iter().zip(labels).filter(|(p, y)| p == y).count() as f64 / predicted.len().max(1) as f64
}
