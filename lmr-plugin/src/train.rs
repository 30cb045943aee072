//! The one training loop. Stages and attacks say what to minimize and when to stop; batching, augmentation, schedules,
//! progress and the watch for non-finite losses are here.
//!
//! A [`Recipe`] says how. [`Recipe::train`] trains a classifier and asks an [`Objective`] for the loss of its logits.
//! [`Recipe::descend`] is the loop itself, for whatever has a loss: generators, too.

mod recipe;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use serde::Serialize;

use crate::data::{DataError, Images};
use crate::model::Model;
use crate::nn::{BatchNormMode, Mode};
use crate::optim::Optimizer;
use crate::rng;
use crate::run::Run;
use crate::{Error, Result};

pub use recipe::{Defaults, Recipe, Usual};

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Next step.
    Continue,
    /// Enough.
    Stop,
}

/// Where a training stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
}

/// What is minimized while a classifier trains, and what happens between steps.
pub trait Objective {
    /// Makes of a batch, pixels `f32[B,C,H,W]` in `[0,1]` and labels `u32[B]`, the one that the model trains on; it may have
    /// another size. The pixels may depend on variables of the objective's own.
    fn prepare(&mut self, pixels: Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
        Ok((pixels, labels))
    }

    /// Called with a batch of normalized images `f32[B,C,H,W]` before the model sees it.
    fn before_forward(&mut self, _images: &Tensor) -> Result<()> {
        Ok(())
    }

    /// The loss of a batch: a scalar, from logits `f32[B,K]` and labels `u32[B]`.
    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor>;

    /// Called with the gradients of the loss before the model moves along them, for variables of the objective's own.
    fn after_backward(&mut self, _gradients: &GradStore, _at: Progress) -> Result<()> {
        Ok(())
    }

    /// Called after step number `step`, counted from 1.
    fn after_step(&mut self, _step: usize) -> Result<Flow> {
        Ok(Flow::Continue)
    }

    /// Called after epoch number `epoch`, counted from 1.
    fn after_epoch(&mut self, _epoch: usize) -> Result<Flow> {
        Ok(Flow::Continue)
    }
}

/// Any function from logits and labels to a scalar loss is an objective.
impl<F: FnMut(&Tensor, &Tensor) -> Result<Tensor>> Objective for F {
    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self(logits, labels)
    }
}

/// What a step made of a batch.
pub struct Scored {
    /// The loss: a scalar.
    pub loss: Tensor,
    /// Logits `f32[B,K]` and labels `u32[B]`, for the accuracy; `None` where nothing is classified.
    pub judged: Option<(Tensor, Tensor)>,
}

/// What [`Recipe::descend`] minimizes.
pub trait Descent {
    /// The loss of a batch of pixels `f32[B,C,H,W]` in `[0,1]` with labels `u32[B]`.
    fn score(&mut self, pixels: Tensor, labels: Tensor) -> Result<Scored>;

    /// See [`Objective::after_backward`].
    fn after_backward(&mut self, _gradients: &GradStore, _at: Progress) -> Result<()> {
        Ok(())
    }

    /// See [`Objective::after_step`].
    fn after_step(&mut self, _step: usize) -> Result<Flow> {
        Ok(Flow::Continue)
    }

    /// See [`Objective::after_epoch`].
    fn after_epoch(&mut self, _epoch: usize) -> Result<Flow> {
        Ok(Flow::Continue)
    }
}

/// A classifier that trains on an objective.
struct Fit<'a> {
    model: &'a Model,
    batch_norm: BatchNormMode,
    objective: &'a mut dyn Objective,
}

impl Descent for Fit<'_> {
    fn score(&mut self, pixels: Tensor, labels: Tensor) -> Result<Scored> {
        let (pixels, labels) = self.objective.prepare(pixels, labels)?;
        let x = self.model.normalization().apply(&pixels)?;
        self.objective.before_forward(&x)?;
        let logits = self.model.full_precision()?.forward(&x, Mode::Train(self.batch_norm))?;
        let loss = self.objective.loss(&logits, &labels)?;
        Ok(Scored { loss, judged: Some((logits, labels)) })
    }

    fn after_backward(&mut self, gradients: &GradStore, at: Progress) -> Result<()> {
        self.objective.after_backward(gradients, at)
    }

    fn after_step(&mut self, step: usize) -> Result<Flow> {
        self.objective.after_step(step)
    }

    fn after_epoch(&mut self, epoch: usize) -> Result<Flow> {
        self.objective.after_epoch(epoch)
    }
}

/// One epoch of a training, as it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Epoch {
    /// Mean loss over the epoch's images.
    pub loss: f64,
    /// Share of the epoch's (augmented) images whose label had the largest logit; 0 where nothing is classified.
    pub accuracy: f64,
    /// Learning rate of the last step.
    pub lr: f64,
}

impl<D> Recipe<D> {
    /// Trains all of `model` in place, with an optimizer of its own. `purpose` names the random streams and the progress phase.
    pub fn train(
        &self,
        purpose: &str,
        model: &Model,
        images: &Images,
        objective: &mut dyn Objective,
        run: &Run<'_>,
    ) -> Result<Vec<Epoch>> {
        let mut optimizer = self.optimizer(model.full_precision()?.params())?;
        self.fit(purpose, model, images, &mut optimizer, objective, run)
    }

    /// Trains `model` in place. `purpose` names the random streams and the progress phase.
    pub fn fit(
        &self,
        purpose: &str,
        model: &Model,
        images: &Images,
        optimizer: &mut Optimizer,
        objective: &mut dyn Objective,
        run: &Run<'_>,
    ) -> Result<Vec<Epoch>> {
        model.check(images)?;
        let device = model.device().clone();
        let mut fit = Fit { model, batch_norm: self.batch_norm, objective };
        self.descend(purpose, (images, &device), optimizer, &mut fit, run)
    }

    /// Moves the optimizer's variables down a loss of the images, batch by batch. `purpose` names the random streams and the
    /// progress phase.
    pub fn descend(
        &self,
        purpose: &str,
        (images, device): (&Images, &Device),
        optimizer: &mut Optimizer,
        descent: &mut dyn Descent,
        run: &Run<'_>,
    ) -> Result<Vec<Epoch>> {
        self.over().run(purpose, (images, device), optimizer, descent, run)
    }
}

impl Recipe {
    /// [`Recipe::descend`], once for all defaults.
    fn run(
        &self,
        purpose: &str,
        (images, device): (&Images, &Device),
        optimizer: &mut Optimizer,
        descent: &mut dyn Descent,
        run: &Run<'_>,
    ) -> Result<Vec<Epoch>> {
        let sizes = self.batch_sizes(images.len())?;
        let epochs = self.epochs.get().max(self.min_steps.get().div_ceil(sizes.len()));
        let total = epochs * sizes.len();
        let warmup = self.warmup_epochs.get() * sizes.len();
        let mut shuffle = run.stream(&format!("{purpose}/shuffle"));
        let mut draws = run.stream(&format!("{purpose}/augment"));
        let mut history = Vec::new();
        let mut step = 0;
        for epoch in 1..=epochs {
            let order = rng::permutation(&mut shuffle, images.len());
            let (mut loss_sum, mut seen, mut lr) = (0.0, 0usize, 0.0);
            let (mut correct, mut judged) = (0usize, 0usize);
            let mut rest = order.as_slice();
            let mut flow = Flow::Continue;
            for &size in &sizes {
                run.checkpoint()?;
                let (batch, tail) = rest.split_at(size);
                rest = tail;
                let (pixels, labels) = images.augmented_batch(batch, &self.augment, &mut draws, device)?;
                let scored = descent.score(pixels, labels)?;
                let value = f64::from(scored.loss.to_scalar::<f32>()?);
                if !value.is_finite() {
                    return Err(Error::NotFinite { what: "loss", step, value });
                }
                lr = self.lr.get() * self.schedule.factor(step, total, warmup);
                let gradients = scored.loss.backward()?;
                descent.after_backward(&gradients, Progress { step, total })?;
                let norm = optimizer.step(&gradients, lr, self.clip_norm)?;
                if !norm.is_finite() {
                    return Err(Error::NotFinite { what: "gradient norm", step, value: norm });
                }
                if let Some((logits, labels)) = &scored.judged {
                    correct += hits(logits, labels)?;
                    judged += labels.elem_count();
                }
                loss_sum += value * size as f64;
                seen += size;
                step += 1;
                run.progress(purpose, step, total, "step");
                flow = descent.after_step(step)?;
                if flow == Flow::Stop {
                    break;
                }
            }
            let stats = Epoch { loss: loss_sum / seen as f64, accuracy: correct as f64 / judged.max(1) as f64, lr };
            run.metric("loss", step, stats.loss);
            if judged > 0 {
                run.metric("accuracy", step, stats.accuracy);
            }
            history.push(stats);
            if flow == Flow::Stop || descent.after_epoch(epoch)? == Flow::Stop {
                break;
            }
        }
        Ok(history)
    }

    /// The sizes of an epoch's batches.
    fn batch_sizes(&self, images: usize) -> Result<Vec<usize>> {
        if images == 0 {
            return Err(DataError::NothingToTrainOn.into());
        }
        let size = self.batch_size.get();
        let mut sizes = vec![size; images / size];
        let last = images % size;
        if last > 1 || sizes.is_empty() {
            sizes.push(last);
        }
        Ok(sizes)
    }
}

/// How many rows have their largest logit at the label.
fn hits(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    let predicted = logits.detach().argmax(1)?.to_vec1::<u32>()?;
    Ok(predicted.iter().zip(labels.to_vec1::<u32>()?).filter(|(p, y)| **p == *y).count())
}
