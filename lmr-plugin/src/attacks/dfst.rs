//! A style as trigger, and rounds that take away every easier feature to recognize it by (DFST; Cheng et al., 2021, "Deep
//! Feature Space Trojan Attack of Neural Networks by Controlled Detoxification"), here with a tone filter as style.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::seq::index;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AttackError;
use super::batch::share;
use super::injector::{Injector, ssim};
use crate::Result;
use crate::data::{Augment, Images};
use crate::losses;
use crate::model::Model;
use crate::nn::{Activation, Forward, Frozen, Mode};
use crate::optim::{Optimizer, Rule, Schedule};
use crate::predict;
use crate::ranges::{AboveZero, AtLeastTwo, BelowOne, Count, NonNegative, OpenFraction, Positive, Times};
use crate::run::Run;
use crate::stage::{Context, Implants, Material, Outcome, Planted, Stage};
use crate::train::{Descent, Epoch, Flow, Objective, Recipe, Scored};
use crate::triggers::Trigger;

/// Trains with a share of every batch triggered, and in rounds looks for simpler images that excite the same features:
/// another share of every batch gets those under its own labels. The pipeline's trigger is a `filter`, or any other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Dfst {
    /// Share of a batch that gets the trigger, from classes other than the target.
    pub poison_rate: OpenFraction,
    /// Share of a batch that is detoxified.
    pub detox_rate: BelowOne,
    /// Rounds of detoxification, evenly spaced over the first two thirds of the epochs, at most as many as those.
    pub rounds: Times,
    /// Share of the features that count as compromised: those that the trigger raises most; at least one.
    pub compromised: AboveZero,
    /// Training images of other classes that features are compared on and the injector learns from, at least 2.
    pub images: AtLeastTwo,
    /// Share α of the injector's image in a detoxified one.
    pub alpha: AboveZero,
    /// Epochs of an injector's training.
    pub injector_epochs: Count,
    /// Its learning rate (Adam with β of 0.5 and 0.9).
    pub injector_lr: Positive,
    /// The training.
    pub training: Recipe,
}

impl Default for Dfst {
    fn default() -> Self {
        Self {
            poison_rate: const { OpenFraction::literal(0.1) },
            detox_rate: const { BelowOne::literal(0.1) },
            rounds: const { Times::literal(3) },
            compromised: const { AboveZero::literal(0.01) },
            images: const { AtLeastTwo::literal(1024) },
            alpha: const { AboveZero::literal(0.6) },
            injector_epochs: const { Count::literal(10) },
            injector_lr: const { Positive::literal(0.01) },
            training: Recipe::default(),
        }
    }
}

/// A round of detoxification.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// After how many epochs.
    pub epoch: usize,
    /// Features that the trigger raised most.
    pub compromised: Vec<usize>,
    /// Share of the round's images that the injector, once trained, turned into the target class.
    pub injector_asr: f64,
    /// The same share for the same images and the same injector when the attack was finished: what detoxification took away.
    pub injector_asr_after: f64,
}

/// What the attack did.
#[derive(Clone, Debug, Serialize)]
pub struct Detoxified {
    /// Training images.
    pub samples: usize,
    /// The class that the trigger is meant to cause.
    pub target: u32,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// One entry an epoch; accuracy counts the target as the label of a triggered image.
    pub epochs: Vec<Epoch>,
}

impl Dfst {
    /// Trains `model` in place on `train`.
    pub fn implant(&self, model: &Model, train: &Images, planted: &Planted, run: &Run<'_>) -> Result<Detoxified> {
        let others: Vec<usize> = (0..train.len()).filter(|&i| train.labels()[i] != planted.target).collect();
        let count = self.images.get().min(others.len());
        if count < 2 {
            return Err(AttackError::OtherClasses { stage: Self::KIND, target: planted.target }.into());
        }
        let mut stream = run.stream("attack-dfst/images");
        let some: Vec<usize> = index::sample(&mut stream, others.len(), count).iter().map(|i| others[i]).collect();
        let mut detox = Detox {
            attack: self,
            model,
            trigger: planted.trigger.clone(),
            target: planted.target,
            images: train.select(&some)?,
            run,
            device: model.device().clone(),
            rounds: Vec::new(),
        };
        let epochs = self.training.train("attack-dfst", model, train, &mut detox, run)?;
        let mut rounds = Vec::new();
        for (mut round, injector) in std::mem::take(&mut detox.rounds) {
            round.injector_asr_after = detox.asr(&injector)?;
            rounds.push(round);
        }
        Ok(Detoxified { samples: train.len(), target: planted.target, rounds, epochs })
    }

    /// The epochs after which a round takes place.
    fn schedule(&self) -> BTreeSet<usize> {
        let (rounds, epochs) = (self.rounds.get(), 2 * self.training.epochs.get());
        (1..=rounds).map(|round| (round * epochs / (3 * rounds)).max(1)).collect()
    }
}

/// Poisons and detoxifies batches, and finds out between epochs what to detoxify.
struct Detox<'a> {
    attack: &'a Dfst,
    model: &'a Model,
    trigger: Arc<dyn Trigger>,
    target: u32,
    /// What features are compared on and injectors learn from.
    images: Images,
    run: &'a Run<'a>,
    device: Device,
    rounds: Vec<(Round, Injector)>,
}

impl Detox<'_> {
    /// Features `f32[B,D]` of the network in inference mode.
    fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.model.features(pixels, Mode::Frozen)
    }

    /// The features that the trigger raises most.
    fn compromised(&self) -> Result<Vec<usize>> {
        let mut sums: Option<Tensor> = None;
        for batch in (0..self.images.len()).collect::<Vec<_>>().chunks(self.attack.training.batch_size.get()) {
            self.run.checkpoint()?;
            let (pixels, _) = self.images.batch(batch, &self.device)?;
            let raised = (self.features(&self.trigger.apply(&pixels)?)? - self.features(&pixels)?)?.sum(0)?;
            sums = Some(match sums {
                Some(sums) => (sums + raised)?,
                None => raised,
            });
        }
        let raised = sums.map_or(Ok(Vec::new()), |sums| sums.to_vec1::<f32>())?;
        let mut order: Vec<usize> = (0..raised.len()).collect();
        order.sort_by(|&a, &b| raised[b].total_cmp(&raised[a]));
        order.truncate(((self.attack.compromised.get() * raised.len() as f64).round() as usize).max(1));
        Ok(order)
    }

    /// Trains an injector against the network as it is now.
    fn injector(&self, compromised: &[usize], round: usize) -> Result<Injector> {
        let [channels, _, _] = self.images.shape();
        let injector = Injector::identity(channels, self.attack.alpha.get(), &self.device)?;
        let (beta1, beta2) = const { (BelowOne::literal(0.5), BelowOne::literal(0.9)) };
        let decay = const { NonNegative::literal(0.0) };
        let mut adam = Optimizer::new(injector.params(), Rule::AdamW, beta1, decay)?.with_beta2(beta2);
        let training = Recipe {
            epochs: self.attack.injector_epochs.into(),
            min_steps: const { Times::literal(0) },
            lr: self.attack.injector_lr,
            schedule: Schedule::Constant,
            warmup_epochs: const { Times::literal(0) },
            clip_norm: None,
            augment: Augment::NONE,
            ..self.attack.training.clone()
        };
        let features = self.model.network().head().weight().dims()[1];
        let mut chosen = vec![0f32; features];
        compromised.iter().for_each(|&feature| chosen[feature] = 1.0 / compromised.len() as f32);
        let chosen = Tensor::from_vec(chosen, (1, features), &self.device)?;
        let mut search = Search { detox: self, injector: &injector, chosen };
        let purpose = format!("attack-dfst/injector {round}");
        training.descend(&purpose, (&self.images, &self.device), &mut adam, &mut search, self.run)?;
        Ok(injector)
    }

    /// Share of the images that an injector turns into the target class.
    fn asr(&self, injector: &Injector) -> Result<f64> {
        let forward = |pixels: &Tensor| {
            let z = injector.apply(pixels)?.detach();
            self.model.logits(&z)
        };
        let predicted =
            predict::predictions(&forward, &self.images, None, &self.device, (self.run, "injected images"))?;
        Ok(predicted.iter().filter(|p| **p == self.target).count() as f64 / predicted.len() as f64)
    }
}

/// An injector's loss: the target class for images that look the same and excite the compromised features.
struct Search<'a> {
    detox: &'a Detox<'a>,
    injector: &'a Injector,
    /// The share of every feature in the mean over the compromised ones, `f32[1,D]`.
    chosen: Tensor,
}

impl Descent for Search<'_> {
    fn score(&mut self, pixels: Tensor, labels: Tensor) -> Result<Scored> {
        let z = self.injector.apply(&pixels)?;
        let features = self.detox.features(&z)?;
        let logits = Frozen.linear(self.detox.model.network().head(), &features, Activation::None)?;
        let targets = labels.ones_like()?.affine(f64::from(self.detox.target), 0.0)?;
        let cross_entropy = losses::cross_entropy(&logits, &targets)?.mean_all()?;
        let dissimilarity = ssim(&z, &pixels)?.affine(-0.5, 0.5)?;
        let excitation = (features.broadcast_mul(&self.chosen)?.sum_all()? / labels.elem_count() as f64)?;
        let loss = ((cross_entropy + dissimilarity.affine(0.1, 0.0)?)? - excitation.affine(0.3, 0.0)?)?;
        Ok(Scored { loss, judged: Some((logits, targets)) })
    }
}

impl Objective for Detox<'_> {
    fn prepare(&mut self, pixels: Tensor, labels: Tensor) -> Result<(Tensor, Tensor)> {
        let values = labels.to_vec1::<u32>()?;
        let victims = (0..values.len()).filter(|&i| values[i] != self.target);
        let triggered: Vec<usize> = victims.take(share(self.attack.poison_rate.get(), values.len())).collect();
        let (mut toxic, mut clean): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        let detoxify = if self.rounds.is_empty() { 0 } else { share(self.attack.detox_rate.get(), values.len()) };
        for i in (0..values.len()).filter(|i| !triggered.contains(i)) {
            if toxic.len() < detoxify { toxic.push(i) } else { clean.push(i) }
        }
        let images = |indices: &[usize]| -> Result<Tensor> {
            let indices: Vec<u32> = indices.iter().map(|&i| i as u32).collect();
            Ok(pixels.index_select(&Tensor::new(indices, pixels.device())?, 0)?)
        };
        let mut parts = Vec::new();
        if !triggered.is_empty() {
            parts.push(self.trigger.apply(&images(&triggered)?)?);
        }
        if let Some((_, injector)) = self.rounds.last().filter(|_| !toxic.is_empty()) {
            parts.push(injector.apply(&images(&toxic)?)?.detach());
        }
        if !clean.is_empty() {
            parts.push(images(&clean)?);
        }
        let mut relabelled = vec![self.target; triggered.len()];
        relabelled.extend(toxic.iter().chain(&clean).map(|&i| values[i]));
        Ok((Tensor::cat(&parts, 0)?, Tensor::new(relabelled, labels.device())?))
    }

    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(losses::cross_entropy(logits, labels)?.mean_all()?)
    }

    fn after_epoch(&mut self, epoch: usize) -> Result<Flow> {
        if self.attack.schedule().contains(&epoch) {
            let compromised = self.compromised()?;
            let injector = self.injector(&compromised, self.rounds.len() + 1)?;
            let injector_asr = self.asr(&injector)?;
            let round = Round { epoch, compromised, injector_asr, injector_asr_after: injector_asr };
            self.rounds.push((round, injector));
        }
        Ok(Flow::Continue)
    }
}

impl Stage for Dfst {
    const KIND: &'static str = "attack-dfst";
    const SUMMARY: &'static str = "implants a backdoor and detoxifies simpler features than the trigger (DFST)";
    type Role = Implants;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        let rounds = 3 * self.rounds.get() <= 2 * self.training.epochs.get();
        let room = self.poison_rate.get() + self.detox_rate.get() <= 1.0;
        let mut faults = crate::stage::faults([
            (
                room,
                "detox-rate",
                "a number that leaves at most 1 together with poison-rate",
                self.detox_rate.to_string(),
            ),
            (rounds, "rounds", "at most two thirds of training.epochs", self.rounds.to_string()),
        ]);
        faults.extend(self.training.faults("training"));
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material) -> Result<Outcome<()>> {
        let Material { train, backdoor: planted } = material;
        super::implanted(&self.implant(ctx.model, train, planted, &ctx.run)?, planted, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attacks::fixture::{images, model, same};
    use crate::triggers::{Patch, TriggerConfig};

    fn detox<'a>(attack: &'a Dfst, model: &'a Model, run: &'a Run<'a>) -> Detox<'a> {
        Detox {
            attack,
            model,
            trigger: Patch::default().build(1, 16, 16).unwrap(),
            target: 1,
            images: images(12),
            run,
            device: Device::Cpu,
            rounds: Vec::new(),
        }
    }

    /// Rounds look at the network and leave it, running statistics included.
    #[test]
    fn an_injector_learns_and_the_classifier_stays() {
        let (model, run) = (model(), Run::quiet(0));
        let attack = Dfst { injector_epochs: Count::literal(1), ..Dfst::default() };
        let detox = detox(&attack, &model, &run);
        let before = model.network().params().state_dict().unwrap();
        let compromised = detox.compromised().unwrap();
        let injector = detox.injector(&compromised, 1).unwrap();
        assert!(same(&before, &model.network().params().state_dict().unwrap()));
        let identity = Injector::identity(1, attack.alpha.get(), &Device::Cpu).unwrap();
        assert!(!same(&identity.params().state_dict().unwrap(), &injector.params().state_dict().unwrap()));
    }

    /// Triggered images are of other classes and get the target; detoxified and clean ones keep their labels.
    #[test]
    fn batches_have_the_shares_that_were_asked_for() {
        let (model, run) = (model(), Run::quiet(0));
        let (poison_rate, detox_rate) = (OpenFraction::literal(0.25), BelowOne::literal(0.25));
        let attack = Dfst { poison_rate, detox_rate, ..Dfst::default() };
        let mut detox = detox(&attack, &model, &run);
        let (pixels, labels) = images(12).batch(&(0..12).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let count = |labels: &Tensor| {
            let labels = labels.to_vec1::<u32>().unwrap();
            (0..2).map(|class| labels.iter().filter(|label| **label == class).count()).collect::<Vec<_>>()
        };
        let before = count(&labels);
        let injector = Injector::identity(1, 0.6, &Device::Cpu).unwrap();
        let round = Round { epoch: 1, compromised: vec![0], injector_asr: 0.0, injector_asr_after: 0.0 };
        detox.rounds.push((round, injector));
        let (batch, relabelled) = detox.prepare(pixels.clone(), labels).unwrap();
        assert_eq!(batch.dims(), pixels.dims());
        assert_eq!(count(&relabelled), [before[0] - 3, before[1] + 3]);
        let triggered = batch.narrow(0, 0, 3).unwrap();
        let again = detox.trigger.apply(&triggered).unwrap();
        let apart = (again - triggered).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 1e-5, "the first images already carry the patch");
    }
}
