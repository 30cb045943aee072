//! A network makes a trigger for each image that no other image's trigger can replace (Dynamic; Nguyen and Tran, 2020,
//! "Input-Aware Dynamic Backdoor Attack").

use std::sync::Arc;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::batch::{retarget, rolled, root_mean_square, share};
use crate::data::{Images, Normalization};
use crate::generators::Hourglass;
use crate::losses;
use crate::model::Model;
use crate::nn::{BatchNormMode, Builder, Eval, Train};
use crate::optim::{Optimizer, Rule, Schedule};
use crate::ranges::{BelowOne, Count, NonNegative, Positive, Shares, Times, UpToThird};
use crate::run::Run;
use crate::stage::{Context, Learns, Material, Outcome, Planted, Stage, Target};
use crate::train::{Descent, Epoch, Objective, Progress, Recipe, Scored};
use crate::triggers::InputAware;
use crate::{Error, Result};

/// Trains a network that places a small mask, then, in one loss, a network that fills it and the classifier. The pipeline's
/// trigger is of kind `learned`.
///
/// A share of every batch gets its own trigger and the target label; another share (the cross mode) gets the trigger of
/// other images and keeps its labels; the rest is clean. The other images are the next ones of the batch, where the
/// authors' code draws a second batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dynamic {
    /// Share of a batch that gets its trigger.
    pub poison_rate: UpToThird,
    /// Share of a batch that gets other images' triggers. Without it, the classifier reacts to one pattern.
    pub cross_rate: UpToThird,
    /// Share of an image that the mask may cover before it costs.
    pub density: BelowOne,
    /// Weight of what the mask covers beyond that; 100 in the paper.
    pub density_weight: NonNegative,
    /// Epochs of the mask's training, which uses no label; 25 in the paper.
    pub mask_epochs: Count,
    /// Weight of the patterns' diversity in the loss; 1 in the paper.
    pub diversity: NonNegative,
    /// Learning rate of both networks (Adam with β of 0.5 and 0.9).
    pub generator_lr: Positive,
    /// The classifier's training; the pattern's network follows its schedule.
    pub training: Recipe,
}

impl Default for Dynamic {
    fn default() -> Self {
        Self {
            poison_rate: const { UpToThird::literal(0.1) },
            cross_rate: const { UpToThird::literal(0.1) },
            density: const { BelowOne::literal(0.032) },
            density_weight: const { NonNegative::literal(100.0) },
            mask_epochs: const { Count::literal(25) },
            diversity: const { NonNegative::literal(1.0) },
            generator_lr: const { Positive::literal(0.01) },
            training: Recipe::default(),
        }
    }
}

/// What the attack did.
#[derive(Clone, Debug, Serialize)]
pub struct InputAwareImplanted {
    /// Training images.
    pub samples: usize,
    /// The class that the trigger is meant to cause.
    pub target: u32,
    /// The mask's training: its loss.
    pub mask: Vec<f64>,
    /// Mean of the finished masks over some training images: the share of an image that the trigger replaces.
    pub mask_density: f64,
    /// Root mean square between two images' triggers, over the same images: 0 would be one trigger for all.
    pub trigger_distance: f64,
    /// One entry an epoch; accuracy counts the target as the label of a triggered image.
    pub epochs: Vec<Epoch>,
}

/// Keeps a quotient finite.
const EPS: f64 = 1e-7;
/// Adam's averages in the authors' code.
const BETAS: (BelowOne, BelowOne) = (BelowOne::literal(0.5), BelowOne::literal(0.9));
/// Training images that the finished trigger is described by, at most.
const DESCRIBED: usize = 128;

impl Dynamic {
    /// Trains both networks and, in place, `model` on `train`.
    pub fn implant(
        &self,
        model: &Model,
        train: &Images,
        target: u32,
        run: &Run<'_>,
    ) -> Result<(InputAware, InputAwareImplanted)> {
        let [channels, height, width] = train.shape();
        Hourglass::check_size([height, width])?;
        let (device, normalization) = (model.device().clone(), model.normalization());
        let network = |purpose: &str, outputs| {
            let builder = Builder::fresh(run.stream(&format!("attack-dynamic/{purpose}")), &device);
            Hourglass::new(channels, outputs, &builder)
        };
        let trigger = InputAware::new(normalization, network("pattern", channels)?, network("mask", 1)?);
        let mask = self.train_mask(&trigger, (train, normalization), run)?;
        let adam = adam(trigger.pattern_network())?;
        let mut batches = Batches { attack: self, normalization, target, trigger: &trigger, adam, diversity: None };
        let epochs = self.training.train("attack-dynamic", model, train, &mut batches, run)?;
        let some: Vec<usize> = (0..train.len().min(DESCRIBED)).collect();
        let (pixels, _) = train.batch(&some, &device)?;
        let (mask_density, trigger_distance) = describe(&trigger, &pixels)?;
        let report = InputAwareImplanted { samples: train.len(), target, mask, mask_density, trigger_distance, epochs };
        Ok((trigger, report))
    }

    /// Trains the mask's network alone. Returns the loss of every epoch.
    pub(super) fn train_mask(
        &self,
        trigger: &InputAware,
        (train, normalization): (&Images, &Normalization),
        run: &Run<'_>,
    ) -> Result<Vec<f64>> {
        let training = Recipe {
            epochs: self.mask_epochs.into(),
            min_steps: const { Times::literal(0) },
            lr: self.generator_lr,
            schedule: Schedule::Steps(Shares::new([0.4, 0.8])?),
            warmup_epochs: const { Times::literal(0) },
            clip_norm: None,
            ..self.training.clone()
        };
        let mut adam = adam(trigger.mask_network())?;
        let mut masks = Masks { attack: self, normalization, trigger };
        let device = trigger.mask_network().device();
        let epochs = training.descend("attack-dynamic/mask", (train, &device), &mut adam, &mut masks, run)?;
        Ok(epochs.iter().map(|epoch| epoch.loss).collect())
    }
}

fn adam(network: &Hourglass) -> Result<Optimizer> {
    Ok(Optimizer::new(network.params(), Rule::AdamW, BETAS.0, const { NonNegative::literal(0.0) })?.with_beta2(BETAS.1))
}

/// How much finished masks cover, and how far apart the triggers of neighbouring images are.
fn describe(trigger: &InputAware, pixels: &Tensor) -> Result<(f64, f64)> {
    let (pattern, mask) = (trigger.pattern(&mut Eval, pixels)?, trigger.mask(&mut Eval, pixels)?);
    let scalar = |t: Tensor| Ok::<_, Error>(f64::from(t.mean_all()?.to_scalar::<f32>()?));
    let painted = pattern.broadcast_mul(&mask)?;
    Ok((scalar(mask)?, scalar(root_mean_square(&(&painted - rolled(&painted)?)?)?)?))
}

/// The mask's training: small masks that differ as much as their images do.
struct Masks<'a> {
    attack: &'a Dynamic,
    normalization: &'a Normalization,
    trigger: &'a InputAware,
}

impl Descent for Masks<'_> {
    fn score(&mut self, pixels: Tensor, _labels: Tensor) -> Result<Scored> {
        let mask = self.trigger.mask(&mut Train { batch_norm: BatchNormMode::Batch }, &pixels)?;
        let beyond = mask.affine(1.0, -self.attack.density.get())?.relu()?.mean_all()?;
        let x = self.normalization.apply(&pixels)?;
        let diversity = ratio(&(&x - rolled(&x)?)?, &(&mask - rolled(&mask)?)?)?;
        Ok(Scored { loss: (beyond.affine(self.attack.density_weight.get(), 0.0)? + diversity)?, judged: None })
    }
}

/// The mean over images of how far inputs are apart, by how far outputs are.
fn ratio(inputs: &Tensor, outputs: &Tensor) -> Result<Tensor> {
    let outputs = (root_mean_square(outputs)? + EPS)?;
    Ok((root_mean_square(inputs)? / outputs)?.mean_all()?)
}

/// The main training.
struct Batches<'a> {
    attack: &'a Dynamic,
    normalization: &'a Normalization,
    target: u32,
    trigger: &'a InputAware,
    /// Moves the pattern's network.
    adam: Optimizer,
    /// The batch's diversity loss; `None` if the batch is too small to hold a trigger.
    diversity: Option<Tensor>,
}

impl Objective for Batches<'_> {
    fn prepare(&mut self, pixels: Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
        let size = labels.elem_count();
        let (own, cross) = (share(self.attack.poison_rate.get(), size), share(self.attack.cross_rate.get(), size));
        self.diversity = None;
        if own.min(cross) == 0 || own + 2 * cross > size {
            return Ok((pixels, labels));
        }
        let part = |from, count| Ok::<_, Error>(pixels.narrow(0, from, count)?.contiguous()?);
        let (first, second, partners) = (part(0, own)?, part(own, cross)?, part(own + cross, cross)?);
        // Both in one pass, so that batch norm sees them together.
        let sources = Tensor::cat(&[&first, &partners], 0)?;
        let patterns = self.trigger.pattern(&mut Train { batch_norm: BatchNormMode::Batch }, &sources)?;
        let masks = self.trigger.mask(&mut Eval, &sources)?;
        let painted = Tensor::cat(
            &[
                InputAware::paint(&first, &patterns.narrow(0, 0, own)?, &masks.narrow(0, 0, own)?)?,
                InputAware::paint(&second, &patterns.narrow(0, own, cross)?, &masks.narrow(0, own, cross)?)?,
                pixels.narrow(0, own + cross, size - own - cross)?,
            ],
            0,
        )?;
        let pairs = own.min(cross);
        let apart = |t: &Tensor| Ok::<_, Error>((t.narrow(0, 0, pairs)? - t.narrow(0, own, pairs)?)?);
        let inputs = apart(&self.normalization.apply(&sources)?)?;
        self.diversity = Some(ratio(&inputs, &apart(&self.normalization.apply(&patterns)?)?)?);
        Ok((painted, retarget(&labels, own, self.target)?))
    }

    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let loss = losses::cross_entropy(logits, labels)?.mean_all()?;
        Ok(match &self.diversity {
            Some(diversity) => (loss + diversity.affine(self.attack.diversity.get(), 0.0)?)?,
            None => loss,
        })
    }

    fn after_backward(&mut self, gradients: &GradStore, at: Progress) -> Result<()> {
        if self.diversity.is_some() {
            let factor = self.attack.training.schedule.factor(at.step, at.total, 0);
            self.adam.step(gradients, self.attack.generator_lr.get() * factor, None)?;
        }
        Ok(())
    }
}

impl Stage for Dynamic {
    const KIND: &'static str = "attack-dynamic";
    const SUMMARY: &'static str = "implants a backdoor whose trigger a network makes for each image (Dynamic)";
    type Role = Learns;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        self.training.faults("training")
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material<Target>) -> Result<Outcome<()>> {
        let Material { train, backdoor: Target(target) } = material;
        let target = *target;
        let (trigger, implanted) = self.implant(ctx.model, train, target, &ctx.run)?;
        super::implanted(&implanted, &Planted { trigger: Arc::new(trigger), target }, None)
    }
}
