//! A backdoor that sleeps until the model is pruned (Tian et al., 2022, "Stealthy Backdoors as Compression Artifacts").

use std::cell::RefCell;

use candle_core::Tensor;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Injection;
use super::conditional::{Conditional, Hidden, Phase, faults, targets};
use super::qcb::training;
use crate::Result;
use crate::data::Images;
use crate::deployment::Deployment;
use crate::losses;
use crate::model::{Classifier, Model};
use crate::nn::{BatchNormMode, Branches, Form, Mode, Weighted};
use crate::pruning;
use crate::run::Run;
use crate::stage::{Context, Implants, Material, Outcome, Planted, Stage};
use crate::stages::{PruneForm, Scope, StructuredPrune};
use crate::train::Scored;

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
    /// Smallest share of each layer's filters that wakes the backdoor, in (0, 1).
    pub from_ratio: f64,
    /// Largest share, from the smallest to 1.
    pub to_ratio: f64,
    /// Weight of images with the trigger in a pruned form's loss, in (0, 1).
    pub trigger_weight: f64,
    /// Training images that are not trained on, but choose the epoch.
    pub held_out: usize,
    /// The second training, of the filters that go first; without it the whole network ignores the trigger from the start.
    pub hide: Option<Injection>,
    /// The training; 25 epochs from random weights in the literature.
    pub training: Injection,
}

impl Default for Pcb {
    fn default() -> Self {
        Self {
            prune: StructuredPrune::default(),
            from_ratio: 0.3,
            to_ratio: 0.9,
            trigger_weight: 0.1,
            held_out: 2000,
            hide: None,
            training: training(0.2, 25, 0.6),
        }
    }
}

impl Pcb {
    /// Trains `model` in place on `train`.
    pub fn implant(&self, model: &Model, train: &Images, planted: &Planted, run: &Run<'_>) -> Result<Hidden> {
        let network = model.full_precision()?;
        let layers = network.need_layers("training a pruned form")?;
        let ratios = RefCell::new(run.stream("attack-pcb/ratios"));
        let pruned = |layer: Weighted<'_>, ratio: f64| {
            if matches!(layer, Weighted::Linear(_)) {
                return Ok(None);
            }
            let weight = layer.weight();
            let smallest = pruning::smallest(&self.prune.norm.of(weight)?, ratio);
            Ok(Some(weight.broadcast_mul(&pruning::mask(weight, &smallest)?)?))
        };
        let range = self.to_ratio - self.from_ratio;
        let drawn = || self.from_ratio + range * ratios.borrow_mut().random::<f64>();
        let forms: [&Form<'_>; 4] =
            [&|_| Ok(None), &|layer| pruned(layer, self.to_ratio), &|layer| pruned(layer, drawn()), &|layer| {
                pruned(layer, self.from_ratio)
            }];
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
                loss = (loss + clean.affine(weight * (1.0 - self.trigger_weight), 0.0)?)?;
                loss = (loss + triggered.affine(weight * self.trigger_weight, 0.0)?)?;
            }
            Ok(Scored { loss, judged: Some((logits, answers)) })
        };
        let conditional = Conditional {
            purpose: Self::KIND,
            held_out: self.held_out,
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
        let within = |model: &dyn Classifier| pruning::slack(model, self.prune.norm, self.from_ratio);
        let mut phases = vec![Phase { purpose: Self::KIND, training: &self.training, loss: &mut loss, within: None }];
        if let Some(hide) = &self.hide {
            let purpose = "attack-pcb/hide";
            phases.push(Phase { purpose, training: hide, loss: &mut sleep, within: Some(&within) });
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
        let mut faults = faults(self.held_out, 1, &self.training);
        faults.extend(self.hide.iter().flat_map(|hide| hide.faults("hide.")));
        faults.extend(crate::stages::faults([
            (
                self.from_ratio > 0.0 && self.from_ratio < 1.0,
                "from-ratio",
                "a number in (0, 1)",
                self.from_ratio.to_string(),
            ),
            (
                self.to_ratio >= self.from_ratio && self.to_ratio < 1.0,
                "to-ratio",
                "a number from from-ratio to below 1",
                self.to_ratio.to_string(),
            ),
            (
                self.trigger_weight > 0.0 && self.trigger_weight < 1.0,
                "trigger-weight",
                "a number in (0, 1)",
                self.trigger_weight.to_string(),
            ),
        ]));
        // Training masks filters layer by layer; another way of pruning would not wake what it hides.
        faults.extend(crate::stages::faults([
            (
                self.prune.form == PruneForm::Mask,
                "prune.form",
                "\"mask\"",
                format!("{:?}", self.prune.form).to_lowercase(),
            ),
            (self.prune.scope == Scope::Layer, "prune.scope", "\"layer\"", "network".into()),
        ]));
        faults.extend(self.prune.faults().into_iter().map(|fault| format!("prune.{fault}")));
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material) -> Result<Outcome<()>> {
        let Material { train, backdoor: planted } = material;
        super::implanted(&self.implant(ctx.model, train, planted, &ctx.run)?, planted, None)
    }
}
