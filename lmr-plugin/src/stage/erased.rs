//! Stages of any type, as a pipeline holds them.

use serde_json::Value;

use super::definition::{Context, Outcome, Stage};
use super::facts::{FactStore, Facts};
use super::role::{CleanUse, ModelUse, Role, RoleKind, Shown};
use crate::model::Model;
use crate::{Error, Result};

/// A [`Stage`] with its types erased, as a pipeline holds it.
pub trait AnyStage: Send + Sync {
    /// See [`Stage::KIND`].
    fn kind(&self) -> &'static str;
    /// See [`Stage::VERSION`].
    fn version(&self) -> u32;
    /// See [`Stage::model`].
    fn model_use(&self) -> ModelUse;
    /// See [`Stage::clean`].
    fn clean(&self) -> CleanUse;
    /// Names of the findings it needs.
    fn needs(&self) -> Vec<&'static str>;
    /// Names of the findings it gives.
    fn gives(&self) -> Vec<&'static str>;
    /// See [`Stage::Role`].
    fn role(&self) -> RoleKind;
    /// See [`Stage::faults`].
    fn faults(&self) -> Vec<String>;
    /// The configuration, defaults included.
    fn config(&self) -> Result<Value>;
    /// See [`Stage::run`]; the findings in the outcome are the given ones alone.
    fn run(&self, ctx: &mut Context<'_>, facts: &FactStore, shown: &Shown<'_>) -> Result<Outcome<FactStore>>;
    /// See [`Stage::restore`].
    fn restore(&self, model: &mut Model, gives: &FactStore) -> Result<()>;
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
    fn clean(&self) -> CleanUse {
        Stage::clean(self)
    }
    fn needs(&self) -> Vec<&'static str> {
        S::Needs::names()
    }
    fn gives(&self) -> Vec<&'static str> {
        S::Gives::names()
    }
    fn role(&self) -> RoleKind {
        S::Role::KIND
    }
    fn faults(&self) -> Vec<String> {
        Stage::faults(self)
    }
    fn config(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|source| Error::Finding { name: S::KIND, source })
    }
    fn run(&self, ctx: &mut Context<'_>, facts: &FactStore, shown: &Shown<'_>) -> Result<Outcome<FactStore>> {
        let sees = S::Role::see(shown).map_err(|what| Error::NotShown { stage: S::KIND, what })?;
        let outcome = Stage::run(self, ctx, S::Needs::read(facts)?, sees)?;
        let mut gives = FactStore::default();
        outcome.gives.write(&mut gives)?;
        Ok(Outcome { gives, report: outcome.report, attachments: outcome.attachments })
    }
    fn restore(&self, model: &mut Model, gives: &FactStore) -> Result<()> {
        Stage::restore(self, model, &S::Gives::read(gives)?)
    }
}
