//! The received model as a teacher: what it knows is kept while it is purified, but not what it thinks of the backdoor class.

use candle_core::Tensor;

use super::BackdoorClass;
use crate::losses;
use crate::models::{self, Classifier};
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
    pub fn copy(model: &dyn Classifier, class: BackdoorClass) -> Result<Self> {
        let classes = model.spec().classes;
        if class.class as usize >= classes {
            return Err(Error::invalid(format!("backdoor class {}: expected one below {classes}", class.class)));
        }
        Ok(Self { network: models::copy(model, model.head().weight().device())?, class: class.class })
    }
}

/// The distillation term of a loss, batch after batch.
pub(super) struct Lesson<'a> {
    teacher: Option<&'a Teacher>,
    temperature: f64,
    answers: Option<Tensor>,
}

impl<'a> Lesson<'a> {
    /// A lesson by `teacher`; none if its `weight` is 0.
    pub fn new(teacher: &'a Teacher, weight: f64, temperature: f64) -> Self {
        Self { teacher: (weight > 0.0).then_some(teacher), temperature, answers: None }
    }

    /// No lesson.
    pub fn none() -> Self {
        Self { teacher: None, temperature: 1.0, answers: None }
    }

    /// Asks the teacher about a batch.
    pub fn ask(&mut self, images: &Tensor) -> Result<()> {
        self.answers = self.teacher.map(|teacher| teacher.network.logits(images)).transpose()?;
        Ok(())
    }

    /// The mean over the batch, a scalar; `None` if there is no lesson.
    pub fn term(&self, logits: &Tensor, labels: &Tensor) -> Result<Option<Tensor>> {
        let (Some(teacher), Some(answers)) = (self.teacher, &self.answers) else { return Ok(None) };
        let loss = losses::distillation(logits, answers, labels, teacher.class, self.temperature)?;
        Ok(Some(loss.mean_all()?))
    }
}
