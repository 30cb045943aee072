//! Every kind of stage and trigger that a pipeline can name: one line each.

use lmr_plugin::attacks::{Attack, Dfst, Dynamic, Lira, Pcb, Qcb, Trojan, Wanet};
use lmr_plugin::deploy::{Quantize, StructuredPrune};
use lmr_plugin::examine::Evaluate;
use lmr_plugin::purify::{DeltaPrune, Estimate, LogitRepel, Recover};
use lmr_plugin::stage::{AnyStage, Facts, ModelUse, Role, RoleKind, Stage};
use lmr_plugin::triggers::{Blend, Filter, Patch, SignedPatch, Sinusoid, TriggerConfig, Warp};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;
use toml::Table;

use crate::Result;
use crate::place::{Faults, Place, read};
use crate::triggers::{Built, ImageTrigger, Learned, Locate, Stored};

/// Every kind of stage, in the order of the reference.
pub static STAGES: &[StageKind] = &[
    StageKind::of::<Estimate>(),
    StageKind::of::<LogitRepel>(),
    StageKind::of::<DeltaPrune>(),
    StageKind::of::<Recover>(),
    StageKind::of::<Quantize>(),
    StageKind::of::<StructuredPrune>(),
    StageKind::of::<Evaluate>(),
    StageKind::of::<Attack>(),
    StageKind::of::<Trojan>(),
    StageKind::of::<Wanet>(),
    StageKind::of::<Lira>(),
    StageKind::of::<Dynamic>(),
    StageKind::of::<Dfst>(),
    StageKind::of::<Qcb>(),
    StageKind::of::<Pcb>(),
];

/// Every kind of trigger.
pub static TRIGGERS: &[TriggerKind] = &[
    TriggerKind::of::<Patch>(),
    TriggerKind::of::<Blend>(),
    TriggerKind::of::<Sinusoid>(),
    TriggerKind::of::<SignedPatch>(),
    TriggerKind::of::<Warp>(),
    TriggerKind::of::<Filter>(),
    TriggerKind::other::<ImageTrigger>(ImageTrigger::KIND, "a picture of your own over every image"),
    TriggerKind::other::<Stored>(Stored::KIND, "the trigger that an attack left in its stage's folder"),
    TriggerKind::other::<Learned>(Learned::KIND, "what an attack of this pipeline learns while it runs"),
];

/// What is known about a kind of stage without an instance of it.
pub struct StageKind {
    /// The name in a pipeline file.
    pub kind: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// What it does with the model.
    pub model: ModelUse,
    /// What it is for, and so what it is shown.
    pub role: RoleKind,
    /// Names of the findings it needs.
    pub needs: fn() -> Vec<&'static str>,
    /// Names of the findings it gives.
    pub gives: fn() -> Vec<&'static str>,
    /// Its configuration's JSON Schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Its configuration with every default.
    pub defaults: fn() -> Value,
    parse: fn(Table, &Place, &mut Faults) -> Option<Box<dyn AnyStage>>,
}

impl StageKind {
    /// The kind that `S` is.
    const fn of<S: Stage>() -> Self {
        Self {
            kind: S::KIND,
            summary: S::SUMMARY,
            model: S::MODEL,
            role: <S::Role as Role>::KIND,
            needs: <S::Needs as Facts>::names,
            gives: <S::Gives as Facts>::names,
            schema: subschema::<S>,
            defaults: defaults::<S>,
            parse: |table, place, faults| {
                let stage: S = read(table, place, faults)?;
                check(&Stage::faults(&stage), place, faults).then(|| Box::new(stage) as Box<dyn AnyStage>)
            },
        }
    }

    /// Whether it implants a backdoor.
    pub fn implants(&self) -> bool {
        self.role.implants()
    }

    /// Whether it learns its trigger itself, and keeps it as an attachment.
    pub fn learns(&self) -> bool {
        self.role == RoleKind::Learns
    }

    /// Whether it measures with the answer in hand.
    pub fn examines(&self) -> bool {
        self.role == RoleKind::Examines
    }

    /// The kind of that name.
    pub fn find(kind: &str) -> Option<&'static Self> {
        STAGES.iter().find(|known| known.kind == kind)
    }

    /// A stage from its table without `kind`, `name` and `from`; faults are noted.
    pub(crate) fn parse(&self, table: Table, place: &Place, faults: &mut Faults) -> Option<Box<dyn AnyStage>> {
        (self.parse)(table, place, faults)
    }
}

/// A trigger's configuration with its type erased.
pub trait AnyTrigger: Send + Sync {
    /// See [`TriggerConfig::KIND`].
    fn kind(&self) -> &'static str;
    /// The configuration, defaults included.
    fn config(&self) -> Value;
    /// The trigger for images of `image` (channels, height, width).
    fn build(&self, image: [usize; 3], locate: &Locate<'_>) -> Result<Built>;
}

impl<T: TriggerConfig> AnyTrigger for T {
    fn kind(&self) -> &'static str {
        T::KIND
    }
    fn config(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
    fn build(&self, [channels, height, width]: [usize; 3], _: &Locate<'_>) -> Result<Built> {
        Ok(Built::Made(TriggerConfig::build(self, channels, height, width)?))
    }
}

impl AnyTrigger for ImageTrigger {
    fn kind(&self) -> &'static str {
        Self::KIND
    }
    fn config(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
    fn build(&self, image: [usize; 3], locate: &Locate<'_>) -> Result<Built> {
        ImageTrigger::build(self, image, locate)
    }
}

impl AnyTrigger for Stored {
    fn kind(&self) -> &'static str {
        Self::KIND
    }
    fn config(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
    fn build(&self, image: [usize; 3], locate: &Locate<'_>) -> Result<Built> {
        Stored::build(self, image, locate)
    }
}

impl AnyTrigger for Learned {
    fn kind(&self) -> &'static str {
        Self::KIND
    }
    fn config(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
    fn build(&self, _: [usize; 3], _: &Locate<'_>) -> Result<Built> {
        Ok(Built::Learned)
    }
}

/// What is known about a kind of trigger without an instance of it.
pub struct TriggerKind {
    /// The name in a pipeline file.
    pub kind: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Its configuration's JSON Schema.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Its configuration with every default.
    pub defaults: fn() -> Value,
    parse: fn(Table, &Place, &mut Faults) -> Option<Box<dyn AnyTrigger>>,
}

impl TriggerKind {
    const fn of<T: TriggerConfig>() -> Self {
        Self {
            kind: T::KIND,
            summary: T::SUMMARY,
            schema: subschema::<T>,
            defaults: defaults::<T>,
            parse: |table, place, faults| Some(Box::new(read::<T>(table, place, faults)?) as Box<dyn AnyTrigger>),
        }
    }

    /// A kind whose options have no defaults to show: those that are required, and those that are absent.
    const fn other<T: AnyTrigger + serde::de::DeserializeOwned + JsonSchema + 'static>(
        kind: &'static str,
        summary: &'static str,
    ) -> Self {
        Self {
            kind,
            summary,
            schema: subschema::<T>,
            defaults: || Value::Null,
            parse: |table, place, faults| Some(Box::new(read::<T>(table, place, faults)?) as Box<dyn AnyTrigger>),
        }
    }

    /// The kind of that name.
    pub fn find(kind: &str) -> Option<&'static Self> {
        TRIGGERS.iter().find(|known| known.kind == kind)
    }

    /// A trigger from its table without `kind` and `target`; faults are noted.
    pub(crate) fn parse(&self, table: Table, place: &Place, faults: &mut Faults) -> Option<Box<dyn AnyTrigger>> {
        (self.parse)(table, place, faults)
    }
}

fn subschema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

fn defaults<T: Default + serde::Serialize>() -> Value {
    serde_json::to_value(T::default()).unwrap_or_default()
}

/// Notes what is impossible; true if nothing is.
fn check(found: &[String], place: &Place, faults: &mut Faults) -> bool {
    found.iter().for_each(|fault| faults.add_keyed(place, fault));
    found.is_empty()
}
