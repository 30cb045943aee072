//! The truth about the attack, and who may see it.
//!
//! A defense that sees the trigger, the true target class, a triggered image or the test set measures itself with the
//! answer in hand. Here that does not compile: a [`Stage`](crate::stage::Stage) is handed only what its `Sees` type
//! grants, [`Truth`] grants itself to the stages listed in this file, and nobody else can add to the list.
//!
//! A trigger that an attack learns while it runs takes the same road. It is no [`Finding`](crate::stage::Finding), which any
//! stage could ask for: the attack hands it back as the attachment [`Planted::ATTACHMENT`], no stage is ever handed an
//! attachment, and whoever runs the pipeline puts it into the truth with [`Truth::with_trigger`].

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::attacks::{Attack, Dfst, Dynamic, Lira, Pcb, Qcb, Trojan, Wanet};
use crate::data::{Images, Normalization};
use crate::nn::StateDict;
use crate::stage::Attachment;
use crate::stages::Evaluate;
use crate::triggers::{Form, Trigger};
use crate::{Error, Result};

/// The trigger, the target class, and the data that defenses must not see.
#[derive(Clone)]
pub struct Truth {
    pub(crate) test: Images,
    pub(crate) normalization: Normalization,
    pub(crate) train: Option<Images>,
    pub(crate) planted: Option<Planted>,
    target: Option<u32>,
}

/// A trigger and the class that it is meant to cause.
#[derive(Clone)]
pub struct Planted {
    /// τ(x).
    pub trigger: Arc<dyn Trigger>,
    /// The attacker's class, below K.
    pub target: u32,
}

/// The tensor of an attachment with the indices of the poisoned training images.
const POISON_INDICES: &str = "poison_indices";

impl Planted {
    /// The name of the attachment that holds a trigger.
    pub const ATTACHMENT: &'static str = "trigger";

    /// Everything needed to plant it again, and which training images (ascending) carry it, if they are always the same.
    pub fn attachment(&self, poisoned: Option<&[usize]>) -> Result<Attachment> {
        let mut tensors = self.trigger.tensors()?;
        if let Some(poisoned) = poisoned {
            let indices = Tensor::from_iter(poisoned.iter().map(|&i| i as u32), &Device::Cpu)?;
            tensors.insert(POISON_INDICES.into(), indices);
        }
        let form = self.trigger.form().name().to_string();
        let metadata = BTreeMap::from([("form".into(), form), ("target".into(), self.target.to_string())]);
        Ok(Attachment { name: Self::ATTACHMENT.into(), tensors, metadata })
    }

    /// What [`Planted::attachment`] was made from, for images of `image` (channels, height, width). Without a `form`, the
    /// tensors are those of an overlay.
    pub fn restore(
        mut tensors: StateDict,
        metadata: &BTreeMap<String, String>,
        image: [usize; 3],
    ) -> Result<(Arc<dyn Trigger>, Option<u32>)> {
        tensors.remove(POISON_INDICES);
        let form = metadata.get("form").map_or(Ok(Form::Overlay), |form| Form::parse(form))?;
        let target = metadata.get("target").map(|target| {
            target.parse().map_err(|_| Error::invalid(format!("target: expected a class number, found {target:?}")))
        });
        Ok((form.restore(tensors, image)?, target.transpose()?))
    }
}

impl Truth {
    /// The test images, without any image of the clean set.
    pub fn new(test: Images, normalization: Normalization) -> Self {
        Self { test, normalization, train: None, planted: None, target: None }
    }

    /// Adds the trigger and its target class.
    pub fn with_trigger(mut self, planted: Planted) -> Self {
        self.target = Some(planted.target);
        self.planted = Some(planted);
        self
    }

    /// Adds the target class of a trigger that does not exist yet: an attack will learn it.
    pub fn with_target(mut self, target: u32) -> Self {
        self.target = Some(target);
        self
    }

    /// Adds the training split, for stages that implant a backdoor.
    pub fn with_train(mut self, train: Images) -> Self {
        self.train = Some(train);
        self
    }
}

impl Truth {
    /// The training images, for the attack of that kind.
    pub(crate) fn train(&self, kind: &str) -> Result<&Images> {
        self.train.as_ref().ok_or_else(|| Error::invalid(format!("{kind} needs the training split ([data] train)")))
    }

    /// The class to cause, for the attack of that kind.
    pub(crate) fn target(&self, kind: &str) -> Result<u32> {
        self.target.ok_or_else(|| Error::invalid(format!("{kind} needs a [trigger] with a target")))
    }

    /// The trigger to implant, for the attack of that kind.
    pub(crate) fn planted(&self, kind: &str) -> Result<&Planted> {
        self.planted.as_ref().ok_or_else(|| Error::invalid(format!("{kind} needs a [trigger] to implant")))
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
impl sealed::Cleared<Trojan> for Truth {}
impl sealed::Cleared<Wanet> for Truth {}
impl sealed::Cleared<Lira> for Truth {}
impl sealed::Cleared<Dynamic> for Truth {}
impl sealed::Cleared<Dfst> for Truth {}
impl sealed::Cleared<Qcb> for Truth {}
impl sealed::Cleared<Pcb> for Truth {}
