//! How the Hub misbehaves.

use super::answer::{Answer, Delivery, Request};

/// What goes wrong with which requests.
#[derive(Clone, Debug)]
pub struct Fault {
    method: Option<&'static str>,
    path: String,
    times: usize,
    effect: Effect,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Another answer.
    Answer(Answer),
    /// The right answer with another header.
    Header(&'static str, String),
    /// The right answer in a bad way.
    Deliver(Delivery),
    /// The right status, headers and length, and other bytes.
    Corrupt,
}

impl Fault {
    /// Every request whose path has this part.
    pub fn new(path: &str, effect: Effect) -> Self {
        Self { method: None, path: path.to_owned(), times: usize::MAX, effect }
    }

    /// Only the next `times` of them.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Only those with this method.
    #[must_use]
    pub fn on(self, method: &'static str) -> Self {
        Self { method: Some(method), ..self }
    }
}

/// The effect on a request, if there is one; it is used up by one.
pub fn take(faults: &mut [Fault], request: &Request) -> Option<Effect> {
    let fault = faults.iter_mut().find(|fault| {
        fault.times > 0
            && fault.method.is_none_or(|method| method == request.method)
            && request.path.contains(&fault.path)
    })?;
    fault.times -= 1;
    Some(fault.effect.clone())
}

impl Effect {
    /// What it makes of the right answer.
    pub fn apply(self, honest: Answer) -> Answer {
        match self {
            Self::Answer(answer) => answer,
            Self::Header(name, value) => honest.with(name, value),
            Self::Deliver(delivery) => Answer { delivery, ..honest },
            Self::Corrupt => Answer { body: honest.body.iter().map(|byte| !byte).collect(), ..honest },
        }
    }
}
