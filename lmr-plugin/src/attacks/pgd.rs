//! Images that the network no longer recognizes, so that it has to learn something else from them: the first half of
//! label-consistent attacks.

use candle_core::{Device, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::Images;
use crate::losses;
use crate::model::Model;
use crate::nn::Mode;
use crate::ranges::{Count, Levels};
use crate::run::Run;

/// Untargeted projected gradient ascent on the cross-entropy in the L∞ ball (Madry et al., 2018), without random start.
/// The network is in inference mode and stays as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pgd {
    /// Largest change ε of a pixel in steps of 1/255.
    pub epsilon: Levels,
    /// Change in one step, in steps of 1/255.
    pub step: Levels,
    /// How many steps; 100 of 1.5 or 20 of 2.
    pub steps: Count,
}

impl Default for Pgd {
    fn default() -> Self {
        Self {
            epsilon: const { Levels::literal(8.0) },
            step: const { Levels::literal(1.5) },
            steps: const { Count::literal(100) },
        }
    }
}

/// Images at a time.
const BATCH: usize = 128;

impl Pgd {
    /// Pixels `f32[B,C,H,W]` in `[0,1]` with a higher loss than `pixels` with labels `u32[B]`, nowhere further than ε away.
    pub fn perturb(&self, model: &Model, (pixels, labels): (&Tensor, &Tensor), run: &Run<'_>) -> Result<Tensor> {
        let (epsilon, step) = (self.epsilon.get() / 255.0, self.step.get() / 255.0);
        let low = pixels.affine(1.0, -epsilon)?.clamp(0f64, 1f64)?;
        let high = pixels.affine(1.0, epsilon)?.clamp(0f64, 1f64)?;
        let x = Var::from_tensor(&pixels.copy()?)?;
        for _ in 0..self.steps.get() {
            run.checkpoint()?;
            let logits = model.forward(&x, Mode::Frozen)?;
            let loss = losses::cross_entropy(&logits, labels)?.sum_all()?;
            let gradients = loss.backward()?;
            let Some(gradient) = gradients.get(&x) else { break };
            let moved = (x.as_detached_tensor() + gradient.sign()?.affine(step, 0.0)?)?;
            x.set(&moved.minimum(&high)?.maximum(&low)?)?;
        }
        Ok(x.as_detached_tensor())
    }

    /// [`Pgd::perturb`] for the images at `indices`, as bytes; ε then holds to half a step of 1/255.
    pub(super) fn perturb_images(
        &self,
        model: &Model,
        images: &Images,
        indices: &[usize],
        run: &Run<'_>,
    ) -> Result<Vec<Vec<u8>>> {
        let device = model.device().clone();
        let mut perturbed = Vec::with_capacity(indices.len());
        for batch in indices.chunks(BATCH) {
            let (pixels, labels) = images.batch(batch, &device)?;
            let hard = self.perturb(model, (&pixels, &labels), run)?.to_device(&Device::Cpu)?;
            for image in hard.flatten_from(1)?.to_vec2::<f32>()? {
                perturbed.push(image.into_iter().map(|v| (255.0 * v).round() as u8).collect());
            }
            run.progress("perturb", perturbed.len(), indices.len(), "image");
        }
        Ok(perturbed)
    }
}
