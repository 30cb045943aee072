//! Static data poisoning (BadNets, Blend): part of the training images get the trigger and the target label.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rand::seq::index;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{Augment, ImageSource, Images, Normalization};
use crate::losses;
use crate::models::Classifier;
use crate::nn::BatchNormMode;
use crate::optim::{Optimizer, Rule, Schedule};
use crate::run::Run;
use crate::stage::{Attachment, Context, ModelUse, Outcome, Stage};
use crate::train::{Epoch, Training};
use crate::triggers::Trigger;
use crate::truth::{Planted, Truth};
use crate::{Error, Result};

/// Trains the model on the training split after a share of it has been poisoned with the configured trigger.
///
/// Poisoned images are stored with 8 bits a pixel like all others, get the trigger first and then the crop and flip of
/// ordinary training. With `poison-rate = 0` this is plain training: the clean control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Attack {
    /// Share of all training images that are poisoned, in [0, 1); drawn from classes other than the target.
    pub poison_rate: f64,
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

impl Default for Attack {
    fn default() -> Self {
        Self {
            poison_rate: 0.1,
            epochs: 30,
            lr: 0.1,
            schedule: Schedule::OneCycle,
            warmup_epochs: 0,
            optimizer: Rule::Sgd,
            momentum: 0.9,
            weight_decay: 5e-4,
            batch_size: 128,
            augment: Augment::default(),
        }
    }
}

/// What the attack did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Implanted {
    /// Training images, poisoned ones included.
    pub samples: usize,
    /// Poisoned ones among them.
    pub poisoned: usize,
    /// The class that the trigger is meant to cause.
    pub target: u32,
    /// One entry an epoch; accuracy counts the target as the label of a poisoned image.
    pub epochs: Vec<Epoch>,
    /// Indices of the poisoned images in the training split, ascending.
    #[serde(skip)]
    pub indices: Vec<usize>,
}

impl Attack {
    /// Trains `model` in place on `train`, of which a share carries the trigger.
    pub fn implant(
        &self,
        model: &dyn Classifier,
        (train, normalization): (&Images, &Normalization),
        planted: &Planted,
        run: &Run<'_>,
    ) -> Result<Implanted> {
        let indices = self.choose(train, planted.target, run)?;
        let poisoned = poison(train, &indices, planted)?;
        let training = Training {
            epochs: self.epochs,
            min_steps: 0,
            batch_size: self.batch_size,
            lr: self.lr,
            schedule: self.schedule,
            warmup_epochs: self.warmup_epochs,
            augment: self.augment,
            batch_norm: BatchNormMode::Batch,
            clip_norm: None,
        };
        let mut optimizer = Optimizer::new(model.params(), self.optimizer, self.momentum, self.weight_decay)?;
        let mut loss = |z: &Tensor, y: &Tensor| Ok(losses::cross_entropy(z, y)?.mean_all()?);
        let epochs = training.fit("attack", model, (&poisoned, normalization), &mut optimizer, &mut loss, run)?;
        Ok(Implanted { samples: train.len(), poisoned: indices.len(), target: planted.target, epochs, indices })
    }

    /// Draws `round(rate·N)` images without replacement from the classes other than the target.
    fn choose(&self, train: &Images, target: u32, run: &Run<'_>) -> Result<Vec<usize>> {
        let labels = train.labels();
        let others: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] != target).collect();
        let count = (self.poison_rate * labels.len() as f64).round() as usize;
        if count > others.len() {
            return Err(Error::invalid(format!(
                "poison-rate {}: asks for {count} images, but only {} are of classes other than {target}",
                self.poison_rate,
                others.len()
            )));
        }
        let mut rng = run.stream("attack/poison");
        let mut chosen: Vec<usize> = index::sample(&mut rng, others.len(), count).iter().map(|i| others[i]).collect();
        chosen.sort_unstable();
        Ok(chosen)
    }
}

/// `train` with the trigger and the target label on the images at `indices`.
fn poison(train: &Images, indices: &[usize], planted: &Planted) -> Result<Images> {
    let mut labels = train.labels().to_vec();
    let mut triggered = vec![false; train.len()];
    for &index in indices {
        labels[index] = planted.target;
        triggered[index] = true;
    }
    let source = Poisoned { images: train.clone(), triggered, trigger: planted.trigger.clone() };
    Images::from_source(Arc::new(source), labels, train.classes())
}

/// Images of which some carry the trigger. They get it when they are read, so a set that is not in memory stays out of it.
struct Poisoned {
    images: Images,
    triggered: Vec<bool>,
    trigger: Arc<dyn Trigger>,
}

impl ImageSource for Poisoned {
    fn count(&self) -> usize {
        self.images.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.images.shape()
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<()> {
        if !self.triggered[index] {
            return self.images.read(index, out);
        }
        let (clean, _) = self.images.batch(&[index], &Device::Cpu)?;
        let triggered = self.trigger.apply(&clean)?.affine(255.0, 0.5)?.clamp(0f64, 255.0)?;
        out.copy_from_slice(&triggered.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?);
        Ok(())
    }
}

impl Stage for Attack {
    const KIND: &'static str = "attack";
    const SUMMARY: &'static str = "implants a backdoor by poisoning the training split (BadNets, Blend)";
    const MODEL: ModelUse = ModelUse::Writes;
    type Needs = ();
    type Gives = ();
    type Sees = Truth;

    fn faults(&self) -> Vec<String> {
        crate::stages::faults([
            ((0.0..1.0).contains(&self.poison_rate), "poison-rate", "a number in [0, 1)", self.poison_rate.to_string()),
            (self.epochs > 0, "epochs", "at least 1", self.epochs.to_string()),
            (self.lr > 0.0 && self.lr.is_finite(), "lr", "a number above 0", self.lr.to_string()),
            ((0.0..1.0).contains(&self.momentum), "momentum", "a number in [0, 1)", self.momentum.to_string()),
            (self.weight_decay >= 0.0, "weight-decay", "a number of at least 0", self.weight_decay.to_string()),
            (self.batch_size > 1, "batch-size", "at least 2", self.batch_size.to_string()),
        ])
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), truth: &Truth) -> Result<Outcome<()>> {
        let planted = truth.planted.as_ref().ok_or_else(|| Error::invalid("attack needs a [trigger]"))?;
        let train =
            truth.train.as_ref().ok_or_else(|| Error::invalid("attack needs the training split ([data] train)"))?;
        let model = ctx.model.full_precision()?;
        let implanted = self.implant(model, (train, &truth.normalization), planted, &ctx.run)?;
        let mut outcome = Outcome::new((), &implanted)?;
        let indices: Vec<u32> = implanted.indices.iter().map(|&i| i as u32).collect();
        let poison = Tensor::from_vec(indices, implanted.indices.len(), &Device::Cpu)?;
        let mut tensors = planted.trigger.tensors();
        tensors.insert("poison_indices".into(), poison);
        let metadata = BTreeMap::from([("target".to_string(), planted.target.to_string())]);
        outcome.attachments.push(Attachment { name: "trigger".into(), tensors, metadata });
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::triggers::{Patch, TriggerConfig};

    #[test]
    fn chosen_images_carry_trigger_and_label() {
        let images = Images::new((0..3 * 48).collect(), vec![0, 1, 2], [3, 4, 4], 3).unwrap();
        let planted = Planted { trigger: Patch::default().build(3, 4, 4).unwrap(), target: 0 };
        let poisoned = poison(&images, &[1], &planted).unwrap();
        assert_eq!(poisoned.labels(), [0, 0, 2]);
        for untouched in [0, 2] {
            assert_eq!(poisoned.image(untouched).unwrap(), images.image(untouched).unwrap());
        }
        let (clean, _) = images.batch(&[1], &Device::Cpu).unwrap();
        let expected = planted.trigger.apply(&clean).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = poisoned.image(1).unwrap();
        assert_ne!(found, images.image(1).unwrap());
        assert!(found.iter().zip(expected).all(|(&byte, value)| (f32::from(byte) - 255.0 * value).abs() < 0.501));
    }
}
