//! The one training loop. Stages and attacks say what to minimize and when to stop; batching, augmentation, schedules,
//! progress and the watch for non-finite losses are here.

use candle_core::Tensor;
use serde::Serialize;

use crate::data::{Augment, Images, Normalization};
use crate::models::Classifier;
use crate::nn::{BatchNormMode, Train};
use crate::optim::{Optimizer, Schedule};
use crate::rng;
use crate::run::Run;
use crate::{Error, Result};

/// How to train.
#[derive(Clone, Debug)]
pub struct Training {
    /// Passes over the images.
    pub epochs: usize,
    /// At least this many optimizer steps, whatever `epochs` says; for very small clean sets.
    pub min_steps: usize,
    /// Images a step; the last batch of an epoch may be smaller, and is left out if it holds a single image.
    pub batch_size: usize,
    /// Base learning rate.
    pub lr: f64,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Epochs of linear warm-up.
    pub warmup_epochs: usize,
    /// Crop and flip.
    pub augment: Augment,
    /// Statistics that batch norm normalizes with.
    pub batch_norm: BatchNormMode,
    /// Limit on the global gradient norm.
    pub clip_norm: Option<f64>,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Next step.
    Continue,
    /// Enough.
    Stop,
}

/// What is minimized, and what happens between steps.
pub trait Objective {
    /// Called with a batch of normalized images `f32[B,C,H,W]` before the model sees it.
    fn before_forward(&mut self, _images: &Tensor) -> Result<()> {
        Ok(())
    }

    /// The loss of a batch: a scalar, from logits `f32[B,K]` and labels `u32[B]`.
    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor>;

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

/// One epoch of a training, as it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Epoch {
    /// Mean loss over the epoch's images.
    pub loss: f64,
    /// Share of the epoch's (augmented) images whose label had the largest logit.
    pub accuracy: f64,
    /// Learning rate of the last step.
    pub lr: f64,
}

impl Training {
    /// Trains `model` in place. `purpose` names the random streams and the progress phase.
    pub fn fit(
        &self,
        purpose: &str,
        model: &dyn Classifier,
        (images, normalization): (&Images, &Normalization),
        optimizer: &mut Optimizer,
        objective: &mut dyn Objective,
        run: &Run<'_>,
    ) -> Result<Vec<Epoch>> {
        let device = model.head().weight().device().clone();
        let sizes = self.batch_sizes(images.len())?;
        let epochs = self.epochs.max(self.min_steps.div_ceil(sizes.len()));
        let total = epochs * sizes.len();
        let warmup = self.warmup_epochs * sizes.len();
        let mut shuffle = run.stream(&format!("{purpose}/shuffle"));
        let mut draws = run.stream(&format!("{purpose}/augment"));
        let mut history = Vec::with_capacity(epochs);
        let mut step = 0;
        for epoch in 1..=epochs {
            let order = rng::permutation(&mut shuffle, images.len());
            let (mut loss_sum, mut correct, mut seen, mut lr) = (0.0, 0usize, 0usize, 0.0);
            let mut rest = order.as_slice();
            let mut flow = Flow::Continue;
            for &size in &sizes {
                run.checkpoint()?;
                let (batch, tail) = rest.split_at(size);
                rest = tail;
                let (pixels, labels) = images.augmented_batch(batch, &self.augment, &mut draws, &device)?;
                let x = normalization.apply(&pixels)?;
                objective.before_forward(&x)?;
                let logits = model.forward(&mut Train { batch_norm: self.batch_norm }, &x)?;
                let loss = objective.loss(&logits, &labels)?;
                let value = f64::from(loss.to_scalar::<f32>()?);
                if !value.is_finite() {
                    return Err(Error::NotFinite { what: "loss", step, value });
                }
                lr = self.lr * self.schedule.factor(step, total, warmup);
                let norm = optimizer.step(&loss.backward()?, lr, self.clip_norm)?;
                if !norm.is_finite() {
                    return Err(Error::NotFinite { what: "gradient norm", step, value: norm });
                }
                correct += hits(&logits, &labels)?;
                loss_sum += value * size as f64;
                seen += size;
                step += 1;
                run.progress(purpose, step, total, "step");
                flow = objective.after_step(step)?;
                if flow == Flow::Stop {
                    break;
                }
            }
            let stats = Epoch { loss: loss_sum / seen as f64, accuracy: correct as f64 / seen as f64, lr };
            run.metric("loss", step, stats.loss);
            run.metric("accuracy", step, stats.accuracy);
            history.push(stats);
            if flow == Flow::Stop || objective.after_epoch(epoch)? == Flow::Stop {
                break;
            }
        }
        Ok(history)
    }

    /// The sizes of an epoch's batches.
    fn batch_sizes(&self, images: usize) -> Result<Vec<usize>> {
        if images == 0 || self.batch_size == 0 {
            return Err(Error::invalid(format!(
                "training needs at least one image and a batch size of at least 1, found {images} and {}",
                self.batch_size
            )));
        }
        let mut sizes = vec![self.batch_size; images / self.batch_size];
        let last = images % self.batch_size;
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
