//! A pattern at a place, both made for each image by networks (Dynamic; Nguyen and Tran, 2020, "Input-Aware Dynamic Backdoor
//! Attack").

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::form::{nothing_left, put_normalization, put_part, take_normalization, take_part};
use super::{Form, Trigger};
use crate::Result;
use crate::data::Normalization;
use crate::generators::Hourglass;
use crate::nn::{Builder, Eval, Forward, StateDict};
use crate::rng::Rng;

/// `x + (G(ν(x)) − x)·m(x)` with a pattern G and a mask m of one channel, both in `[0,1]`. Its decoys (the cross mode) carry
/// the pattern and mask of another image.
pub struct InputAware {
    normalization: Normalization,
    pattern: Hourglass,
    mask: Hourglass,
}

impl InputAware {
    /// Its tensors: the weights of two generators.
    pub const FORM: Form = Form::new("input-aware", |state, image| Ok(Arc::new(Self::restore(state, image)?)));

    /// `pattern` makes as many channels as an image has, `mask` one.
    pub fn new(normalization: &Normalization, pattern: Hourglass, mask: Hourglass) -> Self {
        Self { normalization: normalization.clone(), pattern, mask }
    }

    fn restore(mut state: StateDict, [channels, height, width]: [usize; 3]) -> Result<Self> {
        let normalization = take_normalization(&mut state, channels)?;
        let (pattern, mask) = (take_part(&mut state, "pattern"), take_part(&mut state, "mask"));
        nothing_left(&state)?;
        Hourglass::check_size([height, width])?;
        let network = |weights, outputs| Hourglass::new(channels, outputs, &Builder::from_state(weights, &Device::Cpu));
        Ok(Self { normalization, pattern: network(pattern, channels)?, mask: network(mask, 1)? })
    }

    /// The network that makes the pattern.
    pub fn pattern_network(&self) -> &Hourglass {
        &self.pattern
    }

    /// The network that makes the mask.
    pub fn mask_network(&self) -> &Hourglass {
        &self.mask
    }

    /// G(ν(x)) in `[0,1]`, `f32[B,C,H,W]`; differentiable in its weights where `how` is.
    pub fn pattern(&self, how: &mut dyn Forward, pixels: &Tensor) -> Result<Tensor> {
        self.pattern.forward(how, &self.normalization.apply(pixels)?)
    }

    /// m(x) in `[0,1]`, `f32[B,1,H,W]`: pushed towards 0 and 1.
    pub fn mask(&self, how: &mut dyn Forward, pixels: &Tensor) -> Result<Tensor> {
        let soft = self.mask.forward(how, &self.normalization.apply(pixels)?)?;
        Ok(soft.affine(20.0, -10.0)?.tanh()?.affine(0.5, 0.5)?)
    }

    /// `pixels` with a pattern at a mask.
    pub fn paint(pixels: &Tensor, pattern: &Tensor, mask: &Tensor) -> Result<Tensor> {
        Ok((pixels + (pattern - pixels)?.broadcast_mul(mask)?)?)
    }

    /// `pixels` with the trigger of `others`.
    fn with_trigger_of(&self, others: &Tensor, pixels: &Tensor) -> Result<Tensor> {
        let others = others.to_device(&self.pattern.device())?;
        let (pattern, mask) = (self.pattern(&mut Eval, &others)?, self.mask(&mut Eval, &others)?);
        let device = pixels.device();
        // Rounding may carry a value past the end.
        Ok(Self::paint(pixels, &pattern.to_device(device)?, &mask.to_device(device)?)?.clamp(0f64, 1f64)?)
    }
}

impl Trigger for InputAware {
    fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        self.with_trigger_of(pixels, pixels)
    }

    fn decoy(&self, pixels: &Tensor, others: &Tensor, _rng: &mut Rng) -> Result<Option<Tensor>> {
        Ok(Some(self.with_trigger_of(others, pixels)?))
    }

    fn form(&self) -> Form {
        Self::FORM
    }

    fn tensors(&self) -> Result<StateDict> {
        let mut state = StateDict::new();
        put_normalization(&mut state, &self.normalization)?;
        put_part(&mut state, "pattern", self.pattern.params().state_dict()?);
        put_part(&mut state, "mask", self.mask.params().state_dict()?);
        Ok(state)
    }
}
