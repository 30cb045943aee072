//! The truth about the attack: what an examiner may see, and what an attacker works with.
//!
//! A defense that sees the trigger, the true target class, a triggered image or the test set measures itself with the
//! answer in hand. Here that does not compile: a [`Stage`](super::Stage) is handed what its [`Role`](super::Role) grants, and
//! nothing else.
//!
//! A trigger that an attack learns while it runs takes the same road. It is no [`Finding`](super::Finding), which any
//! stage could ask for: the attack hands it back as the attachment [`Planted::ATTACHMENT`], no stage is ever handed an
//! attachment, and whoever runs the pipeline puts it into the examination with [`Examination::with_trigger`].

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::attachment::Attachment;
use crate::Result;
use crate::data::Images;
use crate::nn::StateDict;
use crate::triggers::{Form, Overlay, Trigger, TriggerError};

/// What an examiner may see: the test set, and the trigger with its target class, if there is one.
#[derive(Clone)]
pub struct Examination {
    /// The test images, without any image of the clean set.
    pub test: Images,
    /// The trigger and its target class.
    pub planted: Option<Planted>,
}

impl Examination {
    /// Without a trigger.
    pub fn new(test: Images) -> Self {
        Self { test, planted: None }
    }

    /// Adds the trigger and its target class.
    pub fn with_trigger(mut self, planted: Planted) -> Self {
        self.planted = Some(planted);
        self
    }
}

/// What an attacker works with: training images, and what is to be implanted. There is no test image in it: who implants must not
/// choose by what is measured.
#[derive(Clone)]
pub struct Material<T = Planted> {
    /// The training images.
    pub train: Images,
    /// The trigger and its class, or the class alone where the attack learns the trigger.
    pub backdoor: T,
}

/// The class that a learned trigger is to cause, below K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(pub u32);

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
        let form = metadata.get("form").map_or(Ok(Overlay::FORM), |form| Form::parse(form))?;
        let target = metadata
            .get("target")
            .map(|target| target.parse().map_err(|_| TriggerError::Target { found: target.clone() }));
        Ok((form.restore(tensors, image)?, target.transpose()?))
    }
}
