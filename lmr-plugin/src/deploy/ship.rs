//! Putting a model into a form.

use crate::Result;
use crate::data::CleanSet;
use crate::model::Model;
use crate::run::Run;

/// What can be done to a model before it is shipped. The file of each says how.
pub trait Ship {
    /// What is impossible about it: key, colon, what was expected and found.
    fn faults(&self) -> Vec<String>;

    /// A few words: `int8`, `int4 per tensor`, `weights int8`, `q4_0`, `50% pruned`.
    fn label(&self) -> String;

    /// Puts a full-precision model into this form. Activation ranges are measured on the clean images.
    fn ship(&self, model: &mut Model, clean: &CleanSet, run: &Run<'_>) -> Result<()>;

    /// A full-precision model that computes what the form does, to train a copy of: with rounded weights (activations
    /// are not rounded), or with zeros for the pruned filters.
    fn rounded(&self, model: &Model) -> Result<Model>;
}
