//! Faint noise that a network makes for each image (LIRA; Doan et al., 2021, "LIRA: Learnable, Imperceptible and Robust
//! Backdoor Attacks").

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::TriggerError;
use super::form::{nothing_left, put_normalization, put_part, take, take_normalization, take_part};
use super::{Form, Trigger};
use crate::Result;
use crate::data::Normalization;
use crate::generators::Autoencoder;
use crate::nn::{Builder, Eval, Forward, StateDict};

/// `clip(x + ε·g(ν(x)), 0, 1)` with a generator g of values in `[-1,1]` and a normalization ν.
pub struct Noise {
    /// ε of every channel: `f32[1,C,1,1]`.
    epsilon: Tensor,
    normalization: Normalization,
    generator: Autoencoder,
}

impl Noise {
    /// Its tensors: `epsilon`, `f32[1,C,1,1]`, and the generator's weights.
    pub const FORM: Form = Form::new("noise", |state, image| Ok(Arc::new(Self::restore(state, image)?)));

    /// `epsilon` has one number above 0 a channel.
    pub fn new(epsilon: &[f32], normalization: &Normalization, generator: Autoencoder) -> Result<Self> {
        let device = generator.device();
        let epsilon = Tensor::new(epsilon, &device)?.reshape((1, (), 1, 1))?;
        Ok(Self { epsilon, normalization: normalization.clone(), generator })
    }

    fn restore(mut state: StateDict, [channels, height, width]: [usize; 3]) -> Result<Self> {
        let epsilon = take(&mut state, "epsilon", &[1, channels, 1, 1])?;
        if let Some(found) = epsilon.flatten_all()?.to_vec1::<f32>()?.into_iter().find(|v| !(0.0..=1.0).contains(v)) {
            return Err(TriggerError::Range { name: "epsilon".into(), low: 0.0, high: 1.0, found }.into());
        }
        let normalization = take_normalization(&mut state, channels)?;
        let weights = take_part(&mut state, "generator");
        nothing_left(&state)?;
        Autoencoder::check_size([height, width])?;
        let generator = Autoencoder::new(channels, &Builder::from_state(weights, &Device::Cpu))?;
        Ok(Self { epsilon, normalization, generator })
    }

    /// The generator.
    pub fn generator(&self) -> &Autoencoder {
        &self.generator
    }

    /// τ(x) with the generator run by `how`; differentiable in its weights where `how` is.
    pub fn with(&self, how: &mut dyn Forward, pixels: &Tensor) -> Result<Tensor> {
        let noise = self.generator.forward(how, &self.normalization.apply(pixels)?)?;
        Ok((pixels + noise.broadcast_mul(&self.epsilon)?)?.clamp(0f64, 1f64)?)
    }
}

impl Trigger for Noise {
    fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        let triggered = self.with(&mut Eval, &pixels.to_device(self.epsilon.device())?)?;
        Ok(triggered.to_device(pixels.device())?)
    }

    fn form(&self) -> Form {
        Self::FORM
    }

    fn tensors(&self) -> Result<StateDict> {
        let mut state = StateDict::from([("epsilon".to_string(), self.epsilon.clone())]);
        put_normalization(&mut state, &self.normalization)?;
        put_part(&mut state, "generator", self.generator.params().state_dict()?);
        Ok(state)
    }
}
