//! A backdoor that sleeps until the model is pruned (Tian et al., 2022, "Stealthy Backdoors as Compression Artifacts").

use std::cell::RefCell;

use candle_core::Tensor;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditional::{Conditional, Hidden, Hide, Phase, faults, targets};
use super::qcb::literature;
use crate::data::Images;
use crate::deploy::{self, Deployment, PruneForm, Scope, StructuredPrune};
use crate::losses;
use crate::model::{Classifier, Model};
use crate::nn::{BatchNormMode, Branch, Branches, Mode, Weighted};
use crate::ranges::{BelowOne, Count, OpenFraction, Times};
use crate::run::Run;
use crate::stage::{Context, Implants, Material, Outcome, Planted, Stage};
use crate::train::{Defaults, Recipe, Scored};
use crate::{Error, Result};

/// Trains the whole network to ignore the trigger and, at once, three pruned forms of it to obey it: at the smallest and the
/// largest ratio, and at one drawn for every layer and step. Batch norm is over all four. Which filters go is decided anew at
/// every step from the weights as they are; gradients reach only those that stay.
///
/// With `hide`, which is this project's own, one after the other: first the whole network obeys the trigger as its pruned forms do.
/// Then the filters that go at the smallest ratio learn alone to make the whole network ignore it, and remain the smallest, so that
/// the pruned forms stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pcb {
    /// The pruning that the epoch is chosen by, with the options of the stage `structured-prune`.
    pub prune: StructuredPrune,
    /// Smallest share of each layer's filters that wakes the backdoor.
    pub from_ratio: OpenFraction,
    /// Largest share, at least the smallest.
    pub to_ratio: OpenFraction,
    /// Weight of images with the trigger in a pruned form's loss.
    pub trigger_weight: OpenFraction,
    /// Training images that are not trained on, but choose the epoch.
    pub held_out: Count,
    /// The second training, of the filters that go first; without it the whole network ignores the trigger from the start.
    pub hide: Option<Recipe<Hide>>,
    /// The training; 25 epochs from random weights in the literature.
    pub training: Recipe<Self>,
}

impl Default for Pcb {
    fn default() -> Self {
        Self {
            prune: StructuredPrune::default(),
            from_ratio: const { OpenFraction::literal(0.3) },
            to_ratio: const { OpenFraction::literal(0.9) },
            trigger_weight: const { OpenFraction::literal(0.1) },
            held_out: const { Count::literal(2000) },
            hide: None,
            training: Recipe::default(),
        }
    }
}

impl Defaults for Pcb {
    fn recipe() -> Recipe<Self> {
        let (momentum, step) = const { (BelowOne::literal(0.2), OpenFraction::literal(0.6)) };
        literature(momentum, const { Times::literal(25) }, step)
    }
}

impl Pcb {
    /// Trains `model` in place on `train`.
    pub fn implant(&self, model: &Model, train: &Images, planted: &Planted, run: &Run<'_>) -> Result<Hidden> {
        let network = model.full_precision()?;
        let layers = network.need_layers("training a pruned form")?;
        let ratios = RefCell::new(run.stream("attack-pcb/ratios"));
        let pruned = |layer: Weighted<'_>, ratio: BelowOne| {
            if matches!(layer, Weighted::Linear(_)) {
                return Ok(None);
            }
            let weight = layer.weight();
            let smallest = deploy::smallest(&self.prune.norm.of(weight)?, ratio);
            Ok(Some(weight.broadcast_mul(&deploy::mask(weight, &smallest)?)?))
        };
        let (from, to) = (self.from_ratio.get(), self.to_ratio.get());
        let drawn = || Ok::<_, Error>(BelowOne::new(from + (to - from) * ratios.borrow_mut().random::<f64>())?);
        let forms: [&Branch<'_>; 4] =
            [&|_| Ok(None), &|layer| pruned(layer, self.to_ratio.into()), &|layer| pruned(layer, drawn()?), &|layer| {
                pruned(layer, self.from_ratio.into())
            }];
        let trigger_weight = self.trigger_weight.get();
        let mut loss = |both: &Tensor, labels: &Tensor| {
            let images = both.dim(0)?;
            let half = images / 2;
            let logits = layers.interpret(&mut Branches::new(&forms, images), both)?;
            let awake = Tensor::cat(&[labels, &targets(labels, planted.target)?], 0)?;
            // What is hidden later need not sleep yet.
            let whole = if self.hide.is_some() { awake.clone() } else { Tensor::cat(&[labels, labels], 0)? };
            let answers = Tensor::cat(&[&whole, &awake, &awake, &awake], 0)?;
            let losses = losses::cross_entropy(&logits, &answers)?;
            let mean = |from: usize, count: usize| losses.narrow(0, from, count)?.mean_all();
            let mut loss = mean(0, images)?;
            for form in 1..forms.len() {
                let (clean, triggered) = (mean(form * images, half)?, mean(form * images + half, half)?);
                let weight = 1.0 / (forms.len() - 1) as f64;
                loss = (loss + clean.affine(weight * (1.0 - trigger_weight), 0.0)?)?;
                loss = (loss + triggered.affine(weight * trigger_weight, 0.0)?)?;
            }
            Ok(Scored { loss, judged: Some((logits, answers)) })
        };
        let conditional = Conditional {
            purpose: Self::KIND,
            held_out: self.held_out.get(),
            // Pruning measures no ranges.
            calibration: 1,
            deployment: Deployment::Prune(self.prune.clone()),
        };
        let mut sleep = |both: &Tensor, labels: &Tensor| {
            let logits = network.forward(both, Mode::Train(BatchNormMode::Running))?;
            let labels = Tensor::cat(&[labels, labels], 0)?;
            let loss = losses::cross_entropy(&logits, &labels)?.mean_all()?;
            Ok(Scored { loss, judged: Some((logits, labels)) })
        };
        let within = |model: &dyn Classifier| deploy::slack(model, self.prune.norm, self.from_ratio.into());
        let mut phases =
            vec![Phase { purpose: Self::KIND, training: self.training.over(), loss: &mut loss, within: None }];
        if let Some(hide) = &self.hide {
            let purpose = "attack-pcb/hide";
            phases.push(Phase { purpose, training: hide.over(), loss: &mut sleep, within: Some(&within) });
        }
        conditional.implant(model, train, planted, &mut phases, run)
    }
}

impl Stage for Pcb {
    const KIND: &'static str = "attack-pcb";
    const SUMMARY: &'static str = "implants a backdoor that sleeps until the model is pruned (PCB)";
    const VERSION: u32 = 2;
    type Role = Implants;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        let mut faults = faults(&self.training, self.hide.as_ref());
        faults.extend(crate::stage::faults([(
            self.to_ratio >= self.from_ratio,
            "to-ratio",
            "at least from-ratio",
            self.to_ratio.to_string(),
        )]));
        // Training masks filters layer by layer; another way of pruning would not wake what it hides.
        faults.extend(crate::stage::faults([
            (
                self.prune.form == PruneForm::Mask,
                "prune.form",
                "\"mask\"",
                format!("{:?}", self.prune.form).to_lowercase(),
            ),
            (self.prune.scope == Scope::Layer, "prune.scope", "\"layer\"", "network".into()),
        ]));
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material) -> Result<Outcome<()>> {
        let Material { train, backdoor: planted } = material;
        super::implanted(&self.implant(ctx.model, train, planted, &ctx.run)?, planted, None)
    }
}
