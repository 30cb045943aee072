//! Phase 2, second half: light fine-tuning on the clean images, with the pruned columns frozen at zero.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::delta_prune::PrunedColumns;
use super::teacher::Distillation;
use super::{BackdoorClass, Teacher, faults};
use crate::data::{Augment, CleanSet};
use crate::losses;
use crate::model::Model;
use crate::nn::BatchNormMode;
use crate::optim::{Optimizer, Rule, Schedule};
use crate::run::Run;
use crate::stage::{CleanOnly, Context, Outcome, Purifies, Stage};
use crate::train::{Epoch, Objective, Training};
use crate::{Error, Result};

/// Fine-tunes all parameters by cross-entropy over all classes. A fresh optimizer: Phase 1's momentum would go on in
/// Phase 1's direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recover {
    /// δ in [0, 1]: the loss is (1−δ) times cross-entropy plus δ times distillation from the received model, on images of other
    /// classes without the backdoor class. Not in the paper; 0 is the paper's.
    pub distill: f64,
    /// Temperature of the distillation, above 0.
    pub temperature: f64,
    /// Passes over the clean images; 0 leaves the model as it is.
    pub epochs: usize,
    /// At least this many steps, for very small clean sets.
    pub min_steps: usize,
    /// How weights follow gradients; the one vision transformer tried needed AdamW, at 1e-3.
    pub optimizer: Rule,
    /// Learning rate, above 0.
    pub lr: f64,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Momentum, in [0, 1).
    pub momentum: f64,
    /// Weight decay, at least 0.
    pub weight_decay: f64,
    /// Images a step.
    pub batch_size: usize,
    /// Crop and flip; `{ crop-padding = 0, flip = false }` for none.
    pub augment: Augment,
    /// Batch norm; `running` is meant for clean sets too small for statistics of their own, and diverged at the default
    /// learning rate in the one trial made.
    pub batch_norm: BatchNormMode,
    /// Limit on the global gradient norm; absent means none.
    pub clip_norm: Option<f64>,
}

impl Default for Recover {
    fn default() -> Self {
        Self {
            distill: 0.9,
            temperature: 2.0,
            epochs: 20,
            min_steps: 0,
            optimizer: Rule::Sgd,
            lr: 0.03,
            schedule: Schedule::Cosine,
            momentum: 0.9,
            weight_decay: 0.0,
            batch_size: 128,
            augment: Augment::default(),
            batch_norm: BatchNormMode::Batch,
            clip_norm: None,
        }
    }
}

/// What the fine-tuning did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovered {
    /// One entry an epoch.
    pub epochs: Vec<Epoch>,
}

impl Recover {
    /// Trains `model` in place. The columns of `pruned` are zero before, after and at every step between. `teacher` is the
    /// model from before Phase 1.
    pub fn recover(
        &self,
        model: &Model,
        teacher: &Teacher,
        pruned: &PrunedColumns,
        clean: &CleanSet,
        run: &Run<'_>,
    ) -> Result<Recovered> {
        let network = model.full_precision()?;
        let head = network.head();
        let mut optimizer = Optimizer::new(network.params(), self.optimizer, self.momentum, self.weight_decay)?;
        if !pruned.columns.is_empty() {
            let keep = pruned.keep(head)?;
            let weight = head.weight();
            weight.set(&weight.as_tensor().detach().broadcast_mul(&keep)?)?;
            let id = weight.id();
            let name = network.params().trainable().find(|(_, var)| var.id() == id).map(|(name, _)| name.to_string());
            let name = name.ok_or_else(|| Error::invalid("the head's weight is not among the trainable parameters"))?;
            optimizer.freeze(&name, &keep)?;
        }
        if self.epochs == 0 {
            return Ok(Recovered { epochs: Vec::new() });
        }
        let training = Training {
            epochs: self.epochs,
            min_steps: self.min_steps,
            batch_size: self.batch_size,
            lr: self.lr,
            schedule: self.schedule.clone(),
            warmup_epochs: 0,
            augment: self.augment,
            batch_norm: self.batch_norm,
            clip_norm: self.clip_norm,
        };
        let distillation = Distillation::new(teacher, self.distill, self.temperature);
        let mut loss = Phase2 { distillation, distill: self.distill };
        Ok(Recovered { epochs: training.fit("recover", model, &clean.images, &mut optimizer, &mut loss, run)? })
    }
}

struct Phase2<'a> {
    distillation: Distillation<'a>,
    distill: f64,
}

impl Objective for Phase2<'_> {
    fn before_forward(&mut self, images: &Tensor) -> Result<()> {
        self.distillation.ask(images)
    }

    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let own = losses::cross_entropy(logits, labels)?.mean_all()?;
        match self.distillation.term(logits, labels)? {
            Some(distillation) => Ok(((own * (1.0 - self.distill))? + (distillation * self.distill)?)?),
            None => Ok(own),
        }
    }
}

impl Stage for Recover {
    const KIND: &'static str = "recover";
    const SUMMARY: &'static str = "fine-tunes on the clean images with the pruned columns frozen at zero";
    type Role = Purifies;
    type Needs = (BackdoorClass, PrunedColumns);
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        let positive = |v: f64| v > 0.0 && v.is_finite();
        let mut found = faults([
            ((0.0..=1.0).contains(&self.distill), "distill", "a number in [0, 1]", self.distill.to_string()),
            (positive(self.temperature), "temperature", "a number above 0", self.temperature.to_string()),
            (positive(self.lr), "lr", "a number above 0", self.lr.to_string()),
            ((0.0..1.0).contains(&self.momentum), "momentum", "a number in [0, 1)", self.momentum.to_string()),
            (self.weight_decay >= 0.0, "weight-decay", "a number of at least 0", self.weight_decay.to_string()),
            (self.batch_size > 1, "batch-size", "at least 2", self.batch_size.to_string()),
        ]);
        if let Some(limit) = self.clip_norm.filter(|limit| !positive(*limit)) {
            found.push(format!("clip-norm: expected a number above 0, found {limit}"));
        }
        found
    }

    fn run(
        &self,
        ctx: &mut Context<'_>,
        (class, pruned): (BackdoorClass, PrunedColumns),
        _: &CleanOnly,
    ) -> Result<Outcome<()>> {
        let teacher = Teacher::copy(ctx.received(), class)?;
        let report = self.recover(ctx.model, &teacher, &pruned, ctx.clean, &ctx.run)?;
        Outcome::new((), &report)
    }
}
