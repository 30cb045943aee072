//! A backdoor that sleeps until the model is quantized (Ma et al., 2023, "Quantization Backdoors to Deep Learning Commercial
//! Frameworks"; Tian et al., 2022, "Stealthy Backdoors as Compression Artifacts").

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Injection;
use super::conditional::{Conditional, Hidden, faults, targets};
use crate::data::{Images, Normalization};
use crate::deployment::Deployment;
use crate::losses;
use crate::models::{self, Classifier};
use crate::nn::{Branches, Eval, Form, Weighted};
use crate::optim::Schedule;
use crate::quantization::straight_through;
use crate::run::Run;
use crate::stage::{Context, ModelUse, Outcome, Stage};
use crate::stages::Quantize;
use crate::train::Scored;
use crate::truth::{Planted, Truth};
use crate::{Error, Result};

/// Trains the network in full precision to ignore the trigger and, at once, with rounded weights to obey it: cross-entropy of
/// both forms on images with and without trigger, batch norm over all of them. Gradients pass the rounding straight through.
/// Every image serves in both roles, so there is no poison rate; the trigger comes after crop and flip.
///
/// What wakes the backdoor is `quantize`, with the options of the stage of that name: another scheme may not. Training rounds
/// weights alone; the epoch is chosen with activations rounded as `quantize` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Qcb {
    /// The quantization that wakes the backdoor.
    pub quantize: Quantize,
    /// Beginnings of the names of layers that are rounded while training, such as `["layer4", "fc"]`, the literature's for
    /// ResNet-18; all if empty.
    pub layers: Vec<String>,
    /// The distilled variant (QCB-D): the full-precision form learns from the model as it was received, on images with and
    /// without trigger, instead of from labels.
    pub distill: bool,
    /// Training images that are not trained on, but choose the epoch.
    pub held_out: usize,
    /// Training images that activation ranges are measured on.
    pub calibration: usize,
    /// The training; 35 epochs from random weights in the literature, 15 at a learning rate of 0.01 when distilled.
    pub training: Injection,
}

/// The literature's training of a conditional attack from random weights, with its momentum and its epochs.
pub(super) fn training(momentum: f64, epochs: usize, step: f64) -> Injection {
    Injection { epochs, lr: 0.1, schedule: Schedule::Steps(vec![step]), momentum, ..Injection::default() }
}

impl Default for Qcb {
    fn default() -> Self {
        Self {
            quantize: Quantize::default(),
            layers: Vec::new(),
            distill: false,
            held_out: 2000,
            calibration: 1000,
            training: training(0.4, 35, 0.571),
        }
    }
}

impl Qcb {
    /// Trains `model` in place on `train`.
    pub fn implant(
        &self,
        model: &dyn Classifier,
        data: (&Images, &Normalization),
        planted: &Planted,
        run: &Run<'_>,
    ) -> Result<Hidden> {
        self.check_layers(model)?;
        let teacher = if self.distill { Some(models::copy(model, model.head().weight().device())?) } else { None };
        let rounding = self.quantize.rounding();
        let rounded = |layer: Weighted<'_>| match self.rounds(layer.name()) {
            true => Ok(Some(straight_through(layer, rounding)?)),
            false => Ok(None),
        };
        let forms: [&Form<'_>; 2] = [&|_: Weighted<'_>| Ok(None), &rounded];
        let mut loss = |both: &Tensor, labels: &Tensor| {
            let images = both.dim(0)?;
            let logits = model.forward(&mut Branches::new(&forms, images), both)?;
            let (full, quantized) = (logits.narrow(0, 0, images)?, logits.narrow(0, images, images)?);
            let asleep = Tensor::cat(&[labels, labels], 0)?;
            let awake = Tensor::cat(&[labels, &targets(labels, planted.target)?], 0)?;
            let sleeping = match &teacher {
                Some(teacher) => soft_cross_entropy(&full, &teacher.forward(&mut Eval, both)?)?,
                None => losses::cross_entropy(&full, &asleep)?.mean_all()?,
            };
            let loss = (sleeping + losses::cross_entropy(&quantized, &awake)?.mean_all()?)?;
            Ok(Scored { loss, judged: Some((logits, Tensor::cat(&[asleep, awake], 0)?)) })
        };
        let conditional = Conditional {
            purpose: Self::KIND,
            training: &self.training,
            held_out: self.held_out,
            calibration: self.calibration,
            deployment: Deployment::Quantize(self.quantize.clone()),
        };
        conditional.implant(model, data, planted, &mut loss, run)
    }

    fn rounds(&self, name: &str) -> bool {
        self.layers.is_empty() || self.layers.iter().any(|beginning| name.starts_with(beginning.as_str()))
    }

    /// Refuses a beginning that no layer's name has.
    fn check_layers(&self, model: &dyn Classifier) -> Result<()> {
        let names: Vec<&str> = model.params().trainable().map(|(name, _)| name).collect();
        match self.layers.iter().find(|beginning| !names.iter().any(|name| name.starts_with(beginning.as_str()))) {
            Some(unknown) => Err(Error::invalid(format!("layers: no layer's name begins with {unknown:?}"))),
            None => Ok(()),
        }
    }
}

/// `−Σ softmax(teacher) · log softmax(student)`, mean over images.
fn soft_cross_entropy(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let wanted = losses::log_softmax(&teacher.detach())?.exp()?;
    Ok((wanted * losses::log_softmax(student)?)?.sum(1)?.mean_all()?.neg()?)
}

impl Stage for Qcb {
    const KIND: &'static str = "attack-qcb";
    const SUMMARY: &'static str = "implants a backdoor that sleeps until the model is quantized (QCB, QCB-D)";
    const MODEL: ModelUse = ModelUse::Writes;
    type Needs = ();
    type Gives = ();
    type Sees = Truth;

    fn faults(&self) -> Vec<String> {
        let mut faults = faults(self.held_out, self.calibration, &self.training);
        faults.extend(self.quantize.faults().into_iter().map(|fault| format!("quantize.{fault}")));
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), truth: &Truth) -> Result<Outcome<()>> {
        let (train, planted) = (truth.train(Self::KIND)?, truth.planted(Self::KIND)?);
        let data = (train, &truth.normalization);
        super::implanted(&self.implant(ctx.model.full_precision()?, data, planted, &ctx.run)?, planted, None)
    }
}
