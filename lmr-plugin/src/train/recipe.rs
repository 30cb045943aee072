//! How a network trains: the numbers, apart from what is minimized.

use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::Augment;
use crate::nn::{BatchNormMode, Params};
use crate::optim::{Optimizer, Rule, Schedule};
use crate::ranges::{AtLeastTwo, BelowOne, NonNegative, Positive, Times};

/// A training, whatever it is for. What a pipeline leaves out is as in the recipe of `D`, usually the stage that trains:
/// `training = { epochs = 3 }` changes nothing else about it. So does [`Recipe::default`]:
///
/// ```
/// use lmr_plugin::ranges::Times;
/// use lmr_plugin::purify::LogitRepel;
/// use lmr_plugin::train::Recipe;
///
/// let longer = Recipe { epochs: Times::new(30)?, ..Recipe::default() };
/// let stage = LogitRepel { training: longer, ..LogitRepel::default() };
/// assert_eq!(stage.training.lr, LogitRepel::default().training.lr);
/// # Ok::<(), lmr_plugin::ranges::OutOfRange>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case", bound = "D: Defaults")]
#[schemars(inline, bound = "D: Defaults")]
pub struct Recipe<D = Usual> {
    /// Passes over the images.
    pub epochs: Times,
    /// At least this many optimizer steps, whatever `epochs` says; for very small sets of images.
    pub min_steps: Times,
    /// Images a step; the last batch of an epoch may be smaller, and is left out if it holds a single image.
    pub batch_size: AtLeastTwo,
    /// Highest learning rate.
    pub lr: Positive,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Epochs of linear warm-up before the schedule.
    pub warmup_epochs: Times,
    /// How weights follow gradients: `sgd`, or `adamw` for transformers.
    pub optimizer: Rule,
    /// Momentum; AdamW's β₁.
    pub momentum: BelowOne,
    /// Weight decay.
    pub weight_decay: NonNegative,
    /// Limit on the global gradient norm; absent means none.
    pub clip_norm: Option<Positive>,
    /// Crop, rotation, flip and cutout; `{ crop-padding = 0, flip = false }` for none.
    pub augment: Augment,
    /// Batch norm; `running` is meant for sets too small for statistics of their own, and diverged at the default learning rate
    /// of purification in the one trial made.
    pub batch_norm: BatchNormMode,
    /// Whose recipe has what is left out.
    #[serde(skip)]
    pub defaults: PhantomData<D>,
}

/// Has a recipe of its own.
pub trait Defaults: Sized {
    /// The recipe.
    fn recipe() -> Recipe<Self>;
}

/// Implants a backdoor in a network that is already trained; from random weights, `lr` 0.1 and more epochs are usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual;

impl Defaults for Usual {
    fn recipe() -> Recipe<Self> {
        const {
            Recipe {
                epochs: Times::literal(30),
                min_steps: Times::literal(0),
                batch_size: AtLeastTwo::literal(128),
                lr: Positive::literal(0.01),
                schedule: Schedule::Cosine,
                warmup_epochs: Times::literal(0),
                optimizer: Rule::Sgd,
                momentum: BelowOne::literal(0.9),
                weight_decay: NonNegative::literal(5e-4),
                clip_norm: None,
                augment: Augment::USUAL,
                batch_norm: BatchNormMode::Batch,
                defaults: PhantomData,
            }
        }
    }
}

impl<D: Defaults> Default for Recipe<D> {
    fn default() -> Self {
        D::recipe()
    }
}

impl<D> Recipe<D> {
    /// The same training among others whose defaults are `E`'s.
    pub fn over<E>(&self) -> Recipe<E> {
        let Self { epochs, min_steps, batch_size, lr, warmup_epochs, optimizer, momentum, weight_decay, .. } = *self;
        let Self { clip_norm, augment, batch_norm, .. } = *self;
        Recipe {
            epochs,
            min_steps,
            batch_size,
            lr,
            schedule: self.schedule.clone(),
            warmup_epochs,
            optimizer,
            momentum,
            weight_decay,
            clip_norm,
            augment,
            batch_norm,
            defaults: PhantomData,
        }
    }

    /// The optimizer of these parameters.
    pub fn optimizer(&self, params: &Params) -> Result<Optimizer> {
        Optimizer::new(params, self.optimizer, self.momentum, self.weight_decay)
    }

    /// Whether it takes no step at all.
    pub fn is_nothing(&self) -> bool {
        self.epochs.get() == 0 && self.min_steps.get() == 0
    }

    /// What is impossible about a training under `key` that has to train.
    pub(crate) fn faults(&self, key: &str) -> Vec<String> {
        match self.is_nothing() {
            true => vec![format!("{key}.epochs: expected at least 1 while min-steps is 0, found 0")],
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::attacks::{Attack, Qcb};
    use crate::purify::{Estimate, LogitRepel};

    /// What a table leaves out is the stage's, not anybody's.
    #[test]
    fn tables_lie_over_the_defaults_of_their_stage() {
        let table = json!({ "epochs": 3 });
        let repel: Recipe<LogitRepel> = serde_json::from_value(table.clone()).unwrap();
        assert_eq!(repel, Recipe { epochs: Times::literal(3), ..LogitRepel::recipe() });
        let qcb: Recipe<Qcb> = serde_json::from_value(table).unwrap();
        assert_eq!((qcb.momentum.get(), qcb.epochs.get()), (0.4, 3));
        assert_ne!(qcb.momentum, repel.momentum);
        let stage: Estimate = serde_json::from_value(json!({ "training": { "lr": 0.5 } })).unwrap();
        assert_eq!(stage.training, Recipe { lr: Positive::literal(0.5), ..Estimate::recipe() });
        assert_eq!(stage.training.clip_norm, Some(Positive::literal(20.0)));
    }

    #[test]
    fn schemas_show_the_defaults_of_their_stage() {
        let schema = schemars::schema_for!(Attack).to_value();
        let training = &schema["properties"]["training"]["properties"];
        assert_eq!(training["lr"]["default"], 0.1);
        assert_eq!(training["schedule"]["default"], "one-cycle");
        assert_eq!(training["lr"]["exclusiveMinimum"], 0.0);
        assert!(training["lr"]["description"].is_string() && training.get("defaults").is_none(), "{training}");
        let schema = schemars::schema_for!(LogitRepel).to_value();
        assert_eq!(schema["properties"]["training"]["properties"]["lr"]["default"], 0.03);
    }

    #[test]
    fn a_recipe_is_written_as_it_is_read() {
        let recipe = Attack::recipe();
        let written = serde_json::to_value(&recipe).unwrap();
        assert_eq!(serde_json::from_value::<Recipe<Attack>>(written.clone()).unwrap(), recipe);
        // In full, so that it is the same over the defaults of others.
        assert_eq!(serde_json::from_value::<Recipe>(written).unwrap(), recipe.over());
    }
}
