//! A signed image that is added to another.

use std::sync::Arc;

use candle_core::Tensor;

use super::form::{in_range, nothing_left, take};
use super::{Form, Trigger};
use crate::Result;
use crate::nn::StateDict;

/// `clip(x + delta, 0, 1)`.
pub struct Addition {
    delta: Tensor,
}

impl Addition {
    /// Its tensors: `delta`, `f32[1,C,H,W]` in `[-1,1]`.
    pub const FORM: Form = Form::new("addition", |state, image| Ok(Arc::new(Self::restore(state, image)?)));

    /// `delta` is `f32[1,C,H,W]` in `[-1,1]`; the shape must be that of the `image` (channels, height, width).
    pub fn new(delta: Tensor, image: [usize; 3]) -> Result<Self> {
        Self::restore([("delta".to_string(), delta)].into(), image)
    }

    fn restore(mut state: StateDict, [c, h, w]: [usize; 3]) -> Result<Self> {
        let delta = take(&mut state, "delta", &[1, c, h, w])?;
        nothing_left(&state)?;
        in_range("delta", &delta, -1.0..=1.0)?;
        Ok(Self { delta })
    }
}

impl Trigger for Addition {
    fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(pixels.broadcast_add(&self.delta.to_device(pixels.device())?)?.clamp(0f64, 1f64)?)
    }

    fn form(&self) -> Form {
        Self::FORM
    }

    fn tensors(&self) -> Result<StateDict> {
        Ok([("delta".to_string(), self.delta.clone())].into())
    }
}
