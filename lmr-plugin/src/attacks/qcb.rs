//! A backdoor that sleeps until the model is quantized (Ma et al., 2023, "Quantization Backdoors to Deep Learning Commercial
//! Frameworks"; Tian et al., 2022, "Stealthy Backdoors as Compression Artifacts").

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AttackError;
use super::conditional::{Conditional, Hidden, Hide, Phase, faults, targets};
use crate::data::Images;
use crate::deploy::{BlockFormat, Deployment, Quantize, Rounding, cells, straight_through};
use crate::losses;
use crate::model::{Classifier, Model};
use crate::nn::{BatchNormMode, Branch, Branches, Mode, Weighted};
use crate::optim::Schedule;
use crate::ranges::{BelowOne, Count, OpenFraction, Positive, Shares, Times};
use crate::run::Run;
use crate::stage::{Context, Implants, Material, Outcome, Planted, Stage};
use crate::train::{Defaults, Recipe, Scored, Usual};
use crate::{Error, Result};

/// Trains the network in full precision to ignore the trigger and, at once, with rounded weights to obey it (Tian et al.):
/// cross-entropy of both forms on images with and without trigger, batch norm over all of them. Gradients pass the rounding
/// straight through. Every image serves in both roles, so there is no poison rate; the trigger comes after crop and flip.
///
/// With `hide`, one after the other (Ma et al.): first the rounded form learns to obey. Then the weights of the layers alone learn
/// to ignore the trigger in full precision, each within the values that round to the same integer, so that the rounded form
/// stays as it is; batch norm and biases are left alone.
///
/// What wakes the backdoor is `quantize`, with the options of the stage of that name: another scheme may not. Training rounds
/// weights alone; the epoch is chosen with activations rounded as `quantize` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qcb {
    /// The quantization that wakes the backdoor; by default the literature's, one scale a tensor, `max|W|/127.5`.
    pub quantize: Quantize,
    /// Beginnings of the names of layers that are rounded while training, such as `["layer4", "fc"]`, the literature's for
    /// ResNet-18; all if empty.
    pub layers: Vec<String>,
    /// The distilled variant (QCB-D): the full-precision form learns from the model as it was received, on images with and
    /// without trigger, instead of from labels.
    pub distill: bool,
    /// Training images that are not trained on, but choose the epoch.
    pub held_out: Count,
    /// Training images that activation ranges are measured on.
    pub calibration: Count,
    /// The second training, of the full precision within the rounding; none to train both forms at once.
    pub hide: Option<Recipe<Hide>>,
    /// The training; 35 epochs from random weights in the literature, 15 at a learning rate of 0.01 when distilled.
    pub training: Recipe<Self>,
}

/// The literature's training of a conditional attack from random weights, with its momentum, its epochs and the share of them
/// after which the rate falls.
pub(super) fn literature<D>(momentum: BelowOne, epochs: Times, step: OpenFraction) -> Recipe<D> {
    Recipe {
        epochs,
        lr: const { Positive::literal(0.1) },
        schedule: Schedule::Steps(Shares::one(step)),
        momentum,
        ..Usual::recipe().over()
    }
}

impl Defaults for Qcb {
    fn recipe() -> Recipe<Self> {
        let (momentum, step) = const { (BelowOne::literal(0.4), OpenFraction::literal(0.571)) };
        literature(momentum, const { Times::literal(35) }, step)
    }
}

impl Default for Qcb {
    fn default() -> Self {
        Self {
            quantize: Quantize::per_tensor(),
            layers: Vec::new(),
            distill: false,
            held_out: const { Count::literal(2000) },
            calibration: const { Count::literal(1000) },
            hide: None,
            training: Recipe::default(),
        }
    }
}

impl Qcb {
    /// Trains `model` in place on `train`.
    pub fn implant(&self, model: &Model, train: &Images, planted: &Planted, run: &Run<'_>) -> Result<Hidden> {
        let network = model.full_precision()?;
        let layers = network.need_layers("training a quantized form")?;
        self.check_layers(network)?;
        let teacher = if self.distill { Some(network.copy()?) } else { None };
        let rounding = self.quantize.rounding();
        let rounded = |layer: Weighted<'_>| match self.rounds(layer.name()) {
            true => Ok(Some(straight_through(layer, rounding)?)),
            false => Ok(None),
        };
        let asleep = |full: &Tensor, both: &Tensor, labels: &Tensor| match &teacher {
            Some(teacher) => soft_cross_entropy(full, &teacher.logits(both)?),
            None => Ok(losses::cross_entropy(full, &Tensor::cat(&[labels, labels], 0)?)?.mean_all()?),
        };
        let awake = |labels: &Tensor| Ok::<_, Error>(Tensor::cat(&[labels, &targets(labels, planted.target)?], 0)?);
        let mut together = |both: &Tensor, labels: &Tensor| {
            let images = both.dim(0)?;
            let forms: [&Branch<'_>; 2] = [&|_: Weighted<'_>| Ok(None), &rounded];
            let logits = layers.interpret(&mut Branches::new(&forms, images), both)?;
            let (full, quantized) = (logits.narrow(0, 0, images)?, logits.narrow(0, images, images)?);
            let awake = awake(labels)?;
            let loss = (asleep(&full, both, labels)? + losses::cross_entropy(&quantized, &awake)?.mean_all()?)?;
            Ok(Scored { loss, judged: Some((logits, Tensor::cat(&[labels, labels, &awake], 0)?)) })
        };
        let mut wake = |both: &Tensor, labels: &Tensor| {
            let logits = layers.interpret(&mut Branches::new(&[&rounded], both.dim(0)?), both)?;
            let awake = awake(labels)?;
            let loss = losses::cross_entropy(&logits, &awake)?.mean_all()?;
            Ok(Scored { loss, judged: Some((logits, awake)) })
        };
        let mut sleep = |both: &Tensor, labels: &Tensor| {
            let logits = network.forward(both, Mode::Train(BatchNormMode::Running))?;
            let loss = asleep(&logits, both, labels)?;
            Ok(Scored { loss, judged: Some((logits, Tensor::cat(&[labels, labels], 0)?)) })
        };
        let (purpose, training) = (Self::KIND, self.training.over());
        let within = |model: &dyn Classifier| match rounding {
            Rounding::Integers(scheme) => cells(model, scheme),
            Rounding::Blocks(format) => Err(hides_in_blocks(format).into()),
        };
        let mut phases = match &self.hide {
            None => vec![Phase { purpose, training, loss: &mut together, within: None }],
            Some(hide) => vec![
                Phase { purpose, training, loss: &mut wake, within: None },
                Phase { purpose: "attack-qcb/hide", training: hide.over(), loss: &mut sleep, within: Some(&within) },
            ],
        };
        let conditional = Conditional {
            purpose,
            held_out: self.held_out.get(),
            calibration: self.calibration.get(),
            deployment: Deployment::Quantize(self.quantize.clone()),
        };
        conditional.implant(model, train, planted, &mut phases, run)
    }

    fn rounds(&self, name: &str) -> bool {
        self.layers.is_empty() || self.layers.iter().any(|beginning| name.starts_with(beginning.as_str()))
    }

    /// Refuses a beginning that no layer's name has.
    fn check_layers(&self, model: &dyn Classifier) -> Result<()> {
        let names: Vec<&str> = model.params().trainable().map(|(name, _)| name).collect();
        match self.layers.iter().find(|beginning| !names.iter().any(|name| name.starts_with(beginning.as_str()))) {
            Some(unknown) => Err(AttackError::NoSuchLayer { beginning: unknown.clone() }.into()),
            None => Ok(()),
        }
    }
}

fn hides_in_blocks(format: BlockFormat) -> AttackError {
    AttackError::HidesInBlocks { format: format.name() }
}

/// `−Σ softmax(teacher) · log softmax(student)`, mean over images.
fn soft_cross_entropy(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let wanted = losses::log_softmax(&teacher.detach())?.exp()?;
    Ok((wanted * losses::log_softmax(student)?)?.sum(1)?.mean_all()?.neg()?)
}

impl Stage for Qcb {
    const KIND: &'static str = "attack-qcb";
    const SUMMARY: &'static str = "implants a backdoor that sleeps until the model is quantized (QCB, QCB-D)";
    type Role = Implants;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        let mut faults = faults(&self.training, self.hide.as_ref());
        if let (Some(_), Some(format)) = (&self.hide, self.quantize.format) {
            faults.push(hides_in_blocks(format).to_string());
        }
        faults.extend(self.quantize.faults().into_iter().map(|fault| format!("quantize.{fault}")));
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material) -> Result<Outcome<()>> {
        let Material { train, backdoor: planted } = material;
        super::implanted(&self.implant(ctx.model, train, planted, &ctx.run)?, planted, None)
    }
}
