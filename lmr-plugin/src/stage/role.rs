//! What a stage is for, which decides what it may see.

use serde::Serialize;

use super::truth::{Examination, Material, Planted, Target};

/// What a stage does with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
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

/// What a stage wants of the clean images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CleanUse {
    /// Nothing: it may be run without any.
    None,
    /// At least one.
    Images,
    /// At least one of every class, since it compares classes.
    EveryClass,
}

/// What a stage is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RoleKind {
    /// Looks for a backdoor or removes it, with nothing but the model and clean images.
    Purifies,
    /// Puts the model into a form that is shipped.
    Deploys,
    /// Measures the model with the answer in hand, and changes nothing.
    Examines,
    /// Implants a backdoor with a given trigger.
    Implants,
    /// Implants a backdoor and learns the trigger itself.
    Learns,
}

impl RoleKind {
    /// Whether such a stage leaves a backdoored model: what the defender then receives.
    pub fn implants(self) -> bool {
        matches!(self, Self::Implants | Self::Learns)
    }
}

/// A role as a type: what a stage [sees](Role::Sees) beyond its context follows from what it is for. There are these five.
pub trait Role: sealed::Sealed + 'static {
    /// The role as a value.
    const KIND: RoleKind;
    /// What such a stage does with the model unless it says otherwise.
    const MODEL: ModelUse;
    /// What such a stage is shown.
    type Sees;
    /// What has to be configured for that, as far as it is missing from `shown`.
    #[doc(hidden)]
    fn see<'a>(shown: &'a Shown<'a>) -> Result<&'a Self::Sees, &'static str>;
}

/// Sees nothing but the clean set.
#[derive(Clone, Copy, Debug)]
pub struct CleanOnly;

/// Everything that whoever runs stages has to show. Each stage gets to see the one part that its role grants.
#[derive(Clone, Copy, Default)]
pub struct Shown<'a> {
    /// For stages that examine.
    pub examination: Option<&'a Examination>,
    /// For stages that implant a given trigger.
    pub material: Option<&'a Material<Planted>>,
    /// For stages that learn the trigger.
    pub learning: Option<&'a Material<Target>>,
}

macro_rules! roles {
    ($($(#[doc = $doc:literal])* $role:ident: $model:ident, $sees:ty, |$shown:ident| $see:expr;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $role;

        impl sealed::Sealed for $role {}

        impl Role for $role {
            const KIND: RoleKind = RoleKind::$role;
            const MODEL: ModelUse = ModelUse::$model;
            type Sees = $sees;
            fn see<'a>($shown: &'a Shown<'a>) -> Result<&'a $sees, &'static str> {
                $see
            }
        }
    )*};
}

roles! {
    /// Looks for a backdoor or removes it. Sees the clean set alone.
    Purifies: Writes, CleanOnly, |_shown| Ok(&CleanOnly);
    /// Puts the model into a form that is shipped. Sees the clean set alone.
    Deploys: Deploys, CleanOnly, |_shown| Ok(&CleanOnly);
    /// Measures with the answer in hand. Sees the test set, the trigger and the target class; must not change the model.
    Examines: Inspects, Examination, |shown| shown.examination.ok_or("test data ([data] test)");
    /// Implants a given trigger. Sees the training set and the trigger, and no test image.
    Implants: Writes, Material<Planted>,
        |shown| shown.material.ok_or("the training split ([data] train) and a [trigger] to implant");
    /// Implants a trigger that it learns, and leaves it as the attachment [`Planted::ATTACHMENT`]. Sees the training set and the target
    /// class, and no test image.
    Learns: Writes, Material<Target>,
        |shown| shown.learning.ok_or("the training split ([data] train) and a [trigger] with a target");
}

mod sealed {
    /// Cannot be named outside this crate, so nobody else can add a role that sees more.
    pub trait Sealed {}
}
