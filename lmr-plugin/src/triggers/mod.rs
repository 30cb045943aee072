//! Triggers τ(x): pure functions of an image batch in `[0,1]`. Each is one file.

mod blend;
mod patch;

use std::sync::Arc;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use blend::Blend;
pub use patch::{Patch, Pattern};

use crate::Result;
use crate::nn::StateDict;

/// τ: what an attacker does to an image.
pub trait Trigger: Send + Sync {
    /// τ(x) for pixels `f32[B,C,H,W]` in `[0,1]`, before normalization; the result stays there and keeps the shape.
    fn apply(&self, pixels: &Tensor) -> Result<Tensor>;

    /// Everything needed to apply it again: tensors by name.
    fn tensors(&self) -> StateDict;
}

/// The configuration of a trigger: the `[trigger]` table of a pipeline without `kind` and `target`.
pub trait TriggerConfig: Default + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name in a pipeline file.
    const KIND: &'static str;
    /// One line on what it does.
    const SUMMARY: &'static str;

    /// What is impossible about it, if anything: `key: expected ..., found ...` each.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }

    /// The trigger for images of `channels`×`height`×`width`.
    fn build(&self, channels: usize, height: usize, width: usize) -> Result<Arc<dyn Trigger>>;
}

/// `x ⊙ (1 − mask) + pattern ⊙ mask`: the form of both triggers here. Mask and pattern are `f32[1,C,H,W]`; a mask
/// between 0 and 1 blends.
struct Overlay {
    mask: Tensor,
    pattern: Tensor,
}

impl Trigger for Overlay {
    fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        let mask = self.mask.to_device(pixels.device())?;
        let painted = (&mask * self.pattern.to_device(pixels.device())?)?;
        let kept = pixels.broadcast_mul(&mask.affine(-1.0, 1.0)?)?;
        Ok(kept.broadcast_add(&painted)?)
    }

    fn tensors(&self) -> StateDict {
        [("mask".to_string(), self.mask.clone()), ("pattern".to_string(), self.pattern.clone())].into()
    }
}
