//! How attacks train the network they implant a backdoor in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::{Augment, Images};
use crate::model::Model;
use crate::nn::BatchNormMode;
use crate::optim::{Optimizer, Rule, Schedule};
use crate::run::Run;
use crate::train::{Epoch, Objective, Training};

/// The training of an attack. The defaults implant a backdoor in a network that is already trained; from random weights,
/// take `lr` 0.1 and more epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Injection {
    /// Passes over the training images.
    pub epochs: usize,
    /// Highest learning rate, above 0.
    pub lr: f64,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Epochs of linear warm-up before the schedule.
    pub warmup_epochs: usize,
    /// `sgd`, or `adamw` for transformers.
    pub optimizer: Rule,
    /// Momentum, in [0, 1); AdamW's β₁.
    pub momentum: f64,
    /// Weight decay, at least 0.
    pub weight_decay: f64,
    /// Images a step.
    pub batch_size: usize,
    /// Crop and flip; `{ crop-padding = 0, flip = false }` for none.
    pub augment: Augment,
}

impl Default for Injection {
    fn default() -> Self {
        Self {
            epochs: 30,
            lr: 0.01,
            schedule: Schedule::Cosine,
            warmup_epochs: 0,
            optimizer: Rule::Sgd,
            momentum: 0.9,
            weight_decay: 5e-4,
            batch_size: 128,
            augment: Augment::default(),
        }
    }
}

impl Injection {
    /// What is impossible about it; keys begin with `prefix`.
    pub(super) fn faults(&self, prefix: &str) -> Vec<String> {
        let mut faults = crate::stages::faults([
            (self.epochs > 0, "epochs", "at least 1", self.epochs.to_string()),
            (self.lr > 0.0 && self.lr.is_finite(), "lr", "a number above 0", self.lr.to_string()),
            ((0.0..1.0).contains(&self.momentum), "momentum", "a number in [0, 1)", self.momentum.to_string()),
            (self.weight_decay >= 0.0, "weight-decay", "a number of at least 0", self.weight_decay.to_string()),
            (self.batch_size > 1, "batch-size", "at least 2", self.batch_size.to_string()),
        ]);
        faults.extend(self.schedule.fault());
        faults.into_iter().map(|fault| format!("{prefix}{fault}")).collect()
    }

    /// Its part of the training loop's settings.
    pub(super) fn training(&self) -> Training {
        Training {
            epochs: self.epochs,
            min_steps: 0,
            batch_size: self.batch_size,
            lr: self.lr,
            schedule: self.schedule.clone(),
            warmup_epochs: self.warmup_epochs,
            augment: self.augment,
            batch_norm: BatchNormMode::Batch,
            clip_norm: None,
        }
    }

    /// Trains `model` in place on an attack's objective.
    pub(super) fn inject(
        &self,
        purpose: &str,
        model: &Model,
        images: &Images,
        objective: &mut dyn Objective,
        run: &Run<'_>,
    ) -> Result<Vec<Epoch>> {
        let mut optimizer =
            Optimizer::new(model.full_precision()?.params(), self.optimizer, self.momentum, self.weight_decay)?;
        self.training().fit(purpose, model, images, &mut optimizer, objective, run)
    }
}
