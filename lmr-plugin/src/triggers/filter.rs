//! A tone filter as photo applications have it, in place of the style transfer of DFST (Cheng et al., 2021, "Deep Feature
//! Space Trojan Attack of Neural Networks by Controlled Detoxification"). Results with it are of "DFST (filter style)".

use std::sync::Arc;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TriggerError;
use super::form::{in_range, nothing_left, take};
use super::{Form, Trigger, TriggerConfig};
use crate::Result;
use crate::nn::StateDict;
use crate::ranges::AboveZero;

/// `(1 − α)·x + α·S(x)` with a filter S like "Nashville": warm lights, blue shadows, a little sepia, more contrast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Filter {
    /// Share α of the filtered image; 0.6 in DFST.
    pub alpha: AboveZero,
}

impl Default for Filter {
    fn default() -> Self {
        Self { alpha: const { AboveZero::literal(0.6) } }
    }
}

impl TriggerConfig for Filter {
    const KIND: &'static str = "filter";
    const SUMMARY: &'static str = "a tone filter over the whole colour image (DFST, filter style)";

    fn build(&self, channels: usize, _height: usize, _width: usize) -> Result<Arc<dyn Trigger>> {
        Ok(Arc::new(Filtered::new(self.alpha.get() as f32, channels)?))
    }
}

/// The built [`Filter`].
pub struct Filtered {
    alpha: f32,
}

/// A linear map of colours whose rows are `base + rest`, the rest scaled.
fn mixed(base: [[f32; 3]; 3], rest: [[f32; 3]; 3], scale: f32) -> [[f32; 3]; 3] {
    std::array::from_fn(|i| std::array::from_fn(|j| base[i][j] + scale * rest[i][j]))
}

impl Filtered {
    /// Its tensors: `alpha`, `f32[1]` in `[0,1]`.
    pub const FORM: Form = Form::new("filter", |state, image| Ok(Arc::new(Self::restore(state, image)?)));

    fn new(alpha: f32, channels: usize) -> Result<Self> {
        match channels {
            3 => Ok(Self { alpha }),
            found => Err(TriggerError::Channels { found }.into()),
        }
    }

    fn restore(mut state: StateDict, [channels, _, _]: [usize; 3]) -> Result<Self> {
        let alpha = take(&mut state, "alpha", &[1])?;
        nothing_left(&state)?;
        in_range("alpha", &alpha, 0.0..=1.0)?;
        Self::new(alpha.to_vec1::<f32>()?[0], channels)
    }

    /// S(x).
    fn filter(&self, x: &Tensor) -> Result<Tensor> {
        let device = x.device();
        let colour = |rgb: [f32; 3]| Tensor::new(&rgb, device)?.affine(1.0 / 255.0, 0.0)?.reshape((1, 3, 1, 1));
        let mix = |x: &Tensor, rows: [[f32; 3]; 3]| -> Result<Tensor> {
            let (b, c, h, w) = x.dims4()?;
            let flat = x.transpose(0, 1)?.contiguous()?.reshape((c, b * h * w))?;
            let mixed = Tensor::new(&rows, device)?.matmul(&flat)?;
            Ok(mixed.reshape((c, b, h, w))?.transpose(0, 1)?.contiguous()?.clamp(0f64, 1f64)?)
        };
        let darkened = x.broadcast_minimum(&colour([247.0, 176.0, 153.0])?)?;
        let x = (x.affine(0.44, 0.0)? + darkened.affine(0.56, 0.0)?)?;
        let lightened = x.broadcast_maximum(&colour([0.0, 70.0, 150.0])?)?;
        let x = (x.affine(0.6, 0.0)? + lightened.affine(0.4, 0.0)?)?;
        let sepia = mixed(
            [[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]],
            [[0.607, -0.769, -0.189], [-0.349, 0.314, -0.168], [-0.272, -0.534, 0.869]],
            0.8,
        );
        let x = mix(&x, sepia)?.affine(1.2, -0.1)?.clamp(0f64, 1f64)?;
        let x = x.affine(1.05, 0.0)?.clamp(0f64, 1f64)?;
        let saturated = mixed(
            [[0.213, 0.715, 0.072]; 3],
            [[0.787, -0.715, -0.072], [-0.213, 0.285, -0.072], [-0.213, -0.715, 0.928]],
            1.2,
        );
        mix(&x, saturated)
    }
}

impl Trigger for Filtered {
    fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        let alpha = f64::from(self.alpha);
        Ok((pixels.affine(1.0 - alpha, 0.0)? + self.filter(pixels)?.affine(alpha, 0.0)?)?)
    }

    fn form(&self) -> Form {
        Self::FORM
    }

    fn tensors(&self) -> Result<StateDict> {
        Ok([("alpha".to_string(), Tensor::new(&[self.alpha], &Device::Cpu)?)].into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Against the five steps, one colour at a time in double precision.
    #[rstest]
    #[case::white([1.0, 1.0, 1.0])]
    #[case::black([0.0, 0.0, 0.0])]
    #[case::colour([0.8, 0.3, 0.1])]
    fn a_colour_goes_through_the_five_steps(#[case] rgb: [f64; 3]) {
        let c1 = [247.0 / 255.0, 176.0 / 255.0, 153.0 / 255.0];
        let c2 = [0.0, 70.0 / 255.0, 150.0 / 255.0];
        let x: [f64; 3] = std::array::from_fn(|i| 0.44 * rgb[i] + 0.56 * f64::min(rgb[i], c1[i]));
        let x: [f64; 3] = std::array::from_fn(|i| 0.6 * x[i] + 0.4 * f64::max(x[i], c2[i]));
        let (a, u) = (0.8, 1.2);
        let mix = |x: [f64; 3], m: [[f64; 3]; 3]| -> [f64; 3] {
            std::array::from_fn(|i| (0..3).map(|j| m[i][j] * x[j]).sum::<f64>().clamp(0.0, 1.0))
        };
        let x = mix(
            x,
            [
                [0.393 + 0.607 * a, 0.769 - 0.769 * a, 0.189 - 0.189 * a],
                [0.349 - 0.349 * a, 0.686 + 0.314 * a, 0.168 - 0.168 * a],
                [0.272 - 0.272 * a, 0.534 - 0.534 * a, 0.131 + 0.869 * a],
            ],
        );
        let x: [f64; 3] = std::array::from_fn(|i| (1.2 * (x[i] - 0.5) + 0.5).clamp(0.0, 1.0));
        let x: [f64; 3] = std::array::from_fn(|i| (1.05 * x[i]).clamp(0.0, 1.0));
        let x = mix(
            x,
            [
                [0.213 + 0.787 * u, 0.715 - 0.715 * u, 0.072 - 0.072 * u],
                [0.213 - 0.213 * u, 0.715 + 0.285 * u, 0.072 - 0.072 * u],
                [0.213 - 0.213 * u, 0.715 - 0.715 * u, 0.072 + 0.928 * u],
            ],
        );
        let pixels: Vec<f32> = rgb.iter().map(|&v| v as f32).collect();
        let pixels = Tensor::from_vec(pixels, (1, 3, 1, 1), &Device::Cpu).unwrap().broadcast_as((2, 3, 2, 2)).unwrap();
        let trigger = Filter::default().build(3, 2, 2).unwrap();
        let found = trigger.apply(&pixels.contiguous().unwrap()).unwrap();
        let found = found.transpose(0, 1).unwrap().flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        for (channel, values) in found.iter().enumerate() {
            let expected = 0.4 * rgb[channel] + 0.6 * x[channel];
            for value in values {
                assert!((f64::from(*value) - expected).abs() < 1e-5, "{channel}: {value}, expected {expected}");
            }
        }
    }

    #[test]
    fn grey_images_are_refused() {
        let message = Filter::default().build(1, 4, 4).err().unwrap().to_string();
        assert!(message.contains("needs images of 3 channels, found 1"), "{message}");
    }
}
