//! The received model as a teacher: what it knows is kept while it is purified, but not what it thinks of the backdoor class.

use candle_core::Tensor;

use super::BackdoorClass;
use crate::losses;
use crate::model::{Classifier, Model};
use crate::ranges::Positive;
use crate::{Error, Result};

/// A copy of a model from before it was purified.
///
/// On clean images a backdoored model is a good classifier, and with few of them its soft answers say more than their
/// labels. On images of other classes its opinion of the backdoor class is left out ([`losses::distillation`]): with it, the
/// backdoor came back (measured; see the README).
pub struct Teacher {
    network: Box<dyn Classifier>,
    class: u32,
}

impl Teacher {
    /// A copy of `model` as it is now.
    pub fn copy(model: &Model, class: BackdoorClass) -> Result<Self> {
        let network = model.full_precision()?;
        let classes = network.classes();
        if class.class as usize >= classes {
            return Err(Error::NoSuchClass { what: "backdoor class", class: class.class, classes });
        }
        Ok(Self { network: network.copy()?, class: class.class })
    }
}

/// The distillation term of a loss, batch after batch.
pub(super) struct Distillation<'a> {
    teacher: Option<&'a Teacher>,
    temperature: Positive,
    answers: Option<Tensor>,
}

impl<'a> Distillation<'a> {
    /// From `teacher`; nothing if its `weight` is 0.
    pub fn new(teacher: &'a Teacher, weight: f64, temperature: Positive) -> Self {
        Self { teacher: (weight > 0.0).then_some(teacher), temperature, answers: None }
    }

    /// Asks the teacher about a batch.
    pub fn ask(&mut self, images: &Tensor) -> Result<()> {
        self.answers = self.teacher.map(|teacher| teacher.network.logits(images)).transpose()?;
        Ok(())
    }

    /// The mean over the batch, a scalar; `None` if its weight is 0.
    pub fn term(&self, logits: &Tensor, labels: &Tensor) -> Result<Option<Tensor>> {
        let (Some(teacher), Some(answers)) = (self.teacher, &self.answers) else { return Ok(None) };
        let loss = losses::distillation(logits, answers, labels, teacher.class, self.temperature.get())?;
        Ok(Some(loss.mean_all()?))
    }
}
