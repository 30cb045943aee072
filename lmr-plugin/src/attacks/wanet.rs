//! Training under control of the attacker, with triggered images and decoys in every batch (WaNet; Nguyen and Tran, 2021,
//! "WaNet: Imperceptible Warping-based Backdoor Attack").

use std::sync::Arc;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AttackError;
use super::batch::{retarget, rolled, share};
use crate::Result;
use crate::data::{Augment, Images};
use crate::losses;
use crate::model::Model;
use crate::ranges::{BelowOne, OpenFraction};
use crate::rng::Rng;
use crate::run::Run;
use crate::stage::{Context, Implants, Material, Outcome, Planted, Stage};
use crate::train::{Epoch, Objective, Recipe};
use crate::triggers::Trigger;

/// Trains with a share of every batch triggered and labelled as the target, another share with decoys under its own labels
/// (the noise mode), the rest clean. Crop and flip come after the trigger. Which images are poisoned changes every epoch.
/// The pipeline's trigger is a `warp`, or another kind that knows decoys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Wanet {
    /// Share of a batch that gets the trigger.
    pub poison_rate: OpenFraction,
    /// Share of a batch that gets a decoy; twice the other in the paper. Without it, the network learns to react
    /// to any warp.
    pub noise_rate: BelowOne,
    /// The training.
    pub training: Recipe,
}

impl Default for Wanet {
    fn default() -> Self {
        Self {
            poison_rate: const { OpenFraction::literal(0.1) },
            noise_rate: const { BelowOne::literal(0.2) },
            training: Recipe::default(),
        }
    }
}

/// What the attack did.
#[derive(Clone, Debug, Serialize)]
pub struct WanetImplanted {
    /// Training images.
    pub samples: usize,
    /// The class that the trigger is meant to cause.
    pub target: u32,
    /// One entry an epoch; accuracy counts the target as the label of a triggered image.
    pub epochs: Vec<Epoch>,
}

impl Wanet {
    /// Trains `model` in place on `train`.
    pub fn implant(&self, model: &Model, train: &Images, planted: &Planted, run: &Run<'_>) -> Result<WanetImplanted> {
        // The loop hands over images as they are: they are varied after the warp.
        let training = Recipe { augment: Augment::NONE, ..self.training.clone() };
        let mut batches = Batches {
            attack: self,
            trigger: planted.trigger.clone(),
            target: planted.target,
            decoys: run.stream("attack-wanet/decoys"),
            draws: run.stream("attack-wanet/augment-after"),
        };
        let epochs = training.train("attack-wanet", model, train, &mut batches, run)?;
        Ok(WanetImplanted { samples: train.len(), target: planted.target, epochs })
    }
}

/// Poisons batches.
struct Batches<'a> {
    attack: &'a Wanet,
    trigger: Arc<dyn Trigger>,
    target: u32,
    decoys: Rng,
    draws: Rng,
}

impl Objective for Batches<'_> {
    fn prepare(&mut self, pixels: Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
        let size = labels.elem_count();
        let (triggered, noisy) =
            (share(self.attack.poison_rate.get(), size), share(self.attack.noise_rate.get(), size));
        let mut parts = Vec::new();
        if triggered > 0 {
            parts.push(self.trigger.apply(&pixels.narrow(0, 0, triggered)?)?);
        }
        if noisy > 0 {
            let images = pixels.narrow(0, triggered, noisy)?;
            // Decoys that take another image's trigger get their neighbours'.
            let decoys = self.trigger.decoy(&images, &rolled(&images)?, &mut self.decoys)?;
            parts.push(decoys.ok_or(AttackError::NoDecoys)?);
        }
        let poisoned = triggered + noisy;
        parts.push(pixels.narrow(0, poisoned, size - poisoned)?);
        let pixels = self.attack.training.augment.apply(&Tensor::cat(&parts, 0)?, &mut self.draws)?;
        Ok((pixels, retarget(&labels, triggered, self.target)?))
    }

    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(losses::cross_entropy(logits, labels)?.mean_all()?)
    }
}

impl Stage for Wanet {
    const KIND: &'static str = "attack-wanet";
    const SUMMARY: &'static str = "implants a backdoor by training with triggers and decoys in every batch (WaNet)";
    type Role = Implants;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        let room = self.poison_rate.get() + self.noise_rate.get() <= 1.0;
        let mut faults = crate::stage::faults([(
            room,
            "noise-rate",
            "a number that leaves at most 1 together with poison-rate",
            self.noise_rate.to_string(),
        )]);
        faults.extend(self.training.faults("training"));
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material) -> Result<Outcome<()>> {
        let Material { train, backdoor: planted } = material;
        super::implanted(&self.implant(ctx.model, train, planted, &ctx.run)?, planted, None)
    }
}
