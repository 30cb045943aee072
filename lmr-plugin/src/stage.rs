//! What a stage is, and what it is given.
//!
//! A stage is two things. First a documented config struct with a typed method that anyone can call from their own
//! Candle loop (`Estimate::estimate`, `LogitRepel::repel`, ...). Second a thin [`Stage`] implementation that takes the
//! inputs from a [`Context`] and hands the outcome back, so that a pipeline can compose it.
//!
//! What a stage needs and gives are types. A pipeline in the wrong order is refused while it is planned, and a stage
//! that should not know the attack cannot name it: [`Stage::Sees`] must be [`CleanOnly`] for every stage but those that
//! this crate clears for [`Truth`].
//!
//! ```compile_fail
//! use lmr_plugin::stage::{Context, ModelUse, Outcome, Stage};
//! use lmr_plugin::truth::Truth;
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! struct Peek {}
//!
//! impl Stage for Peek {
//!     const KIND: &'static str = "peek";
//!     const SUMMARY: &'static str = "purifies with the answer in hand";
//!     const MODEL: ModelUse = ModelUse::Writes;
//!     type Needs = ();
//!     type Gives = ();
//!     type Sees = Truth; // error: `Truth` cannot be seen by `Peek`
//!     fn run(&self, _: &mut Context<'_>, _: (), _: &Truth) -> lmr_plugin::Result<Outcome<()>> {
//!         Outcome::new((), &serde_json::Value::Null)
//!     }
//! }
//! ```
//!
//! The same stage without the answer compiles:
//!
//! ```
//! use lmr_plugin::stage::{CleanOnly, Context, ModelUse, Outcome, Stage};
//!
//! #[derive(Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! struct Honest {}
//!
//! impl Stage for Honest {
//!     const KIND: &'static str = "honest";
//!     const SUMMARY: &'static str = "looks at the clean set alone";
//!     const MODEL: ModelUse = ModelUse::Reads;
//!     type Needs = ();
//!     type Gives = ();
//!     type Sees = CleanOnly;
//!     fn run(&self, ctx: &mut Context<'_>, _: (), _: &CleanOnly) -> lmr_plugin::Result<Outcome<()>> {
//!         Outcome::new((), &ctx.clean.images.len())
//!     }
//! }
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::data::CleanSet;
use crate::model::Model;
use crate::nn::StateDict;
use crate::run::Run;
use crate::truth::{CleanOnly as Nothing, Sight, Truth};
use crate::{Error, Result};

pub use crate::truth::CleanOnly;

/// What a stage does with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelUse {
    /// Looks at it in whatever form it is, deployed ones included.
    Inspects,
    /// Looks at the full-precision, unpruned model.
    Reads,
    /// Changes the full-precision, unpruned model.
    Writes,
    /// Turns it into a form that is shipped (quantized, pruned); only inspection may follow.
    Deploys,
}

impl ModelUse {
    /// Whether the model that comes out differs from the one that went in.
    pub fn changes_model(self) -> bool {
        matches!(self, Self::Writes | Self::Deploys)
    }
}

/// A step of a pipeline. The struct is its configuration: documented fields, defaults with their source, unknown keys
/// rejected.
pub trait Stage: Default + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name in a pipeline file: the type's name in kebab-case.
    const KIND: &'static str;
    /// One line on what it does.
    const SUMMARY: &'static str;
    /// Counts up when the same configuration computes something else than before, so that no stale result is reused.
    const VERSION: u32 = 1;
    /// What it does with the model.
    const MODEL: ModelUse;
    /// Findings of earlier stages that it works from.
    type Needs: Facts;
    /// Findings that it adds.
    type Gives: Facts;
    /// [`CleanOnly`], or the truth about the attack for the few stages that are cleared for it.
    type Sees: Sight<Self>;

    /// What is impossible about this configuration, if anything: `key: expected ..., found ...` each.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }

    /// What it does with the model as it is configured: less than the kind may do, or something that needs more of the model.
    fn model(&self) -> ModelUse {
        Self::MODEL
    }

    /// Does the work.
    fn run(&self, ctx: &mut Context<'_>, needs: Self::Needs, sees: &Self::Sees) -> Result<Outcome<Self::Gives>>;

    /// Puts back what `run` did to the model beyond its weights, from its findings. Called instead of `run` when a
    /// finished stage is reused; the weights are already loaded.
    fn restore(&self, _ctx: &mut Context<'_>, _gives: &Self::Gives) -> Result<()> {
        Ok(())
    }
}

/// What a stage works with.
pub struct Context<'a> {
    /// The model, changed in place.
    pub model: &'a mut Model,
    /// The model as the defender received it, if a purifying stage has changed it since; see [`Context::received`].
    pub received: Option<&'a Model>,
    /// The defender's clean images: all the data that a purifying stage has.
    pub clean: &'a CleanSet,
    /// Seed, progress, cancellation.
    pub run: Run<'a>,
}

impl Context<'_> {
    /// The model from before the first purifying stage of this branch. For that stage it is the model itself, also while
    /// the stage changes it.
    pub fn received(&self) -> &Model {
        self.received.unwrap_or(self.model)
    }
}

/// What a stage hands back.
#[derive(Debug)]
pub struct Outcome<G> {
    /// Findings for the stages after it.
    pub gives: G,
    /// What the report shows: serialized as it is under `outcome`.
    pub report: Value,
    /// Tensors to keep beside the checkpoint (`<name>.safetensors`), with string metadata.
    pub attachments: Vec<Attachment>,
}

/// Named tensors kept with a stage's results.
#[derive(Debug)]
pub struct Attachment {
    /// File name without ending.
    pub name: String,
    /// The tensors.
    pub tensors: StateDict,
    /// String metadata of the file.
    pub metadata: BTreeMap<String, String>,
}

impl<G> Outcome<G> {
    /// Findings and a report of anything that serializes.
    pub fn new(gives: G, report: &impl Serialize) -> Result<Self> {
        let report = serde_json::to_value(report).map_err(|source| Error::Finding { name: "report", source })?;
        Ok(Self { gives, report, attachments: Vec::new() })
    }
}

/// Something one stage finds out and another works from.
pub trait Finding: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The name in messages and files, in kebab-case.
    const NAME: &'static str;
}

/// Findings by name, as JSON, so that a run can resume from them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct FactStore(BTreeMap<String, Value>);

impl FactStore {
    /// The finding of type `F`.
    pub fn get<F: Finding>(&self) -> Result<F> {
        let value = self
            .0
            .get(F::NAME)
            .ok_or_else(|| Error::invalid(format!("no stage before this one gives `{}`, which it needs", F::NAME)))?;
        serde_json::from_value(value.clone()).map_err(|source| Error::Finding { name: F::NAME, source })
    }

    /// Adds a finding; a later one of the same type replaces it.
    pub fn put<F: Finding>(&mut self, finding: &F) -> Result<()> {
        let value = serde_json::to_value(finding).map_err(|source| Error::Finding { name: F::NAME, source })?;
        self.0.insert(F::NAME.to_string(), value);
        Ok(())
    }

    /// Adds all of another store's findings; later ones replace earlier ones of the same type.
    pub fn extend(&mut self, other: FactStore) {
        self.0.extend(other.0);
    }

    /// The names that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// A tuple of findings: what a stage needs or gives.
pub trait Facts: Sized {
    /// Their names.
    fn names() -> Vec<&'static str>;
    /// Takes them out of a store.
    fn read(store: &FactStore) -> Result<Self>;
    /// Puts them into a store.
    fn write(&self, store: &mut FactStore) -> Result<()>;
}

macro_rules! facts {
    ($($finding:ident),*) => {
        impl<$($finding: Finding),*> Facts for ($($finding,)*) {
            fn names() -> Vec<&'static str> {
                vec![$($finding::NAME),*]
            }
            fn read(_store: &FactStore) -> Result<Self> {
                Ok(($(_store.get::<$finding>()?,)*))
            }
            #[allow(non_snake_case)]
            fn write(&self, _store: &mut FactStore) -> Result<()> {
                let ($($finding,)*) = self;
                $(_store.put($finding)?;)*
                Ok(())
            }
        }
    };
}

facts!();
facts!(A);
facts!(A, B);
facts!(A, B, C);

/// A [`Stage`] with its types erased, as a pipeline holds it.
pub trait AnyStage: Send + Sync {
    /// See [`Stage::KIND`].
    fn kind(&self) -> &'static str;
    /// See [`Stage::VERSION`].
    fn version(&self) -> u32;
    /// See [`Stage::model`].
    fn model_use(&self) -> ModelUse;
    /// Names of the findings it needs.
    fn needs(&self) -> Vec<&'static str>;
    /// Names of the findings it gives.
    fn gives(&self) -> Vec<&'static str>;
    /// Whether it is shown the truth about the attack.
    fn sees_truth(&self) -> bool;
    /// See [`Stage::faults`].
    fn faults(&self) -> Vec<String>;
    /// The configuration, defaults included.
    fn config(&self) -> Result<Value>;
    /// See [`Stage::run`]; the findings in the outcome are the given ones alone.
    fn run(&self, ctx: &mut Context<'_>, facts: &FactStore, truth: Option<&Truth>) -> Result<Outcome<FactStore>>;
    /// See [`Stage::restore`].
    fn restore(&self, ctx: &mut Context<'_>, gives: &FactStore) -> Result<()>;
}

impl<S: Stage> AnyStage for S {
    fn kind(&self) -> &'static str {
        S::KIND
    }
    fn version(&self) -> u32 {
        S::VERSION
    }
    fn model_use(&self) -> ModelUse {
        self.model()
    }
    fn needs(&self) -> Vec<&'static str> {
        S::Needs::names()
    }
    fn gives(&self) -> Vec<&'static str> {
        S::Gives::names()
    }
    fn sees_truth(&self) -> bool {
        <S::Sees as Sight<S>>::TRUTH
    }
    fn faults(&self) -> Vec<String> {
        Stage::faults(self)
    }
    fn config(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|source| Error::Finding { name: S::KIND, source })
    }
    fn run(&self, ctx: &mut Context<'_>, facts: &FactStore, truth: Option<&Truth>) -> Result<Outcome<FactStore>> {
        let sees = S::Sees::grant(truth, &Nothing)
            .ok_or_else(|| Error::invalid(format!("{} needs test data, and none is configured", S::KIND)))?;
        let outcome = Stage::run(self, ctx, S::Needs::read(facts)?, sees)?;
        let mut gives = FactStore::default();
        outcome.gives.write(&mut gives)?;
        Ok(Outcome { gives, report: outcome.report, attachments: outcome.attachments })
    }
    fn restore(&self, ctx: &mut Context<'_>, gives: &FactStore) -> Result<()> {
        Stage::restore(self, ctx, &S::Gives::read(gives)?)
    }
}
