//! A network learns to make the faint noise that the classifier learns to react to (LIRA; Doan et al., 2021, "LIRA:
//! Learnable, Imperceptible and Robust Backdoor Attacks").

use std::sync::Arc;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::Images;
use crate::generators::Autoencoder;
use crate::losses;
use crate::model::Model;
use crate::nn::{BatchNormMode, Builder, Eval, Mode, Train};
use crate::optim::{Optimizer, Rule};
use crate::ranges::{AboveZero, BelowOne, NonNegative, OpenFraction, Positive};
use crate::rng;
use crate::run::Run;
use crate::stage::{Context, Learns, Material, Outcome, Planted, Stage, Target};
use crate::train::{Epoch, Flow, Objective, Recipe};
use crate::triggers::Noise;
use crate::{Error, Result};

/// Trains a generator of noise and the classifier in alternating, then the classifier alone. Every image is trained on with and
/// without noise, so there is no poison rate. The pipeline's trigger is of kind `learned`.
///
/// Per batch of the first stage, (a) the generator moves towards noise that the classifier, frozen in inference mode, takes
/// for the target; (b) the classifier moves down `α·CE(f(x), y) + (1−α)·CE(f(τ(x)), t)` with the generator of the epoch's
/// beginning. Both halves of (b) go through batch norm as one batch, where the authors' code normalizes each by itself:
/// running statistics then are of what they will be used for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lira {
    /// Largest change ε of a pixel, in the units of `space`.
    pub epsilon: AboveZero,
    /// What ε is measured in.
    pub space: EpsilonSpace,
    /// Weight α of the clean images in the loss.
    pub clean_weight: OpenFraction,
    /// Learning rate of the generator (Adam).
    pub generator_lr: Positive,
    /// The first stage: generator and classifier in turns. 50 epochs in the paper.
    pub learn: Recipe,
    /// The second stage: the classifier alone. 250 epochs in the paper.
    pub training: Recipe,
}

/// What ε is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EpsilonSpace {
    /// Pixels in [0, 1]: 0.01 is two and a half steps of 1/255.
    Pixel,
    /// Normalized images, as in the authors' code: every channel's ε is multiplied by its standard deviation. 0.01 is then
    /// lost when images are stored with 8 bits.
    Normalized,
}

impl Default for Lira {
    fn default() -> Self {
        Self {
            epsilon: const { AboveZero::literal(0.01) },
            space: EpsilonSpace::Pixel,
            clean_weight: const { OpenFraction::literal(0.5) },
            generator_lr: const { Positive::literal(1e-4) },
            learn: Recipe::default(),
            training: Recipe::default(),
        }
    }
}

/// What the attack did.
#[derive(Clone, Debug, Serialize)]
pub struct LiraImplanted {
    /// Training images, each of them with and without noise.
    pub samples: usize,
    /// The class that the trigger is meant to cause.
    pub target: u32,
    /// The generator's mean loss in every epoch of the first stage.
    pub generator: Vec<f64>,
    /// The first stage; accuracy counts the target as the label of an image with noise.
    pub learn: Vec<Epoch>,
    /// The second stage, likewise.
    pub epochs: Vec<Epoch>,
}

impl Lira {
    /// Trains a generator and, in place, `model` on `train`.
    pub fn implant(&self, model: &Model, train: &Images, target: u32, run: &Run<'_>) -> Result<(Noise, LiraImplanted)> {
        let [channels, height, width] = train.shape();
        Autoencoder::check_size([height, width])?;
        let (device, normalization) = (model.device().clone(), model.normalization());
        let epsilon: Vec<f32> = match self.space {
            EpsilonSpace::Pixel => vec![self.epsilon.get() as f32; channels],
            EpsilonSpace::Normalized => normalization.std.iter().map(|std| self.epsilon.get() as f32 * std).collect(),
        };
        // Two generators that begin as one: the same stream twice.
        let noise = || {
            let builder = Builder::fresh(rng::stream(run.seed(), "attack-lira/generator"), &device);
            Noise::new(&epsilon, normalization, Autoencoder::new(channels, &builder)?)
        };
        let (current, old) = (noise()?, noise()?);
        let adam = adam(&current)?;
        let mut alternating = Alternating {
            attack: self,
            model,
            target,
            old,
            learner: Some(Learner { current, adam, losses: Vec::new(), history: Vec::new() }),
        };
        let learn = self.learn.train("attack-lira/learn", model, train, &mut alternating, run)?;
        let generator = alternating.learner.take().map_or_else(Vec::new, |learner| learner.history);
        let epochs = self.training.train("attack-lira", model, train, &mut alternating, run)?;
        Ok((alternating.old, LiraImplanted { samples: train.len(), target, generator, learn, epochs }))
    }
}

fn adam(noise: &Noise) -> Result<Optimizer> {
    let (beta1, decay) = const { (BelowOne::literal(0.9), NonNegative::literal(0.0)) };
    Optimizer::new(noise.generator().params(), Rule::AdamW, beta1, decay)
}

/// The generator that learns.
struct Learner {
    current: Noise,
    adam: Optimizer,
    losses: Vec<f64>,
    history: Vec<f64>,
}

struct Alternating<'a> {
    attack: &'a Lira,
    model: &'a Model,
    target: u32,
    /// Makes the noise that the classifier trains on.
    old: Noise,
    /// In the first stage.
    learner: Option<Learner>,
}

impl Alternating<'_> {
    /// `count` times the target.
    fn targets(&self, count: usize, device: &Device) -> Result<Tensor> {
        Ok(Tensor::full(self.target, count, device)?)
    }
}

impl Objective for Alternating<'_> {
    fn prepare(&mut self, pixels: Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
        let targets = self.targets(labels.elem_count(), labels.device())?;
        if let Some(learner) = &mut self.learner {
            let mut how = Train { batch_norm: BatchNormMode::Batch };
            let triggered = learner.current.with(&mut how, &pixels)?;
            let logits = self.model.forward(&triggered, Mode::Frozen)?;
            let loss = losses::cross_entropy(&logits, &targets)?.mean_all()?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(Error::NotFinite { what: "generator loss", step: learner.losses.len(), value });
            }
            learner.adam.step(&loss.backward()?, self.attack.generator_lr.get(), None)?;
            learner.losses.push(value);
        }
        let triggered = self.old.with(&mut Eval, &pixels)?;
        Ok((Tensor::cat(&[pixels, triggered], 0)?, Tensor::cat(&[labels, targets], 0)?))
    }

    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let losses = losses::cross_entropy(logits, labels)?;
        let half = losses.elem_count() / 2;
        let (clean, triggered) = (losses.narrow(0, 0, half)?.mean_all()?, losses.narrow(0, half, half)?.mean_all()?);
        let alpha = self.attack.clean_weight.get();
        Ok((clean.affine(alpha, 0.0)? + triggered.affine(1.0 - alpha, 0.0)?)?)
    }

    fn after_epoch(&mut self, _: usize) -> Result<Flow> {
        if let Some(learner) = &mut self.learner {
            let state = learner.current.generator().params().state_dict()?;
            self.old.generator().params().load_state_dict(&state)?;
            let sum: f64 = learner.losses.iter().sum();
            learner.history.push(sum / learner.losses.len().max(1) as f64);
            learner.losses.clear();
        }
        Ok(Flow::Continue)
    }
}

impl Stage for Lira {
    const KIND: &'static str = "attack-lira";
    const SUMMARY: &'static str = "implants a backdoor for faint noise that a network learns to make (LIRA)";
    type Role = Learns;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        [self.learn.faults("learn"), self.training.faults("training")].concat()
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material<Target>) -> Result<Outcome<()>> {
        let Material { train, backdoor: Target(target) } = material;
        let target = *target;
        let (noise, implanted) = self.implant(ctx.model, train, target, &ctx.run)?;
        super::implanted(&implanted, &Planted { trigger: Arc::new(noise), target }, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attacks::fixture::{images, model, same};

    /// Step (a) moves the new generator alone; the epoch's end hands it over to the old one.
    #[test]
    fn the_generator_moves_without_the_classifier() {
        let (model, attack) = (model(), Lira::default());
        let noise = || {
            let builder = Builder::fresh(rng::stream(0, "generator"), &Device::Cpu);
            Noise::new(&[0.01], model.normalization(), Autoencoder::new(1, &builder).unwrap()).unwrap()
        };
        let (old, current) = (noise(), noise());
        let adam = adam(&current).unwrap();
        let learner = Some(Learner { current, adam, losses: Vec::new(), history: Vec::new() });
        let (before, start) =
            (model.network().params().state_dict().unwrap(), old.generator().params().state_dict().unwrap());
        let mut alternating = Alternating { attack: &attack, model: &model, target: 1, old, learner };
        let (pixels, labels) = images(8).batch(&[0, 1, 2, 3, 4, 5], &Device::Cpu).unwrap();
        let (both, targets) = alternating.prepare(pixels, labels).unwrap();
        assert_eq!((both.dims(), targets.dims()), (&[12, 1, 16, 16][..], &[12][..]));
        assert_eq!(targets.to_vec1::<u32>().unwrap()[6..], [1; 6]);
        let state = |noise: &Noise| noise.generator().params().state_dict().unwrap();
        assert!(same(&before, &model.network().params().state_dict().unwrap()));
        assert!(same(&start, &state(&alternating.old)));
        let moved = state(&alternating.learner.as_ref().unwrap().current);
        assert!(!same(&start, &moved));
        alternating.after_epoch(1).unwrap();
        assert!(same(&moved, &state(&alternating.old)));
        assert_eq!(alternating.learner.as_ref().unwrap().history.len(), 1);
    }

    #[test]
    fn the_loss_weighs_clean_images_against_noisy_ones() {
        let model = model();
        let attack = Lira { clean_weight: OpenFraction::literal(0.25), ..Lira::default() };
        let builder = Builder::fresh(rng::stream(0, "generator"), &Device::Cpu);
        let old = Noise::new(&[0.01], model.normalization(), Autoencoder::new(1, &builder).unwrap()).unwrap();
        let mut alternating = Alternating { attack: &attack, model: &model, target: 0, old, learner: None };
        let logits = Tensor::new(&[[0f32, 0.], [0., 0.], [0., 30.], [0., 30.]], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[1u32, 1, 0, 0], &Device::Cpu).unwrap();
        let loss = alternating.loss(&logits, &labels).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - (0.25 * 2f32.ln() + 0.75 * 30.0)).abs() < 1e-4, "{loss}");
    }
}
