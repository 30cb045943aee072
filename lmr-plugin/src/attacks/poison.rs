//! Static data poisoning (BadNets, Blend, SIG, CL): part of the training images get the trigger before training begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rand::seq::index;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AttackError, Pgd};
use crate::Result;
use crate::data::{ImageSource, Images, unit};
use crate::losses;
use crate::model::Model;
use crate::optim::Schedule;
use crate::ranges::{Fraction, Positive};
use crate::run::Run;
use crate::stage::{Context, Implants, Material, Outcome, Planted, Stage};
use crate::train::{Defaults, Epoch, Recipe, Usual};
use crate::triggers::Trigger;

/// Trains the model on the training split after a share of it has been poisoned with the configured trigger.
///
/// Poisoned images are stored with 8 bits a pixel like all others, get the trigger first and then the crop and flip of
/// ordinary training. With `poison-rate = 0` this is plain training: the clean control. With `label = "clean"` only images of
/// the target class are poisoned, and every label is right (SIG); with `perturb` they are first made hard to recognize (CL).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Attack {
    /// Share of all training images that are poisoned, in [0, 1), drawn from classes other than the target; with
    /// `label = "clean"` the share of the target class's images, in [0, 1].
    pub poison_rate: Fraction,
    /// What poisoned images are labelled.
    pub label: Labels,
    /// Draws poisoned images from the target class, too, as BackdoorBench does; their label is right already. Not with
    /// `label = "clean"`, which draws from no other.
    pub include_target: bool,
    /// Makes the images hard for the network, as it was received, before they get the trigger; for clean labels.
    pub perturb: Option<Pgd>,
    /// The training; from random weights unless it says otherwise.
    pub training: Recipe<Self>,
}

impl Default for Attack {
    fn default() -> Self {
        Self {
            poison_rate: const { Fraction::literal(0.1) },
            label: Labels::Target,
            include_target: false,
            perturb: None,
            training: Recipe::default(),
        }
    }
}

impl Defaults for Attack {
    fn recipe() -> Recipe<Self> {
        Recipe { lr: const { Positive::literal(0.1) }, schedule: Schedule::OneCycle, ..Usual::recipe().over() }
    }
}

/// What poisoned images are labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Labels {
    /// The target class, whatever they show: images of other classes are poisoned.
    Target,
    /// What they show: images of the target class are poisoned.
    Clean,
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
    pub fn implant(&self, model: &Model, train: &Images, planted: &Planted, run: &Run<'_>) -> Result<Implanted> {
        let indices = self.choose(train, planted.target, run)?;
        let hard = match &self.perturb {
            Some(pgd) => pgd.perturb_images(model, train, &indices, run)?,
            None => Vec::new(),
        };
        let poisoned = poison(train, &indices, hard, planted)?;
        let mut loss = |z: &Tensor, y: &Tensor| Ok(losses::cross_entropy(z, y)?.mean_all()?);
        let epochs = self.training.train("attack", model, &poisoned, &mut loss, run)?;
        Ok(Implanted { samples: train.len(), poisoned: indices.len(), target: planted.target, epochs, indices })
    }

    /// What is impossible about it; keys begin with `prefix`.
    pub(super) fn faults_of(&self, prefix: &str) -> Vec<String> {
        let fine = self.label == Labels::Clean || self.poison_rate.get() < 1.0;
        let dirty = self.perturb.is_some() && self.label == Labels::Target;
        let faults = crate::stage::faults([
            (fine, "poison-rate", "a number in [0, 1)", self.poison_rate.to_string()),
            (
                !(self.include_target && self.label == Labels::Clean),
                "include-target",
                "false beside label = \"clean\"",
                "true".into(),
            ),
            (!dirty, "perturb", "label = \"clean\" beside it", "label = \"target\"".into()),
        ]);
        let mut faults: Vec<String> = faults.into_iter().map(|fault| format!("{prefix}{fault}")).collect();
        faults.extend(self.training.faults(&format!("{prefix}training")));
        faults
    }

    /// Draws `round(rate·N)` images without replacement from the classes other than the target, or `round(rate·N_t)` of
    /// those N_t of the target class.
    fn choose(&self, train: &Images, target: u32, run: &Run<'_>) -> Result<Vec<usize>> {
        let labels = train.labels();
        let fit = |i: &usize| match self.label {
            Labels::Target => self.include_target || labels[*i] != target,
            Labels::Clean => labels[*i] == target,
        };
        let candidates: Vec<usize> = (0..labels.len()).filter(fit).collect();
        let of = if self.label == Labels::Clean { candidates.len() } else { labels.len() };
        let count = (self.poison_rate.get() * of as f64).round() as usize;
        if count > candidates.len() {
            return Err(AttackError::PoisonRate {
                rate: self.poison_rate.get(),
                asked: count,
                available: candidates.len(),
            }
            .into());
        }
        let mut rng = run.stream("attack/poison");
        let mut chosen: Vec<usize> =
            index::sample(&mut rng, candidates.len(), count).iter().map(|i| candidates[i]).collect();
        chosen.sort_unstable();
        Ok(chosen)
    }
}

/// `train` with the trigger and the target label on the images at `indices`. `hard` has the bytes that take their place
/// first, if it is not empty.
fn poison(train: &Images, indices: &[usize], hard: Vec<Vec<u8>>, planted: &Planted) -> Result<Images> {
    let mut labels = train.labels().to_vec();
    let mut triggered = vec![false; train.len()];
    for &index in indices {
        labels[index] = planted.target;
        triggered[index] = true;
    }
    let hard = indices.iter().copied().zip(hard).collect();
    let source = Poisoned { images: train.clone(), triggered, hard, trigger: planted.trigger.clone() };
    Images::from_source(Arc::new(source), labels, train.classes())
}

/// Images of which some carry the trigger. They get it when they are read, so a set that is not in memory stays out of it.
struct Poisoned {
    images: Images,
    triggered: Vec<bool>,
    /// Bytes in place of some of the images.
    hard: BTreeMap<usize, Vec<u8>>,
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
        let bytes = match self.hard.get(&index) {
            Some(hard) => hard.clone(),
            None => self.images.image(index)?,
        };
        let [c, h, w] = self.shape();
        let before = bytes.into_iter().map(unit).collect::<Vec<f32>>();
        let before = Tensor::from_vec(before, (1, c, h, w), &Device::Cpu)?;
        let triggered = self.trigger.apply(&before)?.affine(255.0, 0.5)?.clamp(0f64, 255.0)?;
        out.copy_from_slice(&triggered.to_dtype(DType::U8)?.flatten_all()?.to_vec1::<u8>()?);
        Ok(())
    }
}

impl Stage for Attack {
    const KIND: &'static str = "attack";
    const SUMMARY: &'static str = "implants a backdoor by poisoning the training split (BadNets, Blend, SIG, CL)";
    type Role = Implants;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        self.faults_of("")
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material) -> Result<Outcome<()>> {
        let Material { train, backdoor: planted } = material;
        let implanted = self.implant(ctx.model, train, planted, &ctx.run)?;
        super::implanted(&implanted, planted, Some(&implanted.indices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::triggers::{Patch, TriggerConfig};

    #[test]
    fn the_target_class_is_poisoned_only_if_asked_for() {
        let images = Images::new(vec![0; 20], (0..20).map(|i| i % 2).collect(), [1, 1, 1], 2).unwrap();
        let chosen = |include_target| {
            let attack = Attack { poison_rate: Fraction::literal(0.5), include_target, ..Attack::default() };
            attack.choose(&images, 0, &Run::quiet(0)).unwrap()
        };
        let of_target = |chosen: Vec<usize>| chosen.iter().filter(|&&i| images.labels()[i] == 0).count();
        assert_eq!(of_target(chosen(false)), 0);
        assert!((1..10).contains(&of_target(chosen(true))));
        let both = Attack { include_target: true, label: Labels::Clean, ..Attack::default() };
        assert_eq!(both.faults(), ["include-target: expected false beside label = \"clean\", found true"]);
    }

    #[test]
    fn chosen_images_carry_trigger_and_label() {
        let images = Images::new((0..3 * 48).collect(), vec![0, 1, 2], [3, 4, 4], 3).unwrap();
        let planted = Planted { trigger: Patch::default().build(3, 4, 4).unwrap(), target: 0 };
        let poisoned = poison(&images, &[1], Vec::new(), &planted).unwrap();
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
