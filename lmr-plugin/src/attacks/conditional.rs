//! What attacks share whose backdoor sleeps until the model is deployed: held-out images, one training after another, and an
//! eye on whether it sleeps and wakes after every epoch.

use candle_core::Tensor;
use serde::Serialize;

use super::AttackError;
use crate::data::{CleanSet, Images};
use crate::deploy::{Bounds, Deployment};
use crate::examine::Evaluate;
use crate::model::{Classifier, Model};
use crate::nn::{BatchNormMode, StateDict};
use crate::rng;
use crate::run::Run;
use crate::stage::{Examination, Planted};
use crate::train::{Defaults, Descent, Epoch, Flow, Recipe, Scored, Usual};
use crate::{Error, Result};

/// What the model does before and after it is deployed, on training images that it is not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Dormancy {
    /// ACC in full precision.
    pub acc: f64,
    /// ASR in full precision: near 0 while the backdoor sleeps.
    pub asr: f64,
    /// ACC of the deployed form.
    pub deployed_acc: f64,
    /// ASR of the deployed form.
    pub deployed_asr: f64,
}

/// What the attack did.
#[derive(Clone, Debug, Serialize)]
pub struct Hidden {
    /// Images that were trained on.
    pub samples: usize,
    /// Training images that were held out to choose the epoch.
    pub held_out: usize,
    /// The class that the trigger causes in the deployed model.
    pub target: u32,
    /// The form that wakes it.
    pub form: String,
    /// One entry an epoch; accuracy is that of all forms on what they were to answer.
    pub epochs: Vec<Epoch>,
    /// What was seen after every epoch.
    pub dormancy: Vec<Dormancy>,
    /// The epoch, counted from 1, whose model was kept.
    pub chosen: usize,
}

/// A higher ASR in full precision is not dormant.
const DORMANT: f64 = 0.2;
/// How far below the best the deployed model's accuracy may be.
const SLACK: f64 = 0.005;

/// The loss of a batch `f32[2B,C,H,W]`, normalized, whose second half are the first half's images with the trigger; the labels
/// `u32[B]` are the images' own.
pub(super) type Loss<'a> = dyn FnMut(&Tensor, &Tensor) -> Result<Scored> + 'a;

/// Bounds for a network as it is now.
pub(super) type Within<'a> = dyn Fn(&dyn Classifier) -> Result<Bounds> + 'a;

/// A part of such an attack's training.
pub(super) struct Phase<'a> {
    /// Names its random streams.
    pub purpose: &'a str,
    /// The training.
    pub training: Recipe,
    /// What it minimizes.
    pub loss: &'a mut Loss<'a>,
    /// Within what weights train, and nothing else does, so that the deployed form stays as it is. Batch norm should then
    /// normalize with its running statistics.
    pub within: Option<&'a Within<'a>>,
}

/// What such attacks have in common.
pub(super) struct Conditional<'a> {
    /// Names its random streams.
    pub purpose: &'a str,
    /// Training images to hold out.
    pub held_out: usize,
    /// Training images to measure activation ranges on.
    pub calibration: usize,
    /// What wakes the backdoor.
    pub deployment: Deployment,
}

impl Conditional<'_> {
    /// Trains `model` in place, phase by phase, and keeps the epoch that hides best: among those that are dormant and, deployed,
    /// nearly as accurate as the best of them, the one with the highest ASR once deployed. If none is dormant, the last one.
    pub fn implant(
        &self,
        model: &Model,
        train: &Images,
        planted: &Planted,
        phases: &mut [Phase<'_>],
        run: &Run<'_>,
    ) -> Result<Hidden> {
        let batch = phases.iter().map(|phase| phase.training.batch_size.get()).max().unwrap_or_default();
        if self.held_out + batch > train.len() || self.calibration > train.len() - self.held_out {
            return Err(AttackError::HeldOut {
                held_out: self.held_out,
                calibration: self.calibration,
                images: train.len(),
            }
            .into());
        }
        let order = rng::permutation(&mut run.stream(&format!("{}/held-out", self.purpose)), train.len());
        let (held_out, rest) = order.split_at(self.held_out);
        let (rest, network) = (train.select(rest)?, model.full_precision()?);
        let calibration = rest.select(&(0..self.calibration).collect::<Vec<_>>())?;
        let mut selection = Selection {
            model,
            planted,
            deployment: &self.deployment,
            examination: Examination::new(train.select(held_out)?).with_trigger(planted.clone()),
            calibration: CleanSet::new(calibration)?,
            run,
            seen: Vec::new(),
            candidates: Vec::new(),
        };
        let mut epochs = Vec::new();
        for phase in phases {
            let bounds = phase.within.map(|within| within(network)).transpose()?;
            let params = bounds.as_ref().map(|bounds| bounds.params(network));
            let mut optimizer = phase.training.optimizer(params.as_ref().unwrap_or(network.params()))?;
            let mut step = Step { loss: &mut *phase.loss, bounds, selection: &mut selection };
            let training = &phase.training;
            epochs.extend(training.descend(phase.purpose, (&rest, model.device()), &mut optimizer, &mut step, run)?);
        }
        let chosen = match selection.chosen() {
            Some((epoch, state)) => {
                network.params().load_state_dict(state)?;
                epoch
            }
            None => {
                run.warn("the backdoor slept after no epoch; the last one is kept");
                epochs.len()
            }
        };
        Ok(Hidden {
            samples: rest.len(),
            held_out: self.held_out,
            target: planted.target,
            form: self.deployment.label(),
            epochs,
            dormancy: selection.seen,
            chosen,
        })
    }
}

struct Selection<'a> {
    model: &'a Model,
    planted: &'a Planted,
    deployment: &'a Deployment,
    examination: Examination,
    calibration: CleanSet,
    run: &'a Run<'a>,
    seen: Vec<Dormancy>,
    /// Epochs that may still be chosen, from 1, and the model after them.
    candidates: Vec<(usize, StateDict)>,
}

impl Selection<'_> {
    /// What the model does now.
    fn look(&self) -> Result<Dormancy> {
        let deployed = self.deployment.deploy(self.model, &self.calibration, self.run)?;
        let measure = |model: &Model| {
            let measured = Evaluate::default().evaluate(model, &self.examination, self.run)?;
            Ok::<_, Error>((measured.acc, measured.asr.unwrap_or_default()))
        };
        let ((acc, asr), (deployed_acc, deployed_asr)) = (measure(self.model)?, measure(&deployed)?);
        Ok(Dormancy { acc, asr, deployed_acc, deployed_asr })
    }

    /// Looks at the model, reports what it does, and keeps it if it may be chosen.
    fn after_epoch(&mut self) -> Result<()> {
        let now = self.look()?;
        self.seen.push(now);
        let epoch = self.seen.len();
        let named = [
            ("acc", now.acc),
            ("asr", now.asr),
            ("deployed_acc", now.deployed_acc),
            ("deployed_asr", now.deployed_asr),
        ];
        named.into_iter().for_each(|(name, value)| self.run.metric(name, epoch, value));
        if now.asr <= DORMANT {
            self.candidates.push((epoch, self.model.network().params().state_dict()?));
            let of = |epoch: usize| self.seen[epoch - 1];
            let best = self.candidates.iter().map(|(epoch, _)| of(*epoch).deployed_acc).fold(0.0, f64::max);
            self.candidates.retain(|(epoch, _)| of(*epoch).deployed_acc >= best - SLACK);
        }
        Ok(())
    }

    /// The best candidate.
    fn chosen(&self) -> Option<(usize, &StateDict)> {
        let asr = |epoch: usize| self.seen[epoch - 1].deployed_asr;
        let best = self.candidates.iter().max_by(|(a, _), (b, _)| asr(*a).total_cmp(&asr(*b)))?;
        Some((best.0, &best.1))
    }
}

/// A phase at work.
struct Step<'a, 'l, 'w> {
    loss: &'a mut Loss<'l>,
    bounds: Option<Bounds>,
    selection: &'a mut Selection<'w>,
}

impl Descent for Step<'_, '_, '_> {
    fn score(&mut self, pixels: Tensor, labels: Tensor) -> Result<Scored> {
        let both = Tensor::cat(&[&pixels, &self.selection.planted.trigger.apply(&pixels)?], 0)?;
        (self.loss)(&self.selection.model.normalization().apply(&both)?, &labels)
    }

    fn after_step(&mut self, _: usize) -> Result<Flow> {
        if let Some(bounds) = &self.bounds {
            bounds.confine()?;
        }
        Ok(Flow::Continue)
    }

    fn after_epoch(&mut self, _: usize) -> Result<Flow> {
        self.selection.after_epoch()?;
        Ok(Flow::Continue)
    }
}

/// `count` labels, each the target.
pub(super) fn targets(labels: &Tensor, target: u32) -> Result<Tensor> {
    Ok(Tensor::full(target, labels.elem_count(), labels.device())?)
}

/// Whose recipe the second training of such attacks has: batch norm stays as it is, and with it the deployed form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hide;

impl Defaults for Hide {
    fn recipe() -> Recipe<Self> {
        Recipe { batch_norm: BatchNormMode::Running, ..Usual::recipe().over() }
    }
}

/// What is impossible about the trainings of such attacks.
pub(super) fn faults<D>(training: &Recipe<D>, hide: Option<&Recipe<Hide>>) -> Vec<String> {
    let mut faults = training.faults("training");
    // All forms are normalized together, by the statistics of what they see.
    if training.batch_norm != BatchNormMode::Batch {
        faults.push("training.batch-norm: expected \"batch\", found \"running\"".into());
    }
    if let Some(hide) = hide {
        faults.extend(hide.faults("hide"));
        if hide.batch_norm != BatchNormMode::Running {
            faults.push("hide.batch-norm: expected \"running\", found \"batch\"".into());
        }
    }
    faults
}
