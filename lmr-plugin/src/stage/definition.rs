//! The trait, and what goes into a stage and comes out.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::attachment::Attachment;
use super::facts::Facts;
use super::role::{CleanUse, ModelUse, Role};
use crate::data::CleanSet;
use crate::model::Model;
use crate::run::Run;
use crate::{Error, Result};

/// What a stage is shown beyond its context.
pub type Sees<S> = <<S as Stage>::Role as Role>::Sees;

/// A step of a pipeline. The struct is its configuration: documented fields, defaults with their source, unknown keys
/// rejected.
pub trait Stage: Default + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name in a pipeline file: the type's name in kebab-case.
    const KIND: &'static str;
    /// One line on what it does.
    const SUMMARY: &'static str;
    /// Counts up when the same configuration computes something else than before, so that no stale result is reused.
    const VERSION: u32 = 1;
    /// What it is for; decides what it sees.
    type Role: Role;
    /// What it does with the model.
    const MODEL: ModelUse = <Self::Role as Role>::MODEL;
    /// Findings of earlier stages that it works from.
    type Needs: Facts;
    /// Findings that it adds.
    type Gives: Facts;

    /// What is impossible about this configuration, if anything: `key: expected ..., found ...` each.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }

    /// What it does with the model as it is configured: less than the kind may do, or something that needs more of the model.
    fn model(&self) -> ModelUse {
        Self::MODEL
    }

    /// What it wants of the clean images as it is configured.
    fn clean(&self) -> CleanUse {
        CleanUse::Images
    }

    /// Does the work. `sees` is what the role grants: [`CleanOnly`](super::CleanOnly), an
    /// [`Examination`](super::Examination) or [`Material`](super::Material).
    fn run(&self, ctx: &mut Context<'_>, needs: Self::Needs, sees: &Sees<Self>) -> Result<Outcome<Self::Gives>>;

    /// Puts back what `run` did to the model beyond its weights, from its findings. Called instead of `run` when a
    /// finished stage is reused; the weights are already loaded.
    fn restore(&self, _model: &mut Model, _gives: &Self::Gives) -> Result<()> {
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

impl<G> Outcome<G> {
    /// Findings and a report of anything that serializes.
    pub fn new(gives: G, report: &impl Serialize) -> Result<Self> {
        let report = serde_json::to_value(report).map_err(|source| Error::Finding { name: "report", source })?;
        Ok(Self { gives, report, attachments: Vec::new() })
    }
}

/// `key: expected ..., found ...` for every check that fails.
pub(crate) fn faults<const N: usize>(checks: [(bool, &str, &str, String); N]) -> Vec<String> {
    checks
        .into_iter()
        .filter(|(holds, ..)| !holds)
        .map(|(_, key, expected, found)| format!("{key}: expected {expected}, found {found}"))
        .collect()
}
