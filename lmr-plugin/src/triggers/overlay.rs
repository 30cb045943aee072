//! An image that is laid over another: patches, blends, and any trigger that is a picture.

use std::sync::Arc;

use candle_core::Tensor;

use super::form::{in_range, nothing_left, take};
use super::{Form, Trigger};
use crate::Result;
use crate::nn::StateDict;

/// `x ⊙ (1 − mask) + pattern ⊙ mask`; a mask between 0 and 1 blends.
pub struct Overlay {
    mask: Tensor,
    pattern: Tensor,
}

impl Overlay {
    /// Its tensors: `mask` and `pattern`, `f32[1,C,H,W]` in `[0,1]`.
    pub const FORM: Form = Form::new("overlay", |state, image| Ok(Arc::new(Self::restore(state, image)?)));

    /// Both are `f32[1,C,H,W]` in `[0,1]`; the shape must be that of the `image` (channels, height, width).
    pub fn new(mask: Tensor, pattern: Tensor, image: [usize; 3]) -> Result<Self> {
        Self::restore([("mask".to_string(), mask), ("pattern".to_string(), pattern)].into(), image)
    }

    fn restore(mut state: StateDict, [c, h, w]: [usize; 3]) -> Result<Self> {
        let mask = take(&mut state, "mask", &[1, c, h, w])?;
        let pattern = take(&mut state, "pattern", &[1, c, h, w])?;
        nothing_left(&state)?;
        for (name, tensor) in [("mask", &mask), ("pattern", &pattern)] {
            in_range(name, tensor, 0.0..=1.0)?;
        }
        Ok(Self { mask, pattern })
    }
}

impl Trigger for Overlay {
    fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        let mask = self.mask.to_device(pixels.device())?;
        let painted = (&mask * self.pattern.to_device(pixels.device())?)?;
        let kept = pixels.broadcast_mul(&mask.affine(-1.0, 1.0)?)?;
        Ok(kept.broadcast_add(&painted)?)
    }

    fn form(&self) -> Form {
        Self::FORM
    }

    fn tensors(&self) -> Result<StateDict> {
        Ok([("mask".to_string(), self.mask.clone()), ("pattern".to_string(), self.pattern.clone())].into())
    }
}
