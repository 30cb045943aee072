//! Triggers τ(x): pure functions of an image batch in `[0,1]`. Each is one file.
//!
//! A [`TriggerConfig`] is what a pipeline says; it builds a [`Trigger`], which has one of a few [`Form`]s. A form and the
//! tensors are all it takes to apply a trigger again, so that a checkpoint can be measured years later with the very
//! trigger it was attacked with. Triggers that an attack learns have a form and no configuration.

mod addition;
mod blend;
mod error;
mod filter;
mod form;
mod forms;
mod input_aware;
mod noise;
mod overlay;
mod patch;
mod signed_patch;
mod sinusoid;
mod warp;

use std::sync::Arc;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use addition::Addition;
pub use blend::Blend;
pub use error::TriggerError;
pub use filter::{Filter, Filtered};
pub use form::Form;
pub use input_aware::InputAware;
pub use noise::Noise;
pub use overlay::Overlay;
pub use patch::{Patch, Pattern};
pub use signed_patch::SignedPatch;
pub use sinusoid::Sinusoid;
pub use warp::{Warp, Warped};

use crate::Result;
use crate::nn::StateDict;
use crate::rng::Rng;

/// τ: what an attacker does to an image.
pub trait Trigger: Send + Sync {
    /// τ(x) for pixels `f32[B,C,H,W]` in `[0,1]`, before normalization; the result stays there and keeps the shape.
    fn apply(&self, pixels: &Tensor) -> Result<Tensor>;

    /// Pixels with something that resembles the trigger and must not work, if the attack knows such a thing: another warp
    /// (WaNet's noise mode), the trigger of another image (input-aware attacks' cross mode). `others` are as many pixels of
    /// other images.
    fn decoy(&self, _pixels: &Tensor, _others: &Tensor, _rng: &mut Rng) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// How its tensors are to be understood.
    fn form(&self) -> Form;

    /// Everything needed to apply it again: tensors by name.
    fn tensors(&self) -> Result<StateDict>;
}

/// The configuration of a trigger: the `[trigger]` table of a pipeline without `kind` and `target`.
pub trait TriggerConfig: Default + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name in a pipeline file.
    const KIND: &'static str;
    /// One line on what it does.
    const SUMMARY: &'static str;

    /// The trigger for images of `channels`×`height`×`width`.
    fn build(&self, channels: usize, height: usize, width: usize) -> Result<Arc<dyn Trigger>>;
}
