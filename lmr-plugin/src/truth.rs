//! The truth about the attack, and who may see it.
//!
//! A defense that sees the trigger, the true target class, a triggered image or the test set measures itself with the
//! answer in hand. Here that does not compile: a [`Stage`](crate::stage::Stage) is handed only what its `Sees` type
//! grants, [`Truth`] grants itself to the stages listed in this file, and nobody else can add to the list.

use std::sync::Arc;

use crate::attacks::Attack;
use crate::data::{Images, Normalization};
use crate::stages::Evaluate;
use crate::triggers::Trigger;

/// The trigger, the target class, and the data that defenses must not see.
#[derive(Clone)]
pub struct Truth {
    pub(crate) test: Images,
    pub(crate) normalization: Normalization,
    pub(crate) train: Option<Images>,
    pub(crate) planted: Option<Planted>,
}

/// A trigger and the class that it is meant to cause.
#[derive(Clone)]
pub struct Planted {
    /// τ(x).
    pub trigger: Arc<dyn Trigger>,
    /// The attacker's class, below K.
    pub target: u32,
}

impl Truth {
    /// The test images, without any image of the clean set.
    pub fn new(test: Images, normalization: Normalization) -> Self {
        Self { test, normalization, train: None, planted: None }
    }

    /// Adds the trigger and its target class.
    pub fn with_trigger(mut self, planted: Planted) -> Self {
        self.planted = Some(planted);
        self
    }

    /// Adds the training split, for stages that implant a backdoor.
    pub fn with_train(mut self, train: Images) -> Self {
        self.train = Some(train);
        self
    }
}

/// Sees nothing but the clean set.
#[derive(Clone, Copy, Debug)]
pub struct CleanOnly;

/// What a stage `S` is shown beyond its [`Context`](crate::stage::Context). Sealed: [`CleanOnly`] for everyone,
/// [`Truth`] for the stages listed in this file.
pub trait Sight<S: ?Sized>: sealed::Cleared<S> {
    /// Whether this is the truth.
    const TRUTH: bool;
    /// Picks what is shown.
    fn grant<'a>(truth: Option<&'a Truth>, nothing: &'a CleanOnly) -> Option<&'a Self>;
}

impl<S: ?Sized> Sight<S> for CleanOnly {
    const TRUTH: bool = false;
    fn grant<'a>(_: Option<&'a Truth>, nothing: &'a CleanOnly) -> Option<&'a Self> {
        Some(nothing)
    }
}

impl<S: ?Sized> Sight<S> for Truth
where
    Truth: sealed::Cleared<S>,
{
    const TRUTH: bool = true;
    fn grant<'a>(truth: Option<&'a Truth>, _: &'a CleanOnly) -> Option<&'a Self> {
        truth
    }
}

mod sealed {
    /// Cannot be named outside this crate, so nobody else can clear a stage.
    pub trait Cleared<S: ?Sized> {}
}

impl<S: ?Sized> sealed::Cleared<S> for CleanOnly {}
impl sealed::Cleared<Evaluate> for Truth {}
impl sealed::Cleared<Attack> for Truth {}
