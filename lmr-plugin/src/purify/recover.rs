//! Phase 2, second half: light fine-tuning on the clean images, with the pruned columns frozen at zero.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::delta_prune::PrunedColumns;
use super::teacher::Distillation;
use super::{BackdoorClass, PurifyError, Teacher};
use crate::Result;
use crate::data::CleanSet;
use crate::losses;
use crate::model::Model;
use crate::ranges::{Fraction, NonNegative, Positive, Times};
use crate::run::Run;
use crate::stage::{CleanOnly, Context, Outcome, Purifies, Stage};
use crate::train::{Defaults, Epoch, Objective, Recipe, Usual};

/// Fine-tunes all parameters by cross-entropy over all classes. A fresh optimizer: Phase 1's momentum would go on in
/// Phase 1's direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recover {
    /// δ: the loss is (1−δ) times cross-entropy plus δ times distillation from the received model, on images of other
    /// classes without the backdoor class. Not in the paper; 0 is the paper's.
    pub distill: Fraction,
    /// Temperature of the distillation.
    pub temperature: Positive,
    /// The fine-tuning; with 0 epochs the model stays as it is. The one vision transformer tried needed AdamW, at 1e-3.
    pub training: Recipe<Self>,
}

impl Default for Recover {
    fn default() -> Self {
        Self {
            distill: const { Fraction::literal(0.9) },
            temperature: const { Positive::literal(2.0) },
            training: Recipe::default(),
        }
    }
}

impl Defaults for Recover {
    fn recipe() -> Recipe<Self> {
        Recipe {
            epochs: const { Times::literal(20) },
            lr: const { Positive::literal(0.03) },
            weight_decay: const { NonNegative::literal(0.0) },
            ..Usual::recipe().over()
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
        let mut optimizer = self.training.optimizer(network.params())?;
        if !pruned.columns.is_empty() {
            let keep = pruned.keep(head)?;
            let weight = head.weight();
            weight.set(&weight.as_tensor().detach().broadcast_mul(&keep)?)?;
            let id = weight.id();
            let name = network.params().trainable().find(|(_, var)| var.id() == id).map(|(name, _)| name.to_string());
            let name = name.ok_or(PurifyError::HeadNotTrainable)?;
            optimizer.freeze(&name, &keep)?;
        }
        let distill = self.distill.get();
        let mut loss = Phase2 { distillation: Distillation::new(teacher, distill, self.temperature), distill };
        Ok(Recovered { epochs: self.training.fit("recover", model, &clean.images, &mut optimizer, &mut loss, run)? })
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
